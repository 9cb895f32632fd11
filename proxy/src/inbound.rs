//! Inbound, top to bottom: a connection at the mesh listener, proven, registered, and served stream by stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Request};
use postern_svid::{Role, VerifyError, tls};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::connections::{Connection, Direction, Peer, Registered};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::h2::{self, Closing, Settings};
use crate::http::upgrade::Pending;
use crate::http::{headers, inbound};
use crate::limits::Limits;
use crate::listener::HandshakePermit;
use crate::net::{self, TcpStream};
use crate::observe::log;
use crate::original_dst::{self, Destination};
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::trust::Proof;
use crate::worker::Worker;

mod captured;
mod tunnel;

pub(crate) use tunnel::destination;
pub use tunnel::{relay, relay_stream, serve_tunnel};

/// Serves one connection to the mesh listener from its first byte to its last.
pub async fn serve_connection(
    worker: Arc<Worker>,
    stream: TcpStream,
    address: SocketAddr,
    mut permit: HandshakePermit,
) {
    let sidecar = Arc::clone(&worker.sidecar);
    match original_dst::of(&stream, &sidecar) {
        Ok(Destination::Listener) => {}
        Ok(Destination::Elsewhere(to)) => return captured::serve(worker, stream, address, to, permit).await,
        Err(error) => return original_dst::refuse(&sidecar, Direction::Inbound, &stream, address, &error),
    }
    // In a box of its own: what a handshake needs would else be kept for as long as its connection lives.
    let accepted = Box::pin(accept(&sidecar, stream, address, &mut permit)).await;
    let (stream, peer, not_before) = match accepted {
        Ok(accepted) => accepted,
        Err(Refused { reason, why }) => {
            sidecar.metrics.tls_refusal(reason);
            if log::HANDSHAKES.admits(reason) {
                tracing::info!(peer = %address, reason, why, "a handshake at the mesh listener was refused");
            }
            return;
        }
    };
    drop(permit);
    let registered = Registered::open(&sidecar, Direction::Inbound, peer);
    let connection = Arc::clone(registered.connection());
    let lifetime = lifetime(&sidecar, &connection, not_before);
    let settings = offered(stream.get_ref().1.alpn_protocol(), &sidecar.snapshots.load().limits);
    let counts = sidecar.metrics.server(Direction::Inbound);
    let handler = {
        let (worker, connection) = (Arc::clone(&worker), Arc::clone(&connection));
        move |request: Request<Body>, pending: Option<Pending>| {
            inbound::request(Arc::clone(&worker), Arc::clone(&connection), None, request, pending)
        }
    };
    let served = crate::runtime::select! {
        biased;
        // Whatever state it is in, a GOAWAY's last grace included.
        () = connection.distrusted() => return,
        served = h2::serve(stream, settings, &counts, handler, lifetime) => served,
    };
    if let Err(error) = served {
        tracing::debug!(%error, peer = ?connection.peer.identity, "a mesh connection ended");
    }
}

/// What a peer is offered. Who speaks plain HTTP/2 is no sidecar: one connection of it is one caller's, not a whole
/// workload's.
fn offered(alpn: Option<&[u8]>, limits: &Limits) -> Settings {
    if alpn == Some(b"postern/1") { Settings::mesh(limits) } else { Settings::edge(limits) }
}

/// The stream in a box: it is handed from future to future, and each would keep room for it.
type Accepted = (Box<TlsStream<TcpStream>>, Peer, SystemTime);

/// Why there is no connection.
struct Refused {
    /// A metric's label.
    reason: &'static str,
    /// For the log: the certificate, the rule and the way out.
    why: Option<String>,
}

impl From<&'static str> for Refused {
    fn from(reason: &'static str) -> Self {
        Self { reason, why: None }
    }
}

impl From<VerifyError> for Refused {
    fn from(error: VerifyError) -> Self {
        Self { reason: error.reason(), why: Some(error.to_string()) }
    }
}

/// The handshake, whole, within its deadlines. A failure is for us; a peer is told nothing but TLS's alert.
async fn accept(
    sidecar: &Sidecar,
    mut stream: TcpStream,
    address: SocketAddr,
    permit: &mut HandshakePermit,
) -> Result<Accepted, Refused> {
    let limits = sidecar.snapshots.limits();
    let first = crate::runtime::select! {
        first = timeout(limits.first_byte, net::first_byte(&mut stream)) => first,
        () = sidecar.drain.closing() => return Err("closed".into()),
    };
    match first {
        Ok(Ok(1..)) => {}
        Ok(_) => return Err("closed".into()),
        Err(_) => {
            sidecar.metrics.limit("first_byte");
            return Err("first_byte".into());
        }
    }
    match timeout(limits.handshake, permit.begin(sidecar)).await {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err("overloaded".into()),
    }
    let local = stream.local_addr().ok().map(|local| local.ip().to_canonical());
    let Some(own) = sidecar.snapshots.load().identity.clone() else { return Err("no_identity".into()) };
    if own.identity.svid.not_after() <= sidecar.clock.wall() {
        return Err("no_identity".into());
    }
    let handshake = TlsAcceptor::from(Arc::clone(&own.server)).accept(stream);
    let done = crate::runtime::select! {
        done = timeout(limits.handshake, handshake) => done,
        () = sidecar.drain.arrived() => return Err("closed".into()),
    };
    let stream = match done {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => {
            let why = Some(tls::explain(&error));
            return Err(Refused { reason: tls::refusal(&error), why });
        }
        Err(_) => {
            sidecar.metrics.limit("handshake");
            return Err("handshake_timeout".into());
        }
    };
    let session = stream.get_ref().1;
    if !matches!(session.alpn_protocol(), Some(b"postern/1" | b"h2")) {
        return Err("alpn".into());
    }
    let svid = tls::peer(session.peer_certificates())?;
    let proof = Proof::new(sidecar, session.peer_certificates(), Role::Client, own.identity.generation)?;
    let serial = svid.serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let peer = Peer {
        identity: Some(svid.id().clone()),
        address,
        local,
        serial: Some(serial),
        not_after: Some(svid.not_after()),
        proof: Some(proof),
    };
    Ok((stream, peer, svid.not_before()))
}

/// Ends when the connection must: with the sidecar, or with its peer's certificate, unless the peer has proven on a
/// newer connection that it can renew. Wall time is read anew at each step, for it jumps and machines sleep.
async fn lifetime(sidecar: &Sidecar, connection: &Connection, not_before: SystemTime) -> Closing {
    let limits = &sidecar.config.limits;
    let not_after = connection.peer.not_after;
    let life =
        not_after.and_then(|end| end.duration_since(not_before).ok()).unwrap_or(Duration::from_secs(600));
    let step = (life / 20).clamp(Duration::from_millis(100), Duration::from_secs(30));
    loop {
        let left = not_after.and_then(|end| end.duration_since(sidecar.clock.wall()).ok());
        let nap = left.map_or(step, |left| step.min(left.max(Duration::from_millis(100))));
        crate::runtime::select! {
            () = sidecar.drain.closing() => return Closing::Gracefully(limits.drain_max),
            () = tokio::time::sleep(nap) => {}
        }
        let now = sidecar.clock.wall();
        if not_after.is_some_and(|end| end <= now) && !sidecar.registry.has_newer(connection, now) {
            tracing::info!(
                peer = ?connection.peer.identity,
                "a peer's certificate has ended and it has shown no newer one: its connection closes"
            );
            return Closing::Gracefully(limits.expiry_grace);
        }
    }
}

/// The port that a request is for: exactly one `postern-port`, or, from a peer without our transport, the only port
/// there is.
pub fn target_port(sidecar: &Sidecar, snapshot: &Snapshot, fields: &HeaderMap) -> Result<u16, Error> {
    let mut lines = fields.get_all(headers::POSTERN_PORT).iter();
    let port = match (lines.next(), lines.next()) {
        (Some(line), None) => parse_port(line.as_bytes())
            .ok_or_else(|| Error::new(Side::Peer, Reason::BadRequest, "postern-port is no port"))?,
        (Some(_), Some(_)) => {
            return Err(Error::new(Side::Peer, Reason::BadRequest, "two postern-port fields"));
        }
        (None, _) => {
            let ports = &sidecar.config.workload.ports;
            match (ports.keys().next(), ports.len()) {
                (Some(port), 1) => *port,
                _ => {
                    return Err(Error::new(
                        Side::Peer,
                        Reason::Misdirected,
                        "no postern-port, and not one port",
                    ));
                }
            }
        }
    };
    check_port(sidecar, snapshot, port)?;
    Ok(port)
}

/// Refuses a port that may not be reached by the documents in force.
pub fn check_port(sidecar: &Sidecar, snapshot: &Snapshot, port: u16) -> Result<(), Error> {
    if sidecar.config.reaches(snapshot.policy.as_deref(), port) {
        return Ok(());
    }
    Err(Error::new(Side::Peer, Reason::PortNotDeclared, format!("port {port} is not declared")))
}

/// Digits only: no sign, no space, no zero in front, as `u16::from_str` alone would allow.
fn parse_port(text: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_peer_gets_what_strangers_get() {
        let limits = Limits::default();
        let of = |alpn: &[u8]| {
            let settings = offered(Some(alpn), &limits);
            let windows = (settings.stream_window, settings.connection_window);
            (settings.max_streams, windows, settings.local_error_resets)
        };
        assert_eq!(of(b"postern/1"), (250, (1 << 20, 16 << 20), 1_024));
        assert_eq!(of(b"h2"), (100, (256 << 10, 1 << 20), 128));
    }

    #[test]
    fn ports_are_plain_decimals() {
        assert_eq!(parse_port(b"8080"), Some(8080));
        for bad in [&b""[..], b"0", b"080", b"+80", b" 80", b"80 ", b"65536", b"8e1", b"\xff"] {
            assert_eq!(parse_port(bad), None, "{bad:?}");
        }
    }
}
