use std::net::Ipv4Addr;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::store::StoreError;
use crate::testing::{HOUR, Home, csr, id, key, peer, start};

const DAY: Duration = Duration::from_secs(86_400);

fn reason<T>(result: Result<T, IssueError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.reason(),
    }
}

#[test]
fn a_leaf_has_exactly_our_profile() {
    let home = Home::new();
    let ca = home.ca();
    for algorithm in [crate::profile::ISSUING_KEY, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let reply = ca.join(&id("orders"), &ca.token(&id("orders")), &key).unwrap();
        let (_, leaf) = X509Certificate::from_der(&reply.chain[0]).unwrap();
        assert_eq!(leaf.subject().as_raw(), [0x30, 0x00], "empty subject");
        assert_eq!(leaf.raw_serial().len(), 16);
        assert!((0x40..0x80).contains(&leaf.raw_serial()[0]));
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        assert_eq!(san.value.general_names, [GeneralName::URI(id("orders").as_str())]);
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth && !purposes.any && purposes.other.is_empty());
        // SKI, AKI, SAN, KU, EKU, BC: nothing of the requester's.
        assert_eq!(leaf.extensions().len(), 6);
        let unix = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert_eq!(leaf.validity().not_before.timestamp(), unix(start() - Duration::from_secs(120)));
        assert_eq!(leaf.validity().not_after.timestamp(), unix(start() + HOUR));
        let share = reply.renew_after.duration_since(reply.now).unwrap().as_secs_f64() / HOUR.as_secs_f64();
        assert!((0.449..=0.551).contains(&share), "{share}");
        assert_eq!(reply.bundle.sequence(), 1);
        assert_eq!(reply.chain.len(), 2, "never the root");
    }
}

#[test]
fn renewals_are_spread() {
    let points: Vec<_> = (0..200).map(|_| renewal_point()).collect();
    assert!(points.iter().all(|p| (0.45..=0.55).contains(p)));
    assert!(points.iter().any(|p| *p < 0.47) && points.iter().any(|p| *p > 0.53));
}

#[test]
fn a_token_is_for_one_key() {
    let home = Home::new();
    let ca = home.ca();
    let (token, first) = (ca.token(&id("orders")), key());
    let reply = ca.join(&id("orders"), &token, &first).unwrap();
    // The reply got lost: the same key gets the same certificate.
    let again = ca.join(&id("orders"), &token, &first).unwrap();
    assert_eq!(again.chain, reply.chain);
    assert_eq!(reason(ca.join(&id("orders"), &token, &key())), "unauthenticated");
    // Still the same one after somebody else tried.
    assert_eq!(ca.join(&id("orders"), &token, &first).unwrap().chain, reply.chain);
    assert_eq!(ca.store.valid_certificates(start(), &[], 10).unwrap().len(), 1);
    home.clock.advance(Duration::from_secs(600));
    assert_eq!(reason(ca.join(&id("orders"), &token, &first)), "unauthenticated");
}

#[test]
fn a_token_is_for_one_id_and_for_its_time() {
    let home = Home::new();
    let ca = home.ca();
    let token = ca.token(&id("orders"));
    assert_eq!(reason(ca.join(&id("store"), &token, &key())), "denied");
    let control = ca.authority.trust_domain().control_plane();
    assert_eq!(reason(ca.join(&control, &token, &key())), "denied");
    // Even a token that somebody wrote into the database by hand.
    assert_eq!(reason(ca.join(&control, &ca.token(&control), &key())), "denied");
    let foreign = SpiffeId::parse("spiffe://other/a").unwrap();
    assert_eq!(reason(ca.join(&foreign, &ca.token(&foreign), &key())), "denied");
    for bad in ["", "x", &token[..token.len() - 1], &format!("{token}0"), &"a".repeat(1 << 16)] {
        assert_eq!(reason(ca.join(&id("orders"), bad, &key())), "unauthenticated");
    }
    // None of it spent the token, and neither does a bad request.
    let result = ca.issuer.issue(Request {
        csr: b"nonsense",
        id: id("orders").as_str(),
        ttl_seconds: 0,
        predecessor: &[],
        proof: Proof::JoinToken(&token),
    });
    assert_eq!(reason(result), "csr");
    home.clock.advance(Duration::from_secs(599));
    ca.join(&id("orders"), &token, &key()).unwrap();
    let late = ca.token(&id("orders"));
    home.clock.advance(Duration::from_secs(600));
    assert_eq!(reason(ca.join(&id("orders"), &late, &key())), "unauthenticated");
}

#[test]
fn a_short_lived_first_certificate_is_made_again_for_its_token() {
    let home = Home::new();
    let ca = home.ca();
    let (token, first) = (ca.token(&id("orders")), key());
    let short = |ca: &crate::testing::Ca| {
        ca.issuer.issue(Request {
            csr: &csr(&first),
            id: id("orders").as_str(),
            ttl_seconds: 300,
            predecessor: &[],
            proof: Proof::JoinToken(&token),
        })
    };
    let one = short(&ca).unwrap();
    home.clock.advance(Duration::from_secs(400));
    let two = short(&ca).unwrap();
    assert_ne!(one.chain[0], two.chain[0]);
    assert!(two.not_after > home.clock.wall());
    // Once the lineage has moved on to another key, the token is worth nothing.
    let second = key();
    ca.renew(&peer(&two), &second).unwrap();
    assert_eq!(reason(short(&ca)), "unauthenticated");
    // Not even for that other key: it was not the one that spent the token.
    assert_eq!(reason(ca.join(&id("orders"), &token, &second)), "unauthenticated");
}

#[test]
fn renewal_by_svid() {
    let home = Home::new();
    let ca = home.ca();
    let one = ca.joined(&id("orders"));
    home.clock.advance(HOUR / 2);
    let two = peer(&ca.renew(&one, &key()).unwrap());
    assert_ne!(one.serial(), two.serial());
    assert_eq!(two.not_after(), home.clock.wall() + HOUR);
    home.clock.advance(HOUR / 2);
    let three = peer(&ca.renew(&two, &key()).unwrap());
    // Certificates over, connections not.
    home.clock.advance(HOUR + Duration::from_secs(1));
    assert_eq!(reason(ca.renew(&three, &key())), "unauthenticated");
}

#[test]
fn a_renewal_is_bound_to_its_connection() {
    let home = Home::new();
    let ca = home.ca();
    let (orders, store) = (ca.joined(&id("orders")), ca.joined(&id("store")));
    let ask = |asked: &SpiffeId, predecessor: &[u8]| {
        reason(ca.issuer.issue(Request {
            csr: &csr(&key()),
            id: asked.as_str(),
            ttl_seconds: 0,
            predecessor,
            proof: Proof::Svid(&orders),
        }))
    };
    assert_eq!(ask(orders.id(), store.serial()), "predecessor");
    assert_eq!(ask(orders.id(), &[]), "predecessor");
    assert_eq!(ask(store.id(), orders.serial()), "denied");
    assert_eq!(ask(&ca.authority.trust_domain().control_plane(), orders.serial()), "denied");
    assert_eq!(ask(orders.id(), orders.serial()), "ok");
}

#[test]
fn a_lost_reply_is_no_fork() {
    let home = Home::new();
    let ca = home.ca();
    let one = ca.joined(&id("orders"));
    let retried = key();
    let lost = ca.renew(&one, &retried).unwrap();
    // Asked again with the same key: the same answer.
    assert_eq!(ca.renew(&one, &retried).unwrap().chain, lost.chain);
    // Asked again with another key: a new one, and the lost one is abandoned.
    let two = peer(&ca.renew(&one, &key()).unwrap());
    let three = peer(&ca.renew(&two, &key()).unwrap());
    ca.renew(&three, &key()).unwrap();
    assert_eq!(ca.metrics.forks.get(), 0);
}

#[test]
fn a_copied_key_shows_itself() {
    let home = Home::new();
    let ca = home.ca();
    let one = ca.joined(&id("orders"));
    // The owner renews; a thief with the first key renews too, which looks like a lost reply.
    let owner = peer(&ca.renew(&one, &key()).unwrap());
    let thief = peer(&ca.renew(&one, &key()).unwrap());
    assert_eq!(ca.metrics.forks.get(), 0);
    // The next renewal of the owner proves it. From then on nobody renews.
    assert_eq!(reason(ca.renew(&owner, &key())), "fork");
    assert_eq!(ca.metrics.forks.get(), 1);
    assert_eq!(reason(ca.renew(&thief, &key())), "fork");
    assert_eq!(reason(ca.renew(&one, &key())), "fork");
    assert_eq!(ca.metrics.forks.get(), 1, "one alarm, not one per try");
    assert_eq!(ca.store.counts(home.clock.wall()).unwrap().forked, 1);
    // Others are not touched, and a new token heals it.
    let other = ca.joined(&id("store"));
    ca.renew(&other, &key()).unwrap();
    let healed = ca.joined(&id("orders"));
    ca.renew(&healed, &key()).unwrap();
}

#[test]
fn the_thief_who_comes_first_is_seen_too() {
    let home = Home::new();
    let ca = home.ca();
    let one = ca.joined(&id("orders"));
    let thief = peer(&ca.renew(&one, &key()).unwrap());
    let ahead = peer(&ca.renew(&thief, &key()).unwrap());
    assert_eq!(reason(ca.renew(&one, &key())), "fork");
    assert_eq!(reason(ca.renew(&ahead, &key())), "fork");
}

#[test]
fn an_attestation_lasts_thirty_days() {
    let home = Home::new();
    let ca = home.ca();
    let mut svid = ca.joined(&id("orders"));
    let attested = home.clock.wall();
    while home.clock.wall().duration_since(attested).unwrap() + HOUR / 2 <= DAY * 30 {
        home.clock.advance(HOUR / 2);
        ca.authority.maintain().unwrap();
        svid = peer(&ca.renew(&svid, &key()).unwrap());
    }
    home.clock.advance(HOUR / 2);
    assert_eq!(reason(ca.renew(&svid, &key())), "lineage");
}

#[test]
fn the_control_planes_own_certificate_renews_nothing() {
    let home = Home::new();
    let ca = home.ca();
    let own = peer(&ca.issuer.issue_own(&key()).unwrap());
    assert_eq!(own.id(), &ca.authority.trust_domain().control_plane());
    assert_eq!(reason(ca.renew(&own, &key())), "lineage");
}

#[test]
fn keys_are_fresh_and_belong_to_one_id() {
    let home = Home::new();
    let ca = home.ca();
    let used = key();
    let orders = peer(&ca.join(&id("orders"), &ca.token(&id("orders")), &used).unwrap());
    assert_eq!(reason(ca.renew(&orders, &used)), "key", "a renewal needs a new key");
    assert_eq!(reason(ca.join(&id("store"), &ca.token(&id("store")), &used)), "key");
    // A new token may find the workload with its old key.
    ca.join(&id("orders"), &ca.token(&id("orders")), &used).unwrap();

    // A CA's own key, should anybody have got hold of it, gets no certificate.
    for name in std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().path()) {
        if name.extension().is_some_and(|e| e == "key") {
            let stolen = KeyPair::try_from(std::fs::read(&name).unwrap()).unwrap();
            assert_eq!(reason(ca.join(&id("orders"), &ca.token(&id("orders")), &stolen)), "key", "{name:?}");
        }
    }
}

#[test]
fn a_clock_that_goes_back_stops_issuing() {
    let home = Home::new();
    let ca = home.ca();
    let svid = ca.joined(&id("orders"));
    home.clock.jump_wall(-5_000);
    let svid = peer(&ca.renew(&svid, &key()).unwrap());
    home.clock.jump_wall(-1_000);
    let token = ca.token(&id("store"));
    assert_eq!(reason(ca.renew(&svid, &key())), "clock");
    assert_eq!(reason(ca.join(&id("store"), &token, &key())), "clock");
    assert_eq!(reason(ca.issuer.issue_own(&key())), "clock");
    assert_eq!(reason(ca.issuer.self_test()), "clock");
    // A restart does not make it forget.
    drop(ca);
    let ca = home.ca();
    assert_eq!(reason(ca.join(&id("store"), &token, &key())), "clock");
    home.clock.advance(Duration::from_secs(2));
    ca.join(&id("store"), &token, &key()).unwrap();
}

#[test]
fn lives() {
    let home = Home::new();
    let ca = home.ca();
    let ask = |ttl_seconds| {
        ca.issuer.issue(Request {
            csr: &csr(&key()),
            id: id("orders").as_str(),
            ttl_seconds,
            predecessor: &[],
            proof: Proof::JoinToken(&ca.token(&id("orders"))),
        })
    };
    for (asked, life) in [(0, 3_600), (300, 300), (3_600, 3_600), (3_601, 3_600), (u32::MAX, 3_600)] {
        let not_after = ask(asked).unwrap().not_after;
        assert_eq!(not_after, start() + Duration::from_secs(life), "{asked}");
    }
    for asked in [1, 60, 299] {
        assert_eq!(reason(ask(asked)), "ttl");
    }
    // No leaf outlives its issuing CA, and towards its end nothing is issued.
    let end = ca.authority.active().not_after();
    home.clock.advance(DAY * 7 - HOUR / 2);
    assert_eq!(ask(0).unwrap().not_after, end);
    home.clock.advance(HOUR / 2 - Duration::from_secs(299));
    assert_eq!(reason(ask(0)), "no_time");
    assert_eq!(ca.metrics.truncated.get(), 2);
}

#[test]
fn limits_come_before_everything() {
    let home = Home::new();
    let ca = home.ca();
    let source = Ipv4Addr::LOCALHOST.into();
    let mut permits: Vec<_> = (0..50).map(|_| ca.issuer.admit(source, None).unwrap()).collect();
    let refused = ca.issuer.admit(source, None).unwrap_err();
    let status = Status::from(refused);
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    // Whoever has proven itself is counted by its identity.
    let known = ca.joined(&id("orders"));
    permits.push(ca.issuer.admit(source, Some(&known)).unwrap());
    // And all together are bounded, whatever their addresses.
    for n in permits.len()..admission::IN_FLIGHT {
        let other = Ipv4Addr::from(u32::try_from(n).unwrap()).into();
        permits.push(ca.issuer.admit(other, None).unwrap());
    }
    let fresh = Ipv4Addr::new(192, 0, 2, 1).into();
    assert_eq!(reason(ca.issuer.admit(fresh, None)), "busy");
    permits.pop();
    ca.issuer.admit(fresh, None).unwrap();
}

/// An emergency: all replicas of one id come back at once, twice, and none waits for another.
#[test]
fn hundreds_of_replicas_of_one_id_renew_in_the_same_second() {
    let home = Home::new();
    let ca = home.ca();
    let (source, orders) = (Ipv4Addr::LOCALHOST.into(), id("orders"));
    let mut replicas: Vec<_> = (0..40).map(|_| ca.joined(&orders)).collect();
    for round in 0..2 {
        for replica in &mut replicas {
            drop(ca.issuer.admit(source, Some(replica)).unwrap_or_else(|error| panic!("{round}: {error}")));
            *replica = peer(&ca.renew(replica, &key()).unwrap());
        }
    }
    // Of more of them than are worth making here, the table of paces alone is asked.
    let paces = admission::Replicas::new((5, 20));
    let now = ca.clock.monotonic();
    for n in 0..500_u32 {
        let serial = [&[0x40; 12][..], &n.to_be_bytes()].concat();
        for _ in 0..2 {
            paces.take_of(serial.clone(), &orders, now).unwrap();
        }
    }
    assert!(paces.take_of(vec![0x41; 16], &orders, now).is_err(), "one id does not take all of the CA");
    paces.take_of(vec![0x42; 16], &id("store"), now).unwrap();

    // One replica is held to its own pace, and a certificate renewed in a hurry brings no fresh allowance.
    let mut fast = replicas.pop().unwrap();
    for _ in 0..18 {
        drop(ca.issuer.admit(source, Some(&fast)).unwrap());
        fast = peer(&ca.renew(&fast, &key()).unwrap());
    }
    drop(ca.issuer.admit(source, Some(&fast)).unwrap());
    assert_eq!(reason(ca.renew(&fast, &key())), "busy");
    let shed = |limit| ca.metrics.shed.get_or_create(&crate::metrics::Shed { limit }).get();
    assert_eq!(shed("lineage"), 1);
    let other = replicas.pop().unwrap();
    ca.renew(&other, &key()).unwrap();
    for _ in 0..19 {
        drop(ca.issuer.admit(source, Some(&other)).unwrap());
    }
    // 1 when it renewed in the second round by this certificate's predecessor, which has its own.
    drop(ca.issuer.admit(source, Some(&other)).unwrap());
    assert_eq!(reason(ca.issuer.admit(source, Some(&other))), "busy");
    assert_eq!(shed("certificate"), 1);
    home.clock.advance(Duration::from_secs(1));
    ca.renew(&fast, &key()).unwrap();
}

#[test]
fn callers_learn_nothing_about_tokens() {
    let home = Home::new();
    let ca = home.ca();
    let spent = ca.token(&id("orders"));
    ca.join(&id("orders"), &spent, &key()).unwrap();
    let old = ca.token(&id("orders"));
    home.clock.advance(Duration::from_secs(300));
    let unknown = crate::token::Token::random().unwrap();
    let mut answers: Vec<String> = ["nonsense", unknown.reveal(), &spent]
        .iter()
        .map(|token| Status::from(ca.join(&id("orders"), token, &key()).unwrap_err()))
        .map(|status| format!("{:?} {}", status.code(), status.message()))
        .collect();
    home.clock.advance(Duration::from_secs(301));
    let expired = Status::from(ca.join(&id("orders"), &old, &key()).unwrap_err());
    answers.push(format!("{:?} {}", expired.code(), expired.message()));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert!(answers[0].starts_with("Unauthenticated"), "{answers:?}");
    // The store's troubles are not told either.
    let inside = StoreError::Database("disk I/O error at /var/lib/postern".to_owned());
    let status = Status::from(IssueError::from(inside));
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("/var"));
}

#[test]
fn whatever_is_asked_the_certificate_says_what_was_granted() {
    let home = Home::new();
    let ca = home.ca();
    // A request full of wishes that passes, because it wishes for the granted name only.
    let key = key();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    params.not_after = rcgen::date_time_ymd(4096, 1, 1);
    params.subject_alt_names = vec![rcgen::SanType::URI(id("orders").as_str().try_into().unwrap())];
    let wishes = params.serialize_request(&key).unwrap();
    let reply = ca
        .issuer
        .issue(Request {
            csr: wishes.der(),
            id: id("orders").as_str(),
            ttl_seconds: 0,
            predecessor: &[],
            proof: Proof::JoinToken(&ca.token(&id("orders"))),
        })
        .unwrap();
    let (_, leaf) = X509Certificate::from_der(&reply.chain[0]).unwrap();
    assert_eq!(leaf.subject().as_raw(), [0x30, 0x00]);
    assert_eq!(reply.not_after, start() + HOUR);
}
