//! Not written yet.

use std::process::ExitCode;

/// Not written yet.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> ExitCode {
    ExitCode::from(2)
}
