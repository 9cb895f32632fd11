//! An HTTP/1 side that stops reading: the write towards it ends after `stall`, and with it all that it holds; and at once
//! when its permission ends.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, wait, wire};

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
    to: [{ports: [8080]}]
"#;

/// More than all buffers between the two ends hold together.
const MUCH: usize = 64 << 20;

fn active(mesh: &Mesh, name: &str, direction: &str) -> f64 {
    let series = format!("postern_streams_active{{direction=\"{direction}\"}}");
    mesh.sidecar(name).metrics().value(&series)
}

#[test]
fn a_client_that_stops_reading_is_cut() {
    let mut plan = Plan::new();
    // Only the caller's sidecar is impatient: nobody else's clock may end this.
    plan.sidecar("web").limit("stall", "1s");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let mut deaf = wire::connect(mesh.sidecar("web").outbound());
    write!(deaf, "GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut deaf).starts_with("HTTP/1.1 200"));
    wait::until("the request runs", wait::PATIENCE, || active(&mesh, "web", "outbound") == 1.0);
    wait::until("the caller's sidecar lets go", wait::PATIENCE, || active(&mesh, "web", "outbound") == 0.0);
    wait::until("the workload's sidecar too", wait::PATIENCE, || active(&mesh, "orders", "inbound") == 0.0);
    let mut rest = Vec::new();
    let error = deaf.read_to_end(&mut rest).expect_err("a reset, not a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    assert!(rest.len() < MUCH, "{} bytes", rest.len());
}

#[test]
fn a_client_that_reads_slowly_is_served() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("stall", "1s");
    plan.sidecar("orders").serves(80, 8080, "http").limit("stall", "1s");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let mut slow = wire::connect(mesh.sidecar("web").outbound());
    write!(slow, "GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut slow).starts_with("HTTP/1.1 200"));
    let started = Instant::now();
    let mut piece = vec![0; 4 << 20];
    let mut got = 0;
    while got < MUCH {
        let count = slow.read(&mut piece).expect("progress is enough");
        assert!(count > 0, "ended after {got} bytes");
        got += count;
        // Longer in all than the limit, never longer at a time.
        if started.elapsed() < Duration::from_secs(3) {
            wait::pause(Duration::from_millis(100));
        }
    }
    assert_eq!(got, MUCH);
}

#[test]
fn a_workload_that_stops_reading_is_cut() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").limit("stall", "1s");
    plan.document("policy.yaml", POLICY);
    // Accepts by its backlog, and never reads.
    let _deaf = TcpListener::bind((plan.address("orders"), 8080)).unwrap();
    let mesh = plan.start();
    let mut caller = wire::connect(mesh.sidecar("web").outbound());
    write!(caller, "POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: {MUCH}\r\n\r\n").unwrap();
    let mut writing = caller.try_clone().unwrap();
    let upload = std::thread::spawn(move || {
        // It ends early, by the cut.
        let _ = writing.write_all(&vec![0; MUCH]);
    });
    wait::until("the request runs", wait::PATIENCE, || active(&mesh, "orders", "inbound") == 1.0);
    wait::until("it has ended", wait::PATIENCE, || active(&mesh, "orders", "inbound") == 0.0);
    let metrics = mesh.sidecar("orders").metrics();
    let stalled = "postern_failures_total{direction=\"inbound\",reason=\"stalled\"}";
    assert_eq!(metrics.value(stalled), 1.0, "named for what it is");
    drop(caller);
    upload.join().unwrap();
}

fn revoked(mesh: &Mesh, name: &str, direction: &str) -> f64 {
    let series = format!("postern_failures_total{{direction=\"{direction}\",reason=\"revoked\"}}");
    mesh.sidecar(name).metrics().value(&series)
}

/// What comes after all that was sent before.
fn end_of(mut deaf: std::net::TcpStream) -> std::io::ErrorKind {
    let end = std::io::copy(&mut deaf, &mut std::io::sink());
    end.expect_err("no end in order").kind()
}

#[test]
fn a_client_that_stops_reading_cannot_keep_its_way_out() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let mut deaf = wire::connect(mesh.sidecar("web").outbound());
    write!(deaf, "GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut deaf).starts_with("HTTP/1.1 200"));
    // Until every buffer on the way is full.
    wait::pause(Duration::from_secs(1));
    assert_eq!(active(&mesh, "web", "outbound"), 1.0);
    let other = "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {name: other, namespace: shop}\nspec:\n  \
                 identity: spiffe://demo.postern/ns/shop/sa/other\n  ports: [{port: 80, protocol: http}]\n  \
                 endpoints: [{address: 127.0.0.9}]\n";
    mesh.change("services.yaml", other);
    wait::until("it is cut", Duration::from_secs(2), || active(&mesh, "web", "outbound") == 0.0);
    assert_eq!(revoked(&mesh, "web", "outbound"), 1.0, "counted for what it is");
    assert_eq!(end_of(deaf), std::io::ErrorKind::ConnectionReset, "what came must not look whole");
}

#[test]
fn nor_can_one_inside_a_tunnel() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    // Port 9000 is a rule's and a service's, but none that the workload declares: what is spoken there is found out.
    plan.sidecar("orders").serves(80, 8080, "http");
    let address = plan.address("orders");
    let policy = POLICY.replace("[8080]", "[9000]");
    plan.document("policy.yaml", &policy);
    plan.document(
        "services.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports: [{{port: 9000, protocol: tcp}}]\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    );
    let _origin = Origin::http((address, 9000));
    let mesh = plan.start();
    let mut deaf = wire::connect(mesh.sidecar("web").outbound());
    write!(deaf, "CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut deaf).starts_with("HTTP/1.1 200"));
    write!(deaf, "GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut deaf).starts_with("HTTP/1.1 200"));
    wait::pause(Duration::from_secs(1));
    assert_eq!(active(&mesh, "orders", "inbound"), 1.0);
    mesh.change("policy.yaml", &policy.replace("action: Allow", "action: Deny"));
    wait::until("it is cut", Duration::from_secs(2), || active(&mesh, "orders", "inbound") == 0.0);
    assert_eq!(revoked(&mesh, "orders", "inbound"), 1.0, "counted for what it is");
    assert_eq!(end_of(deaf), std::io::ErrorKind::ConnectionReset, "what came must not look whole");
}
