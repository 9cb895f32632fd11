//! Every metric of the sidecar, in one list. All are written from the start, at zero; no label ever holds what a
//! request says.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use postern_policy::{Effect, Verdict};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::rate_limits::LimitSeries;
use super::rules::RuleSeries;
use super::workload_api::WorkloadApi;
use crate::connections::Direction;
use crate::error::Reason;

pub use super::capture::CaptureCounts;
pub use super::tokens::{JwksCounts, TokenCounts};

mod register;

type Labels = Vec<(&'static str, &'static str)>;

/// Counts how often limits bit; handed to whoever enforces one.
#[derive(Clone, Debug)]
pub struct LimitHits(Family<Labels, Counter>);

impl LimitHits {
    /// Counts one bite.
    pub fn hit(&self, limit: &'static str) {
        self.0.get_or_create(&vec![("limit", limit)]).inc();
    }
}

/// What a connection towards callers counts by itself, before there is a request.
#[derive(Clone, Debug)]
pub struct ServerCounts {
    /// How often each limit bit.
    pub limits: LimitHits,
    refused: Counter,
    malformed: Counter,
    internal: Counter,
    memory_tight: Gauge,
}

impl ServerCounts {
    /// Counts a head that the library below answered with 431.
    pub fn head_too_large(&self) {
        self.limits.hit("head_size");
        self.refused.inc();
    }

    /// Counts a request that is none, or that could be read in two ways.
    pub fn malformed(&self) {
        self.malformed.inc();
    }

    /// Whether memory is so full that no stream is opened.
    pub fn is_memory_tight(&self) -> bool {
        self.memory_tight.get() != 0
    }

    /// Counts a request that met a defect.
    pub fn internal(&self) {
        self.internal.inc();
    }
}

/// Why a line of the decision log was not written.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Dropped {
    /// Too many waited.
    Queue,
    /// More would have been written in a second than may be.
    Rate,
    /// The disk did not take it.
    Write,
}

/// Handles that are resolved once; the data path only adds.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: [[Counter; 6]; 2],
    failures: [Vec<Counter>; 2],
    durations: [Histogram; 2],
    tls_refusals: Family<Labels, Counter>,
    /// How often each limit bit.
    pub limits: LimitHits,
    decisions: [Counter; 2],
    /// How often each rule decided.
    pub rules: Arc<RuleSeries>,
    /// What each rate limit let through and refused.
    pub rate_limits: Arc<LimitSeries>,
    shadow: [Counter; 2],
    audited: Counter,
    /// Streams that run, by direction.
    pub streams_active: [Gauge; 2],
    /// Connections accepted, by direction.
    pub connections_total: [Counter; 2],
    /// Connections that live, by direction.
    pub connections_active: [Gauge; 2],
    /// Mesh connections closed because the trust bundle lost the root that vouched for their peer, by who dialled.
    pub distrusted: [Counter; 2],
    /// Mesh connections dialled.
    pub mesh_dials: Counter,
    /// Bytes of response bodies, by direction.
    pub response_bytes: [Counter; 2],
    /// Accept errors.
    pub accept_errors: Counter,
    /// 1 while memory is so full that no stream is opened.
    pub memory_tight: Gauge,
    /// The generation in force.
    pub policy_generation: Gauge,
    /// Sets of documents that were loaded and refused.
    pub policy_loads: [Counter; 2],
    /// 1 while the directory holds a set that was refused.
    pub policy_stale: Gauge,
    /// 1 while the set in force is the one that the state directory kept.
    pub policy_from_store: Gauge,
    /// 1 while the state directory does not keep the set in force.
    pub policy_unstored: Gauge,
    /// 1 while an earlier set is in force because an operator put it back.
    pub policy_pinned: Gauge,
    /// Documents that break the glass now.
    pub policy_open: Gauge,
    /// 1 while everything is denied because no good set could be read for too long.
    pub policy_failed_closed: Gauge,
    /// When the set in force came into force, in seconds since 1970.
    pub policy_loaded_at: Gauge<f64, AtomicU64>,
    /// When a good set was read last, in seconds since 1970.
    pub policy_confirmed_at: Gauge<f64, AtomicU64>,
    /// Lines of the decision log that were written.
    pub decision_lines: Counter,
    /// Lines that were not, by [`Dropped`].
    pub decision_dropped: [Counter; 3],
    /// Streams reset because a change took their permission.
    pub policy_revoked: Counter,
    /// When the own certificate ends, in seconds since 1970.
    pub svid_not_after: Gauge<f64, AtomicU64>,
    /// When it is due for renewal, in seconds since 1970.
    pub svid_renew_after: Gauge<f64, AtomicU64>,
    /// Certificates put in force.
    pub svid_renewals: Counter,
    /// Sequence number of the trust bundle in force.
    pub bundle_sequence: Gauge,
    /// Redirection.
    pub capture: CaptureCounts,
    /// Tokens that were read.
    pub tokens: TokenCounts,
    /// Issuers' keys.
    pub jwks: JwksCounts,
    /// What the workload asked for.
    pub workload_api: Arc<WorkloadApi>,
}

impl Metrics {
    /// What still lives: streams, and connections. A stream has ended when its last byte is read, but only with its
    /// connection, which ends with its streams while the sidecar leaves, is it certain that the byte was written.
    pub fn active(&self) -> i64 {
        self.streams_active.iter().chain(&self.connections_active).map(Gauge::get).sum()
    }

    /// Counts a stream that ended.
    pub fn request(&self, direction: Direction, status: u16, seconds: f64) {
        let class = usize::from(status / 100).min(5);
        self.requests[direction as usize][class].inc();
        self.durations[direction as usize].observe(seconds);
    }

    /// Counts what was refused or broke.
    pub fn failure(&self, direction: Direction, reason: Reason) {
        self.failures[direction as usize][reason as usize].inc();
        match reason {
            Reason::HeadTooLarge | Reason::UriTooLong => self.limit("head_size"),
            Reason::Stalled => self.limit("stall"),
            _ => {}
        }
    }

    /// What connections of this direction count by themselves.
    pub fn server(&self, direction: Direction) -> ServerCounts {
        let of = |reason: Reason| self.failures[direction as usize][reason as usize].clone();
        let (refused, malformed) = (of(Reason::HeadTooLarge), of(Reason::BadRequest));
        let internal = of(Reason::Internal);
        let memory_tight = self.memory_tight.clone();
        ServerCounts { limits: self.limits.clone(), refused, malformed, internal, memory_tight }
    }

    /// Counts a handshake that failed.
    pub fn tls_refusal(&self, reason: &'static str) {
        self.tls_refusals.get_or_create(&vec![("reason", reason)]).inc();
    }

    /// Counts a limit's bite.
    pub fn limit(&self, limit: &'static str) {
        self.limits.hit(limit);
    }

    /// Counts a verdict; `None` is that of a sidecar without any policy.
    pub fn decision(&self, verdict: Option<Verdict>) {
        let allowed = verdict.is_some_and(|verdict| verdict.is_allowed());
        self.decisions[usize::from(!allowed)].inc();
        if let Some(Verdict { shadow, audit, .. }) = verdict {
            if let Some(would) =
                shadow.map(|would| would.effect == Effect::Allow).filter(|would| *would != allowed)
            {
                self.shadow[usize::from(!would)].inc();
            }
            if audit.is_some() {
                self.audited.inc();
            }
        }
    }

    /// The exposition in OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_written_and_counts_add_up() {
        let metrics = Metrics::default();
        let text = metrics.render();
        assert!(text.contains("postern_tls_refusals_total{reason=\"no_certificate\"} 0"), "{text}");
        assert!(
            text.contains("postern_failures_total{direction=\"inbound\",reason=\"policy_denied\"} 0"),
            "{text}"
        );
        metrics.request(Direction::Inbound, 403, 0.001);
        metrics.tls_refusal("alpn");
        metrics.server(Direction::Inbound).head_too_large();
        metrics.failure(Direction::Inbound, Reason::HeadTooLarge);
        let text = metrics.render();
        assert!(text.contains("postern_requests_total{direction=\"inbound\",status=\"4xx\"} 1"), "{text}");
        assert!(text.contains("postern_tls_refusals_total{reason=\"alpn\"} 1"), "{text}");
        assert!(text.contains("postern_limit_hits_total{limit=\"head_size\"} 2"), "{text}");
        let failures = "postern_failures_total{direction=\"inbound\",reason=\"head_too_large\"} 2";
        assert!(text.contains(failures), "{text}");
    }
}
