//! Time as an argument: monotonic and wall time apart.
//!
//! Deadlines and back-off run on monotonic time, which never jumps but stops while a machine is suspended. Validity of
//! certificates is a matter of wall time, which jumps. Whoever compares with a certificate asks for [`Clock::wall`]
//! again each time and never adds a monotonic difference to an old answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A source of both kinds of time. Cheap to call; shared as `Arc<dyn Clock>`.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time, for deadlines.
    fn monotonic(&self) -> Instant;
    /// Wall time, for certificates and records. May go backwards.
    fn wall(&self) -> SystemTime;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic(&self) -> Instant {
        Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's wall clock")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The machine's clocks, moved by hand: tests run weeks in milliseconds and jump wall time alone.
#[derive(Clone, Debug)]
pub struct TestClock {
    base: Instant,
    wall_base: SystemTime,
    monotonic_ms: Arc<AtomicI64>,
    wall_ms: Arc<AtomicI64>,
}

impl TestClock {
    /// A clock that stands still at `wall` until it is moved.
    pub fn at(wall: SystemTime) -> Self {
        Self { base: Instant::now(), wall_base: wall, monotonic_ms: Arc::default(), wall_ms: Arc::default() }
    }

    /// Lets `by` pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets wall time forward (positive) or back (negative) by `ms` milliseconds; monotonic time does not notice.
    pub fn jump_wall(&self, ms: i64) {
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn monotonic(&self) -> Instant {
        let ms = u64::try_from(self.monotonic_ms.load(Ordering::SeqCst)).unwrap_or(0);
        self.base + Duration::from_millis(ms)
    }

    fn wall(&self) -> SystemTime {
        let ms = self.wall_ms.load(Ordering::SeqCst);
        let by = Duration::from_millis(ms.unsigned_abs());
        if ms >= 0 {
            self.wall_base + by
        } else {
            self.wall_base.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_jumps_alone() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let clock = TestClock::at(start);
        let monotonic = clock.monotonic();
        clock.jump_wall(-5_000);
        assert_eq!(clock.wall(), start - Duration::from_secs(5));
        assert_eq!(clock.monotonic(), monotonic);
        clock.advance(Duration::from_secs(7));
        assert_eq!(clock.wall(), start + Duration::from_secs(2));
        assert_eq!(clock.monotonic(), monotonic + Duration::from_secs(7));
    }
}
