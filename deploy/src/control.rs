//! `postern control`: the control plane in the foreground, until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_control::{Config, StartError};

use crate::stdin;

/// Run the control plane.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// End when standard input does.
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

pub(crate) fn run(args: Args) -> ExitCode {
    if args.end_with_stdin {
        stdin::end_with();
    }
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match postern_control::main(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern control: {error}");
            ExitCode::from(if matches!(error, StartError::Config(_)) { 2 } else { 1 })
        }
    }
}
