//! Memory and descriptors: saying no early, instead of being killed with everybody's calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::sidecar::Sidecar;

/// How often it is measured: memory can fill at gigabytes a second, reading two small files costs microseconds.
const EVERY: Duration = Duration::from_millis(250);
/// Shares of the limit, in percent.
const NO_NEW_STREAMS: u64 = 85;
const REJECT: u64 = 95;
const NO_NEW_CONNECTIONS: u64 = 90;

/// How tight things are.
#[derive(Debug, Default)]
pub struct Pressure {
    memory: AtomicU8,
    descriptors: AtomicU8,
}

impl Pressure {
    /// Whether a new stream may be opened.
    pub fn allows_streams(&self) -> bool {
        u64::from(self.memory.load(Ordering::Relaxed)) < NO_NEW_STREAMS
    }

    /// Whether a new connection may be accepted.
    pub fn allows_connections(&self) -> bool {
        u64::from(self.memory.load(Ordering::Relaxed)) < REJECT
            && u64::from(self.descriptors.load(Ordering::Relaxed)) < NO_NEW_CONNECTIONS
    }
}

/// Measures until the runtime ends.
pub async fn watch(sidecar: Arc<Sidecar>, descriptors: usize) {
    loop {
        let memory = memory_percent(
            &std::fs::read_to_string("/sys/fs/cgroup/memory.current").unwrap_or_default(),
            &std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default(),
        );
        sidecar.pressure.memory.store(memory, Ordering::Relaxed);
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let share = percent(open as u64, descriptors as u64);
        sidecar.pressure.descriptors.store(share, Ordering::Relaxed);
        // Many descriptors take long to count, and are the case in which they change slowly.
        let pause = if open > 1_000 { EVERY * 8 } else { EVERY };
        tokio::time::sleep(pause).await;
    }
}

/// The share of a cgroup's limit in use; 0 where there is no limit.
fn memory_percent(current: &str, max: &str) -> u8 {
    match (current.trim().parse(), max.trim().parse()) {
        (Ok(current), Ok(max)) => percent(current, max),
        _ => 0,
    }
}

fn percent(part: u64, whole: u64) -> u8 {
    let share = u128::from(part) * 100 / u128::from(whole.max(1));
    u8::try_from(share).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(memory_percent("85\n", "100\n"), 85);
        assert_eq!(memory_percent("85\n", "max\n"), 0);
        assert_eq!(memory_percent("", ""), 0);
        assert_eq!(memory_percent("999999999999", "1"), 255);
    }

    #[test]
    fn thresholds() {
        let pressure = Pressure::default();
        assert!(pressure.allows_streams() && pressure.allows_connections());
        pressure.memory.store(85, Ordering::Relaxed);
        assert!(!pressure.allows_streams() && pressure.allows_connections());
        pressure.memory.store(95, Ordering::Relaxed);
        assert!(!pressure.allows_connections());
        pressure.memory.store(0, Ordering::Relaxed);
        pressure.descriptors.store(90, Ordering::Relaxed);
        assert!(pressure.allows_streams() && !pressure.allows_connections());
    }
}
