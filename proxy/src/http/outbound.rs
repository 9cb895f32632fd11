//! One outbound request: from the own workload to a service of the mesh, and nowhere else.

mod captured;
mod external;
mod handshake;
mod originate;

pub use captured::{by_address, by_name, nameless, refuse, spoken_at, tunnel};
pub use originate::Originate;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use postern_policy::{Endpoint, HeaderFields, ServicePort, TokenSet, Transport, Upgrade};
use postern_svid::spread;

use self::captured::Called;
use self::external::Resolved;
use super::body::Body;
use super::h2::{Connection as MeshConnection, TunnelIo};
use super::interim::Interim;
use super::upgrade::{Io, Pending};
use super::{authority, headers, respond, strict};
use crate::authorize;
use crate::balance;
use crate::connections::{Asked, Connection, End, Facts, Operation, Stream};
use crate::decisions::DecisionId;
use crate::error::{Error, Reason, Side};
use crate::net::TcpStream;
use crate::observe::log;
use crate::pool::Kind;
use crate::retry::should_retry;
use crate::runtime::spawn;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// Serves one request of the workload. `to` is where its connection was made to, if it was redirected.
pub async fn request(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    to: Option<SocketAddr>,
    request: Request<Body>,
    pending: Option<Pending>,
) -> Response<Body> {
    let is_grpc = headers::is_grpc(request.headers());
    let mut stream = None;
    let mut decision = None;
    match serve(&worker, &connection, to, request, pending, &mut stream, &mut decision).await {
        Ok(response) => response,
        Err(error) => {
            // A denial has a line of its own.
            if error.reason != Reason::EgressDenied && log::FAILURES.admits(error.reason.label()) {
                tracing::info!(%error, "an outbound call failed");
            }
            match stream {
                Some(stream) => {
                    stream.answered(error.reason.status().as_u16());
                    stream.finish(End::Failed(error.reason));
                }
                None => worker.sidecar.metrics.failure(connection.direction, error.reason),
            }
            respond::error(&error, decision, is_grpc)
        }
    }
}

async fn serve(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    to: Option<SocketAddr>,
    request: Request<Body>,
    pending: Option<Pending>,
    registered: &mut Option<Box<Stream>>,
    decision: &mut Option<DecisionId>,
) -> Result<Response<Body>, Error> {
    let sidecar = &worker.sidecar;
    let limits = sidecar.snapshots.limits();
    strict::check_size(&limits, request.uri(), request.headers(), (0, 0))?;
    strict::check_length(request.headers())?;
    let is_websocket = handshake::asks_for_websocket(&request)?;
    let is_tunnel = request.method() == Method::CONNECT && !is_websocket;
    if let Some(to) = to.filter(|_| is_tunnel) {
        // Whoever is called there was not asked whether it is a proxy.
        return Err(Error::new(
            Side::Peer,
            Reason::ConnectToHttp,
            format!("CONNECT on a connection to {to}"),
        ));
    }
    let (host, port) = asked(&request, is_tunnel)?;
    let resolved = match to {
        Some(to) => captured::resolve(sidecar, to, &host).await,
        None => external::resolve(sidecar, &host, port).await,
    };
    let mut snapshot = sidecar.snapshots.held();
    let (mut stream, target) = authorize::register(sidecar, connection, &mut snapshot, |snapshot| {
        let target = match to {
            Some(to) => Target::at(sidecar, snapshot, to, Called::By(&host, &request), resolved.as_ref())?,
            None => Target::find(sidecar, snapshot, &request, (&host, port), resolved.as_ref(), is_tunnel)?,
        };
        let upgrade = if is_websocket { Some(Upgrade::WebSocket) } else { target.upgrade(&request) };
        let facts = target.facts(&request, upgrade, is_tunnel)?;
        if let (Operation::Http { path, .. }, Some(generation)) = (&facts.operation, &snapshot.policy) {
            generation
                .check_path_out(path)
                .map_err(|error| Error::new(Side::Peer, Reason::BadRequest, error.to_string()))?;
        }
        Ok((facts, target))
    })?;
    let is_upgrade = matches!(stream.entry().facts.operation, Operation::Http { upgrade: Some(_), .. });
    if let Some(judgement) = authorize::call(sidecar, &stream, &snapshot) {
        *decision = Some(judgement.id);
        if let Some(reason) = judgement.refused {
            *registered = Some(stream);
            return Err(Error::new(Side::Peer, reason, "the policy says no"));
        }
    }
    // A long call must not keep this policy for as long as it waits.
    drop(snapshot);
    stream.hold(match sidecar.admit_to(&limits, &target.port.service) {
        Ok(admitted) => admitted,
        Err(error) => {
            *registered = Some(stream);
            return Err(error);
        }
    });
    let target = Arc::new(target);
    let attempt = async {
        match (target.port.external, is_upgrade, is_tunnel) {
            (_, true, _) => handshake::open(worker, &target, request, pending, &stream).await,
            (true, false, true) => open_external(worker, &target, pending, &stream).await,
            (true, false, false) => {
                external::send(worker, &target, request, &stream).await.map(Opened::Response)
            }
            (false, false, true) => match pending {
                Some(pending) => open_tunnel(worker, &target, &stream).await.map(|opened| match opened {
                    Ok((answer, far)) => Opened::Bytes { answer, pending, far },
                    Err(response) => Opened::Response(response),
                }),
                None => Err(no_byte_stream()),
            },
            (false, false, false) => send(worker, &target, request, &stream).await.map(Opened::Response),
        }
    };
    let result = crate::runtime::select! {
        result = attempt => result,
        () = poll_fn(|cx| stream.poll_revoked(cx)) => {
            Err(Error::new(Side::Us, Reason::Revoked, "the policy changed"))
        }
    };
    match result {
        Ok(Opened::Response(mut response)) => {
            headers::strip_hop_by_hop(response.headers_mut());
            clean(&mut response, &target);
            stream.answered(response.status().as_u16());
            Ok(response.map(|body| body.guarded(stream)))
        }
        Ok(Opened::Bytes { mut answer, pending, far }) => {
            clean(&mut answer, &target);
            stream.answered(answer.status().as_u16());
            spawn(async move {
                crate::inbound::relay_stream(stream, pending, Io::H2(far), &limits).await;
            });
            Ok(answer)
        }
        Ok(Opened::Outside { pending, far }) => {
            stream.answered(StatusCode::OK.as_u16());
            let sidecar = Arc::clone(sidecar);
            spawn(async move {
                match pending.io().await {
                    Ok(near) => external::carry(sidecar, stream, target, near, far, limits).await,
                    Err(_) => stream.finish(End::Failed(Reason::Canceled)),
                }
            });
            Ok(respond::empty(StatusCode::OK))
        }
        Err(error) => {
            *registered = Some(stream);
            Err(error)
        }
    }
}

/// What an attempt came to.
enum Opened {
    Response(Response<Body>),
    Bytes { answer: Response<Body>, pending: Pending, far: TunnelIo },
    Outside { pending: Pending, far: TcpStream },
}

/// Where a call goes: one port of one service.
struct Target {
    /// Whom a request is addressed to.
    host: CanonHost,
    /// By which name the documents lead to this port.
    asked: CanonHost,
    /// Whether a connection was redirected here: then its address is what the workload asked for.
    is_redirected: bool,
    port: ServicePort,
    path_options: PathOptions,
    /// Outside of the mesh: where it is, or why nobody knows.
    addresses: Vec<IpAddr>,
    unresolved: String,
}

/// The host and the port that a request asks for.
fn asked(request: &Request<Body>, is_tunnel: bool) -> Result<(CanonHost, u16), Error> {
    let bad = |text: String| Error::new(Side::Peer, Reason::BadRequest, text);
    if request.uri().scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
        return Err(bad("only http:// targets: for TLS of your own, use CONNECT".to_owned()));
    }
    let host = if is_tunnel {
        let text = request.uri().authority().map_or("", Authority::as_str);
        CanonHost::parse(text).map_err(|error| bad(format!("host: {error}")))?
    } else {
        authority::of(request.uri(), request.headers())?
    };
    match host.port() {
        Some(port) => Ok((host, port)),
        None if is_tunnel => Err(bad("CONNECT needs host:port".to_owned())),
        None => Ok((host, 80)),
    }
}

impl Target {
    /// The service that the request names. No Service document, no call.
    fn find(
        sidecar: &Sidecar,
        snapshot: &Snapshot,
        request: &Request<Body>,
        (host, port): (&CanonHost, u16),
        resolved: Option<&Resolved>,
        is_tunnel: bool,
    ) -> Result<Self, Error> {
        let generation = snapshot
            .policy
            .as_ref()
            .ok_or_else(|| Error::new(Side::Us, snapshot.without_policy(), "no documents are in force"))?;
        let port = generation.services().find(host, port, &sidecar.config.namespace).ok_or_else(|| {
            let leads_back = sidecar.config.leads_back(host, port);
            let reason = if leads_back { Reason::Loop } else { Reason::UnknownService };
            Error::new(Side::Peer, reason, format!("{host} (port {port})"))
        })?;
        let detail = || format!("{} port {} is {}", port.service, port.port, port.protocol.as_str());
        port.protocol.carries(is_tunnel).map_err(|why| Error::not_asked(why, detail()))?;
        let path_options = port.paths.options(generation.defaults().path);
        if path_options.preserve_raw && !is_tunnel {
            authority::check_raw(request.uri(), request.headers())?;
        }
        let addresses = external::addresses(port, host, resolved);
        let unresolved = match port.external && addresses.is_empty() {
            true => external::unresolved(resolved),
            false => String::new(),
        };
        Ok(Self {
            host: host.clone(),
            asked: host.clone(),
            is_redirected: false,
            port: port.clone(),
            path_options,
            addresses,
            unresolved,
        })
    }

    fn facts(
        &self,
        request: &Request<Body>,
        upgrade: Option<Upgrade>,
        is_tunnel: bool,
    ) -> Result<Facts, Error> {
        let bad = |error: postern_policy::norm::NormError| {
            Error::new(Side::Peer, Reason::BadRequest, error.to_string())
        };
        let operation = if is_tunnel {
            Operation::Tcp
        } else {
            let method = request.method().as_str();
            let method = match &upgrade {
                Some(upgrade) => {
                    upgrade.method(method.as_bytes()).map_err(|why| Error::not_asked(why, method))?
                }
                None => method,
            };
            let method = CanonMethod::parse(method).map_err(bad)?;
            let raw = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
            let path = CanonPath::parse_for(&method, raw, &self.path_options).map_err(bad)?;
            // No rule is asked about them on the way out.
            let headers = HeaderFields::keep(&headers::EndToEnd(request.headers()), &[]);
            let (host, tokens) = (self.host.clone(), TokenSet::unknown());
            Operation::Http { method, path, host, headers, upgrade, tokens }
        };
        let destination = Some(self.port.service.to_string());
        let asked = Some(Asked {
            host: self.asked.clone(),
            port: self.port.port,
            external: self.port.external,
            addresses: self.addresses.clone(),
        });
        Ok(Facts { port: self.port.target_port, operation, destination, asked })
    }

    /// The next endpoint to try, and its index.
    fn pick(&self, worker: &Worker, kind: Kind, tried: &[usize]) -> Result<(usize, &Endpoint), Error> {
        let endpoints = &self.port.endpoints;
        let random = if endpoints.len() > 1 { spread::number() } else { 0 };
        let loads: Vec<usize> =
            endpoints.iter().map(|endpoint| worker.mesh.in_flight(endpoint, kind)).collect();
        // One that could not be reached lately is asked when nobody else is left, or its rest is over.
        let is_resting = |at: &usize| worker.mesh.is_resting(&endpoints[*at], kind);
        let resting: Vec<usize> = match endpoints.len() {
            1 => Vec::new(),
            count => (0..count).filter(is_resting).collect(),
        };
        let at = balance::pick(&loads, tried, &resting, random)
            .ok_or_else(|| Error::unsent(Side::Us, Reason::NoEndpoint, self.port.service.to_string()))?;
        Ok((at, &endpoints[at]))
    }
}

/// The response as the workload may see it.
fn clean(response: &mut Response<Body>, target: &Target) {
    // Only sidecars of ours speak of decisions; whoever else is among the endpoints could have said anything.
    let are_ours = !target.port.external
        && target.port.endpoints.iter().all(|endpoint| endpoint.transport == Transport::Postern);
    let decision = response.headers().get(headers::POSTERN_DECISION).filter(|_| are_ours).cloned();
    let told = response.headers().get(headers::POSTERN_ERROR).filter(|_| are_ours);
    let reason = told.and_then(|label| Reason::from_label(label.as_bytes())).map(Reason::as_told);
    headers::strip_postern(response.headers_mut());
    if let Some(reason) = reason {
        headers::add_error(response.headers_mut(), reason);
        if log::FAILURES.admits(reason.label()) {
            let service = &target.port.service;
            tracing::info!(
                %service,
                port = target.port.target_port,
                reason = reason.label(),
                status = response.status().as_u16(),
                "the service's sidecar answered instead of its workload"
            );
        }
    }
    if let Some(decision) = decision {
        response.headers_mut().insert(headers::POSTERN_DECISION, decision);
    }
    *response.version_mut() = Version::HTTP_11;
}

/// The request's head as it crosses the mesh.
fn mesh_head(
    target: &Target,
    endpoint: &Endpoint,
    parts: &http::request::Parts,
    path: &CanonPath,
) -> Result<Request<()>, Error> {
    let bad = |text: String| Error::new(Side::Peer, Reason::BadRequest, text);
    let mut head = Request::new(());
    *head.method_mut() = parts.method.clone();
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(target.host.to_string())
        .path_and_query(path.path_and_query())
        .build()
        .map_err(|error| bad(error.to_string()))?;
    *head.headers_mut() = parts.headers.clone();
    let fields = head.headers_mut();
    headers::strip_hop_by_hop(fields);
    headers::strip_postern(fields);
    // A peer of ours would strip it; one of somebody else's mesh might believe it.
    fields.remove(headers::FORWARDED_CLIENT_CERT);
    fields.remove(HOST);
    if endpoint.transport == Transport::Postern {
        fields.insert(headers::POSTERN_PORT, HeaderValue::from(target.port.target_port));
        let version = match parts.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        fields.insert(headers::POSTERN_VERSION, HeaderValue::from_static(version));
    }
    Ok(head)
}

async fn mesh_connection(
    worker: &Worker,
    target: &Target,
    kind: Kind,
) -> Result<(MeshConnection, Endpoint), Error> {
    let endpoints = &target.port.endpoints;
    // Endpoints that lead back are never asked, so they must not use up an attempt.
    let leads_back = |at: &usize| worker.sidecar.config.is_own_way_back(&endpoints[*at]);
    let mut tried: Vec<usize> = (0..endpoints.len()).filter(leads_back).collect();
    if let (Some(at), true) = (tried.first(), tried.len() == endpoints.len()) {
        let detail = format!("the endpoint {} is this sidecar's own listener", endpoints[*at].address);
        return Err(Error::unsent(Side::Us, Reason::Loop, detail));
    }
    let mut attempts = 0;
    loop {
        let (at, endpoint) = target.pick(worker, kind, &tried)?;
        tried.push(at);
        attempts += 1;
        match worker.mesh.connection(&worker.sidecar, endpoint, kind).await {
            Ok(connection) => return Ok((connection, endpoint.clone())),
            // Not a byte of the request was sent: another endpoint may be asked.
            Err(error) if should_retry(&error, attempts, true) && tried.len() < endpoints.len() => {
                tracing::info!(%error, "an endpoint failed, trying another");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Notes which endpoint is asked, then looks whether the documents in force lead there: those that changed while it was
/// dialled could not tell.
fn ask(sidecar: &Sidecar, stream: &Stream, endpoint: &Endpoint) -> Result<(), Error> {
    let entry = stream.entry();
    entry.asks(endpoint);
    let snapshot = sidecar.snapshots.load();
    let Some(generation) = &snapshot.policy else { return Ok(()) };
    let config = &sidecar.config;
    if !entry.has_lost_its_way(generation, &config.namespace) && entry.may_go_out(generation, config) {
        return Ok(());
    }
    let detail =
        format!("the documents changed and no longer lead to {} as it was dialled", endpoint.address);
    Err(Error::new(Side::Us, Reason::Revoked, detail))
}

async fn send(
    worker: &Arc<Worker>,
    target: &Target,
    request: Request<Body>,
    stream: &Stream,
) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let Operation::Http { path, .. } = &stream.entry().facts.operation else {
        return Err(Error::new(Side::Us, Reason::Internal, "a tunnel came to be sent as a request"));
    };
    let end = body.is_end_stream();
    let mut body = body;
    let interim = parts.extensions.get::<Interim>();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (connection, endpoint) = mesh_connection(worker, target, Kind::Http).await?;
        ask(&worker.sidecar, stream, &endpoint)?;
        let head = mesh_head(target, &endpoint, &parts, path)?;
        let error = match connection.open(head, end).await {
            Ok(opened) => match opened.exchange(std::mem::replace(&mut body, Body::empty()), interim).await {
                // A body that has begun to flow cannot flow twice.
                Err(error) if should_retry(&error, attempts, end) => error,
                sent => return sent,
            },
            Err(error) if should_retry(&error, attempts, true) => error,
            Err(error) => return Err(error),
        };
        tracing::debug!(%error, "a mesh connection closed under a request, trying a fresh one");
    }
}

/// Opens a tunnel over the mesh, or tells what was answered instead.
async fn open_tunnel(
    worker: &Arc<Worker>,
    target: &Target,
    stream: &Stream,
) -> Result<Result<(Response<Body>, TunnelIo), Response<Body>>, Error> {
    let (connection, endpoint) = mesh_connection(worker, target, Kind::Tunnel).await?;
    ask(&worker.sidecar, stream, &endpoint)?;
    let mut head = Request::new(());
    *head.method_mut() = Method::CONNECT;
    *head.version_mut() = Version::HTTP_2;
    let address = SocketAddr::new(endpoint.address, target.port.target_port);
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(
        Authority::try_from(address.to_string())
            .map_err(|error| Error::new(Side::Us, Reason::Internal, error.to_string()))?,
    );
    *head.uri_mut() =
        Uri::from_parts(uri).map_err(|error| Error::new(Side::Us, Reason::Internal, error.to_string()))?;
    match connection.tunnel(head).await? {
        Ok(opened) => {
            let (parts, far) = opened.into_parts();
            let mut answer = respond::empty(StatusCode::OK);
            *answer.headers_mut() = parts.headers;
            Ok(Ok((answer, far)))
        }
        Err(response) => Ok(Err(response)),
    }
}

fn no_byte_stream() -> Error {
    Error::new(Side::Peer, Reason::BadRequest, "this CONNECT cannot become a byte stream")
}

async fn open_external(
    worker: &Worker,
    target: &Target,
    pending: Option<Pending>,
    stream: &Stream,
) -> Result<Opened, Error> {
    let pending = pending.ok_or_else(no_byte_stream)?;
    let far = external::open(worker, target, stream).await?;
    Ok(Opened::Outside { pending, far })
}

#[cfg(test)]
mod tests;
