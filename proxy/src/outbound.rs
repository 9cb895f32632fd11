//! Outbound, top to bottom: a connection from the own workload, which asks for services by name.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::connections::{Direction, Peer, Registered};
use crate::detect::{self, Protocol, Rewound};
use crate::http::h2::{self, Closing, Settings};
use crate::http::{outbound, server};
use crate::net::TcpStream;
use crate::worker::Worker;

/// Serves one connection of the workload.
pub async fn serve_connection(worker: Arc<Worker>, mut stream: TcpStream, address: SocketAddr) {
    let limits = worker.sidecar.snapshots.limits();
    let peer = Peer { identity: None, address, local: None, serial: None, not_after: None, proof: None };
    let registered = Registered::open(&worker.sidecar, Direction::Outbound, peer);
    let connection = Arc::clone(registered.connection());
    let counts = worker.sidecar.metrics.server(Direction::Outbound);
    let read = tokio::select! {
        read = detect::read_prefix(&mut stream, limits.idle, limits.head) => read,
        // Who has not asked for anything by now must not hold up the end.
        () = worker.sidecar.drain.closing() => return,
    };
    let Ok(prefix) = read else { return };
    if prefix.expired {
        let is_head = prefix.protocol == Protocol::Unknown { http: true };
        counts.limits.hit(if is_head { "head" } else { "idle" });
    }
    let stream = Rewound::new(prefix.bytes, stream);
    let handler = {
        let (worker, connection) = (Arc::clone(&worker), Arc::clone(&connection));
        move |request, pending| {
            outbound::request(Arc::clone(&worker), Arc::clone(&connection), request, pending)
        }
    };
    let closing = worker.sidecar.drain.closing();
    match prefix.protocol {
        Protocol::Http1 => server::serve_h1(stream, &limits, &counts, handler, closing).await,
        Protocol::Http2 => {
            let closing = async {
                closing.await;
                Closing::Gracefully(limits.drain_max)
            };
            if let Err(error) = h2::serve(stream, Settings::edge(&limits), &counts, handler, closing).await {
                tracing::debug!(%error, "an outbound HTTP/2 connection ended");
            }
        }
        protocol @ (Protocol::Tls | Protocol::Opaque | Protocol::Unknown { .. }) => {
            tracing::info!(peer = %address, ?protocol, "not HTTP: the outbound listener is an HTTP proxy");
        }
    }
}
