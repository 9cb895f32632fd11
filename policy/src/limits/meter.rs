//! The arithmetic of one bucket: the generic cell rate algorithm (GCRA, ITU-T I.371), of the crate `governor`.
//!
//! A bucket is one number: when it will be full again, in nanoseconds since an origin that the caller chooses. What is
//! past is full, so a bucket that is not there at all is the same as one that has not been used for long.
//!
//! `governor` brings clocks and stores of its own. Neither is wanted here: time is an argument, and where buckets live
//! and which of them may be forgotten is decided in [`super::buckets`]. So a limiter is made for each step, around the
//! one number; that costs a few multiplications.

use std::cell::Cell;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

/// More than one sidecar ever serves.
pub(crate) const MAX_COUNT: u32 = 1_000_000;
/// Requests at once, at most.
pub(crate) const MAX_BURST: u32 = 1_000_000;
/// A bucket that takes longer to fill is no rate but a quota, and a restart forgets it.
pub(crate) const MAX_REFILL: Duration = Duration::from_secs(24 * 60 * 60);
/// Moments further from the origin than this (146 years) count as this one: sums of it do not overflow.
const LAST: u64 = 1 << 62;

/// What is wrong, and the way out.
pub(crate) type Wrong = (String, String);

/// How many requests in how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rate {
    count: NonZeroU32,
    per: Per,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    const fn nanos(self) -> u64 {
        match self {
            Self::Second => 1_000_000_000,
            Self::Minute => 60 * 1_000_000_000,
            Self::Hour => 3_600 * 1_000_000_000,
        }
    }
}

impl Rate {
    /// Parses `100/s`, `100/m` or `100/h`.
    pub(crate) fn parse(text: &str) -> Result<Self, Wrong> {
        let (count, unit) = text.split_once('/').unwrap_or((text, ""));
        let is_count = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
        let per = match unit {
            "s" => Per::Second,
            "m" => Per::Minute,
            "h" => Per::Hour,
            _ => {
                let meant = unit.chars().next().filter(|first| is_count && "smh".contains(*first));
                return Err(meant.map_or_else(no_rate, |meant| {
                    ("a rate's unit is `s`, `m` or `h`".to_owned(), format!("write `{count}/{meant}`"))
                }));
            }
        };
        if !is_count {
            return Err(no_rate());
        }
        match count.parse().ok().and_then(NonZeroU32::new) {
            Some(count) if count.get() <= MAX_COUNT => Ok(Self { count, per }),
            None if count.bytes().all(|byte| byte == b'0') => Err((
                "a rate of 0 would refuse everything".to_owned(),
                "write an AccessPolicy with `action: Deny`".to_owned(),
            )),
            _ => Err((
                format!("a rate is at most {MAX_COUNT} in its unit"),
                "leave the limit out: no sidecar serves more".to_owned(),
            )),
        }
    }

    /// Between two requests at this rate, rounded up: a limit never lets through more than is written.
    fn interval(self) -> Duration {
        Duration::from_nanos(self.per.nanos().div_ceil(u64::from(self.count.get())))
    }

    /// What one second brings, at least one: the burst of a limit that names none.
    fn of_a_second(self) -> u32 {
        let seconds = self.per.nanos() / 1_000_000_000;
        u32::try_from(u64::from(self.count.get()).div_ceil(seconds)).unwrap_or(u32::MAX)
    }
}

fn no_rate() -> Wrong {
    let form = "write a whole number and a unit: `100/s`, `100/m` or `100/h`";
    ("this is no rate".to_owned(), form.to_owned())
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            Per::Second => 's',
            Per::Minute => 'm',
            Per::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// A rate and how many requests may come at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Quota {
    pub(crate) rate: Rate,
    pub(crate) burst: NonZeroU32,
    cells: governor::Quota,
}

impl Quota {
    /// `None` for `burst`: what a second brings.
    pub(crate) fn new(rate: Rate, burst: Option<u64>) -> Result<Self, Wrong> {
        let burst = burst.unwrap_or_else(|| u64::from(rate.of_a_second()));
        let burst = u32::try_from(burst).ok().filter(|burst| *burst <= MAX_BURST).and_then(NonZeroU32::new);
        let burst = burst.ok_or_else(|| {
            let default = format!("leave it out: it is {} then, what a second brings", rate.of_a_second());
            (format!("a burst is a number from 1 to {MAX_BURST}"), default)
        })?;
        let refill = rate.interval().saturating_mul(burst.get());
        if refill > MAX_REFILL {
            let hours = refill.as_secs().div_ceil(3_600);
            let most = MAX_REFILL.as_nanos() / rate.interval().as_nanos();
            return Err((
                format!("a burst of {burst} at {rate} takes {hours} hours to come back; at most 24 may pass"),
                format!("write at most {most}"),
            ));
        }
        let cells = governor::Quota::with_period(rate.interval()).ok_or_else(no_rate)?;
        Ok(Self { rate, burst, cells: cells.allow_burst(burst) })
    }

    fn interval(&self) -> u64 {
        u64::try_from(self.cells.replenish_interval().as_nanos()).unwrap_or(LAST)
    }

    /// Whether it never lets more through than `other`, over any time.
    pub(crate) fn is_at_most(&self, other: &Self) -> bool {
        self.interval() >= other.interval() && self.burst <= other.burst
    }

    /// Takes one request from a bucket that is full again at `until`: when it will be full then, or how long to wait.
    pub(crate) fn step(&self, until: u64, now: u64) -> Result<u64, Duration> {
        let limiter: RateLimiter<NotKeyed, Bucket, Told, NoOpMiddleware<Nanos>> =
            RateLimiter::new(self.cells, Bucket(Cell::new(until)), Told::default());
        // The limiter took its clock's first answer, 0, for its origin; from here on it is told the time.
        limiter.clock().0.set(now);
        match limiter.check() {
            Ok(()) => Ok(limiter.into_state_store().0.get()),
            Err(not_until) => Err(not_until.wait_time_from(Nanos::from(now))),
        }
    }

    /// Gives one request back.
    pub(crate) fn back(&self, until: u64) -> u64 {
        until.saturating_sub(self.interval())
    }
}

/// A moment as buckets count it.
pub(crate) fn moment(since_origin: Duration) -> u64 {
    u64::try_from(since_origin.as_nanos()).unwrap_or(LAST).min(LAST)
}

#[derive(Debug, Default)]
struct Told(Cell<u64>);

impl clock::Clock for Told {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.get())
    }
}

impl Clone for Told {
    fn clone(&self) -> Self {
        Self(Cell::new(self.0.get()))
    }
}

#[derive(Debug)]
struct Bucket(Cell<u64>);

impl StateStore for Bucket {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, until) = measure(Some(Nanos::from(self.0.get())))?;
        self.0.set(until.as_u64());
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates() {
        for text in ["1/s", "100/m", "1000000/h"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        for (text, part) in [
            ("100", "no rate"),
            ("100/min", "unit is"),
            ("1.5/s", "no rate"),
            ("+1/s", "no rate"),
            ("-1/s", "no rate"),
            ("/s", "no rate"),
            ("0/s", "refuse everything"),
            ("1000001/s", "at most 1000000"),
            ("99999999999999999999/s", "at most 1000000"),
        ] {
            let (error, _) = Rate::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let quota = |rate: &str, burst| Quota::new(Rate::parse(rate).unwrap(), burst);
        let default = |rate: &str| quota(rate, None).unwrap().burst.get();
        assert_eq!((default("2000/s"), default("100/m"), default("1/h")), (2_000, 2, 1));
        assert!(quota("1/h", Some(24)).is_ok());
        assert!(quota("1/h", Some(25)).unwrap_err().0.contains("25 hours"));
        for burst in [0, 1_000_001, u64::MAX] {
            assert!(quota("1000/s", Some(burst)).unwrap_err().0.contains("from 1 to"));
        }
    }

    /// The algorithm as it is written down, in integers: a theoretical arrival time, an increment, a tolerance.
    struct Reference {
        arrival: u128,
        increment: u128,
        tolerance: u128,
    }

    impl Reference {
        fn ask(&mut self, now: u64) -> Result<(), u128> {
            let now = u128::from(now);
            let earliest = self.arrival.saturating_sub(self.tolerance);
            if now < earliest {
                return Err(earliest - now);
            }
            self.arrival = self.arrival.max(now) + self.increment;
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn steps_are_those_of_the_algorithm(
            count in 1_u32..=MAX_COUNT, unit in prop::sample::select(&["s", "m", "h"]), burst in 1_u64..200,
            gaps in prop::collection::vec((0_u8..4, 0_u64..2_000), 1..300)
        ) {
            let rate = Rate::parse(&format!("{count}/{unit}")).unwrap();
            let Ok(quota) = Quota::new(rate, Some(burst)) else { return Ok(()) };
            let unit = u128::from(rate.per.nanos());
            let increment = unit.div_ceil(u128::from(count));
            let mut reference =
                Reference { arrival: 0, increment, tolerance: increment * (u128::from(burst) - 1) };
            let (mut until, mut now, mut passed) = (0, 0_u64, 0_u128);
            for (scale, gap) in gaps {
                // In thousandths of the interval, of the burst's time, or in nanoseconds.
                now += match scale {
                    0 => gap % 3,
                    1 => u64::try_from(increment).unwrap() * gap / 1_000,
                    2 => u64::try_from(increment * u128::from(burst) / 1_000).unwrap() * gap,
                    _ => 0,
                };
                let stepped = quota.step(until, now);
                match reference.ask(now) {
                    Ok(()) => {
                        prop_assert_eq!(stepped.map(u128::from), Ok(reference.arrival));
                        let back = quota.back(stepped.unwrap());
                        // Given back it is as full as it was, seen from now on.
                        prop_assert_eq!(back.max(now), until.max(now));
                        until = stepped.unwrap();
                        passed += 1;
                    }
                    Err(wait) => {
                        prop_assert_eq!(stepped, Err(Duration::from_nanos(u64::try_from(wait).unwrap())));
                        // Waiting so long is enough, and a nanosecond less is not.
                        let then = now + u64::try_from(wait).unwrap();
                        prop_assert!(quota.step(until, then).is_ok() && quota.step(until, then - 1).is_err());
                    }
                }
                // Never more than the burst and what the rate brought: passed <= burst + count * now / unit.
                prop_assert!((passed - u128::from(burst).min(passed)) * unit <= u128::from(count) * u128::from(now));
            }
        }
    }

    #[test]
    fn no_moment_overflows() {
        let quota = Quota::new(Rate::parse("1/h").unwrap(), Some(24)).unwrap();
        let last = moment(Duration::MAX);
        let mut until = 0;
        for _ in 0..24 {
            until = quota.step(until, last).unwrap();
        }
        assert!(quota.step(until, last).is_err());
        assert!(quota.step(until, 0).is_err());
    }
}
