//! Istio's RequestAuthentication at real sidecars: tokens that a foreign library signed, keys from a file, from a server
//! and from a document, and what becomes of tokens that do not hold.

use std::process::Command;
use std::time::Duration;

use postern_tests::{Answer, Issuer, Mesh, Origin, Plan, foreign, postern, wait};
use serde_json::Value;

const PORT: u16 = 18_453;
/// Whose keys are fetched, read from a file, and written in the document.
const FETCHED: &str = "https://id.example.com";
const FILED: &str = "https://file.example.com";
const INLINE: &str = "https://inline.example.com";

/// `orders` looks at tokens; `store` is selected by nobody, and its namespace is read as Istio reads it.
fn documents(url: &str, file: &str, inline: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {{name: default, namespace: postern-system}}
spec:
  jwt:
    issuers:
    - {{issuer: {FILED}, audiences: [orders], jwks: {{file: {file}}}, algorithms: [ES256, RS256], clockSkew: 0s}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: orders, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  jwtRules:
  - {{issuer: {FETCHED}, audiences: [orders], jwksUri: '{url}', forwardOriginalToken: true}}
  - {{issuer: {INLINE}, audiences: [orders], jwks: '{inline}'}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: orders, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  rules:
  - from: [{{source: {{requestPrincipals: [{FETCHED}/*, {FILED}/*, {INLINE}/ann]}}}}]
    to: [{{operation: {{paths: [/users]}}}}]
  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/web]}}}}]
    to: [{{operation: {{paths: [/scoped]}}}}]
    when: [{{key: 'request.auth.claims[scope]', values: [read]}}]
  - from: [{{source: {{notRequestPrincipals: [{FETCHED}/bob]}}}}]
    to: [{{operation: {{paths: [/not-bob]}}}}]
  - to: [{{operation: {{paths: [/open, /members]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: members, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  action: DENY
  rules:
  - from: [{{source: {{notRequestPrincipals: ['*']}}}}]
    to: [{{operation: {{paths: [/members]}}}}]
"
    )
}

struct Signed {
    // Dropped first: it prints its log from the mesh's directory.
    issuer: Issuer,
    mesh: Mesh,
    origin: Origin,
    _store: Origin,
}

impl Signed {
    fn start() -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http").log("debug").decision_log();
        plan.sidecar("store").serves(80, 8080, "http");
        let address = plan.spare_address(1);
        let origin = Origin::http((plan.address("orders"), 8080));
        let store = Origin::http((plan.address("store"), 8080));
        let mesh = plan.start();
        let issuer = Issuer::start(&mesh, address, PORT);
        let file = mesh.directory().join("keys.json");
        std::fs::write(&file, issuer.keys(&mesh, "second")).expect("the mesh's directory can be written to");
        let text =
            documents(&issuer.keys_url("first"), &file.display().to_string(), &issuer.keys(&mesh, "third"));
        mesh.change("policy.yaml", &text);
        let signed = Self { issuer, mesh, origin, _store: store };
        for (issuer, kid) in [(FETCHED, "first"), (FILED, "second"), (INLINE, "third")] {
            let token = signed.token(issuer, kid, "", "");
            wait::until("its keys are here", wait::PATIENCE, || signed.ask("/users", &token).status == 200);
        }
        signed
    }

    /// Of `issuer`, signed by the key `kid`, with more claims.
    fn token(&self, issuer: &str, kid: &str, more: &str, rest: &str) -> String {
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        self.issuer.token(&self.mesh, kid, &format!("{{\"iss\": \"{issuer}\"{more}}}"), rest)
    }

    fn ask(&self, path: &str, token: &str) -> Answer {
        self.call("orders", path, token)
    }

    fn call(&self, service: &str, path: &str, token: &str) -> Answer {
        let (url, field) = (format!("http://{service}.shop{path}"), format!("Authorization: Bearer {token}"));
        let arguments = [&*url, "-H", &field];
        self.mesh.curl("web", if token.is_empty() { &arguments[..1] } else { &arguments })
    }

    /// `postern policy explain ID` against the sidecar of orders: exit code, and all that it says.
    fn explain(&self, id: &str) -> (Option<i32>, String) {
        let socket = self.mesh.sidecar("orders").socket().display().to_string();
        let output = Command::new(postern())
            .args(["policy", "explain", "--sidecar", &socket, id])
            .output()
            .expect("the binary starts");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// The line of the decision log about this decision.
    fn logged(&self, id: &str) -> Value {
        let path = self.mesh.directory().join("orders.decisions.jsonl");
        let mut found = None;
        wait::until("the decision is logged", wait::PATIENCE, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = lines.find(|line| line["id"] == *id && line["kind"] == "decision");
            found.is_some()
        });
        found.expect("it was just found")
    }
}

#[test]
fn tokens_decide_as_in_istio() {
    if !foreign::need(&["curl", "jwt"]) {
        return;
    }
    let signed = Signed::start();
    // Without a token it is for the rules to say.
    for (path, expected) in
        [("/users", 403), ("/scoped", 403), ("/members", 403), ("/not-bob", 200), ("/open", 200), ("/x", 403)]
    {
        assert_eq!(signed.ask(path, "").status, expected, "{path} without a token");
    }
    for (issuer, kid, more, rest, path, expected) in [
        (FETCHED, "first", "", "", "/users", 200),
        (FETCHED, "first", "", "", "/members", 200),
        (FETCHED, "first", "", "", "/not-bob", 200),
        (FETCHED, "first", r#""sub": "bob""#, "", "/not-bob", 403),
        (FETCHED, "first", r#""scope": "write read""#, "", "/scoped", 200),
        (FETCHED, "first", r#""scope": "write""#, "", "/scoped", 403),
        (FILED, "second", "", "", "/users", 200),
        (INLINE, "third", "", "", "/users", 200),
        (INLINE, "third", r#""sub": "eve""#, "", "/users", 403),
        // Istio's clock skew is 60 s, and that of MeshDefaults is what it says.
        (FETCHED, "first", r#""exp": -30"#, "", "/users", 200),
        (FILED, "second", r#""exp": -30"#, "", "/users", 401),
        (FETCHED, "first", r#""exp": -90"#, "", "/users", 401),
        // What does not hold is refused whatever the rules say, and however open they are.
        (FETCHED, "first", r#""exp": -90"#, "", "/open", 401),
        (FETCHED, "first", r#""nbf": 90"#, "", "/open", 401),
        (FETCHED, "first", r#""aud": "payments""#, "", "/open", 401),
        (FETCHED, "stolen", "", "&as=first", "/open", 401),
        ("https://id.example.org", "first", "", "", "/open", 401),
        // A key of one issuer is none of another's, under its own name or under one of theirs.
        (FILED, "first", "", "", "/users", 403),
        (FETCHED, "second", "", "", "/users", 403),
        (INLINE, "second", "", "&as=third", "/users", 401),
        (FILED, "third", "", "&as=second", "/users", 401),
    ] {
        let answer = signed.ask(path, &signed.token(issuer, kid, more, rest));
        assert_eq!(answer.status, expected, "{path} with {issuer} {kid} {more}{rest}: {answer:?}");
    }
    // An issuer that says so has its token forwarded, and Istio's others have not.
    let (kept, taken) = (signed.token(FETCHED, "first", "", ""), signed.token(INLINE, "third", "", ""));
    signed.ask("/open", &kept);
    assert_eq!(signed.origin.last().header("authorization"), [format!("Bearer {kept}")]);
    signed.ask("/open", &taken);
    assert!(signed.origin.last().header("authorization").is_empty(), "{:?}", signed.origin.last());
    // Nobody looks at tokens where no document says so.
    let expired = signed.token(FETCHED, "first", r#""exp": -90"#, "");
    assert_eq!(signed.call("store", "/open", &expired).status, 200);
}

#[test]
fn a_refused_token_is_a_decision_that_can_be_looked_up() {
    if !foreign::need(&["curl", "jwt"]) {
        return;
    }
    let signed = Signed::start();
    let orders = signed.mesh.sidecar("orders");
    let before = signed.origin.requests().len();
    let denied = || orders.metrics().value("postern_decisions_total{effect=\"deny\"}");
    let count = denied();
    let mut tokens = Vec::new();
    for (more, rest, why) in [
        (r#""exp": -90"#, "", "expired"),
        (r#""aud": "payments""#, "", "for another audience"),
        ("", "&as=first", "the signature does not fit"),
    ] {
        let kid = if rest.is_empty() { "first" } else { "stolen" };
        let token = signed.token(FETCHED, kid, more, rest);
        let refused = signed.ask("/open?secret=1", &token);
        assert_eq!(refused.status, 401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        assert_eq!(refused.header("postern-error"), Some("token_invalid"));
        let id = refused.header("postern-decision").expect("a refusal names its decision").to_owned();
        assert!(refused.text().contains(&id), "{}", refused.text());
        assert!(!refused.text().contains(why), "a caller is not told what is wrong: {}", refused.text());
        let (code, said) = signed.explain(&id);
        assert_eq!(code, Some(1), "{said}");
        for words in ["deny (token_invalid)", "GET /open", "/ns/shop/sa/web", why] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let line = signed.logged(&id);
        for (field, expected) in [
            ("effect", "deny"),
            ("reason", "token_invalid"),
            ("tokenError", why),
            ("path", "/open"),
            ("peer", &orders_peer()),
        ] {
            assert_eq!(line[field], expected, "{line}");
        }
        assert!(line["rule"].is_null() && line["generation"].is_u64(), "{line}");
        tokens.push(token);
    }
    assert_eq!(signed.origin.requests().len(), before, "no such request is forwarded");
    assert_eq!(denied() - count, 3.0);
    let log = std::fs::read_to_string(signed.mesh.directory().join("orders.decisions.jsonl"));
    let shown = orders.log() + &orders.admin("/v1/decisions").to_string() + &log.expect("it is there");
    assert!(shown.contains("token_error=\"expired\""), "the sidecar's own log has the reason");
    for token in &tokens {
        for part in token.split('.').skip(1) {
            assert!(!shown.contains(part), "a part of a token is shown");
        }
    }
    assert!(!shown.contains("secret=1") && !shown.contains("payments"), "a query or a claim is shown");
}

fn orders_peer() -> String {
    format!("spiffe://{}/ns/shop/sa/web", postern_tests::TRUST_DOMAIN)
}

#[test]
fn a_dead_server_of_keys_opens_nothing() {
    if !foreign::need(&["curl", "jwt"]) {
        return;
    }
    let signed = Signed::start();
    let orders = signed.mesh.sidecar("orders");
    let good = signed.token(FETCHED, "first", r#""scope": "read""#, "");
    let forged = signed.token(FETCHED, "stolen", r#""scope": "read""#, "&as=first");
    let bob = signed.token(FETCHED, "first", r#""sub": "bob""#, "");
    let filed = signed.token(FILED, "second", "", "");
    signed.issuer.process.kill();
    assert_eq!(signed.ask("/users", &good).status, 200, "keys that are here serve on");
    orders.restart();
    wait::until("it serves", wait::PATIENCE, || signed.ask("/open", "").status == 200);
    wait::until("the file's keys are here", wait::PATIENCE, || signed.ask("/users", &filed).status == 200);
    wait::until("the server was asked", Duration::from_secs(20), || {
        let page = orders.admin("/v1/jwt");
        let mut issuers = page["issuers"].as_array().into_iter().flatten();
        issuers.any(|one| one["issuer"] == FETCHED && one["keys"]["lastError"].is_string())
    });
    // Nobody knows what these say: no ALLOW that asks for a token holds, and each DENY that asks for one does.
    for path in ["/users", "/scoped", "/members", "/not-bob"] {
        for (what, token) in [("good", &good), ("forged", &forged), ("bob's", &bob)] {
            assert_eq!(signed.ask(path, token).status, 403, "{path} with a {what} token");
        }
    }
    for token in [&good, &forged] {
        assert_eq!(signed.ask("/open", token).status, 200, "rules without tokens hold");
        assert!(signed.origin.last().header("authorization").is_empty(), "nobody has looked at it");
    }
    assert_eq!(signed.ask("/members", &filed).status, 200);
    assert!(orders.is_ready());
}
