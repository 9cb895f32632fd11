//! The Service and policy documents of the demo, and the edits that its expectations make to them.

use crate::demo::plan::{Ground, LOOPBACK_PORT, NAMESPACE, Place, Plan, SERVICE_PORT, Service, spiffe_id};

/// The document that the demo, and a person who tries it out, edits.
pub(crate) const ORDERS_FILE: &str = "orders.yaml";
/// Where the explicit refusal of deletions is written: `<namespace>/<document>/<rule>`.
pub(crate) const DELETION_GUARD: [&str; 3] = [NAMESPACE, "orders-guard", "nobody-deletes"];
/// A service whose endpoint proves an identity other than the expected one.
pub(crate) const PAYMENTS: &str = "payments";

/// The limit that a second export within a minute meets: `<namespace>/<document>/<limit>`.
pub(crate) const EXPORT_LIMIT: [&str; 3] = [NAMESPACE, "orders-limits", "exports"];
/// What that limit counts. The rules allow it to the storefront.
pub(crate) const EXPORT_PATH: &str = "/v1/orders/export";

/// A document that does not compile, and where.
#[derive(Debug)]
pub(crate) struct Broken {
    /// What is wrong with it, in a word or two.
    pub(crate) what: &'static str,
    pub(crate) text: String,
    /// The line that the refusal must name, from 1.
    pub(crate) line: usize,
}

/// File names and texts of the documents at the start.
pub(crate) fn all(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("mesh.yaml", mesh()),
        ("services.yaml", services(plan)),
        (ORDERS_FILE, orders(true)),
        ("limits.yaml", limits()),
        ("store.yaml", store()),
    ];
    if plan.ground != Ground::Loopback {
        all.push(("loopback.yaml", loopback()));
    }
    all
}

/// Who may call orders. Without `refunds` the storefront has lost everything under `/v1/refunds`.
pub(crate) fn orders(refunds: bool) -> String {
    let [_, guard, guard_rule] = DELETION_GUARD;
    let mut text = format!(
        r#"# Who may call orders, and what for. Edit this while the demo runs: it is in force within a second.
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: {guard}, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: orders}}, ports: [{SERVICE_PORT}]}}
  action: Deny
  rules:
  - name: {guard_rule}
    to:
    - {{methods: [DELETE]}}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: orders, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: orders}}, ports: [{SERVICE_PORT}]}}
  action: Allow
  rules:
  - name: storefront-orders
    from: [{{serviceAccounts: [storefront]}}]
    to:
    - {{methods: [GET, POST, DELETE], paths: ["/v1/orders/{{*}}"]}}
    - {{methods: [GET], paths: ["/v1/events", "/whoami"]}}
"#
    );
    if refunds {
        text.push_str(
            "  - name: storefront-refunds\n\
             \x20   from: [{serviceAccounts: [storefront]}]\n\
             \x20   to:\n\
             \x20   - {methods: [GET], pathPrefix: [\"/v1/refunds\"]}\n",
        );
    }
    text
}

/// Two ways to break [`ORDERS_FILE`]. Each would also take away what the storefront may do, were any of it in force.
pub(crate) fn broken_orders() -> [Broken; 2] {
    let stripped = orders(false).replace("[GET, POST, DELETE]", "[HEAD]");
    let misspelt = stripped.replacen("  action: Deny", "  acton: Deny", 1);
    let unclosed = stripped.replacen("ports: [8080]}", "ports: [8080]", 1);
    // A bracket is missed where the next thing begins.
    [("a misspelt field", misspelt, "acton:"), ("a bracket that never closes", unclosed, "  action: Deny")]
        .map(|(what, text, token)| {
            let before = text.split(token).next().unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Broken { what, text, line }
        })
}

/// A sound document that allows what nothing else does, for the moments when its neighbour is broken.
pub(crate) fn widening() -> (&'static str, String) {
    let text = format!(
        r#"apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: widening, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: orders}}}}
  action: Allow
  rules:
  - name: storefront-replaces
    from: [{{serviceAccounts: [storefront]}}]
    to:
    - {{methods: [PUT], paths: ["/v1/orders/{{*}}"]}}
"#
    );
    ("widening.yaml", text)
}

fn mesh() -> String {
    "# What holds for the whole mesh. Without it everything below keeps these defaults.\n\
     apiVersion: postern.dev/v1alpha1\n\
     kind: MeshDefaults\n\
     metadata: {name: default, namespace: postern-system}\n\
     spec:\n\
     \x20 onChange: {tcp: Close, streams: Reset, grace: 0s}\n"
        .to_owned()
}

fn limits() -> String {
    let [_, document, limit] = EXPORT_LIMIT;
    format!(
        r#"# How often each caller may have what is expensive.
apiVersion: postern.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: {document}, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: orders}}, ports: [{SERVICE_PORT}]}}
  limits:
  - {{name: {limit}, match: {{paths: ["{EXPORT_PATH}"]}}, rate: 1/m, key: [source.identity]}}
"#
    )
}

fn store() -> String {
    format!(
        r#"# Who may call the store: orders alone.
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: store, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: store}}, ports: [{SERVICE_PORT}]}}
  action: Allow
  rules:
  - name: orders-reads-stock
    from: [{{serviceAccounts: [orders]}}]
    to:
    - {{methods: [GET], paths: ["/v1/stock/{{*}}"]}}
"#
    )
}

/// Not policy but the address alone keeps what listens on orders' loopback from the storefront.
fn loopback() -> String {
    format!(
        r#"# The storefront may have orders' port {LOOPBACK_PORT}, at which it listens on its loopback alone.
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: loopback, namespace: {NAMESPACE}}}
spec:
  target: {{selector: {{app: orders}}}}
  action: Allow
  rules:
  - name: storefront-loopback
    from: [{{serviceAccounts: [storefront]}}]
    to: [{{ports: [{LOOPBACK_PORT}]}}]
"#
    )
}

fn services(plan: &Plan) -> String {
    let mut text =
        String::from("# What exists in the mesh, where, and which identity each endpoint must prove.\n");
    for service in Service::ALL {
        text.push_str(&service_document(plan, service.name(), service));
        text.push_str("---\n");
    }
    text.push_str(
        "# Its endpoint is the store's, which cannot prove this identity: every call to it must fail.\n",
    );
    text.push_str(&service_document(plan, PAYMENTS, Service::Store));
    text
}

fn service_document(plan: &Plan, name: &str, endpoint: Service) -> String {
    let (mut addresses, mut second) = (String::new(), String::new());
    let mesh_port = plan.mesh(endpoint).port();
    if plan.ground != Ground::Loopback {
        let [v4, v6] = Plan::called(name);
        addresses = format!("  addresses: [{v4}, \"{v6}\"]\n");
        let [_, v6] = plan.both(Place::Service(endpoint));
        second = format!("  - {{address: \"{v6}\", meshPort: {mesh_port}}}\n");
    }
    format!(
        r"apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  identity: {identity}
{addresses}  ports:
  - {{port: 80, protocol: http, targetPort: {SERVICE_PORT}}}
  endpoints:
  - {{address: {host}, meshPort: {mesh_port}}}
{second}",
        identity = spiffe_id(name),
        host = plan.host(endpoint),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use postern_policy::{Diagnostics, Generation, Scope, SourceFile, Workload, load};

    use super::*;
    use crate::demo::plan::TRUST_DOMAIN;

    fn load_with(orders_text: &str) -> Result<Generation, Diagnostics> {
        let mut texts = all(&Plan::new("127.0.0".parse().expect("a subnet")));
        texts.retain(|(name, _)| *name != ORDERS_FILE);
        texts.extend([(ORDERS_FILE, orders_text.to_owned()), widening()]);
        let files: Vec<SourceFile> = texts
            .into_iter()
            .map(|(name, text)| SourceFile { name: name.to_owned(), text: text.into() })
            .collect();
        let workload = Workload {
            namespace: NAMESPACE.to_owned(),
            service_account: "orders".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "orders".to_owned())]),
        };
        let scope = Scope {
            trust_domain: TRUST_DOMAIN.parse().expect("a trust domain"),
            root_namespace: "postern-system".to_owned(),
            workload: Some(workload),
        };
        load(&files, &scope, 1)
    }

    #[test]
    fn sound_documents_load_without_a_warning() {
        for text in [orders(true), orders(false)] {
            let generation = load_with(&text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
            assert!(generation.warnings().is_empty(), "{}", generation.warnings());
        }
    }

    #[test]
    fn sound_documents_fit_the_schema() {
        let schema = crate::policy::schema().expect("the schema is JSON");
        let validator = jsonschema::validator_for(&schema).expect("the schema is one");
        let mut texts = all(&Plan::new("127.0.0".parse().expect("a subnet")));
        texts.push(widening());
        for document in texts.iter().flat_map(|(_, text)| text.split("---\n")) {
            let file = SourceFile { name: "document".to_owned(), text: document.into() };
            let value = postern_policy::yaml::parse(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
            assert!(validator.is_valid(&value), "{document}");
        }
    }

    #[test]
    fn broken_documents_are_refused_where_they_were_broken() {
        for broken in broken_orders() {
            let mistakes = load_with(&broken.text).expect_err(broken.what);
            assert!(
                mistakes.iter().any(|mistake| mistake.line == broken.line),
                "{}: {mistakes}",
                broken.what
            );
        }
    }
}
