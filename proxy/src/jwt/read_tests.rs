use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use postern_policy::{Algorithm, Tokens};
use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::jwt::verify::tests::{NOW, SIGNERS, claims};
use crate::testing;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn documents(more: &str, defaults: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: d, namespace: postern-system}}\n\
         spec: {{jwt: {{{defaults}issuers: [\n\
         {{issuer: 'https://id.example.com', audiences: [orders], jwks: {{inline: {}}}, algorithms: [ES256]{more}}},\n\
         {{issuer: other, audiences: [orders], jwks: {{file: /nowhere}}, header: {{name: x-token}}}}]}}}}\n---\n\
         apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{action: Allow, rules: [{{name: r, from: [{{jwt: {{issuer: other}}}}]}}]}}\n",
        // Private halves and keys for something else are refused in documents.
        json!({"keys": SIGNERS.set()["keys"].as_array().unwrap()[..4]}),
    )
}

/// What the policy is told, what is withheld, what was counted.
fn outcome(text: &str, lines: &[(&str, &str)]) -> String {
    let sidecar = testing::sidecar("");
    let generation = testing::generation(&sidecar, 1, text);
    let keyrings = Keyrings::with(&generation, &SIGNERS.set());
    let counts = TokenCounts::new(&mut Registry::default());
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    match read(&generation, &keyrings, &counts, &headers, now()) {
        Err(_) => "401".to_owned(),
        Ok(Read { tokens, withheld }) => {
            let known = match tokens.at(now()) {
                Tokens::Absent => "absent".to_owned(),
                Tokens::Unknown => "unknown".to_owned(),
                Tokens::Verified(all) => format!("verified {}", all.len()),
            };
            let withheld: Vec<&str> = withheld.iter().map(HeaderName::as_str).collect();
            format!("{known} {}", withheld.join(",")).trim_end().to_owned()
        }
    }
}

fn token(header: &serde_json::Value, more: &serde_json::Value) -> String {
    SIGNERS.sign("ES256", header, &claims(more))
}

#[test]
fn where_tokens_stand() {
    let plain = documents("", "");
    let good = token(&json!({"alg": "ES256", "kid": "p256"}), &json!({}));
    let next = token(&json!({"alg": "ES256", "kid": "next"}), &json!({}));
    let expired = token(&json!({"alg": "ES256", "kid": "p256"}), &json!({"exp": 5}));
    let foreign = token(&json!({"alg": "ES256", "kid": "p256"}), &json!({"iss": "https://evil.example"}));
    let other = token(&json!({"alg": "RS256", "kid": "x"}), &json!({"iss": "other"}));
    let borrowed = token(&json!({"alg": "ES256", "kid": "p256"}), &json!({"iss": "other"}));
    let bearer = |token: &str| format!("Bearer {token}");
    for (lines, expected) in [
        (vec![], "absent"),
        (vec![("authorization", "Basic dTpw".to_owned())], "absent"),
        (vec![("authorization", "Bearerx y".to_owned())], "absent"),
        (vec![("authorization", bearer(&good))], "verified 1"),
        (vec![("authorization", format!("bearer  {good} "))], "verified 1"),
        // What a lenient reader takes for a token is one.
        (vec![("authorization", format!("BEARER\t{good}"))], "verified 1"),
        (vec![("authorization", "Bearer".to_owned())], "401"),
        (vec![("authorization", "Bearer ".to_owned())], "401"),
        (vec![("authorization", bearer(&expired))], "401"),
        (vec![("authorization", bearer(&good[..good.len() - 8]))], "401"),
        (vec![("authorization", bearer("opaque"))], "401"),
        (vec![("authorization", bearer(&foreign))], "401"),
        // Twice, in whichever way, however good: servers differ in which one counts.
        (vec![("authorization", bearer(&good)), ("authorization", bearer(&good))], "401"),
        (vec![("authorization", "Basic dTpw".to_owned()), ("authorization", bearer(&good))], "401"),
        (vec![("authorization", format!("Bearer {good}, Bearer {good}"))], "401"),
        (vec![("authorization", "Basic a".to_owned()), ("authorization", "Basic b".to_owned())], "absent"),
        // A key that is not here: nothing is known, and the workload sees no token that nobody looked at.
        (vec![("authorization", bearer(&next))], "unknown authorization"),
        // One issuer's token where another's is read.
        (vec![("x-token", good.clone())], "401"),
        (vec![("authorization", bearer(&other))], "401"),
        (vec![("x-token", other.clone()), ("authorization", bearer(&good))], "unknown x-token"),
        // Another issuer's key opens nothing, under its own name and with a good signature.
        (vec![("x-token", borrowed)], "unknown x-token"),
    ] {
        let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(outcome(&plain, &lines), expected, "{lines:.60?}");
    }
    let lines = [("authorization", &*bearer(&good))];
    assert_eq!(outcome(&documents(", forward: false", ""), &lines), "verified 1 authorization");
    let elsewhere = documents(", header: {name: x-jwt, prefix: 'T='}", "");
    assert_eq!(outcome(&elsewhere, &[("x-jwt", &format!("T={good}"))]), "verified 1");
    assert_eq!(outcome(&elsewhere, &lines), "absent");
    // Somebody else's tokens, where the documents let them pass.
    let ignoring = documents("", "otherTokens: Ignore, ");
    for text in ["opaque", &foreign] {
        assert_eq!(outcome(&ignoring, &[("authorization", &bearer(text))]), "absent");
    }
    assert_eq!(outcome(&ignoring, &[("authorization", &bearer(&expired))]), "401");
}

#[test]
fn nothing_is_read_where_no_rule_asks() {
    let text = documents("", "").replace("from: [{jwt: {issuer: other}}]", "from: [{namespaces: [shop]}]");
    assert_eq!(outcome(&text, &[("authorization", "Bearer opaque")]), "unknown");
}

#[test]
fn algorithms_are_the_documents() {
    let rsa = SIGNERS.sign("RS256", &json!({"alg": "RS256", "kid": "rsa"}), &claims(&json!({})));
    assert_eq!(outcome(&documents("", ""), &[("authorization", &format!("Bearer {rsa}"))]), "401");
    assert_eq!(Algorithm::parse("RS256"), Some(Algorithm::RS256));
}
