//! `postern policy import`: another mesh's policies in our words.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postern_policy::{Diagnostic, Imported, Note, Severity, import_istio};

use super::{Failure, Set, json, question, read_all, refused};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) mesh: Mesh,
}

#[derive(clap::Subcommand)]
pub(super) enum Mesh {
    /// Istio's AuthorizationPolicies as AccessPolicies, namespace by namespace. Exit code 0: all of them are rewritten; 1:
    /// some stay Istio's, or the set is refused.
    Istio(Istio),
}

#[derive(clap::Args)]
pub(super) struct Istio {
    /// Files or directories of documents.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write one new file for each namespace into this directory [default: standard output].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Rewrite rules that an AccessPolicy says more strictly, too; and take it for success that others stay.
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Mesh::Istio(args) = &args.mesh;
    let files = match read_all(&args.paths)? {
        Ok(files) => files,
        Err(nothing) => return Ok(refused(&nothing, args.set.json, "nothing to import")),
    };
    let scope = args.set.scope(&files, None)?;
    let imported = match import_istio(&files, &scope, args.lossy) {
        Ok(imported) => imported,
        Err(errors) => return Ok(refused(&errors, args.set.json, "a sidecar refuses this set")),
    };
    let Imported { documents, notes, kept } = &imported;
    let is_done = kept.is_empty() || args.lossy;
    let mut written = Vec::new();
    if let Some(directory) = &args.out {
        written = write_all(directory, documents)?;
        if !args.set.json {
            written.iter().for_each(|path| say(path.display()));
        }
    }
    if args.set.json {
        let mut told = serde_json::to_value(&imported).map_err(question)?;
        told["ok"] = is_done.into();
        if !is_done {
            told["errors"] = notes.iter().map(why).collect();
        }
        told["files"] = written.iter().map(|path| path.display().to_string()).collect();
        say(told);
    } else {
        if args.out.is_none() {
            documents.values().for_each(|text| say(text.trim_end()));
        }
        for note in notes {
            let place = note.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            let line = format!("{}/{}{place}: {}", note.namespace, note.name, note.what);
            if args.out.is_some() { eprintln!("{line}") } else { say(format!("# {line}")) }
        }
        for namespace in kept {
            let line = format!("namespace {namespace} stays Istio's: its documents load as they are");
            if args.out.is_some() { eprintln!("{line}") } else { say(format!("# {line}")) }
        }
    }
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A note as the mistake that it is, where namespaces stay as they are.
fn why(note: &Note) -> serde_json::Value {
    let message = format!("{}/{}: {}", note.namespace, note.name, note.what);
    let finding = match &note.place {
        Some(place) => json::finding(Severity::Error, place, message),
        None => Diagnostic::whole("", message),
    };
    serde_json::json!(finding)
}

/// Writes one file for each namespace: all of them or none, and none over another. What stands there may be the very set
/// that is imported, with policies that nothing here has words for.
fn write_all(directory: &Path, documents: &BTreeMap<String, String>) -> Result<Vec<PathBuf>, Failure> {
    let failed = |path: &Path, error: &dyn Display| question(format!("--out {}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    let mut written = Vec::new();
    for (namespace, text) in documents {
        let path = directory.join(format!("{namespace}.yaml"));
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let done = create().and_then(|mut file| {
            written.push(path.clone());
            file.write_all(text.as_bytes())
        });
        if let Err(error) = done {
            written.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err(match error.kind() {
                ErrorKind::AlreadyExists => failed(
                    &path,
                    &"there is such a file, which is not written over; nothing was written. Name an empty directory",
                ),
                _ => failed(&path, &error),
            });
        }
    }
    Ok(written)
}
