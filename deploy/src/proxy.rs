//! `postern sidecar` runs a sidecar; `postern proxy` asks a running one through its admin socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

/// Run a sidecar.
#[derive(clap::Args)]
pub(crate) struct SidecarArgs {
    /// The sidecar's configuration.
    #[arg(long)]
    config: PathBuf,
}

pub(crate) fn sidecar(args: SidecarArgs) -> ExitCode {
    postern_proxy::main(&["run".to_owned(), "--config".to_owned(), args.config.display().to_string()])
}

/// Ask or steer a running sidecar.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sidecar's admin socket (`admin.socket` of its configuration).
    #[arg(long)]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show one of its pages as JSON.
    #[command(flatten)]
    Show(Show),
    /// Change the log's level, for example `info,postern::access=debug`.
    SetLog {
        /// The level.
        level: String,
    },
    /// Why a call is, or would be, allowed or denied.
    Explain {
        /// The caller's SPIFFE id; without it, a peer that has proven nothing.
        #[arg(long)]
        from: Option<String>,
        /// The workload's port.
        #[arg(long)]
        port: u16,
        /// `METHOD PATH` of a request; nothing for opaque TCP.
        #[arg(num_args = 0..=2)]
        request: Vec<String>,
    },
    /// Let it leave: no longer ready, then no new connections, then the end.
    Drain,
}

#[derive(Clone, Copy, Subcommand, ValueEnum)]
enum Show {
    /// Name, version and transport.
    Version,
    /// Its configuration.
    Config,
    /// Its certificate, the trust bundle and the control plane.
    Identity,
    /// The documents in force, and those that were refused.
    Policy,
    /// The services that the workload may call.
    Services,
    /// Connections and streams.
    Connections,
    /// The last verdicts.
    Decisions,
    /// The log's level.
    Log,
    /// Its metrics.
    Metrics,
    /// Whether it is ready, and if not, why.
    Ready,
}

impl Show {
    fn path(self) -> &'static str {
        match self {
            Self::Version => "/v1/version",
            Self::Config => "/v1/config",
            Self::Identity => "/v1/identity",
            Self::Policy => "/v1/policy",
            Self::Services => "/v1/services",
            Self::Connections => "/v1/connections",
            Self::Decisions => "/v1/decisions",
            Self::Log => "/v1/log",
            Self::Metrics => "/metrics",
            Self::Ready => "/ready",
        }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    let (method, path, question, field) = match &args.verb {
        Verb::Show(show) => ("GET", show.path(), String::new(), None),
        Verb::SetLog { level } => ("PUT", "/v1/log", serde_json::json!({ "level": level }).to_string(), None),
        Verb::Drain => ("POST", "/v1/drain", String::new(), None),
        Verb::Explain { from, port, request } => {
            let question = match request.as_slice() {
                [] => serde_json::json!({ "from": from, "port": port }),
                [method, path] => {
                    serde_json::json!({ "from": from, "port": port, "method": method, "path": path })
                }
                _ => {
                    eprintln!("postern proxy explain: give METHOD and PATH, or neither");
                    return ExitCode::from(2);
                }
            };
            ("POST", "/v1/policy/explain", question.to_string(), Some("text"))
        }
    };
    match ask(&args.socket, method, path, &question) {
        Ok((status, answer)) => print(status, &answer, field),
        Err(error) => {
            eprintln!(
                "postern proxy: {}: {error} (is the sidecar running, and are you its user?)",
                args.socket.display()
            );
            ExitCode::from(1)
        }
    }
}

fn print(status: u16, answer: &str, field: Option<&str>) -> ExitCode {
    let shown = match serde_json::from_str::<serde_json::Value>(answer) {
        Ok(value) => match field.and_then(|field| value.get(field)?.as_str()) {
            Some(text) => text.to_owned(),
            None => serde_json::to_string_pretty(&value).unwrap_or_else(|_| answer.to_owned()),
        },
        Err(_) => answer.to_owned(),
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _ = writeln!(std::io::stdout(), "{}", shown.trim_end());
    if (200..300).contains(&status) { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// One request over the socket. HTTP/1.0: the answer ends with the connection.
fn ask(socket: &Path, method: &str, path: &str, question: &str) -> std::io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: postern\r\nContent-Length: {}\r\n\r\n{question}",
        question.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || std::io::Error::other("the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}
