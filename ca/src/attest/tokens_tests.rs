use serde_json::json;

use super::*;
use crate::attest::testing::{AUDIENCE, ISSUER, Keys, now};
use crate::testing::start;

fn claims() -> Value {
    crate::attest::testing::claims("shop", "orders")
}

fn attestation(keys: KeySet) -> Attestation {
    let cluster = |name: &str, keys| Cluster {
        name: name.to_owned(),
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        keys,
    };
    // Another cluster that calls itself the same, with keys of its own.
    let other = r#"{"keys": [{"kty": "RSA", "kid": "other", "n": "AQAB", "e": "AQAB"}]}"#;
    let other = KeySet::parse(other.as_bytes()).unwrap();
    let provider = Provider {
        name: "ci".to_owned(),
        issuer: "https://ci.example".to_owned(),
        audience: AUDIENCE.to_owned(),
        keys: keys.clone(),
    };
    Attestation {
        kubernetes: vec![cluster("us", other), cluster("eu", keys)],
        oidc: vec![provider],
        ..Attestation::default()
    }
}

#[test]
fn a_pod_s_token_says_which_pod_it_is() {
    let keys = Keys::new();
    let attestation = attestation(keys.set());
    let es256 = keys.raw(r#"{"alg":"ES256","kid":"e"}"#, &claims().to_string());
    for token in [keys.token(&claims()), es256] {
        assert_eq!(
            attestation.kubernetes(&token, start()).unwrap().to_string(),
            "k8s:cluster:eu k8s:ns:shop k8s:sa:orders k8s:pod-name:orders-7d4b9c \
             k8s:pod-uid:9b1c7e52-0a50-4f0c-b0c9-0a8f2f7f0c11 k8s:node-name:node-1"
        );
    }
}

#[test]
fn whatever_else_is_no_proof() {
    let keys = Keys::new();
    let attestation = attestation(keys.set());
    let refused = |token: &str| attestation.kubernetes(token, start()).unwrap_err().to_string();
    let payload = claims().to_string();
    for (header, says) in [
        (r#"{"alg":"none","kid":"r"}"#, "RS256 or ES256"),
        (r#"{"alg":"None","kid":"r"}"#, "RS256 or ES256"),
        (r#"{"alg":"HS256","kid":"r"}"#, "RS256 or ES256"),
        (r#"{"alg":"RS512","kid":"r"}"#, "RS256 or ES256"),
        (r#"{"alg":"ES256","kid":"r"}"#, "signature"),
        (r#"{"alg":"RS256","kid":"e"}"#, "signature"),
        (r#"{"alg":"RS256","kid":"x"}"#, "`kid`"),
        (r#"{"alg":"RS256","kid":"other"}"#, "signature"),
        (r#"{"alg":"RS256"}"#, "no key"),
        (r#"{"alg":"RS256","kid":7}"#, "no key"),
        (r#"{"alg":"none","alg":"RS256","kid":"r"}"#, "twice"),
        (r#"{"alg":"RS256","kid":"r","crit":["b64"]}"#, "critical"),
        (r#"["RS256"]"#, "no JSON object"),
        ("nonsense", "no JSON"),
    ] {
        let said = refused(&keys.raw(header, &payload));
        assert!(said.contains(says), "{header}: {said}");
    }
    let changed = |pointer: &str, value: Value| {
        let mut claims = claims();
        *claims.pointer_mut(pointer).unwrap() = value;
        keys.token(&claims)
    };
    for (pointer, value, says) in [
        ("/iss", json!("https://kubernetes.default.svc.cluster.local/"), "no cluster"),
        ("/iss", json!(null), "`iss`"),
        ("/aud", json!(["https://kubernetes.default.svc"]), "not for postern:td"),
        ("/aud", json!("postern:td2"), "not for postern:td"),
        ("/aud", json!({"postern:td": 1}), "not for postern:td"),
        ("/exp", json!(now()), "ended 0 s ago"),
        ("/exp", json!(now() - 7), "ended 7 s ago"),
        ("/exp", json!(now() + 7_201), "7201 s"),
        ("/exp", json!(1e300), "no time"),
        ("/exp", json!("4102444800"), "no time"),
        ("/exp", json!(-1), "no time"),
        ("/iat", json!(now() + 61), "begins in 61 s"),
        ("/iat", json!(null), "no time"),
        ("/nbf", json!(now() + 61), "begins in 61 s"),
        ("/sub", json!("system:serviceaccount:shop:store"), "`sub`"),
        ("/kubernetes.io", json!(7), "kubernetes.io"),
        ("/kubernetes.io/pod", json!(null), "pod"),
        ("/kubernetes.io/pod/uid", json!(""), "`uid`"),
        ("/kubernetes.io/node", json!(null), "node"),
        ("/kubernetes.io/serviceaccount/uid", json!(3), "`uid`"),
        ("/kubernetes.io/namespace", json!("bank"), "`sub`"),
    ] {
        let said = refused(&changed(pointer, value));
        assert!(said.contains(says), "{pointer}: {said}");
    }
    let mut without = claims();
    without.as_object_mut().unwrap().remove("iat");
    assert!(refused(&keys.token(&without)).contains("`iat`"));
    let twice = payload.replacen('{', r#"{"sub":"system:serviceaccount:shop:orders","#, 1);
    assert!(refused(&keys.raw(r#"{"alg":"RS256","kid":"r"}"#, &twice)).contains("twice"));
    let good = keys.token(&claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    for broken in [
        "",
        ".",
        "..",
        "a.b",
        message,
        &format!("{message}."),
        &format!("{good}."),
        &format!("{good}A"),
        &format!("{message}.{}A", &signature[1..]),
        &"a".repeat(1 << 20),
        &format!("{}.a.b", "a".repeat(9_000)),
    ] {
        refused(broken);
    }
    // Each key set has the keys of its own issuer.
    assert!(attestation.oidc(&good, start()).is_err());
    assert!(Attestation::default().kubernetes(&good, start()).is_err());
    // An hour later it has ended.
    assert!(attestation.kubernetes(&good, start() + Duration::from_secs(3_600)).is_err());
}

#[test]
fn a_provider_s_claims_are_facts() {
    let keys = Keys::new();
    let attestation = attestation(keys.set());
    let claims = json!({
        "iss": "https://ci.example", "sub": "repo:acme/shop:ref:refs/heads/main", "aud": AUDIENCE, "jti": "x",
        "iat": now(), "exp": now() + 600, "repository": "acme/shop", "run": 7, "protected": true, "deep": {"a": 1},
        "groups": ["a", "b", null, ["c"]],
    });
    let facts = attestation.oidc(&keys.token(&claims), start()).unwrap();
    assert_eq!(
        facts.to_string(),
        "oidc:provider:ci oidc:iss:https://ci.example oidc:sub:repo:acme/shop:ref:refs/heads/main oidc:claim:groups:a \
         oidc:claim:groups:b oidc:claim:protected:true oidc:claim:repository:acme/shop oidc:claim:run:7"
    );
    let mut many = claims;
    many["groups"] = Value::Array(vec!["g".into(); MAX_FACTS]);
    assert!(attestation.oidc(&keys.token(&many), start()).unwrap_err().to_string().contains("claims"));
    let pod = keys.token(&self::claims());
    assert!(attestation.oidc(&pod, start()).unwrap_err().to_string().contains("no provider"));
}

#[test]
fn what_is_no_set_of_keys() {
    let many = format!(r#"{{"keys": [{}]}}"#, vec![r#"{"kty": "x"}"#; 65].join(","));
    for (text, says) in [
        ("", "no JWK set"),
        (r#"{"keys": 7}"#, "no JWK set"),
        (r#"{"keys": []}"#, "none of the 0 keys"),
        (r#"{"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}"#, "none of the 1 keys"),
        (r#"{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}"#, "has a `kid`"),
        (r#"{"keys": [{"kty": "RSA", "kid": "a", "use": "enc", "n": "AQAB", "e": "AQAB"}]}"#, "none"),
        (r#"{"keys": [{"kty": "RSA", "kid": "a", "alg": "PS256", "n": "AQAB", "e": "AQAB"}]}"#, "none"),
        (&many, "65 keys"),
        (&" ".repeat(300_000), "256 KiB"),
    ] {
        let said = KeySet::parse(text.as_bytes()).unwrap_err();
        assert!(said.contains(says), "{text:.60}: {said}");
    }
}
