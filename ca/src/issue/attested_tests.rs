//! Certificates by attestation: a cluster's token, a registration, and a lineage that goes on.

use std::sync::Arc;

use postern_svid::PeerSvid;
use tonic::{Code, Status};

use super::*;
use crate::attest::testing::{AUDIENCE, ISSUER, Keys, claims};
use crate::attest::{Clause, Cluster, FactName, Pattern, Registration, Registrations, Template};
use crate::ledger::{DIRECTORY, Field, Kind, SEGMENT, Walk};
use crate::testing::{Ca, HOUR, Home, csr, id, key, peer, td};

fn reason<T>(result: Result<T, IssueError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.reason(),
    }
}

/// The service accounts of the namespaces `shop` and `bank` of the cluster `eu`, each by its own name.
fn believe(ca: &Ca, keys: &Keys, ttl: Option<Duration>) {
    let cluster = Cluster {
        name: "eu".to_owned(),
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        keys: keys.set(),
    };
    let is = |texts: &[&str]| texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    let clause = Clause {
        attestor: Attestor::Kubernetes,
        wants: vec![
            (FactName::KubernetesCluster, is(&["eu"])),
            (FactName::KubernetesNamespace, is(&["shop", "bank"])),
        ],
    };
    let template = "spiffe://demo.postern/ns/{k8s.namespace}/sa/{k8s.serviceAccount}";
    let registration = Registration {
        name: "accounts".to_owned(),
        place: "accounts.yaml:1:1".to_owned(),
        id: Template::parse(&td(), template).unwrap(),
        from: vec![clause],
        ttl,
    };
    ca.issuer.attest_by(Attestation {
        kubernetes: vec![cluster],
        registrations: Arc::new(Registrations::new(vec![registration])),
        ..Attestation::default()
    });
}

fn ask(
    ca: &Ca,
    token: &str,
    id: &SpiffeId,
    key: &rcgen::KeyPair,
    renews: Option<&PeerSvid>,
) -> Result<Reply, IssueError> {
    ca.issuer.issue(Request {
        csr: &csr(key),
        id: id.as_str(),
        ttl_seconds: 0,
        predecessor: renews.map_or(&[], PeerSvid::serial),
        proof: Proof::Attested(Evidence::Kubernetes(token), renews),
    })
}

#[test]
fn a_token_gives_the_id_that_is_registered_and_no_other() {
    let (home, keys) = (Home::new(), Keys::new());
    let ca = home.ca();
    let token = keys.token(&claims("shop", "orders"));
    assert_eq!(
        reason(ask(&ca, &token, &id("orders"), &key(), None)),
        "unauthenticated",
        "nothing is believed yet"
    );
    believe(&ca, &keys, None);
    let reply = ask(&ca, &token, &id("orders"), &key(), None).unwrap();
    assert_eq!(peer(&reply).id(), &id("orders"));
    assert_eq!(reason(ask(&ca, &token, &id("store"), &key(), None)), "unregistered");
    let control = ca.authority.trust_domain().control_plane();
    assert_eq!(reason(ask(&ca, &token, &control, &key(), None)), "unregistered");
    let elsewhere = keys.token(&claims("elsewhere", "orders"));
    assert_eq!(reason(ask(&ca, &elsewhere, &id("orders"), &key(), None)), "unregistered");
    // Names that no cluster has: a fact says one segment, or nothing.
    for (namespace, account) in [("shop", "../../../postern/control"), ("shop", "a/b"), ("bank", "")] {
        let odd = keys.token(&claims(namespace, account));
        assert_ne!(reason(ask(&ca, &odd, &control, &key(), None)), "ok");
    }
    // The caller learns whether it was believed, and nothing else.
    let told =
        |token: &str, asked: &SpiffeId| Status::from(ask(&ca, token, asked, &key(), None).unwrap_err());
    let (forged, stranger) = (Keys::new().token(&claims("shop", "orders")), told("nonsense", &id("orders")));
    assert_eq!(stranger.code(), Code::Unauthenticated);
    assert_eq!(told(&forged, &id("orders")).message(), stranger.message());
    assert_eq!(told(&token, &id("store")).code(), Code::PermissionDenied);
    assert!(!told(&elsewhere, &id("orders")).message().contains("elsewhere"));
}

#[test]
fn a_renewal_repeats_the_attestation_and_the_lineage_goes_on() {
    let (home, keys) = (Home::new(), Keys::new());
    let ca = home.ca();
    believe(&ca, &keys, None);
    let token = keys.token(&claims("shop", "orders"));
    let first = peer(&ask(&ca, &token, &id("orders"), &key(), None).unwrap());
    let lineage = |svid: &PeerSvid| ca.store.certificate(svid.serial()).unwrap().unwrap().1;
    let began = lineage(&first);
    assert_eq!(began.attestor, Attestor::Kubernetes);
    // The certificate alone renews nothing.
    assert_eq!(reason(ca.renew(&first, &key())), "lineage");

    let (second_key, third_key) = (key(), key());
    let second = peer(&ask(&ca, &token, &id("orders"), &second_key, Some(&first)).unwrap());
    assert_eq!(lineage(&second).id, began.id);
    // The answer got lost: the same key gets the same again.
    let again = peer(&ask(&ca, &token, &id("orders"), &second_key, Some(&first)).unwrap());
    assert_eq!(again.serial(), second.serial());
    assert_eq!(reason(ask(&ca, &token, &id("orders"), &second_key, Some(&second))), "key");
    let third = peer(&ask(&ca, &token, &id("orders"), &third_key, Some(&second)).unwrap());
    // Another workload's token beside this certificate, and this token beside another's.
    let other = keys.token(&claims("shop", "store"));
    assert_eq!(reason(ask(&ca, &other, &id("store"), &key(), Some(&third))), "denied");
    assert_eq!(reason(ask(&ca, &other, &id("orders"), &key(), Some(&third))), "unregistered");
    // Two hold keys of the lineage: it ends, and a new attestation begins another.
    assert_eq!(reason(ask(&ca, &token, &id("orders"), &key(), Some(&first))), "fork");
    assert_eq!(reason(ask(&ca, &token, &id("orders"), &key(), Some(&third))), "fork");
    let anew = peer(&ask(&ca, &token, &id("orders"), &key(), None).unwrap());
    assert_ne!(lineage(&anew).id, began.id);
    // An identity from a join token goes on by attestation, however old that token is.
    let joined = ca.joined(&id("orders"));
    let went_on = peer(&ask(&ca, &token, &id("orders"), &key(), Some(&joined)).unwrap());
    assert_eq!(lineage(&went_on).id, lineage(&joined).id);
    home.clock.advance(Duration::from_secs(3_601));
    assert_eq!(
        reason(ask(&ca, &token, &id("orders"), &key(), None)),
        "unauthenticated",
        "the token has ended"
    );
}

#[test]
fn a_first_answer_that_got_lost_is_given_again() {
    let (home, keys) = (Home::new(), Keys::new());
    let ca = home.ca();
    believe(&ca, &keys, None);
    let (orders, store) = (keys.token(&claims("shop", "orders")), keys.token(&claims("shop", "store")));
    let own = key();
    let reply = ask(&ca, &orders, &id("orders"), &own, None).unwrap();
    assert_eq!(ask(&ca, &orders, &id("orders"), &own, None).unwrap().chain, reply.chain);
    assert_eq!(reason(ask(&ca, &store, &id("store"), &own, None)), "key");
    ask(&ca, &orders, &id("orders"), &key(), Some(&peer(&reply))).unwrap();
    assert_eq!(reason(ask(&ca, &orders, &id("orders"), &own, None)), "key", "the lineage has moved on");
}

#[test]
fn a_registration_may_shorten_a_life() {
    let (home, keys) = (Home::new(), Keys::new());
    let ca = home.ca();
    let token = keys.token(&claims("shop", "orders"));
    for (most, life) in [(600, 600), (7_200, 3_600), (7, 300)] {
        believe(&ca, &keys, Some(Duration::from_secs(most)));
        let reply = ask(&ca, &token, &id("orders"), &key(), None).unwrap();
        assert_eq!(reply.not_after.duration_since(reply.now).unwrap(), Duration::from_secs(life));
    }
    assert!(HOUR == Duration::from_secs(3_600));
}

#[test]
fn the_ledger_says_who_attested_what() {
    let (home, keys) = (Home::new(), Keys::new());
    let ca = home.ca_on(home.store_with_ledger(SEGMENT).unwrap());
    believe(&ca, &keys, None);
    let mut long = claims("shop", "orders");
    long["kubernetes.io"]["pod"]["name"] = "x y\u{1b}".repeat(300).into();
    let first = peer(&ask(&ca, &keys.token(&long), &id("orders"), &key(), None).unwrap());
    let second = keys.token(&claims("shop", "orders"));
    ask(&ca, &second, &id("orders"), &key(), Some(&first)).unwrap();
    let mut walk = Walk::from(&home.path().join(DIRECTORY), 0).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = walk.read().unwrap() {
        if entry.record.kind == Kind::Certificate && entry.record.text(Field::Registration).is_some() {
            found.push(entry.record);
        }
    }
    let [one, two] = &found[..] else { panic!("{found:?}") };
    for record in [one, two] {
        assert_eq!(record.text(Field::Proof), Some("kubernetes"));
        assert_eq!(record.text(Field::Registration), Some("accounts"));
        let facts = record.text(Field::Facts).unwrap();
        assert!(facts.starts_with("k8s:cluster:eu k8s:ns:shop k8s:sa:orders k8s:pod-name:"), "{facts}");
        assert!(facts.len() <= crate::attest::MAX_SHOWN);
    }
    assert_eq!(one.bytes(Field::Predecessor), None);
    assert_eq!(two.bytes(Field::Predecessor), Some(first.serial()));
}
