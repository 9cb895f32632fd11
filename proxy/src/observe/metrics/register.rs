//! Names, help and labels of the metrics: all are registered when the sidecar starts.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{CaptureCounts, JwksCounts, Labels, LimitHits, Metrics, TokenCounts};
use crate::connections::Direction;
use crate::error::Reason;
use crate::observe::rate_limits::LimitCollector;
use crate::observe::rules::RuleCollector;
use crate::observe::workload_api::WorkloadApiCollector;

const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Why handshakes at the mesh listener commonly fail (`postern_svid::tls::refusal`): written at zero from the start.
const TLS_REFUSALS: [&str; 15] = [
    "no_certificate",
    "tls_version",
    "expired",
    "not_yet_valid",
    "untrusted",
    "self_signed",
    "unknown_trust_domain",
    "no_spiffe_id",
    "not_tls",
    "first_byte",
    "handshake_timeout",
    "timeout",
    "overloaded",
    "closed",
    "refused_by_peer",
];
/// Limits that count how often they bit.
const LIMITS: [&str; 26] = [
    "admin",
    "admin_port",
    "client_resets",
    "connect_mesh",
    "connect_workload",
    "connections",
    "descriptors",
    "detect",
    "first_byte",
    "handshake",
    "handshakes",
    "handshakes_per_source",
    "head",
    "head_size",
    "health",
    "idle",
    "in_flight",
    "in_flight_per_destination",
    "informational",
    "large_heads",
    "local_error_resets",
    "memory",
    "ping",
    "stall",
    "streams",
    "workload_idle",
];
/// Powers of four from a quarter of a millisecond: a proxy's own time and a slow service both fit.
const SECONDS: [f64; 9] = [0.000_25, 0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("postern");
        let requests = Family::<Labels, Counter>::default();
        registry.register(
            "requests",
            "Requests and tunnels that ended, by the class of their status",
            requests.clone(),
        );
        let failures = Family::<Labels, Counter>::default();
        registry.register(
            "failures",
            "Requests and tunnels that the sidecar refused or that broke, by reason",
            failures.clone(),
        );
        let durations = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to the end of its response",
            Unit::Seconds,
            durations.clone(),
        );
        let tls_refusals = Family::<Labels, Counter>::default();
        registry.register(
            "tls_refusals",
            "Handshakes refused at the mesh listener, by reason",
            tls_refusals.clone(),
        );
        let limits = Family::<Labels, Counter>::default();
        registry.register("limit_hits", "How often a limit bit", limits.clone());
        let decisions = Family::<Labels, Counter>::default();
        registry.register("decisions", "Verdicts of the policy", decisions.clone());
        let shadow = Family::<Labels, Counter>::default();
        registry.register(
            "shadow_decisions",
            "Verdicts that shadow rules would turn round, by what they would be",
            shadow.clone(),
        );
        for reason in TLS_REFUSALS {
            drop(tls_refusals.get_or_create(&vec![("reason", reason)]));
        }
        for limit in LIMITS {
            drop(limits.get_or_create(&vec![("limit", limit)]));
        }
        let by_direction = |family: &Family<Labels, Gauge>| {
            DIRECTIONS.map(|direction| family.get_or_create_owned(&vec![("direction", direction.label())]))
        };
        let count_by_direction = |family: &Family<Labels, Counter>| {
            DIRECTIONS.map(|direction| family.get_or_create_owned(&vec![("direction", direction.label())]))
        };
        let streams_active = Family::default();
        registry.register("streams_active", "Requests and tunnels that run", streams_active.clone());
        let connections_total = Family::default();
        registry.register("connections", "Connections accepted", connections_total.clone());
        let connections_active = Family::default();
        registry.register("connections_active", "Connections that live", connections_active.clone());
        let distrusted = Family::default();
        registry.register(
            "connections_distrusted",
            "Mesh connections closed because the trust bundle no longer vouches for their peer",
            distrusted.clone(),
        );
        let response_bytes = Family::default();
        registry.register("response_bytes", "Bytes of response bodies", response_bytes.clone());
        let policy_loads = Family::<Labels, Counter>::default();
        registry.register("policy_loads", "Sets of documents read, by result", policy_loads.clone());
        let decision_dropped = Family::<Labels, Counter>::default();
        registry.register(
            "decision_log_dropped",
            "Lines of the decision log that were not written, by what stood in the way",
            decision_dropped.clone(),
        );
        let metrics = Self {
            requests: DIRECTIONS.map(|direction| {
                CLASSES.map(|class| {
                    requests.get_or_create_owned(&vec![("direction", direction.label()), ("status", class)])
                })
            }),
            failures: DIRECTIONS.map(|direction| {
                let label =
                    |reason: Reason| vec![("direction", direction.label()), ("reason", reason.label())];
                Reason::ALL.map(|reason| failures.get_or_create_owned(&label(reason))).to_vec()
            }),
            durations: DIRECTIONS
                .map(|direction| durations.get_or_create_owned(&vec![("direction", direction.label())])),
            decisions: ["allow", "deny"]
                .map(|effect| decisions.get_or_create_owned(&vec![("effect", effect)])),
            rules: Arc::default(),
            rate_limits: Arc::default(),
            shadow: ["allow", "deny"].map(|would| shadow.get_or_create_owned(&vec![("would", would)])),
            audited: Counter::default(),
            streams_active: by_direction(&streams_active),
            connections_total: count_by_direction(&connections_total),
            connections_active: by_direction(&connections_active),
            distrusted: count_by_direction(&distrusted),
            response_bytes: count_by_direction(&response_bytes),
            policy_loads: ["loaded", "refused"]
                .map(|result| policy_loads.get_or_create_owned(&vec![("result", result)])),
            tls_refusals,
            limits: LimitHits(limits),
            mesh_dials: Counter::default(),
            accept_errors: Counter::default(),
            memory_tight: Gauge::default(),
            policy_generation: Gauge::default(),
            policy_stale: Gauge::default(),
            policy_from_store: Gauge::default(),
            policy_unstored: Gauge::default(),
            policy_pinned: Gauge::default(),
            policy_open: Gauge::default(),
            policy_failed_closed: Gauge::default(),
            policy_loaded_at: Gauge::default(),
            policy_confirmed_at: Gauge::default(),
            decision_lines: Counter::default(),
            decision_dropped: ["queue", "rate", "write"]
                .map(|reason| decision_dropped.get_or_create_owned(&vec![("reason", reason)])),
            policy_revoked: Counter::default(),
            svid_not_after: Gauge::default(),
            svid_renew_after: Gauge::default(),
            svid_renewals: Counter::default(),
            bundle_sequence: Gauge::default(),
            capture: CaptureCounts::new(&mut registry),
            tokens: TokenCounts::new(&mut registry),
            jwks: JwksCounts::new(&mut registry),
            workload_api: Arc::default(),
            registry: Registry::default(),
        };
        metrics.with_singles(registry)
    }
}

impl Metrics {
    fn with_singles(mut self, mut registry: Registry) -> Self {
        registry.register_collector(Box::new(RuleCollector(Arc::clone(&self.rules))));
        registry.register_collector(Box::new(LimitCollector(Arc::clone(&self.rate_limits))));
        registry.register_collector(Box::new(WorkloadApiCollector(Arc::clone(&self.workload_api))));
        registry.register("audited", "Verdicts about what an Audit rule marks", self.audited.clone());
        registry.register("mesh_dials", "Mesh connections dialled", self.mesh_dials.clone());
        registry.register(
            "memory_tight",
            "1 while memory is so full that no stream is opened",
            self.memory_tight.clone(),
        );
        registry.register("accept_errors", "Errors of accept()", self.accept_errors.clone());
        registry.register(
            "policy_generation",
            "The policy generation in force",
            self.policy_generation.clone(),
        );
        registry.register(
            "policy_stale",
            "1 while the documents that are there were refused and older ones are in force",
            self.policy_stale.clone(),
        );
        registry.register(
            "policy_from_store",
            "1 while the documents in force are those that the state directory kept",
            self.policy_from_store.clone(),
        );
        registry.register(
            "policy_unstored",
            "1 while the state directory does not keep the documents in force",
            self.policy_unstored.clone(),
        );
        registry.register(
            "policy_pinned",
            "1 while an earlier set is in force because an operator put it back",
            self.policy_pinned.clone(),
        );
        registry.register("policy_open", "Documents that break the glass now", self.policy_open.clone());
        registry.register(
            "policy_failed_closed",
            "1 while everything is denied because no good documents could be read for too long",
            self.policy_failed_closed.clone(),
        );
        registry.register(
            "policy_loaded_timestamp_seconds",
            "When the documents in force came into force, since 1970",
            self.policy_loaded_at.clone(),
        );
        registry.register(
            "policy_confirmed_timestamp_seconds",
            "When good documents were read last, since 1970",
            self.policy_confirmed_at.clone(),
        );
        registry.register(
            "decision_log_lines",
            "Lines of the decision log that were written",
            self.decision_lines.clone(),
        );
        registry.register(
            "policy_revoked_streams",
            "Streams reset because a change took their permission",
            self.policy_revoked.clone(),
        );
        registry.register(
            "svid_not_after_seconds",
            "When the own certificate ends, since 1970",
            self.svid_not_after.clone(),
        );
        registry.register(
            "svid_renew_after_seconds",
            "When the own certificate is due for renewal, since 1970",
            self.svid_renew_after.clone(),
        );
        registry.register("svid_renewals", "Certificates put in force", self.svid_renewals.clone());
        registry.register(
            "bundle_sequence",
            "Sequence of the trust bundle in force",
            self.bundle_sequence.clone(),
        );
        self.registry = registry;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    /// The section promises to name every one.
    #[test]
    fn every_limit_is_in_the_manual() {
        let manual = include_str!("../../../../docs/operations.md");
        let (_, section) = manual.split_once("\n## Limits and deadlines\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        for name in LIMITS.into_iter().chain(Limits::default().shown().into_keys()) {
            assert!(section.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn every_refusal_is_in_the_manual() {
        let manual = include_str!("../../../../docs/operations.md");
        let (_, section) = manual.split_once("\n## Reasons\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        for reason in TLS_REFUSALS {
            assert!(section.contains(&format!("`{reason}`")), "{reason}");
        }
    }
}
