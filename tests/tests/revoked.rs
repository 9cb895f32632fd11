//! A policy change takes away what one caller may, over a tunnel, a gRPC stream and a WebSocket at once, and leaves another
//! caller's three alone.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, Process, foreign, wait, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: callers
    from: [{serviceAccounts: [CALLERS]}]
    to: [{ports: [8080, 9000, 50051]}]
"#;
/// Not touched by the change.
const OTHER: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: other, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules: [{name: nobody, to: [{paths: ["/never"], ports: [8080]}]}]
"#;

struct Caller {
    tunnel: TcpStream,
    websocket: Process,
    grpc: Process,
}

impl Caller {
    fn open(mesh: &Mesh, name: &str) -> Self {
        let outbound = mesh.sidecar(name).outbound();
        let mut tunnel = wire::connect(outbound);
        write!(tunnel, "CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n")
            .expect("the sidecar reads");
        assert_eq!(wire::status(wire::read_head(&mut tunnel).as_bytes()), 200);
        let start = |peer: &str, arguments: &[String]| {
            let (python, script) = foreign::python(peer);
            let log = mesh.directory().join(format!("{name}-{peer}.log"));
            Process::start(peer, &python, &log, |command| {
                command.arg(script).args(arguments);
            })
        };
        let (ip, port) = (outbound.ip().to_string(), outbound.port().to_string());
        let websocket = start("ws_client.py", &[ip, port, "ws://orders.shop".into(), "watch".into()]);
        let grpc =
            start("grpc_client.py", &[outbound.to_string(), "orders.shop:50051".into(), "watch".into()]);
        for process in [&websocket, &grpc] {
            wait::until("the stream is open", wait::PATIENCE, || process.log().contains("watching"));
        }
        Self { tunnel, websocket, grpc }
    }

    fn echo(&mut self) -> std::io::Result<()> {
        self.tunnel.write_all(b"x")?;
        self.tunnel.read_exact(&mut [0])
    }

    /// Whether the clients have seen the ends of their streams.
    fn has_ended(&self) -> [bool; 2] {
        [&self.websocket, &self.grpc].map(|process| process.log().contains("\"count\""))
    }
}

#[test]
fn exactly_the_streams_that_lost_permission_are_reset() {
    if !foreign::need(&["grpc", "websockets"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("cron");
    plan.sidecar("orders").serves(80, 8080, "http").serves(9000, 9000, "tcp").serves(50051, 50051, "grpc");
    plan.document("policy.yaml", &POLICY.replace("CALLERS", "web, cron"));
    plan.document("other.yaml", OTHER);
    let address = plan.address("orders");
    let _origin = Origin::echo((address, 9000));
    let mesh = plan.start();
    let server = |peer: &str, arguments: &[String]| {
        let (python, script) = foreign::python(peer);
        let process =
            Process::start(peer, &python, &mesh.directory().join(format!("{peer}.log")), |command| {
                command.arg(script).args(arguments);
            });
        wait::until("the server listens", wait::PATIENCE, || process.log().contains("listening"));
        process
    };
    let _websockets = server("ws_server.py", &[address.to_string(), "8080".into()]);
    let _grpc = server("grpc_server.py", &[format!("{address}:50051")]);
    let (mut web, mut cron) = (Caller::open(&mesh, "web"), Caller::open(&mesh, "cron"));
    web.echo().expect("the tunnel is open");
    cron.echo().expect("the tunnel is open");
    // Not young any more: a request of less than half a second is no stream.
    wait::pause(Duration::from_millis(700));
    let revoked = || mesh.sidecar("orders").metrics().value("postern_policy_revoked_streams_total");

    // What changes nobody's permission resets nothing.
    mesh.change("other.yaml", &OTHER.replace("/never", "/not-ever"));
    mesh.change("policy.yaml", &(POLICY.replace("CALLERS", "web, cron") + "# a remark\n"));
    wait::pause(Duration::from_millis(800));
    assert_eq!(revoked(), 0.0);

    mesh.documents.write("policy.yaml", &POLICY.replace("CALLERS", "cron"));
    let start = Instant::now();
    web.tunnel.set_read_timeout(Some(Duration::from_secs(10))).expect("a positive time is accepted");
    let seen = web.tunnel.read(&mut [0]);
    let tunnel = start.elapsed();
    assert!(matches!(&seen, Err(error) if error.kind() == ErrorKind::ConnectionReset), "web saw {seen:?}");
    wait::until("web's clients see it", wait::PATIENCE, || web.has_ended() == [true; 2]);
    let all = start.elapsed();
    println!("the tunnel was reset after {tunnel:?}, and all three were after {all:?}");
    // A second on a machine of its own; this one runs other tests.
    assert!(all < Duration::from_secs(4), "{all:?}");
    assert!(web.websocket.log().contains("\"close_frame\": false"), "{}", web.websocket.log());

    // The later look at what was young then has come by now, too.
    wait::pause(Duration::from_millis(800));
    assert_eq!(revoked(), 3.0);
    cron.echo().expect("what is still allowed goes on");
    assert_eq!(cron.has_ended(), [false; 2], "{}\n{}", cron.websocket.log(), cron.grpc.log());
}
