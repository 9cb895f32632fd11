//! What the targets about HTTP share: a sidecar with one workload, its pipes, and HTTP/1 read by the book.

#![allow(dead_code, reason = "each target uses a part of it")]

pub mod strict;
pub mod workload;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use postern_proxy::connections::{Connection, Direction, Peer, Registered};
use postern_proxy::fuzzing;
use postern_proxy::sidecar::Sidecar;
use postern_proxy::tcp::Duplex;
use postern_svid::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::runtime::Runtime;

const CONFIG: &str = r#"
identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /nonexistent
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /nonexistent/bundle.pem
  joinToken: /nonexistent/token
workload:
  address: 127.0.0.1
  ports: [{port: 2, protocol: http}, {port: 3, protocol: http2}, {port: 1, protocol: tcp}]
  labels: {app: orders}
inbound: {address: "127.0.0.1:24143"}
outbound: {address: "127.0.0.1:24140"}
health: {address: "127.0.0.1:24191"}
admin: {socket: /nonexistent/admin.sock}
documents: /nonexistent
"#;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - {name: web, from: [{serviceAccounts: [web]}]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: guard, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules:
  - {name: admin, to: [{pathPrefix: [/admin], ports: [2, 3]}]}
"#;

/// Whoever calls.
pub const CALLER: &str = "spiffe://demo.postern/ns/shop/sa/web";
/// The workload's doors for HTTP/1 and HTTP/2.
pub const H1: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2);
pub const H2: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3);

/// One sidecar for all inputs: what each of them leaves behind would add up.
pub static SIDECAR: LazyLock<Arc<Sidecar>> =
    LazyLock::new(|| fuzzing::sidecar(CONFIG, POLICY).expect("literals"));

/// A connection of `shop/web`.
pub fn caller() -> Registered {
    let peer = Peer {
        identity: Some(SpiffeId::parse(CALLER).expect("a literal")),
        address: "127.0.0.2:40000".parse().expect("a literal"),
        local: None,
        serial: None,
        not_after: None,
        proof: None,
    };
    Registered::open(&SIDECAR, Direction::Inbound, peer)
}

/// Time that passes when nobody has anything to do.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("it can be built")
}

/// One end of a pipe, as the sidecar takes it.
#[derive(Debug)]
pub struct Pipe(pub DuplexStream);

impl Duplex for Pipe {
    fn reset(&mut self) {}
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The far end of a pipe that the sidecar takes for an idle connection to its workload.
pub async fn lend(worker: &postern_proxy::worker::Worker, connection: &Connection) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    fuzzing::lend_h1(worker, H1, connection, Pipe(near)).await.expect("the pipe is open");
    far
}
