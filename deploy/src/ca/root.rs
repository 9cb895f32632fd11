//! `postern ca root`: steps of a root's rotation at an operator's word. The control plane carries them out, for only it knows
//! whether their gates are open.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use postern_ca::store::{Answer, Order, OrderVerb, Reason, Sqlite, StoreError};
use postern_svid::{Clock, SystemClock};
use serde_json::json;

use super::{Of, failed};
use crate::say;

/// The control plane looks four times a second; a step costs it two signatures and a write.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// `None` if nobody answered.
fn order(store: &Sqlite, order: Order) -> Result<Option<Answer>, StoreError> {
    let number = store.add_order(order, SystemClock.wall())?;
    let began = Instant::now();
    loop {
        if let Some(answer) = store.answer_to(number)? {
            return Ok(Some(answer));
        }
        if began.elapsed() > PATIENCE && store.withdraw_order(number)? {
            return Ok(None);
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs in this process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}
