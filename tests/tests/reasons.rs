//! What a caller and the logs are told of a failure that the callee's sidecar made.

use postern_tests::{Mesh, Plan, foreign, wait};

const DOCUMENTS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules: [{name: web, from: [{serviceAccounts: [web]}]}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: undeclared, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{port: 80, protocol: http, targetPort: 8099}]
  endpoints: [{address: ADDRESS}]
"#;

/// web calls orders, whose workload does not run.
fn mesh() -> Mesh {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    let address = plan.address("orders").to_string();
    plan.document("policy.yaml", &DOCUMENTS.replace("ADDRESS", &address));
    plan.start()
}

#[test]
fn failures_of_the_far_sidecar_are_told_to_the_caller_and_to_both_logs() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let mesh = mesh();
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    for (url, status, reason, where_it_failed) in [
        ("http://orders.shop/", 502, "workload_unreachable", ":8080: "),
        ("http://undeclared.shop/", 421, "port_not_declared", "port 8099 is not declared"),
    ] {
        let answer = mesh.curl("web", &[url]);
        assert_eq!((answer.status, answer.header("postern-error")), (status, Some(reason)), "{answer:?}");
        let says = |log: String, what: &str| {
            log.lines().any(|line| line.contains("INFO") && line.contains(reason) && line.contains(what))
        };
        wait::until("the callee's log says so", wait::PATIENCE, || says(orders.log(), where_it_failed));
        wait::until("the caller's log says so", wait::PATIENCE, || says(web.log(), "shop/"));
    }
}
