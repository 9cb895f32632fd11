//! Tokens that a foreign library signed, keys from a server that rotates, misbehaves and dies.

use std::time::Duration;

use postern_tests::{Issuer, Mesh, Origin, Plan, foreign, wait};
use serde_json::Value;

const PORT: u16 = 18_443;
/// Strangers' key ids lead to a look at the server at most every 30 s.
const ROTATION: Duration = Duration::from_secs(45);

struct Issued {
    // Dropped first: it prints its log from the mesh's directory.
    issuer: Issuer,
    mesh: Mesh,
    origin: Origin,
}

fn documents(address: std::net::IpAddr, ca: &str, more: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {{name: default, namespace: postern-system}}
spec:
  jwt:
    issuers:
    - issuer: https://id.example.com
      audiences: [orders]
      jwks: {{url: 'https://{address}:{PORT}/jwks.json', caFile: {ca}{more}}}
      algorithms: [RS256, ES256, EdDSA]
      clockSkew: 0s
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: orders, namespace: shop}}
spec:
  target: {{selector: {{app: orders}}}}
  action: Allow
  rules:
  - name: users
    from: [{{serviceAccounts: [web], jwt: {{issuer: 'https://id.example.com', claims: {{scope: {{has: read}}}}}}}}]
    to: [{{pathPrefix: [/users, /endless]}}]
  - name: open
    from: [{{serviceAccounts: [web]}}]
    to: [{{pathPrefix: [/open]}}]
"
    )
}

impl Issued {
    fn start(how: &str, more: &str) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http").log("debug");
        let address = plan.spare_address(1);
        let origin = Origin::http((plan.address("orders"), 8080));
        let mesh = plan.start();
        let issuer = Issuer::start(&mesh, address, PORT);
        let issued = Self { issuer, mesh, origin };
        issued.behave(how, "first");
        let ca = issued.mesh.directory().join("ca.pem").display().to_string();
        issued.mesh.change("policy.yaml", &documents(address, &ca, more));
        issued
    }

    fn behave(&self, how: &str, keys: &str) -> Value {
        self.issuer.behave(&self.mesh, how, keys)
    }

    fn token(&self, kid: &str, claims: &str, rest: &str) -> String {
        self.issuer.token(&self.mesh, kid, claims, rest)
    }

    fn ask(&self, path: &str, token: &str) -> postern_tests::Answer {
        let field = format!("Authorization: Bearer {token}");
        self.mesh.curl("web", &[&format!("http://orders.shop{path}"), "-H", &field])
    }

    fn status(&self, token: &str) -> u16 {
        self.ask("/users", token).status
    }

    fn keys(&self) -> Value {
        self.mesh.sidecar("orders").admin("/v1/jwt")["issuers"][0]["keys"].clone()
    }

    fn waits_for_error(&self, words: &str) {
        wait::until(words, Duration::from_secs(40), || {
            self.keys()["lastError"].as_str().is_some_and(|error| error.contains(words))
        });
    }
}

#[test]
fn tokens_of_a_foreign_library() {
    if !foreign::need(&["jwt"]) {
        return;
    }
    let issued = Issued::start("well", "");
    let good = issued.token("first", r#"{"scope": "read write"}"#, "");
    wait::until("the keys are here", wait::PATIENCE, || issued.status(&good) == 200);
    let seen = issued.origin.requests().pop().expect("it came");
    assert_eq!(seen.header("authorization"), [format!("Bearer {good}")], "it is forwarded");
    for (claims, rest, expected) in [
        (r#"{"scope": ["read"], "aud": ["x", "orders"]}"#, "", 200),
        (r#"{"scope": "write"}"#, "", 403),
        ("{}", "", 403),
        (r#"{"scope": "read", "exp": -1}"#, "", 401),
        (r#"{"scope": "read", "nbf": 60}"#, "", 401),
        (r#"{"scope": "read", "aud": "payments"}"#, "", 401),
        (r#"{"scope": "read", "iss": "https://id.example.org"}"#, "", 401),
    ] {
        assert_eq!(issued.status(&issued.token("first", claims, rest)), expected, "{claims}");
    }
    let forged = issued.token("stolen", r#"{"scope": "read"}"#, "&as=first");
    let refused = issued.ask("/open", &forged);
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(refused.header("postern-error"), Some("token_invalid"));
    assert_eq!(issued.mesh.curl("web", &["http://orders.shop/users"]).status, 403, "without a token");
    // A key that nobody has: its claims are unknown, and the workload does not see what nobody looked at.
    let unknown = issued.token("stolen", r#"{"scope": "read"}"#, "");
    assert_eq!(issued.status(&unknown), 403);
    assert_eq!(issued.ask("/open", &unknown).status, 200);
    let seen = issued.origin.requests().pop().expect("it came");
    assert!(seen.header("authorization").is_empty(), "{seen:?}");

    // A stream ends with its token.
    let short = issued.token("first", r#"{"scope": "read", "exp": 5}"#, "");
    let ended = issued.ask("/endless", &short);
    assert_eq!(ended.status, 200);
    assert_ne!(ended.exit, 0, "it was cut, not ended: {ended:?}");

    // The issuer takes another key: one more look, and no more than that, however many ask.
    issued.behave("well", "second,third");
    let next = issued.token("second", r#"{"scope": "read"}"#, "");
    wait::until("the new key is here", ROTATION, || issued.status(&next) == 200);
    assert_eq!(issued.status(&issued.token("third", r#"{"scope": "read"}"#, "")), 200);
    assert_eq!(issued.status(&good), 403, "the old key is gone");
    let asked = issued.behave("well", "second,third")["asked"].as_u64().expect("a number");
    assert!(asked <= 4, "the server was asked {asked} times");

    let metrics = issued.mesh.sidecar("orders").metrics();
    assert!(metrics.value("postern_tokens_total{result=\"invalid\"}") >= 5.0);
    assert!(metrics.value("postern_tokens_total{result=\"unknown\"}") >= 2.0);
    let sidecar = issued.mesh.sidecar("orders");
    let shown =
        sidecar.log() + &sidecar.admin("/v1/jwt").to_string() + &sidecar.admin("/v1/decisions").to_string();
    for token in [&good, &forged, &unknown, &next] {
        let signature = token.rsplit('.').next().expect("three parts");
        assert!(!shown.contains(signature), "a token is shown");
    }
    assert!(!shown.contains("\"ann\""), "a claim is shown");
}

#[test]
fn a_server_of_keys_that_misbehaves_opens_nothing() {
    if !foreign::need(&["jwt"]) {
        return;
    }
    let issued = Issued::start("redirect", ", maxStale: 4s");
    let good = issued.token("first", r#"{"scope": "read"}"#, "");
    let forged = issued.token("stolen", r#"{"scope": "read"}"#, "&as=first");
    let closed = |when: &str| {
        assert_eq!(issued.status(&good), 403, "{when}");
        assert_eq!(issued.status(&forged), 403, "{when}");
        assert_eq!(issued.ask("/open", &good).status, 200, "other rules hold: {when}");
        assert!(issued.mesh.sidecar("orders").is_ready(), "{when}");
    };
    for (how, words) in [
        ("redirect", "redirects are not followed"),
        ("huge", "larger than 256 KiB"),
        ("broken", "500"),
        ("slow", "within 10 s"),
    ] {
        issued.behave(how, "first");
        issued.waits_for_error(words);
        closed(how);
    }
    issued.behave("well", "first");
    wait::until("the keys are here", Duration::from_secs(40), || issued.status(&good) == 200);
    assert_eq!(issued.status(&forged), 401);
    // The server dies. Its keys serve for `maxStale`, and then no longer.
    issued.issuer.process.kill();
    assert_eq!(issued.status(&good), 200);
    wait::until("the keys are too old", wait::PATIENCE, || issued.status(&good) == 403);
    closed("dead");
    assert_eq!(issued.keys()["usable"], false);
    wait::until("it is told", wait::PATIENCE, || {
        issued.mesh.sidecar("orders").metrics().value("postern_jwks_unusable") > 0.5
    });
}
