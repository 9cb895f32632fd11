//! What is refused, and what only loads.

use super::*;

#[test]
fn refused() {
    for (spec, expected) in [
        ("action: CUSTOM, rules: [{}]", "external authorizer"),
        ("action: allow, rules: [{}]", "did you mean `ALLOW`"),
        ("action: DENY", "without `rules`"),
        ("rules: []", "`rules` is empty"),
        ("targetRef: {kind: Gateway}, rules: [{}]", "not attached"),
        ("targetRefs: [{kind: Gateway}], rules: [{}]", "not attached"),
        ("rule: [{}]", "unknown field `rule`"),
        ("rules: [{form: []}]", "unknown field `form`"),
        ("rules: [{from: []}]", "`from` is empty"),
        ("rules: [{from: [{source: {}}]}]", "`source` is empty"),
        ("rules: [{to: [{operation: {}}]}]", "`operation` is empty"),
        ("rules: [{from: [{source: {principals: []}}]}]", "`principals` is empty"),
        ("rules: [{from: [{source: {principals: [\"spiffe://a/b\"]}}]}]", "begins with a scheme"),
        ("rules: [{from: [{source: {principals: [a b]}}]}]", "not a SPIFFE id"),
        ("rules: [{from: [{source: {serviceAccounts: [\"a*\"]}}]}]", "not a service account"),
        ("rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]", "cannot stand beside"),
        ("rules: [{from: [{source: {ipBlocks: [10.0.0.1/8]}}]}]", "bits behind its mask"),
        ("rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]", "not a network"),
        ("rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]", "original client"),
        ("rules: [{to: [{operation: {ports: [\"0\"]}}]}]", "no port"),
        ("rules: [{to: [{operation: {ports: [http]}}]}]", "no port"),
        ("rules: [{to: [{operation: {paths: [/a//b]}}]}]", "write `/a/b`"),
        ("rules: [{to: [{operation: {paths: [/a//b*]}}]}]", "write `/a/b*`"),
        ("rules: [{to: [{operation: {paths: [\"*//b\"]}}]}]", "write `*/b`"),
        ("rules: [{to: [{operation: {paths: [a*]}}]}]", "begins with '/'"),
        ("rules: [{to: [{operation: {paths: [\"/{id}\"]}}]}]", "braces"),
        ("rules: [{to: [{operation: {paths: [\"/{**}/{*}\"]}}]}]", "behind `{**}`"),
        ("rules: [{to: [{operation: {hosts: [\"a b\"]}}]}]", "no request has the host"),
        ("rules: [{to: [{operation: {hosts: [shop.example.]}}]}]", "write `shop.example`"),
        ("rules: [{to: [{operation: {methods: [\"G T\"]}}]}]", "not a method"),
        ("rules: [{when: [{key: request.header, values: [a]}]}]", "unknown attribute"),
        ("rules: [{when: [{key: source.namespac, values: [a]}]}]", "did you mean `source.namespace`"),
        ("rules: [{when: [{key: source.namespace}]}]", "asks for nothing"),
        ("rules: [{when: [{key: \"request.headers[:path]\", values: [a]}]}]", "write `paths`"),
        ("rules: [{when: [{key: \"request.headers[host]\", values: [a]}]}]", "write `hosts`"),
        ("rules: [{when: [{key: \"request.headers[x_a]\", values: [a]}]}]", "never reach"),
        ("rules: [{when: [{key: destination.ip, values: [10.0.0.1]}]}]", "by its labels"),
        ("rules: [{when: [{key: connection.sni, values: [\"a.x:80\"]}]}]", "no server name"),
        ("rules: [{when: [{key: \"request.auth.claims\", values: [a]}]}]", "unknown attribute"),
        ("rules: [{when: [{key: \"request.auth.claims[]\", values: [a]}]}]", "is empty"),
        ("rules: [{when: [{key: \"request.auth.claims[a]b\", values: [a]}]}]", "unknown attribute"),
        (
            "rules: [{when: [{key: request.auth.audience, values: [a]}]}]",
            "did you mean `request.auth.audiences`",
        ),
        ("rules: [{when: [{key: remote.ip, values: [10.0.0.1]}]}]", "original client"),
    ] {
        let said = errors(spec);
        assert!(said.contains(expected), "{spec}\n{said}");
        assert!(said.contains("istio.yaml:5:"), "{spec}\n{said}");
    }
    let version = policy("p", "shop", "").replace("istio.io/v1", "istio.io/v1alpha1");
    assert!(read(&version).unwrap_err().contains("write `security.istio.io/v1`"));
    let old = policy("p", "shop", "").replace("istio.io/v1", "istio.io/v1beta1");
    assert!(read(&old).is_ok());
}

#[test]
fn peer_authentications() {
    let document = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    for (spec, warned) in [
        ("", false),
        ("mtls: {}", false),
        ("mtls: {mode: STRICT}", false),
        ("mtls: {mode: UNSET}", false),
        ("mtls: {mode: PERMISSIVE}", true),
        ("mtls: {mode: DISABLE}", true),
        ("selector: {matchLabels: {app: orders}}, portLevelMtls: {80: {mode: DISABLE}}", true),
    ] {
        let generation = read(&document(spec)).unwrap();
        assert_eq!(generation.warnings().to_string().contains("unauthenticated: true"), warned, "{spec}");
        // It opens nothing.
        assert!(!allows(&generation, &ASK) && !allows(&generation, &Ask { id: "-", ..ASK }), "{spec}");
    }
    for (spec, expected) in [
        ("mtls: {mode: strict}", "did you mean `STRICT`"),
        ("portLevelMtls: {80: {mode: STRICT}}", "needs a `selector`"),
        ("selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}", "no port"),
        ("selector: {matchLabels: {a: b}}, portLevelMtls: {}", "is empty"),
    ] {
        let said = read(&document(spec)).unwrap_err();
        assert!(said.contains(expected), "{spec}\n{said}");
    }
}
