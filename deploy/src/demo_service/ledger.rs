//! Which marked requests arrived, and how often.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

/// The demo marks a request with this field. A marked request counts wherever it arrives.
pub(crate) const MARKER: &str = "demo-marker";

/// More marks than one run of the demo makes; the oldest are forgotten, so that `--keep` never fills memory.
const LIMIT: usize = 4096;

/// Counts by marker.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    counts: BTreeMap<String, u64>,
    order: VecDeque<String>,
}

impl Ledger {
    /// A marked request arrived.
    pub(super) fn record(&self, marker: &str) {
        let mut entries = self.0.lock();
        if let Some(count) = entries.counts.get_mut(marker) {
            *count += 1;
            return;
        }
        entries.counts.insert(marker.to_owned(), 1);
        entries.order.push_back(marker.to_owned());
        if entries.order.len() > LIMIT
            && let Some(oldest) = entries.order.pop_front()
        {
            entries.counts.remove(&oldest);
        }
    }

    /// How often a request with this mark arrived.
    pub(super) fn count(&self, marker: &str) -> u64 {
        self.0.lock().counts.get(marker).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_forgets_the_oldest() {
        let ledger = Ledger::default();
        ledger.record("first");
        ledger.record("first");
        assert_eq!((ledger.count("first"), ledger.count("other")), (2, 0));
        for n in 0..LIMIT {
            ledger.record(&n.to_string());
        }
        assert_eq!((ledger.count("first"), ledger.count("0")), (0, 1));
        assert_eq!(ledger.0.lock().counts.len(), LIMIT);
    }
}
