//! A redirected call: the address that the workload connected to says which service it wants. Whatever a request calls
//! itself, it goes to that service.
//!
//! Outside of the mesh many services have no address in any document, but hosts. Where a connection is to an address that
//! no document names, the host that it is for says which of these it wants; and it goes to where that host is, by a lookup
//! of our own, wherever the workload thought that it was. No service of the mesh is ever chosen so.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use postern_policy::norm::CanonHost;
use postern_policy::{Protocol, ServicePort};
use tokio::time::timeout;

use super::external::Resolved;
use super::{Target, external, open_tunnel};
use crate::authorize;
use crate::connections::{Asked, Connection, Direction, End, Facts, Operation, Stream};
use crate::error::{Error, Reason, Side};
use crate::http::authority;
use crate::http::body::Body;
use crate::http::h2::TunnelIo;
use crate::http::headers;
use crate::http::upgrade::Io;
use crate::inbound::relay;
use crate::net::TcpStream;
use crate::observe::log;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::tcp::Duplex as _;
use crate::worker::Worker;

/// What is spoken at this place, if a Service says so.
pub fn spoken_at(sidecar: &Sidecar, to: SocketAddr) -> Option<Protocol> {
    let snapshot = sidecar.snapshots.load();
    snapshot.policy.as_ref()?.services().at(to).map(|place| place.port.protocol)
}

/// Accounts for a connection that led nowhere.
pub fn refuse(sidecar: &Sidecar, to: SocketAddr) {
    let error = unknown(sidecar, to);
    sidecar.metrics.failure(Direction::Outbound, error.reason);
    if log::FAILURES.admits(error.reason.label()) {
        tracing::info!(%error, "an outbound call failed");
    }
}

fn unknown(sidecar: &Sidecar, to: SocketAddr) -> Error {
    let reason = if sidecar.config.is_own_door(to) { Reason::Loop } else { Reason::UnknownService };
    Error::new(Side::Peer, reason, format!("no Service has the address {to}, and no endpoint is there"))
}

/// Which services may be meant at an address that no document names.
#[derive(Debug, Default)]
pub struct Nameless {
    /// Some that are asked by requests.
    pub http: bool,
    /// Some whose callers bring TLS of their own.
    pub tls: bool,
    /// The hosts of those of which nothing is read, so that the address has to tell.
    pub tcp: Vec<Box<str>>,
}

/// Hosts that are looked up to find one by its address.
const HOSTS: usize = 16;
/// For looking them up.
const LOOKUP: Duration = Duration::from_secs(5);

/// What may be meant at this address.
pub fn nameless(sidecar: &Sidecar, to: SocketAddr) -> Nameless {
    let mut all = Nameless::default();
    let snapshot = sidecar.snapshots.load();
    let Some(generation) = &snapshot.policy else { return all };
    if sidecar.config.is_own_door(to) {
        return all;
    }
    for port in generation.services().nameless(to.port(), &sidecar.config.namespace) {
        match port.protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => all.http = true,
            Protocol::Tls => all.tls = true,
            Protocol::Tcp => {
                let written = port.hosts.iter().filter(|host| !host.starts_with("*."));
                all.tcp.extend(written.take(HOSTS - all.tcp.len()).cloned());
            }
        }
    }
    all
}

/// A service outside that a connection is for, by one of its hosts.
pub struct Named {
    host: CanonHost,
    resolved: Resolved,
}

/// The service of which this is a host.
pub async fn by_name(sidecar: &Sidecar, to: SocketAddr, host: CanonHost) -> Option<Named> {
    let resolved = resolve(sidecar, to, &host).await?;
    Some(Named { host, resolved })
}

/// The service of one of `hosts`, if that is where the connection was made to.
pub async fn by_address(sidecar: &Sidecar, to: SocketAddr, hosts: &[Box<str>]) -> Option<Named> {
    let found = async {
        for host in hosts {
            let Ok(host) = CanonHost::parse(host) else { continue };
            match resolve(sidecar, to, &host).await {
                Some(resolved) if resolved.has(to.ip()) => return Some(Named { host, resolved }),
                _ => {}
            }
        }
        None
    };
    timeout(LOOKUP, found).await.ok().flatten()
}

/// Looks up a host to which a connection was redirected, if no document names the address.
pub(super) async fn resolve(sidecar: &Sidecar, to: SocketAddr, host: &CanonHost) -> Option<Resolved> {
    {
        let snapshot = sidecar.snapshots.load();
        let services = snapshot.policy.as_ref()?.services();
        if !services.have_hosts() || services.at(to).is_some() || sidecar.config.is_own_door(to) {
            return None;
        }
        services
            .find(host, to.port(), &sidecar.config.namespace)
            .filter(|port| port.has_host(host.name()))?;
    }
    external::resolve(sidecar, host, to.port()).await
}

/// What a redirected connection says of itself.
#[derive(Clone, Copy)]
pub(super) enum Called<'a> {
    /// Nothing that is read, or the host that its TLS or its address is for.
    As(Option<&'a CanonHost>),
    /// A request, to this host.
    By(&'a CanonHost, &'a Request<Body>),
}

impl Target {
    /// The service that a connection to `to` is for. A request is addressed to the host that it names, as ever; which
    /// service that goes to is not its choice, unless no document says what is at `to`.
    pub(super) fn at(
        sidecar: &Sidecar,
        snapshot: &Snapshot,
        to: SocketAddr,
        called: Called<'_>,
        resolved: Option<&Resolved>,
    ) -> Result<Self, Error> {
        let generation = snapshot
            .policy
            .as_ref()
            .ok_or_else(|| Error::new(Side::Us, snapshot.without_policy(), "no documents are in force"))?;
        let services = generation.services();
        let place = services.at(to);
        let (own_name, port, addresses) = if sidecar.config.is_own_door(to) {
            return Err(unknown(sidecar, to));
        } else if let Some(place) = place {
            let mut port = place.port.clone();
            if let Some(endpoint) = place.endpoint {
                port.endpoints = [endpoint.clone()].into();
            }
            let addresses = if port.external { vec![to.ip()] } else { Vec::new() };
            (own_name(&port)?, port, addresses)
        } else {
            let (Called::As(Some(host)) | Called::By(host, _)) = called else {
                return Err(unknown(sidecar, to));
            };
            let port = services
                .find(host, to.port(), &sidecar.config.namespace)
                .filter(|port| port.is_resolved() && port.has_host(host.name()))
                .ok_or_else(|| unknown(sidecar, to))?;
            let mut addresses = external::addresses(port, host, resolved);
            // The workload may have chosen well among them.
            addresses.sort_by_key(|address| *address != to.ip());
            (host.clone(), port.clone(), addresses)
        };
        let detail = || format!("{} port {} is {}", port.service, port.port, port.protocol.as_str());
        let is_tunnel = matches!(called, Called::As(_));
        port.protocol.carries(is_tunnel).map_err(|why| Error::not_asked(why, detail()))?;
        let path_options = port.paths.options(generation.defaults().path);
        let (host, asked) = match called {
            Called::As(_) => (own_name.clone(), own_name),
            Called::By(host, request) => {
                if path_options.preserve_raw {
                    authority::check_raw(request.uri(), request.headers())?;
                }
                let asked =
                    if place.is_some() { named(sidecar, snapshot, &port, host, own_name)? } else { own_name };
                (host.clone(), asked)
            }
        };
        let unresolved = match port.external && addresses.is_empty() {
            true => external::unresolved(resolved),
            false => String::new(),
        };
        Ok(Self { host, asked, is_redirected: true, port, path_options, addresses, unresolved })
    }
}

/// The name by which the documents lead to this port whatever a request says.
fn own_name(port: &ServicePort) -> Result<CanonHost, Error> {
    CanonHost::parse(&format!("{}.{}", port.service.name, port.service.namespace))
        .map_err(|error| Error::new(Side::Us, Reason::Internal, error.to_string()))
}

/// By which name rules know this call. Many hosts share one address outside of the mesh, so there a request must name one
/// of the service's own.
fn named(
    sidecar: &Sidecar,
    snapshot: &Snapshot,
    port: &ServicePort,
    host: &CanonHost,
    name: CanonHost,
) -> Result<CanonHost, Error> {
    if port.hosts.is_empty() {
        return Ok(name);
    }
    if !port.has_host(host.name()) {
        let detail = format!("{host} is none of the hosts of {}, whose address was called", port.service);
        return Err(Error::new(Side::Peer, Reason::UnknownService, detail));
    }
    let services = snapshot.policy.as_ref().map(|generation| generation.services());
    let found = services.and_then(|services| services.find(host, port.port, &sidecar.config.namespace));
    let is_same = found.is_some_and(|found| found.service == port.service);
    Ok(if is_same { host.clone() } else { name })
}

/// Carries a connection whose bytes nobody reads: to a sidecar as a tunnel of the mesh, or outside as it is.
pub async fn tunnel(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    to: SocketAddr,
    named: Option<Named>,
    mut near: Io,
) {
    let mut registered = None;
    match open(&worker, &connection, to, named.as_ref(), &mut registered).await {
        Ok((stream, target, Far::Mesh(far))) => {
            drop(target);
            let limits = worker.sidecar.snapshots.limits();
            relay(stream, near, Io::H2(far), &limits).await;
        }
        Ok((stream, target, Far::Outside(far))) => {
            let limits = worker.sidecar.snapshots.limits();
            external::carry(Arc::clone(&worker.sidecar), stream, target, near, far, limits).await;
        }
        Err(error) => {
            if error.reason != Reason::EgressDenied && log::FAILURES.admits(error.reason.label()) {
                tracing::info!(%error, %to, "an outbound call failed");
            }
            match registered {
                Some(stream) => {
                    let stream: Box<Stream> = stream;
                    stream.answered(error.reason.status().as_u16());
                    stream.finish(End::Failed(error.reason));
                }
                None => worker.sidecar.metrics.failure(connection.direction, error.reason),
            }
            near.reset();
        }
    }
}

enum Far {
    Mesh(TunnelIo),
    Outside(TcpStream),
}

async fn open(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    to: SocketAddr,
    named: Option<&Named>,
    registered: &mut Option<Box<Stream>>,
) -> Result<(Box<Stream>, Arc<Target>, Far), Error> {
    let sidecar = &worker.sidecar;
    let limits = sidecar.snapshots.limits();
    let mut snapshot = sidecar.snapshots.held();
    let (mut stream, target) = authorize::register(sidecar, connection, &mut snapshot, |snapshot| {
        let called = Called::As(named.map(|named| &named.host));
        let target = Target::at(sidecar, snapshot, to, called, named.map(|named| &named.resolved))?;
        let asked = Some(Asked {
            host: target.asked.clone(),
            port: target.port.port,
            external: target.port.external,
            addresses: target.addresses.clone(),
        });
        let destination = Some(target.port.service.to_string());
        Ok((Facts { port: target.port.target_port, operation: Operation::Tcp, destination, asked }, target))
    })?;
    let refused = authorize::call(sidecar, &stream, &snapshot).and_then(|judgement| judgement.refused);
    if let Some(reason) = refused {
        *registered = Some(stream);
        return Err(Error::new(Side::Peer, reason, "the policy says no"));
    }
    drop(snapshot);
    match sidecar.admit_to(&limits, &target.port.service) {
        Ok(admitted) => stream.hold(admitted),
        Err(error) => {
            *registered = Some(stream);
            return Err(error);
        }
    }
    let attempt = async {
        if target.port.external {
            return external::open(worker, &target, &stream).await.map(Far::Outside);
        }
        match open_tunnel(worker, &target, &stream).await? {
            Ok((_, far)) => Ok(Far::Mesh(far)),
            Err(response) => Err(told(&response)),
        }
    };
    let opened = crate::runtime::select! {
        opened = attempt => opened,
        () = poll_fn(|cx| stream.poll_revoked(cx)) => {
            Err(Error::new(Side::Us, Reason::Revoked, "the policy changed"))
        }
    };
    match opened {
        Ok(far) => {
            stream.answered(200);
            Ok((stream, Arc::new(target), far))
        }
        Err(error) => {
            *registered = Some(stream);
            Err(error)
        }
    }
}

/// What the far sidecar said instead of opening a tunnel.
fn told(response: &http::Response<Body>) -> Error {
    let said = response.headers().get(headers::POSTERN_ERROR);
    let reason = said
        .and_then(|label| Reason::from_label(label.as_bytes()))
        .map_or(Reason::RemoteReset, Reason::as_told);
    let decision = response.headers().get(headers::POSTERN_DECISION).and_then(|id| id.to_str().ok());
    let detail = format!("the far end answered {} (decision {})", response.status(), decision.unwrap_or("-"));
    Error::new(Side::Remote, reason, detail)
}
