//! What Istio's documents mean, case by case.

use std::collections::BTreeMap;

use postern_svid::{SpiffeId, TrustDomain};

use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::{
    DenyReason, Effect, Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile,
    Workload, load,
};

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("prod").unwrap(),
        root_namespace: "istio-system".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".into(), "orders".into())]),
        }),
    }
}

fn read(text: &str) -> Result<Generation, String> {
    let file = SourceFile { name: "istio.yaml".into(), text: text.as_bytes().into() };
    load(&[file], &scope(), 1).map_err(|errors| errors.to_string())
}

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn one(spec: &str) -> Generation {
    read(&policy("p", "shop", spec)).unwrap()
}

fn errors(spec: &str) -> String {
    read(&policy("p", "shop", spec)).unwrap_err()
}

/// A request in short: `spiffe id or -`, method, host, path, `name: value` lines.
struct Ask<'a> {
    id: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    lines: &'a [(&'a str, &'a str)],
    port: u16,
}

const ASK: Ask<'static> = Ask {
    id: "spiffe://prod/ns/web/sa/front",
    method: "GET",
    host: "orders.shop",
    path: "/v1/orders",
    lines: &[],
    port: 8080,
};

/// The rule that allows (`true`) or denies, by both engines.
fn ask(generation: &Generation, ask: &Ask<'_>) -> (bool, String) {
    let id = (ask.id != "-").then(|| SpiffeId::parse(ask.id).unwrap());
    let source = Source { identity: id.as_ref(), address: [10, 0, 0, 1].into() };
    let method = CanonMethod::parse(ask.method).unwrap();
    let path = CanonPath::parse(ask.path, &PathOptions::default()).unwrap();
    let host = CanonHost::parse(ask.host).unwrap();
    let mut fields = HeaderFields::new();
    for (name, value) in ask.lines {
        fields.push(name, value).unwrap();
    }
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: Some(&host),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: None,
        tokens: crate::Tokens::Absent,
    };
    answer(generation, source, ask.port, operation)
}

fn answer(
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
) -> (bool, String) {
    let verdict = generation.decide(&generation.connection(source), port, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, port, operation));
    let explained = generation.explain(source, port, operation);
    assert!(!explained.to_string().is_empty());
    let rule = verdict.rule.map(|id| generation.rule(id).to_string());
    let reason = match verdict.effect {
        Effect::Deny(DenyReason::NoRule) => "default".to_owned(),
        _ => rule.unwrap_or_default(),
    };
    (verdict.is_allowed(), reason)
}

fn allows(generation: &Generation, question: &Ask<'_>) -> bool {
    ask(generation, question).0
}

#[test]
fn fields_of_operations() {
    // Whether an ALLOW with this operation allows a request; the second half as a DENY.
    for (operation, method, host, path, expected) in [
        ("methods: [GET]", "GET", "a", "/", true),
        ("methods: [GET]", "POST", "a", "/", false),
        ("methods: [get]", "GET", "a", "/", false),
        ("methods: [P*]", "PUT", "a", "/", true),
        ("methods: [\"*T\"]", "PUT", "a", "/", true),
        ("methods: [\"*T\"]", "PATCH", "a", "/", false),
        ("methods: [\"*\"]", "PURGE", "a", "/", true),
        ("notMethods: [GET]", "GET", "a", "/", false),
        ("notMethods: [GET]", "POST", "a", "/", true),
        ("paths: [/a]", "GET", "a", "/a", true),
        ("paths: [/a]", "GET", "a", "/a?b=/c", true),
        ("paths: [/a]", "GET", "a", "/a/", false),
        ("paths: [/a]", "GET", "a", "/A", false),
        ("paths: [/public*]", "GET", "a", "/publicity", true),
        ("paths: [/public*]", "GET", "a", "/public", true),
        ("paths: [/public/*]", "GET", "a", "/public", false),
        ("paths: [/public/*]", "GET", "a", "/public/", true),
        ("paths: [\"*.html\"]", "GET", "a", "/x/y.html", true),
        ("paths: [\"*.html\"]", "GET", "a", "/x/y.html/", false),
        ("paths: [\"*\"]", "GET", "a", "/", true),
        ("paths: [\"/v/{*}\"]", "GET", "a", "/v/x", true),
        ("paths: [\"/v/{*}\"]", "GET", "a", "/v/x/y", false),
        ("paths: [\"/v/{**}\"]", "GET", "a", "/v", false),
        ("paths: [\"/v/{**}\"]", "GET", "a", "/v/", true),
        ("paths: [\"/v/{*}/w/{**}\"]", "GET", "a", "/v/x/w/y/z", true),
        ("paths: [\"/v/{**}/w\"]", "GET", "a", "/v/x/y/w", true),
        ("notPaths: [/a*]", "GET", "a", "/ab", false),
        ("notPaths: [/a*]", "GET", "a", "/b", true),
        ("paths: [/a*], notPaths: [/ab]", "GET", "a", "/ab", false),
        ("paths: [/a*], notPaths: [/ab]", "GET", "a", "/ac", true),
        ("hosts: [shop.example]", "GET", "SHOP.example", "/", true),
        ("hosts: [Shop.Example]", "GET", "shop.example", "/", true),
        ("hosts: [shop.example]", "GET", "shop.example:8080", "/", false),
        ("hosts: [\"shop.example:8080\"]", "GET", "shop.example:8080", "/", true),
        ("hosts: [\"shop.example:*\"]", "GET", "shop.example:8080", "/", true),
        ("hosts: [\"shop.example:*\"]", "GET", "shop.example", "/", false),
        ("hosts: [\"*.example\"]", "GET", "shop.example", "/", true),
        ("hosts: [\"*\"]", "GET", "shop.example", "/", true),
        ("notHosts: [shop.example]", "GET", "shop.example", "/", false),
        // A rule that opens something keeps out the host whatever port is behind it.
        ("notHosts: [shop.example]", "GET", "shop.example:81", "/", false),
        ("ports: [\"8080\"]", "GET", "a", "/", true),
        ("ports: [\"81\"]", "GET", "a", "/", false),
        ("notPorts: [\"8080\"]", "GET", "a", "/", false),
        ("methods: [GET], paths: [/a]", "GET", "a", "/b", false),
        ("methods: [TRACE]", "TRACE", "a", "/", true),
        ("methods: [\"*\"]", "TRACE", "a", "/", false),
        ("methods: [T*]", "TRACE", "a", "/", false),
        ("paths: [/a]", "CONNECT", "a", "/a", false),
    ] {
        let generation = one(&format!("rules: [{{to: [{{operation: {{{operation}}}}}]}}]"));
        let question = Ask { method, host, path, ..ASK };
        assert_eq!(allows(&generation, &question), expected, "ALLOW {operation}: {method} {host} {path}");
        let generation = one(&format!("action: DENY, rules: [{{to: [{{operation: {{{operation}}}}}]}}]"));
        // A rule that closes something hears hosts without their port, and TRACE by any name.
        let wider = (host.contains(':') && operation == "hosts: [shop.example]")
            || (host.contains(':') && operation.starts_with("notHosts"))
            || (["TRACE", "CONNECT"].contains(&method));
        assert_eq!(
            allows(&generation, &question),
            !(expected || wider),
            "DENY {operation}: {method} {host} {path}"
        );
    }
}

#[test]
fn fields_of_sources() {
    for (source, id, expected) in [
        ("principals: [prod/ns/web/sa/front]", "spiffe://prod/ns/web/sa/front", true),
        ("principals: [cluster.local/ns/web/sa/front]", "spiffe://prod/ns/web/sa/front", true),
        ("principals: [prod/ns/web/sa/front]", "spiffe://prod/ns/web/sa/frontier", false),
        ("principals: [\"prod/ns/web/*\"]", "spiffe://prod/ns/web/sa/front", true),
        ("principals: [\"*/sa/front\"]", "spiffe://elsewhere/ns/web/sa/front", true),
        ("principals: [\"*\"]", "spiffe://elsewhere/x", true),
        ("notPrincipals: [\"*\"]", "spiffe://prod/x", false),
        ("notPrincipals: [prod/ns/web/sa/front]", "spiffe://prod/ns/web/sa/other", true),
        ("namespaces: [web]", "spiffe://elsewhere/ns/web/sa/x", true),
        ("namespaces: [web]", "spiffe://prod/ns/webs/sa/x", false),
        ("namespaces: [\"web*\"]", "spiffe://prod/ns/webs/sa/x", true),
        ("notNamespaces: [web]", "spiffe://prod/ns/web/sa/x", false),
        ("notNamespaces: [web]", "spiffe://prod/x", true),
        ("serviceAccounts: [web/front]", "spiffe://prod/ns/web/sa/front", true),
        ("serviceAccounts: [front]", "spiffe://prod/ns/web/sa/front", false),
        ("serviceAccounts: [front]", "spiffe://prod/ns/shop/sa/front", true),
        ("notServiceAccounts: [front]", "spiffe://prod/ns/shop/sa/front", false),
        ("trustDomains: [prod]", "spiffe://prod/x", true),
        ("trustDomains: [prod]", "spiffe://elsewhere/x", false),
        ("notTrustDomains: [elsewhere]", "spiffe://elsewhere/x", false),
        ("ipBlocks: [10.0.0.0/8]", "spiffe://prod/x", true),
        ("ipBlocks: [10.0.0.1]", "spiffe://prod/x", true),
        ("ipBlocks: [192.0.2.0/24]", "spiffe://prod/x", false),
        ("notIpBlocks: [10.0.0.0/8]", "spiffe://prod/x", false),
        ("namespaces: [web], ipBlocks: [192.0.2.0/24]", "spiffe://prod/ns/web/sa/x", false),
        ("namespaces: [web, shop], notPrincipals: [\"*/front\"]", "spiffe://prod/ns/web/sa/front", false),
    ] {
        for (action, meant) in [("ALLOW", expected), ("DENY", !expected)] {
            let generation = one(&format!("action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]"));
            assert_eq!(allows(&generation, &Ask { id, ..ASK }), meant, "{action} {source}: {id}");
        }
    }
}

/// Architecture: `unauthenticated: true` is the only way in for a peer without an identity; a negation in a DENY means it.
#[test]
fn peers_without_an_identity() {
    for (spec, expected) in [
        ("rules: [{}]", false),
        ("rules: [{from: [{source: {notPrincipals: [prod/ns/a/sa/b]}}]}]", false),
        ("action: DENY, rules: [{from: [{source: {notPrincipals: [\"*\"]}}]}]", false),
        ("action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]", false),
        ("action: DENY, rules: [{from: [{source: {principals: [\"*\"]}}]}]", false),
    ] {
        assert_eq!(allows(&one(spec), &Ask { id: "-", ..ASK }), expected, "{spec}");
    }
    let deny = one("action: DENY, rules: [{from: [{source: {notPrincipals: [\"*\"]}}]}]");
    assert_eq!(ask(&deny, &Ask { id: "-", ..ASK }).1, "shop/p/rule-0");
}

#[test]
fn conditions() {
    type Lines<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Lines<'_>, bool, bool)] = &[
        // Whether an ALLOW allows it, and whether a DENY denies it.
        ("key: \"request.headers[X-Role]\", values: [admin]", &[("x-role", "admin")], true, true),
        ("key: \"request.headers[x-role]\", values: [admin]", &[], false, false),
        ("key: \"request.headers[x-role]\", values: [admin]", &[("x-role", "administrator")], false, false),
        (
            "key: \"request.headers[x-role]\", values: [\"admin*\"]",
            &[("x-role", "administrator")],
            true,
            true,
        ),
        ("key: \"request.headers[x-role]\", values: [\"*min\"]", &[("x-role", "admin")], true, true),
        ("key: \"request.headers[x-role]\", values: [\"*\"]", &[("x-role", "")], true, true),
        ("key: \"request.headers[x-role]\", values: [\"*\"]", &[], false, false),
        ("key: \"request.headers[x-role]\", notValues: [\"*\"]", &[], true, true),
        ("key: \"request.headers[x-role]\", notValues: [\"*\"]", &[("x-role", "a")], false, false),
        ("key: \"request.headers[x-role]\", notValues: [admin]", &[], true, true),
        ("key: \"request.headers[x-role]\", notValues: [admin]", &[("x-role", "admin")], false, false),
        // Several values: what closes fires on each, what opens wants one line.
        ("key: \"request.headers[x-role]\", values: [admin]", &[("x-role", "user,admin")], false, true),
        (
            "key: \"request.headers[x-role]\", values: [admin]",
            &[("x-role", "user"), ("x-role", "admin")],
            false,
            true,
        ),
        (
            "key: \"request.headers[x-role]\", notValues: [admin]",
            &[("x-role", "user"), ("x-role", "admin")],
            false,
            true,
        ),
        ("key: \"request.headers[x-role]\", notValues: [admin]", &[("x-role", "user,admin")], false, true),
        ("key: source.namespace, values: [web]", &[], true, true),
        ("key: source.namespace, notValues: [web]", &[], false, false),
        ("key: source.principal, values: [\"*/front\"]", &[], true, true),
        ("key: source.serviceAccount, values: [web/front]", &[], true, true),
        ("key: source.ip, values: [10.0.0.0/8]", &[], true, true),
        ("key: source.ip, notValues: [10.0.0.0/8]", &[], false, false),
        ("key: destination.port, values: [\"8080\"]", &[], true, true),
        ("key: destination.port, values: [\"81\"]", &[], false, false),
    ];
    for (condition, lines, allowed, denied) in cases {
        let question = Ask { lines, ..ASK };
        let allow = one(&format!("rules: [{{when: [{{{condition}}}]}}]"));
        assert_eq!(allows(&allow, &question), *allowed, "ALLOW {condition} {lines:?}");
        let deny = one(&format!("action: DENY, rules: [{{when: [{{{condition}}}]}}]"));
        assert_eq!(!allows(&deny, &question), *denied, "DENY {condition} {lines:?}");
    }
}

#[test]
fn implicit_allow() {
    let ours = "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: Deny, rules: [{name: r, to: [{methods: [PURGE]}]}]}\n";
    let elsewhere = ours.replace("namespace: shop", "namespace: other");
    let deny = "action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]";
    let allow = "rules: [{to: [{operation: {methods: [GET]}}]}]";
    let other = format!("selector: {{matchLabels: {{app: other}}}}, {allow}");
    let own = format!("selector: {{matchLabels: {{app: orders}}}}, {allow}");
    let cases = [
        // A DENY alone leaves the rest open, as in Istio.
        (policy("d", "shop", deny), "GET", true, "shop/istio/implicit-allow"),
        (policy("d", "shop", deny), "POST", false, "shop/d/rule-0"),
        // Not to peers without an identity: see above. One of ours beside it ends that; one elsewhere does not.
        (policy("d", "shop", deny) + ours, "GET", false, "default"),
        (policy("d", "shop", deny) + &elsewhere, "GET", true, "shop/istio/implicit-allow"),
        // An ALLOW closes what it selects, and only that.
        (policy("a", "shop", allow), "GET", true, "shop/a/rule-0"),
        (policy("a", "shop", allow), "POST", false, "default"),
        (policy("a", "shop", &own), "POST", false, "default"),
        (policy("a", "shop", &other), "POST", true, "shop/istio/implicit-allow"),
        (policy("a", "shop", ""), "GET", false, "default"),
        // The root namespace speaks for all, but only a namespace of Istio's kind is open.
        (policy("a", "istio-system", allow) + &policy("d", "shop", deny), "PUT", false, "default"),
        (
            policy("d", "istio-system", deny) + &policy("a", "shop", &other),
            "POST",
            false,
            "istio-system/d/rule-0",
        ),
        (policy("d", "istio-system", deny), "GET", false, "default"),
        (policy("d", "other", deny), "GET", false, "default"),
    ];
    for (text, method, expected, by) in cases {
        let generation = read(&text).unwrap();
        assert_eq!(ask(&generation, &Ask { method, ..ASK }), (expected, by.to_owned()), "{text}");
        if by == "shop/istio/implicit-allow" {
            assert!(generation.warnings().to_string().contains("open to every peer"), "{text}");
        }
    }
}

/// Our platform's word stands above, and a Baseline Deny above what is only implied.
#[test]
fn tiers_of_ours_stand_above() {
    let ours = |tier: &str, action: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: o, namespace: istio-system}}\nspec: {{tier: {tier}, action: {action}, target: {{all: true}}, rules: [{{name: r, to: [{{methods: [GET]}}]}}]}}\n"
        )
    };
    let deny = policy("d", "shop", "action: DENY, rules: [{}]");
    let allow = policy("a", "shop", "rules: [{}]");
    let open = policy("d", "shop", "action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]");
    for (text, expected) in [
        (ours("Platform", "Allow") + &deny, "istio-system/o/r"),
        (ours("Platform", "Deny") + &allow, "istio-system/o/r"),
        (ours("App", "Deny") + &allow, "istio-system/o/r"),
        (ours("Baseline", "Deny") + &allow, "shop/a/rule-0"),
        (ours("Baseline", "Deny") + &open, "istio-system/o/r"),
    ] {
        assert_eq!(ask(&read(&text).unwrap(), &ASK).1, expected, "{text}");
    }
}

#[test]
fn dry_runs_are_shadows() {
    let dry = |spec: &str| {
        policy("p", "shop", spec)
            .replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: \"true\"}}")
    };
    for (text, method, allowed, shadow) in [
        (
            dry("action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]"),
            "GET",
            true,
            Some(("shop/p/rule-0", false)),
        ),
        (dry("action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]"), "PUT", true, None),
        // What a dry-run ALLOW does not match would be denied.
        (
            dry("rules: [{to: [{operation: {methods: [GET]}}]}]"),
            "PUT",
            true,
            Some(("shop/istio/dry-run-rest", false)),
        ),
        (dry("rules: [{to: [{operation: {methods: [GET]}}]}]"), "GET", true, Some(("shop/p/rule-0", true))),
    ] {
        let generation = read(&text).unwrap();
        let method = CanonMethod::parse(method).unwrap();
        let path = CanonPath::parse("/", &PathOptions::default()).unwrap();
        let id = SpiffeId::parse("spiffe://prod/x").unwrap();
        let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let operation = Operation::http(&method, &path);
        let verdict = generation.decide(&generation.connection(source), 80, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, 80, operation));
        let found = verdict.shadow.map(|would| {
            (
                would.rule.map_or_else(String::new, |rule| generation.rule(rule).to_string()),
                would.effect == Effect::Allow,
            )
        });
        let expected = shadow.map(|(name, allowed)| (name.to_owned(), allowed));
        assert_eq!((verdict.is_allowed(), found), (allowed, expected), "{text}");
    }
    let bad = dry("rules: [{}]").replace("\"true\"", "\"yes\"");
    assert!(read(&bad).unwrap_err().contains("dry-run"));
}

/// On opaque TCP a DENY loses what it asks of HTTP and an ALLOW that asks it anywhere is none, as in Istio's TCP filter.
#[test]
fn opaque_bytes() {
    let id = SpiffeId::parse("spiffe://prod/ns/web/sa/front").unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    for (spec, expected) in [
        ("rules: [{to: [{operation: {ports: [\"80\"]}}]}]", true),
        ("rules: [{to: [{operation: {ports: [\"81\"]}}]}]", false),
        ("rules: [{to: [{operation: {ports: [\"80\"]}}, {operation: {methods: [GET]}}]}]", false),
        (
            "rules: [{to: [{operation: {ports: [\"80\"]}}], when: [{key: \"request.headers[a]\", values: [b]}]}]",
            false,
        ),
        ("action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]", false),
        ("action: DENY, rules: [{to: [{operation: {notPaths: [/a], ports: [\"80\"]}}]}]", false),
        ("action: DENY, rules: [{to: [{operation: {notPaths: [/a], ports: [\"81\"]}}]}]", true),
        (
            "action: DENY, rules: [{from: [{source: {namespaces: [b]}}], to: [{operation: {hosts: [a]}}]}]",
            true,
        ),
        ("action: DENY, rules: [{when: [{key: \"request.headers[a]\", values: [b]}]}]", false),
    ] {
        assert_eq!(answer(&one(spec), source, 80, Operation::Tcp).0, expected, "{spec}");
    }
}

#[test]
fn audits_mark() {
    let generation = one("action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!(ask(&generation, &ASK), (true, "shop/istio/implicit-allow".to_owned()));
    let id = SpiffeId::parse(ASK.id).unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let path = CanonPath::parse("/", &PathOptions::default()).unwrap();
    let audit = |method: &str| {
        let method = CanonMethod::parse(method).unwrap();
        let verdict = generation.decide(&generation.connection(source), 80, Operation::http(&method, &path));
        verdict.audit.map(|id| generation.rule(id).to_string())
    };
    assert_eq!((audit("GET"), audit("PUT")), (Some("shop/p/rule-0".to_owned()), None));
}

#[path = "refusal_tests.rs"]
mod refusals;
