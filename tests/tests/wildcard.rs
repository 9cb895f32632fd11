//! A mesh listener bound to every address of its machine: which of them a tunnel may name.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use http::{Method, Request};
use postern_tests::{Origin, Peer, Plan, namespace, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - {name: web, from: [{serviceAccounts: [web]}], to: [{ports: [9000]}]}
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{port: 9000, protocol: tcp}]
  endpoints: [{address: 10.77.0.2, meshPort: 24144}]
"#;

#[test]
fn a_tunnel_names_the_address_that_it_reached_and_no_other() {
    let setup = ["addr add 10.77.0.2/32 dev lo", "addr add 10.77.0.3/32 dev lo"];
    if !namespace::inside("a_tunnel_names_the_address_that_it_reached_and_no_other", &setup) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    // A port of its own: the other sidecar's listener has an address on the usual one.
    plan.sidecar("orders").serves(9000, 9000, "tcp").inbound("0.0.0.0:24144");
    plan.without_services();
    plan.document("policy.yaml", POLICY);
    let _workload = Origin::echo((plan.address("orders"), 9000));
    let others = Origin::echo(([10, 77, 0, 3].into(), 9000));
    let mesh = plan.start();

    // From sidecar to sidecar: the workload is at an address that the caller has never heard of.
    let mut stream = wire::connect(mesh.sidecar("web").outbound());
    stream
        .write_all(b"CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n")
        .expect("it reads");
    let head = wire::read_head(&mut stream);
    assert_eq!(wire::status(head.as_bytes()), 200, "{head}");
    stream.write_all(b"ping").expect("the tunnel takes bytes");
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).expect("each byte goes through at once");
    assert_eq!(&echo, b"ping");

    // A peer may dial any of the addresses, and must then mean that one.
    let peer = Peer::connect(&mesh, "web", "orders", ([10, 77, 0, 2], 24_144).into());
    let own = format!("{}:9000", mesh.address("orders"));
    for (authority, status) in [
        ("10.77.0.2:9000", 200),
        ("[::ffff:10.77.0.2]:9000", 200),
        (own.as_str(), 200),
        ("10.77.0.3:9000", 421),
        ("127.0.0.1:9000", 421),
        ("0.0.0.0:9000", 421),
        ("[::]:9000", 421),
    ] {
        let mut head = Request::new(());
        *head.method_mut() = Method::CONNECT;
        *head.uri_mut() = authority.parse().expect("it is an authority");
        let (answer, mut stream) = peer.open(head);
        assert_eq!(answer.status(), status, "{authority}");
        if status == 200 {
            stream.send_data(Bytes::from_static(b"ping"), true).expect("the tunnel takes bytes");
            assert_eq!(peer.read(&mut answer.into_body()), "ping", "{authority}");
        }
    }
    assert_eq!(others.bytes(), 0, "nobody else was reached");
}
