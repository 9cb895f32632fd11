//! One inbound request: from a proven peer to the workload.

mod handshake;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, PathOptions, check_grpc};
use postern_policy::{HeaderFields, Protocol, TokenSet};

use self::handshake::Delivered;
use super::body::Body;
use super::interim::Interim;
use super::upgrade::Pending;
use super::{authority, h2, headers, respond, strict};
use crate::authorize;
use crate::connections::{Connection, End, Facts, Operation, Stream};
use crate::decisions::DecisionId;
use crate::error::{Error, Reason, Side};
use crate::inbound::{check_port, relay_stream, serve_tunnel, target_port};
use crate::jwt;
use crate::limits::Limits;
use crate::observe::log;
use crate::rate_limits;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::worker::Worker;
use crate::workload::Caller;

/// Serves one request. `inside` is where the bytes that it came in are for, if they came through a tunnel of the mesh or
/// were redirected.
pub async fn request(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    inside: Option<SocketAddr>,
    request: Request<Body>,
    pending: Option<Pending>,
) -> Response<Body> {
    let is_grpc = headers::is_grpc(request.headers());
    let is_upgrade = request.extensions().get::<::h2::ext::Protocol>().is_some();
    // Read once: what it is, whether it may, and within which limits are told by one moment.
    let snapshot = worker.sidecar.snapshots.held();
    if let Err(error) = check_peer(&worker, &connection) {
        return refuse(&worker, &connection, &error, None, is_grpc);
    }
    if request.method() == Method::CONNECT && !is_upgrade {
        let mut decision = None;
        let opened = match (inside, pending) {
            (None, Some(pending)) => {
                serve_tunnel(&worker, &connection, &request, pending, snapshot, &mut decision).await
            }
            _ => Err(Error::new(Side::Peer, Reason::ConnectToHttp, "CONNECT inside a tunnel")),
        };
        return opened.unwrap_or_else(|error| refuse(&worker, &connection, &error, decision, is_grpc));
    }
    let mut decision = None;
    match forward(&worker, &connection, inside, request, pending, snapshot, &mut decision).await {
        Ok(response) => response,
        Err(error) => refuse(&worker, &connection, &error, decision, is_grpc),
    }
}

/// What rules out a request before anything else is asked about it.
fn check_peer(worker: &Worker, connection: &Connection) -> Result<(), Error> {
    // The connection itself may live a little longer, for what already runs; nothing new starts on a certificate that
    // has ended, unless its holder has proven a newer one.
    let sidecar = &worker.sidecar;
    let now = sidecar.clock.wall();
    if connection.peer.not_after.is_some_and(|end| end <= now) && !sidecar.registry.has_newer(connection, now)
    {
        return Err(Error::new(Side::Peer, Reason::Misdirected, "the peer's certificate has ended"));
    }
    Ok(())
}

fn refuse(
    worker: &Worker,
    connection: &Connection,
    error: &Error,
    decision: Option<DecisionId>,
    is_grpc: bool,
) -> Response<Body> {
    if decision.is_none() {
        // A stream that was judged has been accounted for at its end.
        worker.sidecar.metrics.failure(connection.direction, error.reason);
    }
    // What an operator must mend at this side; the caller's own log has the reason too.
    let is_ours = matches!(error.reason, Reason::WorkloadUnreachable | Reason::PortNotDeclared);
    if is_ours && log::FAILURES.admits(error.reason.label()) {
        tracing::info!(%error, peer = ?connection.peer.identity, "an inbound request failed");
    } else if !matches!(error.reason, Reason::PolicyDenied | Reason::RateLimited) {
        tracing::debug!(%error, peer = ?connection.peer.identity, "an inbound request failed");
    }
    let mut response = respond::error(error, decision, is_grpc);
    if connection.peer.identity.is_none() {
        // Reasons are for the mesh; a stranger gets the sentence and the id.
        response.headers_mut().remove(headers::POSTERN_ERROR);
    }
    response
}

async fn forward(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    inside: Option<SocketAddr>,
    request: Request<Body>,
    pending: Option<Pending>,
    mut snapshot: Arc<Snapshot>,
    decision: &mut Option<DecisionId>,
) -> Result<Response<Body>, Error> {
    let sidecar = &worker.sidecar;
    let (mut parts, body) = request.into_parts();
    strict::check_size(&snapshot.limits, &parts.uri, &parts.headers, (h2::MORE_FIELDS, h2::MORE_BYTES))?;
    strict::check_length(&parts.headers)?;
    let host = authority::of(&parts.uri, &parts.headers)?;
    let as_sent = HeaderValue::try_from(host.to_string())
        .map_err(|error| Error::new(Side::Peer, Reason::BadRequest, error.to_string()))?;
    let has_body = !body.is_end_stream();
    let make = |snapshot: &Snapshot| facts(sidecar, snapshot, inside, has_body, &host, &parts);
    let forwarded_to = sidecar.config.forwarded_to(inside.map(|to| to.ip()).or(connection.peer.local));
    let (mut stream, Towards { speaks_h2, withheld, bad_token }) =
        authorize::register(sidecar, connection, &mut snapshot, make)?;
    let to = SocketAddr::new(forwarded_to, stream.entry().facts.port);
    let is_upgrade = matches!(stream.entry().facts.operation, Operation::Http { upgrade: Some(_), .. });
    let judgement = match bad_token {
        Some(why) => authorize::refuse_token(sidecar, &stream, &snapshot, why),
        None => authorize::stream(sidecar, &stream, &snapshot),
    };
    *decision = Some(judgement.id);
    if let Some(reason) = judgement.refused {
        stream.answered(reason.status().as_u16());
        stream.finish(End::Failed(reason));
        let why = bad_token
            .map_or_else(|| "the policy says no".to_owned(), |why| format!("a token does not hold: {why}"));
        return Err(Error::new(Side::Peer, reason, why));
    }
    if let Err(error) = rate_limits::admit(sidecar, &stream, &snapshot, judgement.id) {
        stream.answered(error.reason.status().as_u16());
        stream.finish(End::Failed(error.reason));
        return Err(error);
    }
    // A long call must not keep this policy for as long as it waits.
    let limits = Arc::clone(&snapshot.limits);
    drop(snapshot);
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_postern(&mut parts.headers);
    headers::strip_forged_identity(&mut parts.headers);
    headers::strip_overrides(&mut parts.headers);
    for name in withheld {
        parts.headers.remove(name);
    }
    headers::add_identity(&mut parts.headers, connection.peer.identity.as_ref());
    let delivered = match sidecar.admit(&limits) {
        Ok(admitted) => {
            stream.hold(admitted);
            if is_upgrade {
                crate::runtime::select! {
                    delivered = handshake::shake_hands(worker, to, as_sent, parts, &stream, pending, &limits) => delivered,
                    () = poll_fn(|cx| stream.poll_revoked(cx)) => {
                        Err(Error::new(Side::Us, Reason::Revoked, "the policy changed"))
                    }
                }
            } else {
                deliver(worker, connection, to, speaks_h2, &as_sent, parts, body, &stream, &limits)
                    .await
                    .map(Delivered::Response)
            }
        }
        Err(error) => Err(error),
    };
    match delivered {
        Ok(Delivered::Response(mut response)) => {
            clean(response.headers_mut(), judgement.id);
            *response.version_mut() = Version::HTTP_2;
            stream.answered(response.status().as_u16());
            Ok(response.map(|body| body.guarded(stream)))
        }
        Ok(Delivered::Bytes { mut answer, caller, workload }) => {
            clean(answer.headers_mut(), judgement.id);
            if let Some(handshake) = &caller.handshake {
                handshake.agree(answer.headers_mut());
            }
            stream.answered(StatusCode::SWITCHING_PROTOCOLS.as_u16());
            crate::runtime::spawn(async move {
                let Ok(workload) = Pending::H1(workload).io().await else { return };
                relay_stream(stream, caller.pending, workload, &limits).await;
            });
            Ok(answer)
        }
        Err(error) => {
            if error.reason == Reason::Revoked {
                // The verdict that allowed it is not the one that ends it.
                *decision = Some(authorize::stream(sidecar, &stream, &sidecar.snapshots.load()).id);
            }
            stream.answered(error.reason.status().as_u16());
            stream.finish(End::Failed(error.reason));
            Err(error)
        }
    }
}

fn clean(fields: &mut http::HeaderMap, id: DecisionId) {
    headers::strip_hop_by_hop(fields);
    headers::strip_postern(fields);
    headers::add_decision(fields, id);
}

#[expect(clippy::too_many_arguments, reason = "one step of one story, called once")]
async fn deliver(
    worker: &Arc<Worker>,
    connection: &Connection,
    to: SocketAddr,
    speaks_h2: bool,
    host: &HeaderValue,
    parts: http::request::Parts,
    body: Body,
    stream: &Stream,
    limits: &Limits,
) -> Result<Response<Body>, Error> {
    crate::runtime::select! {
        response = send(worker, connection, to, speaks_h2, host, parts, body, stream, limits) => response,
        () = poll_fn(|cx| stream.poll_revoked(cx)) => Err(Error::new(Side::Us, Reason::Revoked, "the policy changed")),
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of one story, called once")]
async fn send(
    worker: &Arc<Worker>,
    connection: &Connection,
    to: SocketAddr,
    speaks_h2: bool,
    host: &HeaderValue,
    mut parts: http::request::Parts,
    body: Body,
    stream: &Stream,
    limits: &Limits,
) -> Result<Response<Body>, Error> {
    let caller = Caller::of(connection);
    let Operation::Http { path, .. } = &stream.entry().facts.operation else {
        return Err(Error::new(Side::Us, Reason::Internal, "a tunnel came to be sent as a request"));
    };
    parts.uri = uri(speaks_h2.then_some(host), path)?;
    let interim = parts.extensions.remove::<Interim>();
    parts.extensions.clear();
    if speaks_h2 {
        parts.headers.remove(HOST);
        let mut head = Request::new(());
        *head.method_mut() = parts.method;
        *head.uri_mut() = parts.uri;
        *head.headers_mut() = parts.headers;
        *head.version_mut() = Version::HTTP_2;
        return worker.workload.send_h2(to, caller, head, body, interim.as_ref(), limits).await;
    }
    parts.version = Version::HTTP_11;
    headers::join_cookies(&mut parts.headers);
    headers::announce_body(&mut parts.headers, &body);
    parts.headers.insert(HOST, host.clone());
    if let Some(interim) = interim {
        parts.extensions.insert(interim);
    }
    worker.workload.send_h1(to, caller, Request::from_parts(parts, body), limits).await
}

/// What a request's judged form leaves out.
struct Towards {
    /// Whether the workload is spoken to in HTTP/2.
    speaks_h2: bool,
    /// Header fields with tokens that the workload must not see.
    withheld: Vec<HeaderName>,
    /// What is wrong with a token that is none: then the workload sees nothing of the request.
    bad_token: Option<&'static str>,
}

/// The judged form of a request, and what belongs to it besides.
fn facts(
    sidecar: &Sidecar,
    snapshot: &Snapshot,
    inside: Option<SocketAddr>,
    has_body: bool,
    host: &CanonHost,
    parts: &http::request::Parts,
) -> Result<(Facts, Towards), Error> {
    let port = match inside {
        Some(to) => {
            // It was reached when the tunnel began; the documents may have changed since.
            check_port(sidecar, snapshot, to.port())?;
            to.port()
        }
        None => target_port(sidecar, snapshot, &parts.headers)?,
    };
    let protocol = sidecar.config.workload.ports.get(&port).copied();
    if let Some(Err(why)) = protocol.map(|protocol| protocol.carries(false)) {
        return Err(Error::not_asked(why, format!("port {port} is declared opaque")));
    }
    let upgrade = handshake::asked(sidecar, port, parts, has_body)?;
    let (defaults, asked) = match &snapshot.policy {
        Some(generation) => (generation.defaults().path, generation.headers_named()),
        None => (PathOptions::default(), &[][..]),
    };
    let options = sidecar.config.workload.path_options(port, defaults);
    if options.preserve_raw {
        authority::check_raw(&parts.uri, &parts.headers)?;
    }
    let bad = |error: postern_policy::norm::NormError| {
        Error::new(Side::Peer, Reason::BadRequest, error.to_string())
    };
    let method = CanonMethod::parse(handshake::method(upgrade.as_ref(), parts)?).map_err(bad)?;
    let raw = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = CanonPath::parse_for(&method, raw, &options).map_err(bad)?;
    if let Some(generation) = &snapshot.policy {
        generation.check_path(port, &path).map_err(bad)?;
    }
    if headers::is_grpc(&parts.headers) {
        check_grpc(&method, &path).map_err(bad)?;
    }
    let headers = HeaderFields::keep(&headers::EndToEnd(&parts.headers), asked);
    let read = snapshot.policy.as_ref().map_or_else(
        || Ok(jwt::Read::default()),
        |generation| {
            let (keyrings, counts) = (&sidecar.keyrings, &sidecar.metrics.tokens);
            jwt::read(generation, keyrings, counts, &parts.headers, sidecar.clock.wall())
        },
    );
    let (jwt::Read { tokens, withheld }, bad_token) = match read {
        Ok(read) => (read, None),
        Err(why) => (jwt::Read { tokens: TokenSet::unknown(), withheld: Vec::new() }, Some(why)),
    };
    let operation = Operation::Http { method, path, host: host.clone(), headers, upgrade, tokens };
    let speaks_h2 = match protocol {
        Some(declared) => matches!(declared, Protocol::Http2 | Protocol::Grpc),
        // Whoever spoke HTTP/2 inside of a tunnel, or at a port of the workload's, spoke it to the workload itself; and gRPC
        // is spoken over nothing else.
        None => (inside.is_some() && parts.version == Version::HTTP_2) || headers::is_grpc(&parts.headers),
    };
    let towards = Towards { speaks_h2, withheld, bad_token };
    Ok((Facts { port, operation, destination: None, asked: None }, towards))
}

fn uri(host: Option<&HeaderValue>, path: &CanonPath) -> Result<Uri, Error> {
    let bad = |text: String| Error::new(Side::Peer, Reason::BadRequest, text);
    let mut parts = http::uri::Parts::default();
    let path = PathAndQuery::try_from(path.path_and_query()).map_err(|error| bad(error.to_string()))?;
    parts.path_and_query = Some(path);
    if let Some(host) = host {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(|error| bad(error.to_string()))?);
    }
    Uri::from_parts(parts).map_err(|error| bad(error.to_string()))
}
