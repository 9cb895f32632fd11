//! `postern ca registration`: is a directory of registrations right, and what does it say to these facts?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use postern_ca::attest::{Fact, Facts, Outcome, Registrations};
use postern_ca::issue::MIN_TTL;
use postern_control::Config;
use postern_control::registrations::{self, Terms};
use postern_svid::{SpiffeId, TrustDomain};
use serde_json::json;

use super::failed;
use crate::say;

/// Registrations that do not grant the id and are listed all the same.
const NEAREST: usize = 5;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Whether the control plane would take them. Exit code 1 if not, with file:line:column of each mistake.
    Check {
        #[command(flatten)]
        set: Set,
    },
    /// Which registration grants an id to these facts; which nearly does, and why not. Exit code 1 if none does.
    Explain {
        /// The id asked for.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: SpiffeId,
        /// What an attestor found, as the log and the ledger say it: k8s:ns:shop. Once for each fact.
        #[arg(long = "fact", value_name = "FACT", required = true, value_parser = Fact::parse)]
        facts: Vec<Fact>,
        #[command(flatten)]
        set: Set,
    },
}

/// The documents, and what they are checked under.
#[derive(clap::Args)]
pub(super) struct Set {
    /// The directory of documents; by default the one that the configuration names.
    #[arg(value_name = "DIR", required_unless_present = "config")]
    directory: Option<PathBuf>,
    /// The control plane's configuration file: its trust domain, and the names of who is believed.
    #[arg(long, value_name = "FILE", required_unless_present = "trust_domain")]
    config: Option<PathBuf>,
    /// The trust domain, without a configuration; then any name of a cluster or provider is taken.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    trust_domain: Option<TrustDomain>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(verb: Verb) -> ExitCode {
    match verb {
        Verb::Check { set } => set.read().map_or_else(|code| code, |read| check(&set, &read)),
        Verb::Explain { id, facts, set } => {
            set.read().map_or_else(|code| code, |read| explain(&set, &read, &id, facts))
        }
    }
}

/// What was read, and under which terms.
struct Read {
    directory: PathBuf,
    terms: Terms,
    registrations: Registrations,
}

impl Set {
    fn read(&self) -> Result<Read, ExitCode> {
        let (directory, terms) = self.terms()?;
        let found =
            registrations::read_directory(&directory).and_then(|files| registrations::check(&files, &terms));
        match found {
            Ok(registrations) => Ok(Read { directory, terms, registrations }),
            Err(found) => {
                if self.json {
                    say(json!({ "ok": false, "findings": found }));
                } else {
                    eprintln!("{found}");
                }
                Err(ExitCode::FAILURE)
            }
        }
    }

    fn terms(&self) -> Result<(PathBuf, Terms), ExitCode> {
        let usage = |message: String| super::misused(message);
        let Some(path) = &self.config else {
            // The command line's grammar demands both.
            let both = self.directory.clone().zip(self.trust_domain.clone());
            let (directory, trust_domain) =
                both.ok_or_else(|| usage("name a directory and --trust-domain".to_owned()))?;
            return Ok((directory, Terms { trust_domain, names: None, least: MIN_TTL }));
        };
        let config = Config::load(path).map_err(|error| usage(error.to_string()))?;
        let named = self.directory.clone().or_else(|| config.attestation.registrations.clone());
        let directory = named.ok_or_else(|| usage(without_directory(path)))?;
        Ok((directory, config.registration_terms()))
    }
}

fn without_directory(config: &Path) -> String {
    format!("{}: it has no `registrations`; name a directory", config.display())
}

fn check(set: &Set, read: &Read) -> ExitCode {
    let count = read.registrations.len();
    if set.json {
        say(json!({ "ok": true, "registrations": count }));
    } else {
        let s = if count == 1 { "" } else { "s" };
        say(format_args!("{}: {count} registration{s}, no mistakes", read.directory.display()));
    }
    ExitCode::SUCCESS
}

fn explain(set: &Set, read: &Read, id: &SpiffeId, facts: Vec<Fact>) -> ExitCode {
    let facts = match Facts::told(facts) {
        Ok(facts) => facts,
        Err(error) => {
            let _ = failed(error);
            return ExitCode::from(2);
        }
    };
    let all = read.registrations.explain(&read.terms.trust_domain, &facts, id);
    let is_granted = all.first().is_some_and(|judged| judged.outcome == Outcome::Grants);
    let shown = all.iter().filter(|judged| judged.outcome != Outcome::Elsewhere);
    let shown: Vec<_> = shown.take(if is_granted { 1 } else { NEAREST }).collect();
    if set.json {
        let list: Vec<_> = shown
            .iter()
            .map(|judged| {
                json!({
                    "name": judged.registration.name, "place": judged.registration.place,
                    "grants": judged.outcome == Outcome::Grants, "says": judged.outcome.to_string(),
                })
            })
            .collect();
        say(
            json!({ "granted": is_granted, "id": id.as_str(), "facts": facts.to_string(), "registrations": list }),
        );
    } else {
        let not = if is_granted { "" } else { "not " };
        say(format_args!("{id} is {not}granted to {facts}"));
        for judged in &shown {
            let registration = judged.registration;
            say(format_args!("  {} ({}) {}", registration.name, registration.place, judged.outcome));
        }
        if shown.is_empty() {
            say("  no registration is for facts of this attestor");
        }
    }
    if is_granted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
