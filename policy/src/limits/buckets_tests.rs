use std::collections::HashMap;

use proptest::prelude::*;

use super::super::meter::Rate;
use super::*;

fn quota(rate: &str, burst: u64) -> Quota {
    Quota::new(Rate::parse(rate).unwrap(), Some(burst)).unwrap()
}

fn at(key: u64) -> At {
    // Spread as a hash spreads.
    At { quota: 0, tag: Some(key.wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn keys_have_buckets_of_their_own_as_long_as_there_is_room() {
    let (buckets, quota) = (Buckets::new(1, Some(3)), quota("1/s", 1));
    let take = |key, now| buckets.take(at(key), &quota, now);
    for key in 0..3 {
        assert_eq!(take(key, 0), Ok(Taken::Own));
    }
    // No place: the next two share one bucket, of the same size.
    assert!(buckets.peek(at(3), &quota, 0).is_ok());
    assert_eq!(take(3, 0), Ok(Taken::Shared));
    assert!(buckets.peek(at(4), &quota, 0).is_err());
    assert_eq!(take(4, 0), Err(Duration::from_secs(1)));
    assert_eq!(buckets.keys(), 3);
    // A second later all are full again: newcomers take their places.
    assert_eq!(take(5, SECOND), Ok(Taken::Own));
    assert_eq!(buckets.keys(), 1);
    buckets.sweep(2 * SECOND);
    assert_eq!(buckets.keys(), 0);
}

#[test]
fn a_bucket_in_use_is_never_pushed_out() {
    let (buckets, quota) = (Buckets::new(1, Some(2)), quota("1/s", 1));
    let take = |key, now| buckets.take(at(key), &quota, now);
    assert_eq!(take(1, 0), Ok(Taken::Own));
    assert_eq!(take(2, SECOND / 2), Ok(Taken::Own));
    for key in 10..1_000 {
        let _ = take(key, SECOND / 2);
    }
    assert!(take(1, SECOND / 2).is_err(), "whoever makes up keys does not free another caller");
    // The first is full, the second is not: one place.
    assert_eq!(take(3, SECOND), Ok(Taken::Own));
    assert!(take(2, SECOND).is_err());
    // The shared bucket was emptied by those who made up keys.
    assert_eq!(take(4, SECOND + SECOND / 4), Err(Duration::from_millis(250)));
}

#[test]
fn quotas_do_not_share_a_bucket() {
    let (buckets, quota) = (Buckets::new(2, None), quota("1/s", 1));
    let of = |number| At { quota: number, tag: None };
    assert!(buckets.take(of(0), &quota, 0).is_ok());
    assert!(buckets.take(of(0), &quota, 0).is_err());
    assert!(buckets.take(of(1), &quota, 0).is_ok());
    buckets.clear();
    assert!(buckets.take(of(0), &quota, 0).is_ok());
}

#[test]
fn many_threads_take_no_more_than_there_is() {
    let quota = quota("1/h", 24);
    for most in [None, Some(1_000)] {
        let buckets = Buckets::new(1, most);
        let passed: usize = std::thread::scope(|scope| {
            let thread = || {
                let taken = (0..2_000).filter(|n| {
                    let at = At { tag: most.map(|_| at(n % 7).tag.unwrap()), quota: 0 };
                    buckets.take(at, &quota, 5).is_ok()
                });
                taken.count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(thread)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, most.map_or(24, |_| 24 * 7));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a map without bounds beside one shared bucket, and the rule that decides who is in which.
    #[test]
    fn places_are_given_as_it_is_written(
        most in 1_usize..6,
        asks in prop::collection::vec((0_u64..9, 0_u64..700_000_000, any::<bool>()), 1..200),
    ) {
        let quota = quota("2/s", 2);
        let buckets = Buckets::new(1, Some(most));
        let (mut own, mut shared) = (HashMap::<u64, u64>::new(), 0);
        let mut now = 0;
        for (key, gap, gives_back) in asks {
            now += gap;
            if !own.contains_key(&key) && own.len() >= most {
                own.retain(|_, until| *until > now);
            }
            let is_own = own.contains_key(&key) || own.len() < most;
            let mut absent = 0;
            let until = match is_own {
                true => own.get_mut(&key).unwrap_or(&mut absent),
                false => &mut shared,
            };
            let expected = quota.step(*until, now);
            prop_assert_eq!(buckets.peek(at(key), &quota, now), expected.map(drop));
            let taken = buckets.take(at(key), &quota, now);
            let place = if is_own { Taken::Own } else { Taken::Shared };
            prop_assert_eq!(taken, expected.map(|_| place));
            if let Ok(next) = expected {
                let next = if gives_back { quota.back(next) } else { next };
                if gives_back {
                    buckets.give_back(at(key), place, &quota);
                }
                if is_own {
                    own.insert(key, next);
                } else {
                    shared = next;
                }
            }
            prop_assert!(buckets.keys() <= most);
        }
    }
}

/// The figure that docs/rate-limits.md gives.
#[test]
fn a_flood_of_keys_takes_bounded_memory_and_gives_it_back() {
    let (most, quota) = (10_000, quota("1/s", 5));
    let buckets = Buckets::new(1, Some(most));
    let mut held = 0_usize;
    let measured = allocation_counter::measure(|| {
        for key in 0..100_000 {
            let _ = buckets.take(at(key), &quota, key);
        }
        held = buckets.keys();
    });
    assert_eq!(held, most);
    let each = measured.bytes_current as usize / most;
    println!("{each} bytes a key, {} at most while maps grow", measured.bytes_max as usize / most);
    assert!((16..=64).contains(&each), "{each} bytes a key");
    let freed = allocation_counter::measure(|| buckets.sweep(100 * SECOND));
    assert_eq!(buckets.keys(), 0);
    assert!(freed.bytes_current < 0, "{freed:?}");
}
