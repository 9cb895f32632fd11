//! How ports read paths, what rules may name then, and where a raw path is refused.

use std::collections::BTreeMap;

use postern_policy::norm::{CanonPath, EscapedSlashes, NormError, PathOptions};
use postern_policy::{Generation, PortPaths, Scope, SourceFile, Workload, load};
use postern_svid::TrustDomain;

fn try_load(text: &str) -> Result<Generation, String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "npm".into(),
            labels: BTreeMap::new(),
        }),
    };
    load(&[SourceFile { name: "p.yaml".into(), text: text.as_bytes().to_vec() }], &scope, 1)
        .map_err(|errors| errors.to_string())
}

const HEAD: &str = "apiVersion: postern.dev/v1alpha1\n";

fn service(port: &str) -> String {
    format!(
        "{HEAD}kind: Service\nmetadata: {{name: npm, namespace: shop}}\nspec:\n  identity: spiffe://td/ns/shop/sa/npm\n  \
         ports: [{{port: 80, {port}}}]\n  endpoints: [{{address: 127.0.0.1}}]\n"
    )
}

/// A policy whose rule stands on line 4.
fn policy(action: &str, rest: &str, to: &str) -> String {
    format!(
        "{HEAD}kind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: {action}{rest}, rules: \
         [{{name: r, to: [{to}]}}]}}\n"
    )
}

fn defaults(mode: &str) -> String {
    format!(
        "{HEAD}kind: MeshDefaults\nmetadata: {{name: d, namespace: root}}\nspec: {{http: {{escapedSlashes: {mode}}}}}\n"
    )
}

#[test]
fn a_port_overrides_the_default() {
    let of = |port: &str, default: &str| {
        let generation = try_load(&format!("{}---\n{}", service(port), defaults(default))).expect("it loads");
        let service = generation.services().by_name("shop", "npm").expect("it is there");
        service.port(80).expect("it is there").paths.options(generation.defaults().path)
    };
    let options = |escaped_slashes, preserve_raw| PathOptions { escaped_slashes, preserve_raw };
    assert_eq!(of("protocol: http", "Decode"), options(EscapedSlashes::Decode, false));
    assert_eq!(of("protocol: http, escapedSlashes: Keep", "Decode"), options(EscapedSlashes::Keep, false));
    assert_eq!(of("protocol: grpc, escapedSlashes: Reject", "Keep"), options(EscapedSlashes::Reject, false));
    assert_eq!(of("protocol: http2, preserveRawPath: true", "Keep"), options(EscapedSlashes::Keep, true));
    assert_eq!(of("protocol: http, preserveRawPath: false", "Reject"), PathOptions::default());
    // What is said about a port is shown with it, and what is not said is not.
    let shown = |paths: PortPaths| serde_json::to_string(&paths).expect("it is JSON");
    assert_eq!(shown(PortPaths::default()), "{}");
    let both = PortPaths { escaped_slashes: Some(EscapedSlashes::Keep), preserve_raw_path: true };
    assert_eq!(shown(both), r#"{"escapedSlashes":"Keep","preserveRawPath":true}"#);
}

#[test]
fn what_a_port_cannot_say() {
    for (port, words) in [
        ("protocol: http, escapedSlashes: keep", ["p.yaml:6:54", "unknown value"]),
        ("protocol: tcp, escapedSlashes: Keep", ["p.yaml:6:53", "a port of protocol tcp has no paths"]),
        ("protocol: tls, preserveRawPath: true", ["p.yaml:6:54", "a port of protocol tls has no paths"]),
        (
            "protocol: http, escapedSlashes: Decode, preserveRawPath: true",
            ["p.yaml:6:54", "write `Keep` to take"],
        ),
        ("protocol: http, preserveRawPath: yes please", ["p.yaml:6:", "preserveRawPath"]),
    ] {
        let said = try_load(&service(port)).expect_err(port);
        assert!(words.iter().all(|word| said.contains(word)), "{port}: {said}");
    }
}

#[test]
fn a_rule_names_paths_as_some_port_of_the_set_reads_them() {
    let loaded = |port: &str, default: &str, path: &str| {
        let policy = policy("Deny", "", &format!("{{pathPrefix: [\"{path}\"], ports: [8080]}}"));
        try_load(&format!("{policy}---\n{}---\n{}", service(port), defaults(default)))
    };
    let (plain, keep) = ("protocol: http", "protocol: http, escapedSlashes: Keep");
    let decode = "protocol: http, escapedSlashes: Decode";
    for (port, default, path, expected) in [
        (plain, "Reject", "/a%2Fb", "a Service's port with `escapedSlashes: Keep` has such paths"),
        (plain, "Decode", "/a%2Fb", "write `/a/b`"),
        (plain, "Keep", "/a%2Fb", ""),
        (keep, "Reject", "/a%2Fb", ""),
        (keep, "Decode", "/a%5Cb", ""),
        (keep, "Reject", "/a%2fb", "write `/a%2Fb`"),
        (keep, "Reject", "/a%00b", "escaped control character"),
        (decode, "Reject", "/a%2Fb", "write `/a/b`"),
        (decode, "Keep", "/a%2Fb", ""),
        (keep, "Reject", "/a/b", ""),
    ] {
        match loaded(port, default, path) {
            Ok(_) => assert_eq!(expected, "", "{port} {default} {path} was taken"),
            Err(said) => assert!(
                !expected.is_empty() && said.contains(expected) && said.contains("p.yaml:4:"),
                "{port} {default} {path}: {said}"
            ),
        }
    }
}

#[test]
fn who_writes_a_kept_slash_hears_where_it_says_nothing() {
    let warned = |rest: &str, to: &str, default: &str| {
        let service = service("protocol: http, escapedSlashes: Keep");
        let policy = policy("Allow", rest, to);
        let generation = try_load(&format!("{policy}---\n{service}---\n{}", defaults(default)));
        generation
            .expect("it loads")
            .warnings()
            .to_string()
            .contains("only at ports with `escapedSlashes: Keep`")
    };
    for (rest, to, default, expected) in [
        ("", "{paths: [\"/a%2Fb\"]}", "Reject", true),
        ("", "{pathPrefix: [\"/a%5Cb\"]}", "Decode", true),
        ("", "{not: {paths: [\"/a%2Fb\"]}}", "Reject", true),
        ("", "{paths: [\"/a%2Fb\"]}", "Keep", false),
        ("", "{paths: [\"/a%2Fb\"], ports: [8080]}", "Reject", false),
        (", target: {ports: [8080]}", "{paths: [\"/a%2Fb\"]}", "Reject", false),
        ("", "{paths: [\"/a/b\"]}", "Reject", false),
    ] {
        assert_eq!(warned(rest, to, default), expected, "{rest} {to} {default}");
    }
}

#[test]
fn a_raw_path_is_refused_where_rules_speak_of_paths() {
    let raw = PathOptions { preserve_raw: true, ..PathOptions::default() };
    let path = |text: &str| CanonPath::parse(text, &raw).expect("it has a canonical form");
    let refused = |rest: &str, action: &str, to: &str, port: u16, text: &str| {
        let generation = try_load(&policy(action, rest, to)).expect("it loads");
        generation.check_path(port, &path(text)) == Err(NormError::PathRaw)
    };
    for (rest, action, to, port, expected) in [
        ("", "Allow", "{methods: [GET]}", 8080, false),
        ("", "Allow", "{hosts: [npm.shop]}", 8080, false),
        ("", "Allow", "{paths: [/a]}", 8080, true),
        ("", "Deny", "{pathPrefix: [/a]}", 8080, true),
        ("", "Deny", "{grpc: [a.B/C]}", 8080, true),
        ("", "Allow", "{not: {paths: [/a]}}", 8080, true),
        ("", "Allow", "{not: {methods: [PUT]}}", 8080, false),
        ("", "Allow", "{paths: [/a], ports: [9090]}", 8080, false),
        ("", "Allow", "{paths: [/a], ports: [9090]}", 9090, true),
        (", target: {ports: [9090]}", "Allow", "{paths: [/a]}", 8080, false),
        (", target: {ports: [9090]}", "Allow", "{paths: [/a]}", 9090, true),
        (", target: {ports: [9090]}", "Allow", "{paths: [/a], ports: [8080]}", 8080, false),
        (", target: {selector: {app: other}}", "Allow", "{paths: [/a]}", 8080, false),
        // What changes nothing makes no request a bad one.
        ("", "Audit", "{paths: [/a]}", 8080, false),
        (", enforcement: Shadow", "Deny", "{paths: [/a]}", 8080, false),
    ] {
        assert_eq!(refused(rest, action, to, port, "/x//y"), expected, "{rest} {action} {to} {port}");
        assert!(!refused(rest, action, to, port, "/x/y"), "a canonical path is what is forwarded");
    }
}

#[test]
fn what_is_preserved_is_every_byte_and_what_is_judged_is_canonical() {
    let keep = PathOptions { escaped_slashes: EscapedSlashes::Keep, preserve_raw: true };
    for (raw, canonical) in [
        ("/b//k?X-Amz-Signature=%2f", "/b/k"),
        ("/b/%7ek", "/b/~k"),
        ("/b/a%2fb?", "/b/a%2Fb"),
        ("/b/x/../k", "/b/k"),
        ("/b/a|b", "/b/a%7Cb"),
    ] {
        let path = CanonPath::parse(raw, &keep).expect("it has a canonical form");
        assert_eq!((path.path_and_query(), path.path(), path.is_raw()), (raw, canonical, true));
        assert!(path.is_changed());
        // Without the switch the canonical form goes on.
        let options = PathOptions { preserve_raw: false, ..keep };
        let path = CanonPath::parse(raw, &options).expect("it has a canonical form");
        assert!(path.path_and_query().starts_with(canonical) && !path.is_raw());
    }
    let path = CanonPath::parse("/b/k?a//b", &keep).expect("it has a canonical form");
    assert_eq!((path.path_and_query(), path.is_raw()), ("/b/k?a//b", false));
    // What has no canonical form is not judged, so it is not forwarded.
    for bad in ["/..", "/a%00", "/a%zz", "/a;x/..;y", "/a#b", "a"] {
        assert!(CanonPath::parse(bad, &keep).is_err(), "{bad}");
    }
    let reject = PathOptions { escaped_slashes: EscapedSlashes::Reject, ..keep };
    assert_eq!(CanonPath::parse("/a%2Fb", &reject), Err(NormError::PathSlash));
}
