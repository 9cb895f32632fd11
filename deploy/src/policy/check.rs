//! `postern policy check`: read documents as a sidecar would.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_policy::{Diagnostic, Diagnostics, Generation, Scope, SourceFile, load};

use super::{Failure, Set, plural, read};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Files or directories of documents.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut files = Vec::new();
    for path in &args.paths {
        let found = read(path)?;
        if found.is_empty() {
            // Beside others too: whoever names a directory means what is in it.
            let nothing = Diagnostic::whole(&path.display().to_string(), "the directory holds no documents")
                .with_help("documents are files whose names end in .yaml or .yml");
            return Ok(refused(&nothing.into(), args.set.json));
        }
        files.extend(found);
    }
    let scope = args.set.scope(&files, None)?;
    let generation = match load(&files, &scope, 0) {
        Ok(generation) => generation,
        Err(errors) => return Ok(refused(&errors, args.set.json)),
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

fn refused(errors: &Diagnostics, json: bool) -> ExitCode {
    if json {
        say(serde_json::json!({ "ok": false, "errors": errors }));
    } else {
        eprintln!("{errors}\n\n{}: a sidecar refuses this set", plural(errors.total(), "mistake"));
    }
    ExitCode::from(1)
}

fn summary(files: &[SourceFile], generation: &Generation, scope: &Scope) -> String {
    let documents = generation.documents();
    let policies = documents.iter().filter(|document| document.kind == "AccessPolicy").count();
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
    if !generation.warnings().is_empty() {
        out.push_str(&format!("; {}", plural(generation.warnings().total(), "warning")));
    }
    out
}
