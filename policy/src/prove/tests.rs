//! Invariants as documents have them.

use std::collections::BTreeMap;

use postern_svid::TrustDomain;

use crate::SourceFile;
use crate::testing::{InvariantResult, run_tests};
use crate::verdict::Scope;

const RULES: &str = r#"apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: reads
    from: [{serviceAccounts: [web]}]
    to: [{methods: [GET], paths: ["/v1/orders/{*}"], ports: [8080]}]
  - name: writes
    from: [{serviceAccounts: [edge/gateway]}]
    to: [{methods: [POST, PUT], pathPrefix: [/v1/orders], ports: [8080]}]
  - name: by-day
    from: [{namespaces: [office]}]
    to: [{paths: [/report], hosts: [orders.shop]}]
    when: {time: {weekly: ["Mon-Fri 08:00-18:00"], zone: UTC}}
  - name: tenants
    from: [{namespaces: [tenants]}]
    to: [{headers: [{name: x-tenant, exact: [a]}], pathPrefix: [/t]}]
  - name: probes
    from: [{unauthenticated: true, cidrs: [10.0.0.0/8]}]
    to: [{methods: [GET], paths: [/health]}]
  - name: database
    from: [{serviceAccounts: [batch]}]
    to: [{ports: [5432]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: guard, namespace: root}
spec:
  tier: Platform
  target: {all: true}
  action: Deny
  rules:
  - {name: admin, from: [{not: {namespaces: [ops]}}], to: [{pathPrefix: [/v1/orders/admin], ports: [8080]}]}
"#;

fn prove(claims: &str) -> Vec<InvariantResult> {
    prove_by(RULES, claims)
}

fn prove_by(rules: &str, claims: &str) -> Vec<InvariantResult> {
    let test = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{name: t, namespace: shop}}\nspec:\n  \
         workload: {{serviceAccount: orders, labels: {{app: orders}}}}\n  invariants:\n{claims}"
    );
    let file = |name: &str, text: &str| SourceFile { name: name.into(), text: text.into() };
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").unwrap(),
        root_namespace: "root".into(),
        workload: None,
    };
    let report = run_tests(&[file("rules.yaml", rules), file("test.yaml", &test)], &scope);
    report.unwrap_or_else(|errors| panic!("{errors}")).invariants
}

#[test]
fn claims() {
    let expected = BTreeMap::from([
        (
            "never: {from: [{not: {serviceAccounts: [edge/gateway]}}], to: [{methods: [POST, PUT], ports: [8080], pathPrefix: [/v1]}]}",
            Ok(()),
        ),
        // A path that nobody names, a method that nobody names, a peer that nobody names.
        ("never: {to: [{paths: [/elsewhere], ports: [8080]}]}", Ok(())),
        ("never: {to: [{paths: [/elsewhere]}]}", Err("shop/orders:5432")),
        ("never: {to: [{methods: [DELETE], ports: [8080], not: {pathPrefix: [/t, /report]}}]}", Ok(())),
        ("never: {from: [{namespaces: [strangers]}]}", Ok(())),
        // Without a header or an hour in the claim it holds for all of them.
        ("never: {from: [{namespaces: [office]}], to: [{methods: [GET], not: {paths: [/report]}}]}", Ok(())),
        ("never: {from: [{namespaces: [office]}]}", Err("--host 'orders.shop'")),
        (
            "never: {from: [{namespaces: [office]}], to: [{hosts: [orders.shop]}]}",
            Err("--at 2026-01-05T08:00:00Z"),
        ),
        ("never: {from: [{namespaces: [tenants]}]}", Err("--header 'x-tenant: a'")),
        ("never: {to: [{methods: [DELETE], ports: [8080]}]}", Err("'DELETE' '/report'")),
        ("never: {from: [{unauthenticated: true}], to: [{not: {paths: [/health]}}]}", Ok(())),
        (
            "never: {from: [{unauthenticated: true}]}",
            Err("--from unauthenticated --address 10.0.0.0 'GET' '/health'"),
        ),
        ("never: {from: [{unauthenticated: true}, {namespaces: [a, b]}], to: [{methods: [POST]}]}", Ok(())),
        ("never: {to: [{ports: [5432]}], from: [{not: {serviceAccounts: [batch]}}]}", Err("5432")),
        // The guard of the platform: `/v1/orders/{*}` has it as one of its paths.
        ("never: {to: [{pathPrefix: [/v1/orders/admin], ports: [8080]}]}", Ok(())),
        (
            "never: {to: [{pathPrefix: [/v1/orders/admi], ports: [8080]}]}",
            Err("--from spiffe://td/ns/edge/sa/gateway"),
        ),
        (
            "always: {from: [{serviceAccounts: [web]}], to: [{methods: [GET], paths: [/v1/orders/7], ports: [8080]}]}",
            Ok(()),
        ),
        (
            "always: {from: [{serviceAccounts: [web]}], to: [{methods: [GET], paths: [\"/v1/orders/{*}\"], ports: [8080]}]}",
            Err("'/v1/orders/admin'"),
        ),
        (
            "always: {from: [{serviceAccounts: [web]}], to: [{methods: [GET], paths: [/v1/orders/7]}]}",
            Err("denied by default"),
        ),
        ("always: {from: [{serviceAccounts: [batch]}], to: [{ports: [5432]}]}", Ok(())),
        (
            "always: {from: [{namespaces: [office]}], to: [{hosts: [orders.shop], paths: [/report]}]}",
            Err("--at 2026-01-05T00:00:00Z"),
        ),
        (
            "always: {from: [{namespaces: [a], spiffe: [\"spiffe://td/ns/b/sa/b\"]}]}",
            Err("it speaks of no request"),
        ),
    ]);
    let mut failed = Vec::new();
    for (n, (claim, expected)) in expected.iter().enumerate() {
        let text = format!("  - {{name: c{n}, {claim}}}\n");
        let result = prove(&text).remove(0);
        let told = format!(
            "{} {} {}",
            result.outcome,
            result.witness.unwrap_or_default(),
            result.explanation.unwrap_or_default()
        );
        let ok = match expected {
            Ok(()) => result.proven && result.classes.is_some_and(|classes| classes > 0),
            Err(words) => !result.proven && told.contains(words),
        };
        if !ok {
            failed.push(format!("{claim}: expected {expected:?}: {told}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// A request has a host, which a condition may ask for although no rule does.
#[test]
fn a_condition_on_the_host_is_no_breach_by_a_request_without_one() {
    let rules = "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  \
                 target: {selector: {app: orders}}\n  action: Allow\n  rules: [{name: all, to: [{ports: [8080]}]}]\n---\n\
                 apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: d, namespace: shop}\nspec:\n  \
                 target: {selector: {app: orders}}\n  action: Deny\n  rules:\n  - {name: x, when: {cel: \"request.host.endsWith('.x')\"}}\n";
    let claim = "  - {name: c, always: {from: [{namespaces: [a]}], to: [{paths: [/], methods: [GET], ports: [8080]}]}}\n";
    let result = prove_by(rules, claim).remove(0);
    let witness = result.witness.unwrap_or_default();
    assert!(!result.proven && witness.contains("--host"), "{} {witness}", result.outcome);
    assert!(!format!("{:?}", result.explanation).contains("d/x"), "{:?}", result.explanation);
}

/// What depends on words that no class knows is never said to be proven for lack of a request that shows it.
#[test]
fn what_is_left_open_is_not_proven() {
    const OPEN: &str = r#"apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: d, namespace: root}
spec: {jwt: {issuers: [{issuer: i, audiences: [o], jwks: {file: /keys}}]}}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: open, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: tenants, from: [{namespaces: [ops]}], to: [{ports: [8080]}], when: {cel: 'request.headers["x-tenant"] == "a"'}}
  - {name: people, from: [{namespaces: [people], jwt: {issuer: i}}], to: [{ports: [8080]}]}
"#;
    let operation = "to: [{methods: [GET], paths: [/a], ports: [8080]}]";
    for (claim, proven, words) in [
        // With such a field, or such a token, the request is allowed.
        (format!("never: {{from: [{{namespaces: [ops]}}], {operation}}}"), false, "not proven"),
        (format!("never: {{from: [{{namespaces: [people]}}], {operation}}}"), false, "not proven"),
        // Without it is denied.
        (format!("always: {{from: [{{namespaces: [ops]}}], {operation}}}"), false, "denied by default"),
        (format!("always: {{from: [{{namespaces: [people]}}], {operation}}}"), false, "denied by default"),
        (format!("never: {{from: [{{namespaces: [others]}}], {operation}}}"), true, "proven over"),
    ] {
        let result = prove_by(OPEN, &format!("  - {{name: c, {claim}}}\n")).remove(0);
        assert_eq!(result.proven, proven, "{claim}: {}", result.outcome);
        assert!(result.outcome.contains(words), "{claim}: {}", result.outcome);
    }
}

/// A set that is too large says so at once, and says the way out.
#[test]
fn what_is_too_large_is_not_begun() {
    let paths: Vec<String> = (0..3_000).map(|n| format!("/p{n}/{n}")).collect();
    let ports: Vec<String> = (1..3_000).map(|n| n.to_string()).collect();
    let claim = format!(
        "  - {{name: c, never: {{to: [{{paths: [{}], ports: [{}]}}]}}}}\n",
        paths.join(", "),
        ports.join(", ")
    );
    let result = prove(&claim).remove(0);
    // One list is one class: nothing tells its values apart.
    assert!(result.proven, "{}", result.outcome);
    let alternatives =
        |n: usize| format!("{{paths: [/p{n}/x], ports: [{}], hosts: [h{n}.x], methods: [M{n}]}}", n + 1);
    let many: Vec<String> = (0..150).map(alternatives).collect();
    let result = prove(&format!("  - {{name: c, never: {{to: [{}]}}}}\n", many.join(", "))).remove(0);
    assert!(!result.proven && result.outcome.contains("too large to prove"), "{}", result.outcome);
    assert!(result.outcome.contains("narrow it"), "{}", result.outcome);
}
