//! `postern policy export`: rules in another program's words.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use postern_policy::export::{EnvoyFilters, envoy};
use postern_policy::{Severity, Workload, load};

use super::explain::labels;
use super::{Failure, Set, json, plural, question, read_all, refused};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) program: Program,
}

#[derive(clap::Subcommand)]
pub(super) enum Program {
    /// Envoy's RBAC filters for one workload, as JSON (which is YAML too): `http` and `tcp`. Exit code 0: it says what the
    /// rules say; 1: it cannot, or the set is refused.
    Envoy(Envoy),
}

#[derive(clap::Args)]
pub(super) struct Envoy {
    /// Files or directories of documents.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Whose rules.
    #[arg(long, value_name = "NAMESPACE/SERVICE-ACCOUNT")]
    workload: String,
    /// The workload's labels, k=v,k=v [default: app=SERVICE-ACCOUNT].
    #[arg(long)]
    labels: Option<String>,
    /// Write what Envoy cannot say as nearly as it can, and warn of it.
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Program::Envoy(args) = &args.program;
    let Some((namespace, account)) = args.workload.split_once('/') else {
        return Err(question("--workload is NAMESPACE/SERVICE-ACCOUNT"));
    };
    let files = match read_all(&args.paths)? {
        Ok(files) => files,
        Err(nothing) => return Ok(refused(&nothing, args.set.json, "nothing to export")),
    };
    let labels = match &args.labels {
        Some(text) => labels(text)?,
        None => BTreeMap::from([("app".to_owned(), account.to_owned())]),
    };
    let workload = Workload { namespace: namespace.into(), service_account: account.into(), labels };
    let scope = args.set.scope(&files, Some(workload))?;
    let generation = match load(&files, &scope, 0) {
        Ok(generation) => generation,
        Err(errors) => return Ok(refused(&errors, args.set.json, "a sidecar refuses this set")),
    };
    let filters = envoy(&generation);
    let EnvoyFilters { http, tcp, losses } = &filters;
    let severity = if args.lossy { Severity::Warning } else { Severity::Error };
    let said: Vec<_> = losses
        .iter()
        .map(|loss| {
            let message = format!("rule {}: Envoy {}", loss.rule, loss.what);
            json::finding(severity, &loss.rule.place, message)
        })
        .collect();
    if !args.set.json {
        let word = if args.lossy { "warning" } else { "error" };
        for loss in losses {
            eprintln!("{word}: rule {} ({}): Envoy {}", loss.rule, loss.rule.place, loss.what);
        }
    }
    if !losses.is_empty() && !args.lossy {
        if args.set.json {
            say(serde_json::json!({ "ok": false, "errors": said }));
        } else {
            let count = plural(losses.len(), "rule");
            eprintln!("\n{count} cannot be said exactly: --lossy writes what is nearest");
        }
        return Ok(ExitCode::from(1));
    }
    if args.set.json {
        say(serde_json::json!({ "ok": true, "http": http, "tcp": tcp, "warnings": said }));
    } else {
        say(serde_json::to_string_pretty(&filters).map_err(question)?);
    }
    Ok(ExitCode::SUCCESS)
}
