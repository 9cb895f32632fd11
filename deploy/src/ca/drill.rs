//! `postern ca drill`: what a rotation would do, on a copy, with a clock that runs ahead.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;
use postern_ca::drill::{Rehearsal, root_rotation};
use postern_ca::issue::LeafPolicy;
use postern_ca::keys::{self, KeyStore};
use postern_ca::store::Sqlite;
use postern_svid::{Clock, SystemClock};
use serde_json::json;

use super::revoke::{count, span};
use super::{failed, has_ca, load};
use crate::say;

/// What is rehearsed.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// A whole rotation of the root: when each step would be taken, and whether anybody would be refused on the way.
    RootRotation {
        /// The control plane's configuration file.
        #[arg(long, value_name = "FILE")]
        config: std::path::PathBuf,
        /// Answer with a JSON document.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let Verb::RootRotation { config, json } = verb;
    let config = match load(&config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if !has_ca(&config.state_dir) {
        let state = config.state_dir.display();
        return failed(format!("{state}: no CA has been here yet; start postern control"));
    }
    if config.keys.token.is_some() {
        return failed(
            "the root's key is in a token, and so would be those of the roots that a drill makes; rehearse with a test CA whose keys are files",
        );
    }
    // It holds the root's key: 0700, beside the original, and gone at the end.
    let scratch = match tempfile::Builder::new().prefix(".drill-").tempdir_in(&config.state_dir) {
        Ok(scratch) => scratch,
        Err(error) => return failed(format!("{}: {error}", config.state_dir.display())),
    };
    let copy = scratch.path().join("state");
    let td = &config.trust_domain;
    let policy = LeafPolicy { ttl: config.ttl, test: config.test };
    let rehearsed =
        Sqlite::copy(&config.state_dir, td, &copy).map_err(|error| error.to_string()).and_then(|()| {
            let keys: Arc<dyn KeyStore> =
                keys::open(&copy, config.keys.seal.as_ref()).map_err(|error| error.to_string())?.into();
            root_rotation(&copy, td, keys, policy, SystemClock.wall()).map_err(|error| error.to_string())
        });
    let rehearsal = match rehearsed {
        Ok(rehearsal) => rehearsal,
        Err(error) => return failed(error),
    };
    if json {
        print_json(&rehearsal)
    } else {
        print(&rehearsal)
    }
    if rehearsal.refused.is_empty() && rehearsal.stuck.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(rehearsal: &Rehearsal) {
    let Rehearsal { steps, sidecars, attesting, renewals, verified, refused, stuck } = rehearsal;
    say(format_args!(
        "rehearsed on a copy with {}; nothing of the CA was touched",
        count(*sidecars as u64, "sidecar")
    ));
    if *attesting > 0 {
        say(format_args!(
            "  {attesting} of them attest with each renewal; there is nobody to attest here, so that this part is taken for granted"
        ));
    }
    for (after, step, label) in steps {
        say(format_args!("  after {:>8}  {step} {label}", span(*after)));
    }
    say(format_args!(
        "  {renewals} renewals; {verified} certificates held against the bundles in use, {} refused",
        refused.len()
    ));
    refused.iter().for_each(|what| say(format_args!("  REFUSED {what}")));
    stuck.iter().for_each(|what| say(format_args!("  STUCK {what}")));
}

fn print_json(rehearsal: &Rehearsal) {
    let steps: Vec<_> = rehearsal
        .steps
        .iter()
        .map(|(after, step, label)| json!({"step": step, "ca": label, "afterSeconds": after.as_secs()}))
        .collect();
    say(json!({
        "steps": steps,
        "sidecars": rehearsal.sidecars,
        "attesting": rehearsal.attesting,
        "renewals": rehearsal.renewals,
        "verified": rehearsal.verified,
        "refused": rehearsal.refused,
        "stuck": rehearsal.stuck,
    }));
}
