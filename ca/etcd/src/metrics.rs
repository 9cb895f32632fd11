//! How the shared store answers.

use postern_ca::store::shared::{SharedError, Swap};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

const CALLS: [&str; 7] = ["read", "swap", "wait", "acquire", "renew", "release", "holder"];
const RESULTS: [&str; 4] = ["ok", "unavailable", "refused", "damaged"];
const SWAPS: [&str; 3] = ["done", "conflict", "fenced"];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Call {
    call: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Written {
    result: &'static str,
}

/// The counters; cloning shares them.
#[derive(Clone)]
pub(crate) struct Metrics {
    calls: Family<Call, Counter>,
    swaps: Family<Written, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self { calls: Family::default(), swaps: Family::default() };
        for call in CALLS {
            for result in RESULTS {
                drop(metrics.calls.get_or_create(&Call { call, result }));
            }
        }
        for result in SWAPS {
            drop(metrics.swaps.get_or_create(&Written { result }));
        }
        let calls = "Calls to what replicas share, by how they ended";
        registry.register("postern_ca_shared_calls", calls, metrics.calls.clone());
        let swaps = "Writes to what replicas share that were answered: done, too late for another one, or refused by the fence";
        registry.register("postern_ca_shared_swaps", swaps, metrics.swaps.clone());
        metrics
    }

    pub(crate) fn asked(&self, call: &'static str, error: Option<&SharedError>) {
        let result = match error {
            None => "ok",
            Some(SharedError::Unavailable(_)) => "unavailable",
            Some(SharedError::Damaged { .. } | SharedError::TooLarge { .. }) => "damaged",
            Some(_) => "refused",
        };
        self.calls.get_or_create(&Call { call, result }).inc();
    }

    pub(crate) fn swapped(&self, swap: Swap) {
        let result = match swap {
            Swap::Done(_) => "done",
            Swap::Conflict => "conflict",
            Swap::Fenced => "fenced",
        };
        self.swaps.get_or_create(&Written { result }).inc();
    }
}
