use std::fs;
use std::os::unix::fs::PermissionsExt;

use postern_svid::Role;
use rcgen::KeyPair;

use super::ca::Ca;
use super::*;
use crate::profile::{ISSUING_KEY, ROOT_KEY};
use crate::store::{self, Kind, StoreError};
use crate::testing::{HOUR, Home, id, peer, start};

const DAY: Duration = Duration::from_secs(86_400);

fn states(home: &Home) -> Vec<(Kind, State)> {
    home.store().authorities().unwrap().iter().map(|a| (a.kind, a.state)).collect()
}

fn key_files(home: &Home) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".key"))
        .collect();
    names.sort();
    names
}

#[test]
fn the_issuing_ca_turns_by_itself() {
    let home = Home::new();
    let ca = home.ca();
    let first = ca.authority.active();
    assert_eq!(first.not_after(), start() + 7 * DAY);
    let old_leaf = ca.join(&id("orders"), &ca.token(&id("orders")), &crate::testing::key()).unwrap();

    home.clock.advance(3 * DAY);
    assert_eq!(ca.authority.maintain().unwrap(), None);
    home.clock.advance(DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(ca.authority.maintain().unwrap(), None, "prepared once");
    assert_eq!(ca.authority.active().key_id(), first.key_id(), "not active yet");
    assert_eq!(states(&home)[1..], [(Kind::Issuing, State::Active), (Kind::Issuing, State::Prepared)]);
    assert_eq!(key_files(&home).len(), 3);

    home.clock.advance(DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated));
    let second = ca.authority.active();
    assert_ne!(second.key_id(), first.key_id());
    assert_eq!(states(&home)[1..], [(Kind::Issuing, State::Retired), (Kind::Issuing, State::Active)]);
    // A key that nobody needs any more cannot be stolen.
    assert_eq!(key_files(&home).len(), 2);
    assert!(matches!(ca.authority.maintain(), Ok(None)));

    let new_leaf = ca.join(&id("store"), &ca.token(&id("store")), &crate::testing::key()).unwrap();
    assert_eq!(peer(&new_leaf).issuer_key_id(), second.key_id());
    postern_svid::verify(&new_leaf.chain, &ca.authority.bundles(), Role::Client, home.clock.wall()).unwrap();
    // The same bundle still vouches for a leaf of the retired CA, at its own time.
    postern_svid::verify(&old_leaf.chain, &ca.authority.bundles(), Role::Client, start()).unwrap();
}

#[test]
fn a_missed_preparation_is_made_up_for() {
    let home = Home::new();
    let ca = home.ca();
    home.clock.advance(7 * DAY - HOUR);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated));
    assert_eq!(ca.authority.active().not_after(), home.clock.wall() + 7 * DAY);
}

#[test]
fn leaves_that_are_long_for_their_ca_make_it_turn_earlier() {
    let home = Home::new();
    let lives = Lives { root: 365 * DAY, issuing: 4 * HOUR, leaf: HOUR + HOUR / 2 };
    let keys = Arc::new(crate::keys::KeyFiles::new(&home.path()));
    let authority =
        Authority::open(crate::testing::td(), home.store(), keys, Arc::new(home.clock.clone()), lives)
            .unwrap();
    assert_eq!(authority.maintain().unwrap(), None);
    home.clock.advance(HOUR + Duration::from_secs(1));
    assert_eq!(authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(authority.maintain().unwrap(), Some(Turn::Activated));
}

#[test]
fn a_year_of_turns_never_stops_issuing() {
    let home = Home::new();
    let ca = home.ca();
    let mut issuers = std::collections::BTreeSet::new();
    for _ in 0..365 {
        home.clock.advance(DAY);
        ca.authority.maintain().unwrap();
        let token = ca.token(&id("orders"));
        let reply = ca.join(&id("orders"), &token, &crate::testing::key()).unwrap();
        assert!(peer(&reply).not_after() <= ca.authority.active().not_after());
        issuers.insert(peer(&reply).issuer_key_id().to_vec());
        assert!(key_files(&home).len() <= 3);
    }
    assert!(issuers.len() >= 365 / 5, "{}", issuers.len());
}

#[test]
fn a_restart_takes_up_where_it_was() {
    let home = Home::new();
    let (root, active) = {
        let ca = home.ca();
        home.clock.advance(4 * DAY);
        ca.authority.maintain().unwrap();
        (ca.authority.root(), ca.authority.active().key_id().to_vec())
    };
    let ca = home.ca();
    assert_eq!(ca.authority.root(), root);
    assert_eq!(ca.authority.active().key_id(), active);
    assert_eq!(ca.authority.bundle().sequence(), 1);
    home.clock.advance(DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated), "the prepared one was kept");
    drop(ca);

    // Asleep for longer than an issuing CA lives.
    home.clock.advance(30 * DAY);
    home.confirm_clock(&home.store());
    let ca = home.ca();
    assert_eq!(ca.authority.root(), root);
    assert!(ca.authority.active().not_after() > home.clock.wall());
    assert_eq!(states(&home).iter().filter(|(_, state)| *state == State::Active).count(), 2);
}

#[test]
fn a_sleep_past_the_end_of_both_issuing_cas_is_recovered_from_on_waking() {
    for (what, days) in [("only the active one there", 1), ("a successor ready", 4)] {
        let home = Home::new();
        let ca = home.ca();
        home.clock.advance(days * DAY);
        assert_eq!(ca.authority.maintain().unwrap().is_some(), days == 4, "{what}");
        let before = ca.authority.active().key_id().to_vec();
        // Suspended: monotonic time stands still.
        home.clock.jump_wall(30 * 86_400_000);
        assert!(ca.issuer.self_test().is_err(), "{what}");
        home.confirm_clock(&ca.store);
        assert!(ca.issuer.self_test().is_err(), "{what}");
        assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated), "{what}");
        ca.issuer.self_test().unwrap();
        let active = ca.authority.active();
        assert_ne!(active.key_id(), before, "{what}");
        assert_eq!(active.not_after(), home.clock.wall() + 7 * DAY, "{what}");
        assert_eq!(ca.authority.maintain().unwrap(), None, "{what}: once");
        let live: Vec<_> = states(&home).into_iter().filter(|(_, state)| *state != State::Retired).collect();
        assert_eq!(live, [(Kind::Root, State::Active), (Kind::Issuing, State::Active)], "{what}");
        assert_eq!(key_files(&home).len(), 2, "{what}: keys of what has ended are gone");
        // And it goes on turning.
        home.clock.advance(4 * DAY);
        assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared), "{what}");
        home.clock.advance(DAY);
        assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated), "{what}");
    }
}

#[test]
fn a_sleep_past_the_end_of_the_active_one_leaves_its_successor() {
    let home = Home::new();
    let ca = home.ca();
    home.clock.advance(4 * DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    home.clock.jump_wall(4 * 86_400_000);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated));
    assert_eq!(ca.authority.active().not_after(), start() + 11 * DAY);
    // The same over a restart: the new active one is not followed by one that ends before it.
    home.clock.advance(2 * DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    drop(ca);
    home.clock.jump_wall(4 * 86_400_000);
    let ca = home.ca();
    for _ in 0..60 {
        home.clock.advance(DAY / 4);
        ca.authority.maintain().unwrap();
        ca.issuer.self_test().unwrap();
    }
}

#[test]
fn a_sleep_past_the_end_of_the_root_is_told() {
    let home = Home::new();
    let ca = home.ca();
    home.clock.jump_wall(3_651 * 86_400_000);
    home.confirm_clock(&ca.store);
    assert!(matches!(ca.authority.maintain(), Err(AuthorityError::RootExpired)));
}

#[test]
fn it_does_not_start_on_keys_that_are_missing_open_or_wrong() {
    let home = Home::new();
    drop(home.ca());
    let open = || home.authority(home.store()).err().unwrap().to_string();
    let set = |name: &str, mode| {
        fs::set_permissions(home.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let names = key_files(&home);
    let [issuing, root] = names.as_slice() else { panic!("{names:?}") };
    for name in [issuing, root] {
        set(name, 0o644);
        let error = open();
        assert!(error.contains("mode 644") && error.contains("chmod 600"), "{error}");
        set(name, 0o600);

        let kept = fs::read(home.path().join(name)).unwrap();
        let algorithm = if name == root { ROOT_KEY } else { ISSUING_KEY };
        fs::write(home.path().join(name), KeyPair::generate_for(algorithm).unwrap().serialized_der())
            .unwrap();
        let error = open();
        assert!(error.contains("does not belong to its certificate"), "{error}");
        fs::write(home.path().join(name), b"nonsense").unwrap();
        assert!(open().contains("not a key"), "{}", open());
        fs::remove_file(home.path().join(name)).unwrap();
        assert!(open().contains(name.as_str()), "{}", open());
        crate::keys::write_private(&home.path().join(name), &kept).unwrap();
    }
    home.authority(home.store()).unwrap();
}

#[test]
fn it_does_not_start_on_a_store_that_was_tampered_with() {
    let other = Home::new();
    drop(other.ca());
    let foreign = other.store().authorities().unwrap();
    for (what, sql) in [
        ("a root of somebody else", "UPDATE authority SET certificate = ?1 WHERE kind = 'root'"),
        ("an issuing CA of somebody else", "UPDATE authority SET certificate = ?2 WHERE kind = 'issuing'"),
        ("a longer life", "UPDATE authority SET not_after = not_after + 86400000 WHERE kind = 'issuing'"),
        ("no root", "DELETE FROM authority WHERE kind = 'root'"),
        ("a certificate that is none", "UPDATE authority SET certificate = x'3000'"),
        ("another key id", "UPDATE authority SET key_id = x'00' WHERE kind = 'issuing'"),
    ] {
        let home = Home::new();
        drop(home.ca());
        let sql = sql
            .replace("?1", &format!("x'{}'", crate::hex(&foreign[0].certificate)))
            .replace("?2", &format!("x'{}'", crate::hex(&foreign[1].certificate)));
        let database = rusqlite::Connection::open(home.path().join(store::DATABASE)).unwrap();
        assert!(database.execute(&sql, []).unwrap() > 0);
        drop(database);
        assert!(home.authority(home.store()).is_err(), "{what}");
    }
}

#[test]
fn an_expired_root_says_so() {
    let home = Home::new();
    drop(home.ca());
    home.clock.advance(3_651 * DAY);
    home.confirm_clock(&home.store());
    assert!(matches!(home.authority(home.store()), Err(AuthorityError::RootExpired)));
}

#[test]
fn a_mark_that_cannot_be_written_does_not_stop_turns() {
    let home = Home::new();
    let ca = home.ca();
    let mark = home.path().join("ca.mark");
    fs::remove_file(&mark).unwrap();
    fs::create_dir(&mark).unwrap();
    let first = ca.authority.active();
    home.clock.advance(4 * DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(ca.authority.maintain().unwrap(), None, "prepared once");
    home.clock.advance(DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated));
    assert_ne!(ca.authority.active().key_id(), first.key_id());
    let states: Vec<_> = ca.store.authorities().unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Active, State::Retired, State::Active]);
    assert_eq!(key_files(&home).len(), 2);
    fs::remove_dir(&mark).unwrap();
}

/// The commit happens, and its caller hears of a failure: as when the disk fails in the middle of it.
struct Deaf {
    store: Arc<crate::store::Sqlite>,
    deaf: std::sync::atomic::AtomicBool,
}

impl Store for Deaf {
    fn change_authorities(&self, change: AuthorityChange) -> Result<(), StoreError> {
        self.store.change_authorities(change)?;
        match self.deaf.swap(false, std::sync::atomic::Ordering::Relaxed) {
            true => Err(StoreError::Database("disk I/O error".to_owned())),
            false => Ok(()),
        }
    }

    fn authorities(&self) -> Result<Vec<store::Authority>, StoreError> {
        self.store.authorities()
    }

    fn bundle_sequence(&self) -> Result<u64, StoreError> {
        self.store.bundle_sequence()
    }

    fn trust(&self) -> Result<store::Trust, StoreError> {
        self.store.trust()
    }

    fn revoke(&self, entry: store::Revocation) -> Result<u64, StoreError> {
        self.store.revoke(entry)
    }

    fn allow_again(
        &self,
        entry: Revoked,
        reason: store::Reason,
        at: SystemTime,
    ) -> Result<Option<u64>, StoreError> {
        self.store.allow_again(entry, reason, at)
    }

    fn end_revocations(&self, now: SystemTime) -> Result<Option<u64>, StoreError> {
        self.store.end_revocations(now)
    }

    fn taint(&self, label: String, reason: store::Reason, at: SystemTime) -> Result<bool, StoreError> {
        self.store.taint(label, reason, at)
    }

    fn live(&self, now: SystemTime) -> Result<Vec<store::Live>, StoreError> {
        self.store.live(now)
    }

    fn raise_bundle_sequence(&self, to: u64) -> Result<(), StoreError> {
        self.store.raise_bundle_sequence(to)
    }

    fn add_token(&self, _: crate::token::TokenRecord) -> Result<(), StoreError> {
        unreachable!("an authority makes no token")
    }

    fn token(&self, _: crate::token::TokenHash) -> Result<Option<crate::token::TokenRecord>, StoreError> {
        unreachable!("an authority reads no token")
    }

    fn certificate(&self, _: &[u8]) -> Result<Option<(store::Issued, crate::lineage::Lineage)>, StoreError> {
        unreachable!("an authority reads no certificate")
    }

    fn lineage(&self, _: crate::lineage::LineageId) -> Result<Option<crate::lineage::Lineage>, StoreError> {
        unreachable!("an authority reads no lineage")
    }

    fn key_owner(&self, _: [u8; 32]) -> Result<Option<store::Issued>, StoreError> {
        unreachable!("an authority reads no key")
    }

    fn record(&self, _: store::Issued, _: store::Grant) -> Result<(), StoreError> {
        unreachable!("an authority records nothing")
    }

    fn mark_forked(&self, _: crate::lineage::LineageId, _: SystemTime) -> Result<(), StoreError> {
        unreachable!("an authority knows no forks")
    }

    fn is_settled(&self) -> Result<(), StoreError> {
        unreachable!("an authority hands nothing out twice")
    }

    fn valid_certificates(
        &self,
        _: SystemTime,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<store::Issued>, StoreError> {
        unreachable!("an authority reads no certificate")
    }

    fn last_issued(&self) -> Result<Option<SystemTime>, StoreError> {
        unreachable!("an authority issues no leaves")
    }

    fn counts(&self, _: SystemTime) -> Result<store::Counts, StoreError> {
        unreachable!("an authority counts nothing")
    }

    fn prune(&self, _: SystemTime) -> Result<u64, StoreError> {
        unreachable!("an authority prunes nothing")
    }

    fn probe(&self, _: SystemTime) -> Result<(), StoreError> {
        unreachable!("an authority probes nothing")
    }
}

#[test]
fn a_turn_whose_outcome_was_not_learned_is_taken_up_from_the_store() {
    let home = Home::new();
    let store = Arc::new(Deaf { store: home.store(), deaf: false.into() });
    let keys = Arc::new(crate::keys::KeyFiles::new(&home.path()));
    let clock = Arc::new(home.clock.clone());
    let authority =
        Authority::open(crate::testing::td(), store.clone(), keys, clock, Lives::with_leaf(HOUR)).unwrap();
    let go_deaf = || store.deaf.store(true, std::sync::atomic::Ordering::Relaxed);

    home.clock.advance(4 * DAY);
    go_deaf();
    assert!(authority.maintain().is_err());
    assert_eq!(authority.maintain().unwrap(), None, "the one that was committed is taken up");
    assert_eq!(states(&home)[1..], [(Kind::Issuing, State::Active), (Kind::Issuing, State::Prepared)]);
    assert_eq!(key_files(&home).len(), 3);

    home.clock.advance(DAY);
    go_deaf();
    assert!(authority.maintain().is_err());
    assert_eq!(authority.maintain().unwrap(), None, "no round after it meets a conflict");
    assert_eq!(states(&home)[1..], [(Kind::Issuing, State::Retired), (Kind::Issuing, State::Active)]);
    assert_eq!(authority.active().key_id(), home.store().authorities().unwrap()[2].key_id);
    assert_eq!(key_files(&home).len(), 2);
}

#[test]
fn a_store_that_takes_no_ca_for_hours_is_not_met_with_heaps_of_keys() {
    let home = Home::new();
    let ca = home.ca();
    home.clock.advance(4 * DAY);
    let edit = rusqlite::Connection::open(home.path().join(store::DATABASE)).unwrap();
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON authority BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    edit.execute_batch(refuse).unwrap();
    for _ in 0..5 {
        assert!(ca.authority.maintain().is_err());
        assert!(key_files(&home).len() <= 3, "{:?}", key_files(&home));
    }
    edit.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(key_files(&home).len(), 3);
}

#[test]
fn what_broken_turns_left_is_cleared_away_at_the_start() {
    let home = Home::new();
    drop(home.ca());
    let keys = crate::keys::KeyFiles::new(&home.path());
    // A crash between a key and its row.
    keys.create("issuing-orphan", ISSUING_KEY).unwrap();
    // Prepared again and again.
    let (root, signer) = {
        let root = Ca::from_row(&home.store().authorities().unwrap()[0]).unwrap();
        let signer = root.signer(&keys).unwrap();
        (root, signer)
    };
    for _ in 0..3 {
        let lives = Lives::with_leaf(HOUR);
        let made = make_issuing(&crate::testing::td(), &keys, &root, &signer, lives, start()).unwrap();
        let add = vec![made.ca.row(State::Prepared)];
        let change = AuthorityChange { add, ..AuthorityChange::new(start(), "test") };
        home.store().change_authorities(change).unwrap();
    }
    assert_eq!(key_files(&home).len(), 6);
    let ca = home.ca();
    let count = |state| states(&home).iter().filter(|row| **row == (Kind::Issuing, state)).count();
    assert_eq!((count(State::Active), count(State::Prepared), count(State::Retired)), (1, 1, 2));
    assert_eq!(key_files(&home).len(), 3);
    drop(ca);

    // Asleep for longer than any of them lives: their keys go with them.
    home.clock.advance(30 * DAY);
    home.confirm_clock(&home.store());
    drop(home.ca());
    assert_eq!((count(State::Active), count(State::Prepared)), (1, 0));
    assert_eq!(key_files(&home).len(), 2);
}

#[test]
fn keys_beside_a_new_database_are_left_alone() {
    let home = Home::new();
    drop(home.store());
    crate::keys::KeyFiles::new(&home.path()).create("issuing-of-another", ISSUING_KEY).unwrap();
    drop(home.ca());
    assert!(key_files(&home).contains(&"issuing-of-another.key".to_owned()));
}
