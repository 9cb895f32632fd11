//! `/live`, `/ready` and `/metrics`: reads only, no secrets, no details.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use parking_lot::Mutex;
use postern_svid::Clock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::site::{self, Body};

/// Why a connection may be refused; each has its series from the start, so that a first refusal shows as a rise.
const REFUSALS: [&str; 11] = [
    "bundle_endpoint",
    "handshake_timeout",
    "handshakes",
    "handshakes_per_source",
    "health",
    "mesh_admin",
    "peer",
    "rate",
    "strangers",
    "strangers_per_source",
    "tls",
];

/// What the control plane knows of its own state.
pub(crate) struct Health {
    registry: Mutex<Registry>,
    refused: Family<Refused, Counter>,
    clock: Arc<dyn Clock>,
    /// How long a passed self-test counts.
    patience: Duration,
    test: bool,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    tested: Option<Instant>,
    failure: Option<&'static str>,
    /// The own certificate is due and its renewal has failed.
    own_overdue: bool,
    stopping: bool,
    /// What replicas share cannot be followed.
    frozen: bool,
    /// What a person should know although requests are served.
    degraded: Vec<&'static str>,
    /// What only an operator can bring.
    needed: Vec<&'static str>,
    /// Roots and revocations cannot be brought up to what the store has.
    trust_stuck: bool,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Refused {
    reason: &'static str,
}

impl Health {
    pub(crate) fn new(mut registry: Registry, clock: Arc<dyn Clock>, patience: Duration, test: bool) -> Self {
        let refused = Family::<Refused, Counter>::default();
        for reason in REFUSALS {
            drop(refused.get_or_create(&Refused { reason }));
        }
        registry.register(
            "postern_control_connections_refused",
            "Connections refused before any request",
            refused.clone(),
        );
        Self { registry: Mutex::new(registry), refused, clock, patience, test, last: Mutex::default() }
    }

    /// A connection did not get as far as a request.
    pub(crate) fn refused(&self, reason: &'static str) {
        debug_assert!(REFUSALS.contains(&reason), "{reason}");
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    /// The CA has just proven that it can issue, or that it cannot.
    pub(crate) fn tested(&self, failure: Option<&'static str>) {
        let mut last = self.last.lock();
        last.failure = failure;
        if failure.is_none() {
            last.tested = Some(self.clock.monotonic());
        }
    }

    /// Whether the control plane's own certificate should have been renewed by now and was not. Sidecars refuse an expired one,
    /// and there is half its life left to act.
    pub(crate) fn own_overdue(&self, overdue: bool) {
        self.last.lock().own_overdue = overdue;
    }

    /// Whether the last round found anything in the way.
    pub(crate) fn is_failing(&self) -> bool {
        let last = self.last.lock();
        last.failure.is_some() || last.own_overdue
    }

    /// What is refused, or stands still, while everything else goes on.
    pub(crate) fn degraded(&self, codes: Vec<&'static str>) {
        self.last.lock().degraded = codes;
    }

    /// What only an operator can bring, a tier or a root that is signed elsewhere.
    pub(crate) fn needed(&self, codes: Vec<&'static str>) {
        self.last.lock().needed = codes;
    }

    /// Whether the shared store is away, or not to be believed: issuing goes on, and the trust bundle stays as it is.
    pub(crate) fn frozen(&self, frozen: bool) {
        self.last.lock().frozen = frozen;
    }

    /// Whether what operators have said of roots and revocations cannot go out.
    pub(crate) fn trust_stuck(&self, stuck: bool) {
        self.last.lock().trust_stuck = stuck;
    }

    /// From now on nobody new should come.
    pub(crate) fn stopping(&self) {
        self.last.lock().stopping = true;
    }

    fn degraded_by(&self) -> Vec<&'static str> {
        let last = self.last.lock();
        let frozen = last.frozen.then_some("shared_store");
        let stuck = last.trust_stuck.then_some("trust_not_published");
        last.degraded.iter().chain(&last.needed).copied().chain(frozen).chain(stuck).collect()
    }

    /// Codes of what stands in the way of being ready.
    fn reasons(&self) -> Vec<&'static str> {
        let last = self.last.lock();
        let mut reasons = Vec::new();
        if last.stopping {
            reasons.push("stopping");
        }
        reasons.extend(last.failure);
        if last.own_overdue {
            reasons.push("own_certificate_overdue");
        }
        match last.tested {
            None if last.failure.is_none() => reasons.push("starting"),
            Some(at) if self.clock.monotonic().saturating_duration_since(at) > self.patience => {
                reasons.push("self_test_overdue");
            }
            _ => {}
        }
        reasons
    }

    pub(crate) fn respond(&self, path: &str) -> Response<Body> {
        match path {
            "/live" => site::json(StatusCode::OK, &serde_json::json!({"live": true})),
            "/ready" => {
                let reasons = self.reasons();
                let status =
                    if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let body = serde_json::json!({
                    "ready": reasons.is_empty(),
                    "reasons": reasons,
                    // Ready all the same: a mistake in a file must not take the CA away from everybody else.
                    "degraded": self.degraded_by(),
                    // Lives under five minutes are allowed: never in production.
                    "test": self.test,
                });
                site::json(status, &body)
            }
            "/metrics" => {
                let mut text = String::new();
                match prometheus_client::encoding::text::encode(&mut text, &self.registry.lock()) {
                    Ok(()) => site::metrics(text),
                    Err(_) => site::error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
                }
            }
            _ => site::error(StatusCode::NOT_FOUND, "known here: /live /ready /metrics"),
        }
    }
}
