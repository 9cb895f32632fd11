//! Who is let in before anything is computed for them: a place among those in flight, and a pace for each address, each certificate,
//! each lineage and each id.
//!
//! A replica is known by the certificate of its connection, and by its lineage once the store has been asked: a certificate renewed
//! in a hurry does not bring a fresh allowance. Many replicas share an id, so the id's own pace is as wide as a whole mesh in an
//! emergency needs, and keeps one id from taking all of the CA.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postern_svid::{PeerSvid, SpiffeId};

use super::{IssueError, Issuer};
use crate::limits::{Buckets, RetryAfter};
use crate::lineage::LineageId;
use crate::metrics::{Metrics, Shed};

/// Requests being worked on. Each takes a thread.
pub(super) const IN_FLIGHT: usize = 256;
/// Per address, before anything is proven.
const STRANGER: (u32, u32) = (20, 50);
/// Per certificate of a connection, and per lineage: a sidecar renews twice in an emergency, and retries.
const REPLICA: (u32, u32) = (5, 20);
/// Per id, of all its replicas together: what the control plane spreads an emergency's renewals to, and not all that the CA can do.
const ID: (u32, u32) = (500, 1_000);
/// What is counted one by one.
const COUNTED: usize = 16_384;

/// What is counted of each caller.
pub(super) struct Admission {
    strangers: Buckets<IpAddr>,
    replicas: Replicas,
    lineages: Buckets<LineageId>,
    in_flight: Arc<AtomicUsize>,
}

impl Admission {
    pub(super) fn new() -> Self {
        Self {
            strangers: Buckets::new(STRANGER.0, STRANGER.1, COUNTED),
            replicas: Replicas::new(REPLICA),
            lineages: Buckets::new(REPLICA.0, REPLICA.1, COUNTED),
            in_flight: Arc::default(),
        }
    }

    fn take(&self, source: IpAddr, peer: Option<&PeerSvid>, now: Instant) -> Result<Permit, Full> {
        match peer {
            Some(peer) => self.replicas.take(peer, now)?,
            None => self.strangers.take(source, now).map_err(|after| Full { limit: "source", after })?,
        }
        Permit::take(&self.in_flight, IN_FLIGHT).ok_or_else(Full::in_flight)
    }
}

impl Issuer {
    /// Asks for a place, before anything costs anything.
    pub fn admit(&self, source: IpAddr, peer: Option<&PeerSvid>) -> Result<Permit, IssueError> {
        let taken = self.admission.take(source, peer, self.clock.monotonic());
        taken.map_err(|full| self.refused(IssueError::Busy(full.counted(&self.metrics))))
    }

    /// The pace of a lineage, as soon as it is known.
    pub(super) fn pace(&self, lineage: LineageId) -> Result<(), IssueError> {
        let taken = self.admission.lineages.take(lineage, self.clock.monotonic());
        let full = |after| IssueError::Busy(Full { limit: "lineage", after }.counted(&self.metrics));
        taken.map_err(full)
    }
}

/// The pace of callers with a certificate.
pub(crate) struct Replicas {
    certificates: Buckets<Vec<u8>>,
    ids: Buckets<SpiffeId>,
}

impl Replicas {
    /// `pace` for each certificate.
    pub(crate) fn new(pace: (u32, u32)) -> Self {
        Self { certificates: Buckets::new(pace.0, pace.1, COUNTED), ids: Buckets::new(ID.0, ID.1, COUNTED) }
    }

    pub(crate) fn take(&self, peer: &PeerSvid, now: Instant) -> Result<(), Full> {
        self.take_of(peer.serial().to_vec(), peer.id(), now)
    }

    pub(super) fn take_of(&self, serial: Vec<u8>, id: &SpiffeId, now: Instant) -> Result<(), Full> {
        // The certificate first: one that is too fast takes nothing from the others of its id.
        let taken = self.certificates.take(serial, now);
        taken.map_err(|after| Full { limit: "certificate", after })?;
        self.ids.take(id.clone(), now).map_err(|after| Full { limit: "id", after })
    }
}

/// Which limit was met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full {
    limit: &'static str,
    after: RetryAfter,
}

impl Full {
    /// No place is free.
    pub(crate) fn in_flight() -> Self {
        Self { limit: "in_flight", after: RetryAfter(Duration::from_secs(1)) }
    }

    /// When to come back; the limit is counted.
    pub(crate) fn counted(self, metrics: &Metrics) -> RetryAfter {
        metrics.shed.get_or_create(&Shed { limit: self.limit }).inc();
        self.after
    }
}

/// A request's place among those in flight; dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// One more of `most`, counted in `taken`.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let before = taken.fetch_add(1, Ordering::AcqRel);
        let permit = Self(taken.clone());
        (before < most).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
