//! What must hold of a whole ledger, with the store that fills it.

mod page;
mod proofs;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::store::{Sqlite, Store as _, StoreError};
use crate::testing::{Ca, HOUR, Home, id, key, peer, td};
use postern_svid::Clock as _;

/// A few certificates a segment.
const SMALL: u64 = 3_000;

fn files(home: &Home) -> PathBuf {
    home.path().join(DIRECTORY)
}

fn entries(directory: &Path) -> Vec<Entry> {
    let mut walk = Walk::from(directory, 0).unwrap();
    std::iter::from_fn(|| walk.read().unwrap()).collect()
}

fn kinds(directory: &Path) -> Vec<&'static str> {
    entries(directory).iter().map(|entry| entry.record.kind.name()).collect()
}

fn check(home: &Home, store: &Sqlite) -> Result<Report, LedgerError> {
    verify(&files(home), || Ok(store.ledger().unwrap().unwrap()))
}

fn ca(home: &Home) -> Ca {
    home.ca_on(home.store_with_ledger(SMALL).unwrap())
}

/// A ledger of some segments, its last head signed.
fn filled(home: &Home, certificates: usize) -> Vec<Vec<u8>> {
    let ca = ca(home);
    let serials = (0..certificates).map(|n| ca.joined(&id(&format!("w{n}"))).serial().to_vec()).collect();
    ca.store.sign_head(home.clock.wall()).unwrap();
    serials
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).map(drop).unwrap()
        }
    }
}

#[test]
fn everything_issued_is_recorded_before_it_leaves() {
    let home = Home::new();
    let ca = ca(&home);
    let token = ca.token(&id("orders"));
    let (first, second) = (key(), key());
    let reply = ca.join(&id("orders"), &token, &first).unwrap();
    let all = entries(&files(&home));
    let newest = &all[all.len() - 1];
    assert_eq!(newest.record.bytes(Field::Certificate), Some(reply.chain[0].as_ref()));
    assert_eq!(newest.record.text(Field::Proof), Some("join_token"));
    assert_eq!(newest.record.bytes(Field::Token), Some(&crate::token::TokenHash::of(&token).unwrap().0[..]));
    assert_eq!(newest.record.time_ms, ms(home.clock.wall()));

    let svid = peer(&reply);
    let renewed = ca.renew(&svid, &second).unwrap();
    let all = entries(&files(&home));
    assert_eq!(all[all.len() - 1].record.bytes(Field::Predecessor), Some(svid.serial()));
    ca.renew(&peer(&renewed), &key()).unwrap();
    assert!(ca.renew(&svid, &key()).is_err());
    ca.issuer.issue_own(&key()).unwrap();
    home.clock.advance(HOUR * 24 * 4);
    ca.authority.maintain().unwrap();
    home.clock.advance(HOUR * 24);
    ca.authority.maintain().unwrap();
    let wanted = [
        "begin",
        "root",
        "issuing",
        "token",
        "certificate",
        "certificate",
        "certificate",
        "fork",
        "certificate",
        "issuing",
        "state",
        "state",
    ];
    assert_eq!(kinds(&files(&home)), wanted);

    assert!(matches!(check(&home, &ca.store).unwrap(), Report { latest: None, size: 12, waiting: 0, .. }));
    ca.store.sign_head(home.clock.wall()).unwrap();
    let report = check(&home, &ca.store).unwrap();
    assert_eq!(report.latest.unwrap().tree.size(), 12);
    assert!(report.segments > 1, "{}", report.segments);
    // Forgotten by the store, kept here.
    // A little at a time.
    let gone: u64 = (0..100).map(|_| ca.store.prune(home.clock.wall()).unwrap()).sum();
    assert!(gone > 0);
    assert_eq!(kinds(&files(&home)).len(), 12);
    assert_eq!(check(&home, &ca.store).unwrap().size, 12);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let home = Home::new();
    filled(&home, 9);
    let size = entries(&files(&home)).len();
    for _ in 0..2 {
        ca(&home).joined(&id("again"));
    }
    let all = entries(&files(&home));
    assert_eq!(all.len(), size + 4);
    assert!(all.iter().enumerate().all(|(at, entry)| entry.record.sequence == at as u64));
    check(&home, &home.store()).unwrap();
}

/// Made by another process while no control plane runs, and by one while it does.
#[test]
fn tokens_of_others_wait_for_the_control_plane() {
    let home = Home::new();
    filled(&home, 1);
    let store = home.store();
    let make = || {
        let out = home.dir.path().join("token");
        crate::token::Token::create(store.as_ref(), &td(), &id("a"), HOUR, home.clock.wall(), &out).unwrap();
        fs::remove_file(out).unwrap();
    };
    make();
    assert_eq!(check(&home, &store).unwrap().waiting, 1);
    let ca = ca(&home);
    assert_eq!(check(&home, &store).unwrap().waiting, 0);
    make();
    ca.store.sign_head(home.clock.wall()).unwrap();
    assert_eq!(check(&home, &store).unwrap().waiting, 0);
    assert_eq!(kinds(&files(&home)).iter().filter(|kind| **kind == "token").count(), 3);
}

#[test]
fn one_byte_changed_anywhere_is_found_and_the_record_named() {
    let home = Home::new();
    filled(&home, 4);
    let store = home.store();
    let state = store.ledger().unwrap().unwrap();
    assert_eq!(state.waiting, state.size, "the head let go of the outbox");
    let good = verify::<LedgerError>(&files(&home), || Ok(state.clone())).unwrap();
    assert!(good.segments > 1);
    let all = entries(&files(&home));
    for file in fs::read_dir(files(&home)).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&file, &changed).unwrap();
            let error = verify::<LedgerError>(&files(&home), || Ok(state.clone())).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&file.display().to_string()), "{}, byte {at}: {text}", file.display());
            let record = all.iter().rfind(|entry| entry.file == file && entry.offset <= at as u64);
            if let Some(record) = record {
                let wanted = record.record.sequence;
                let named = matches!(error, LedgerError::Damaged { sequence, .. } if sequence == wanted);
                assert!(named, "{}, byte {at} of record {wanted}: {text}", file.display());
            }
        }
        fs::write(&file, &bytes).unwrap();
    }
    verify::<LedgerError>(&files(&home), || Ok(state.clone())).unwrap();
}

#[test]
fn a_tail_that_a_crash_cut_off_is_written_anew() {
    let home = Home::new();
    filled(&home, 2);
    let token = ca(&home).token(&id("last"));
    // The last record is synced, answered, and still in the outbox: as after a crash before the next commit.
    let ca = ca(&home);
    let reply = ca.join(&id("last"), &token, &key()).unwrap();
    drop(ca);
    let all = entries(&files(&home));
    let last = &all[all.len() - 1];
    let length = fs::metadata(&last.file).unwrap().len();
    for cut in (last.offset..length).step_by(29) {
        let other = Home::new();
        copy(&home.path(), &other.path());
        let file = files(&other).join(last.file.file_name().unwrap());
        fs::File::options().write(true).open(&file).unwrap().set_len(cut).unwrap();
        let store = other.store_with_ledger(SMALL).unwrap();
        let mended = entries(&files(&other));
        assert_eq!(mended[all.len() - 1].body, last.body, "cut at {cut}");
        assert_eq!(mended[all.len() - 1].record.bytes(Field::Certificate), Some(reply.chain[0].as_ref()));
        check(&other, &store).unwrap();
    }
    // One that was let go of is not made up for: it is damage, and the file, the record and the way out are named.
    let before = &all[all.len() - 2];
    let file = fs::File::options().write(true).open(&before.file).unwrap();
    for cut in [before.offset + 10, before.offset] {
        file.set_len(cut).unwrap();
        let error = home.store_with_ledger(SMALL).err().unwrap().to_string();
        assert!(error.contains(&before.file.display().to_string()), "{error}");
        assert!(error.contains(&format!("record {}", before.record.sequence)), "{error}");
        assert!(error.contains(PAGE), "{error}");
        assert!(check(&home, &home.store()).is_err());
    }
}

#[test]
fn older_files_and_older_databases_are_refused() {
    let home = Home::new();
    filled(&home, 3);
    let old = home.dir.path().join("old");
    copy(&home.path(), &old);
    filled(&home, 3);

    // The files of before beside the database of now.
    let now = home.dir.path().join("now");
    fs::rename(files(&home), &now).unwrap();
    copy(&old.join(DIRECTORY), &files(&home));
    let error = check(&home, &home.store()).unwrap_err().to_string();
    assert!(error.contains("older than the one that the database remembers"), "{error}");
    let error = home.store_with_ledger(SMALL).err().unwrap();
    assert!(matches!(&error, StoreError::Ledger(text) if text.contains("records are missing")), "{error}");

    // The database of before beside the files of now; even without its mark.
    fs::remove_dir_all(files(&home)).unwrap();
    fs::rename(&now, files(&home)).unwrap();
    for name in ["ca.db", "ca.db-wal", "ca.db-shm", "ca.mark"] {
        let _ = fs::remove_file(home.path().join(name));
    }
    fs::copy(old.join("ca.db"), home.path().join("ca.db")).unwrap();
    let error = home.store_with_ledger(SMALL).err().unwrap().to_string();
    assert!(
        error.contains("the database knows only") && error.contains("Put the newer database back"),
        "{error}"
    );
    assert!(matches!(check(&home, &home.store()), Err(LedgerError::Ahead { .. } | LedgerError::Head { .. })));
}

#[test]
fn a_lost_ledger_is_begun_again_only_if_its_key_is_gone_too() {
    let home = Home::new();
    filled(&home, 3);
    let before = home.store().ledger().unwrap().unwrap();
    fs::remove_dir_all(files(&home)).unwrap();
    assert!(home.store_with_ledger(SMALL).is_err());
    fs::remove_dir_all(files(&home)).unwrap();
    fs::remove_file(home.path().join("ledger.key")).unwrap();
    let store = home.store_with_ledger(SMALL).unwrap();
    let all = entries(&files(&home));
    assert_eq!(all[0].record.bytes(Field::PreviousLedger), Some(&before.identity.id[..]));
    assert_eq!(all[0].record.field(Field::PreviousSize), Some(Value::Number(before.size)));
    assert_eq!(all[0].record.bytes(Field::PreviousChain), Some(&before.chain[..]));
    let certificates = all.iter().filter(|entry| entry.record.kind == Kind::Certificate);
    assert_eq!(certificates.filter(|entry| entry.record.field(Field::Imported).is_some()).count(), 3);
    store.sign_head(home.clock.wall()).unwrap();
    assert_ne!(check(&home, &store).unwrap().identity, before.identity);
}

#[test]
fn what_was_before_the_ledger_is_imported() {
    let home = Home::new();
    let serial = {
        let ca = home.ca();
        ca.token(&id("open"));
        ca.joined(&id("orders")).serial().to_vec()
    };
    // As the version before left it.
    rusqlite::Connection::open(home.path().join("ca.db"))
        .unwrap()
        .execute_batch(
            "DROP TABLE revocation; DROP TABLE request; ALTER TABLE authority DROP COLUMN since;
             ALTER TABLE authority DROP COLUMN sequence; ALTER TABLE authority DROP COLUMN tainted;
             DROP TABLE ledger; DROP TABLE outbox; DROP INDEX issued_unrecorded;
             ALTER TABLE authority DROP COLUMN record; ALTER TABLE lineage DROP COLUMN record;
             ALTER TABLE token DROP COLUMN record; ALTER TABLE issued DROP COLUMN record; DROP TABLE jwt_key; DROP TABLE federated;
             ALTER TABLE authority DROP COLUMN replica; PRAGMA user_version = 1;",
        )
        .unwrap();
    let store = home.store_with_ledger(SMALL).unwrap();
    assert_eq!(kinds(&files(&home)), ["begin", "root", "issuing", "token", "token", "certificate"]);
    let all = entries(&files(&home));
    assert!(all[1..].iter().all(|entry| entry.record.field(Field::Imported).is_some()));
    assert_eq!(all[5].record.bytes(Field::Serial), Some(&serial[..]));
    check(&home, &store).unwrap();
    drop(store);
    ca(&home).joined(&id("new"));
    assert_eq!(kinds(&files(&home)).len(), 8, "once");
}

#[test]
fn while_it_cannot_be_written_nothing_leaves() {
    let home = Home::new();
    let ca = ca(&home);
    let (token, key) = (ca.token(&id("orders")), key());
    // The next segment cannot be made.
    let away = home.dir.path().join("away");
    fs::rename(files(&home), &away).unwrap();
    let mut others = 0;
    let refused = loop {
        others += 1;
        assert!(others < 20, "its segment ends some time");
        let name = id(&format!("w{others}"));
        let hash = crate::token::Token::random().unwrap().hash();
        let (created, expires) = (home.clock.wall(), home.clock.wall() + HOUR);
        let record = crate::token::TokenRecord { hash, id: name, created, expires, bound: None };
        if let Err(error) = ca.store.add_token(record) {
            break error;
        }
    };
    assert!(matches!(refused, StoreError::Ledger(_)), "{refused}");
    let reason = |result: Result<_, crate::issue::IssueError>| result.map(drop).unwrap_err().reason();
    assert_eq!(reason(ca.join(&id("orders"), &token, &key)), "ledger");
    assert_eq!(ca.issuer.self_test().unwrap_err().reason(), "ledger");
    assert_eq!(ca.store.authorities().unwrap().len(), 2, "reading works");
    assert!(ca.store.token(crate::token::TokenHash::of(&token).unwrap()).unwrap().unwrap().bound.is_none());

    fs::rename(&away, files(&home)).unwrap();
    ca.issuer.self_test().unwrap();
    let reply = ca.join(&id("orders"), &token, &key).unwrap();
    let again = ca.join(&id("orders"), &token, &key).unwrap();
    assert_eq!(again.chain, reply.chain);
    ca.store.sign_head(home.clock.wall()).unwrap();
    check(&home, &ca.store).unwrap();
    let all = entries(&files(&home));
    assert_eq!(all[all.len() - 1].record.bytes(Field::Certificate), Some(reply.chain[0].as_ref()));
}

/// Committed, and then the disk is full: the certificate is known and must not be handed out by the second try either.
#[test]
fn a_certificate_whose_record_is_not_durable_is_not_repeated() {
    let home = Home::new();
    let ca = ca(&home);
    let away = home.dir.path().join("away");
    for at in 0..20 {
        let (name, key) = (id(&format!("w{at}")), key());
        let token = ca.token(&name);
        fs::rename(files(&home), &away).unwrap();
        let first = ca.join(&name, &token, &key);
        let second = ca.join(&name, &token, &key);
        fs::rename(&away, files(&home)).unwrap();
        match first {
            Ok(_) => assert!(second.is_ok()),
            Err(error) => {
                assert_eq!((error.reason(), second.unwrap_err().reason()), ("ledger", "ledger"));
                let reply = ca.join(&name, &token, &key).unwrap();
                let all = entries(&files(&home));
                assert_eq!(
                    all[all.len() - 1].record.bytes(Field::Certificate),
                    Some(reply.chain[0].as_ref())
                );
                return;
            }
        }
    }
    panic!("no segment ended with a certificate");
}

#[test]
fn time_never_goes_back_by_more_than_it_is_corrected() {
    let home = Home::new();
    let ca = ca(&home);
    ca.joined(&id("orders"));
    home.clock.jump_wall(-60_000);
    ca.token(&id("store"));
    let all = entries(&files(&home));
    let [before, after] = [2, 1].map(|back| all[all.len() - back].record.time_ms);
    assert_eq!(after, before - SLACK_MS);
    assert_eq!(ca.issuer.issue_own(&key()).unwrap_err().reason(), "clock");
    check(&home, &ca.store).unwrap();
    // Also when only the ledger knows how late it was.
    home.clock.jump_wall(120_000);
    ca.token(&id("store"));
    home.clock.jump_wall(-30_000);
    assert_eq!(ca.issuer.issue_own(&key()).unwrap_err().reason(), "clock");
}

/// Many at a time share commits and syncs, and all get their record.
#[test]
fn those_who_wait_share_one_sync() {
    let home = Home::new();
    let store = home.store_with_ledger(SEGMENT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            let (store, home) = (Arc::clone(&store), &home);
            scope.spawn(move || {
                let hash = crate::token::Token::random().unwrap().hash();
                let created = home.clock.wall();
                let record = crate::token::TokenRecord {
                    hash,
                    id: id("a"),
                    created,
                    expires: created + HOUR,
                    bound: None,
                };
                store.add_token(record).unwrap();
            });
        }
    });
    assert_eq!(entries(&files(&home)).len(), 65);
    check(&home, &store).unwrap();
}

/// The others beside it know that it was there, and say which file is missing.
#[test]
fn what_is_gone_is_named() {
    let home = Home::new();
    filled(&home, 2);
    let store = home.store();
    let segment = segment_path(&files(&home), segments(&files(&home)).unwrap()[0]);
    let only: Vec<_> = segments(&files(&home)).unwrap();
    let aside = home.dir.path().join("aside");
    copy(&files(&home), &aside);
    for first in only {
        fs::remove_file(segment_path(&files(&home), first)).unwrap();
    }
    let told = check(&home, &store).unwrap_err().to_string();
    assert!(told.contains("ends before record 0") && told.contains("Restore the newest files"), "{told}");
    assert!(told.contains(&segment.display().to_string()), "{told}");
    drop(store);
    fs::remove_dir_all(files(&home)).unwrap();
    fs::rename(aside, files(&home)).unwrap();

    for name in ["ca.db", "ca.db-wal", "ca.db-shm", "ca.mark"] {
        let _ = fs::remove_file(home.path().join(name));
    }
    let told = home.store_with_ledger(SMALL).err().unwrap().to_string();
    assert!(told.contains("ca.db") && told.contains("ledger beside it remembers more"), "{told}");
    // And once more, now that an empty file is there.
    assert!(home.store_with_ledger(SMALL).is_err());
}
