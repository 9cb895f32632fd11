//! The command `postern`: a demo mesh, the control plane and the operator's verbs.
//!
//! Exit codes: 0 it worked, 1 it failed, 2 the command line or a configuration file is wrong.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

mod ca;
mod control;
mod demo;
mod demo_probe;
mod demo_service;
mod policy;
mod proxy;
mod stdin;

/// Every hop proven and allowed.
#[derive(Parser)]
#[command(name = "postern", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The certificate authority: join tokens and what it has issued.
    Ca(ca::Args),
    /// Run the control plane.
    Control(control::Args),
    /// A whole mesh on this machine, proven line by line.
    Demo(demo::Args),
    /// What the demo does from within a workload's network namespace.
    #[command(hide = true)]
    DemoProbe(demo_probe::Args),
    /// One of the demo's services.
    #[command(hide = true)]
    DemoService(demo_service::Args),
    /// Write redirection rules, exactly as `postern-init` does.
    #[command(hide = true, disable_help_flag = true)]
    Init {
        /// The words after `postern-init`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Check and test policy documents, and explain decisions.
    Policy(policy::Args),
    /// Ask or steer a running sidecar.
    Proxy(proxy::Args),
    /// Run a sidecar, exactly as `postern-proxy run` does.
    Sidecar(proxy::SidecarArgs),
}

/// Whether an answer got lost on its way out.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints an answer.
pub(crate) fn say(answer: impl Display) {
    put(&format!("{answer}\n"));
}

/// Prints a text as it is. A reader that has seen enough (`| head`) is no failure, and `print!` would panic; a full disk is
/// one.
pub(crate) fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) => {
            eprintln!("error: standard output cannot be written: {error}");
        }
        _ => {}
    }
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(Cli { command }) => command,
        // Help and the version are no mistakes.
        Err(error) if error.use_stderr() && policy::json::is_asked_for(std::env::args_os()) => {
            return policy::json::say_usage(&error);
        }
        Err(error) => error.exit(),
    };
    let code = match command {
        Command::Ca(args) => ca::run(args),
        Command::Control(args) => control::run(args),
        Command::Demo(args) => demo::run(args),
        Command::DemoProbe(args) => demo_probe::run(args),
        Command::DemoService(args) => demo_service::run(args),
        Command::Init { words } => postern_init::main(&words),
        Command::Policy(args) => policy::run(args),
        Command::Proxy(args) => proxy::run(args),
        Command::Sidecar(args) => proxy::sidecar(args),
    };
    if LOST.load(Ordering::Relaxed) { ExitCode::FAILURE } else { code }
}
