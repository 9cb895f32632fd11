//! Tunnels to a port that a rule names and the workload does not declare: what is found in them is what it would be
//! outside of one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use postern_tests::{Mesh, Origin, Plan, Process, foreign, wait, wire};

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

/// What is HTTP/2 in a tunnel goes to the workload as that: its client meant the workload.
#[test]
fn over_http2_too() {
    if !foreign::need(&["nghttpd"]) {
        return;
    }
    let mesh = pair("1");
    let address = mesh.address("orders");
    let root = mesh.directory().join("files");
    std::fs::create_dir(&root).expect("the mesh's directory can be written to");
    let log = mesh.directory().join("nghttpd.log");
    let server = Process::start("nghttpd", "nghttpd".as_ref(), &log, |command| {
        command.args(["--no-tls", "--verbose", "-a", &address.to_string(), "-d"]).arg(&root).arg("9000");
    });
    wait::until("nghttpd listens", wait::PATIENCE, || TcpStream::connect((address, 9000)).is_ok());
    // At once; and late, when the server's SETTINGS have long been there: it speaks first too.
    for late in [Duration::ZERO, Duration::from_millis(400)] {
        let (status, mut tunnel) = connect(&mesh, "raw.shop:9000");
        assert_eq!(status, 200);
        wait::pause(late);
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
                // It has no such file.
                assert_eq!(payload.first(), Some(&0x8d), "status 404: {payload:?}");
                break;
            }
        }
    }
    // It was read, not carried: the sidecar says to it who calls.
    let told =
        || server.log().matches("x-forwarded-client-cert: URI=spiffe://demo.postern/ns/shop/sa/web").count();
    wait::until("both requests are in the server's log", wait::PATIENCE, || told() == 2);
}

/// Whoever says nothing is not taken for a client that waits for its server, unless it may have opaque bytes.
#[test]
fn silence_shows_nothing_of_a_peer_to_a_workload_that_it_may_not_have() {
    let mesh = pair("100");
    let rule = "to: [{ports: [9000, 9100]}]";
    let only_http = POLICY.replace(rule, "to: [{ports: [9000], paths: [/]}, {ports: [9100]}]");
    let (_, only_http) = only_http.split_once("  - name: debugging").expect("it is the last rule");
    let (head, _) = POLICY.split_once("  - name: everything").expect("it is the first rule");
    mesh.change("policy.yaml", &format!("{head}  - name: debugging{only_http}"));
    let address = mesh.address("orders");
    let (closed, open) = (Origin::echo((address, 9000)), Origin::echo((address, 9100)));
    let (_, mut denied) = connect(&mesh, "raw.shop:9000");
    let (_, mut allowed) = connect(&mesh, "raw.shop:9100");
    wait::until("the one may wait for its server", Duration::from_millis(900), || open.connections() == 1);
    denied.set_read_timeout(Some(wait::PATIENCE)).expect("a positive time is accepted");
    let ended = denied.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!((ended, closed.connections()), (Err(ErrorKind::ConnectionReset), 0));
    // The connection that was opened for it is the one that it gets.
    allowed.write_all(b"\0").expect("the sidecar reads");
    allowed.read_exact(&mut [0]).expect("it is echoed");
    assert_eq!(open.connections(), 1);
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
