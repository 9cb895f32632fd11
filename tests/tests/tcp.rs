//! Opaque TCP through a sidecar pair, by CONNECT: bytes, half-closes and resets arrive as they were meant.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use postern_tests::{Mesh, Origin, Plan, foreign, wait, wire};

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
    to: [{ports: [8080, 9000, 9001]}]
"#;

/// web, which calls, and orders: HTTP on 8080, opaque ports 9000 (allowed), 9001 (allowed) and 9002 (not).
fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.sidecar("web");
    let orders = plan.sidecar("orders");
    orders
        .serves(80, 8080, "http")
        .serves(9000, 9000, "tcp")
        .serves(9001, 9001, "tls")
        .serves(9002, 9002, "tcp");
    plan.document("policy.yaml", POLICY);
    plan
}

/// A tunnel to `target` through the outbound listener of web; the status if it was refused.
fn tunnel(mesh: &Mesh, target: &str) -> Result<TcpStream, u16> {
    let mut stream = wire::connect(mesh.sidecar("web").outbound());
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").expect("the sidecar reads");
    let head = wire::read_head(&mut stream);
    match wire::status(head.as_bytes()) {
        200 => Ok(stream),
        status => Err(status),
    }
}

#[test]
fn bytes_and_half_closes() {
    let plan = plan();
    let origin = Origin::echo((plan.address("orders"), 9000));
    let mesh = plan.start();
    let mut stream = tunnel(&mesh, "orders.shop:9000").expect("the policy allows it");
    stream.write_all(b"ping").expect("the tunnel takes bytes");
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).expect("each byte goes through at once");
    assert_eq!(&echo, b"ping");
    // Ten MiB there while ten MiB come back: neither direction may wait for the other's end.
    let body: Vec<u8> = (0..10 << 20).map(|at| (at % 253) as u8).collect();
    let (mut writer, sent) = (stream.try_clone().expect("a socket can be shared"), body.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("the tunnel takes bytes");
        writer.shutdown(Shutdown::Write).expect("an open socket can be half closed");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("after our end, everything still comes back, and then an end");
    writing.join().expect("writing does not fail");
    assert!(back == body, "{} bytes came back of {}", back.len(), body.len());
    assert_eq!(origin.bytes(), 4 + body.len() as u64);
    wait::until("no stream is left", wait::PATIENCE, || {
        ["web", "orders"].iter().all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
}

#[test]
fn the_workload_may_end_its_side_first() {
    let plan = plan();
    let listener = TcpListener::bind((plan.address("orders"), 9000)).expect("the address is ours");
    let mesh = plan.start();
    let mut stream = tunnel(&mesh, "orders.shop:9000").expect("the policy allows it");
    let (mut workload, _) = listener.accept().expect("the tunnel arrives");
    workload.write_all(b"bye").expect("an open socket takes bytes");
    workload.shutdown(Shutdown::Write).expect("an open socket can be half closed");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("the end arrives as an end");
    assert_eq!(said, b"bye");
    // The other direction is still open.
    stream.write_all(b"and a last word").expect("the tunnel takes bytes");
    stream.shutdown(Shutdown::Write).expect("an open socket can be half closed");
    let mut last = Vec::new();
    workload.read_to_end(&mut last).expect("the end arrives as an end");
    assert_eq!(last, b"and a last word");
}

/// What a TLS client says first, asking for a server name.
fn client_hello(name: &str) -> Vec<u8> {
    let body = |id: u16, bytes: &[u8]| -> Vec<u8> {
        let len = u16::try_from(bytes.len()).expect("it is short");
        [&id.to_be_bytes()[..], &len.to_be_bytes(), bytes].concat()
    };
    let short = |bytes: &[u8]| [&[u8::try_from(bytes.len()).expect("it is short")], bytes].concat();
    let long =
        |bytes: &[u8]| [&u16::try_from(bytes.len()).expect("it is short").to_be_bytes(), bytes].concat();
    let extensions = [
        body(0, &long(&[&[0][..], &long(name.as_bytes())].concat())),
        body(10, &long(&[0, 29])),
        body(13, &long(&[8, 4])),
        body(43, &short(&[3, 4])),
        body(51, &long(&[&[0, 29][..], &long(&[7; 32])].concat())),
    ];
    let hello =
        [&[3, 3][..], &[1; 32], &short(&[]), &long(&[0x13, 1]), &short(&[0]), &long(&extensions.concat())]
            .concat();
    let message = [&[1, 0][..], &long(&hello)].concat();
    [&[0x16, 3, 1][..], &long(&message)].concat()
}

/// TLS that is passed on unread is judged by the server name that its client asks for.
#[test]
fn server_names_of_tls() {
    let mut plan = plan();
    plan.document(
        "policy.yaml",
        &POLICY.replace("{ports: [8080, 9000, 9001]}", "{sni: ['*.db.example'], ports: [9001]}"),
    );
    let origin = Origin::echo((plan.address("orders"), 9001));
    let mesh = plan.start();
    let call = |bytes: &[u8]| {
        let mut stream = tunnel(&mesh, "orders.shop:9001").expect("what is inside decides");
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        stream.write_all(first).expect("the tunnel takes bytes");
        // What is no TLS may be refused by now.
        let _ = stream.write_all(rest);
        let mut echo = vec![0; bytes.len()];
        stream.read_exact(&mut echo).map(|()| echo == bytes).map_err(|error| error.kind())
    };
    assert_eq!(call(&client_hello("a.db.example")), Ok(true), "every byte arrives");
    let arrived = origin.bytes();
    assert_eq!(call(&client_hello("db.example")), Err(ErrorKind::ConnectionReset));
    assert!(call(b"GET / HTTP/1.1\r\nHost: a.db.example\r\n\r\n").is_err());
    assert_eq!(origin.bytes(), arrived, "nothing of what is refused reaches the workload");
    // Opaque ports are judged before they say anything.
    assert_eq!(tunnel(&mesh, "orders.shop:9000").map(|_| ()), Err(403));
    // Rules that ask for other names reset what runs.
    let mut stream = tunnel(&mesh, "orders.shop:9001").expect("what is inside decides");
    let hello = client_hello("a.db.example");
    stream.write_all(&hello).expect("the tunnel takes bytes");
    stream.read_exact(&mut vec![0; hello.len()]).expect("it is allowed");
    mesh.change(
        "policy.yaml",
        &POLICY.replace("{ports: [8080, 9000, 9001]}", "{sni: [b.db.example], ports: [9001]}"),
    );
    assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("TCP knows linger");
    drop(stream);
}

#[test]
fn a_reset_never_becomes_an_end() {
    let plan = plan();
    let listener = TcpListener::bind((plan.address("orders"), 9000)).expect("the address is ours");
    let mesh = plan.start();
    let open = || {
        let mut stream = tunnel(&mesh, "orders.shop:9000").expect("the policy allows it");
        let (mut workload, _) = listener.accept().expect("the tunnel arrives");
        workload.set_read_timeout(Some(Duration::from_secs(20))).expect("a positive time is accepted");
        stream.write_all(b"a").expect("the tunnel takes bytes");
        workload.read_exact(&mut [0]).expect("they arrive");
        workload.write_all(b"b").expect("and back");
        stream.read_exact(&mut [0]).expect("they arrive");
        (stream, workload)
    };
    let (stream, mut workload) = open();
    reset(stream);
    let seen = workload.read(&mut [0]);
    assert!(
        matches!(&seen, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "the workload saw {seen:?}"
    );
    let (mut stream, workload) = open();
    reset(workload);
    let seen = stream.read(&mut [0]);
    assert!(
        matches!(&seen, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "the caller saw {seen:?}"
    );
}

#[test]
fn curl_through_a_tunnel() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let plan = plan();
    let origin = Origin::http((plan.address("orders"), 9000));
    let mesh = plan.start();
    let answer = mesh.curl("web", &["--proxytunnel", "http://orders.shop:9000/inside"]);
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = origin.last();
    assert_eq!(seen.target, "/inside");
    assert!(seen.header("x-forwarded-client-cert").is_empty(), "what is opaque is not touched: {seen:?}");
    let big = mesh.curl("web", &["--proxytunnel", "http://orders.shop:9000/bytes/5000000"]);
    assert_eq!((big.status, big.exit, big.body.len()), (200, 0, 5_000_000));
}

#[test]
fn what_is_no_tunnel() {
    let plan = plan();
    let http = Origin::http((plan.address("orders"), 8080));
    let closed = Origin::silent((plan.address("orders"), 9002));
    let mesh = plan.start();
    for (target, status, reason) in [
        ("orders.shop:80", 403, "connect_to_http"),
        ("orders.shop:8080", 403, "unknown_service"),
        ("nobody.shop:9000", 403, "unknown_service"),
        ("127.0.0.1:9000", 403, "unknown_service"),
        ("orders.shop", 400, "bad_request"),
        (":9000", 400, "bad_request"),
    ] {
        assert_eq!(tunnel(&mesh, target).err(), Some(status), "{target}");
        let metric = format!("postern_failures_total{{direction=\"outbound\",reason=\"{reason}\"}}");
        assert!(mesh.sidecar("web").metrics().value(&metric) >= 1.0, "{target}: {metric}");
    }
    assert_eq!(tunnel(&mesh, "orders.shop:9002").err(), Some(403), "the far side's policy");
    let refused = b"CONNECT orders.shop:9002 HTTP/1.1\r\nHost: orders.shop:9002\r\nConnection: close\r\n\r\n";
    let refused = wire::exchange(mesh.sidecar("web").outbound(), refused);
    let refused = String::from_utf8_lossy(&refused);
    assert!(refused.contains("\r\npostern-decision: 1-"), "a refusal names its verdict: {refused}");
    let denied = "postern_failures_total{direction=\"inbound\",reason=\"policy_denied\"}";
    assert_eq!(mesh.sidecar("orders").metrics().value(denied), 2.0, "each is counted once");
    // A port that nobody listens on, though declared and allowed.
    assert_eq!(tunnel(&mesh, "orders.shop:9001").err(), Some(502));
    assert_eq!((http.connections(), closed.connections()), (0, 0), "nothing reached a workload");
}

#[test]
fn a_tunnel_that_loses_permission_is_reset() {
    let plan = plan();
    let _origin = Origin::echo((plan.address("orders"), 9000));
    let other = Origin::echo((plan.address("orders"), 9001));
    let mesh = plan.start();
    let mut lost = tunnel(&mesh, "orders.shop:9000").expect("the policy allows it");
    let mut kept = tunnel(&mesh, "orders.shop:9001").expect("the policy allows it");
    let alive = |stream: &mut TcpStream| {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    alive(&mut lost).expect("the tunnel is open");
    alive(&mut kept).expect("the tunnel is open");
    mesh.change("policy.yaml", &POLICY.replace("8080, 9000, 9001", "8080, 9001"));
    lost.set_read_timeout(Some(Duration::from_secs(5))).expect("a positive time is accepted");
    let seen = lost.read(&mut [0]);
    assert!(
        matches!(&seen, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "the caller saw {seen:?}"
    );
    alive(&mut kept).expect("what is still allowed goes on, on the same connection");
    assert_eq!(other.connections(), 1);
    assert_eq!(mesh.sidecar("orders").metrics().value("postern_policy_revoked_streams_total"), 1.0);
    assert_eq!(tunnel(&mesh, "orders.shop:9000").err(), Some(403), "and no new one opens");
}
