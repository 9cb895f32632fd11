//! How often and how long: every figure is a fraction of the SVID's life with a cap, so that 20-second certificates in a
//! test and one-hour ones in production run the same code.

use std::time::{Duration, SystemTime};

use postern_svid::{Svid, spread};

/// The shortest life that is accepted without `test: true`.
pub(crate) const SHORTEST_LIFE: Duration = Duration::from_secs(5 * 60);

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(150);
/// Monotonic time stops in suspend and does not see a jump of the wall clock: this is how late either is noticed.
const LONGEST_TICK: Duration = Duration::from_secs(30);
const LONGEST_STEP: Duration = Duration::from_secs(10);
/// Two renewals in a row are part of an emergency (`docs/rotation.md`); more than that would be an error of the control plane.
const SHORTEST_TURN: Duration = Duration::from_secs(5);
const LONGEST_PING: Duration = Duration::from_secs(10);

/// The figures for one length of life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    life: Duration,
}

impl Pace {
    /// For `svid`. Without one nothing is known but that somebody waits for the first: the pace of a five-minute SVID.
    pub(crate) fn of(svid: Option<&Svid>) -> Self {
        Self { life: svid.map_or(SHORTEST_LIFE, life).max(Duration::from_secs(1)) }
    }

    /// Between two looks at the wall clock.
    pub(crate) fn tick(self) -> Duration {
        (self.life / 20).min(LONGEST_TICK)
    }

    /// For one step of a conversation: connecting and handshaking, or one call.
    pub(crate) fn step(self) -> Duration {
        (self.life / 8).clamp(Duration::from_secs(1), LONGEST_STEP)
    }

    /// The same at one of several addresses, which are tried in turn.
    pub(crate) fn step_at(self, places: usize) -> Duration {
        let places = u32::try_from(places.max(1)).unwrap_or(u32::MAX);
        (self.step() / places).max(Duration::from_secs(1)).min(self.step())
    }

    /// Between two PINGs on an idle stream.
    pub(crate) fn ping(self) -> Duration {
        (self.life / 8).clamp(Duration::from_millis(500), LONGEST_PING)
    }

    /// For the answer to a PING.
    pub(crate) fn pong(self) -> Duration {
        self.ping() * 2
    }

    /// The most that a renewal out of turn is put off to spread load.
    pub(crate) fn longest_spread(self) -> Duration {
        self.life / 4
    }

    /// Between two renewals out of turn.
    pub(crate) fn shortest_turn(self) -> Duration {
        (self.life / 40).min(SHORTEST_TURN)
    }

    #[cfg(test)]
    pub(crate) const fn of_life(life: Duration) -> Self {
        Self { life }
    }

    fn longest_retry(self) -> Duration {
        (self.life / 20).min(LONGEST_RETRY)
    }
}

/// How long `svid` lives in all.
pub(crate) fn life(svid: &Svid) -> Duration {
    svid.not_after().duration_since(svid.not_before()).unwrap_or_default()
}

/// When to renew: as the CA says, if that lies between now and the end; else in the middle of what is left.
pub(crate) fn renew_after(told: Option<SystemTime>, now: SystemTime, not_after: SystemTime) -> SystemTime {
    match told {
        Some(told) if now < told && told < not_after => told,
        _ => now + not_after.duration_since(now).unwrap_or_default() / 2,
    }
}

/// Waits that double from half a second, each blurred by a fifth so that a thousand sidecars do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::seeded(spread::number())
    }

    pub(crate) const fn seeded(seed: u64) -> Self {
        Self { next: FIRST_RETRY, random: seed }
    }

    pub(crate) const fn reset(&mut self) {
        self.next = FIRST_RETRY;
    }

    pub(crate) fn wait(&mut self, pace: Pace) -> Duration {
        let wait = self.next.min(pace.longest_retry());
        self.next = (self.next * 2).min(LONGEST_RETRY);
        wait.mul_f64(0.8 + 0.4 * self.fraction())
    }

    /// From 0 to 1.
    pub(crate) const fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread::unit(spread::mixed(self.random))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_start_again() {
        let pace = Pace { life: Duration::from_secs(200) };
        let mut backoff = Backoff::seeded(1);
        let plain = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0];
        let waits: Vec<f64> = plain.iter().map(|_| backoff.wait(pace).as_secs_f64()).collect();
        for (wait, plain) in waits.iter().zip(plain) {
            assert!((0.8 * plain..=1.2 * plain).contains(wait), "{waits:?}");
        }
        let blurs: Vec<i64> =
            waits.iter().zip(plain).map(|(wait, plain)| (wait / plain * 1e6) as i64).collect();
        assert!(blurs.windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {blurs:?}");
        backoff.reset();
        assert!(backoff.wait(pace) <= Duration::from_millis(600));
    }

    #[test]
    fn twenty_second_certificates() {
        let pace = Pace { life: Duration::from_secs(20) };
        assert_eq!(pace.tick(), Duration::from_secs(1));
        assert_eq!(pace.longest_retry(), Duration::from_secs(1));
        assert!(pace.step() + pace.step() < Duration::from_secs(10), "two steps must fit before the end");
        let hour = Pace { life: Duration::from_secs(3_600) };
        assert_eq!((hour.tick(), hour.longest_retry()), (LONGEST_TICK, LONGEST_RETRY));
    }

    #[test]
    fn the_ca_chooses_the_time_within_reason() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(renew_after(Some(at(150)), at(100), at(200)), at(150));
        for absurd in [None, Some(at(0)), Some(at(100)), Some(at(200)), Some(at(999))] {
            assert_eq!(renew_after(absurd, at(100), at(200)), at(150), "{absurd:?}");
        }
    }
}
