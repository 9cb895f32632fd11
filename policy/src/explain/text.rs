//! An explanation in words, and for machines.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Explanation, Miss, Shadow, Untold};
use crate::limits::LimitName;
use crate::verdict::{Action, DenyReason, Effect, Enforcement, RuleName};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.verdict.effect, &self.rule) {
            _ if !self.untold.is_empty() => {
                f.write_str("not known: the answer depends on what was not told")?;
                for Untold { rule, when } in &self.untold {
                    let acts = if rule.action == Action::Deny { "would fire" } else { "would match" };
                    write!(
                        f,
                        "\n  - this {} {acts}: {rule} ({}), if {}",
                        rule.action,
                        rule.place,
                        when.join(", or if ")
                    )?;
                }
                write!(f, "\nto know it: tell {}", missing(&self.untold))?;
            }
            (Effect::Allow, Some(rule)) => write!(f, "allowed by rule {rule} ({})", rule.place)?,
            (Effect::Allow, None) => f.write_str("allowed")?,
            (Effect::Deny(DenyReason::Rule), Some(rule)) => {
                write!(f, "denied by rule {rule} ({})", rule.place)?
            }
            (Effect::Deny(DenyReason::StaleContext), _) => {
                f.write_str("denied: the question is out of date")?
            }
            (Effect::Deny(DenyReason::Address), _) => {
                f.write_str("denied: nobody outside of the mesh is called at this address")?
            }
            (Effect::Deny(_), _) => f.write_str("denied: no Allow rule matches")?,
        }
        for note in &self.notes {
            write!(f, "\n{note}")?;
        }
        if !self.readings.is_empty() {
            write!(
                f,
                "\nthe path can also be read as {}; every reading must be allowed",
                self.readings.join(", ")
            )?;
        }
        if let Some(Shadow { allowed, rule }) = &self.shadow {
            let word = if *allowed { "allow" } else { "deny" };
            match rule {
                Some(rule) => {
                    write!(f, "\nin the shadow: rule {rule} ({}) would {word} it", rule.place)?;
                }
                None => write!(f, "\nin the shadow: no Allow rule lists it, which would {word} it")?,
            }
        }
        if let Some(rule) = &self.audit {
            write!(f, "\naudited by rule {rule} ({})", rule.place)?;
        }
        for limit in &self.limits {
            let shadow = if limit.enforcement == Enforcement::Shadow { " in the shadow" } else { "" };
            write!(f, "\ncounted by limit {limit}{shadow} ({})", limit.place)?;
        }
        let Some(miss) = &self.nearest else {
            return match self.verdict.effect {
                Effect::Deny(DenyReason::NoRule) if self.untold.is_empty() => {
                    f.write_str("\nno Allow rule concerns this workload")
                }
                _ => Ok(()),
            };
        };
        write!(f, "\nnearest: rule {} ({})", miss.rule, miss.rule.place)?;
        for failed in &miss.failed {
            write!(f, "\n  - {failed}")?;
        }
        write!(f, "\nto allow it: {}", miss.change)
    }
}

/// What a question left out, in the words of those who can tell it.
fn missing(untold: &[Untold]) -> String {
    let is_about = |word: &str| untold.iter().flat_map(|one| &one.when).any(|when| when.contains(word));
    let host = "the host (`--host`; in a test `host`)";
    let fields =
        "the header fields (`--header`, once for each; with the first, all others count as not sent)";
    let both = is_about("condition");
    match (both || is_about("the host is"), both || is_about("header field")) {
        (true, false) => host.to_owned(),
        (false, true) => fields.to_owned(),
        _ => format!("{host}, or {fields}"),
    }
}

#[derive(Serialize)]
struct Verdict {
    /// `None`: not known.
    allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    generation: u64,
}

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn none<T>(list: &&[T]) -> bool {
            list.is_empty()
        }
        #[derive(Serialize)]
        struct Shown<'e> {
            verdict: Verdict,
            #[serde(skip_serializing_if = "none")]
            untold: &'e [Untold],
            #[serde(skip_serializing_if = "Option::is_none")]
            rule: Option<&'e RuleName>,
            #[serde(skip_serializing_if = "none")]
            readings: &'e [String],
            #[serde(skip_serializing_if = "none")]
            notes: &'e [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            shadow: Option<&'e Shadow>,
            #[serde(skip_serializing_if = "Option::is_none")]
            audit: Option<&'e RuleName>,
            #[serde(skip_serializing_if = "Option::is_none")]
            nearest: Option<&'e Miss>,
            #[serde(skip_serializing_if = "none")]
            limits: &'e [LimitName],
        }
        let Self { verdict, untold, rule, readings, notes, shadow, audit, nearest, limits } = self;
        let (allowed, reason) = match verdict.effect {
            _ if !untold.is_empty() => (None, Some("unknown")),
            Effect::Allow => (Some(true), None),
            Effect::Deny(reason) => (Some(false), Some(reason.label())),
        };
        Shown {
            verdict: Verdict { allowed, reason, generation: verdict.generation },
            untold,
            rule: rule.as_ref().filter(|_| untold.is_empty()),
            readings,
            notes,
            shadow: shadow.as_ref(),
            audit: audit.as_ref(),
            nearest: nearest.as_ref(),
            limits,
        }
        .serialize(serializer)
    }
}
