//! `postern ca root`: steps of a root's rotation at an operator's word. The control plane carries them out, for only it knows
//! whether their gates are open. A root that comes by file is written to the store, and taken up from there.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use postern_ca::authority::import_root;
use postern_ca::store::{Answer, Order, OrderVerb, Reason, Sqlite, State, StoreError};
use postern_svid::{Clock, SystemClock};
use serde_json::json;

use super::{Of, failed};
use crate::say;

/// The control plane looks four times a second; a step costs it two signatures and a write.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it says that it still waits.
const SAY: Duration = Duration::from_secs(1);
/// After which it tells that nobody answers.
const SILENCE: Duration = Duration::from_secs(2);

/// Steps of a root's rotation.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Make the next root and put it into the trust bundle; it signs nothing yet.
    Prepare {
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        of: Of,
    },
    /// Take the certificate of a root that is offline as the next one; it is published, and signs by tiers.
    Import {
        /// Its certificate, PEM.
        #[arg(value_name = "FILE")]
        file: std::path::PathBuf,
        #[command(flatten)]
        of: super::tier::Of,
    },
    /// Sign a tier's request, where the offline root is.
    Sign(super::offline::SignArgs),
    /// Let the next root sign, once every sidecar knows it.
    Activate {
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        of: Of,
    },
    /// Take the old root out of the trust bundle, once nobody needs it.
    Remove {
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        of: Of,
    },
}

/// How it answers.
#[derive(clap::Args)]
pub(super) struct Form {
    /// Answer with a JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct Force {
    /// Do it although its gate is shut. The answer names who will break.
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why; it stands in the ledger for good.
    #[arg(long, value_name = "TEXT", requires = "force")]
    reason: Option<Reason>,
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let (verb, force, form, of) = match verb {
        Verb::Sign(args) => return super::offline::sign(args),
        Verb::Import { file, of } => {
            return import(&file, &of).map_or_else(|code| code, |()| ExitCode::SUCCESS);
        }
        Verb::Prepare { form, of } => (OrderVerb::Prepare, None, form, of),
        Verb::Activate { force, form, of } => (OrderVerb::Activate, force.reason, form, of),
        Verb::Remove { force, form, of } => (OrderVerb::Remove, force.reason, form, of),
    };
    let store = match of.store() {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => return failed(error),
        Err(code) => return code,
    };
    match order(&store, Order { verb, force }) {
        Ok(Some(Answer { ok, text })) => {
            if form.json {
                say(json!({"step": verb.name(), "done": ok, "text": text}));
            } else if ok {
                say(&text);
            }
            if ok {
                return ExitCode::SUCCESS;
            }
            if form.json { ExitCode::FAILURE } else { failed(text) }
        }
        Ok(None) => failed(format_args!(
            "no control plane has taken this up within {} s, and it is withdrawn; run postern control on this state directory",
            PATIENCE.as_secs()
        )),
        Err(error) => failed(error),
    }
}

fn import(file: &std::path::Path, of: &super::tier::Of) -> Result<(), ExitCode> {
    let super::tier::Opened { config, store, .. } = of.open()?;
    let now = SystemClock.wall();
    let (row, is_new) = import_root(&config.trust_domain, &store, file, now).map_err(failed)?;
    let (label, state, sha256) = (&row.label, row.state.name(), row.sha256());
    if of.json {
        say(json!({"root": label, "rootSha256": sha256, "state": state, "created": is_new}));
        return Ok(());
    }
    say(format_args!("{label}: {state}{}", if is_new { "" } else { ", as before" }));
    say(format_args!("rootSha256     {sha256}"));
    if row.state == State::Prepared {
        say(
            "A running control plane publishes it at once. It is activated when every sidecar knows it, and a tier that it has signed is here:",
        );
        say("  postern ca tier csr, postern ca root sign, postern ca tier import (docs/offline-root.md)");
    }
    Ok(())
}

/// `None` if nobody answered.
fn order(store: &Sqlite, order: Order) -> Result<Option<Answer>, StoreError> {
    let number = store.add_order(order, SystemClock.wall())?;
    let began = Instant::now();
    let (mut said, mut told) = (began, false);
    loop {
        if let Some(answer) = store.answer_to(number)? {
            return Ok(Some(answer));
        }
        if began.elapsed() > PATIENCE && store.withdraw_order(number)? {
            return Ok(None);
        }
        // Whoever is interrupted says it no more, and then it is not done either.
        if said.elapsed() > SAY {
            store.keep_order(number, SystemClock.wall())?;
            said = Instant::now();
        }
        if !told && began.elapsed() > SILENCE && !super::is_json() {
            eprintln!(
                "no control plane has answered yet; waiting {} s for one (interrupt this to withdraw it)",
                PATIENCE.as_secs()
            );
            told = true;
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs in this process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}
