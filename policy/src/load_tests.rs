use std::collections::BTreeMap;
use std::net::IpAddr;

use super::*;
use crate::diagnostic::MAX_FINDINGS;
use crate::norm::{CanonHost, CanonMethod, CanonPath};
use crate::verdict::{DenyReason, Effect, Operation, Source, Stage, Workload};

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("demo.postern").unwrap(),
        root_namespace: "postern-system".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".into(), "orders".into())]),
        }),
    }
}

fn file(text: &str) -> SourceFile {
    SourceFile { name: "a.yaml".into(), text: text.into() }
}

fn generation(text: &str) -> Generation {
    load(&[file(text)], &scope(), 7).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str) -> Diagnostics {
    load(&[file(text)], &scope(), 7).expect_err("this set must be refused")
}

/// An AccessPolicy of namespace shop with this spec, written from column 3 on.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}"
    )
}

fn rule(rest: &str) -> String {
    policy(&format!("  action: Allow\n  rules:\n  - name: r\n{rest}"))
}

fn service(spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec:\n{spec}"
    )
}

struct Ask<'a> {
    id: Option<&'a str>,
    address: &'a str,
    port: u16,
    /// `None`: opaque TCP.
    request: Option<(&'a str, &'a str)>,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { id: Some("ns/shop/sa/web"), address: "127.0.0.9", port: 8080, request: Some(("GET", "/")) }
    }
}

fn ask(generation: &Generation, ask: &Ask<'_>) -> String {
    let id = ask.id.map(|id| match id.strip_prefix("spiffe:") {
        Some(_) => SpiffeId::parse(id).unwrap(),
        None => SpiffeId::parse(&format!("spiffe://demo.postern/{id}")).unwrap(),
    });
    let source = Source { identity: id.as_ref(), address: ask.address.parse::<IpAddr>().unwrap() };
    let parts = ask.request.map(|(method, path)| {
        let options = generation.defaults().path;
        let method = CanonMethod::parse(method).unwrap();
        let path = CanonPath::parse_for(&method, path, &options).unwrap();
        (method, path)
    });
    let operation = match &parts {
        Some((method, path)) => Operation::http(method, path),
        None => Operation::Tcp,
    };
    let connection = generation.connection(source);
    let verdict = generation.decide(&connection, ask.port, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, ask.port, operation), "engines differ");
    match connection.stage() {
        Stage::Allow(certain) | Stage::Deny(certain) => assert_eq!(certain, verdict, "the stage differs"),
        Stage::Defer => {}
    }
    let effect = match verdict.effect {
        Effect::Allow => "allow",
        Effect::Deny(reason) => reason.label(),
    };
    match verdict.rule {
        Some(id) => format!("{effect} {}", generation.rule(id)),
        None => effect.to_owned(),
    }
}

const ORDERS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: default, namespace: postern-system}
spec:
  trustDomains: {canonical: demo.postern, aliases: [old.example]}
  http: {escapedSlashes: Reject}
  onChange: {tcp: Close, streams: Reset, grace: 5s}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders-api, namespace: shop}
spec:
  target: {selector: {app: orders}, ports: [8080]}
  action: Allow
  rules:
  - name: storefront-reads
    from: [{serviceAccounts: [storefront, other-ns/exporter]}, {namespaces: [ops]}, {unauthenticated: true, cidrs: ["127.0.0.0/8"]}]
    to:
    - {methods: [GET, HEAD], paths: ["/v1/orders/{*}", "/health"], ports: [8080]}
    - {methods: [POST], pathPrefix: ["/v1/orders"]}
  - name: anyone
    to: [{paths: [/any]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: guard, namespace: postern-system}
spec:
  target: {all: true}
  action: Deny
  rules:
  - name: admin
    from: [{not: {namespaces: [ops]}}]
    to: [{pathPrefix: [/admin], ports: [8080]}]
---
# another workload's
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all, namespace: other}
spec:
  action: Allow
  rules: [{name: all}]
---
"#;

#[test]
fn decisions() {
    let g = generation(ORDERS);
    let read = Some(("GET", "/v1/orders/7"));
    let reads = "allow shop/orders-api/storefront-reads";
    for (expected, question) in [
        (reads, Ask { id: Some("ns/shop/sa/storefront"), request: read, ..Ask::default() }),
        (reads, Ask { id: Some("ns/other-ns/sa/exporter"), request: read, ..Ask::default() }),
        (reads, Ask { id: Some("ns/ops/sa/x"), request: read, ..Ask::default() }),
        (reads, Ask { id: Some("spiffe://old.example/ns/ops/sa/x"), request: read, ..Ask::default() }),
        (reads, Ask { id: None, request: read, ..Ask::default() }),
        (reads, Ask { id: None, address: "::ffff:127.0.0.1", request: read, ..Ask::default() }),
        ("no_rule", Ask { id: None, address: "10.0.0.1", request: read, ..Ask::default() }),
        ("no_rule", Ask { id: Some("spiffe://else.example/ns/ops/sa/x"), request: read, ..Ask::default() }),
        ("no_rule", Ask { id: Some("ns/shop/sa/storefront/x"), request: read, ..Ask::default() }),
        ("no_rule", Ask { id: Some("ns/shop/sa/exporter"), request: read, ..Ask::default() }),
        ("no_rule", Ask { id: Some("ns/shop/sa/storefront"), request: read, port: 8081, ..Ask::default() }),
        (
            "no_rule",
            Ask {
                id: Some("ns/shop/sa/storefront"),
                request: Some(("PUT", "/v1/orders/7")),
                ..Ask::default()
            },
        ),
        (
            "no_rule",
            Ask {
                id: Some("ns/shop/sa/storefront"),
                request: Some(("POST", "/v1/ordersx")),
                ..Ask::default()
            },
        ),
        (
            reads,
            Ask {
                id: Some("ns/shop/sa/storefront"),
                request: Some(("POST", "/v1/orders")),
                ..Ask::default()
            },
        ),
        ("allow shop/orders-api/anyone", Ask { request: Some(("GET", "/any")), ..Ask::default() }),
        ("no_rule", Ask { id: None, request: Some(("GET", "/any")), ..Ask::default() }),
        // TRACE needs to be named.
        ("no_rule", Ask { request: Some(("TRACE", "/any")), ..Ask::default() }),
        ("rule postern-system/guard/admin", Ask { request: Some(("GET", "/admin/x")), ..Ask::default() }),
        ("rule postern-system/guard/admin", Ask { request: Some(("TRACE", "/admin/x")), ..Ask::default() }),
        // One reading of the path is enough to be denied.
        ("rule postern-system/guard/admin", Ask { request: Some(("GET", "/admin;x=1/x")), ..Ask::default() }),
        ("rule postern-system/guard/admin", Ask { request: Some(("GET", "/%2561dmin")), ..Ask::default() }),
        // Nobody's identity is not ops.
        (
            "rule postern-system/guard/admin",
            Ask { id: None, request: Some(("GET", "/admin/x")), ..Ask::default() },
        ),
        ("no_rule", Ask { id: Some("ns/ops/sa/x"), request: Some(("GET", "/admin/x")), ..Ask::default() }),
        // A path is never known of opaque TCP: a Deny fires, an Allow does not.
        ("rule postern-system/guard/admin", Ask { request: None, ..Ask::default() }),
        ("no_rule", Ask { request: None, port: 8081, ..Ask::default() }),
        ("no_rule", Ask { id: Some("ns/ops/sa/x"), request: None, ..Ask::default() }),
    ] {
        assert_eq!(
            ask(&g, &question),
            expected,
            "{:?} {:?} {}",
            question.id,
            question.request,
            question.port
        );
    }
    assert_eq!(g.ports_named().iter().copied().collect::<Vec<_>>(), [8080]);
    assert_eq!(g.defaults().on_change.grace.as_secs(), 5);
    let applies: Vec<(&str, &str, bool)> =
        g.documents().iter().map(|d| (d.kind, &*d.name, d.applies == Some(true))).collect();
    assert_eq!(
        applies,
        [
            ("MeshDefaults", "default", true),
            ("AccessPolicy", "orders-api", true),
            ("AccessPolicy", "guard", true),
            ("AccessPolicy", "all", false)
        ]
    );
    assert_eq!(g.rule(crate::RuleId(0)).place.to_string(), "a.yaml:17:11");
}

/// Nobody means it: it is what a wrong mount looks like, and would take everything away.
#[test]
fn a_set_without_documents_is_refused() {
    let empty = |name: &str, text: &str| SourceFile { name: name.into(), text: text.into() };
    let sets = [
        vec![],
        vec![empty("a.yaml", "---\n")],
        vec![empty("a.yaml", "# a\n---\n---\n"), empty("b.yaml", "# b")],
    ];
    for set in sets {
        let said = load(&set, &scope(), 1).expect_err("there is no document").to_string();
        assert!(said.contains("holds no documents") && said.contains(".yaml"), "{said}");
    }
    // What is wrong besides is said, and nothing more.
    let errors = load(&[file("a: [")], &scope(), 1).expect_err("it is no YAML");
    assert!(!errors.to_string().contains("no documents"), "{errors}");
}

#[test]
fn a_set_without_rules_denies() {
    let g = generation(&service(
        "  external: true\n  ports: [{port: 1, protocol: tcp}]\n  endpoints: [{address: 127.0.0.1}]\n",
    ));
    assert_eq!(ask(&g, &Ask::default()), "no_rule");
    let source = Source { identity: None, address: "10.0.0.1".parse().unwrap() };
    assert!(g.explain(source, 1, Operation::Tcp).to_string().contains("no Allow rule concerns"));
    let none = Scope { workload: None, ..scope() };
    let g = load(&[file(ORDERS)], &none, 1).unwrap();
    assert_eq!(ask(&g, &Ask { request: Some(("GET", "/any")), ..Ask::default() }), "no_rule");
}

#[test]
fn the_trust_domain_of_a_set() {
    let name = |text: &str| trust_domain_of(&[file(text)]).map(|td| td.to_string());
    assert_eq!(name(ORDERS).as_deref(), Some("demo.postern"));
    let of_service = "  identity: spiffe://td/ns/a/sa/b\n  ports: []\n  endpoints: []\n";
    assert_eq!(name(&service(of_service)).as_deref(), Some("td"));
    assert_eq!(name("a: ["), None);
}

#[test]
fn explanations() {
    let g = generation(ORDERS);
    let explain = |id: Option<&str>, method: &str, path: &str, port| {
        let id = id.map(|id| SpiffeId::parse(id).unwrap());
        let source = Source { identity: id.as_ref(), address: "10.0.0.1".parse().unwrap() };
        let method = CanonMethod::parse(method).unwrap();
        let path = CanonPath::parse(path, &g.defaults().path).unwrap();
        g.explain(source, port, Operation::http(&method, &path))
    };
    let storefront = Some("spiffe://demo.postern/ns/shop/sa/storefront");
    let shown = explain(storefront, "GET", "/v1/orders/7", 8080).to_string();
    assert_eq!(shown, "allowed by rule shop/orders-api/storefront-reads (a.yaml:17:11)");
    let shown = explain(storefront, "DELETE", "/v1/orders/7", 8080).to_string();
    assert_eq!(
        shown,
        "denied: no Allow rule matches
nearest: rule shop/orders-api/storefront-reads (a.yaml:17:11)
  - the method DELETE is not one of GET, HEAD
to allow it: in rule shop/orders-api/storefront-reads (a.yaml:17:11): add DELETE to `methods`"
    );
    let shown = explain(Some("spiffe://demo.postern/ns/x/sa/y"), "GET", "/health", 8080).to_string();
    assert!(shown.contains("to allow it: in rule shop/orders-api/storefront-reads (a.yaml:17:11): add x/y to `serviceAccounts`"), "{shown}");
    let shown = explain(storefront, "GET", "/admin;x", 8080).to_string();
    assert!(shown.starts_with("denied by rule postern-system/guard/admin (a.yaml:32:11)"), "{shown}");
    assert!(shown.contains("can also be read as /admin; every"), "{shown}");
    let json = serde_json::to_value(explain(None, "GET", "/any", 8080)).unwrap();
    assert_eq!(json["verdict"]["allowed"], false);
    assert_eq!(json["verdict"]["reason"], "no_rule");
    assert_eq!(json["nearest"]["failed"][0], "the peer proved no identity");
}

/// Advice is followed to the letter, and then the call is allowed.
#[test]
fn advice_allows_the_call() {
    let web = Some("ns/shop/sa/web");
    let alternative = |what: &str| format!("add an alternative `{what}` to `to`");
    let get_other = "{methods: [GET], paths: [\"/other\"], ports: [8080]}";
    let both = "{methods: [GET], paths: [\"/b;x\", \"/b\"], ports: [8080]}";
    let trace = "{methods: [TRACE], paths: [\"/a\"], ports: [8080]}";
    let me = "{spiffe: [\"spiffe://demo.postern/ns/shop/sa/web\"]}";
    let stranger = "{unauthenticated: true, cidrs: [\"127.0.0.9\"]}";
    let get = |path| Some(("GET", path));
    for (before, after, id, request, advice) in [
        (
            "to: [{pathPrefix: [/a]}]",
            format!("to: [{{pathPrefix: [/a]}}, {get_other}]"),
            web,
            get("/other"),
            alternative(get_other),
        ),
        (
            "to: [{paths: [/a]}]",
            "to: [{paths: [/a, /other]}]".into(),
            web,
            get("/other"),
            "add /other to `paths`".into(),
        ),
        // Every reading that nothing allows, and no other.
        (
            "to: [{paths: [/a]}]",
            "to: [{paths: [/a, '/b;x', /b]}]".into(),
            web,
            get("/b;x"),
            "add /b;x to `paths`; and add /b to `paths`".into(),
        ),
        (
            "to: [{methods: [POST], paths: [/b]}]",
            "to: [{methods: [POST, GET], paths: [/b, '/b;x']}]".into(),
            web,
            get("/b;x"),
            "add GET to `methods`; and add /b;x to `paths`".into(),
        ),
        (
            "to: [{paths: [/b]}]",
            "to: [{paths: [/b, '/b;x']}]".into(),
            web,
            get("/b;x"),
            "add /b;x to `paths`".into(),
        ),
        (
            "to: [{pathPrefix: [/a]}]",
            format!("to: [{{pathPrefix: [/a]}}, {both}]"),
            web,
            get("/b;x"),
            alternative(both),
        ),
        (
            "to: [{methods: [GET]}]",
            "to: [{methods: [GET, TRACE]}]".into(),
            web,
            Some(("TRACE", "/a")),
            "add TRACE to `methods`".into(),
        ),
        (
            "to: [{methods: ['*']}]",
            format!("to: [{{methods: ['*']}}, {trace}]"),
            web,
            Some(("TRACE", "/a")),
            alternative(trace),
        ),
        (
            "to: [{paths: [/a]}]",
            format!("to: [{{paths: [/a]}}, {trace}]"),
            web,
            Some(("TRACE", "/a")),
            alternative(trace),
        ),
        (
            "to: [{methods: [POST], pathPrefix: [/a], ports: [1]}]",
            format!("to: [{{methods: [POST], pathPrefix: [/a], ports: [1]}}, {get_other}]"),
            web,
            get("/other"),
            alternative(get_other),
        ),
        (
            "from: [{namespaces: [shop]}]",
            format!(
                "from: [{{namespaces: [shop]}}]\n  - name: s\n    from: [{{namespaces: [shop]}}]\n    to: [{trace}]"
            ),
            web,
            Some(("TRACE", "/a")),
            format!("add a copy of it under another name with `to: [{trace}]`"),
        ),
        (
            "to: [{methods: [GET]}]",
            "to: [{methods: [GET]}, {ports: [8080]}]".into(),
            web,
            None,
            alternative("{ports: [8080]}") + "; that allows every HTTP request on this port too",
        ),
        (
            "to: [{methods: [GET], paths: [/a]}]",
            "to: [{methods: [GET], paths: [/a]}, {methods: [OPTIONS], ports: [8080]}]".into(),
            web,
            Some(("OPTIONS", "*")),
            alternative("{methods: [OPTIONS], ports: [8080]}")
                + "; that allows every path, for no rule can name this one",
        ),
        (
            "to: [{ports: [1]}]",
            "to: [{ports: [1, 8080]}]".into(),
            web,
            get("/"),
            "add 8080 to `ports`".into(),
        ),
        (
            "from: [{serviceAccounts: [x]}]",
            "from: [{serviceAccounts: [x, shop/web]}]".into(),
            web,
            get("/"),
            "add shop/web to `serviceAccounts`".into(),
        ),
        (
            "from: [{trustDomain: else}]",
            format!("from: [{{trustDomain: else}}, {me}]"),
            web,
            get("/"),
            format!("add an alternative `{me}` to `from`"),
        ),
        (
            "from: [{not: {namespaces: [shop]}}]",
            format!("from: [{{not: {{namespaces: [shop]}}}}, {me}]"),
            web,
            get("/"),
            format!("add an alternative `{me}` to `from`"),
        ),
        (
            "from: [{namespaces: [x], cidrs: [10.0.0.0/8]}]",
            format!("from: [{{namespaces: [x], cidrs: [10.0.0.0/8]}}, {me}]"),
            web,
            get("/"),
            format!("add an alternative `{me}` to `from`"),
        ),
        (
            "from: [{namespaces: [x]}]",
            format!("from: [{{namespaces: [x]}}, {stranger}]"),
            None,
            get("/"),
            format!("call through a sidecar, or add an alternative `{stranger}` to `from`"),
        ),
        (
            "to: [{methods: [GET]}]",
            format!(
                "to: [{{methods: [GET]}}]\n  - name: s\n    to: [{{methods: [GET]}}]\n    from: [{stranger}]"
            ),
            None,
            get("/"),
            format!(
                "call through a sidecar, or add a copy of it under another name with `from: [{stranger}]`"
            ),
        ),
    ] {
        let g = generation(&rule(&format!("    {before}\n")));
        let question = Ask { id, request, ..Ask::default() };
        assert_eq!(ask(&g, &question), "no_rule", "{before}");
        let shown = explain(&g, &question);
        assert!(shown.ends_with(&format!("(a.yaml:7:11): {advice}")), "expected {advice}\n{shown}");
        let g = generation(&rule(&format!("    {after}\n")));
        assert!(ask(&g, &question).starts_with("allow "), "{after}");
    }
}

fn explain(generation: &Generation, ask: &Ask<'_>) -> String {
    let id = ask.id.map(|id| SpiffeId::parse(&format!("spiffe://demo.postern/{id}")).unwrap());
    let source = Source { identity: id.as_ref(), address: ask.address.parse().unwrap() };
    let parts = ask.request.map(|(method, path)| {
        let method = CanonMethod::parse(method).unwrap();
        let path = CanonPath::parse_for(&method, path, &generation.defaults().path).unwrap();
        (method, path)
    });
    let operation = match &parts {
        Some((method, path)) => Operation::http(method, path),
        None => Operation::Tcp,
    };
    generation.explain(source, ask.port, operation).to_string()
}

#[test]
fn a_context_of_another_generation_is_stale() {
    let (old, new) = (generation(ORDERS), generation(ORDERS));
    let id = SpiffeId::parse("spiffe://demo.postern/ns/ops/sa/x").unwrap();
    let source = Source { identity: Some(&id), address: "127.0.0.1".parse().unwrap() };
    let connection = old.connection(source);
    // Even though both have the number 7.
    let verdict = new.decide(&connection, 8080, Operation::Tcp);
    assert_eq!(verdict.effect, Effect::Deny(DenyReason::StaleContext));
}

#[test]
fn stages() {
    let stage = |g: &Generation, id: Option<&str>| {
        let id = id.map(|id| SpiffeId::parse(id).unwrap());
        match g.connection(Source { identity: id.as_ref(), address: "10.0.0.1".parse().unwrap() }).stage() {
            Stage::Allow(_) => "allow",
            Stage::Deny(_) => "deny",
            Stage::Defer => "defer",
        }
    };
    let web = Some("spiffe://demo.postern/ns/shop/sa/web");
    let g = generation(&rule("    from: [{serviceAccounts: [web]}]\n"));
    assert_eq!(stage(&g, web), "defer", "TRACE is not allowed");
    assert_eq!(stage(&g, None), "deny");
    assert_eq!(stage(&g, Some("spiffe://demo.postern/ns/shop/sa/other")), "deny");
    let named = "    from: [{serviceAccounts: [web]}]\n  - name: s\n    to: [{methods: [TRACE, CONNECT]}]\n";
    assert_eq!(stage(&generation(&rule(named)), web), "defer", "two rules allow, each something");
    let deny = "\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: d, namespace: shop}\nspec: {action: Deny, rules: [{name: d, from: [{cidrs: [10.0.0.0/8]}]}]}\n";
    assert_eq!(stage(&generation(&(rule(named) + deny)), web), "deny");
    let deny = deny.replace("from: [{cidrs: [10.0.0.0/8]}]", "to: [{ports: [1]}]");
    assert_eq!(stage(&generation(&(rule(named) + &deny)), web), "defer");
    assert_eq!(stage(&generation(&deny), web), "defer", "the Deny is named where it matches");
}

#[test]
fn services() {
    let g = generation(&service(
        "  identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports:\n  - {port: 80, protocol: http, targetPort: 8080}\n  - {port: 5432, protocol: tcp, name: db}\n  endpoints:\n  - {address: 127.0.0.12}\n  - {address: '::ffff:127.0.0.13', meshPort: 1, identity: spiffe://demo.postern/ns/shop/sa/b, transport: mtls}\n",
    ));
    let find = |host: &str, port, own| g.services().find(&CanonHost::parse(host).unwrap(), port, own);
    for host in ["orders.shop", "ORDERS.shop.", "orders.shop.svc", "orders.shop.svc.cluster.local", "orders"]
    {
        let found = find(host, 80, "shop").expect(host);
        assert_eq!((found.target_port, found.protocol.as_str(), found.endpoints.len()), (8080, "http", 2));
    }
    for (host, port, own) in [
        ("orders", 80, "other"),
        ("orders.shop", 81, "shop"),
        ("orders.shop.com", 80, "shop"),
        ("127.0.0.12", 80, "shop"),
    ] {
        assert!(find(host, port, own).is_none(), "{host}");
    }
    let port = find("orders", 5432, "shop").unwrap();
    assert_eq!((port.target_port, port.name.as_deref()), (5432, Some("db")));
    let [a, b] = &*port.endpoints else { panic!() };
    assert_eq!((a.mesh_port, a.identities[0].path()), (24143, "/ns/shop/sa/orders"));
    assert_eq!(
        (b.address, b.mesh_port, b.identities[0].path()),
        ("127.0.0.13".parse().unwrap(), 1, "/ns/shop/sa/b")
    );
}

/// Each mistake, the place of the caret, and words of the message and of the way out.
#[test]
fn mistakes() {
    let default_service = "  identity: spiffe://demo.postern/ns/shop/sa/o\n  ports: [{port: 80, protocol: http}]\n  endpoints: [{address: 127.0.0.1}]\n";
    let ok_rule = "  rules: [{name: r}]\n";
    let mut failed = Vec::new();
    for (text, place, words) in [
        (rule("    form: []\n"), "8:5", ["unknown field `form`", "did you mean `from`"]),
        (rule("    from: []\n"), "8:11", ["`from` is empty", "leave `from` out"]),
        (rule("    from:\n"), "8:9", ["expected a list", ""]),
        (rule("    to: [{methods: []}]\n"), "8:20", ["`methods` is empty", ""]),
        (rule("    from: [{}]\n"), "8:12", ["empty", "say who"]),
        (rule("    from: [{not: {}}]\n"), "8:18", ["`not` is empty", ""]),
        (rule("    from: [{cidrs: [10.1.2.3/8]}]\n"), "8:21", ["bits behind its mask", "10.0.0.0/8"]),
        (rule("    from: [{cidrs: [010.0.0.1]}]\n"), "8:21", ["not a network", ""]),
        (rule("    from: [{spiffe: [shop]}]\n"), "8:22", ["not a SPIFFE id", ""]),
        (rule("    from: [{namespaces: ['*']}]\n"), "8:26", ["patterns are not known", ""]),
        (rule("    from: [{serviceAccounts: [a/b/c]}]\n"), "8:31", ["not a service account", ""]),
        (rule("    from: [{unauthenticated: false}]\n"), "8:30", ["can only be true", ""]),
        (
            rule("    from: [{unauthenticated: true, namespaces: [a]}]\n"),
            "8:30",
            ["no name", "two alternatives"],
        ),
        (rule("    from: [{unauthenticated: yes}]\n"), "8:30", ["", ""]),
        (rule("    from: [{trustDomain: a, spiffe: ['spiffe://a/b']}]\n"), "8:26", ["themselves", ""]),
        (rule("    to: [{paths: [/a//b]}]\n"), "8:19", ["not in the form", "write `/a/b`"]),
        (rule("    to: [{paths: ['/a/{id}']}]\n"), "8:19", ["braces", ""]),
        (rule("    to: [{paths: [/a/*]}]\n"), "8:19", ["no wildcard", "write `{*}`"]),
        (rule("    to: [{pathPrefix: ['/a/*']}]\n"), "8:24", ["no wildcard", "leave the star out"]),
        (rule("    to: [{pathPrefix: [/a/]}]\n"), "8:24", ["without the slash", "write `/a`"]),
        (rule("    to: [{paths: [/a], pathPrefix: [/b]}]\n"), "8:36", ["cannot stand", "two alternatives"]),
        (rule("    to: [{methods: [get]}]\n"), "8:21", ["capitals", "write `GET`"]),
        (rule("    to: [{methods: ['*', GET]}]\n"), "8:21", ["stands alone", ""]),
        (rule("    to: [{ports: [0]}]\n"), "8:19", ["no port", ""]),
        (rule("    to: [{ports: [65536]}]\n"), "8:19", ["a port is a number from 1 to 65535", ""]),
        (rule("    to: [{ports: [http]}]\n"), "8:19", ["a port is a number from 1 to 65535", ""]),
        (rule("    when: {}\n"), "8:11", ["`when` is empty", "write `time`"]),
        (rule("    when: {time: {}}\n"), "8:18", ["says no time", "Mon-Fri"]),
        (rule("    when: {time: {weekly: [Mon 06:00-22:00]}}\n"), "8:27", ["need a time zone", "zone: UTC"]),
        (
            rule("    when: {time: {weekly: [Mon 6-22], zone: UTC}}\n"),
            "8:28",
            ["written from 00:00 to 24:00", ""],
        ),
        (
            rule("    when: {time: {weekly: [Mon 06:00-22:00], zone: Europe/Olso}}\n"),
            "8:52",
            ["unknown time zone", "did you mean `Europe/Oslo`"],
        ),
        (rule("    when: {time: {notBefore: tomorrow}}\n"), "8:30", ["not a point in time", "write it like"]),
        (
            rule("    when: {time: {notBefore: '2026-01-02T00:00:00Z', notAfter: '2026-01-01T00:00:00Z'}}\n"),
            "8:64",
            ["the rule never holds", ""],
        ),
        (rule("    name: s\n"), "8:5", ["twice", ""]),
        (rule("  - name: r\n"), "8:11", ["twice", ""]),
        (rule("  - name: R_1\n"), "8:11", ["not a name", "a-z"]),
        (policy(&format!("  action: allow\n{ok_rule}")), "5:11", ["unknown value", "did you mean `Allow`"]),
        (
            policy(&format!("  action: Allow\n  tier: Platform\n{ok_rule}")),
            "6:9",
            ["may stand in the tier Platform", "leave `tier` out"],
        ),
        (
            policy(&format!("  action: Allow\n  target: {{all: true}}\n{ok_rule}")),
            "6:17",
            ["only documents of the root", ""],
        ),
        (policy(&format!("  action: Allow\n  target: {{}}\n{ok_rule}")), "6:11", ["`target` is empty", ""]),
        (policy("  action: Allow\n  rules: []\n"), "6:10", ["`rules` is empty", ""]),
        (policy("  action: Allow\n"), "5:3", ["`rules` is missing", ""]),
        (
            policy(&format!("  action: Allow\n{ok_rule}")).replace("v1alpha1", "v1"),
            "1:13",
            ["unknown apiVersion", "v1alpha1"],
        ),
        (
            policy("").replace("AccessPolicy", "AccesPolicy"),
            "2:7",
            ["unknown kind", "did you mean `AccessPolicy`"],
        ),
        (ORDERS.replacen("postern-system", "shop", 1), "4:38", ["only in the root namespace", ""]),
        (
            ORDERS.replace("canonical: demo.postern", "canonical: x"),
            "6:29",
            ["not the trust domain", "demo.postern"],
        ),
        (ORDERS.replace("grace: 5s", "grace: 5"), "8:49", ["length of time", ""]),
        (
            service(&default_service.replace("ns/shop/sa/o", "postern/control")),
            "5:13",
            ["belong to the mesh", ""],
        ),
        (
            service(&default_service.replacen("identity", "external: false #", 1)),
            "7:15",
            ["who must answer", "external: true"],
        ),
        (service(&default_service.replace("127.0.0.1", "orders")), "7:25", ["not an IP address", ""]),
        (
            service(&default_service.replace("protocol: http", "protocol: htp")),
            "6:32",
            ["unknown value", "`http`"],
        ),
        (format!("{0}---\n{0}", service(default_service)), "11:18", ["exists twice", "a.yaml:3:18"]),
        ("a: [".into(), "1:4", ["unclosed bracket", ""]),
        ("a: 1\na: 2\n".into(), "2:1", ["twice", ""]),
        ("\tx".into(), "1:2", ["expected fields", ""]),
        ("x: 1\n".into(), "1:1", ["no `kind`", "AccessPolicy"]),
        (ORDERS.to_owned() + "# a note\n\n--- \n# more\n  x: 1\n", "48:3", ["no `kind`", "AccessPolicy"]),
        (rule("    from: [\n"), "8:11", ["unclosed bracket", ""]),
        (rule("    from: \"a\n\n"), "8:11", ["unclosed quote", ""]),
        ("kind: Service\nspec:\n".into(), "2:5", ["expected fields", ""]),
        ("kind: Service\nspec: !a\n\n".into(), "2:7", ["`!a` is a tag", "stands in quotes"]),
        ("kind: Service\n\n\n".into(), "1:1", ["`apiVersion` is missing", ""]),
        (rule("    from: [{cidrs: [x]}]\n").replace('\n', "\r"), "8:21", ["not a network", ""]),
        (rule("    from: [{cidrs: [x]}]\n").replace('\n', "\r\n"), "8:21", ["not a network", ""]),
        (
            format!("{0}---\r{0}", service(default_service)).replace('\n', "\r"),
            "11:18",
            ["exists twice", "a.yaml:3:18"],
        ),
        (rule("") + "...\n" + &rule(""), "9:1", ["a second document begins", "`---`"]),
        (format!("x: {}{}\n", "[".repeat(30), "]".repeat(30)), "1:28", ["more than 24 levels", "flatter"]),
        ("# a note\n%YAML 1.2\n---\nkind: Service\n".into(), "2:1", ["directives", "leave the line out"]),
        ("- 1\n".into(), "1:1", ["", ""]),
    ] {
        let found = errors(&text);
        let first = found.iter().next().unwrap();
        let shown = found.to_string();
        let wrong = words.iter().find(|words| !shown.contains(**words));
        if format!("{}:{}", first.line, first.column) != place || wrong.is_some() {
            failed.push(format!("expected {place} {words:?} for\n{text}\n{shown}"));
            continue;
        }
        if first.line > 0 {
            assert!(shown.contains(&format!("--> a.yaml:{place}\n")), "{shown}");
            assert!(shown.contains('^'), "{shown}");
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n----\n"));
}

#[test]
fn a_caret_under_the_place() {
    let shown = errors(&format!("# one\n---\n{}", rule("    from: [{serviceAcounts: [web]}]\n"))).to_string();
    let expected = "error: unknown field `serviceAcounts`
  --> a.yaml:10:13
   |
10 |     from: [{serviceAcounts: [web]}]
   |             ^^^^^^^^^^^^^^
   |
   = help: did you mean `serviceAccounts`? (known: spiffe, serviceAccounts, namespaces, trustDomain, cidrs, unauthenticated, jwt, not)";
    assert_eq!(shown, expected);
}

#[test]
fn all_mistakes_of_all_files_at_once() {
    let text = format!(
        "{}---\nkind: x\n---\n{}",
        rule("    from: [{namespaces: [A]}, {cidrs: [x]}]\n"),
        policy("  action: Allow\n")
    );
    assert_eq!(errors(&text).len(), 4, "of documents that parse and of those that do not");
    let found = errors(&text);
    let lines: Vec<usize> = found.iter().map(|finding| finding.line).collect();
    assert!(lines.is_sorted(), "{lines:?}");
}

#[test]
fn hostile_text() {
    let found =
        load(&[SourceFile { name: "b".into(), text: b"a: 1\nb: \xff".to_vec() }], &scope(), 1).unwrap_err();
    let first = found.iter().next().unwrap();
    assert_eq!((first.line, first.column), (2, 4), "{found}");
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let list = vec![format!("*a{}", n - 1); 10].join(",");
        bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    errors(&bomb);
    errors(&"[".repeat(100_000));
    errors(&"{a: ".repeat(100_000));
    errors(&"- ".repeat(100_000));
    errors(&rule(&format!("    from: {}{}\n", "[".repeat(30), "]".repeat(30))));
    let escape = errors("kind: \"\\e[2J\"\n").to_string();
    assert!(!escape.contains('\u{1b}'), "{escape:?}");
    let raw = errors(&rule("    from: [{namespaces: [\"\u{1b}[2J\"]}]\n")).to_string();
    assert!(!raw.contains('\u{1b}'), "{raw:?}");
    assert!(load(&[SourceFile { name: "b".into(), text: vec![b'#'; MAX_BYTES + 1] }], &scope(), 1).is_err());
}

#[test]
fn warnings() {
    let deny = |rest: &str| policy(&format!("  action: Deny\n  rules:\n  - name: r\n{rest}"));
    for (text, words) in [
        (rule("    from: [{unauthenticated: true}]\n"), "anybody who can reach"),
        (rule("    from: [{cidrs: [10.0.0.0/8]}]\n"), "admits authenticated peers only"),
        (deny("    to: [{paths: [/admin], ports: [80]}]\n"), "neither /admin/"),
        (deny("    to: [{pathPrefix: [/admin]}]\n"), "opaque TCP"),
    ] {
        let g = generation(&text);
        assert!(g.warnings().to_string().contains(words), "{}", g.warnings());
        assert_eq!(g.warnings().len(), 1);
    }
    assert!(generation(&rule("    from: [{namespaces: [a], cidrs: [10.0.0.0/8]}]\n")).warnings().is_empty());
}

/// A finding costs its own neighbourhood, not the file: a generated document must not stall whoever checks it.
#[test]
fn findings_take_no_time_and_are_bounded() {
    const COUNT: usize = 20_000;
    let paths: Vec<String> = (0..COUNT).map(|n| format!("/v1/orders/{n}")).collect();
    let deny = |paths: String| {
        policy(&format!(
            "  action: Deny\n  rules:\n  - name: r\n    to:\n    - ports: [80]\n      paths: {paths}\n"
        ))
    };
    let one_line = |items: &[String]| format!("[{}]", items.join(", "));
    let lines = |items: &[String]| items.iter().map(|item| format!("\n      - {item}")).collect::<String>();
    // Generous: a quadratic walk takes tens of seconds here, a linear one about half a second, most of it the YAML.
    let timed = |text: &str| {
        let began = std::time::Instant::now();
        let result = load(&[file(text)], &scope(), 7);
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
        result
    };
    for text in [deny(one_line(&paths)), deny(lines(&paths))] {
        let g = timed(&text).unwrap();
        assert_eq!(g.warnings().len(), 1, "one warning a rule: {}", g.warnings());
        assert!(g.warnings().to_string().contains("19999 more paths"), "{}", g.warnings());
    }
    let wrong: Vec<String> = paths.iter().map(|path| path.replace("v1", "/v1")).collect();
    for text in [deny(one_line(&wrong)), deny(lines(&wrong))] {
        let found = timed(&text).unwrap_err();
        assert_eq!((found.len(), found.total()), (MAX_FINDINGS + 1, COUNT));
        let last = found.iter().last().unwrap();
        assert!(last.message.contains("19900 more mistakes not listed"), "{last}");
        assert!(found.to_string().ends_with("... and 19980 more"), "{found}");
    }
}

/// A file that was cut short takes its Deny with it; somebody has to say that this is meant.
#[test]
fn an_empty_file_refuses_the_set() {
    let good = file(ORDERS);
    let with = |text: &str| {
        let second = SourceFile { name: "deny.yaml".into(), text: text.into() };
        load(&[good.clone(), second], &scope(), 1)
    };
    for text in ["", "\n \n"] {
        let errors = with(text).unwrap_err().to_string();
        assert!(errors.contains("deny.yaml") && errors.contains("the file is empty"), "{errors}");
    }
    assert!(with("# nothing for now\n").is_ok());
}

#[test]
fn a_method_that_is_nearly_one_is_pointed_at() {
    let of = |method: &str| {
        generation(&rule(&format!("    to: [{{methods: [{method}]}}]\n"))).warnings().to_string()
    };
    assert!(of("DELET").contains("did you mean `DELETE`"), "{}", of("DELET"));
    assert_eq!((of("DELETE").as_str(), of("PROPFIND").as_str()), ("", ""));
}

/// Who can name a file writes no lines to terminals and logs, and moves no cursor.
#[test]
fn names_of_files_are_shown_in_one_line() {
    let name = "a\nerror: ok\u{1b}[31m\u{202e}.yaml";
    let texts = ["kind: Nothing\n", "a: [", "", "\u{0}"];
    for text in texts {
        let file = SourceFile { name: name.to_owned(), text: text.as_bytes().to_vec() };
        let errors = load(&[file], &scope(), 1).unwrap_err();
        let (text, json) = (errors.to_string(), serde_json::to_value(&errors).unwrap());
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        assert!(text.lines().all(|line| !line.starts_with("error: ok")), "{text}");
        assert!(text.contains("a\u{fffd}error: ok\u{fffd}[31m\u{fffd}.yaml"), "{text}");
        assert!(json.to_string().contains(r"a\nerror: ok"), "machines get it as it is: {json}");
    }
}
