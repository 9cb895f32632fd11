//! The sidecar: it ends mutual TLS beside a workload, asks the policy about every connection and request, and only then
//! forwards.
//!
//! Two directions, each a story read top to bottom: [`inbound`] and [`http::inbound`] for what comes to the workload,
//! [`outbound`] and [`http::outbound`] for what it calls. What both read is one [`snapshot`]; what lives is in
//! [`connections`]; [`app`] is the wiring and the order of a sidecar's life.
//!
//! ```text
//! inbound                                          outbound
//! listener::accept_loop    permit, nodelay         listener::accept_loop
//!  inbound::serve_connection                        outbound::serve_connection
//!   accept             client SVID required          detect::read_prefix   HTTP/1 or HTTP/2
//!   connections::Registered                          http::outbound::request
//!   http::h2::serve                                   Target::find          unknown service: refused
//!    http::inbound::request                           authorize::register   registered first
//!     facts            canonical form                 loop: balance::pick, pool, send, retry::should_retry
//!     authorize::register      registered first       Body::guarded         accounted when the body ENDS
//!     authorize::stream        judged second
//!     rate_limits::admit       429 for now
//!     headers          strip first, add after
//!     workload         nowhere else
//!     Body::guarded    accounted when the body ENDS
//! ```

pub mod admission;
pub mod app;
pub mod authorize;
pub mod balance;
pub mod capture;
pub mod config;
pub mod connections;
pub mod decision_log;
pub mod decisions;
pub mod detect;
pub mod documents;
pub mod drain;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod heap;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod jwt;
pub mod limits;
pub mod listener;
pub mod net;
pub mod observe;
pub mod original_dst;
pub mod outbound;
pub mod pool;
pub mod pressure;
pub mod rate_limits;
pub mod rejudge;
pub mod resolve;
pub mod retry;
mod roots;
pub mod runtime;
pub mod sidecar;
pub mod snapshot;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod worker;
pub mod workload;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
The sidecar of one workload.

Usage: postern-proxy run --config sidecar.yaml
       postern-proxy check --config sidecar.yaml
       postern-proxy --version

Exit codes: 0 it ended as it was told to, 1 it failed, 2 the command line or the configuration is wrong.
";

/// The command line of `postern-proxy`, without the program's name. `postern sidecar` calls it too.
pub fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", "--config", path] => app::run(Path::new(path)),
        ["check", "--config", path] => check(Path::new(path)),
        ["--version" | "-V"] => {
            println!("postern-proxy {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["--help" | "-h" | "help"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn check(path: &Path) -> ExitCode {
    match config::Config::read(path) {
        Ok(config) => {
            println!("{}: a sidecar for {}", path.display(), config.identity);
            ExitCode::SUCCESS
        }
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            ExitCode::from(2)
        }
    }
}
