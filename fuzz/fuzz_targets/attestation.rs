//! Bytes of a stranger as a token, as its claims, as a set of keys and as registrations: never a panic, nobody gets in without a
//! signature, and no fact gets an id but the one asked for, in this trust domain and not the mesh's own.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use libfuzzer_sys::fuzz_target;
use postern_ca::attest::{Attestation, Cluster, Fact, Facts, KeySet, Provider, Registrations};
use postern_control::registrations::{Terms, check};
use postern_policy::SourceFile;
use postern_svid::{SpiffeId, TrustDomain};

const REGISTRATIONS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: a}
spec:
  id: spiffe://td/{k8s.namespace}/{k8s.serviceAccount}
  from: [{k8s: {cluster: c, namespaces: ["*"], serviceAccounts: ["*"]}}]
---
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: b}
spec:
  id: spiffe://td/{oidc.subject}/{oidc.claim.a}
  from: [{oidc: {provider: p, subjects: ["*"]}}]
"#;

static KEY: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("there is randomness"));

static TERMS: LazyLock<Terms> = LazyLock::new(|| Terms {
    trust_domain: TrustDomain::parse("td").expect("a literal"),
    names: None,
    least: Duration::from_secs(300),
});

static ATTESTATION: LazyLock<Attestation> = LazyLock::new(|| {
    let point = KEY.public_key().as_ref();
    let jwks = format!(
        r#"{{"keys": [{{"kty": "EC", "kid": "k", "crv": "P-256", "x": "{}", "y": "{}"}}]}}"#,
        BASE64.encode(&point[1..33]),
        BASE64.encode(&point[33..]),
    );
    let keys = KeySet::parse(jwks.as_bytes()).expect("it is one");
    let text = |text: &str| text.to_owned();
    Attestation {
        kubernetes: vec![Cluster {
            name: text("c"),
            issuer: text("i"),
            audience: text("a"),
            keys: keys.clone(),
        }],
        oidc: vec![Provider { name: text("p"), issuer: text("i"), audience: text("a"), keys }],
        registrations: Arc::new(registrations(REGISTRATIONS.as_bytes()).expect("they are right")),
        ..Attestation::default()
    }
});

fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let _ = KeySet::parse(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(
            ATTESTATION.kubernetes(text, now).is_err() && ATTESTATION.oidc(text, now).is_err(),
            "nobody signed it"
        );
        if let Ok(fact) = Fact::parse(text) {
            assert!(fact.to_string().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
    // As claims that their issuer has signed.
    let message = format!("{}.{}", BASE64.encode(r#"{"alg":"ES256","kid":"k"}"#), BASE64.encode(bytes));
    if message.len() < 8_000 {
        let signature = KEY.sign(&SystemRandom::new(), message.as_bytes()).expect("it signs");
        let token = format!("{message}.{}", BASE64.encode(signature));
        for facts in
            [ATTESTATION.kubernetes(&token, now), ATTESTATION.oidc(&token, now)].into_iter().flatten()
        {
            grants(&ATTESTATION.registrations, &facts);
        }
    }
    if let Some(all) = registrations(bytes) {
        let told = ["k8s:cluster:c", "k8s:ns:postern", "k8s:sa:control"]
            .map(|fact| Fact::parse(fact).expect("a literal"));
        grants(&all, &Facts::told(told.to_vec()).expect("of one attestor"));
    }
});

fn registrations(text: &[u8]) -> Option<Registrations> {
    check(&[SourceFile { name: "a.yaml".to_owned(), text: text.to_vec() }], &TERMS).ok()
}

/// No id of another trust domain, nor of the mesh itself; and of what is made, exactly that.
fn grants(all: &Registrations, facts: &Facts) {
    let td = &TERMS.trust_domain;
    assert!(facts.to_string().bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
    let control = td.control_plane();
    assert_eq!(all.grant(td, facts, &control), None);
    for judged in all.explain(td, facts, &control) {
        if let postern_ca::attest::Outcome::Other(id) = &judged.outcome {
            assert!(id.is_member_of(td) && !id.is_reserved(), "{id}");
            assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(id));
            assert_eq!(all.grant(td, facts, id).map(|granted| granted.id).as_ref(), Some(id));
        }
    }
}
