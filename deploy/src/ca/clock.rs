//! `postern ca clock`: what the CA holds its machine's clock against, and an operator's word on it.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Subcommand;
use postern_ca::store::{Reason, Sqlite, StoreError, Trust};
use postern_svid::{Clock, SystemClock};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Of, failed};
use crate::say;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// The machine's time beside the latest that the CA has seen; exit code 1 if the CA waits for either.
    Show {
        /// Answer with a JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        of: Of,
    },
    /// Say that the machine's clock is right, though it is far ahead of the latest time that the CA has seen, or behind it.
    Confirm {
        /// How you know; it stands in the journal.
        #[arg(long, value_name = "TEXT")]
        reason: Reason,
        /// Answer with a JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        of: Of,
    },
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let (reason, json, of) = match verb {
        Verb::Show { json, of } => (None, json, of),
        Verb::Confirm { reason, json, of } => (Some(reason), json, of),
    };
    let store = match of.store() {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => return failed(error),
        Err(code) => return code,
    };
    let done = match reason {
        None => show(&store, json),
        Some(reason) => confirm(&store, reason, json),
    };
    done.unwrap_or_else(failed)
}

fn show(store: &Sqlite, is_json: bool) -> Result<ExitCode, StoreError> {
    let (now, seen) = (SystemClock.wall(), store.seen()?);
    let held = Trust { seen, ..Trust::default() }.check_clock(now).and_then(|()| store.check_back(now)).err();
    if is_json {
        let why = held.as_ref().map(ToString::to_string);
        say(json!({"now": text(now), "seen": seen.map(text), "held": held.is_some(), "why": why}));
    } else {
        say(format_args!(
            "the clock says {}; the latest time seen is {}",
            text(now),
            seen.map_or_else(|| "none".to_owned(), text)
        ));
        match &held {
            Some(why) => return Ok(failed(why)),
            None => say("nothing waits for the clock"),
        }
    }
    Ok(if held.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn confirm(store: &Sqlite, reason: Reason, is_json: bool) -> Result<ExitCode, StoreError> {
    let now = SystemClock.wall();
    let before = store.confirm_clock(now, reason)?;
    if is_json {
        say(json!({"confirmed": text(now), "before": before.map(text)}));
    } else {
        let before = before.map_or_else(|| "none".to_owned(), text);
        say(format_args!(
            "{} it is; the latest time seen was {before}. A control plane that runs goes on within 30 s",
            text(now)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_else(|_| "beyond the calendar".to_owned())
}
