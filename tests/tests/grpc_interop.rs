//! gRPC's published interop cases through two sidecars, between stacks that were not written here: grpcio (PyPI) calls a
//! server of @grpc/grpc-js (npm), and the other way round.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Plan, Process, foreign, wait};
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
    to: [{methods: [POST], pathPrefix: ["/grpc.testing.TestService", "/grpc.testing.UnimplementedService"]}]
"#;

/// As <https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md> names them.
const CASES: [&str; 14] = [
    "cancel_after_begin",
    "cancel_after_first_response",
    "client_streaming",
    "custom_metadata",
    "empty_stream",
    "empty_unary",
    "large_unary",
    "ping_pong",
    "server_streaming",
    "special_status_message",
    "status_code_and_message",
    "timeout_on_sleeping_server",
    "unimplemented_method",
    "unimplemented_service",
];

/// A program, and the file that it runs.
type Stack = fn(&str) -> (PathBuf, PathBuf);

fn python(part: &str) -> (PathBuf, PathBuf) {
    foreign::python(&format!("interop_{part}.py"))
}

fn node(part: &str) -> (PathBuf, PathBuf) {
    foreign::node(&format!("interop_{part}.js"))
}

/// Runs all cases; what was wrong with each that failed.
fn run(client: Stack, server: Stack) -> BTreeMap<String, String> {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(50051, 50051, "grpc");
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    let mesh = plan.start();
    let start = |command: &mut Command, script: PathBuf| {
        command.arg(script).env("NODE_PATH", foreign::node_modules());
    };
    let (program, script) = server("server");
    let log = mesh.directory().join("server.log");
    let server = Process::start("interop server", &program, &log, |command| {
        start(command, script);
        command.arg(format!("{address}:50051"));
    });
    wait::until("the server listens", wait::PATIENCE, || server.log().contains("listening"));
    let (program, script) = client("client");
    let mut command = Command::new(program);
    start(&mut command, script);
    command.arg(mesh.sidecar("web").outbound().to_string()).arg("orders.shop:50051");
    let run = foreign::run(&mut command, Duration::from_secs(120));
    let said: Vec<Value> = run.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut names: Vec<&str> = said.iter().filter_map(|one| one["case"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, CASES, "every case says how it ended: {}\n{}", run.stderr, run.text());
    let wrong =
        said.iter().filter_map(|one| Some((one["case"].to_string(), one["wrong"].as_str()?.to_owned())));
    let wrong = wrong.collect();
    wait::until("no stream is left", wait::PATIENCE, || {
        ["web", "orders"].iter().all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
    assert!(
        mesh.sidecar("orders").metrics().sum("postern_requests_total") >= CASES.len() as f64,
        "through the mesh"
    );
    wrong
}

#[test]
fn grpcio_calls_grpc_js() {
    if foreign::need(&["grpc", "grpc-js"]) {
        assert_eq!(run(python, node), BTreeMap::new());
    }
}

#[test]
fn grpc_js_calls_grpcio() {
    if foreign::need(&["grpc", "grpc-js"]) {
        assert_eq!(run(node, python), BTreeMap::new());
    }
}
