use std::fs;
use std::os::unix::fs::PermissionsExt;

use postern_svid::Role;

use super::*;
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
    postern_svid::verify(&new_leaf.chain, ca.authority.bundles(), Role::Client, home.clock.wall()).unwrap();
    // The same bundle still vouches for a leaf of the retired CA, at its own time.
    postern_svid::verify(&old_leaf.chain, ca.authority.bundles(), Role::Client, start()).unwrap();
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
        (ca.authority.root().clone(), ca.authority.active().key_id().to_vec())
    };
    let ca = home.ca();
    assert_eq!(*ca.authority.root(), root);
    assert_eq!(ca.authority.active().key_id(), active);
    assert_eq!(ca.authority.bundle().sequence(), 1);
    home.clock.advance(DAY);
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::Activated), "the prepared one was kept");
    drop(ca);

    // Asleep for longer than an issuing CA lives.
    home.clock.advance(30 * DAY);
    let ca = home.ca();
    assert_eq!(*ca.authority.root(), root);
    assert!(ca.authority.active().not_after() > home.clock.wall());
    assert_eq!(states(&home).iter().filter(|(_, state)| *state == State::Active).count(), 2);
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
    assert!(matches!(home.authority(home.store()), Err(AuthorityError::RootExpired)));
}
