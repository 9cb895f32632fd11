//! What all parts of one sidecar share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postern_svid::Clock;
use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::capture::Capture;
use crate::config::Config;
use crate::connections::{End, Entry, Registry};
use crate::decision_log::{DecisionLogger, Note};
use crate::decisions::DecisionLog;
use crate::documents::glass::Glass;
use crate::documents::{History, Steering};
use crate::drain::{Drain, Phase};
use crate::error::Reason;
use crate::http::outbound::Originate;
use crate::jwt::Keyrings;
use crate::observe::log;
use crate::observe::metrics::{Dropped, Metrics};
use crate::pressure::Pressure;
use crate::resolve::Resolver;
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
    /// Where decisions are written to, if they are.
    pub decision_log: Option<DecisionLogger>,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether connections are redirected as they should be.
    pub capture: Capture,
    /// Whether it is leaving.
    pub drain: Drain,
    /// The last generations and what became of the last load.
    pub history: Mutex<History>,
    /// Where operators ask for earlier documents, and for glass to be broken.
    pub steering: Steering,
    /// What is open that is closed otherwise.
    pub glass: Glass,
    /// What the agent says of itself.
    pub agent: Mutex<Option<postern_agent::Observer>>,
    /// How tight memory and descriptors are.
    pub pressure: Pressure,
    /// The turn of a long page of the admin endpoint.
    pub heavy_page: Arc<Semaphore>,
    /// What is in flight.
    pub admission: Admission,
    /// The keys that tokens are verified with.
    pub keyrings: Keyrings,
    started: Instant,
    /// Names outside of the mesh.
    pub resolver: Resolver,
    /// TLS to what is outside of the mesh.
    pub originate: Originate,
    lost_worker: AtomicBool,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("identity", &self.config.identity).finish_non_exhaustive()
    }
}

impl Sidecar {
    /// A sidecar that knows its configuration and nothing else.
    pub fn new(config: Config, clock: Arc<dyn Clock>, instance: u32) -> Self {
        let started = clock.monotonic();
        let drain = Drain::new(config.limits.drain_min, config.limits.drain_max);
        let snapshots = Snapshots::new(config.limits.clone());
        let decision_log = config.decision_log.as_ref().map(DecisionLogger::new);
        Self {
            decision_log,
            config,
            clock,
            snapshots,
            registry: Registry::default(),
            decisions: DecisionLog::new(instance),
            metrics: Metrics::default(),
            capture: Capture::default(),
            drain,
            history: Mutex::new(History::default()),
            steering: Steering::default(),
            glass: Glass::default(),
            agent: Mutex::new(None),
            pressure: Pressure::default(),
            heavy_page: Arc::new(Semaphore::new(1)),
            admission: Admission::default(),
            keyrings: Keyrings::default(),
            started,
            resolver: Resolver::default(),
            originate: Originate::default(),
            lost_worker: AtomicBool::new(false),
        }
    }

    /// How long it runs: the time of rate limits, which never goes backwards.
    pub fn age(&self) -> Duration {
        self.clock.monotonic().saturating_duration_since(self.started)
    }

    /// Whether a worker accepts no longer although it should.
    pub fn has_lost_worker(&self) -> bool {
        self.lost_worker.load(Ordering::Relaxed)
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
        if let (Some(log), Some(id)) = (&self.decision_log, entry.logged()) {
            let note = Note::End {
                id,
                at: self.clock.wall(),
                status: entry.status(),
                lasted: entry.since.elapsed(),
                bytes: entry.response_bytes(),
                outcome,
            };
            if !log.offer(note) {
                self.metrics.decision_dropped[Dropped::Queue as usize].inc();
            }
        }
        let (method, path) = entry.facts.method_and_path();
        tracing::debug!(
            target: "postern::access",
            direction = direction.label(),
            peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str()),
            destination = entry.facts.destination.as_deref().unwrap_or("-"),
            port = entry.facts.port,
            method,
            path = &*log::path(path),
            status = entry.status(),
            bytes = entry.response_bytes(),
            seconds,
            outcome,
            "ended"
        );
    }
}

/// A worker that should accept. However it comes to its end (no listener, a panic), the sidecar leaves if nobody told it
/// to: callers in the queue of a listener that nobody serves would wait without an answer.
#[derive(Debug)]
pub struct Accepting(Arc<Sidecar>);

impl Accepting {
    /// A worker that begins.
    pub fn new(sidecar: &Arc<Sidecar>) -> Self {
        Self(Arc::clone(sidecar))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if self.0.drain.phase() != Phase::Closing {
            tracing::error!("a worker accepts no longer: the sidecar leaves, to be started anew");
            self.0.lost_worker.store(true, Ordering::Relaxed);
            self.0.drain.begin();
        }
    }
}
