//! What all parts of one sidecar share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use postern_svid::Clock;

use crate::config::Config;
use crate::connections::{End, Entry, Registry};
use crate::decisions::DecisionLog;
use crate::documents::History;
use crate::drain::Drain;
use crate::error::{Error, Reason, Side};
use crate::limits::Limits;
use crate::observe::metrics::Metrics;
use crate::pressure::Pressure;
use crate::snapshot::Snapshots;

/// The sidecar's shared state. The data path reads it without waiting for anyone.
pub struct Sidecar {
    /// What it was told.
    pub config: Config,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is in force.
    pub snapshots: Snapshots,
    /// What lives.
    pub registry: Registry,
    /// What was decided.
    pub decisions: DecisionLog,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether it is leaving.
    pub drain: Drain,
    /// The last generations and what became of the last load.
    pub history: Mutex<History>,
    /// What the agent says of itself.
    pub agent: Mutex<Option<postern_agent::Observer>>,
    /// How tight memory and descriptors are.
    pub pressure: Pressure,
    in_flight: AtomicUsize,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("identity", &self.config.identity).finish_non_exhaustive()
    }
}

impl Sidecar {
    /// A sidecar that knows its configuration and nothing else.
    pub fn new(config: Config, clock: Arc<dyn Clock>, instance: u32) -> Self {
        let drain = Drain::new(config.limits.drain_min, config.limits.drain_max);
        let snapshots = Snapshots::new(config.limits.clone());
        Self {
            config,
            clock,
            snapshots,
            registry: Registry::default(),
            decisions: DecisionLog::new(instance),
            metrics: Metrics::default(),
            drain,
            history: Mutex::new(History::default()),
            agent: Mutex::new(None),
            pressure: Pressure::default(),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// A place among the requests in flight, if one is free.
    pub fn admit(self: &Arc<Self>, limits: &Limits) -> Result<Admitted, Error> {
        let admitted = Admitted(Arc::clone(self));
        // Counted first: the guard above takes back what is refused below.
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if !self.pressure.allows_streams(limits) {
            self.metrics.limit("memory");
            return Err(Error::unsent(Side::Us, Reason::Overloaded, "memory is nearly full"));
        }
        if before >= limits.in_flight {
            self.metrics.limit("in_flight");
            return Err(Error::unsent(Side::Us, Reason::Overloaded, "limits.inFlight is reached"));
        }
        Ok(admitted)
    }

    /// Accounts for a stream that ended.
    pub fn stream_ended(&self, entry: &Entry, end: End) {
        let direction = entry.connection.direction;
        let seconds = entry.since.elapsed().as_secs_f64();
        self.metrics.request(direction, entry.status(), seconds);
        self.metrics.response_bytes[direction as usize].inc_by(entry.response_bytes());
        let outcome = match end {
            End::Complete => "complete",
            End::Revoked => {
                self.metrics.failure(direction, Reason::Revoked);
                Reason::Revoked.label()
            }
            End::Failed(reason) => {
                self.metrics.failure(direction, reason);
                reason.label()
            }
        };
        let (method, path) = entry.facts.method_and_path();
        tracing::debug!(
            target: "postern::access",
            direction = direction.label(),
            peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str()),
            destination = entry.facts.destination.as_deref().unwrap_or("-"),
            port = entry.facts.port,
            method,
            path,
            status = entry.status(),
            bytes = entry.response_bytes(),
            seconds,
            outcome,
            "ended"
        );
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct Admitted(Arc<Sidecar>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
