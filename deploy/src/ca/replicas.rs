//! `postern ca replicas`: what the replicas of a control plane say of each other, and the way out when their shared store was put
//! back to an older state.

use std::process::ExitCode;

use clap::Subcommand;
use postern_ca::store::Edit;
use serde_json::{Value, json};

use super::mesh_admin::MeshAdmin;
use super::{Anywhere, Of, failed};
use crate::say;

/// Replicas.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Who they are, who leads, and which trust bundle each sends out.
    List {
        /// Answer with a JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: super::Admin,
        #[command(flatten)]
        place: Anywhere,
    },
    /// After the shared store was put back to an older state: write there what this replica has. What was changed at others since the
    /// store's snapshot and did not reach this one is lost.
    PutBack {
        /// Answer with a JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        of: Of,
    },
}

pub(super) fn run(verb: Verb) -> ExitCode {
    match verb {
        Verb::List { json, admin, place } => list(json, admin, place),
        Verb::PutBack { json, of } => put_back(json, of),
    }
}

fn list(json: bool, admin: super::Admin, place: Anywhere) -> ExitCode {
    let address = match place.admin(admin.admin) {
        Ok(address) => address,
        Err(code) => return code,
    };
    let page = match MeshAdmin::at(address).page("/v1/replicas") {
        Ok(page) => page,
        Err(why) => return failed(why),
    };
    if json {
        say(&page);
    } else if page["replica"].is_null() {
        say("one control plane, no replicas");
    } else {
        for line in lines(&page) {
            say(line);
        }
    }
    ExitCode::SUCCESS
}

/// What people read of `/v1/replicas`; nothing without replicas.
pub(super) fn lines(page: &Value) -> Vec<String> {
    let Some(own) = page["replica"].as_str() else { return Vec::new() };
    let leads = |name: &str| if page["leader"] == name { ", leads" } else { "" };
    let mut lines = vec![
        format!("this replica {own}{}: bundle version {}", leads(own), page["bundleSequence"]),
        format!("shared store: {}", page["sharedStore"].as_str().unwrap_or("unknown")),
    ];
    for other in page["others"].as_array().into_iter().flatten() {
        let name = other["replica"].as_str().unwrap_or_default();
        let heard = if other["fresh"] == true {
            String::new()
        } else {
            format!(", NOT HEARD OF for {} s", other["secondsAgo"])
        };
        let differs =
            if other["bundleSequence"] == page["bundleSequence"] && other["sha256"] != page["sha256"] {
                ", with OTHER CONTENT"
            } else {
                ""
            };
        lines.push(format!(
            "replica {name}{}: bundle version {}{differs}, {} sidecars, {} behind{heard}",
            leads(name),
            other["bundleSequence"],
            other["sidecars"],
            other["behind"]
        ));
    }
    lines
}

fn put_back(json: bool, of: Of) -> ExitCode {
    let store = match of.store() {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => return failed(error),
        Err(code) => return code,
    };
    match store.replica() {
        Ok(Some(_)) => {}
        Ok(None) => return failed("this control plane is not one of several: there is nothing to put back"),
        Err(error) => return failed(error),
    }
    match store.ask(Edit::PutBack) {
        Ok(edited) => {
            let sequence = edited.sequence.unwrap_or(0);
            if json {
                say(json!({"bundleSequence": sequence}));
            } else {
                say(format_args!(
                    "written: the replicas go on with the trust bundle of version {sequence}; join tokens that were not spent must be made again"
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_and_who_is_silent() {
        assert!(lines(&json!({"replica": null, "others": []})).is_empty());
        let page = json!({
            "replica": "a", "leader": "b", "bundleSequence": 4, "sha256": "aa", "sharedStore": "answers",
            "others": [
                {"replica": "b", "fresh": true, "bundleSequence": 4, "sha256": "aa", "sidecars": 7, "behind": 2},
                {"replica": "c", "fresh": false, "secondsAgo": 40, "bundleSequence": 4, "sha256": "bb", "sidecars": 0, "behind": 0},
            ],
        });
        assert_eq!(
            lines(&page),
            [
                "this replica a: bundle version 4",
                "shared store: answers",
                "replica b, leads: bundle version 4, 7 sidecars, 2 behind",
                "replica c: bundle version 4, with OTHER CONTENT, 0 sidecars, 0 behind, NOT HEARD OF for 40 s",
            ]
        );
    }
}
