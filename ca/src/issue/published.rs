//! Metrics that stand for a state.

use std::time::SystemTime;

use super::Issuer;
use crate::metrics::AuthorityKind;

impl Issuer {
    /// Brings the metrics that stand for a state up to date.
    pub fn publish_metrics(&self) {
        let ends = self.authority.ends();
        // Series of what is over go; cleared only then, so that no scrape finds the others missing.
        let labels: Vec<_> = ends
            .iter()
            .map(|(kind, state, label, _)| AuthorityKind { kind, state, label: label.clone() })
            .collect();
        let mut shown = self.shown.lock();
        if *shown != labels {
            self.metrics.authority_not_after.clear();
        }
        for (label, (.., end)) in labels.iter().zip(ends) {
            let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.metrics.authority_not_after.get_or_create(label).set(end);
        }
        *shown = labels;
        drop(shown);
        match self.authority.tainted_leaves(self.clock.wall()) {
            Ok(leaves) => drop(self.metrics.tainted_leaves.set(i64::try_from(leaves).unwrap_or(i64::MAX))),
            Err(error) => tracing::debug!(%error, "tainted leaves were not counted"),
        }
        let sequence = i64::try_from(self.authority.bundle().sequence()).unwrap_or(i64::MAX);
        self.metrics.bundle_sequence.set(sequence);
    }
}
