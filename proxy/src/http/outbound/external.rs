//! Outside of the mesh: dialled as it was judged, without the mesh's transport.
//!
//! Who answers there is between the workload's own TLS and the far end, unless the Service has the sidecar open TLS
//! ([`super::originate`]). A request goes as plaintext HTTP without that, and always on a connection of its own.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_policy::norm::CanonHost;
use postern_policy::{Endpoint, Protocol, ServicePort, Transport};
use tokio::time::timeout;

use super::originate::{self, Outside};
use super::{Target, ask};
use crate::connections::{End, Operation, Stream};
use crate::detect::{self, Hello, Rewound, ServerName};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::h2::{Connection, Settings};
use crate::http::headers;
use crate::http::stall::StallClock;
use crate::http::upgrade::Io;
use crate::inbound::relay;
use crate::limits::Limits;
use crate::net::{self, TcpStream};
use crate::observe::log;
use crate::observe::metrics::LimitHits;
use crate::resolve::{Answer, MAX_ADDRESSES};
use crate::runtime::spawn;
use crate::sidecar::Sidecar;
use crate::tcp::Duplex as _;
use crate::worker::Worker;
use crate::workload::count_informational;

/// Addresses that are dialled one after the other.
const ATTEMPTS: usize = 3;

/// A name that was looked up.
pub(super) struct Resolved {
    name: Box<str>,
    answer: Answer,
}

impl Resolved {
    /// Whether the name is there.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.answer.as_ref().is_ok_and(|known| known.contains(&address))
    }
}

#[cfg(test)]
impl Resolved {
    /// As if somebody had looked this up.
    pub(super) fn known(name: &str, addresses: &[IpAddr]) -> Self {
        Self { name: name.into(), answer: Ok(addresses.to_vec()) }
    }
}

/// Looks up the name of a service outside of the mesh that has no endpoints.
pub(super) async fn resolve(sidecar: &Sidecar, host: &CanonHost, port: u16) -> Option<Resolved> {
    let name = {
        let snapshot = sidecar.snapshots.load();
        let services = snapshot.policy.as_ref()?.services();
        if !services.have_hosts() {
            return None;
        }
        let port = services.find(host, port, &sidecar.config.namespace)?;
        Box::<str>::from(to_resolve(port, host)?)
    };
    let answer = sidecar.resolver.resolve(&name).await;
    Some(Resolved { name, answer })
}

/// The host that is looked up, if the service is found so.
fn to_resolve<'a>(port: &'a ServicePort, host: &'a CanonHost) -> Option<&'a str> {
    if port.is_resolved() { port.host_for(host.name()) } else { None }
}

/// Where a call would be dialled; nowhere if nobody knows.
pub(super) fn addresses(port: &ServicePort, host: &CanonHost, resolved: Option<&Resolved>) -> Vec<IpAddr> {
    match (to_resolve(port, host), resolved) {
        (Some(name), Some(Resolved { name: known, answer: Ok(addresses) })) if *name == **known => {
            addresses.clone()
        }
        (Some(_), _) => Vec::new(),
        (None, _) if port.is_resolved() => Vec::new(),
        (None, _) => port.addresses().into_iter().take(MAX_ADDRESSES).collect(),
    }
}

/// Why a name has no address, for the log.
pub(super) fn unresolved(resolved: Option<&Resolved>) -> String {
    match resolved {
        Some(Resolved { name, answer: Err(error) }) => format!("{name}: {error}"),
        Some(Resolved { name, .. }) => format!("{name}: the documents changed while it was looked up"),
        None => "no host of it is written out: ask by one of those that its `*.` stands for".to_owned(),
    }
}

/// Connects to one of the addresses that were judged.
async fn dial(worker: &Worker, target: &Target, stream: &Stream) -> Result<TcpStream, Error> {
    let sidecar = &worker.sidecar;
    let limits = sidecar.snapshots.limits();
    let unreachable = |detail: String| Error::unsent(Side::Remote, Reason::ExternalUnreachable, detail);
    if target.addresses.is_empty() {
        return Err(unreachable(target.unresolved.clone()));
    }
    let mut last = String::new();
    for address in target.addresses.iter().take(ATTEMPTS) {
        let to = SocketAddr::new(*address, target.port.target_port);
        match timeout(limits.connect_mesh, net::connect(to)).await {
            Ok(Ok(connection)) => {
                // From here on it is this address that is judged, and by documents that are in force now.
                let (address, mesh_port) = (*address, to.port());
                let identities = Vec::new();
                ask(
                    sidecar,
                    stream,
                    &Endpoint { address, mesh_port, identities, transport: Transport::Mtls },
                )?;
                return Ok(connection);
            }
            Ok(Err(error)) => last = format!("{to}: {error}"),
            Err(_) => {
                sidecar.metrics.limit("connect_mesh");
                last = format!("{to}: no answer to connect");
            }
        }
    }
    Err(unreachable(last))
}

/// Sends a request.
pub(super) async fn send(
    worker: &Worker,
    target: &Target,
    request: Request<Body>,
    stream: &Stream,
) -> Result<Response<Body>, Error> {
    let limits = worker.sidecar.snapshots.limits();
    let connection = Outside::Plain(dial(worker, target, stream).await?);
    let connection = match &target.port.originate {
        Some(tls) => originate::open(&worker.sidecar, target, tls, connection, limits.handshake).await?,
        None => connection,
    };
    let (mut parts, body) = request.into_parts();
    let Operation::Http { path, host, .. } = &stream.entry().facts.operation else {
        return Err(Error::new(Side::Us, Reason::Internal, "a tunnel came to be sent as a request"));
    };
    let bad = |text: String| Error::new(Side::Peer, Reason::BadRequest, text);
    let host = HeaderValue::try_from(host.to_string()).map_err(|error| bad(error.to_string()))?;
    let path = PathAndQuery::try_from(path.path_and_query()).map_err(|error| bad(error.to_string()))?;
    let fields = &mut parts.headers;
    headers::strip_hop_by_hop(fields);
    headers::strip_postern(fields);
    // Nobody out there is to hear who calls in the mesh, or be told so by the workload in the mesh's words.
    fields.remove(headers::FORWARDED_CLIENT_CERT);
    // A rule about methods would be about another one than is acted on.
    headers::strip_overrides(fields);
    fields.remove(HOST);
    parts.extensions.clear();
    if target.port.protocol == Protocol::Http {
        headers::join_cookies(&mut parts.headers);
        headers::announce_body(&mut parts.headers, &body);
        parts.headers.insert(HOST, host);
        parts.uri = Uri::from(path);
        parts.version = Version::HTTP_11;
        let hits = &worker.sidecar.metrics.limits;
        return send_h1(connection, Request::from_parts(parts, body), &limits, hits).await;
    }
    let mut head = Request::new(());
    *head.method_mut() = parts.method;
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = Uri::builder()
        .scheme(if target.port.originate.is_some() { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(host.as_bytes())
        .path_and_query(path)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    *head.headers_mut() = parts.headers;
    let settings = Settings::workload(&limits);
    let hits = &worker.sidecar.metrics.limits;
    let connection =
        Connection::handshake(connection, settings, Side::Remote, hits).await.map_err(as_external)?;
    let opened = async {
        connection.settled().await?;
        connection.open(head, body.is_end_stream()).await
    };
    match timeout(limits.handshake, opened).await {
        Ok(opened) => opened.map_err(as_external)?.exchange(body, None).await.map_err(as_external),
        Err(_) => {
            let detail = "the far end never says how many streams it allows (HTTP/2 SETTINGS)";
            Err(Error::unsent(Side::Remote, Reason::ExternalUnreachable, detail))
        }
    }
}

async fn send_h1(
    connection: Outside,
    mut request: Request<Body>,
    limits: &Limits,
    hits: &LimitHits,
) -> Result<Response<Body>, Error> {
    let broken = |error: hyper::Error| Error::new(Side::Remote, Reason::ExternalReset, error.to_string());
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(limits.head_fields + 16)
        .max_header_size(limits.head_bytes)
        .handshake(TokioIo::new(StallClock::new(connection, limits.stall)))
        .await
        .map_err(broken)?;
    spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection outside of the mesh ended");
        }
    });
    let enough = count_informational(&mut request, limits.informational);
    let response = crate::runtime::select! {
        response = sender.send_request(request) => response.map_err(broken)?,
        () = enough.notified() => {
            hits.hit("informational");
            let text = "informational answers and none that is asked for";
            return Err(Error::new(Side::Remote, Reason::ExternalReset, text));
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it: `Upgrade` stops here.
        return Err(Error::new(Side::Remote, Reason::ExternalReset, "101 to a request that asked for none"));
    }
    Ok(response.map(|incoming| Body::h1(incoming, Side::Remote)))
}

/// What HTTP/2 says of a sidecar is said of somebody else here.
fn as_external(error: Error) -> Error {
    let reason = match error.reason {
        Reason::RemoteUnreachable => Reason::ExternalUnreachable,
        Reason::RemoteReset => Reason::ExternalReset,
        other => other,
    };
    Error { reason, ..error }
}

/// Connects for a tunnel.
pub(super) async fn open(worker: &Worker, target: &Target, stream: &Stream) -> Result<TcpStream, Error> {
    dial(worker, target, stream).await
}

/// Carries an open tunnel. To a TLS port its first bytes have to be a ClientHello for the host that was asked for: until
/// then not one byte goes out.
pub(super) async fn carry(
    sidecar: Arc<Sidecar>,
    stream: Box<Stream>,
    target: Arc<Target>,
    mut near: Io,
    far: TcpStream,
    limits: Arc<Limits>,
) {
    if target.port.protocol != Protocol::Tls {
        return relay(stream, near, Io::tcp(far), &limits).await;
    }
    let mut far = Io::tcp(far);
    let hello = crate::runtime::select! {
        hello = detect::read_server_name(&mut near, Bytes::new(), limits.handshake) => Some(hello),
        () = poll_fn(|cx| stream.poll_revoked(cx)) => None,
    };
    let mismatch = |why: &str| (why.to_owned(), End::Failed(Reason::SniMismatch));
    let (why, end) = match hello {
        None => ("the policy changed".to_owned(), End::Revoked),
        Some(Err(error)) => (error.to_string(), End::Failed(Reason::Canceled)),
        Some(Ok(Hello { name, bytes, expired })) => match name {
            ServerName::Read(Some(name)) if target.is_for(name.name()) => {
                return relay(stream, Rewound::new(bytes, near), far, &limits).await;
            }
            // Its address is all that the document says of it, and all that was asked for.
            ServerName::Read(_) if target.is_redirected && target.port.hosts.is_empty() => {
                return relay(stream, Rewound::new(bytes, near), far, &limits).await;
            }
            ServerName::Read(Some(name)) => mismatch(&format!("the ClientHello is for {}", name.name())),
            ServerName::Read(None) => mismatch("the ClientHello names no host (SNI)"),
            ServerName::Unread if expired => {
                sidecar.metrics.limit("handshake");
                mismatch("no whole ClientHello in time")
            }
            ServerName::Unread => mismatch("this is no ClientHello"),
        },
    };
    if log::FAILURES.admits(Reason::SniMismatch.label()) {
        let (service, host) = (&target.port.service, target.host.name());
        tracing::info!(%service, host, why, "a tunnel out of the mesh is reset");
    }
    near.reset();
    far.reset();
    stream.finish(end);
}

impl Target {
    /// Whether a TLS name is that of this call: of the host asked for, or of the service's if it was asked for by its own
    /// name.
    fn is_for(&self, name: &str) -> bool {
        if self.port.hosts.is_empty() || self.port.has_host(self.host.name()) {
            return name == self.host.name();
        }
        self.port.has_host(name)
    }
}
