//! Clocks that are wrong, by a day or by ten years: nothing is done that could not be undone when they come back.

use std::time::Duration;

use super::*;
use crate::authority::{AuthorityError, Mode};
use crate::keys::{KeyFiles, KeyStore as _};
use crate::store::{Reason as Words, StoreError};
use crate::testing::{Ca, HOUR, Home, id, key, peer, start, td};

const DAY: Duration = Duration::from_secs(86_400);
const YEARS: i64 = 10 * 365 * 86_400 * 1_000;

fn leapt<T>(result: Result<T, IssueError>) -> bool {
    matches!(result, Err(IssueError::Store(StoreError::Leapt { .. })))
}

/// Everything that a control plane does from time to time, at whatever time it is.
fn everything(ca: &Ca) -> [bool; 6] {
    [
        ca.issuer.look_at_clock().is_ok(),
        ca.authority.maintain().is_ok(),
        ca.authority.step(&[], Mode::Automatic).is_ok(),
        ca.authority.follow().is_ok(),
        ca.store.prune(ca.clock.wall() - DAY).is_ok(),
        ca.issuer.self_test().is_ok(),
    ]
}

#[test]
fn ten_years_ahead_and_back_leave_everything_as_it_was() {
    let home = Home::new();
    let ca = home.ca_on(home.store_with_ledger(1 << 20).unwrap());
    let orders = ca.joined(&id("orders"));
    let token = ca.token(&id("store"));
    assert_eq!(everything(&ca), [true; 6]);
    let keys = || {
        let mut names = KeyFiles::new(&home.path()).names().unwrap();
        names.sort();
        names
    };
    let state = |ca: &Ca| {
        let rows: Vec<_> =
            ca.store.authorities().unwrap().into_iter().map(|row| (row.label, row.state)).collect();
        let size = ca.store.ledger().unwrap().unwrap().size;
        (rows, size, ca.store.bundle_sequence().unwrap(), ca.store.counts(start()).unwrap().valid, keys())
    };
    let before = state(&ca);
    // Past the root's end, where everything is over; and well within its life, where all gates are open because nobody lives.
    for years in [YEARS + 86_400_000 * 30, YEARS * 9 / 10, YEARS / 10, 8 * 86_400_000] {
        home.clock.jump_wall(years);
        for _ in 0..3 {
            let done = everything(&ca);
            assert!(!done[0] && !done[3] && !done[5], "{years}: {done:?}");
        }
        assert!(leapt(ca.join(&id("store"), &token, &key())));
        assert!(leapt(ca.renew(&orders, &key())));
        let own = rcgen::KeyPair::generate_for(crate::profile::ISSUING_KEY).unwrap();
        assert!(leapt(ca.issuer.issue_own(&own)));
        let reason = Words::parse("a tape is lost").unwrap();
        assert!(ca.store.taint(before.0[1].0.clone(), reason, home.clock.wall()).is_err());
        assert_eq!(state(&ca), before, "{years}");
        home.clock.jump_wall(-years);
        assert_eq!(everything(&ca), [true; 6], "it goes on by itself");
    }
    // A control plane that starts at such a time says so, and leaves everything alone too.
    drop(ca);
    home.clock.jump_wall(YEARS * 2);
    let store = home.store_with_ledger(1 << 20).unwrap();
    let refused = home.authority(store.clone()).err().unwrap();
    assert!(matches!(refused, AuthorityError::Store(StoreError::Leapt { .. })), "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains("2046-") && text.contains("7300 days") && text.contains("postern ca clock confirm"),
        "{text}"
    );
    drop(store);
    home.clock.jump_wall(-YEARS * 2);
    let ca = home.ca_on(home.store_with_ledger(1 << 20).unwrap());
    assert_eq!(state(&ca), before);
    let next = peer(&ca.renew(&orders, &key()).unwrap());
    ca.renew(&next, &key()).unwrap();
    ca.join(&id("store"), &token, &key()).unwrap();
}

#[test]
fn an_operator_says_that_a_leap_is_right() {
    let home = Home::new();
    let ca = home.ca();
    ca.joined(&id("orders"));
    home.clock.jump_wall(YEARS / 2);
    assert!(leapt(ca.issuer.self_test()));
    assert!(leapt(ca.issuer.look_at_clock()));
    home.confirm_clock(&ca.store);
    ca.issuer.look_at_clock().unwrap();
    ca.authority.maintain().unwrap();
    ca.issuer.self_test().unwrap();
    ca.joined(&id("orders"));
    let journal = ca.store.journal(0).unwrap();
    let told = journal.iter().find(|entry| entry.state == "clock confirmed").unwrap();
    assert_eq!(told.reason, "looked at three other clocks");
}

/// A machine that was off for a long weekend, or that slept, goes on without anybody's word.
#[test]
fn a_pause_of_some_days_is_no_leap() {
    let home = Home::new();
    let ca = home.ca();
    ca.joined(&id("orders"));
    home.clock.jump_wall(6 * 86_400_000);
    assert_eq!(everything(&ca), [true; 6]);
    ca.joined(&id("orders"));
    drop(ca);
    home.clock.jump_wall(6 * 86_400_000);
    home.ca().joined(&id("orders"));
}

#[test]
fn a_day_back_stops_issuing_until_the_clock_is_right_again() {
    let home = Home::new();
    let ca = home.ca();
    let orders = ca.joined(&id("orders"));
    let token = ca.token(&id("store"));
    home.clock.jump_wall(-86_400_000);
    let refused = ca.join(&id("store"), &token, &key()).unwrap_err();
    assert_eq!(refused.reason(), "clock");
    let refused = ca.issuer.self_test().unwrap_err().to_string();
    assert!(refused.contains("86400 s behind") && refused.contains("postern ca clock confirm"), "{refused}");
    assert_eq!(ca.renew(&orders, &key()).unwrap_err().reason(), "clock");
    home.clock.jump_wall(86_400_000);
    ca.issuer.self_test().unwrap();
    ca.join(&id("store"), &token, &key()).unwrap();
    ca.renew(&orders, &key()).unwrap();
}

/// Four days ahead are believed, and an issuing CA is made; then the clock comes back to what is right.
#[test]
fn an_operator_says_that_a_step_back_is_right() {
    let home = Home::new();
    let ca = home.ca_on(home.store_with_ledger(1 << 20).unwrap());
    let orders = ca.joined(&id("orders"));
    home.clock.jump_wall(5 * 86_400_000);
    for _ in 0..3 {
        ca.authority.maintain().unwrap();
    }
    ca.joined(&id("store"));
    // A round that forgets old rows comes too: within a wrong time it takes nothing that lives.
    for _ in 0..20 {
        ca.store.prune(home.clock.wall() - DAY).unwrap();
    }
    home.clock.jump_wall(-5 * 86_400_000);
    assert_eq!(ca.issuer.self_test().unwrap_err().reason(), "clock");
    home.confirm_clock(&ca.store);
    ca.authority.follow().unwrap();
    ca.issuer.self_test().unwrap();
    let next = peer(&ca.renew(&orders, &key()).unwrap());
    assert!(next.not_before() <= home.clock.wall());
    ca.joined(&id("web"));
    // The ledger stays in order, and a second step back is one.
    let state = ca.store.ledger().unwrap().unwrap();
    let files = home.path().join(crate::ledger::DIRECTORY);
    let known = || Ok::<_, crate::ledger::LedgerError>(state.clone());
    crate::ledger::verify(&files, known).unwrap();
    home.clock.jump_wall(-3_600_000);
    assert_eq!(ca.renew(&next, &key()).unwrap_err().reason(), "clock");
    home.clock.jump_wall(3_600_000);
    home.clock.advance(HOUR / 2);
    ca.renew(&next, &key()).unwrap();
    assert_eq!(td(), *ca.authority.trust_domain());
}
