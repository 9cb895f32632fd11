//! A redirected call: the address that the workload connected to says which service it wants. Whatever a request calls
//! itself, it goes to that service.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use postern_policy::norm::CanonHost;
use postern_policy::{Protocol, ServicePort};

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

impl Target {
    /// The service that a connection to `to` is for. A request is addressed to the host that it names, as ever; which
    /// service that goes to is not its choice.
    pub(super) fn at(
        sidecar: &Sidecar,
        snapshot: &Snapshot,
        to: SocketAddr,
        request: Option<(&CanonHost, &Request<Body>)>,
    ) -> Result<Self, Error> {
        let generation = snapshot
            .policy
            .as_ref()
            .ok_or_else(|| Error::new(Side::Us, snapshot.without_policy(), "no documents are in force"))?;
        let services = generation.services();
        let place = services
            .at(to)
            .filter(|_| !sidecar.config.is_own_door(to))
            .ok_or_else(|| unknown(sidecar, to))?;
        let detail =
            || format!("{} port {} is {}", place.port.service, place.port.port, place.port.protocol.as_str());
        place.port.protocol.carries(request.is_none()).map_err(|why| Error::not_asked(why, detail()))?;
        let mut port = place.port.clone();
        if let Some(endpoint) = place.endpoint {
            port.endpoints = [endpoint.clone()].into();
        }
        let path_options = port.paths.options(generation.defaults().path);
        let name = own_name(&port)?;
        let (host, asked) = match request {
            None => (name.clone(), name),
            Some((host, request)) => {
                if path_options.preserve_raw {
                    authority::check_raw(request.uri(), request.headers())?;
                }
                let asked = named(sidecar, snapshot, &port, host, name)?;
                (host.clone(), asked)
            }
        };
        let addresses = if port.external { vec![to.ip()] } else { Vec::new() };
        let unresolved = String::new();
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
    if !port.hosts.iter().any(|known| **known == *host.name()) {
        let detail = format!("{host} is none of the hosts of {}, whose address was called", port.service);
        return Err(Error::new(Side::Peer, Reason::UnknownService, detail));
    }
    let services = snapshot.policy.as_ref().map(|generation| generation.services());
    let found = services.and_then(|services| services.find(host, port.port, &sidecar.config.namespace));
    let is_same = found.is_some_and(|found| found.service == port.service);
    Ok(if is_same { host.clone() } else { name })
}

/// Carries a connection whose bytes nobody reads: to a sidecar as a tunnel of the mesh, or outside as it is.
pub async fn tunnel(worker: Arc<Worker>, connection: Arc<Connection>, to: SocketAddr, mut near: Io) {
    let mut registered = None;
    match open(&worker, &connection, to, &mut registered).await {
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
    registered: &mut Option<Box<Stream>>,
) -> Result<(Box<Stream>, Arc<Target>, Far), Error> {
    let sidecar = &worker.sidecar;
    let limits = sidecar.snapshots.limits();
    let mut snapshot = sidecar.snapshots.held();
    let (mut stream, target) = authorize::register(sidecar, connection, &mut snapshot, |snapshot| {
        let target = Target::at(sidecar, snapshot, to, None)?;
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
