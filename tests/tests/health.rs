//! The health listener is open to anybody: whoever crowds it must not take the mesh with it.

use std::io::Read as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

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
"#;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";

fn pair() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn descriptors(mesh: &Mesh, name: &str) -> usize {
    let id = mesh.sidecar(name).process().id();
    std::fs::read_dir(format!("/proc/{id}/fd")).expect("the process lives").count()
}

fn limit_descriptors(mesh: &Mesh, name: &str, limit: &str) {
    let id = mesh.sidecar(name).process().id().to_string();
    let mut command = Command::new("prlimit");
    command.args(["--pid", &id, &format!("--nofile={limit}:")]);
    let set = foreign::run(&mut command, wait::PATIENCE);
    assert_eq!(set.code, 0, "prlimit: {}", set.stderr);
}

fn mesh_request(mesh: &Mesh) -> u16 {
    wire::status(&wire::exchange(mesh.sidecar("web").outbound(), REQUEST))
}

#[test]
fn idle_connections_take_neither_descriptors_nor_anybodys_turn() {
    let (mesh, _origin) = pair();
    assert_eq!(mesh_request(&mesh), 200);
    let before = descriptors(&mesh, "orders");
    let idle: Vec<TcpStream> = (0..200).map(|_| wire::connect((mesh.address("orders"), 24_191))).collect();
    let begun = Instant::now();
    assert_eq!(mesh_request(&mesh), 200);
    assert!(mesh.sidecar("orders").is_ready());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let more = descriptors(&mesh, "orders").saturating_sub(before);
    assert!(more <= 80, "200 idle connections hold {more} descriptors");
    assert!(mesh.sidecar("orders").metrics().value("postern_limit_hits_total{limit=\"health\"}") >= 100.0);
    // Nobody stays, not even within the limit.
    for mut stream in idle {
        let cut = stream.read(&mut [0; 64]);
        assert!(
            cut.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true),
            "{cut:?}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// It is not the documents' fault.
#[test]
fn documents_that_no_descriptor_is_left_for_are_read_later() {
    let (mesh, _origin) = pair();
    let orders = mesh.sidecar("orders");
    let generation = orders.generation();
    limit_descriptors(&mesh, "orders", "3");
    // Twice the poll, and then some.
    wait::pause(Duration::from_secs(5));
    limit_descriptors(&mesh, "orders", "1024");
    wait::until("it answers again", wait::PATIENCE, || orders.is_ready());
    assert!(!orders.log().contains("documents refused"), "{}", orders.log());
    assert_eq!(orders.generation(), generation);
    mesh.change("policy.yaml", &format!("{POLICY}# changed\n"));
    assert_eq!(mesh_request(&mesh), 200);
}
