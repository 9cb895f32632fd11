//! `postern policy rollback`: earlier documents back in force at running sidecars.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{Failure, live};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The generation to put back [default: the last one that had other documents].
    #[arg(long, value_name = "NUMBER", conflicts_with = "resume")]
    to: Option<u64>,
    /// Follow the directory of documents again.
    #[arg(long)]
    resume: bool,
    /// The sidecar's admin socket, as often as there are sidecars.
    #[arg(long = "sidecar", value_name = "SOCKET", required = true)]
    sidecars: Vec<PathBuf>,
    /// Machine-readable output.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.resume {
        return Ok(live::each(&args.sidecars, args.json, "/v1/policy/resume", &json!({}), |answer| {
            let generation = &answer["generation"];
            if answer["followed"] == true {
                format!("generation {generation} is in force, as the directory has it")
            } else {
                format!(
                    "the directory is followed, and its documents are refused: generation {generation} stays in force"
                )
            }
        }));
    }
    let body = json!({ "to": args.to });
    Ok(live::each(&args.sidecars, args.json, "/v1/policy/rollback", &body, |answer| {
        format!(
            "the documents of generation {} are in force as generation {}, until `postern policy rollback --resume`",
            answer["to"], answer["generation"]
        )
    }))
}
