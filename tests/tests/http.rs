//! HTTP through a sidecar pair, between curl and an origin that tells exactly what reached it.

use postern_tests::{Mesh, Origin, Plan, foreign};

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
    to: [{ports: [8080, 8081]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders-closed, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules:
  - name: admin
    from: [{serviceAccounts: [web]}]
    to: [{pathPrefix: ["/admin"], ports: [8080, 8081]}]
"#;

fn pair() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(8081, 8081, "http2").serves(9000, 9000, "tcp");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

#[test]
fn versions_of_http() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    for (flag, version) in [("--http1.0", "1.0"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let answer = mesh.curl_by_host("web", &[flag, "http://orders.shop/some/path?q=1"]);
        assert_eq!(answer.status, 200, "{flag}: {answer:?}");
        let seen = answer.json();
        assert_eq!(seen["target"], "/some/path?q=1", "{flag}");
        assert_eq!(seen["version"], "HTTP/1.1", "{flag}: the workload is spoken to in its own version");
        let said = if version == "1.0" { ["1.0", "1.1"].as_slice() } else { &[version] };
        assert!(said.contains(&answer.version.as_str()), "{flag}: answered in {}", answer.version);
    }
    assert_eq!(origin.requests().len(), 3);
}
