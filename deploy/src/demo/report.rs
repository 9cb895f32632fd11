//! What the demo tells a person, or a program with `--json`.

use std::io::{IsTerminal, stdout};

use serde_json::{Value, json};

use crate::demo::expectations::Settled;
use crate::demo::files::Files;

/// Lines as they come, and the whole at the end.
pub(crate) struct Report {
    json: bool,
    colour: bool,
    settled: Vec<Settled>,
    /// Failed, too, but with one reason for all of them.
    unplayed: Vec<Settled>,
}

impl Report {
    /// A report for people, or with `json` one document at the end.
    pub(crate) fn new(json: bool) -> Self {
        // https://no-color.org: any value but the empty one.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colour: !plain && stdout().is_terminal(), settled: Vec::new(), unplayed: Vec::new() }
    }

    /// Something worth knowing that is no expectation.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// One line for each of these, and keeps them for the count.
    pub(crate) fn settle(&mut self, settled: Vec<Settled>) {
        for one in &settled {
            self.say(&self.lines(one));
        }
        self.settled.extend(settled);
    }

    /// Expectations that could not be looked at: failed, in one line.
    pub(crate) fn settle_unplayed(&mut self, unplayed: Vec<Settled>) {
        self.unplayed.extend(unplayed);
    }

    /// Whether everything so far holds.
    pub(crate) fn holds(&self) -> bool {
        !self.settled.is_empty() && self.all().all(|one| one.finding.is_ok())
    }

    /// The count of `all`, as a sentence or as the whole document. What was never looked at counts as failed.
    pub(crate) fn conclude(&self, all: usize, note: &str, files: &Files, seconds: f64) {
        let held = self.all().filter(|one| one.finding.is_ok()).count();
        if self.json {
            let document = json!({
                "ok": self.holds(),
                "held": held,
                "failed": all - held,
                "seconds": seconds,
                "directory": files.root(),
                "note": note,
                "expectations": self.all().map(entry).collect::<Vec<_>>(),
            });
            println!("{document:#}");
            return;
        }
        if let Some(first) = self.unplayed.first() {
            let why = first.finding.as_ref().map_or_else(ToString::to_string, Clone::clone);
            println!(
                "{} {} more: {why}\n    {}",
                self.paint("31", "✗"),
                self.unplayed.len(),
                names(&self.unplayed)
            );
        }
        println!("\n{held} of {all} expectations hold, after {seconds:.0} s.");
        let broken = names(self.settled.iter().filter(|one| one.finding.is_err()));
        if !broken.is_empty() {
            println!("Broken: {broken}");
        }
    }

    fn all(&self) -> impl Iterator<Item = &Settled> {
        self.settled.iter().chain(&self.unplayed)
    }

    fn lines(&self, one: &Settled) -> String {
        let (claim, name) = (one.expectation.claim, one.expectation.name);
        match &one.finding {
            Ok(evidence) => format!("{} {claim}\n    {}", self.paint("32", "✓"), self.paint("2", evidence)),
            Err(failure) => format!("{} {claim}\n    {name}: {failure}", self.paint("31", "✗")),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn names<'a>(settled: impl IntoIterator<Item = &'a Settled>) -> String {
    settled.into_iter().map(|one| one.expectation.name).collect::<Vec<_>>().join(" ")
}

fn entry(one: &Settled) -> Value {
    json!({
        "name": one.expectation.name,
        "claim": one.expectation.claim,
        "ok": one.finding.is_ok(),
        "evidence": one.finding.as_ref().map_or_else(ToString::to_string, Clone::clone),
        "seconds": one.took.as_secs_f64(),
    })
}
