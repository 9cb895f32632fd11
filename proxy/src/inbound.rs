//! Inbound, top to bottom: a connection at the mesh listener, proven, registered, and served stream by stream.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Request, Response, StatusCode};
use postern_svid::{Role, tls};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authorize;
use crate::connections::{Connection, Direction, End, Facts, Operation, Peer, Registered, Stream};
use crate::decisions::DecisionId;
use crate::detect::{self, Protocol, Rewound};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::h2::{self, Closing, Settings};
use crate::http::upgrade::{Io, Pending};
use crate::http::{headers, inbound, respond, server};
use crate::limits::Limits;
use crate::listener::HandshakePermit;
use crate::net::{self, TcpStream};
use crate::runtime::spawn;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::tcp;
use crate::trust::Proof;
use crate::worker::Worker;

/// Serves one connection to the mesh listener from its first byte to its last.
pub async fn serve_connection(
    worker: Arc<Worker>,
    stream: TcpStream,
    address: SocketAddr,
    mut permit: HandshakePermit,
) {
    let sidecar = Arc::clone(&worker.sidecar);
    let (stream, peer, not_before) = match accept(&sidecar, stream, address, &mut permit).await {
        Ok(accepted) => accepted,
        Err(reason) => {
            sidecar.metrics.tls_refusal(reason);
            tracing::info!(peer = %address, reason, "a handshake at the mesh listener was refused");
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
    let served = tokio::select! {
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

type Accepted = (TlsStream<TcpStream>, Peer, SystemTime);

/// The handshake, whole, within its deadlines. A failure is a metric's label; a peer is told nothing but TLS's alert.
async fn accept(
    sidecar: &Sidecar,
    mut stream: TcpStream,
    address: SocketAddr,
    permit: &mut HandshakePermit,
) -> Result<Accepted, &'static str> {
    let limits = sidecar.snapshots.limits();
    let first = tokio::select! {
        first = timeout(limits.first_byte, net::first_byte(&mut stream)) => first,
        () = sidecar.drain.closing() => return Err("closed"),
    };
    match first {
        Ok(Ok(1..)) => {}
        Ok(_) => return Err("closed"),
        Err(_) => {
            sidecar.metrics.limit("first_byte");
            return Err("first_byte");
        }
    }
    match timeout(limits.handshake, permit.begin(sidecar)).await {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err("overloaded"),
    }
    let local = stream.local_addr().ok().map(|local| local.ip().to_canonical());
    let Some(own) = sidecar.snapshots.load().identity.clone() else { return Err("no_identity") };
    if own.identity.svid.not_after() <= sidecar.clock.wall() {
        return Err("no_identity");
    }
    let handshake = TlsAcceptor::from(Arc::clone(&own.server)).accept(stream);
    let stream = match timeout(limits.handshake, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(tls::refusal(&error)),
        Err(_) => {
            sidecar.metrics.limit("handshake");
            return Err("handshake_timeout");
        }
    };
    let session = stream.get_ref().1;
    if !matches!(session.alpn_protocol(), Some(b"postern/1" | b"h2")) {
        return Err("alpn");
    }
    let svid = tls::peer(session.peer_certificates()).map_err(|error| error.reason())?;
    let proof = Proof::new(sidecar, session.peer_certificates(), Role::Client, own.identity.generation)
        .map_err(|error| error.reason())?;
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
        tokio::select! {
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

fn check_port(sidecar: &Sidecar, snapshot: &Snapshot, port: u16) -> Result<(), Error> {
    let not_declared =
        || Error::new(Side::Peer, Reason::PortNotDeclared, format!("port {port} is not declared"));
    if sidecar.config.is_own_listener(SocketAddr::new(sidecar.config.workload.address, port)) {
        return Err(not_declared());
    }
    let is_named =
        || snapshot.policy.as_ref().is_some_and(|generation| generation.ports_named().contains(&port));
    if sidecar.config.workload.ports.contains_key(&port) || is_named() { Ok(()) } else { Err(not_declared()) }
}

/// Digits only: no sign, no space, no zero in front, as `u16::from_str` alone would allow.
fn parse_port(text: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Serves a CONNECT: opaque bytes to a port of the workload.
pub async fn serve_tunnel(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    request: &Request<Body>,
    pending: Pending,
    snapshot: Arc<Snapshot>,
    decision: &mut Option<DecisionId>,
) -> Result<Response<Body>, Error> {
    let sidecar = &worker.sidecar;
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let target: SocketAddr = authority
        .parse()
        .map_err(|_| Error::new(Side::Peer, Reason::BadRequest, "CONNECT needs <address>:<port>"))?;
    // The address that the peer reached us at is ours, whichever the mesh listener is bound to.
    let own =
        [Some(sidecar.config.workload.address), Some(sidecar.config.inbound.ip()), connection.peer.local];
    let asked = target.ip().to_canonical();
    if asked.is_unspecified() || !own.contains(&Some(asked)) {
        // Connecting wherever a peer says would make this sidecar its deputy.
        return Err(Error::new(Side::Peer, Reason::Misdirected, format!("{target} is not this workload")));
    }
    let port = target.port();
    check_port(sidecar, &snapshot, port)?;
    // What follows may last for days, and must not keep this policy for as long.
    let limits = Arc::clone(&snapshot.limits);
    match sidecar.config.workload.ports.get(&port) {
        Some(protocol) if protocol.is_http() => {
            Err(Error::new(Side::Peer, Reason::ConnectToHttp, format!("port {port} speaks HTTP")))
        }
        Some(_) => {
            let (stream, id) = judge_tunnel(worker, connection, port, snapshot, decision)?;
            let workload = match worker.workload.connect(port, &limits).await {
                Ok(workload) => Io::tcp(workload),
                Err(error) => {
                    stream.answered(error.reason.status().as_u16());
                    stream.finish(End::Failed(error.reason));
                    return Err(error);
                }
            };
            spawn(async move { relay_stream(stream, pending, workload, &limits).await });
            Ok(opened(Some(id)))
        }
        None => {
            // A rule names the port, the workload does not: only its bytes can tell whether layer 7 applies. What no
            // bytes could change is answered now, and what is being found out has its place among the requests.
            if snapshot.policy.as_ref().is_none_or(|generation| connection.is_denied_everything(generation)) {
                return Err(judge_tunnel(worker, connection, port, snapshot, decision).err().unwrap_or_else(
                    || Error::new(Side::Peer, Reason::PolicyDenied, "the policy changed meanwhile"),
                ));
            }
            let admitted = sidecar.admit(&limits)?;
            let served = serve_undeclared(Arc::clone(worker), Arc::clone(connection), port, pending, limits);
            spawn(async move {
                served.await;
                drop(admitted);
            });
            Ok(opened(None))
        }
    }
}

fn opened(id: Option<DecisionId>) -> Response<Body> {
    let mut response = respond::empty(StatusCode::OK);
    if let Some(id) = id {
        headers::add_decision(response.headers_mut(), id);
    }
    response
}

fn judge_tunnel(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    port: u16,
    mut snapshot: Arc<Snapshot>,
    decision: &mut Option<DecisionId>,
) -> Result<(Box<Stream>, DecisionId), Error> {
    let sidecar = &worker.sidecar;
    let (mut stream, ()) = authorize::register(sidecar, connection, &mut snapshot, |snapshot| {
        check_port(sidecar, snapshot, port)?;
        Ok((Facts { port, operation: Operation::Tcp, destination: None, asked: None }, ()))
    })?;
    let judgement = authorize::stream(sidecar, &stream, &snapshot);
    *decision = Some(judgement.id);
    if let Some(reason) = judgement.refused {
        stream.answered(reason.status().as_u16());
        stream.finish(End::Failed(reason));
        return Err(Error::new(Side::Peer, reason, format!("the policy says no; decision {}", judgement.id)));
    }
    stream.hold(sidecar.admit(&snapshot.limits)?);
    stream.answered(StatusCode::OK.as_u16());
    Ok((stream, judgement.id))
}

/// Boxed by name: a request inside the tunnel is served by the very function that opened it.
fn serve_undeclared(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    port: u16,
    pending: Pending,
    limits: Arc<Limits>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(detect_and_serve(worker, connection, port, pending, limits))
}

async fn detect_and_serve(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    port: u16,
    pending: Pending,
    limits: Arc<Limits>,
) {
    let Ok(mut io) = pending.io().await else { return };
    let Ok(prefix) = detect::read_prefix(&mut io, limits.detect, limits.head).await else { return };
    let counts = worker.sidecar.metrics.server(Direction::Inbound);
    if prefix.expired {
        let is_head = prefix.protocol == Protocol::Unknown { http: true };
        counts.limits.hit(if is_head { "head" } else { "detect" });
    }
    let mut io = Rewound::new(prefix.bytes, io);
    match prefix.protocol {
        // Half a request line is no other protocol.
        Protocol::Unknown { http: true } => tcp::Duplex::reset(&mut io),
        Protocol::Http1 => {
            let sidecar = Arc::clone(&worker.sidecar);
            let handler = move |request, pending| {
                inbound::request(Arc::clone(&worker), Arc::clone(&connection), Some(port), request, pending)
            };
            server::serve_h1(io, &limits, &counts, handler, sidecar.drain.closing()).await;
        }
        Protocol::Http2 => {
            let sidecar = Arc::clone(&worker.sidecar);
            let handler = move |request, pending| {
                inbound::request(Arc::clone(&worker), Arc::clone(&connection), Some(port), request, pending)
            };
            let closing = async {
                sidecar.drain.closing().await;
                Closing::Gracefully(limits.drain_max)
            };
            // Its end is the tunnel's.
            let _ = h2::serve(io, Settings::edge(&limits), &counts, handler, closing).await;
        }
        Protocol::Tls | Protocol::Opaque | Protocol::Unknown { http: false } => {
            // The tunnel begins here, by the policy that is in force by now.
            let snapshot = worker.sidecar.snapshots.held();
            let workload = match judge_tunnel(&worker, &connection, port, snapshot, &mut None) {
                Ok((stream, _)) => match worker.workload.connect(port, &limits).await {
                    Ok(workload) => Some((stream, workload)),
                    Err(error) => {
                        stream.finish(End::Failed(error.reason));
                        None
                    }
                },
                Err(_) => None,
            };
            match workload {
                Some((stream, workload)) => relay(stream, io, Io::tcp(workload), &limits).await,
                None => tcp::Duplex::reset(&mut io),
            }
        }
    }
}

/// Relays a stream whose peer's end is still to become one.
pub async fn relay_stream(stream: Box<Stream>, pending: Pending, workload: Io, limits: &Limits) {
    match pending.io().await {
        Ok(io) => relay(stream, io, workload, limits).await,
        Err(_) => stream.finish(End::Failed(Reason::Canceled)),
    }
}

/// Relays until one side ends, or permission does.
pub async fn relay<A: tcp::Duplex>(stream: Box<Stream>, mut a: A, mut b: Io, limits: &Limits) {
    let relayed = {
        let relay = tcp::relay(&mut a, &mut b, limits.stall);
        tokio::select! {
            relayed = relay => Some(relayed),
            () = poll_fn(|cx| stream.poll_revoked(cx)) => None,
        }
    };
    let end = match relayed {
        None => {
            a.reset();
            tcp::Duplex::reset(&mut b);
            End::Revoked
        }
        Some(relayed) => {
            stream.count_response_bytes(usize::try_from(relayed.back).unwrap_or(usize::MAX));
            match relayed.cut {
                None => End::Complete,
                Some(error) if error.kind() == std::io::ErrorKind::TimedOut => End::Failed(Reason::Stalled),
                Some(_) => End::Failed(Reason::Canceled),
            }
        }
    };
    stream.finish(end);
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
