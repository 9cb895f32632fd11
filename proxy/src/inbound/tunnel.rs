//! A CONNECT, inbound: opaque bytes, or, at a port that nobody declares, what they turn out to be.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use postern_policy::Protocol as Declared;

use self::first::Heard;
use super::check_port;
use crate::admission::Admitted;
use crate::authorize;
use crate::config::Config;
use crate::connections::{Connection, Direction, End, Facts, Operation, Stream};
use crate::decisions::DecisionId;
use crate::detect::{self, Protocol, Rewound, ServerName};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::h2::{self, Closing, Settings};
use crate::http::upgrade::{Io, Pending};
use crate::http::{headers, inbound, respond, server};
use crate::limits::Limits;
use crate::net::TcpStream;
use crate::rate_limits;
use crate::runtime::spawn;
use crate::snapshot::Snapshot;
use crate::tcp;
use crate::worker::Worker;

mod first;

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
    let to = destination(&sidecar.config, connection.peer.local, authority)?;
    let port = to.port();
    check_port(sidecar, &snapshot, port)?;
    // What follows may last for days, and must not keep this policy for as long.
    let limits = Arc::clone(&snapshot.limits);
    match sidecar.config.workload.ports.get(&port) {
        Some(declared) => {
            let refused = |why| Error::not_asked(why, format!("port {port} speaks HTTP"));
            declared.carries(true).map_err(refused)?;
            if *declared == Declared::Tls && asks_sni(&snapshot, port) {
                return serve_unread(worker, connection, to, pending, snapshot, Found::Tls, decision);
            }
            let unread = ServerName::Unread;
            let (stream, id) = judge_tunnel(worker, connection, port, snapshot, None, &unread, decision)?;
            let workload = match worker.workload.connect(to, &limits).await {
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
        // A rule names the port, the workload does not: only its bytes can tell whether layer 7 applies.
        None => serve_unread(worker, connection, to, pending, snapshot, Found::Anything, decision),
    }
}

/// Where in the workload a CONNECT to `authority` leads, of a peer that reached us at `local`. To connect wherever a peer says
/// would make this sidecar its deputy.
pub(crate) fn destination(
    config: &Config,
    local: Option<IpAddr>,
    authority: &str,
) -> Result<SocketAddr, Error> {
    let target: SocketAddr = authority
        .parse()
        .map_err(|_| Error::new(Side::Peer, Reason::BadRequest, "CONNECT needs <address>:<port>"))?;
    // The address that the peer reached us at is ours, whichever the mesh listener is bound to.
    let asked = target.ip().to_canonical();
    let reached = [Some(config.inbound.ip()), local];
    if asked.is_unspecified() || !(config.is_own_address(asked) || reached.contains(&Some(asked))) {
        return Err(Error::new(Side::Peer, Reason::Misdirected, format!("{target} is not this workload")));
    }
    Ok(SocketAddr::new(config.forwarded_to(Some(asked)), target.port()))
}

/// What the bytes of a tunnel are looked through for before it is judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// Whatever this mesh knows, at a port that nobody declares.
    Anything,
    /// The handshake of TLS, at a port declared so for which rules ask for server names.
    Tls,
    /// HTTP and nothing else, at a port that is declared so: only what was redirected comes as bytes to one.
    Http,
}

pub(super) fn asks_sni(snapshot: &Snapshot, port: u16) -> bool {
    snapshot.policy.as_ref().is_some_and(|generation| generation.asks_sni(port))
}

/// Opens a tunnel that is judged by its first bytes. What no bytes could change is answered now, and what is being found
/// out has its place among the requests.
fn serve_unread(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    to: SocketAddr,
    pending: Pending,
    snapshot: Arc<Snapshot>,
    looked_for: Found,
    decision: &mut Option<DecisionId>,
) -> Result<Response<Body>, Error> {
    let limits = Arc::clone(&snapshot.limits);
    if snapshot.policy.as_ref().is_none_or(|generation| connection.is_denied_everything(generation)) {
        let judged =
            judge_tunnel(worker, connection, to.port(), snapshot, None, &ServerName::Unread, decision);
        return Err(judged.err().unwrap_or_else(|| {
            Error::new(Side::Peer, Reason::PolicyDenied, "the policy changed meanwhile")
        }));
    }
    let admitted = worker.sidecar.admit(&limits)?;
    let (worker, connection) = (Arc::clone(worker), Arc::clone(connection));
    spawn(serve_boxed(worker, connection, to, pending, admitted, limits, looked_for));
    Ok(opened(None))
}

fn opened(id: Option<DecisionId>) -> Response<Body> {
    let mut response = respond::empty(StatusCode::OK);
    if let Some(id) = id {
        headers::add_decision(response.headers_mut(), id);
    }
    response
}

/// Registers and judges a tunnel of opaque bytes. `admitted` is its place among the requests in flight, if it has one.
pub(super) fn judge_tunnel(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    port: u16,
    mut snapshot: Arc<Snapshot>,
    admitted: Option<Admitted>,
    name: &ServerName,
    decision: &mut Option<DecisionId>,
) -> Result<(Box<Stream>, DecisionId), Error> {
    let sidecar = &worker.sidecar;
    let (mut stream, ()) = authorize::register(sidecar, connection, &mut snapshot, |snapshot| {
        check_port(sidecar, snapshot, port)?;
        let operation = match name {
            ServerName::Unread => Operation::Tcp,
            ServerName::Read(sni) => Operation::Tls { sni: sni.clone() },
        };
        Ok((Facts { port, operation, destination: None, asked: None }, ()))
    })?;
    let judgement = authorize::stream(sidecar, &stream, &snapshot);
    *decision = Some(judgement.id);
    if let Some(reason) = judgement.refused {
        stream.answered(reason.status().as_u16());
        stream.finish(End::Failed(reason));
        return Err(Error::new(Side::Peer, reason, format!("the policy says no; decision {}", judgement.id)));
    }
    let limited = rate_limits::admit(sidecar, &stream, &snapshot, judgement.id);
    match limited.and_then(|()| admitted.map_or_else(|| sidecar.admit(&snapshot.limits), Ok)) {
        Ok(admitted) => stream.hold(admitted),
        Err(error) => {
            stream.answered(error.reason.status().as_u16());
            stream.finish(End::Failed(error.reason));
            return Err(error);
        }
    }
    stream.answered(StatusCode::OK.as_u16());
    Ok((stream, judgement.id))
}

/// Boxed by name: a request inside the tunnel is served by the very function that opened it.
fn serve_boxed(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    to: SocketAddr,
    pending: Pending,
    admitted: Admitted,
    limits: Arc<Limits>,
    looked_for: Found,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let Ok(io) = pending.io().await else { return };
        detect_and_serve(worker, connection, to, io, Some(admitted), limits, looked_for).await;
    })
}

/// Serves bytes for `to`, which is one of the workload's ports, as what they turn out to be. `admitted` is their place among
/// the requests in flight while that is found out, if they have one.
pub(super) async fn detect_and_serve(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    to: SocketAddr,
    mut io: Io,
    admitted: Option<Admitted>,
    limits: Arc<Limits>,
    looked_for: Found,
) {
    let heard = async {
        let silent = match looked_for {
            Found::Anything => return first::listen(&worker, &connection, to, &mut io, &limits).await,
            Found::Tls => limits.detect,
            Found::Http => limits.first_byte,
        };
        let prefix = detect::read_prefix(&mut io, silent, limits.head).await?;
        Ok(Heard { prefix, workload: None })
    };
    let heard = crate::runtime::select! {
        heard = heard => heard,
        // Who has not said what it wants by now must not hold up the end.
        () = worker.sidecar.drain.arrived() => return tcp::Duplex::reset(&mut io),
    };
    let Ok(Heard { prefix, workload }) = heard else { return tcp::Duplex::reset(&mut io) };
    let counts = worker.sidecar.metrics.server(Direction::Inbound);
    if prefix.expired {
        let silent = if looked_for == Found::Http { "first_byte" } else { "detect" };
        counts.limits.hit(if prefix.protocol == (Protocol::Unknown { http: true }) {
            "head"
        } else {
            silent
        });
    }
    let protocol = match (looked_for, prefix.protocol) {
        (Found::Tls, Protocol::Http1 | Protocol::Http2 | Protocol::Unknown { http: true }) => {
            Protocol::Opaque
        }
        (Found::Http, Protocol::Tls | Protocol::Opaque | Protocol::Unknown { .. }) => {
            return tcp::Duplex::reset(&mut io);
        }
        (Found::Anything | Found::Tls | Found::Http, protocol) => protocol,
    };
    let (mut bytes, mut name) = (prefix.bytes, ServerName::Unread);
    if protocol == Protocol::Tls && asks_sni(&worker.sidecar.snapshots.load(), to.port()) {
        let read = crate::runtime::select! {
            read = detect::read_server_name(&mut io, bytes, limits.head) => read,
            () = worker.sidecar.drain.arrived() => return tcp::Duplex::reset(&mut io),
        };
        let Ok(hello) = read else { return };
        if hello.expired {
            counts.limits.hit("head");
        }
        (bytes, name) = (hello.bytes, hello.name);
    }
    let mut io = Rewound::new(bytes, io);
    match protocol {
        // Half a request line is no other protocol.
        Protocol::Unknown { http: true } => tcp::Duplex::reset(&mut io),
        // Each request has a place of its own; between two of them none is taken.
        Protocol::Http1 => {
            drop((admitted, workload));
            let sidecar = Arc::clone(&worker.sidecar);
            let handler = move |request, pending| {
                inbound::request(Arc::clone(&worker), Arc::clone(&connection), Some(to), request, pending)
            };
            server::serve_h1(io, &limits, &counts, handler, sidecar.drain.closing()).await;
        }
        Protocol::Http2 => {
            drop((admitted, workload));
            let sidecar = Arc::clone(&worker.sidecar);
            let handler = move |request, pending| {
                inbound::request(Arc::clone(&worker), Arc::clone(&connection), Some(to), request, pending)
            };
            let closing = async {
                sidecar.drain.closing().await;
                Closing::Gracefully(limits.drain_max)
            };
            // Its end is the tunnel's.
            let _ = h2::serve(io, Settings::edge(&limits), &counts, handler, closing).await;
        }
        Protocol::Tls | Protocol::Opaque | Protocol::Unknown { http: false } => {
            carry(&worker, &connection, to, io, workload, admitted, &name, &limits).await;
        }
    }
}

/// Carries opaque bytes: the tunnel begins here, by the policy that is in force by now. `open` is a connection to the workload, if
/// there is one already.
#[expect(clippy::too_many_arguments, reason = "one step of one story")]
pub(super) async fn carry<A: tcp::Duplex>(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    to: SocketAddr,
    mut io: A,
    open: Option<Rewound<TcpStream>>,
    admitted: Option<Admitted>,
    name: &ServerName,
    limits: &Limits,
) {
    let snapshot = worker.sidecar.snapshots.held();
    let judged = judge_tunnel(worker, connection, to.port(), snapshot, admitted, name, &mut None);
    let workload = match judged {
        Ok((stream, _)) => match open {
            Some(open) => Some((stream, Io::Tcp(open))),
            None => match worker.workload.connect(to, limits).await {
                Ok(workload) => Some((stream, Io::tcp(workload))),
                Err(error) => {
                    stream.finish(End::Failed(error.reason));
                    None
                }
            },
        },
        Err(_) => None,
    };
    match workload {
        Some((stream, workload)) => relay(stream, io, workload, limits).await,
        None => io.reset(),
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
        crate::runtime::select! {
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

#[cfg(all(test, not(feature = "sim")))]
mod tests;
