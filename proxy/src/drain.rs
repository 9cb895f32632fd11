//! Leaving without cutting anyone off: ready says no, new work is still taken for a while, then what runs may end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long bytes that were sent before the doors closed may take: a call that crosses the closing is answered, and who
/// keeps silent does not hold up the end.
pub const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Where a sidecar stands in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It still accepts, because callers learn late that it leaves.
    Draining,
    /// It accepts nothing; what runs may end.
    Closing,
}

/// The phase, watched by every listener and connection.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    min: Duration,
    max: Duration,
}

impl Drain {
    /// A sidecar that serves.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), min, max: max.max(min) }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Begins to leave. Returns whether it had not begun before.
    pub fn begin(&self) -> bool {
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::Draining;
            }
            first
        })
    }

    /// Waits until leaving has begun.
    pub async fn begun(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until nothing new is accepted.
    pub async fn closing(&self) {
        self.reached(Phase::Closing).await;
    }

    /// Waits until nothing new is accepted, and what was on its way by then has had time to arrive. Who has said only half
    /// of what it wants, or nothing, is waited for no longer.
    pub async fn arrived(&self) {
        self.closing().await;
        tokio::time::sleep(ON_ITS_WAY).await;
    }

    /// Runs the phases to their end: at least the minimum with open doors, at most the maximum in all, and no longer
    /// than something still runs.
    pub async fn run(&self, active: impl Fn() -> i64) {
        self.begun().await;
        let begun = Instant::now();
        tokio::time::sleep(self.min).await;
        self.phase.send_replace(Phase::Closing);
        while active() > 0 && begun.elapsed() < self.max {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reached(&self, least: Phase) {
        let mut phase = self.phase.subscribe();
        let rank = |phase: Phase| phase as u8;
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|now| rank(*now) >= rank(least)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_least_the_minimum_and_at_most_the_maximum() {
        for (active, expected) in [(0, 5), (1, 25)] {
            let active = AtomicI64::new(active);
            let drain = Drain::new(Duration::from_secs(5), Duration::from_secs(25));
            let started = Instant::now();
            assert!(drain.begin());
            assert!(!drain.begin());
            drain.run(|| active.load(Ordering::Relaxed)).await;
            assert_eq!(started.elapsed().as_secs(), expected);
            assert_eq!(drain.phase(), Phase::Closing);
        }
    }
}
