//! gRPC through a sidecar pair, between a client and a server from PyPI's grpcio.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Mesh, Plan, Process, foreign, wait};
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
    to:
    - {methods: [POST], pathPrefix: ["/shop.Orders"], ports: [50051]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: secret, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules:
  - name: nobody-reads-secrets
    from: [{namespaces: [shop]}]
    to: [{paths: ["/shop.Orders/Secret"]}]
"#;

struct Pair {
    // Dropped first: it prints its log from the mesh's directory.
    server: Process,
    mesh: Mesh,
}

fn pair() -> Pair {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(50051, 50051, "grpc");
    plan.document("policy.yaml", POLICY);
    let address: IpAddr = plan.address("orders");
    let mesh = plan.start();
    let (python, script) = foreign::python("grpc_server.py");
    let server =
        Process::start("grpc_server", &python, &mesh.directory().join("grpc_server.log"), |command| {
            command.arg(script).arg(format!("{address}:50051"));
        });
    wait::until("the gRPC server listens", wait::PATIENCE, || server.log().contains("listening"));
    Pair { server, mesh }
}

impl Pair {
    fn client(&self, cases: &[&str]) -> Command {
        let (python, script) = foreign::python("grpc_client.py");
        let mut command = Command::new(python);
        command.arg(script).arg(self.mesh.sidecar("web").outbound().to_string()).arg("orders.shop:50051");
        command.args(cases);
        command
    }

    /// What each case came to.
    fn call(&self, cases: &[&str]) -> BTreeMap<String, Value> {
        let run = foreign::run(&mut self.client(cases), Duration::from_secs(120));
        assert_eq!(run.code, 0, "the client failed: {}\n{}", run.stderr, run.text());
        let result = |line: &str| -> Option<(String, Value)> {
            let value: Value = serde_json::from_str(line).ok()?;
            Some((value["case"].as_str()?.to_owned(), value))
        };
        let results: BTreeMap<String, Value> = run.text().lines().filter_map(result).collect();
        assert_eq!(results.len(), cases.len(), "every case says how it ended: {}", run.text());
        results
    }
}

fn assert_metadata(result: &Value) {
    assert_eq!(result["initial"]["x-initial"], "one", "{result}");
    assert_eq!(result["initial"]["x-caller"], "URI=spiffe://demo.postern/ns/shop/sa/web", "{result}");
    assert_eq!(result["trailing"]["x-trailing"], "two", "{result}");
    assert_eq!(result["trailing"]["x-binary-bin"], "00ff", "{result}");
    assert_eq!(result["trailing"]["x-saw"], "kept", "{result}");
}

#[test]
fn all_four_kinds_of_calls() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let pair = pair();
    let results = pair.call(&["unary", "empty", "list", "put", "chat"]);
    for result in results.values() {
        assert_eq!(result["code"], "OK", "{result}");
        assert_metadata(result);
    }
    assert_eq!(results["unary"]["answer"], "hello");
    assert_eq!(results["empty"]["size"], 0);
    assert_eq!(results["list"]["count"], 100);
    assert_eq!(results["list"]["got"], serde_json::json!(["item 0", "item 99"]));
    assert_eq!(results["put"]["answer"], format!("64 {}", 64 * (64 << 10)));
    assert_eq!(results["chat"]["got"], serde_json::json!(["re: one", "re: two", "re: three"]));
}

#[test]
fn messages_of_many_mebibytes() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let results = pair().call(&["64k", "4m", "64m"]);
    assert_eq!((&results["64k"]["code"], &results["64k"]["size"]), (&"OK".into(), &(64 << 10).into()));
    assert_eq!((&results["4m"]["code"], &results["4m"]["size"]), (&"OK".into(), &(4 << 20).into()));
    // Four times the window of a mesh connection, both ways.
    assert_eq!((&results["64m"]["code"], &results["64m"]["size"]), (&"OK".into(), &(64 << 20).into()));
}

#[test]
fn failures_arrive_as_the_server_means_them() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let results = pair().call(&["fail", "fail-late", "unknown"]);
    assert_eq!(results["fail"]["code"], "FAILED_PRECONDITION");
    assert_eq!(results["fail"]["details"], "not now: 100% sure, ünïcode");
    assert_eq!(results["fail"]["trailing"]["x-trailing"], "two");
    assert_eq!(
        (&results["fail-late"]["code"], &results["fail-late"]["count"]),
        (&"DATA_LOSS".into(), &1.into())
    );
    assert_eq!(results["unknown"]["code"], "UNIMPLEMENTED");
}

#[test]
fn deadlines_and_cancellation_reach_the_server() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let pair = pair();
    let results = pair.call(&["deadline", "cancel"]);
    let deadline = &results["deadline"];
    assert_eq!(deadline["code"], "DEADLINE_EXCEEDED", "{deadline}");
    assert!(deadline["seconds"].as_f64().is_some_and(|seconds| (0.9..5.0).contains(&seconds)), "{deadline}");
    assert_eq!(results["cancel"]["code"], "CANCELLED", "{}", results["cancel"]);
    let log = || pair.server.log();
    wait::until("the server learns that the deadline has passed", wait::PATIENCE, || {
        log().contains("cancelled")
    });
    wait::until("the server learns of the cancellation", wait::PATIENCE, || log().contains("endless ended"));
    assert!(!log().contains("never cancelled"), "{}", log());
    let told: f64 = log()
        .lines()
        .find_map(|line| line.strip_prefix("deadline ")?.parse().ok())
        .expect("the server says what deadline it was given");
    assert!((0.1..=1.0).contains(&told), "grpc-timeout arrived as {told} s");
}

#[test]
fn a_denied_method_is_permission_denied_with_a_decision() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let pair = pair();
    let results = pair.call(&["denied", "denied-stream", "unary"]);
    let decisions = pair.mesh.sidecar("orders").admin("/v1/decisions");
    for case in ["denied", "denied-stream"] {
        let result = &results[case];
        assert_eq!(result["code"], "PERMISSION_DENIED", "{result}");
        let details = result["details"].as_str().unwrap_or_default();
        assert!(!details.contains("nobody-reads-secrets"), "callers are not told the rule: {details}");
        let id = details
            .split("Decision ")
            .nth(1)
            .map(|rest| rest.trim_end_matches('.'))
            .unwrap_or_else(|| panic!("no decision id in {details:?}"));
        let found = decisions["decisions"].as_array().and_then(|all| all.iter().find(|one| one["id"] == id));
        let decision = found.unwrap_or_else(|| panic!("the sidecar does not know {id}: {decisions}"));
        assert_eq!(decision["effect"], "deny", "{decision}");
        assert_eq!(decision["rule"], "shop/secret/nobody-reads-secrets", "{decision}");
        assert_eq!(decision["path"], "/shop.Orders/Secret", "{decision}");
        assert_eq!(decision["peer"], "spiffe://demo.postern/ns/shop/sa/web", "{decision}");
    }
    // The same channel goes on.
    assert_eq!(results["unary"]["code"], "OK");
    assert!(!pair.server.log().contains("reached"), "a denied call reached the server");
}

#[test]
fn a_stream_that_loses_permission_is_reset() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let pair = pair();
    let mut command = pair.client(&["watch"]);
    let child = std::thread::spawn(move || foreign::run(&mut command, Duration::from_secs(60)));
    wait::until("the stream runs", wait::PATIENCE, || {
        let connections = pair.mesh.sidecar("orders").admin("/v1/connections");
        connections.to_string().contains("/shop.Orders/Endless")
    });
    pair.mesh.change("policy.yaml", &POLICY.replace("/shop.Orders/Secret", "/shop.Orders/Endless"));
    let run = child.join().expect("the client's thread does not panic");
    let last: Value = run
        .text()
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_else(|| panic!("the client says how it ended: {}", run.stderr));
    assert_ne!(last["code"], "OK", "{last}");
    assert_ne!(last["code"], "DEADLINE_EXCEEDED", "{last}");
    wait::until("the server's side ends too", wait::PATIENCE, || pair.server.log().contains("endless ended"));
    let metrics = pair.mesh.sidecar("orders").metrics();
    assert_eq!(metrics.value("postern_policy_revoked_streams_total"), 1.0);
}
