//! How long each step of a request takes.

use std::time::Instant;

use postern_svid::Clock;

use crate::metrics::{Metrics, Stage};

/// A stopwatch that is read at the end of each step.
pub(super) struct Stages<'a> {
    metrics: &'a Metrics,
    clock: &'a dyn Clock,
    last: Instant,
}

impl<'a> Stages<'a> {
    pub(super) fn begin(metrics: &'a Metrics, clock: &'a dyn Clock) -> Self {
        Self { metrics, clock, last: clock.monotonic() }
    }

    /// One of [`Metrics::STAGES`] has ended, and the next begins.
    pub(super) fn done(&mut self, stage: &'static str) {
        debug_assert!(Metrics::STAGES.contains(&stage), "{stage}");
        let now = self.clock.monotonic();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.metrics.stages.get_or_create(&Stage { stage }).observe(seconds);
        self.last = now;
    }
}
