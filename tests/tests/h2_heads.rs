//! Heads of HTTP/2 that must not become heads of HTTP/1: what would break out of a line, frame a body anew, or say two things.
//! At the workload's way out, and at the mesh listener with a sidecar's certificate.
//!
//! `POSTERN_TEST_LONG=1 cargo test -p postern-tests --test h2_heads -- --nocapture` prints the figures of docs/threat-model.md, with
//! Envoy beside.

use std::net::SocketAddr;
use std::time::Duration;

use postern_tests::frames::{Raw, block, flag, frame, kind, status};
use postern_tests::{Block, Envoy, Mesh, Origin, Plan, foreign, is_long};

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
"#;

type Fields = Vec<(String, String)>;

/// Replaces a field's value.
fn set(fields: &mut Fields, name: &str, value: &str) {
    let found = fields.iter_mut().find(|(own, _)| own == name);
    found.unwrap_or_else(|| panic!("no {name}")).1 = value.to_owned();
}

fn add(fields: &mut Fields, name: &str, value: &str) {
    fields.push((name.to_owned(), value.to_owned()));
}

fn drop_field(fields: &mut Fields, name: &str) {
    fields.retain(|(own, _)| own != name);
}

type Case = (&'static str, fn(&mut Fields));

const CASES: [Case; 38] = [
    ("CR and LF in a value", |f| add(f, "x-a", "1\r\nx-b: 2")),
    ("LF in a value", |f| add(f, "x-a", "1\nx-b: 2")),
    ("NUL in a value", |f| add(f, "x-a", "1\x002")),
    ("CR and LF in a name", |f| add(f, "x-a: 1\r\nx-b", "2")),
    ("a capital in a name", |f| add(f, "X-A", "1")),
    ("a space in a name", |f| add(f, "x a", "1")),
    ("a colon in a name", |f| add(f, "x:a", "1")),
    ("Transfer-Encoding", |f| add(f, "transfer-encoding", "chunked")),
    ("Connection", |f| add(f, "connection", "close")),
    ("Connection that names a field", |f| add(f, "connection", "x-a")),
    ("Keep-Alive", |f| add(f, "keep-alive", "timeout=5")),
    ("Proxy-Connection", |f| add(f, "proxy-connection", "keep-alive")),
    ("Upgrade", |f| add(f, "upgrade", "websocket")),
    ("TE but trailers", |f| add(f, "te", "gzip")),
    ("an empty path", |f| set(f, ":path", "")),
    ("a path without a slash", |f| set(f, ":path", "bad")),
    ("a space in the path", |f| set(f, ":path", "/bad HTTP/1.1")),
    ("a head in the path", |f| set(f, ":path", "/bad HTTP/1.1\r\nHost: evil\r\n\r\nGET /smuggled")),
    ("a path above the root", |f| set(f, ":path", "/../bad")),
    ("an escaped slash", |f| set(f, ":path", "/a%2fbad")),
    ("a long path", |f| set(f, ":path", &format!("/{}", "a".repeat(9_000)))),
    ("two paths", |f| f.insert(1, (":path".to_owned(), "/other".to_owned()))),
    ("two methods", |f| f.insert(1, (":method".to_owned(), "POST".to_owned()))),
    ("no path", |f| drop_field(f, ":path")),
    ("no method", |f| drop_field(f, ":method")),
    ("no authority", |f| drop_field(f, ":authority")),
    ("a pseudo-field after the others", |f| {
        drop_field(f, ":path");
        add(f, "x-a", "1");
        add(f, ":path", "/bad");
    }),
    ("a pseudo-field that nobody knows", |f| f.insert(1, (":other".to_owned(), "1".to_owned()))),
    ("the status of an answer", |f| f.insert(1, (":status".to_owned(), "200".to_owned()))),
    ("a head in the method", |f| set(f, ":method", "GET / HTTP/1.1\r\nx-a: 1\r\n\r\nGET")),
    ("a user in the authority", |f| set(f, ":authority", "evil@orders.shop")),
    ("a head in the authority", |f| set(f, ":authority", "orders.shop\r\nx-a: 1")),
    ("another Host than the authority", |f| add(f, "host", "evil.shop")),
    ("two Hosts", |f| {
        add(f, "host", "orders.shop");
        add(f, "host", "orders.shop");
    }),
    ("two lengths alike", |f| {
        add(f, "content-length", "0");
        add(f, "content-length", "0");
    }),
    ("two lengths", |f| {
        add(f, "content-length", "0");
        add(f, "content-length", "44");
    }),
    ("a length that is none", |f| add(f, "content-length", "5, 5")),
    ("one large field", |f| add(f, "x-a", &"a".repeat(40_000))),
];

/// What a sidecar says to its like, and must not be said twice or badly.
const OF_THE_MESH: [Case; 4] = [
    ("two ports", |f| add(f, "postern-port", "8080")),
    ("a port in hexadecimal", |f| set(f, "postern-port", "0x1f90")),
    ("a port with a sign", |f| set(f, "postern-port", "+8080")),
    ("a port that is not declared", |f| set(f, "postern-port", "22")),
];

/// Sends one head on a connection of its own; what came of it.
fn ask(mut raw: Raw, change: fn(&mut Fields)) -> Option<u16> {
    raw.hello(&[]);
    let mut fields: Fields =
        [(":method", "GET"), (":path", "/bad")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    fields.extend(raw.fields().iter().cloned());
    change(&mut fields);
    let fields: Vec<(&str, &str)> =
        fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let bytes = block(&fields);
    let mut parts = bytes.chunks(16_000);
    let mut flow = frame(kind::HEADERS, flag::END_STREAM, 1, parts.next().expect("there is one"));
    for part in parts {
        flow.extend(frame(kind::CONTINUATION, 0, 1, part));
    }
    flow.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
    let _ = raw.send(&flow);
    let is_end = |kind: u8| matches!(kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY);
    let end = raw.wait_for(Duration::from_secs(5), |one| is_end(one.kind));
    end.and_then(|end| if end.kind == kind::HEADERS { status(&end) } else { Some(0) })
}

#[test]
fn they_are_refused() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh: &Mesh = &plan.start();
    let outbound = mesh.sidecar("web").outbound();
    let way_out = || Raw::plain(outbound, "orders.shop");
    let at_the_mesh = || Raw::mesh(mesh, "web", "orders");
    assert_eq!(ask(way_out(), |_| {}), Some(200), "what is nothing but plain");
    assert_eq!(ask(at_the_mesh(), |_| {}), Some(200), "what is nothing but plain");
    assert_eq!(origin.requests().len(), 2);
    let mut wrong = Vec::new();
    let mut hold = |door: &str, name: &str, came: Option<u16>| {
        let refused = came.is_some_and(|status| status == 0 || (400..500).contains(&status));
        if !refused || origin.requests().len() != 2 {
            wrong.push(format!("{door}: {name}: {came:?}, {:?}", origin.requests().get(2)));
            origin.forget();
            let _ = (ask(way_out(), |_| {}), ask(way_out(), |_| {}));
        }
    };
    for (name, change) in CASES {
        hold("way out", name, ask(way_out(), change));
        hold("mesh", name, ask(at_the_mesh(), change));
    }
    for (name, change) in OF_THE_MESH {
        hold("mesh", name, ask(at_the_mesh(), change));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // h2 drops a field without a name, and goes on.
    assert_eq!(ask(way_out(), |f| add(f, "", "1")), Some(200));
    let seen = origin.last();
    assert!(seen.headers.iter().all(|(name, _)| !name.is_empty()), "{seen:?}");
}

/// Which of them a stock Envoy passes on.
#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (block, directory) = (Block::take(), tempfile::tempdir().expect("a directory can be made"));
    let origin = Origin::http((block.address(1), 8080));
    let at = SocketAddr::from((block.address(2), 8000));
    let _envoy = Envoy::new(at, origin.address()).start(directory.path());
    let mut passed = Vec::new();
    for (name, change) in CASES {
        origin.forget();
        let _ = ask(Raw::plain(at, "orders.shop"), change);
        if !origin.requests().is_empty() {
            passed.push(name);
        }
    }
    println!("| Envoy | {} of {}: {passed:?} |", passed.len(), CASES.len());
}
