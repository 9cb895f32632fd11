//! What `postern policy explain` tells of a call is what a live sidecar answers: each question is put to both.

use std::process::Command;

use h2::ext::Protocol;
use http::{Method, Request};
use postern_tests::{Issuer, Mesh, Origin, Peer, Plan, foreign, wait, wire};
use serde_json::Value;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
    to: [{paths: [/a, "/a/{*}"]}, {ports: [9000, 9443]}, {methods: [POST], paths: [/attach]}]
"#;

/// Exit code and answer of `postern policy explain --json` about a call of web's to orders.
fn explained(mesh: &Mesh, arguments: &[&str]) -> (Option<i32>, Value) {
    let documents = mesh.directory().join("documents");
    let said = Command::new(postern_tests::postern())
        .args(["policy", "explain", "--json", "--from", "shop/web"])
        .arg(&documents)
        .args(arguments)
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{arguments:?}: {error}: {text}{}", String::from_utf8_lossy(&said.stderr))
    });
    (said.status.code(), json)
}

/// The status that an explanation means: 200 for what is allowed, 403 for what rules refuse.
fn status(explained: &Value) -> u64 {
    match &explained["verdict"]["allowed"] {
        Value::Bool(true) => 200,
        _ => explained["verdict"]["status"].as_u64().unwrap_or(403),
    }
}

fn mesh() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    let orders = plan.sidecar("orders");
    orders.serves(80, 8080, "http").upgrades(&["tcp"]);
    orders.serves(9000, 9000, "tcp");
    orders.serves(443, 9443, "tls");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

/// Asked by a peer with a valid identity, which need not have a sidecar of its own: so the callee's answers.
#[test]
fn what_a_port_carries() {
    let (mesh, origin) = mesh();
    let orders = mesh.sidecar("orders");
    let peer = Peer::connect(&mesh, "web", "orders", orders.inbound());
    let address = orders.inbound().ip();
    let request = |method: &str, port: u16, target: &str| {
        let mut head = Request::new(());
        *head.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
        *head.uri_mut() = format!("http://orders.shop{target}").parse().expect("it is a URI");
        head.headers_mut().insert("postern-port", port.into());
        head
    };
    let tunnel = |port: u16| {
        let mut head = Request::new(());
        *head.method_mut() = Method::CONNECT;
        *head.uri_mut() = format!("{address}:{port}").parse().expect("it is an authority");
        head
    };
    let upgrade = |method: &str, name: &'static str, target: &str| {
        let mut head = request("CONNECT", 8080, target);
        head.headers_mut().insert("postern-method", method.parse().expect("it is a value"));
        head.extensions_mut().insert(Protocol::from_static(name));
        head
    };
    for (arguments, head, reason) in [
        (&["orders:80", "GET", "/a"][..], request("GET", 8080, "/a"), None),
        (&["orders:80", "GET", "/b"], request("GET", 8080, "/b"), Some("no_rule")),
        (&["orders:80", "GET", "/a/%2e%2e/a"], request("GET", 8080, "/a/%2e%2e/a"), None),
        (&["orders:80", "GET", "/%2e%2e"], request("GET", 8080, "/%2e%2e"), Some("bad_request")),
        (&["orders:80", "tcp"], tunnel(8080), Some("connect_to_http")),
        (&["orders:80", "--sni", "a.b", "tcp"], tunnel(8080), Some("connect_to_http")),
        (&["orders:9000", "GET", "/a"], request("GET", 9000, "/a"), Some("http_to_tcp")),
        (&["orders:443", "GET", "/a"], request("GET", 9443, "/a"), Some("http_to_tcp")),
        // Nobody listens there, which is another matter than whether one may.
        (&["orders:9000", "tcp"], tunnel(9000), None),
        (
            &["orders:80", "--upgrade", "spdy/3.1", "POST", "/attach"],
            upgrade("POST", "spdy/3.1", "/attach"),
            Some("upgrade_refused"),
        ),
        (
            &["orders:80", "--upgrade", "tcp", "PUT", "/attach"],
            upgrade("PUT", "tcp", "/attach"),
            Some("upgrade_refused"),
        ),
        (
            &["orders:80", "--upgrade", "tcp", "GET", "/attach"],
            upgrade("GET", "tcp", "/attach"),
            Some("no_rule"),
        ),
        // Whatever its method, a WebSocket is a GET.
        (
            &["orders:80", "--upgrade", "websocket", "POST", "/attach"],
            upgrade("POST", "websocket", "/attach"),
            Some("no_rule"),
        ),
    ] {
        let to = format!("shop/{}", arguments[0]);
        let all = [&["--host", "orders.shop", "--to", &to], &arguments[1..]].concat();
        let (code, told) = explained(&mesh, &all);
        assert_eq!(told["verdict"]["reason"].as_str(), reason, "{arguments:?}: {told}");
        assert_eq!(code, Some(i32::from(reason.is_some())), "{arguments:?}: {told}");
        let (answer, _stream) = peer.open(head);
        let answered = u64::from(answer.status().as_u16());
        let label = answer.headers().get("postern-error").and_then(|label| label.to_str().ok());
        match reason {
            None if label == Some("workload_unreachable") => {}
            None => assert_eq!((answered, label), (200, None), "{arguments:?}"),
            Some("no_rule") => assert_eq!((answered, label), (403, Some("policy_denied")), "{arguments:?}"),
            Some(_) => assert_eq!((answered, label), (status(&told), reason), "{arguments:?}: {told}"),
        }
    }
    assert_eq!(origin.requests().len(), 2);
}

/// Over HTTP/1.1 a fragment is refused, over HTTP/2 it is cut off before anything is judged, and goes no further.
#[test]
fn a_fragment_is_no_part_of_a_target() {
    let (mesh, origin) = mesh();
    let outbound = mesh.sidecar("web").outbound();
    for (target, seen) in
        [("/a#b", Some("/a")), ("/a?x#y", Some("/a?x")), ("/b#/a", None), ("/a/c#/../../b", Some("/a/c"))]
    {
        let (code, told) =
            explained(&mesh, &["--host", "orders.shop", "--to", "shop/orders:80", "GET", target]);
        assert_eq!(code, Some(i32::from(seen.is_none())), "{target}: {told}");
        assert!(seen.is_none() || told["notes"].to_string().contains("fragment"), "{target}: {told}");
        let text = format!("GET {target} HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n");
        let before = origin.requests().len();
        assert_eq!(wire::status(&wire::exchange(outbound, text.as_bytes())), 400, "{target}");
        let http2 = ["--http2-prior-knowledge", "--request-target", target, "http://orders.shop/"];
        let answer = mesh.curl_by_host("web", &http2);
        assert_eq!(
            (answer.version.as_str(), u64::from(answer.status)),
            ("2", status(&told)),
            "{target}: {answer:?}"
        );
        let got: Vec<String> =
            origin.requests().split_off(before).into_iter().map(|request| request.target).collect();
        assert_eq!(got, vec![seen.unwrap_or_default(); usize::from(seen.is_some())], "{target}");
    }
}

const PORT: u16 = 18_443;

/// A token is held against its issuer by both, a signature aside, which is taken for granted.
#[test]
fn tokens() {
    if !foreign::need(&["jwt"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    let address = plan.spare_address(1);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let issuer = Issuer::start(&mesh, address, PORT);
    issuer.behave(&mesh, "well", "first");
    let ca = mesh.directory().join("ca.pem").display().to_string();
    mesh.change(
        "policy.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: default, namespace: postern-system}}\n\
             spec:\n  jwt:\n    issuers:\n    - issuer: https://id.example.com\n      audiences: [orders]\n      \
             jwks: {{url: 'https://{address}:{PORT}/jwks.json', caFile: {ca}}}\n      algorithms: [RS256, ES256, EdDSA]\n      \
             clockSkew: 0s\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: orders, namespace: shop}}\n\
             spec:\n  target: {{selector: {{app: orders}}}}\n  action: Allow\n  rules:\n  - name: users\n    \
             from: [{{serviceAccounts: [web], jwt: {{issuer: 'https://id.example.com', claims: {{scope: {{has: read}}}}}}}}]\n"
        ),
    );
    let ask = |token: &str| {
        let field = format!("Authorization: Bearer {token}");
        mesh.curl("web", &["http://orders.shop/", "-H", &field]).status
    };
    let good = issuer.token(&mesh, "first", r#"{"scope": "read write"}"#, "");
    wait::until("the keys are here", wait::PATIENCE, || ask(&good) == 200);
    for (claims, reason) in [
        (r#"{"scope": "read write"}"#, None),
        (r#"{"scope": ["read"], "aud": ["x", "orders"]}"#, None),
        (r#"{"scope": "write"}"#, Some("no_rule")),
        (r#"{"scope": "read", "exp": -1}"#, Some("token_invalid")),
        (r#"{"scope": "read", "nbf": 60}"#, Some("token_invalid")),
        (r#"{"scope": "read", "aud": "payments"}"#, Some("token_invalid")),
        (r#"{"scope": "read", "aud": []}"#, Some("token_invalid")),
        (r#"{"scope": "read", "iss": "https://id.example.org"}"#, Some("token_invalid")),
        (r#"{"scope": "read", "sub": 7}"#, Some("token_invalid")),
    ] {
        let token = issuer.token(&mesh, "first", claims, "");
        let payload = payload(&token);
        let to = ["--host", "orders.shop", "--to", "shop/orders:80", "--claims", &payload, "GET", "/"];
        let (code, told) = explained(&mesh, &to);
        assert_eq!(told["verdict"]["reason"].as_str(), reason, "{payload}: {told}");
        assert_eq!(code, Some(i32::from(reason.is_some())), "{payload}: {told}");
        assert_eq!(u64::from(ask(&token)), status(&told), "{payload}: {told}");
    }
}

/// The payload of a token, as it is signed.
fn payload(token: &str) -> String {
    use base64::Engine as _;
    let part = token.split('.').nth(1).expect("it has three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("it is base64");
    String::from_utf8(bytes).expect("it is JSON")
}
