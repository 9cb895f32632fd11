use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::lineage::{Attestor, LineageId};
use crate::store::{Kind, Reason, Revocation, State};
use crate::testing::{HOUR, Home, id, start, td};
use crate::token::Token;

fn issued(serial: u8, lineage: LineageId) -> Issued {
    Issued {
        serial: vec![serial; 16],
        id: id("orders"),
        lineage,
        issuer: vec![7; 20],
        key: [serial; 32],
        issued: start(),
        not_before: start(),
        not_after: start() + HOUR,
        renew_after: start() + HOUR / 2,
        certificate: vec![serial; 400],
    }
}

fn root(label: &str) -> Authority {
    Authority {
        kind: Kind::Root,
        state: State::Active,
        label: label.to_owned(),
        key_id: label.as_bytes().to_vec(),
        certificate: vec![1, 2, 3],
        not_before: start(),
        not_after: start() + HOUR,
        since: start(),
        sequence: 0,
        tainted: None,
        replica: None,
        is_offline: false,
    }
}

fn add(authority: Authority) -> AuthorityChange {
    AuthorityChange { add: vec![authority], ..AuthorityChange::new(start(), "test") }
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let home = Home::new();
    let lineage = LineageId::random().unwrap();
    {
        let store = home.store();
        store.change_authorities(add(root("a"))).unwrap();
        store.raise_bundle_sequence(3).unwrap();
        store.record(issued(1, lineage), Grant::New(Attestor::JoinToken)).unwrap();
    }
    let store = home.store();
    assert_eq!(store.authorities().unwrap()[0].label, "a");
    assert_eq!(store.bundle_sequence().unwrap(), 3);
    assert_eq!(store.last_issued().unwrap(), Some(start()));
    let (found, of) = store.certificate(&[1; 16]).unwrap().unwrap();
    assert_eq!((found.id, found.not_after, of.newest), (id("orders"), start() + HOUR, vec![1; 16]));
    assert!(store.certificate(&[2; 16]).unwrap().is_none());
    for sequence in [0, 2, 3] {
        assert!(matches!(store.raise_bundle_sequence(sequence), Err(StoreError::Conflict(_))));
    }
}

#[test]
fn a_token_is_spent_once_whoever_asks_at_the_same_time() {
    let home = Home::new();
    let store = home.store();
    let token = Token::random().unwrap();
    let hash = token.hash();
    let expires = start() + HOUR;
    store.add_token(TokenRecord { hash, id: id("orders"), created: start(), expires, bound: None }).unwrap();
    let spent: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (1..=16)
            .map(|serial| {
                let store = Arc::clone(&store);
                scope.spawn(move || {
                    let lineage = LineageId::random().unwrap();
                    store.record(issued(serial, lineage), Grant::Token(hash)).is_ok()
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(spent.iter().filter(|ok| **ok).count(), 1);
    // The losers left nothing behind.
    assert_eq!(store.valid_certificates(start(), &[], 100).unwrap().len(), 1);
    let bound = store.token(hash).unwrap().unwrap().bound.unwrap();
    let winner = store.key_owner(bound.key).unwrap().unwrap();
    assert_eq!(winner.lineage, bound.lineage);
}

#[test]
fn an_expired_token_is_not_spent() {
    let home = Home::new();
    let store = home.store();
    let hash = Token::random().unwrap().hash();
    let (created, expires) = (start() - HOUR, start());
    store.add_token(TokenRecord { hash, id: id("orders"), created, expires, bound: None }).unwrap();
    let lineage = LineageId::random().unwrap();
    let refused = store.record(issued(1, lineage), Grant::Token(hash));
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
    assert!(store.certificate(&[1; 16]).unwrap().is_none());
}

#[test]
fn a_lineage_moves_only_from_where_it_was_seen() {
    let home = Home::new();
    let store = home.store();
    let lineage = LineageId::random().unwrap();
    store.record(issued(1, lineage), Grant::New(Attestor::JoinToken)).unwrap();
    let next = |predecessor, newest| Grant::Lineage { predecessor, newest };
    store.record(issued(2, lineage), next(vec![1; 16], vec![1; 16])).unwrap();
    let late = store.record(issued(3, lineage), next(vec![1; 16], vec![1; 16]));
    assert!(matches!(late, Err(StoreError::Conflict(_))));
    let found = store.lineage(lineage).unwrap().unwrap();
    assert_eq!((found.newest, found.parent), (vec![2; 16], Some(vec![1; 16])));
    store.mark_forked(lineage, start()).unwrap();
    let forked = store.record(issued(4, lineage), next(vec![2; 16], vec![2; 16]));
    assert!(matches!(forked, Err(StoreError::Conflict(_))));
    assert_eq!(store.counts(start()).unwrap().forked, 1);
}

#[test]
fn pages_and_pruning() {
    let home = Home::new();
    let store = home.store();
    for serial in 1..=5 {
        let lineage = LineageId::random().unwrap();
        let mut row = issued(serial, lineage);
        row.not_after = start() + HOUR * u32::from(serial);
        store.record(row, Grant::New(Attestor::JoinToken)).unwrap();
    }
    let serials = |rows: Vec<Issued>| rows.iter().map(|row| row.serial[0]).collect::<Vec<_>>();
    assert_eq!(serials(store.valid_certificates(start(), &[], 2).unwrap()), [1, 2]);
    assert_eq!(serials(store.valid_certificates(start(), &[2; 16], 10).unwrap()), [3, 4, 5]);
    assert_eq!(serials(store.valid_certificates(start() + HOUR * 3, &[], 10).unwrap()), [3, 4, 5]);
    // Twenty minutes at a time, from a day before the first end: a clock that is ahead is noticed before it has taken anything.
    let prune = || store.prune(start() + HOUR * 4).unwrap();
    assert_eq!((0..72).map(|_| prune()).sum::<u64>(), 0);
    let gone: Vec<_> = (0..12).map(|_| prune()).collect();
    assert_eq!(gone, [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(serials(store.valid_certificates(start(), &[], 10).unwrap()), [4, 5]);
}

#[test]
fn modes_are_set_and_demanded() {
    let home = Home::new();
    drop(home.store());
    let store = home.store();
    store.raise_bundle_sequence(1).unwrap();
    for name in [DATABASE, "ca.db-wal", "ca.db-shm", "ca.mark"] {
        let mode = fs::metadata(home.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{name}");
    }
    drop(store);
    let set = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(&home.path().join(DATABASE), 0o644);
    let error = Sqlite::open(&home.path(), &td()).err().unwrap().to_string();
    assert!(error.contains("mode 644") && error.contains("chmod 600"), "{error}");
    set(&home.path().join(DATABASE), 0o600);
    set(&home.path(), 0o755);
    let error = Sqlite::open(&home.path(), &td()).err().unwrap().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn a_database_of_somebody_else_is_refused() {
    let home = Home::new();
    drop(home.store());
    let other = TrustDomain::parse("other").unwrap();
    assert!(matches!(Sqlite::open(&home.path(), &other), Err(StoreError::TrustDomain { .. })));

    let path = home.path().join(DATABASE);
    let edit = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    edit("PRAGMA user_version = 99");
    assert!(matches!(Sqlite::open(&home.path(), &td()), Err(StoreError::Schema { found: 99, .. })));
    edit("PRAGMA user_version = 1; PRAGMA application_id = 7");
    assert!(matches!(Sqlite::open(&home.path(), &td()), Err(StoreError::File(_))));
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(home.path().join(format!("{DATABASE}{suffix}")));
    }
    fs::write(
        &path,
        b"this is no database, whatever its name says; it is even longer than a header of 100 bytes would be",
    )
    .unwrap();
    assert!(matches!(Sqlite::open(&home.path(), &td()), Err(StoreError::Damaged(..))));
}

#[test]
fn a_damaged_row_is_an_error_and_no_panic() {
    let home = Home::new();
    let lineage = LineageId::random().unwrap();
    let store = home.store();
    store.record(issued(1, lineage), Grant::New(Attestor::JoinToken)).unwrap();
    let edit = Connection::open(home.path().join(DATABASE)).unwrap();
    edit.execute_batch("UPDATE issued SET spiffe_id = 'https://evil'").unwrap();
    assert!(matches!(store.certificate(&[1; 16]), Err(StoreError::Damaged(..))));
    edit.execute_batch(&format!("UPDATE issued SET spiffe_id = '{}'; DELETE FROM lineage", id("orders")))
        .unwrap();
    assert!(matches!(store.certificate(&[1; 16]), Err(StoreError::Damaged(..))));
}

#[test]
fn an_older_copy_is_noticed() {
    let home = Home::new();
    let path = home.path().join(DATABASE);
    let lineage = LineageId::random().unwrap();
    home.store().record(issued(1, lineage), Grant::New(Attestor::JoinToken)).unwrap();
    let old = fs::read(&path).unwrap();
    home.store().record(issued(2, LineageId::random().unwrap()), Grant::New(Attestor::JoinToken)).unwrap();
    drop(home.store());
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(home.path().join(format!("{DATABASE}{suffix}")));
    }
    fs::write(&path, old).unwrap();
    let error = Sqlite::open(&home.path(), &td()).err().unwrap();
    assert!(matches!(error, StoreError::RolledBack { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("issued 1, was 2") && text.contains("delete") && text.contains("ca.mark"),
        "{text}"
    );
    // The way out that the text names.
    fs::remove_file(home.path().join("ca.mark")).unwrap();
    Sqlite::open(&home.path(), &td()).unwrap();
}

#[test]
fn one_failure_does_not_undo_its_neighbours() {
    let home = Home::new();
    let store = home.store();
    // The writer is kept busy, so that what comes next shares one transaction.
    std::thread::scope(|scope| {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let blocker = Arc::clone(&store);
        scope.spawn(move || {
            blocker.call(move |_| {
                wait.recv_timeout(Duration::from_secs(5)).unwrap();
                Ok(())
            })
        });
        std::thread::yield_now();
        let good = (1..=3).map(|serial| {
            let store = Arc::clone(&store);
            scope.spawn(move || {
                store.record(issued(serial, LineageId::random().unwrap()), Grant::New(Attestor::JoinToken))
            })
        });
        let good: Vec<_> = good.collect();
        let bad = Arc::clone(&store);
        let bad = scope.spawn(move || {
            let nowhere = Grant::Lineage { predecessor: vec![9; 16], newest: vec![9; 16] };
            bad.record(issued(9, LineageId::random().unwrap()), nowhere)
        });
        go.send(()).unwrap();
        for one in good {
            one.join().unwrap().unwrap();
        }
        assert!(bad.join().unwrap().is_err());
    });
    assert_eq!(store.valid_certificates(start(), &[], 10).unwrap().len(), 3);
}

#[test]
fn another_process_may_write_meanwhile() {
    let home = Home::new();
    let (a, b) = (home.store(), home.store());
    let hash = Token::random().unwrap().hash();
    let expires = start() + HOUR;
    b.add_token(TokenRecord { hash, id: id("orders"), created: start(), expires, bound: None }).unwrap();
    assert_eq!(a.token(hash).unwrap().unwrap().id, id("orders"));
}

#[test]
fn a_step_that_fails_halfway_leaves_nothing() {
    let home = Home::new();
    let store = home.store();
    let mut change = add(root("a"));
    change.set = vec![("nobody".to_owned(), State::Retired)];
    assert!(matches!(store.change_authorities(change), Err(StoreError::Conflict(_))));
    assert!(store.authorities().unwrap().is_empty());

    // The token is bound first, then the row with a serial that exists already fails.
    store.record(issued(1, LineageId::random().unwrap()), Grant::New(Attestor::JoinToken)).unwrap();
    let hash = Token::random().unwrap().hash();
    let expires = start() + HOUR;
    store.add_token(TokenRecord { hash, id: id("orders"), created: start(), expires, bound: None }).unwrap();
    let twice = store.record(issued(1, LineageId::random().unwrap()), Grant::Token(hash));
    assert!(matches!(twice, Err(StoreError::Database(_))));
    assert_eq!(store.token(hash).unwrap().unwrap().bound, None);
}

#[test]
fn a_mark_that_cannot_be_written_fails_no_commit() {
    let home = Home::new();
    let store = home.store();
    let mark = home.path().join("ca.mark");
    // Nothing can be renamed over a directory: as when the disk is full or the descriptors are used up.
    fs::create_dir_all(&mark).unwrap();
    store.change_authorities(add(root("a"))).unwrap();
    store.raise_bundle_sequence(1).unwrap();
    fs::remove_dir(&mark).unwrap();
    // The next commit of any kind makes up for it.
    store.record(issued(1, LineageId::random().unwrap()), Grant::New(Attestor::JoinToken)).unwrap();
    assert_eq!(fs::read_to_string(&mark).unwrap(), "bundle_sequence 1\njournal 1\nissued 1\n");
}

#[test]
fn who_holds_the_database_is_told_from_a_store_that_is_closed() {
    let home = Home::new();
    let store = home.store();
    let other = Connection::open(home.path().join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let calls = [
            scope.spawn(|| store.probe(start())),
            scope.spawn(|| {
                store.record(issued(1, LineageId::random().unwrap()), Grant::New(Attestor::JoinToken))
            }),
        ];
        // Who only reads waits for nobody.
        assert!(store.authorities().unwrap().is_empty());
        assert!(store.certificate(&[1]).unwrap().is_none());
        for call in calls {
            let error = call.join().unwrap().unwrap_err();
            assert!(matches!(error, StoreError::Locked), "{error}");
            assert!(error.to_string().contains("another process holds the database"), "{error}");
        }
    });
    other.execute_batch("ROLLBACK").unwrap();
    store.probe(start()).unwrap();
    assert!(store.valid_certificates(start(), &[], 10).unwrap().is_empty(), "what failed did not happen");
}

#[test]
fn a_probe_waits_for_a_store_that_hangs_no_longer_than_told() {
    let home = Home::new();
    let store = home.store();
    std::thread::scope(|scope| {
        let (begun, is_stuck) = std::sync::mpsc::channel::<()>();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let stuck = Arc::clone(&store);
        scope.spawn(move || stuck.call(move |_| Ok((begun.send(()), wait.recv()))));
        is_stuck.recv().unwrap();
        let probed = store.recorded_within(Duration::from_millis(50), |_| Ok(()));
        assert!(matches!(probed, Err(StoreError::Slow)), "{probed:?}");
        go.send(()).unwrap();
    });
}

#[test]
fn an_order_counts_as_long_as_somebody_waits_for_it() {
    let home = Home::new();
    let store = home.store();
    let order = |verb| Order { verb, force: None };
    let at = |seconds| start() + Duration::from_secs(seconds);
    let open = |seconds| {
        let orders = store.open_orders(at(seconds)).unwrap();
        orders.into_iter().map(|(_, order)| order.verb).collect::<Vec<_>>()
    };
    let number = store.add_order(order(OrderVerb::Activate), start()).unwrap();
    assert_eq!(open(4), [OrderVerb::Activate]);
    assert!(open(6).is_empty(), "whoever gave it is gone");
    assert!(store.keep_order(number, at(6)).unwrap());
    assert_eq!(open(8), [OrderVerb::Activate], "no: it only came late");
    assert!(open(0).is_empty(), "of a clock that leapt ahead");
    store.add_order(order(OrderVerb::Remove), at(20)).unwrap();
    assert_eq!(open(20), [OrderVerb::Remove]);
    assert!(!store.keep_order(number, at(20)).unwrap(), "forgotten");
}

#[test]
fn a_denial_does_not_end_earlier_because_it_is_repeated() {
    let home = Home::new();
    let store = home.store();
    let deny = |reason: &str, seconds| {
        let reason = Reason::parse(reason).unwrap();
        let ends = Some(start() + Duration::from_secs(seconds));
        store.revoke(Revocation { entry: Revoked::Id(id("web")), reason, at: start(), ends })
    };
    let sequence = deny("stolen", 86_400).unwrap();
    let text = deny("again", 5).unwrap_err().to_string();
    assert!(text.contains("stolen") && text.contains("allow-again"), "{text}");
    let kept = store.trust().unwrap().revocations.remove(0);
    assert_eq!((kept.reason.as_str(), kept.ends), ("stolen", Some(start() + Duration::from_secs(86_400))));
    assert_eq!(deny("longer", 86_401).unwrap(), sequence, "sidecars have it already");
}
