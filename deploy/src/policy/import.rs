//! `postern policy import`: another mesh's policies in our words.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_policy::{Imported, import_istio};

use super::{Failure, Set, question, read_all, refused};
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
    /// Write one file for each namespace into this directory [default: standard output].
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
    if args.set.json {
        say(serde_json::to_value(&imported).map_err(question)?);
    } else {
        for (namespace, text) in documents {
            match &args.out {
                Some(directory) => {
                    let path = directory.join(format!("{namespace}.yaml"));
                    let written =
                        std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, text));
                    written.map_err(|error| question(format!("--out {}: {error}", path.display())))?;
                    say(path.display());
                }
                None => say(text.trim_end()),
            }
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
    Ok(if kept.is_empty() || args.lossy { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
