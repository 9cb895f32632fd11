//! When one of them, or what they share, is away, late, lost, older or not what it should be.

use super::*;

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
    // One whose root is offline is not shared: nobody here could sign for the others.
    let offline = Mesh::new();
    drop(offline.replica("a"));
    let database = rusqlite::Connection::open(offline.path("a").join(crate::store::DATABASE)).unwrap();
    database.execute("UPDATE authority SET offline = 1 WHERE kind = 'root'", []).unwrap();
    let refused = offline.store("a").err().unwrap().to_string();
    assert!(refused.contains("offline root"), "{refused}");
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
    let svid = a.joined(&id("orders"));
    let again = mesh.replica_at("a", "twin");
    let rows = again.store.authorities().unwrap();
    let old = rows.iter().find(|row| row.key_id == a.authority.active().key_id()).unwrap();
    assert_eq!((old.state, old.replica.as_deref()), (State::Retired, Some("a")));
    assert_ne!(again.authority.active().key_id(), old.key_id);
    // What that has issued goes on all the same.
    again.renew(&svid, &key()).unwrap();
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

struct Stops<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
        // A failure below must end the other thread too.
        let _stops = Stops(&stop);
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
    });
    a.follow();
    assert_eq!(bundle(&a).2, 1);
    // A copy is nobody's replica: a drill on it asks nobody.
    let copy = mesh.path("copy");
    Sqlite::copy(&mesh.path("b"), &td(), &copy).unwrap();
    Sqlite::open(&copy, &td()).unwrap().revoke(deny("rogue")).unwrap();
}

#[test]
fn what_a_replica_that_has_gone_left_behind_is_forgotten() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let gone = b.authority.active().key_id().to_vec();
    b.store.resign();
    drop(b);
    let is_known = || {
        let shared = mesh.shared.read(STATE).unwrap().entries.remove(0);
        let shared = Document::decode(&shared.value, "demo.postern").unwrap();
        let local = a.store.authorities().unwrap();
        (
            shared.authorities.iter().any(|held| held.row.key_id == gone),
            local.iter().any(|row| row.key_id == gone),
        )
    };
    for _ in 0..9 {
        mesh.clock.advance(DAY);
        a.store.tend(Duration::ZERO).unwrap();
        a.store.tend(Duration::ZERO).unwrap();
        a.authority.maintain().unwrap();
        if mesh.clock.wall() < crate::testing::start() + 7 * DAY {
            assert_eq!(is_known(), (true, true));
        }
    }
    a.store.prune(mesh.clock.wall() - DAY).unwrap();
    assert_eq!(is_known(), (false, false));
    a.follow();
    assert_eq!(is_known(), (false, false));
    a.joined(&id("orders"));
}
