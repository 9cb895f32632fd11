//! The path canonicaliser: a fixed point, canonical in every reading; and both engines answer alike for what comes out.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postern_policy::norm::{CanonMethod, CanonPath, EscapedSlashes, PathOptions};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};

const RULES: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: allow, namespace: a}
spec:
  action: Allow
  rules:
  - {name: open, from: [{namespaces: [a]}], to: [{paths: ["/", "/a/{*}", "/{**}/b", "/{*}/c/{**}"]}, {pathPrefix: [/a/b, /x]}]}
  - {name: get, to: [{methods: [GET, TRACE]}]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: deny, namespace: a}
spec:
  action: Deny
  rules:
  - {name: admin, from: [{not: {namespaces: [ops]}}], to: [{pathPrefix: [/admin]}, {paths: ["/a/{*}/admin", /secret]}]}
"#;

static GENERATION: LazyLock<Generation> = LazyLock::new(|| {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "a".into(),
            service_account: "a".into(),
            labels: Default::default(),
        }),
    };
    load(&[SourceFile { name: "rules".into(), text: RULES.into() }], &scope, 1).expect("a literal")
});

fuzz_target!(|data: &[u8]| {
    for escaped_slashes in [EscapedSlashes::Reject, EscapedSlashes::Decode, EscapedSlashes::Keep] {
        let options = PathOptions { escaped_slashes, ..PathOptions::default() };
        let Ok(path) = CanonPath::parse(data, &options) else { continue };
        let raw = CanonPath::parse(data, &PathOptions { preserve_raw: true, ..options }).expect("it parsed");
        assert_eq!(raw.path_and_query().as_bytes(), data, "a preserved path is what came");
        assert!(raw.views().eq(path.views()) && raw.is_raw() == path.is_changed());
        let again = CanonPath::parse(path.path_and_query(), &options).expect("canonical text parses");
        assert_eq!(again.path_and_query(), path.path_and_query());
        assert!(!again.is_changed());
        assert!(again.views().eq(path.views()));
        for view in path.views() {
            assert!(view.starts_with('/'));
            for bad in ["//", "/./", "/../", "/..;", "/.;", "/..%3B", "\\", "%2e", "%2E", "%61", "%2f", "%5c"]
            {
                assert!(!view.contains(bad), "{view}");
            }
            assert!(!view.ends_with("/.") && !view.ends_with("/.."), "{view}");
        }
        judge(&path);
    }
});

fn judge(path: &CanonPath) {
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").expect("a literal");
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for identity in [None, Some(&id)] {
        let source = Source { identity, address };
        let connection = GENERATION.connection(source);
        for method in ["GET", "POST", "TRACE"] {
            let method = CanonMethod::parse(method).expect("a literal");
            let operation = Operation::http(&method, path);
            let verdict = GENERATION.decide(&connection, 80, operation);
            assert_eq!(verdict, GENERATION.decide_by_reference(source, 80, operation), "{path}");
        }
    }
}
