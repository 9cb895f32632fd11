//! The control plane's wish that everybody renew now, and when it is obeyed.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::pace::Pace;

/// No mesh needs longer to come round, and whoever waited longer would miss what the hurry is about.
const LONGEST_SPREAD: Duration = Duration::from_secs(60);

/// A renewal out of turn.
#[derive(Default)]
pub(crate) struct Hurry {
    when: Mutex<When>,
    told: Notify,
}

#[derive(Default)]
struct When {
    /// When to renew.
    due: Option<Instant>,
    /// When the SVID in force came.
    renewed: Option<Instant>,
}

impl Hurry {
    /// The control plane wants a renewal at a random moment within `spread`. `fraction` is that moment, from 0 to 1. Told
    /// again and again, the agent still renews no faster than its pace allows.
    pub(crate) fn tell(&self, spread: Duration, fraction: f64, pace: Pace, now: Instant) {
        let spread = spread.min(LONGEST_SPREAD).min(pace.longest_spread());
        let mut when = self.when.lock();
        let earliest = when.renewed.map_or(now, |renewed| (renewed + pace.shortest_turn()).max(now));
        let due = earliest + spread.mul_f64(fraction.clamp(0.0, 1.0));
        // Who is told twice keeps the earlier time, or being told often would put it off for ever.
        when.due = Some(when.due.map_or(due, |told| told.min(due)));
        drop(when);
        self.told.notify_one();
    }

    /// Resolves when something was told.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// Time until the renewal out of turn; `None` if none is wanted.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.when.lock().due.map(|due| due.saturating_duration_since(now))
    }

    /// An attempt begins: what is told from now on wants another one.
    pub(crate) fn take(&self) -> Option<Instant> {
        self.when.lock().due.take()
    }

    /// The attempt failed.
    pub(crate) fn put_back(&self, due: Option<Instant>) {
        let mut when = self.when.lock();
        when.due = due.or(when.due);
    }

    /// The attempt succeeded.
    pub(crate) fn renewed(&self, now: Instant) {
        self.when.lock().renewed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(seconds: u64) -> Pace {
        Pace::of_life(Duration::from_secs(seconds))
    }

    #[test]
    fn it_is_obeyed_within_the_spread_and_never_later_than_a_minute() {
        let now = Instant::now();
        for (life, told, most) in [(3_600, 10, 10), (3_600, 100_000, 60), (40, 60, 10)] {
            let hurry = Hurry::default();
            assert_eq!(hurry.left(now), None);
            hurry.tell(Duration::from_secs(told), 1.0, pace(life), now);
            assert_eq!(hurry.left(now), Some(Duration::from_secs(most)), "{life} {told}");
            // Told once more, it does not wait longer.
            hurry.tell(Duration::from_secs(told), 1.0, pace(life), now + Duration::from_secs(1));
            assert_eq!(hurry.left(now), Some(Duration::from_secs(most)), "{life} {told}");
        }
    }

    #[test]
    fn being_told_without_end_renews_no_faster_than_the_pace() {
        let now = Instant::now();
        let hurry = Hurry::default();
        hurry.tell(Duration::ZERO, 0.0, pace(3_600), now);
        assert!(hurry.take().is_some_and(|due| due <= now));
        hurry.renewed(now);
        hurry.tell(Duration::ZERO, 0.0, pace(3_600), now);
        assert_eq!(hurry.left(now), Some(pace(3_600).shortest_turn()));
    }

    #[test]
    fn a_failed_attempt_leaves_the_wish() {
        let now = Instant::now();
        let hurry = Hurry::default();
        hurry.tell(Duration::ZERO, 0.0, pace(20), now);
        let taken = hurry.take();
        assert_eq!(hurry.left(now), None);
        hurry.put_back(taken);
        assert_eq!(hurry.left(now), Some(Duration::ZERO));
        // What was told during an attempt is another wish.
        hurry.take();
        hurry.tell(Duration::ZERO, 0.0, pace(20), now);
        hurry.renewed(now);
        assert!(hurry.left(now).is_some());
    }
}
