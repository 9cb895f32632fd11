//! Not written yet.

use std::process::ExitCode;

/// Not written yet.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> ExitCode {
    ExitCode::from(2)
}

/// Not written yet.
#[derive(clap::Args)]
pub(crate) struct SidecarArgs {}

pub(crate) fn sidecar(_args: SidecarArgs) -> ExitCode {
    ExitCode::from(2)
}
