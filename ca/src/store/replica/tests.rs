//! Replicas on one shared store in memory, on a clock that is moved by hand.

mod apart;

use postern_svid::Revoked;

use super::*;
use crate::authority::{Mode, Turn};
use crate::issue::IssueError;
use crate::lineage::Refusal;
use crate::store::{JwtStore as _, Reason, Revocation, State};
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

fn mesh_lease() -> Duration {
    lead::TTL + Duration::from_secs(1)
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
fn keys_of_jwt_svids_are_those_of_all() {
    use crate::jwt::{JwtAuthority, JwtLives, JwtRequest, JwtTurn};
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let jwt = |replica: &Replica| {
        let clock = Arc::new(mesh.clock.clone());
        let lives = JwtLives::with_token(Duration::from_secs(300), false);
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let (authority, store, keys) =
            (replica.authority.clone(), replica.store.clone(), replica.keys.clone());
        JwtAuthority::open(authority, store, keys, clock, lives, None, metrics).unwrap()
    };
    let at_b = jwt(&b);
    a.follow();
    let at_a = jwt(&a);
    let signs = |replica: &Replica, jwt: &JwtAuthority| {
        let svid = replica.joined(&id("orders"));
        let audience = ["somebody".to_owned()];
        let request = JwtRequest { peer: &svid, id: svid.id().as_str(), audience: &audience, ttl_seconds: 0 };
        let token = jwt.issue(request).unwrap().token;
        for verifier in [&a, &b] {
            let now = mesh.clock.wall();
            postern_svid::jwt::verify(&token, &audience[0], &verifier.authority.bundles(), now).unwrap();
        }
    };
    signs(&a, &at_a);
    signs(&b, &at_b);
    // One of them turns the keys, and both sign with the new one.
    let first = b.store.jwt_keys().unwrap()[0].label.clone();
    for wanted in [JwtTurn::Prepared, JwtTurn::Activated] {
        mesh.clock.advance(9 * HOUR);
        b.store.tend(Duration::ZERO).unwrap_or_default();
        b.store.tend(Duration::ZERO).unwrap();
        assert_eq!(at_a.maintain().unwrap(), None, "it does not lead");
        let mut turned = None;
        while turned.is_none() {
            mesh.clock.advance(HOUR / 2);
            b.store.tend(Duration::ZERO).unwrap();
            b.store.tend(Duration::ZERO).unwrap();
            turned = at_b.maintain().unwrap();
        }
        assert_eq!(turned, Some(wanted));
        a.follow();
        assert_eq!(at_a.maintain().unwrap(), None);
    }
    assert!(!a.keys.names().unwrap().contains(&first), "the old one's private half is gone at both");
    assert!(!b.keys.names().unwrap().contains(&first));
    assert!(mesh.shared.read(&format!("key/{first}")).unwrap().entries.is_empty());
    signs(&a, &at_a);
    signs(&b, &at_b);
}
