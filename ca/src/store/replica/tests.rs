//! Replicas on one shared store in memory, on a clock that is moved by hand.

use super::*;
use crate::authority::{Mode, Turn};
use crate::issue::IssueError;
use crate::lineage::Refusal;
use crate::store::State;
use crate::testing::{HOUR, Mesh, Replica, id, key, peer, td};

const DAY: Duration = Duration::from_secs(86_400);

fn reason() -> Reason {
    Reason::parse("a test").unwrap()
}

fn deny(name: &str) -> Revocation {
    let at = crate::testing::start();
    Revocation { entry: Revoked::Id(id(name)), reason: reason(), at, ends: Some(at + 90 * DAY) }
}

/// Version and content of the trust bundle.
fn bundle(replica: &Replica) -> (u64, Vec<u8>, usize) {
    let bundle = replica.authority.bundle();
    (bundle.sequence(), bundle.digest().to_vec(), bundle.revocations().len())
}

#[test]
fn one_root_and_an_issuing_ca_for_each() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    assert_eq!(a.authority.root(), b.authority.root());
    assert_ne!(a.authority.active().key_id(), b.authority.active().key_id());
    assert_eq!(bundle(&a), bundle(&b));
    // Each knows the other's certificate and has its own key alone.
    for (own, other) in [(&a, &b), (&b, &a)] {
        let rows = own.store.authorities().unwrap();
        assert_eq!(rows.len(), 3);
        let names = own.keys.names().unwrap();
        for row in rows.iter().filter(|row| row.kind == Kind::Issuing) {
            assert_eq!(row.state, State::Active);
            assert_eq!(names.contains(&row.label), row.replica.is_none());
            assert_eq!(row.replica.is_some(), row.key_id == other.authority.active().key_id());
        }
        assert!(names.iter().any(|name| name.starts_with("root-")), "the root's lies sealed at each");
        // What one has issued the other verifies.
        let svid = own.joined(&id("orders"));
        assert_eq!(svid.issuer_key_id(), own.authority.active().key_id());
    }
    // In the shared store no key lies open, and no certificate of a sidecar at all.
    let all = mesh.shared.read("").unwrap();
    let keys: Vec<_> = all.entries.iter().filter(|entry| entry.key.starts_with("key/")).collect();
    assert!(keys.len() == 1 && keys[0].value.starts_with(b"POSTSEA"));
    assert!(all.entries.iter().all(|entry| !entry.key.contains("orders")));
}

#[test]
fn an_edit_at_one_is_in_force_at_the_other() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let before = bundle(&a).0;
    b.store.revoke(deny("thief")).unwrap();
    assert_eq!(bundle(&a).0, before);
    b.follow();
    a.follow();
    assert_eq!(bundle(&a), bundle(&b));
    assert_eq!((bundle(&a).0, bundle(&a).2), (before + 1, 1));
    assert!(a.authority.denies([Revoked::Id(id("thief"))]).is_some());
    // The other way, when it has the lease.
    b.store.resign();
    assert_eq!(
        a.store.allow_again(Revoked::Id(id("thief")), reason(), crate::testing::start()).unwrap(),
        Some(before + 2)
    );
    a.follow();
    b.follow();
    assert_eq!(bundle(&a), bundle(&b));
    assert_eq!(bundle(&a).2, 0);
    // Nothing changes by being read again.
    assert!(!a.store.follow(Duration::ZERO).unwrap() && !b.store.follow(Duration::ZERO).unwrap());
}

#[test]
fn a_leader_past_its_lease_writes_nothing() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    assert!(b.store.leads() && !a.store.leads());
    // Stopped: its clock goes on, and it does nothing. The other waits for the end of the lease.
    mesh.clock.advance(lead::TTL + Duration::from_secs(1));
    a.store.revoke(deny("thief")).unwrap();
    let (sequence, shared) = (a.store.bundle_sequence().unwrap(), mesh.shared.read(STATE).unwrap());
    // Resumed in the middle of a step that it had begun as the leader.
    let refused = b.store.revoke(deny("rogue"));
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert_eq!(mesh.shared.read(STATE).unwrap(), shared);
    assert_eq!(b.store.metrics.fenced.get(), 1);
    assert!(!b.store.leads());
    // It takes up what the other has done, and may ask again.
    b.follow();
    assert_eq!(b.store.bundle_sequence().unwrap(), sequence);
    a.store.resign();
    assert_eq!(b.store.revoke(deny("rogue")).unwrap(), sequence + 1);
}

#[test]
fn without_the_shared_store_issuing_goes_on_and_the_bundle_is_frozen() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let (orders, token) = (id("orders"), a.token(&id("late")));
    let mut svid = a.joined(&orders);
    let before = bundle(&a);
    mesh.shared.set_away(true);
    assert!(a.store.follow(Duration::ZERO).is_err() && a.store.trouble().is_some());
    a.authority.follow().unwrap();
    svid = peer(&a.renew(&svid, &key()).unwrap());
    a.issuer.self_test().unwrap();
    // A token cannot be spent: nobody could tell whether it is.
    let refused = a.join(&id("late"), &token, &key()).unwrap_err();
    assert!(matches!(refused, IssueError::Store(StoreError::Shared(_))), "{refused}");
    assert_eq!(tonic::Status::from(refused).code(), tonic::Code::Unavailable);
    assert!(matches!(b.store.revoke(deny("thief")), Err(StoreError::Shared(_))));
    assert_eq!(bundle(&a), before);
    // A start as well, from the copy.
    drop(a);
    let a = mesh.replica("a");
    assert_eq!(bundle(&a), before);
    svid = peer(&a.renew(&svid, &key()).unwrap());
    // A replica that has no copy says so.
    let new = mesh.store("c").err().unwrap();
    assert!(matches!(new, StoreError::Shared(SharedError::Unavailable(_))), "{new}");
    drop(svid);
    // A prepared issuing CA becomes active by itself.
    mesh.shared.set_away(false);
    mesh.clock.advance(3 * DAY + 13 * HOUR);
    assert_eq!(a.authority.maintain().unwrap(), Some(Turn::Prepared));
    mesh.shared.set_away(true);
    let first = a.authority.active().key_id().to_vec();
    mesh.clock.advance(DAY + 6 * HOUR);
    assert_eq!(a.authority.maintain().unwrap(), Some(Turn::Activated));
    assert_ne!(a.authority.active().key_id(), first);
    let state = |replica: &Replica, key_id: &[u8]| {
        let rows = replica.store.authorities().unwrap();
        rows.into_iter().find(|row| row.key_id == key_id).map(|row| row.state)
    };
    assert_eq!(state(&b, &first), Some(State::Active), "nobody could be told");
    mesh.shared.set_away(false);
    a.follow();
    b.follow();
    assert_eq!(state(&b, &first), Some(State::Retired));
    assert_eq!(state(&b, a.authority.active().key_id()), Some(State::Active));
    b.renew(&a.joined(&orders), &key()).unwrap();
}

fn mesh_lease() -> Duration {
    lead::TTL + Duration::from_secs(1)
}

#[test]
fn a_token_is_spent_once() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let (orders, token) = (id("orders"), a.token(&id("orders")));
    let mine = key();
    // Made at one, spent at the other.
    let first = b.join(&orders, &token, &mine).unwrap();
    for replica in [&a, &b] {
        let refused = replica.join(&orders, &token, &key()).unwrap_err();
        assert!(matches!(refused, IssueError::Unauthenticated(_)), "{refused}");
    }
    // The answer got lost: the same key gets its certificate, here the very same, and there another one.
    assert_eq!(b.join(&orders, &token, &mine).unwrap().chain, first.chain);
    let again = a.join(&orders, &token, &mine).unwrap();
    assert_eq!(peer(&again).issuer_key_id(), a.authority.active().key_id());
    assert_eq!(a.join(&orders, &token, &mine).unwrap().chain, again.chain);
    // Of two at a time one gets it.
    let token = a.token(&orders);
    let spent: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = [&a, &b]
            .map(|replica| scope.spawn(|| replica.join(&orders, &token, &key()).is_ok()))
            .into_iter()
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(spent.iter().filter(|ok| **ok).count(), 1);
    // What is over is cleared away, by the one that leads.
    mesh.clock.advance(Duration::from_secs(601));
    assert!(matches!(a.join(&orders, &token, &mine), Err(IssueError::Unauthenticated(_))));
    b.store.prune(crate::testing::start()).unwrap();
    assert_eq!(mesh.shared.read("token/").unwrap().entries.len(), 2, "its lease had ended");
    b.store.tend(Duration::ZERO).unwrap();
    b.store.tend(Duration::ZERO).unwrap();
    b.store.prune(crate::testing::start()).unwrap();
    assert_eq!(mesh.shared.read("token/").unwrap().entries, []);
}

#[test]
fn a_certificate_of_one_renews_at_the_other() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let first = a.joined(&id("orders"));
    let (mine, other) = (key(), key());
    let second = peer(&b.renew(&first, &mine).unwrap());
    let (row, lineage) = b.store.certificate(second.serial()).unwrap().unwrap();
    assert_eq!(
        (row.issuer.as_slice(), lineage.parent.as_deref()),
        (b.authority.active().key_id(), Some(first.serial()))
    );
    // The answer got lost: once more is fine, with the same key or another one.
    assert_eq!(peer(&b.renew(&first, &mine).unwrap()).serial(), second.serial());
    let third = peer(&b.renew(&first, &other).unwrap());
    // Now the second is one that was abandoned: two parties hold keys.
    let refused = b.renew(&second, &key()).unwrap_err();
    assert!(matches!(refused, IssueError::Lineage(Refusal::Fork)), "{refused}");
    assert!(b.renew(&third, &key()).is_err());
    // And back: the honest one is never refused for having been elsewhere.
    let mut svid = a.joined(&id("store"));
    for _ in 0..6 {
        mesh.clock.advance(HOUR / 2);
        svid = peer(&b.renew(&svid, &key()).unwrap());
        mesh.clock.advance(HOUR / 2);
        svid = peer(&a.renew(&svid, &key()).unwrap());
    }
    // But not for ever: its attestation has an end wherever it goes.
    let (_, lineage) = a.store.certificate(svid.serial()).unwrap().unwrap();
    let before = mesh.clock.wall() - crate::lineage::MAX_AGE + HOUR / 3;
    let ms = i64::try_from(before.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let database = rusqlite::Connection::open(mesh.path("a").join(crate::store::DATABASE)).unwrap();
    database
        .execute("UPDATE lineage SET attested = ?1 WHERE id = ?2", rusqlite::params![ms, lineage.id.0])
        .unwrap();
    svid = peer(&a.renew(&svid, &key()).unwrap());
    svid = peer(&b.renew(&svid, &key()).unwrap());
    mesh.clock.advance(HOUR / 2);
    for replica in [&a, &b] {
        let refused = replica.renew(&svid, &key()).unwrap_err();
        assert!(matches!(refused, IssueError::Lineage(Refusal::TooOld)), "{refused}");
    }
}

#[test]
fn what_is_not_adopted() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let svid = a.joined(&id("orders"));
    // A stranger's issuing CA, under no root of ours.
    let elsewhere = Mesh::new().replica("a");
    let stranger = elsewhere.joined(&id("orders"));
    assert!(matches!(b.renew(&stranger, &key()), Err(IssueError::Unauthenticated(_))));
    // The control plane's own.
    let own = peer(&a.issuer.issue_own(&key()).unwrap());
    assert!(b.renew(&own, &key()).is_err());
    // Of a CA that is tainted, from the moment on that this is known.
    let label =
        a.store.authorities().unwrap().into_iter().find(|row| row.key_id == a.authority.active().key_id());
    assert!(b.store.taint(label.unwrap().label, reason(), mesh.clock.wall()).unwrap());
    b.follow();
    assert!(matches!(b.renew(&svid, &key()), Err(IssueError::Unauthenticated(_))));
    // Its replica makes itself another one, and every sidecar is told to renew.
    b.store.resign();
    let before = a.authority.active().key_id().to_vec();
    a.follow();
    assert_ne!(a.authority.active().key_id(), before);
    assert!(a.authority.renew_before().is_some());
    b.follow();
    assert_eq!(b.authority.renew_before(), a.authority.renew_before());
}

#[test]
fn a_root_follows_when_the_sidecars_of_all_replicas_know_it() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let standing = |replica: &Replica, holders: &[crate::bundle::Holder]| {
        let (bundle, now) = (replica.authority.bundle(), mesh.clock.wall());
        let live = replica.store.live(now).unwrap();
        let bundle_digest = crate::hex(bundle.digest());
        let said =
            Standing { bundle_sequence: bundle.sequence(), bundle_digest, leaf: HOUR, holders, live: &live };
        replica.store.report(&said).unwrap();
    };
    let svid = a.joined(&id("orders"));
    let (_, lineage) = a.store.certificate(svid.serial()).unwrap().unwrap();
    let old = b.authority.root();
    assert!(b.store.leads());
    b.authority.obey(crate::store::OrderVerb::Prepare, None, &[]).unwrap();
    assert_eq!(b.authority.step(&[], Mode::ByOperator).unwrap().unwrap().name(), "publish");
    a.follow();
    assert_eq!(a.authority.step(&[], Mode::Automatic).unwrap(), None, "it does not lead");
    let tend = || {
        b.store.tend(Duration::ZERO).unwrap();
        standing(&a, &[]);
        standing(&b, &[]);
    };
    tend();
    for _ in 0..400 {
        mesh.clock.advance(Duration::from_secs(5));
        tend();
    }
    let waits = b.authority.outlook(&[], Mode::Automatic).unwrap();
    let waiting = waits.iter().find(|one| one.step.name() == "activate").unwrap();
    assert!(
        waiting.laggards.iter().any(|one| one.id == id("orders") && one.lineage == Some(lineage.id)),
        "{waiting:?}"
    );
    assert_eq!(b.authority.step(&[], Mode::Automatic).unwrap(), None);
    // It says nothing any more: not before its certificates have ended either.
    mesh.clock.advance(Duration::from_secs(60));
    b.store.tend(Duration::ZERO).unwrap();
    b.store.tend(Duration::ZERO).unwrap();
    let waits = b.authority.outlook(&[], Mode::Automatic).unwrap();
    assert!(waits[0].waits.iter().any(|text| text.contains("the replica a, not heard of")), "{waits:?}");
    assert_eq!(b.authority.step(&[], Mode::Automatic).unwrap(), None);
    // The sidecar acknowledges at the other replica.
    let holder = crate::bundle::Holder {
        id: id("orders"),
        lineage: lineage.id,
        bundle_sequence: a.authority.bundle().sequence(),
        serial: svid.serial().to_vec(),
        not_after: svid.not_after(),
        issuer: svid.issuer_key_id().to_vec(),
        reported: mesh.clock.wall(),
        streams: 1,
    };
    let held = [holder];
    standing(&a, &held);
    standing(&b, &[]);
    assert_eq!(b.authority.step(&[], Mode::Automatic).unwrap().unwrap().name(), "activate");
    assert_ne!(b.authority.root(), old);
    // The other replica makes itself an issuing CA under the new root as soon as it hears of it.
    b.store.resign();
    let before = a.authority.active().key_id().to_vec();
    a.follow();
    assert_ne!(a.authority.active().key_id(), before);
    assert_eq!(a.authority.root(), b.authority.root());
    let fresh = a.joined(&id("store"));
    assert_eq!(fresh.issuer_key_id(), a.authority.active().key_id());
    // And the old root stays while a certificate under it is valid, wherever that is.
    a.store.resign();
    b.follow();
    let waits = b.authority.outlook(&[], Mode::Automatic).unwrap();
    let removal = waits.iter().find(|one| one.step.name() == "remove").unwrap();
    assert!(removal.waits.iter().any(|text| text.contains("1 certificates at the replica a")), "{removal:?}");
}

#[test]
fn a_store_put_back_to_an_older_state_is_not_believed() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let old = mesh.shared.snapshot();
    b.store.revoke(deny("thief")).unwrap();
    a.follow();
    b.follow();
    let before = bundle(&a);
    mesh.shared.put_back(&old);
    for replica in [&a, &b] {
        let refused = replica.store.follow(Duration::ZERO).unwrap_err();
        assert!(matches!(refused, StoreError::SharedRolledBack { .. }), "{refused}");
        assert!(refused.to_string().contains("postern ca replicas put-back"));
        assert_eq!(bundle(replica), before);
    }
    mesh.clock.advance(mesh_lease());
    b.store.tend(Duration::ZERO).unwrap_or_default();
    let refused = a.store.revoke(deny("rogue")).unwrap_err();
    assert!(matches!(refused, StoreError::SharedRolledBack { .. } | StoreError::Fenced(_)), "{refused}");
    // A restart does not make it forget, nor go without.
    drop(a);
    let a = mesh.replica("a");
    assert_eq!(bundle(&a), before);
    b.store.resign();
    let sequence = a.store.carry_out(Edit::PutBack).unwrap().sequence.unwrap();
    assert!(sequence > before.0);
    a.follow();
    b.follow();
    assert_eq!(bundle(&a), bundle(&b));
    assert_eq!((bundle(&a).0, bundle(&a).2), (sequence, 1));
}

#[test]
fn a_ca_that_was_alone_becomes_that_of_all() {
    let mesh = Mesh::new();
    let (root, svid) = {
        let keys = mesh.keys("a");
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let now = mesh.clock.wall();
        let store =
            Sqlite::open_with_ledger(&mesh.path("a"), &td(), keys.as_ref(), metrics, 1 << 20, now).unwrap();
        let store = Arc::new(store);
        let clock = Arc::new(mesh.clock.clone());
        let lives = crate::authority::Lives::with_leaf(HOUR);
        let alone = crate::authority::Authority::open(td(), store.clone(), keys, clock, lives).unwrap();
        store.revoke(deny("thief")).unwrap();
        (alone.root(), alone.active().key_id().to_vec())
    };
    let (a, b) = mesh.two();
    assert_eq!((a.authority.root(), a.authority.active().key_id()), (root.clone(), svid.as_slice()));
    assert_eq!(b.authority.root(), root);
    assert_eq!(bundle(&a), bundle(&b));
    assert_eq!(bundle(&b).2, 1);
    // Another CA is not mixed with it.
    let other = Mesh::new();
    drop(other.replica("x"));
    let mixed = {
        let keys = other.keys("x");
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let (path, now) = (other.path("x"), other.clock.wall());
        let local =
            Sqlite::open_with_ledger(&path, &td(), keys.as_ref(), metrics.clone(), 1 << 20, now).unwrap();
        let clock = Arc::new(mesh.clock.clone());
        Replicated::open("x", Arc::new(local), mesh.shared, keys, td(), clock, metrics).err().unwrap()
    };
    assert!(matches!(mixed, StoreError::OtherCa(_) | StoreError::SharedRolledBack { .. }), "{mixed}");
}

#[test]
fn each_replica_has_a_name_and_a_place_of_its_own() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let live = [];
    let said =
        Standing { bundle_sequence: 1, bundle_digest: String::new(), leaf: HOUR, holders: &[], live: &live };
    a.store.report(&said).unwrap();
    // Another process under its name, with a directory of its own.
    let twin = mesh.store_at("a", "twin").err().unwrap();
    assert!(matches!(&twin, StoreError::SameName(name, _) if name == "a"), "{twin}");
    // Its directory lost, it comes back after a while, and its old issuing CA signs no more.
    mesh.clock.advance(STALE + Duration::from_secs(1));
    let again = mesh.store_at("a", "twin").unwrap();
    let rows = again.authorities().unwrap();
    let old = rows.iter().find(|row| row.key_id == a.authority.active().key_id()).unwrap();
    assert_eq!((old.state, old.replica.as_deref()), (State::Retired, None));
    // A directory that is another replica's.
    drop(b);
    let wrong = mesh.store_at("c", "b").err().unwrap();
    assert!(matches!(wrong, StoreError::OtherReplica { .. }), "{wrong}");
    for bad in ["", "A", "a_b", "a/b", &"a".repeat(64)] {
        assert!(!is_replica_name(bad), "{bad}");
    }
    assert!(is_replica_name("control-0"));
}

#[test]
fn what_is_written_comes_back_and_what_is_damaged_is_refused() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    b.store.revoke(deny("thief")).unwrap();
    a.follow();
    let entry = mesh.shared.read(STATE).unwrap().entries.remove(0);
    let document = Document::decode(&entry.value, "demo.postern").unwrap();
    assert_eq!(document.encode("demo.postern"), entry.value);
    assert!(Document::decode(&entry.value, "other").unwrap_err().contains("name another prefix"));
    let text = String::from_utf8(entry.value).unwrap();
    for (from, to) in [
        ("\"format\":1", "\"format\":2"),
        ("\"issuing\"", "\"leaf\""),
        ("\"root-", "\"../root-"),
        ("\"active\"", "\"asleep\""),
        ("a test", "a\\ntest"),
        ("\"kind\":\"id\"", "\"kind\":\"name\""),
        ("}", ""),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(Document::decode(text.replace(from, to).as_bytes(), "demo.postern").is_err(), "{to}");
    }
    assert!(Document::decode(b"", "demo.postern").is_err());
    // What damaged it is not followed, and issuing goes on.
    let damaged = Change::put(STATE, entry.version, text.replace("\"active\"", "\"asleep\"").into_bytes());
    mesh.shared.swap(&[damaged], None).unwrap();
    assert!(matches!(a.store.follow(Duration::ZERO), Err(StoreError::Shared(SharedError::Damaged { .. }))));
    a.issuer.self_test().unwrap();
}

#[test]
fn an_operators_command_asks_the_running_control_plane() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    // As another process opens it.
    let command = Sqlite::open(&mesh.path("b"), &td()).unwrap();
    let edits = [
        Edit::Revoke(deny("thief")),
        Edit::AllowAgain { entry: Revoked::Id(id("nobody")), reason: reason() },
        Edit::Taint { label: "no-such-ca".to_owned(), reason: reason() },
        Edit::Token(crate::token::TokenRecord {
            hash: crate::token::Token::random().unwrap().hash(),
            id: id("orders"),
            created: mesh.clock.wall(),
            expires: mesh.clock.wall() + HOUR,
            bound: None,
        }),
        Edit::PutBack,
    ];
    for edit in &edits {
        assert_eq!(Edit::decode(&edit.encode()).unwrap().encode(), edit.encode());
    }
    assert!(Edit::decode("{}").is_err() && Edit::decode("").is_err());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                b.store.local.carry_out(|edit| b.store.carry_out(edit), mesh.clock.wall()).unwrap();
                std::thread::yield_now();
            }
        });
        let before = command.bundle_sequence().unwrap();
        let Edit::Revoke(entry) = edits[0].clone() else { panic!() };
        assert_eq!(command.revoke(entry).unwrap(), before + 1);
        assert_eq!(
            command.allow_again(Revoked::Id(id("nobody")), reason(), mesh.clock.wall()).unwrap(),
            None
        );
        assert!(!command.taint("no-such-ca".to_owned(), reason(), mesh.clock.wall()).unwrap());
        let Edit::Token(token) = edits[3].clone() else { panic!() };
        let hash = token.hash;
        command.add_token(token.clone()).unwrap();
        assert!(a.store.token(hash).unwrap().is_some_and(|found| found.id == id("orders")));
        // What is refused is refused in its words.
        let twice = command.add_token(token).unwrap_err().to_string();
        assert!(twice.contains("this token is there already"), "{twice}");
        stop.store(true, Ordering::Relaxed);
    });
    a.follow();
    assert_eq!(bundle(&a).2, 1);
    // A copy is nobody's replica: a drill on it asks nobody.
    let copy = mesh.path("copy");
    Sqlite::copy(&mesh.path("b"), &td(), &copy).unwrap();
    Sqlite::open(&copy, &td()).unwrap().revoke(deny("rogue")).unwrap();
}
