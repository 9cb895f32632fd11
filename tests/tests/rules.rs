//! What rules ask for, asked of real sidecars by a client that is none of ours: hosts, header fields, gRPC methods, hours,
//! shadows and audits.

use std::time::Duration;

use postern_svid::{Clock as _, SystemClock};
use postern_tests::{Mesh, Origin, Plan, wait};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  target: {{selector: {{app: orders}}}}\n{spec}"
    )
}

struct Pair {
    mesh: Mesh,
    _origin: Origin,
}

impl Pair {
    fn start(documents: &[(&str, String)]) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        for (name, text) in documents {
            plan.document(name, text);
        }
        let origin = Origin::http((plan.address("orders"), 8080));
        Self { mesh: plan.start(), _origin: origin }
    }

    fn status(&self, path: &str, arguments: &[&str]) -> u16 {
        let url = format!("http://orders.shop{path}");
        let mut all = vec![url.as_str()];
        all.extend(arguments);
        self.mesh.curl("web", &all).status
    }

    /// The newest decision of the called sidecar about `path`.
    fn decision(&self, path: &str) -> serde_json::Value {
        let page = self.mesh.sidecar("orders").admin("/v1/decisions");
        let decisions = page["decisions"].as_array().expect("a list");
        decisions.iter().find(|one| one["path"] == path).expect("it was decided").clone()
    }
}

#[test]
fn header_fields_hosts_and_grpc_methods() {
    let pair = Pair::start(&[(
        "policy.yaml",
        policy(
            "orders",
            "  action: Allow\n  rules:\n  - name: tenants\n    to: [{pathPrefix: [/tenant], headers: [{name: x-tenant, exact: [a, b]}]}]\n  - name: hosts\n    to: [{pathPrefix: [/host], hosts: [orders.shop]}]\n  - name: grpc\n    to: [{grpc: ['shop.Orders/Get*']}]\n---\n",
        ) + &policy(
            "guard",
            "  action: Deny\n  rules:\n  - name: debug\n    to: [{headers: [{name: x-debug, present: true}]}]\n",
        ),
    )]);
    for (path, arguments, expected) in [
        ("/tenant", &["-H", "x-tenant: a"][..], 200),
        ("/tenant", &["-H", "X-Tenant: b"], 200),
        ("/tenant", &[], 403),
        ("/tenant", &["-H", "x-tenant: c"], 403),
        ("/tenant", &["-H", "x-tenant: a", "-H", "x-tenant: c"], 403),
        ("/tenant", &["-H", "x-tenant: a, c"], 403),
        // The workload would see no such field: who names it so is not even judged.
        ("/tenant", &["-H", "x-tenant: a", "-H", "Connection: close, x-tenant"], 400),
        ("/tenant", &["-H", "x-tenant: a", "-H", "x-debug: 1"], 403),
        ("/host", &[], 200),
        ("/host", &["-H", "x-debug: 1"], 403),
        ("/shop.Orders/GetOrder", &["-X", "POST"], 200),
        ("/shop.Orders/GetOrder", &[], 403),
        ("/shop.Orders/Delete", &["-X", "POST"], 403),
    ] {
        assert_eq!(pair.status(path, arguments), expected, "{path} {arguments:?}");
    }
}

#[test]
fn a_shadow_and_an_audit_are_told_and_change_nothing() {
    let pair = Pair::start(&[
        (
            "allow.yaml",
            policy("orders", "  action: Allow\n  rules: [{name: all, to: [{pathPrefix: [/v1]}]}]\n"),
        ),
        (
            "shadow.yaml",
            policy(
                "tighter",
                "  enforcement: Shadow\n  action: Deny\n  rules: [{name: x, to: [{pathPrefix: [/v1/x]}]}]\n",
            ),
        ),
        (
            "audit.yaml",
            policy("marks", "  action: Audit\n  rules: [{name: a, to: [{pathPrefix: [/v1/a]}]}]\n"),
        ),
    ]);
    for path in ["/v1/x", "/v1/a", "/v1/y"] {
        assert_eq!(pair.status(path, &[]), 200, "{path}");
    }
    let of = |path: &str, field: &str| pair.decision(path)[field].to_string();
    assert_eq!(of("/v1/x", "shadow"), r#"{"effect":"deny","rule":"shop/tighter/x"}"#);
    assert_eq!(of("/v1/a", "audit"), r#""shop/marks/a""#);
    assert_eq!((of("/v1/y", "shadow").as_str(), of("/v1/y", "audit").as_str()), ("null", "null"));
    let orders = pair.mesh.sidecar("orders");
    let metrics = orders.metrics();
    assert!((metrics.value("postern_shadow_decisions_total{would=\"deny\"}") - 1.0).abs() < 0.5);
    assert!(metrics.value("postern_shadow_decisions_total{would=\"allow\"}").abs() < 0.5);
    assert!((metrics.value("postern_audited_total") - 1.0).abs() < 0.5);
    for (rule, action, enforcement, count) in [
        ("orders/all", "allow", "enforce", 3.0),
        ("tighter/x", "deny", "shadow", 1.0),
        ("marks/a", "audit", "enforce", 1.0),
    ] {
        let labels = format!("rule=\"shop/{rule}\",action=\"{action}\",enforcement=\"{enforcement}\"");
        let value: f64 = metrics.value(&format!("postern_rule_verdicts_total{{{labels}}}"));
        assert!((value - count).abs() < 0.5, "{rule}: {value}");
    }
    let log = orders.log();
    assert!(log.contains("in the shadow") && log.contains("shop/tighter/x"), "{log}");
    assert!(log.contains("audited") && log.contains("shop/marks/a"), "{log}");
}

/// A permission that ends by itself takes what runs with it, and nothing else.
#[test]
fn a_permission_ends_by_the_hour() {
    let life = Duration::from_secs(12);
    let end = OffsetDateTime::from(SystemClock.wall() + life).format(&Rfc3339).expect("it can be written");
    let pair = Pair::start(&[(
        "policy.yaml",
        policy(
            "orders",
            &format!(
                "  action: Allow\n  rules:\n  - name: stays\n    to: [{{paths: [/always]}}]\n  - name: ends\n    to: [{{paths: [/now]}}]\n    when: {{time: {{notAfter: '{end}'}}}}\n  - name: begins\n    to: [{{paths: [/later]}}]\n    when: {{time: {{notBefore: '{end}'}}}}\n"
            ),
        ),
    )]);
    let statuses = || ["/always", "/now", "/later"].map(|path| pair.status(path, &[]));
    assert_eq!(statuses(), [200, 200, 403], "the mesh took longer to start than {life:?}?");
    wait::until("the rules turn round", life + SOON, || statuses() == [200, 403, 200]);
}
