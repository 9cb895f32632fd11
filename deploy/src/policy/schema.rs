//! `postern policy schema`: what editors and pipelines check documents with before anything else does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Failure, question};
use crate::say;

/// Written by hand beside the checker: types cannot say most of what it refuses. Tests hold the two together.
const SCHEMA: &str = include_str!("schema.json");

#[derive(clap::Args)]
pub(super) struct Args {
    /// Write one file for each kind, and documents.schema.json for all of them, into this directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Machine-readable output: of `--out`, too.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(directory) = &args.out else {
        say(SCHEMA.trim_end());
        return Ok(ExitCode::SUCCESS);
    };
    let root = schema().map_err(question)?;
    let failed = |error: std::io::Error| question(format!("--out {}: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut files = vec![write(directory, "documents", SCHEMA).map_err(failed)?];
    for kind in root["properties"]["kind"]["enum"].as_array().into_iter().flatten().filter_map(Value::as_str)
    {
        let mut one = root["$defs"][kind].clone();
        one["$schema"] = root["$schema"].clone();
        one["title"] = json!(kind);
        one["$defs"] = root["$defs"].clone();
        files.push(write(directory, kind, &format!("{one:#}\n")).map_err(failed)?);
    }
    let files = files.iter().map(|path| path.display().to_string());
    if args.json {
        say(json!({ "ok": true, "files": files.collect::<Vec<_>>() }));
    } else {
        files.for_each(say);
    }
    Ok(ExitCode::SUCCESS)
}

/// The schema of all kinds.
pub(crate) fn schema() -> serde_json::Result<Value> {
    serde_json::from_str(SCHEMA)
}

fn write(directory: &Path, name: &str, text: &str) -> std::io::Result<PathBuf> {
    let path = directory.join(format!("{name}.schema.json"));
    std::fs::write(&path, text)?;
    Ok(path)
}
