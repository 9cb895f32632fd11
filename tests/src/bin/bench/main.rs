//! The bench: what a hop through a pair of sidecars costs, beside what other proxies cost in the same run, what more rules
//! add to it, what one sidecar takes on disk, in memory and in time, how late events of a stream are, and what certificates cost the control plane.
//!
//! ```text
//! cargo run --release -p postern-tests --bin bench -- mesh [--quick] [--rounds N] [--seconds N] [--json FILE]
//! cargo run --release -p postern-tests --bin bench -- policy [--quick] [--rounds N] [--seconds N] [--json FILE]
//! cargo run --release -p postern-tests --bin bench -- size [--quick] [--json FILE]
//! cargo run --release -p postern-tests --bin bench -- issue [--quick] [--rounds N] [--seconds N] [--json FILE]
//! cargo run --release -p postern-tests --bin bench -- streams [--quick] [--rounds N] [--seconds N] [--json FILE]
//! cargo run --release -p postern-tests --bin bench -- soak [--quick] [--seconds N] [--lineages N] [--rate N] [--json FILE]
//! ```
//!
//! It builds what it measures (`postern-proxy` in the profile `dist`), installs what it compares with, starts everything
//! on loopback addresses of its own, and checks that a contender really refuses what its policy refuses before it counts
//! a single request. `docs/benchmarks.md` explains the figures.

mod build;
mod certificates;
mod contenders;
mod install;
mod issue;
mod load;
mod machine;
mod mesh;
mod options;
mod policy;
mod process;
mod size;
mod stats;
mod streams;
mod table;

use std::process::ExitCode;

use options::{Command, Options};

/// A sentence for the person who runs the bench: what failed, and what to do.
type Failure = String;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(failure) => {
            eprintln!("bench: {failure}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let done = match options.command {
        Command::Issue => issue::run(&options),
        Command::Mesh => mesh::run(&options),
        Command::Policy => policy::run(&options),
        Command::Size => size::run(&options),
        Command::Soak => issue::soak::run(&options),
        Command::Streams => streams::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
