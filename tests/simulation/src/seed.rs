//! Chance and time of one simulation: both come from its seed and its steps, from nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use postern_svid::{Clock, spread};

/// Some day in 2026, from which wall time goes on.
const EPOCH: Duration = Duration::from_secs(1_782_864_000);

/// Numbers from a seed.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(spread::mixed(seed.wrapping_add(1)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread::mixed(self.0)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).expect("it is less than a usize")
    }

    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// Simulated time, which the driver moves.
#[derive(Clone)]
pub(crate) struct Time {
    base: Instant,
    now_ms: Arc<AtomicU64>,
}

impl Time {
    pub(crate) fn new() -> Self {
        Self { base: Instant::now(), now_ms: Arc::default() }
    }

    pub(crate) fn set(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Wall time as it is, without anybody's error.
    pub(crate) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + EPOCH + Duration::from_millis(self.now_ms())
    }
}

/// A host's clock, which may go wrong.
#[derive(Clone)]
pub(crate) struct HostClock {
    time: Time,
    skew_ms: Arc<AtomicI64>,
}

impl HostClock {
    pub(crate) fn new(time: &Time) -> Self {
        Self { time: time.clone(), skew_ms: Arc::default() }
    }

    pub(crate) fn skew(&self, by_ms: i64) {
        self.skew_ms.store(by_ms, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Instant {
        self.time.base + Duration::from_millis(self.time.now_ms())
    }

    fn wall(&self) -> SystemTime {
        let skew = self.skew_ms.load(Ordering::Relaxed);
        let by = Duration::from_millis(skew.unsigned_abs());
        if skew < 0 { self.time.wall() - by } else { self.time.wall() + by }
    }
}
