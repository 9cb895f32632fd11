//! Waiting with a deadline, in one place: tests poll, they do not sleep and hope.

use std::time::{Duration, Instant};

/// How long things may take that normally take milliseconds: two cores are shared by everything that runs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `is_so`, and panics with `what` if it does not become so in time.
pub fn until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    for_some(what, within, || is_so().then_some(()));
}

/// Waits until there is something, and panics with `what` if it does not come in time.
pub fn for_some<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        pause(Duration::from_millis(10));
    }
}

/// Watches for a time that something stays so: panics with `what` at the first moment that it is not.
pub fn stays(what: &str, during: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < during {
        assert!(is_so(), "after {:?}: {what}", start.elapsed());
        pause(Duration::from_millis(20));
    }
}

/// Lets time pass where time itself is what is tested.
#[expect(clippy::disallowed_methods, reason = "the one place that may: no executor waits on this thread")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
