//! The engine against the reference on random policies of both kinds, through the text of documents.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use postern_svid::SpiffeId;
use proptest::prelude::*;
use serde_json::{Map, json};

use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::tokens::{Claims, TokenSet};
use crate::{HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Stage, Workload, load};

// Few words, so that rules and questions meet.
const PRINCIPALS: [&str; 8] =
    ["*", "home/ns/a/sa/b", "cluster.local/ns/a/sa/b", "home/ns/a/*", "*/sa/b", "else/ns/b/sa/b", "h*", "*b"];
const NAMESPACES: [&str; 5] = ["a", "b", "a*", "*b", "ns"];
const ACCOUNTS: [&str; 4] = ["b", "a/b", "b/b", "ns/b"];
const DOMAINS: [&str; 3] = ["home", "else", "el*"];
const NETS: [&str; 4] = ["10.0.0.0/8", "10.0.0.1", "fd00::/8", "0.0.0.0/0"];
const IDS: [&str; 9] = [
    "spiffe://home/ns/a/sa/b",
    "spiffe://alias/ns/a/sa/b",
    "spiffe://home/ns/b/sa/b",
    "spiffe://else/ns/b/sa/b",
    "spiffe://home/ns/ab/sa/a",
    "spiffe://home/k/v/ns/a/sa/b/c",
    "spiffe://home/ns/ns/sa/b",
    "spiffe://ns/a/b",
    "spiffe://home/b",
];
const PATHS: [&str; 15] = [
    "*", "/", "/a", "/a*", "/a/*", "/a/b*", "*b", "*/b", "*.html", "/a/{*}", "/a/{**}", "/{*}/b", "/{**}/b",
    "/a;x", "/b*",
];
const ASKED: [&str; 14] = [
    "/",
    "/a",
    "/a/",
    "/ab",
    "/a/b",
    "/a/b/",
    "/a/bc",
    "/a/x.html",
    "/b",
    "/b/b",
    "/a;x",
    "/%2561",
    "/a//b",
    "/c/d/b",
];
const HOSTS: [&str; 8] = ["a.x", "a.x:80", "*.x", "*", "a*", "*:81", "[::1]", "10.0.0.1"];
const ASKED_HOSTS: [&str; 7] = ["a.x", "A.X:80", "a.x:81", "b.x", "[::1]:80", "[::1]", "10.0.0.1"];
const METHODS: [&str; 7] = ["GET", "POST", "P*", "*T", "*", "TRACE", "CONNECT"];
const PORTS: [&str; 3] = ["80", "81", "82"];
const VALUES: [&str; 6] = ["v", "w", "v*", "*w", "*", "v,w"];
const REQUEST_PRINCIPALS: [&str; 6] = ["i/s", "i/*", "*/s", "*", "j*", "*t"];
const CLAIMS: [&str; 5] = ["v", "w", "v*", "*w", "*"];
const SNI: [&str; 4] = ["a.x", "*.x", "a*", "*"];
const LINES: [&str; 7] = ["v", "w", "vw", "v, w", "v,w", "", "z"];

fn list(name: &'static str, of: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    let values = prop::collection::vec(prop::sample::select(of), 1..3);
    prop::option::weighted(0.3, values.prop_map(move |values| format!("{name}: {values:?}")))
}

fn joined(parts: Vec<Option<String>>) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{{{}}}", parts.join(", ")))
}

prop_compose! {
    fn source()(
        accounts in prop::bool::weighted(0.2),
        names in (list("principals", &PRINCIPALS), list("notPrincipals", &PRINCIPALS),
            list("namespaces", &NAMESPACES), list("notNamespaces", &NAMESPACES)),
        by_account in (list("serviceAccounts", &ACCOUNTS), list("notServiceAccounts", &ACCOUNTS)),
        rest in (list("trustDomains", &DOMAINS), list("notTrustDomains", &DOMAINS), list("ipBlocks", &NETS),
            list("notIpBlocks", &NETS)),
        tokens in (list("requestPrincipals", &REQUEST_PRINCIPALS), list("notRequestPrincipals", &REQUEST_PRINCIPALS)),
    ) -> String {
        let mut parts = vec![rest.0, rest.1, rest.2, rest.3, tokens.0, tokens.1];
        match accounts {
            true => parts.extend([by_account.0, by_account.1]),
            false => parts.extend([names.0, names.1, names.2, names.3]),
        }
        format!("{{source: {}}}", joined(parts).unwrap_or_else(|| "{principals: [\"*\"]}".to_owned()))
    }
}

prop_compose! {
    fn operation()(
        http in (list("hosts", &HOSTS), list("notHosts", &HOSTS), list("methods", &METHODS), list("notMethods", &METHODS),
            list("paths", &PATHS), list("notPaths", &PATHS)),
        tcp in (list("ports", &PORTS), list("notPorts", &PORTS)),
    ) -> String {
        let parts = vec![http.0, http.1, http.2, http.3, http.4, http.5, tcp.0, tcp.1];
        format!("{{operation: {}}}", joined(parts).unwrap_or_else(|| "{ports: [\"80\"]}".to_owned()))
    }
}

prop_compose! {
    fn condition()(
        (key, of) in prop::sample::select(vec![
            ("request.headers[x-a]", &VALUES[..]), ("request.headers[X-B]", &VALUES[..]), ("source.ip", &NETS[..]),
            ("source.namespace", &NAMESPACES[..]), ("source.principal", &PRINCIPALS[..]), ("destination.port", &PORTS[..]),
            ("request.auth.principal", &REQUEST_PRINCIPALS[..]), ("request.auth.audiences", &CLAIMS[..]),
            ("request.auth.presenter", &CLAIMS[..]), ("request.auth.claims[scope]", &CLAIMS[..]),
            ("request.auth.claims[n][c]", &CLAIMS[..]), ("connection.sni", &SNI[..]),
        ]),
        (first, second, kind) in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..3),
    ) -> String {
        let (value, not) = (first.get(of), second.get(of));
        match kind {
            0 => format!("{{key: {key:?}, values: [{value:?}]}}"),
            1 => format!("{{key: {key:?}, notValues: [{not:?}]}}"),
            _ => format!("{{key: {key:?}, values: [{value:?}], notValues: [{not:?}]}}"),
        }
    }
}

prop_compose! {
    fn rule()(
        from in prop::collection::vec(source(), 0..3),
        to in prop::collection::vec(operation(), 0..3),
        when in prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(condition(), 1..3)],
    ) -> String {
        let list = |name: &str, items: Vec<String>| {
            (!items.is_empty()).then(|| format!("{name}: [{}]", items.join(", ")))
        };
        joined(vec![list("from", from), list("to", to), list("when", when)]).unwrap_or_else(|| "{}".to_owned())
    }
}

prop_compose! {
    fn policy()(
        action in prop_oneof![4 => Just("ALLOW"), 3 => Just("DENY"), 1 => Just("AUDIT")],
        namespace in prop_oneof![4 => Just("shop"), 1 => Just("root"), 1 => Just("other")],
        dry_run in prop::bool::weighted(0.15),
        selector in prop::option::weighted(0.2, prop::sample::select(vec!["orders", "other"])),
        rules in prop::collection::vec(rule(), 0..4),
    ) -> (String, String) {
        let dry_run = dry_run && action != "AUDIT";
        let notes = if dry_run { ", annotations: {istio.io/dry-run: \"true\"}" } else { "" };
        let selector = selector.map(|app| format!("selector: {{matchLabels: {{app: {app}}}}}, ")).unwrap_or_default();
        let rules = match rules.is_empty() {
            true if action == "ALLOW" => String::new(),
            true => ", rules: [{}]".to_owned(),
            false => format!(", rules: [{}]", rules.join(", ")),
        };
        let header = format!("namespace: {namespace}{notes}");
        (header, format!("spec: {{{selector}action: {action}{rules}}}"))
    }
}

fn documents(policies: &[(String, String)], ours: bool) -> String {
    let mut out = String::from(
        "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: d, namespace: root}\nspec: {trustDomains: {aliases: [alias]}}\n",
    );
    for (n, (header, spec)) in policies.iter().enumerate() {
        out.push_str(&format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, {header}}}\n{spec}\n"
        ));
    }
    if ours {
        out.push_str(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: o, namespace: shop}\n\
             spec: {action: Allow, rules: [{name: r, from: [{namespaces: [a]}], to: [{pathPrefix: [/a]}]}]}\n",
        );
    }
    out
}

/// Method, path, host, lines.
type Http = (&'static str, &'static str, Option<&'static str>, Vec<(&'static str, &'static str)>);

#[derive(Clone, Debug)]
struct Asked {
    id: Option<&'static str>,
    address: &'static str,
    port: u16,
    http: Option<Http>,
    /// On a connection without HTTP: opaque (`None`), or TLS with a name or without.
    tls: Option<Option<&'static str>>,
    tokens: TokenSet,
}

prop_compose! {
    fn claims()(
        issuer in prop::sample::select(vec!["i", "j"]),
        subject in prop::option::weighted(0.8, prop::sample::select(vec!["s", "t"])),
        values in prop::collection::vec((
            prop::sample::select(vec!["aud", "azp", "scope", "n"]),
            prop::sample::select(vec![json!("v"), json!("w v"), json!(["v", "w"]), json!([]), json!("")]),
        ), 0..5),
    ) -> Claims {
        let mut object = Map::from_iter([("iss".to_owned(), json!(issuer)), ("exp".to_owned(), json!(2))]);
        object.extend(subject.map(|subject| ("sub".to_owned(), json!(subject))));
        for (name, value) in values {
            let value = if name == "n" { json!({"c": value}) } else { value };
            object.insert(name.to_owned(), value);
        }
        Claims::from_object(object).unwrap()
    }
}

fn tokens() -> impl Strategy<Value = TokenSet> {
    prop_oneof![
        1 => Just(TokenSet::absent()),
        1 => Just(TokenSet::unknown()),
        3 => prop::collection::vec(claims().prop_map(Arc::new), 1..3).prop_map(TokenSet::verified),
    ]
}

prop_compose! {
    fn asked()(
        id in prop::option::weighted(0.85, prop::sample::select(&IDS[..])),
        address in prop::sample::select(vec!["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "fd00::1"]),
        port in prop::sample::select(vec![80_u16, 81, 83]),
        http in prop::option::weighted(0.85, (
            prop::sample::select(vec!["GET", "POST", "PUT", "TRACE", "CONNECT"]),
            prop::sample::select(&ASKED[..]),
            prop::option::weighted(0.9, prop::sample::select(&ASKED_HOSTS[..])),
            prop::collection::vec((prop::sample::select(vec!["x-a", "x-b"]), prop::sample::select(&LINES[..])), 0..4),
        )),
        tls in prop::option::of(prop::option::of(prop::sample::select(vec!["a.x", "b.x", "x"]))),
        tokens in tokens(),
    ) -> Asked {
        Asked { id, address, port, http, tls, tokens }
    }
}

fn scope() -> Scope {
    Scope {
        trust_domain: postern_svid::TrustDomain::parse("home").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: [("app".to_owned(), "orders".to_owned())].into(),
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engines_agree(
        policies in prop::collection::vec(policy(), 0..6),
        ours in prop::bool::weighted(0.2),
        questions in prop::collection::vec(asked(), 30),
    ) {
        let file = SourceFile { name: "p".into(), text: documents(&policies, ours).into_bytes() };
        let generation = load(&[file], &scope(), 3).map_err(|e| TestCaseError::fail(e.to_string()))?;
        for question in &questions {
            let id = question.id.map(|id| SpiffeId::parse(id).unwrap());
            let source = Source { identity: id.as_ref(), address: question.address.parse().unwrap() };
            let parsed = question.http.as_ref().map(|(method, path, host, lines)| {
                let mut fields = HeaderFields::new();
                for (name, value) in lines {
                    fields.push(name, value).unwrap();
                }
                let path = CanonPath::parse(path, &PathOptions::default()).unwrap();
                (CanonMethod::parse(method).unwrap(), path, host.map(|host| CanonHost::parse(host).unwrap()), fields)
            });
            let name = question.tls.flatten().map(|name| CanonHost::parse(name).unwrap());
            let operation = match &parsed {
                None if question.tls.is_some() => Operation::Tls { sni: name.as_ref() },
                None => Operation::Tcp,
                Some((method, path, host, fields)) => Operation::Http {
                    method,
                    path,
                    host: host.as_ref(),
                    headers: (fields.clone() != HeaderFields::new()).then_some(fields as &dyn HeaderLines),
                    upgrade: None,
                    tokens: question.tokens.at(UNIX_EPOCH),
                },
            };
            let connection = generation.connection(source);
            let verdict = generation.decide(&connection, question.port, operation);
            let expected = generation.decide_by_reference(source, question.port, operation);
            prop_assert_eq!(verdict, expected, "{:?}", question);
            if let Stage::Allow(certain) | Stage::Deny(certain) = connection.stage() {
                prop_assert_eq!(certain, expected, "stage {:?}", question);
            }
            let explained = generation.explain(source, question.port, operation);
            if let Some(miss) = explained.nearest {
                prop_assert!(!miss.failed.is_empty(), "{:?}", question);
            }
        }
    }
}
