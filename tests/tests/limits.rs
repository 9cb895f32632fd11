//! Limits that bite: what is past them, what is not, and that each says so.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, wait, wire};
use socket2::{Domain, Socket, Type};

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
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";

fn hits(mesh: &Mesh, name: &str, limit: &str) -> f64 {
    mesh.sidecar(name).metrics().value(&format!("postern_limit_hits_total{{limit=\"{limit}\"}}"))
}

#[test]
fn a_flood_at_one_door_does_not_shut_the_other() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("connections", "4").limit("firstByte", "60s");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let web = mesh.sidecar("web");

    let strangers: Vec<TcpStream> = (0..8).map(|_| wire::connect(web.inbound())).collect();
    wait::until("inbound is full", wait::PATIENCE, || hits(&mesh, "web", "connections") > 0.0);
    // More than the one place that a waiting listener holds in its hand.
    let more: Vec<TcpStream> = (0..2).map(|_| wire::connect(web.outbound())).collect();
    let begun = Instant::now();
    assert_eq!(wire::status(&wire::exchange(web.outbound(), REQUEST)), 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "the workload calls on: {:?}", begun.elapsed());
    drop((strangers, more));

    let before = hits(&mesh, "web", "connections");
    let idle: Vec<TcpStream> = (0..8).map(|_| wire::connect(web.outbound())).collect();
    wait::until("outbound is full", wait::PATIENCE, || hits(&mesh, "web", "connections") > before);
    let more: Vec<TcpStream> = (0..2).map(|_| wire::connect(web.inbound())).collect();
    // Not TLS: refused at once by whoever accepts it.
    let begun = Instant::now();
    wire::exchange(web.inbound(), b"hello\r\n");
    assert!(begun.elapsed() < Duration::from_secs(5), "the mesh gets in: {:?}", begun.elapsed());
    drop((idle, more));
}

/// More workers, one Service: its places are counted together.
#[test]
fn one_slow_service_has_its_places_over_all_workers() {
    let mut plan = Plan::new();
    plan.sidecar("web").workers(2).limit("inFlightPerDestination", "3");
    plan.sidecar("orders").serves(80, 8080, "http").serves(9000, 9000, "tcp");
    plan.document("policy.yaml", POLICY);
    let silent = std::net::TcpListener::bind((plan.address("orders"), 9000)).expect("the port is free");
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();

    let mut statuses = Vec::new();
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut tunnel = wire::connect(outbound);
        tunnel
            .write_all(b"CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n")
            .expect("it reads");
        statuses.push(wire::status(wire::read_head(&mut tunnel).as_bytes()));
        held.push(tunnel);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert_eq!(hits(&mesh, "web", "in_flight_per_destination"), 13.0);
    // The tunnels' other ends would stay open.
    drop((held, silent));
    wait::until("the places are free again", wait::PATIENCE, || {
        wire::status(&wire::exchange(outbound, REQUEST)) == 200
    });
}

/// Each deadline and size of a connection from the workload, and what counts it.
#[test]
fn what_a_caller_overstays_is_counted_by_its_name() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("head", "1s").limit("idle", "1s").limit("headBytes", "4096");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();
    let long = format!("GET / HTTP/1.1\r\nHost: orders.shop\r\nX-Much: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!(
        "GET / HTTP/1.1\r\nHost: orders.shop\r\n{}\r\n",
        (0..101).map(|n| format!("X-{n}: 1\r\n")).collect::<String>()
    );
    for (what, limit, sent) in [
        ("nothing", "idle", &b""[..]),
        ("half a method", "head", b"GE"),
        ("half a head", "head", b"GET / HTTP/1.1\r\nHost: "),
        ("nothing after a request", "idle", b"GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n"),
        ("a long field", "head_size", long.as_bytes()),
        ("many fields", "head_size", many.as_bytes()),
    ] {
        let names = ["idle", "head", "head_size"];
        let before = names.map(|name| hits(&mesh, "web", name));
        let answer = wire::exchange(outbound, sent);
        if limit == "head_size" {
            assert_eq!(wire::status(&answer), 431, "{what}");
        }
        let expected: Vec<f64> = names
            .iter()
            .zip(before)
            .map(|(name, before)| before + f64::from(u8::from(*name == limit)))
            .collect();
        wait::until(&format!("{what} is counted as {limit}"), wait::PATIENCE, || {
            names.map(|name| hits(&mesh, "web", name)).to_vec() == expected
        });
    }
    let failures = mesh.sidecar("web").metrics();
    let name = "postern_failures_total{direction=\"outbound\",reason=\"head_too_large\"}";
    assert_eq!(failures.value(name), 2.0);
}

/// A rule names the port, the workload does not: its bytes tell what it is, and silence is waited for no longer than
/// `detect`.
#[test]
fn silence_on_an_undeclared_port_is_counted() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").limit("detect", "300ms");
    let allowed = POLICY.replace(
        "from: [{serviceAccounts: [web]}]",
        "from: [{serviceAccounts: [web]}]\n    to: [{ports: [9000]}]",
    );
    plan.document("policy.yaml", &allowed);
    let address = plan.address("orders");
    plan.document("raw.yaml", &raw(address));
    let _origin = Origin::echo((address, 9000));
    let mesh = plan.start();
    let mut tunnel = wire::connect(mesh.sidecar("web").outbound());
    tunnel.write_all(b"CONNECT raw.shop:9000 HTTP/1.1\r\nHost: raw.shop:9000\r\n\r\n").expect("it reads");
    assert_eq!(wire::status(wire::read_head(&mut tunnel).as_bytes()), 200);
    wait::until("the silence is counted", wait::PATIENCE, || hits(&mesh, "orders", "detect") == 1.0);
}

/// A listener whose queue is full answers no more SYN.
#[test]
fn an_endpoint_that_does_not_answer_connect_is_counted() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("connectMesh", "300ms");
    let address = plan.spare_address(0);
    plan.document(
        "deaf.yaml",
        &format!(
            "
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: deaf, namespace: shop}}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{{port: 80, protocol: http, targetPort: 8080}}]
  endpoints: [{{address: {address}}}]
"
        ),
    );
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
    let at = SocketAddr::new(address, 24_143);
    deaf.bind(&at.into()).expect("the address is spare");
    deaf.listen(0).expect("it listens");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(300)) {
        queued.push(stream);
        assert!(queued.len() < 100, "the queue never fills");
    }
    let mesh = plan.start();
    let request = b"GET / HTTP/1.1\r\nHost: deaf.shop\r\nConnection: close\r\n\r\n";
    assert_eq!(wire::status(&wire::exchange(mesh.sidecar("web").outbound(), request)), 503);
    assert!(hits(&mesh, "web", "connect_mesh") >= 1.0);
}

/// HTTP/2 found in a tunnel to an undeclared port is served within the configured limits too.
#[test]
fn the_settings_inside_a_tunnel_are_the_configured_ones() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("streams", "6");
    plan.sidecar("orders").serves(80, 8080, "http").limit("streams", "5").limit("streamWindow", "70000");
    let allowed = POLICY.replace(
        "from: [{serviceAccounts: [web]}]",
        "from: [{serviceAccounts: [web]}]\n    to: [{ports: [9000]}]",
    );
    plan.document("policy.yaml", &allowed);
    plan.document("raw.yaml", &raw(plan.address("orders")));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    let mut tunnel = wire::connect(outbound);
    tunnel.write_all(b"CONNECT raw.shop:9000 HTTP/1.1\r\nHost: raw.shop:9000\r\n\r\n").expect("it reads");
    assert_eq!(wire::status(wire::read_head(&mut tunnel).as_bytes()), 200);
    tunnel.write_all(hello).expect("it reads");
    let settings = settings(&mut tunnel);
    assert_eq!((settings.get(&3), settings.get(&4)), (Some(&5), Some(&70_000)), "{settings:?}");

    let mut direct = wire::connect(outbound);
    direct.write_all(hello).expect("it reads");
    assert_eq!(self::settings(&mut direct).get(&3), Some(&6));
}

/// The first frame of an HTTP/2 server: its SETTINGS by their numbers (RFC 9113, 6.5.2).
fn settings(stream: &mut TcpStream) -> BTreeMap<u16, u32> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).expect("a server speaks first");
    assert_eq!(head[3], 4, "SETTINGS");
    let mut body = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut body).expect("the frame is whole");
    let number = |part: &[u8]| part.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
    body.chunks(6).map(|entry| (u16::from_be_bytes([entry[0], entry[1]]), number(&entry[2..]))).collect()
}

/// A Service at a port that the workload does not declare.
fn raw(address: IpAddr) -> String {
    format!(
        "
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: raw, namespace: shop}}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{{port: 9000, protocol: tcp, targetPort: 9000}}]
  endpoints: [{{address: {address}}}]
"
    )
}
