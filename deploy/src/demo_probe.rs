//! What the demo does from within a network namespace: calls as a workload makes them, and listening for what must not arrive.
//!
//! One process for each thing that is tried, an ordinary user's, as the workload is; it says what came of it in JSON.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::time::timeout;

use crate::demo::failure::Failure;
use crate::demo::http::{self, CallError, Client, Host, Peer, Reply};
use crate::demo::process::output_of;
use crate::stdin;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to wait for an echo or a greeting, in milliseconds. It crosses a bridge of this machine.
    #[arg(long, global = true, default_value_t = 3000)]
    patience: u64,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make one HTTP request.
    Call {
        #[arg(long = "host", value_name = "NAME=ADDRESS:PORT")]
        hosts: Vec<Host>,
        #[arg(long = "to", value_name = "ADDRESS:PORT", conflicts_with = "hosts")]
        to: Option<SocketAddr>,
        #[arg(long = "field", value_names = ["NAME", "VALUE"], num_args = 2)]
        fields: Vec<String>,
        method: Method,
        uri: String,
    },
    /// Send a datagram, and wait for its echo.
    Udp { to: SocketAddr },
    /// Connect and wait for a greeting, with a mark on the socket if one is given.
    Tcp {
        #[arg(long)]
        mark: Option<u32>,
        to: SocketAddr,
    },
    /// Say what arrives, and answer it, until standard input ends.
    Sink {
        #[arg(long)]
        tcp: Vec<SocketAddr>,
        #[arg(long)]
        udp: Vec<SocketAddr>,
    },
}

/// What came of a request.
#[derive(Debug, Deserialize, Serialize)]
enum Outcome {
    Reply { status: u16, fields: Vec<(String, String)>, body: String },
    Failed(String),
}

pub(crate) fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("postern demo-probe: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let patience = Duration::from_millis(args.patience);
    runtime.block_on(async {
        let said = match args.verb {
            Verb::Call { hosts, to, fields, method, uri } => {
                let peer = to.map_or(Peer::Named(hosts), Peer::Tcp);
                let outcome = made(peer, method, &uri, &fields).await;
                serde_json::to_string(&outcome).map_err(io::Error::other)
            }
            Verb::Udp { to } => udp(to, patience).await,
            Verb::Tcp { mark, to } => tcp(to, mark, patience).await,
            Verb::Sink { tcp, udp } => tokio::select! {
                () = stdin::ended() => Ok(String::new()),
                error = sink(tcp, udp) => Err(error),
            },
        };
        match said {
            Ok(said) => {
                println!("{said}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                // What was tried did not come about; who asked wants the words, not the exit code.
                println!("failed: {error}");
                ExitCode::SUCCESS
            }
        }
    })
}

/// The demo's side of `call`: `words` start it.
pub(crate) async fn call(words: &[String], request: &Request<Full<Bytes>>) -> Result<Reply, CallError> {
    let failed = |failure: Failure| CallError::Probe(failure.to_string());
    let mut all = words.to_vec();
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != HOST) {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        all.extend(["--field".to_owned(), name.to_string(), value]);
    }
    all.extend([request.method().to_string(), request.uri().to_string()]);
    let said = output_of(&all).await.map_err(failed)?;
    let outcome =
        serde_json::from_str(said.trim()).map_err(|error| CallError::Probe(format!("{said}: {error}")))?;
    match outcome {
        Outcome::Failed(why) => Err(CallError::Probe(why)),
        Outcome::Reply { status, fields, body } => {
            let strange =
                |error: &dyn std::fmt::Display| CallError::Probe(format!("a strange answer: {error}"));
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let name: HeaderName = name.parse().map_err(|error| strange(&error))?;
                headers.append(name, HeaderValue::from_str(&value).map_err(|error| strange(&error))?);
            }
            let status = StatusCode::from_u16(status).map_err(|error| strange(&error))?;
            Ok(Reply { status, headers, body: body.into() })
        }
    }
}

async fn made(peer: Peer, method: Method, uri: &str, fields: &[String]) -> Outcome {
    let fields: Vec<(&str, &str)> =
        fields.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let request = match http::request(method, uri, &fields) {
        Ok(request) => request,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    match Client::new(peer).call(request).await {
        Err(error) => Outcome::Failed(error.to_string()),
        Ok(reply) => Outcome::Reply {
            status: reply.status.as_u16(),
            fields: reply
                .headers
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect(),
            body: String::from_utf8_lossy(&reply.body).into_owned(),
        },
    }
}

async fn udp(to: SocketAddr, patience: Duration) -> io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(b"anybody there?").await?;
    let mut answer = [0; 64];
    match timeout(patience, socket.recv(&mut answer)).await {
        Ok(received) => received.map(|length| format!("echo of {length} bytes")),
        Err(_) => Err(io::Error::other("no answer")),
    }
}

async fn tcp(to: SocketAddr, mark: Option<u32>, patience: Duration) -> io::Result<String> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark)
            .map_err(|error| io::Error::other(format!("no mark: {error}")))?;
    }
    let stream = socket.connect(to).await?;
    let mut greeting = [0; 16];
    let read = async {
        stream.readable().await?;
        stream.try_read(&mut greeting)
    };
    match timeout(patience, read).await {
        Ok(Ok(0)) => Err(io::Error::other("closed without a word")),
        Ok(read) => read.map(|length| format!("greeting of {length} bytes")),
        Err(_) => Err(io::Error::other("no greeting")),
    }
}

async fn sink(tcp: Vec<SocketAddr>, udp: Vec<SocketAddr>) -> io::Error {
    let mut tasks = tokio::task::JoinSet::new();
    for address in tcp {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => return io::Error::new(error.kind(), format!("{address}: {error}")),
        };
        tasks.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        println!("arrived: TCP {} from {}", address.port(), peer.ip().to_canonical());
                        let _ = stream.try_write(b"welcome");
                    }
                    Err(error) => return error,
                }
            }
        });
    }
    for address in udp {
        let socket = match UdpSocket::bind(address).await {
            Ok(socket) => socket,
            Err(error) => return io::Error::new(error.kind(), format!("{address}: {error}")),
        };
        tasks.spawn(async move {
            let mut datagram = [0; 512];
            loop {
                // An error of an earlier answer is told here; it is nobody's arrival.
                let Ok((length, peer)) = socket.recv_from(&mut datagram).await else { continue };
                println!("arrived: UDP {} from {}", address.port(), peer.ip().to_canonical());
                let _ = socket.send_to(&datagram[..length], peer).await;
            }
        });
    }
    println!("listening");
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        _ => io::Error::other("a listener broke"),
    }
}
