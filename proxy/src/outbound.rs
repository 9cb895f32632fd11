//! Outbound, top to bottom: a connection from the own workload, which asks for services by name, or was redirected on its
//! way to one.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::capture;
use crate::connections::{Connection, Direction, Peer, Registered};
use crate::detect::{self, Hello, Prefix, Protocol, Rewound, ServerName};
use crate::http::h2::{self, Closing, Settings};
use crate::http::upgrade::Io;
use crate::http::{outbound, server};
use crate::net::{self, TcpStream};
use crate::original_dst::{self, Destination};
use crate::worker::Worker;

/// Serves one connection of the workload.
pub async fn serve_connection(worker: Arc<Worker>, stream: TcpStream, address: SocketAddr) {
    let to = match original_dst::of(&stream, &worker.sidecar) {
        Ok(Destination::Listener) => None,
        Ok(Destination::Elsewhere(to)) if capture::is_question(to) => {
            return worker.sidecar.capture.hear(stream, to).await;
        }
        Ok(Destination::Elsewhere(to)) => Some(to),
        Err(error) => {
            let sidecar = &worker.sidecar;
            return original_dst::refuse(sidecar, Direction::Outbound, &stream, address, &error);
        }
    };
    let peer = Peer { identity: None, address, local: None, serial: None, not_after: None, proof: None };
    let registered = Registered::open(&worker.sidecar, Direction::Outbound, peer);
    let connection = Arc::clone(registered.connection());
    match to.map(|to| (to, outbound::spoken_at(&worker.sidecar, to))) {
        // Not a byte is waited for: the far end may be the one that speaks first.
        Some((to, Some(protocol))) if !protocol.is_http() => {
            outbound::tunnel(worker, connection, to, None, Io::tcp(stream)).await;
        }
        Some((to, Some(_))) => serve_http(worker, connection, stream, Some(to)).await,
        Some((to, None)) => serve_nameless(worker, connection, stream, to).await,
        None => serve_http(worker, connection, stream, None).await,
    }
}

/// Serves HTTP. `to` is where the connection was made to, if it was redirected.
async fn serve_http(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    mut stream: TcpStream,
    to: Option<SocketAddr>,
) {
    let limits = worker.sidecar.snapshots.limits();
    let counts = worker.sidecar.metrics.server(Direction::Outbound);
    let read = crate::runtime::select! {
        read = detect::read_prefix(&mut stream, limits.idle, limits.head) => read,
        // Who has not asked for anything by now must not hold up the end.
        () = worker.sidecar.drain.closing() => return,
    };
    let Ok(prefix) = read else { return };
    if prefix.expired {
        let is_head = prefix.protocol == Protocol::Unknown { http: true };
        counts.limits.hit(if is_head { "head" } else { "idle" });
    }
    serve_prefix(worker, connection, stream, to, prefix).await;
}

async fn serve_prefix(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    stream: TcpStream,
    to: Option<SocketAddr>,
    prefix: Prefix,
) {
    let limits = worker.sidecar.snapshots.limits();
    let counts = worker.sidecar.metrics.server(Direction::Outbound);
    let address = connection.peer.address;
    let handler = {
        let (worker, connection) = (Arc::clone(&worker), Arc::clone(&connection));
        move |request, pending| {
            outbound::request(Arc::clone(&worker), Arc::clone(&connection), to, request, pending)
        }
    };
    let closing = worker.sidecar.drain.closing();
    match prefix.protocol {
        Protocol::Http1 => {
            let stream = Rewound::new(prefix.bytes, stream);
            server::serve_h1(stream, &limits, &counts, handler, closing).await;
        }
        Protocol::Http2 => {
            let stream = Rewound::new(prefix.bytes, stream);
            let closing = async {
                closing.await;
                Closing::Gracefully(limits.drain_max)
            };
            if let Err(error) = h2::serve(stream, Settings::edge(&limits), &counts, handler, closing).await {
                tracing::debug!(%error, "an outbound HTTP/2 connection ended");
            }
        }
        protocol @ (Protocol::Tls | Protocol::Opaque | Protocol::Unknown { .. }) => match to {
            Some(to) => {
                tracing::info!(peer = %address, %to, ?protocol, "not HTTP: the Service declares that port so");
                net::reset_on_close(&stream);
            }
            None => {
                tracing::info!(peer = %address, ?protocol, "not HTTP: the outbound listener is an HTTP proxy");
            }
        },
    }
}

/// A connection to an address that no document names: to what is outside and known by its hosts, or to nothing. That is
/// refused: in HTTP's words if HTTP is what it speaks, and otherwise by a reset.
async fn serve_nameless(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    mut stream: TcpStream,
    to: SocketAddr,
) {
    let limits = worker.sidecar.snapshots.limits();
    let nameless = outbound::nameless(&worker.sidecar, to);
    // First, for whom nothing is read may be the one that speaks first.
    if !nameless.tcp.is_empty()
        && let Some(named) = outbound::by_address(&worker.sidecar, to, &nameless.tcp).await
    {
        return outbound::tunnel(worker, connection, to, Some(named), Io::tcp(stream)).await;
    }
    let head = if nameless.http { limits.head } else { limits.detect };
    let read = crate::runtime::select! {
        read = detect::read_prefix(&mut stream, limits.detect, head) => read,
        () = worker.sidecar.drain.closing() => return,
    };
    let prefix = match read {
        Ok(prefix) if matches!(prefix.protocol, Protocol::Http1 | Protocol::Http2) => {
            return serve_prefix(worker, connection, stream, Some(to), prefix).await;
        }
        Ok(prefix) => Some(prefix).filter(|prefix| nameless.tls && prefix.protocol == Protocol::Tls),
        Err(_) => None,
    };
    if let Some(prefix) = prefix {
        let hello = crate::runtime::select! {
            hello = detect::read_server_name(&mut stream, prefix.bytes, limits.handshake) => hello,
            () = worker.sidecar.drain.closing() => return,
        };
        if let Ok(Hello { name: ServerName::Read(Some(name)), bytes, .. }) = hello
            && let Some(named) = outbound::by_name(&worker.sidecar, to, name).await
        {
            let near = Io::Tcp(Rewound::new(bytes, stream));
            return outbound::tunnel(worker, connection, to, Some(named), near).await;
        }
    }
    outbound::refuse(&worker.sidecar, to);
    net::reset_on_close(&stream);
}
