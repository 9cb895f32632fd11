//! Tunnels to a port that a rule names and the workload does not declare: what is found in them is what it would be
//! outside of one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use postern_tests::{Mesh, Origin, Plan, wait, wire};

/// One rule names the ports, the other allows everything.
const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: everything
    from: [{serviceAccounts: [web]}]
  - name: debugging
    from: [{serviceAccounts: [web]}]
    to: [{ports: [9000, 9100]}]
"#;
const CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";

/// orders declares 8080 alone; the Service raw leads to its ports 9000 and 9100.
fn pair(in_flight: &str) -> Mesh {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(9001, 9001, "tcp").limit("inFlight", in_flight);
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    plan.document(
        "raw.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: raw, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports:\n  \
             - {{port: 9000, protocol: tcp}}\n  - {{port: 9100, protocol: tcp}}\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    );
    plan.start()
}

fn connect(mesh: &Mesh, host: &str) -> (u16, TcpStream) {
    let mut tunnel = wire::connect(mesh.sidecar("web").outbound());
    write!(tunnel, "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("the sidecar reads");
    let status = wire::status(wire::read_head(&mut tunnel).as_bytes());
    (status, tunnel)
}

/// A request on a connection that stays.
fn ask(tunnel: &mut TcpStream) -> u16 {
    tunnel.write_all(b"HEAD / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    wire::status(wire::read_head(tunnel).as_bytes())
}

fn failures(mesh: &Mesh, reason: &str) -> f64 {
    let name = format!("postern_failures_total{{direction=\"inbound\",reason=\"{reason}\"}}");
    mesh.sidecar("orders").metrics().value(&name)
}

#[test]
fn a_port_that_no_rule_names_any_more_is_left_by_what_is_in_a_tunnel_too() {
    let mesh = pair("100");
    let address = mesh.address("orders");
    let _origins = [Origin::http((address, 9100)), Origin::echo((address, 9000))];
    let (status, mut tunnel) = connect(&mesh, "raw.shop:9100");
    assert_eq!((status, ask(&mut tunnel)), (200, 200));
    let (status, mut opaque) = connect(&mesh, "raw.shop:9000");
    assert_eq!(status, 200);
    let mut said = [0; 3];
    opaque.write_all(b"\0\0\0").expect("the sidecar reads");
    opaque.read_exact(&mut said).expect("it is echoed");

    let (rest, _) = POLICY.split_once("  - name: debugging").expect("it is the last rule");
    mesh.change("policy.yaml", rest);
    assert_eq!(ask(&mut tunnel), 421, "the port is not there any more");
    let ended = opaque.read(&mut said).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
}

#[test]
fn http_in_a_tunnel_takes_one_place_while_a_request_runs_and_none_between() {
    let mesh = pair("1");
    let address = mesh.address("orders");
    let _origins = [Origin::http((address, 8080)), Origin::http((address, 9000))];
    let (status, mut tunnel) = connect(&mesh, "raw.shop:9000");
    assert_eq!((status, ask(&mut tunnel)), (200, 200));
    wait::until("an idle tunnel holds no place", Duration::from_secs(5), || {
        wire::status(&wire::exchange(mesh.sidecar("web").outbound(), CLOSE)) == 200
    });
    wait::until("and may go on", Duration::from_secs(5), || ask(&mut tunnel) == 200);
}

#[test]
fn over_http2_too() {
    let mesh = pair("1");
    let _origin = Origin::http((mesh.address("orders"), 9000));
    let (status, mut tunnel) = connect(&mesh, "raw.shop:9000");
    assert_eq!(status, 200);
    // Preface, SETTINGS, and GET http://a/ as stream 1, whole.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let request = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a";
    tunnel.write_all(&[&hello[..], request].concat()).expect("the sidecar reads");
    let mut head = [0; 9];
    loop {
        tunnel.read_exact(&mut head).expect("an answer comes");
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        tunnel.read_exact(&mut payload).expect("the frame is whole");
        if head[3] == 1 {
            assert_eq!(payload.first(), Some(&0x88), "status 200: {payload:?}");
            break;
        }
    }
}

#[test]
fn opaque_bytes_keep_the_place_in_which_they_were_found_out() {
    let mesh = pair("1");
    let _echo = Origin::echo((mesh.address("orders"), 9000));
    let (status, mut tunnel) = connect(&mesh, "raw.shop:9000");
    assert_eq!(status, 200);
    let mut said = [0; 1];
    tunnel.write_all(b"\0").expect("the sidecar reads");
    tunnel.read_exact(&mut said).expect("it is echoed");
    assert_eq!(connect(&mesh, "raw.shop:9000").0, 503);
    drop(tunnel);
    wait::until("the place is free again", wait::PATIENCE, || connect(&mesh, "raw.shop:9000").0 == 200);
}

#[test]
fn a_tunnel_for_which_there_is_no_place_is_counted_as_such() {
    let mesh = pair("1");
    let _echo = Origin::echo((mesh.address("orders"), 9001));
    let (first, held) = connect(&mesh, "orders.shop:9001");
    let (second, _) = connect(&mesh, "orders.shop:9001");
    assert_eq!((first, second), (200, 503));
    assert_eq!((failures(&mesh, "overloaded"), failures(&mesh, "canceled")), (1.0, 0.0));
    let requests = mesh.sidecar("orders").metrics();
    let refused: f64 = requests
        .iter()
        .filter(|(name, _)| {
            name.contains("requests_total{") && name.contains("inbound") && name.contains("5xx")
        })
        .map(|(_, value)| value)
        .sum();
    assert_eq!(refused, 1.0);
    drop(held);
}
