//! What is counted of other trust domains.

use std::sync::atomic::AtomicU64;

use postern_svid::TrustDomain;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Of {
    trust_domain: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Fetch {
    trust_domain: String,
    result: &'static str,
}

/// The metrics; cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    fetches: Family<Fetch, Counter>,
    sequence: Family<Of, Gauge>,
    fetched: Family<Of, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let federation = registry.sub_registry_with_prefix("postern_federation");
        federation.register(
            "fetches",
            "Looks at bundle endpoints of other trust domains",
            metrics.fetches.clone(),
        );
        federation.register(
            "bundle_sequence",
            "Version of another trust domain's bundle",
            metrics.sequence.clone(),
        );
        federation.register_with_unit(
            "bundle_fetched",
            "Unix time of the last good look at it",
            Unit::Seconds,
            metrics.fetched.clone(),
        );
        metrics
    }

    /// From the start, at zero: a rate over a series that appears with its first event misses that event.
    pub(super) fn begin(&self, name: &TrustDomain) {
        for result in ["ok", "failed", "refused"] {
            drop(self.fetches.get_or_create(&Fetch { trust_domain: name.as_str().to_owned(), result }));
        }
    }

    pub(super) fn fetched(&self, name: &TrustDomain, result: &'static str) {
        self.fetches.get_or_create(&Fetch { trust_domain: name.as_str().to_owned(), result }).inc();
    }

    pub(super) fn holds(&self, name: &TrustDomain, sequence: u64, at: std::time::SystemTime) {
        let of = Of { trust_domain: name.as_str().to_owned() };
        self.sequence.get_or_create(&of).set(i64::try_from(sequence).unwrap_or(i64::MAX));
        let at = at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.fetched.get_or_create(&of).set(at);
    }
}
