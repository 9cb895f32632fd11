//! What holds for every shared store, shown on the one in memory.

use std::sync::Arc;
use std::time::Duration;

use postern_svid::TestClock;

use super::*;
use crate::testing::start;

const TTL: Duration = Duration::from_secs(10);

fn memory() -> (Arc<Memory>, TestClock) {
    let clock = TestClock::at(start());
    (Arc::new(Memory::new(Arc::new(clock.clone()))), clock)
}

fn done(swap: Swap) -> u64 {
    let Swap::Done(revision) = swap else { panic!("{swap:?}") };
    revision
}

#[test]
fn all_or_nothing_by_version() {
    let (store, _) = memory();
    let first = done(
        store.swap(&[Change::put("a/x", 0, b"1".to_vec()), Change::put("a/y", 0, vec![])], None).unwrap(),
    );
    // One of two has another version by now: neither is written.
    let both = [Change::put("a/x", first, b"2".to_vec()), Change::put("a/y", 0, b"2".to_vec())];
    assert_eq!(store.swap(&both, None).unwrap(), Swap::Conflict);
    assert_eq!(store.read("a/").unwrap().find("a/x").unwrap().value, b"1");
    let both = [Change::put("a/x", first, b"2".to_vec()), Change::keep("a/y", first)];
    let second = done(store.swap(&both, None).unwrap());
    let listing = store.read("a/").unwrap();
    assert_eq!((listing.version("a/x"), listing.version("a/y")), (second, first));
    assert_eq!(store.swap(&[Change::delete("a/x", first)], None).unwrap(), Swap::Conflict);
    done(store.swap(&[Change::delete("a/x", second)], None).unwrap());
    assert_eq!(store.read("a/x").unwrap().entries, []);
    assert_eq!(store.read("b").unwrap().entries, []);
}

#[test]
fn a_holder_past_its_lease_writes_nothing() {
    let (store, clock) = memory();
    let write = |fence: &Fence| {
        store.swap(&[Change::put("k", store.read("k").unwrap().version("k"), vec![])], Some(fence)).unwrap()
    };
    let first = store.acquire("leader", "a", TTL).unwrap().unwrap();
    assert_eq!(store.acquire("leader", "b", TTL).unwrap(), None);
    assert_eq!(
        store.acquire("leader", "a", TTL).unwrap(),
        None,
        "even by the same name: which of two is it?"
    );
    done(write(&first));
    clock.advance(TTL / 2);
    assert!(store.renew(&first).unwrap());
    clock.advance(TTL * 3 / 4);
    done(write(&first));
    clock.advance(TTL);
    // Nobody has followed it yet, and still.
    assert_eq!(write(&first), Swap::Fenced);
    let second = store.acquire("leader", "b", TTL).unwrap().unwrap();
    assert!(second.token > first.token);
    assert_eq!(write(&first), Swap::Fenced);
    assert!(!store.renew(&first).unwrap());
    store.release(&first).unwrap();
    assert_eq!(store.holder("leader").unwrap().as_deref(), Some("b"));
    done(write(&second));
    store.release(&second).unwrap();
    assert_eq!(write(&second), Swap::Fenced);
    assert_eq!(store.holder("leader").unwrap(), None);
}

#[test]
fn a_wait_ends_with_a_change_below_its_prefix_alone() {
    let (store, _) = memory();
    let at = done(store.swap(&[Change::put("trust/a", 0, vec![])], None).unwrap());
    assert_eq!(store.wait("trust/", at - 1, TTL).unwrap(), at, "it happened before the wait");
    let other = done(store.swap(&[Change::put("replica/a", 0, vec![])], None).unwrap());
    assert_eq!(store.wait("trust/", at, Duration::from_millis(5)).unwrap(), other, "nothing in time");
    let waiting = std::thread::spawn({
        let store = store.clone();
        move || store.wait("trust/", other, TTL).unwrap()
    });
    let gone = done(store.swap(&[Change::delete("trust/a", at)], None).unwrap());
    assert_eq!(waiting.join().unwrap(), gone, "what is taken out is a change too");
    assert_eq!(store.wait("trust/", gone + 5, TTL).unwrap(), gone, "put back to an older state");
    store.set_away(true);
    assert!(matches!(store.wait("trust/", gone, TTL), Err(SharedError::Unavailable(_))));
}

#[test]
fn what_is_no_swap() {
    let (store, _) = memory();
    let put = |key: &str, length| Change::put(key, 0, vec![0; length]);
    let many: Vec<_> = (0..=MAX_CHANGES).map(|n| put(&format!("k{n}"), 1)).collect();
    for bad in [
        vec![],
        many.clone(),
        vec![put("k", 1), put("k", 1)],
        vec![put("K", 1)],
        vec![put("a//b", 1)],
        vec![put("/a", 1)],
        vec![put("a/../b", 1)],
        vec![put(&"k".repeat(MAX_KEY + 1), 1)],
        vec![put("a b", 1)],
    ] {
        assert!(matches!(store.swap(&bad, None), Err(SharedError::Invalid(_))), "{bad:?}");
    }
    assert!(store.swap(&many[1..], None).is_ok());
    for large in [vec![put("a", MAX_VALUE + 1)], vec![put("a", MAX_VALUE), put("b", MAX_VALUE), put("c", 1)]]
    {
        assert!(matches!(store.swap(&large, None), Err(SharedError::TooLarge { .. })));
    }
    // Together with what is there already.
    store.swap(&[put("a", MAX_VALUE)], None).unwrap();
    assert!(matches!(store.swap(&[put("b", MAX_VALUE)], None), Err(SharedError::TooLarge { .. })));
}
