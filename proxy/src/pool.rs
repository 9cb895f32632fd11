//! Connections to other sidecars: few, shared, and never older than the own certificate.
//!
//! One connection carries many streams, so a handshake is paid once and every new connection proves both identities
//! anew. A slot is one endpoint under one expectation of who answers; tunnels have slots of their own, because a slow
//! tunnel must not cost requests their connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use postern_policy::{Endpoint, Transport};
use postern_svid::{Role, tls};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::connections::Direction;
use crate::error::{Error, Reason, Side};
use crate::http::h2::{Connection, Settings};
use crate::limits::Limits;
use crate::net;
use crate::observe::metrics::LimitHits;
use crate::runtime::Hashing;
use crate::sidecar::Sidecar;
use crate::snapshot::MeshIdentity;
use crate::trust::Proof;

mod failures;

use failures::Failures;

/// What a connection carries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// HTTP requests.
    Http,
    /// CONNECT streams.
    Tunnel,
}

/// Dials at a time after a renewal.
const DIALS: usize = 32;
/// The mesh transport, and plain mutual TLS behind it.
const ALPN_POSTERN: [&[u8]; 2] = [b"postern/1", b"h2"];
const ALPN_FOREIGN: [&[u8]; 1] = [b"h2"];

/// One worker's connections to other sidecars.
#[derive(Debug, Default)]
pub struct MeshPool {
    slots: Mutex<Slots>,
}

/// Several slots at one address differ in who is expected there.
type Slots = HashMap<(SocketAddr, Kind), Vec<Arc<Slot>>, Hashing>;

#[derive(Debug)]
struct Slot {
    endpoint: Endpoint,
    open: Mutex<Vec<Open>>,
    /// Held while dialling: a thousand callers make one handshake. Whoever waited through one that failed shares its error
    /// instead of repeating it.
    dialing: tokio::sync::Mutex<()>,
    failures: Mutex<Failures>,
}

#[derive(Clone, Debug)]
struct Open {
    /// The own identity's generation that it was opened under.
    generation: u64,
    connection: Connection,
    /// What the peer has proven itself with.
    proof: Proof,
}

impl MeshPool {
    /// A connection to `endpoint` under the own identity in force, opened if need be.
    pub async fn connection(
        &self,
        sidecar: &Sidecar,
        endpoint: &Endpoint,
        kind: Kind,
    ) -> Result<Connection, Error> {
        let own = own_identity(sidecar)?;
        let most = most_streams(&sidecar.snapshots.load().limits);
        let slot = self.slot(endpoint, kind);
        if let Some(connection) = slot.find(own.identity.generation, most) {
            return Ok(connection);
        }
        let failures = slot.failures.lock().count();
        let _dialing = slot.dialing.lock().await;
        if let Some(connection) = slot.find(own.identity.generation, most) {
            return Ok(connection);
        }
        if let Some(error) = slot.failures.lock().since(failures) {
            return Err(error);
        }
        slot.dial(sidecar, &own).await
    }

    /// Streams that run towards `endpoint` from this worker.
    pub fn in_flight(&self, endpoint: &Endpoint, kind: Kind) -> usize {
        let address = SocketAddr::new(endpoint.address, endpoint.mesh_port);
        let slots = self.slots.lock();
        let at_address = slots.get(&(address, kind));
        let streams = |slot: &Arc<Slot>| -> usize {
            slot.open.lock().iter().map(|open| open.connection.in_flight()).sum()
        };
        at_address.map_or(0, |slots| slots.iter().map(streams).sum())
    }

    /// Whether dialling `endpoint` failed lately, so that others are asked first.
    pub fn is_resting(&self, endpoint: &Endpoint, kind: Kind) -> bool {
        let address = SocketAddr::new(endpoint.address, endpoint.mesh_port);
        let slots = self.slots.lock();
        let slot =
            slots.get(&(address, kind)).and_then(|all| all.iter().find(|one| one.endpoint == *endpoint));
        slot.is_some_and(|slot| slot.failures.lock().is_resting(slot.dialing.try_lock().is_err()))
    }

    /// After a renewal: every peer with live streams gets a connection under the new certificate, so that it may keep
    /// the old ones past the old certificate's end. To be called again and again: a dial that failed is tried again, and
    /// what has become superfluous is let go.
    pub async fn renew(&self, sidecar: &Sidecar) {
        let Ok(own) = own_identity(sidecar) else { return };
        let generation = own.identity.generation;
        let waiting: Vec<Arc<Slot>> = {
            let slots = self.slots.lock();
            slots.values().flatten().filter(|slot| slot.owes_proof(generation)).cloned().collect()
        };
        // Side by side: a peer that does not answer must not cost another its proof.
        let dials = waiting.iter().map(|slot| async {
            let _dialing = slot.dialing.lock().await;
            if slot.owes_proof(generation) {
                // Failing here costs nothing yet: there is time until the old certificate ends.
                let _ = slot.dial(sidecar, &own).await;
            }
        });
        futures_util::stream::iter(dials).for_each_concurrent(DIALS, |dial| dial).await;
        self.sweep(generation);
    }

    /// Lets go of connections that are of no use any more, and of endpoints of which there is nothing to know.
    fn sweep(&self, generation: u64) {
        self.slots.lock().retain(|_, slots| {
            slots.retain(|slot| {
                slot.sweep(generation);
                // Forgotten, one that failed would be asked as if it never had.
                Arc::strong_count(slot) > 1
                    || !slot.open.lock().is_empty()
                    || slot.failures.lock().are_recent()
            });
            !slots.is_empty()
        });
    }

    /// Cuts every connection to a peer that the trust bundle in force no longer vouches for, with all that runs on it.
    pub async fn hold_to_trust(&self, sidecar: &Sidecar) {
        let slots: Vec<Arc<Slot>> = self.slots.lock().values().flatten().cloned().collect();
        for slot in slots {
            slot.hold_to_trust(sidecar);
            // Signatures are verified here, on a thread that forwards.
            tokio::task::yield_now().await;
        }
    }

    fn slot(&self, endpoint: &Endpoint, kind: Kind) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let address = SocketAddr::new(endpoint.address, endpoint.mesh_port);
        let at_address = slots.entry((address, kind)).or_default();
        if let Some(slot) = at_address.iter().find(|slot| slot.endpoint == *endpoint) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot {
            endpoint: endpoint.clone(),
            open: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            failures: Mutex::default(),
        });
        at_address.push(Arc::clone(&slot));
        slot
    }
}

impl Open {
    /// Whether new streams may be put on it.
    fn is_usable(&self, generation: u64) -> bool {
        self.generation == generation && self.connection.is_open()
    }
}

impl Slot {
    /// Streams run on connections under an older certificate, and the peer has not been shown the one in force.
    fn owes_proof(&self, generation: u64) -> bool {
        let open = self.open.lock();
        let mut older = open.iter().filter(|open| open.generation != generation);
        older.any(|open| open.connection.in_flight() > 0)
            && !open.iter().any(|open| open.is_usable(generation))
    }

    /// Lets go of what carries nothing and may carry nothing new. While streams run on an older connection, the newest
    /// proof stays open beside it, used or not: it is what keeps them alive at the far end.
    fn sweep(&self, generation: u64) {
        let mut open = self.open.lock();
        let newest = open.iter().filter(|open| open.connection.is_open()).map(|open| open.generation).max();
        let live = open.iter().any(|open| open.connection.in_flight() > 0);
        open.retain(|open| {
            open.connection.in_flight() > 0
                || open.is_usable(generation)
                || (live && open.connection.is_open() && Some(open.generation) == newest)
        });
    }

    fn find(&self, generation: u64, most: usize) -> Option<Connection> {
        self.sweep(generation);
        let open = self.open.lock();
        open.iter()
            .filter(|open| {
                let connection = &open.connection;
                open.is_usable(generation) && connection.in_flight() < most && connection.has_room()
            })
            .min_by_key(|open| open.connection.in_flight())
            .map(|open| open.connection.clone())
    }

    /// Cuts what rests on a root that is gone. What was proven under the bundles in force is not asked about again.
    fn hold_to_trust(&self, sidecar: &Sidecar) {
        let snapshot = sidecar.snapshots.load();
        let Some(own) = &snapshot.identity else { return };
        let now = sidecar.clock.wall();
        self.open.lock().retain(|open| {
            if open.proof.generation() == own.identity.generation {
                return true;
            }
            let Err(error) = open.proof.verify(&own.identity.bundles, now) else { return true };
            sidecar.metrics.distrusted[Direction::Outbound as usize].inc();
            tracing::warn!(
                peer = ?self.endpoint.identities,
                address = %self.endpoint.address,
                %error,
                "the trust bundle in force no longer vouches for a peer: the connection to it is cut"
            );
            open.connection.cut();
            false
        });
    }

    async fn dial(&self, sidecar: &Sidecar, own: &MeshIdentity) -> Result<Connection, Error> {
        match dial(sidecar, own, &self.endpoint).await {
            Ok((connection, proof)) => {
                let generation = own.identity.generation;
                self.open.lock().push(Open { generation, connection: connection.clone(), proof });
                self.failures.lock().succeeded();
                let in_force = sidecar.snapshots.load().identity.as_ref().map(|own| own.identity.generation);
                if in_force != Some(generation) {
                    // A root may have gone while this was dialled.
                    self.hold_to_trust(sidecar);
                }
                Ok(connection)
            }
            Err(error) => {
                self.failures.lock().failed(&error);
                Err(error)
            }
        }
    }
}

/// The identity in force now, whatever the request began under: a connection is many requests', and one that waited long
/// must not show a certificate that has ended meanwhile.
fn own_identity(sidecar: &Sidecar) -> Result<Arc<MeshIdentity>, Error> {
    let snapshot = sidecar.snapshots.load();
    let own = snapshot
        .identity
        .as_ref()
        .ok_or_else(|| Error::unsent(Side::Us, Reason::NoIdentity, "no SVID yet"))?;
    if own.identity.svid.not_after() <= sidecar.clock.wall() {
        return Err(Error::unsent(Side::Us, Reason::NoIdentity, "the own SVID has expired"));
    }
    Ok(Arc::clone(own))
}

async fn dial(
    sidecar: &Sidecar,
    own: &MeshIdentity,
    endpoint: &Endpoint,
) -> Result<(Connection, Proof), Error> {
    let limits = sidecar.snapshots.limits();
    let address = SocketAddr::new(endpoint.address, endpoint.mesh_port);
    let failed = |reason, detail: String| Error::unsent(Side::Remote, reason, format!("{address}: {detail}"));
    sidecar.metrics.mesh_dials.inc();
    let alpn: &[&[u8]] = match endpoint.transport {
        Transport::Postern => &ALPN_POSTERN,
        Transport::Mtls => &ALPN_FOREIGN,
    };
    let config = tls::client_config(
        Some(&own.identity.svid),
        &own.identity.bundles,
        &endpoint.identities,
        Arc::clone(&sidecar.clock),
        alpn,
    )
    .map_err(|error| failed(Reason::Internal, error.to_string()))?;
    let stream = match timeout(limits.connect_mesh, net::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(Reason::RemoteUnreachable, error.to_string())),
        Err(_) => {
            sidecar.metrics.limit("connect_mesh");
            return Err(failed(Reason::RemoteUnreachable, "no answer to connect".to_owned()));
        }
    };
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = match timeout(limits.handshake, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let (reason, detail) = handshake_failure(&error);
            return Err(failed(reason, detail));
        }
        Err(_) => {
            sidecar.metrics.limit("handshake");
            return Err(failed(Reason::RemoteUnreachable, "the TLS handshake does not end".to_owned()));
        }
    };
    let chosen = stream.get_ref().1.alpn_protocol();
    if !chosen.is_some_and(|chosen| alpn.contains(&chosen)) {
        return Err(failed(Reason::RemoteIdentity, "the peer speaks none of our protocols".to_owned()));
    }
    let proven = stream.get_ref().1.peer_certificates();
    let proof = Proof::new(sidecar, proven, Role::Server, own.identity.generation)
        .map_err(|error| failed(Reason::RemoteIdentity, error.to_string()))?;
    let connection = start(stream, endpoint.transport, &limits, &sidecar.metrics.limits).await?;
    Ok((connection, proof))
}

/// What a failed handshake says about the far end: nobody of the mesh there, or somebody else.
fn handshake_failure(error: &std::io::Error) -> (Reason, String) {
    let text = tls::explain(error);
    match tls::refusal(error) {
        "not_tls" => {
            (Reason::RemoteUnreachable, format!("it does not speak TLS ({text}): is it a sidecar's port?"))
        }
        "closed" | "timeout" => (Reason::RemoteUnreachable, format!("TLS: {text}")),
        _ => (Reason::RemoteIdentity, format!("TLS: {text}")),
    }
}

/// Streams on one connection before another is opened: fewer than the far end allows, which is configured as this one is.
fn most_streams(limits: &Limits) -> usize {
    limits.mesh_streams - limits.mesh_streams / 5
}

/// HTTP/2 on a connection that both sides have proven themselves on. A sidecar's limit of streams is known beforehand; who
/// else answers has to name its own first, or a burst before that would be past it.
async fn start<I>(io: I, transport: Transport, limits: &Limits, hits: &LimitHits) -> Result<Connection, Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = Settings::mesh(limits);
    match transport {
        Transport::Postern => Connection::handshake(io, settings, Side::Remote, hits).await,
        Transport::Mtls => {
            let settings = Settings { first_streams: 0, ..settings };
            let connection = Connection::handshake(io, settings, Side::Remote, hits).await?;
            match timeout(limits.handshake, connection.settled()).await {
                Ok(settled) => settled.map(|()| connection),
                Err(_) => {
                    hits.hit("handshake");
                    let detail = "the peer never says how many streams it allows (HTTP/2 SETTINGS)";
                    Err(Error::unsent(Side::Remote, Reason::RemoteUnreachable, detail))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn what_is_no_tls_is_unreachable_and_no_reason_is_a_structure() {
        use rustls::{CertificateError, Error as Tls, InvalidMessage, OtherError};
        let failure = |error: Tls| handshake_failure(&std::io::Error::other(error));
        let (reason, detail) = failure(Tls::InvalidMessage(InvalidMessage::InvalidContentType));
        assert_eq!(reason, Reason::RemoteUnreachable);
        assert!(detail.contains("does not speak TLS"), "{detail}");
        let found = Arc::new(std::io::Error::other("the peer is spiffe://td/ns/a/sa/b"));
        let wrong = Tls::InvalidCertificate(CertificateError::Other(OtherError(found)));
        assert_eq!(
            failure(wrong),
            (Reason::RemoteIdentity, "TLS: the peer is spiffe://td/ns/a/sa/b".to_owned())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_foreign_endpoint_names_its_limit_before_the_first_stream() {
        let (limits, metrics) = (Limits::default(), Metrics::default());
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut builder = h2::server::Builder::new();
            let mut far = builder.max_concurrent_streams(2).handshake::<_, bytes::Bytes>(far).await.unwrap();
            while let Some(Ok(_)) = far.accept().await {}
        });
        let connection = start(near, Transport::Mtls, &limits, &metrics.limits).await.unwrap();
        let mut open = Vec::new();
        while connection.has_room() && open.len() < 10 {
            let head = http::Request::get("http://orders.shop/").body(()).unwrap();
            open.push(connection.open(head, true).await.unwrap());
        }
        assert_eq!(open.len(), 2, "as many as the peer allows");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sidecar_that_answers_no_ping_is_counted() {
        let (limits, metrics) = (Limits::default(), Metrics::default());
        let (near, _far) = tokio::io::duplex(1 << 16);
        let connection = start(near, Transport::Postern, &limits, &metrics.limits).await.unwrap();
        let head = http::Request::get("http://orders.shop/").body(()).unwrap();
        let _open = connection.open(head, true).await.unwrap();
        tokio::time::sleep(limits.ping_interval + limits.ping_timeout + Duration::from_secs(1)).await;
        assert!(!connection.is_open() && metrics.render().contains("limit=\"ping\"} 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_foreign_endpoint_that_never_names_it_is_given_up() {
        let (limits, metrics) = (Limits::default(), Metrics::default());
        let (near, _far) = tokio::io::duplex(1 << 16);
        let begun = Instant::now();
        let error = start(near, Transport::Mtls, &limits, &metrics.limits).await.unwrap_err();
        assert_eq!((error.reason, begun.elapsed().as_secs()), (Reason::RemoteUnreachable, 5));
        assert!(metrics.render().contains("limit=\"handshake\"} 1"));
    }
}
