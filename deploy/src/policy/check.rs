//! `postern policy check`: read documents as a sidecar would.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_policy::{Generation, Scope, SourceFile, load};

use super::{Failure, Set, live, plural, read_all, refused};
use crate::say;

const REFUSED: &str = "a sidecar refuses this set";

#[derive(clap::Args)]
pub(super) struct Args {
    /// Files or directories of documents.
    #[arg(required_unless_present = "sidecar", conflicts_with = "sidecar")]
    paths: Vec<PathBuf>,
    /// Instead of documents: what became of the last load of the sidecar with this admin socket.
    #[arg(long, value_name = "SOCKET")]
    sidecar: Option<PathBuf>,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some(socket) = &args.sidecar {
        return live::check(socket, args.set.json);
    }
    let files = match read_all(&args.paths)? {
        Ok(files) => files,
        Err(nothing) => return Ok(refused(&nothing, args.set.json, REFUSED)),
    };
    let scope = args.set.scope(&files, None)?;
    let generation = match load(&files, &scope, 0) {
        Ok(generation) => generation,
        Err(errors) => return Ok(refused(&errors, args.set.json, REFUSED)),
    };
    let report = serde_json::json!({
        "ok": true,
        "trustDomain": scope.trust_domain.as_str(),
        "documents": generation.documents(),
        "services": generation.services().iter().collect::<Vec<_>>(),
        "warnings": generation.warnings(),
    });
    if args.set.json {
        say(report);
        return Ok(ExitCode::SUCCESS);
    }
    for warning in generation.warnings() {
        eprintln!("{warning}\n");
    }
    say(summary(&files, &generation, &scope));
    Ok(ExitCode::SUCCESS)
}

fn summary(files: &[SourceFile], generation: &Generation, scope: &Scope) -> String {
    let documents = generation.documents();
    let policies = documents.iter().filter(|document| document.kind == "AccessPolicy").count();
    let egress = documents.iter().filter(|document| document.kind == "EgressPolicy").count();
    let rules: usize = documents.iter().map(|document| document.rules).sum();
    let mut out = format!(
        "ok: {} in {} for trust domain {}: {} with {}, {}",
        plural(documents.len(), "document"),
        plural(files.len(), "file"),
        scope.trust_domain,
        plural(policies, "access policies"),
        plural(rules, "rule"),
        plural(generation.services().len(), "service"),
    );
    let limits = documents.iter().filter(|document| document.kind == "RateLimitPolicy").count();
    if limits > 0 {
        out.push_str(&format!(", {}", plural(limits, "rate limit policies")));
    }
    if egress > 0 {
        out.push_str(&format!(", {}", plural(egress, "egress policies")));
    }
    let tests = documents.iter().filter(|document| document.kind == "PolicyTest").count();
    if tests > 0 {
        out.push_str(&format!(", {}", plural(tests, "policy test")));
    }
    if !generation.warnings().is_empty() {
        out.push_str(&format!("; {}", plural(generation.warnings().total(), "warning")));
    }
    out
}
