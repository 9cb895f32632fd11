//! `postern sidecar` runs a sidecar; `postern proxy` asks a running one through its admin socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use crate::{say, stdin};

/// Run a sidecar.
#[derive(clap::Args)]
pub(crate) struct SidecarArgs {
    /// The sidecar's configuration.
    #[arg(long)]
    config: PathBuf,
    /// End when standard input does.
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

pub(crate) fn sidecar(args: SidecarArgs) -> ExitCode {
    if args.end_with_stdin {
        stdin::end_with();
    }
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
        /// The caller: a SPIFFE id, or NAMESPACE/SERVICE-ACCOUNT of the sidecar's own trust domain; without it, a peer that
        /// has proven nothing.
        #[arg(long)]
        from: Option<String>,
        /// The caller's address, for rules with `cidrs`. Default: 127.0.0.1.
        #[arg(long)]
        address: Option<std::net::IpAddr>,
        /// The workload's port.
        #[arg(long)]
        port: u16,
        /// The host that the request is addressed to. Default: not known.
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
        /// A header field, as often as there are; without any, none is known.
        #[arg(long = "header", value_name = "NAME: VALUE")]
        headers: Vec<String>,
        /// The claims of the token that the request carries, as JSON or in a file of JSON; `unverified` for a token that could
        /// not be verified; without it, there is none.
        #[arg(long, value_name = "JSON|FILE|unverified")]
        claims: Option<String>,
        /// `METHOD PATH` of a request; nothing for opaque TCP.
        #[arg(num_args = 0..=2)]
        request: Vec<String>,
    },
    /// The last verdicts, or the one of this id.
    Decisions {
        /// A decision id, as the caller was told it.
        id: Option<String>,
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
    /// Issuers of tokens and their keys.
    Jwt,
    /// Connections and streams.
    Connections,
    /// The rate limits in force, and what they have counted.
    Limits,
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
            Self::Jwt => "/v1/jwt",
            Self::Connections => "/v1/connections",
            Self::Limits => "/v1/limits",
            Self::Log => "/v1/log",
            Self::Metrics => "/metrics",
            Self::Ready => "/ready",
        }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    let socket = args.socket;
    let asked = match args.verb {
        Verb::Show(show) => ask(&socket, "GET", show.path(), ""),
        Verb::SetLog { level } => {
            ask(&socket, "PUT", "/v1/log", &serde_json::json!({ "level": level }).to_string())
        }
        Verb::Decisions { id: None } => ask(&socket, "GET", "/v1/decisions", ""),
        Verb::Decisions { id: Some(id) } => {
            // An id goes into a request's target: nothing but what ids are made of.
            if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                eprintln!("postern proxy decisions: {id:?} is no decision id");
                return ExitCode::from(2);
            }
            ask(&socket, "GET", &format!("/v1/decisions/{id}"), "")
        }
        Verb::Drain => ask(&socket, "POST", "/v1/drain", ""),
        Verb::Explain { from, address, port, host, headers, claims, request } => {
            let (method, path) = match request.as_slice() {
                [] if host.is_some() || !headers.is_empty() || claims.is_some() => {
                    eprintln!(
                        "postern proxy explain: opaque TCP has no host, no header fields and no token: give METHOD and PATH too, or leave them out"
                    );
                    return ExitCode::from(2);
                }
                [] => (None, None),
                [method, path] => (Some(method), Some(path)),
                _ => {
                    eprintln!("postern proxy explain: give METHOD and PATH, or neither");
                    return ExitCode::from(2);
                }
            };
            let Some(fields) = fields(&headers) else {
                eprintln!("postern proxy explain: --header is a name, a colon and a value");
                return ExitCode::from(2);
            };
            let claims = match claims.as_deref().map(crate::policy::claims).transpose() {
                Ok(claims) => claims,
                Err(error) => {
                    eprintln!("postern proxy explain: --claims: {error}");
                    return ExitCode::from(2);
                }
            };
            caller(&socket, from).and_then(|from| {
                let question = serde_json::json!({
                    "from": from, "address": address, "port": port, "method": method, "path": path,
                    "host": host, "headers": fields, "claims": claims,
                });
                ask(&socket, "POST", "/v1/policy/explain", &question.to_string())
            })
        }
    };
    match asked {
        Ok((status, answer)) => print(status, &answer),
        Err(error) => {
            eprintln!(
                "postern proxy: {}: {error} (is the sidecar running, and are you its user?)",
                socket.display()
            );
            ExitCode::from(1)
        }
    }
}

/// Names and values; null, which says that nothing is known, without any. `None` if one is not of that form.
fn fields(lines: &[String]) -> Option<serde_json::Value> {
    if lines.is_empty() {
        return Some(serde_json::Value::Null);
    }
    let pair = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some(serde_json::json!([name.trim(), value.trim()]))
    };
    lines.iter().map(pair).collect()
}

/// `shop/web` is short for the id in the trust domain of the sidecar that is asked.
pub(crate) fn caller(socket: &Path, from: Option<String>) -> std::io::Result<Option<String>> {
    let Some(from) = from else { return Ok(None) };
    let Some((namespace, account)) = from.split_once('/').filter(|_| !from.contains(':')) else {
        return Ok(Some(from));
    };
    let (_, answer) = ask(socket, "GET", "/v1/identity", "")?;
    let identity: serde_json::Value = serde_json::from_str(&answer).map_err(std::io::Error::other)?;
    let own = identity["id"].as_str().and_then(|id| id.strip_prefix("spiffe://")?.split('/').next());
    let trust_domain = own.ok_or_else(|| std::io::Error::other("the sidecar does not say who it is"))?;
    Ok(Some(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")))
}

/// Shows an answer, and says by the exit code what it means: a refused question is the asker's mistake (2), and a call
/// that is denied is no success (1), as with `postern policy explain`.
fn print(status: u16, answer: &str) -> ExitCode {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(answer) else {
        say(answer.trim_end());
        return ExitCode::from(u8::from(!(200..300).contains(&status)));
    };
    if status == 400
        && let Some(error) = value["error"].as_str()
    {
        eprintln!("postern proxy: {error}");
        return ExitCode::from(2);
    }
    match value["text"]
        .as_str()
        .filter(|_| value.get("explanation").is_some() && value.get("decision").is_none())
    {
        Some(text) => say(text.trim_end()),
        None => say(serde_json::to_string_pretty(&value).unwrap_or_else(|_| answer.to_owned())),
    }
    // What is not known is not allowed.
    let is_denied = value.get("decision").is_none()
        && value.get("explanation").is_some_and(|explanation| explanation["verdict"]["allowed"] != true);
    ExitCode::from(u8::from(is_denied || !(200..300).contains(&status)))
}

/// One request over the socket. HTTP/1.0: the answer ends with the connection.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, question: &str) -> std::io::Result<(u16, String)> {
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
