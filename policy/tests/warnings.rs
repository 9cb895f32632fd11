//! What loads, and probably does not say what was meant: told at its place, with the way out.

use postern_policy::{Scope, SourceFile, load};
use postern_svid::TrustDomain;

/// What is told of a set, one finding after the other. Every document stands in a file of its own: `0.yaml` and so on.
fn warnings(documents: &[String]) -> Vec<String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: None,
    };
    let file =
        |(n, text): (usize, &String)| SourceFile { name: format!("{n}.yaml"), text: text.as_bytes().into() };
    let files: Vec<SourceFile> = documents.iter().enumerate().map(file).collect();
    let generation = load(&files, &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    generation.warnings().iter().map(ToString::to_string).collect()
}

fn document(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn policy(namespace: &str, target: &str, rule: &str) -> String {
    document("AccessPolicy", "p", namespace, &format!("{target}action: Allow, rules: [{{name: r, {rule}}}]"))
}

fn service(name: &str, namespace: &str, ports: &str) -> String {
    let spec = format!(
        "identity: spiffe://td/ns/{namespace}/sa/{name}, ports: [{ports}], endpoints: [{{address: 10.0.0.1}}]"
    );
    document("Service", name, namespace, &spec)
}

#[test]
fn exclusions_of_nobody() {
    let aliases = document("MeshDefaults", "d", "root", "trustDomains: {aliases: [old]}");
    for (from, place, help) in [
        (
            "{trustDomain: other, not: {namespaces: [x]}}",
            "0.yaml:4:87",
            "write `trustDomain: other` into `not` too",
        ),
        ("{trustDomain: other, not: {serviceAccounts: [x/y]}}", "0.yaml:4:", "`trustDomain: other` into"),
        (
            "{trustDomain: other, namespaces: [x], not: {serviceAccounts: [x/y]}}",
            "0.yaml:4:",
            "`trustDomain: other` into",
        ),
        (
            "{trustDomain: other, not: {trustDomain: td, namespaces: [x]}}",
            "0.yaml:4:",
            "name the trust domain of the peers",
        ),
        ("{trustDomain: other, not: {trustDomain: td}}", "0.yaml:4:", "name the trust domain of the peers"),
        (
            "{trustDomain: other, not: {spiffe: [\"spiffe://td/ns/x/sa/y\"]}}",
            "0.yaml:4:",
            "name the trust domain of the peers",
        ),
        ("{namespaces: [x], not: {trustDomain: other}}", "0.yaml:4:", "or leave it out of `not`"),
        (
            "{namespaces: [x], not: {spiffe: [\"spiffe://other/ns/x/sa/y\"]}}",
            "0.yaml:4:",
            "or leave it out of `not`",
        ),
        (
            "{spiffe: [\"spiffe://other/ns/x/sa/y\"], not: {namespaces: [x]}}",
            "0.yaml:4:",
            "write the peers' `trustDomain` into",
        ),
        (
            "{trustDomain: other, not: {namespaces: [x], cidrs: [10.0.0.0/8]}}",
            "0.yaml:4:",
            "`trustDomain: other` into",
        ),
    ] {
        for text in [
            policy("shop", "", &format!("from: [{from}]")),
            policy("shop", "", &format!("from: [{from}]")).replace("Allow", "Deny"),
        ] {
            let told = warnings(&[text, aliases.clone()]);
            let [one] = &told[..] else { panic!("{from}: {told:#?}") };
            let words = ["this excludes nobody", help, "help:"];
            assert!(words.iter().all(|word| one.contains(word)), "{from}: {one}");
            if one.contains("action: Allow") {
                assert!(one.contains(place), "{from}: {one}");
            }
        }
    }
    for from in [
        "{trustDomain: other, not: {trustDomain: other, namespaces: [x]}}",
        "{trustDomain: td, not: {namespaces: [x]}}",
        "{trustDomain: old, not: {namespaces: [x]}}",
        "{namespaces: [x], not: {trustDomain: old, namespaces: [x]}}",
        "{namespaces: [x], not: {serviceAccounts: [x/y]}}",
        "{namespaces: [x], not: {spiffe: [\"spiffe://old/ns/x/sa/y\"]}}",
        "{namespaces: [x], not: {spiffe: [\"spiffe://other/ns/x/sa/y\", \"spiffe://td/ns/x/sa/y\"]}}",
        "{cidrs: [10.0.0.0/8], not: {namespaces: [x]}}",
        "{cidrs: [10.0.0.0/8], not: {trustDomain: other}}",
        "{not: {namespaces: [x], spiffe: [\"spiffe://other/ns/x/sa/y\"]}}",
        "{trustDomain: other, not: {cidrs: [10.0.0.0/8]}}",
    ] {
        let told = warnings(&[policy("shop", "", &format!("from: [{from}]")), aliases.clone()]);
        assert!(!told.iter().any(|one| one.contains("excludes nobody")), "{from}: {told:#?}");
    }
}

#[test]
fn ports_to_which_no_service_leads() {
    let orders = service(
        "orders",
        "shop",
        "{port: 80, protocol: http, targetPort: 8080}, {port: 9090, protocol: tcp}",
    );
    let web = service("web", "edge", "{port: 443, protocol: tls, targetPort: 8443}");
    let of = |text: &str| vec![text.to_owned(), orders.clone(), web.clone()];
    let me = "from: [{namespaces: [shop]}]";
    for (text, words) in [
        (
            policy("shop", "target: {ports: [80]}, ", me),
            [
                "0.yaml:4:25",
                "leads to port 80 of a workload",
                "it is a port of the Service `orders`, which leads to 8080: write `8080`",
            ],
        ),
        (
            policy("shop", "", "to: [{ports: [8080, 81]}]"),
            [
                "0.yaml:4:61",
                "no Service of `shop` leads to port 81",
                "they lead to 8080, 9090; nothing is wrong if",
            ],
        ),
        (
            policy("shop", "", "to: [{ports: [8443]}]"),
            ["0.yaml:4:", "no Service of `shop` leads to port 8443", "they lead to 8080, 9090"],
        ),
        (
            policy("root", "target: {namespaces: [shop, edge]}, ", "to: [{ports: [443]}]"),
            [
                "0.yaml:4:",
                "no Service of these namespaces leads to port 443",
                "Service `web`, which leads to 8443",
            ],
        ),
        (
            policy("shop", "", "to: [{ports: [80]}]").replace("Allow", "Deny"),
            ["0.yaml:4:", "leads to port 80", "write `8080`"],
        ),
        (
            document("RateLimitPolicy", "l", "shop", "limits: [{name: l, rate: 1/s, match: {ports: [80]}}]"),
            ["0.yaml:4:", "leads to port 80", "write `8080`"],
        ),
        (
            document("RateLimitPolicy", "l", "shop", "target: {ports: [81]}, limits: [{name: l, rate: 1/s}]"),
            ["0.yaml:4:", "leads to port 81", "help:"],
        ),
    ] {
        let told = warnings(&of(&text));
        let [one] = &told[..] else { panic!("{text}: {told:#?}") };
        assert!(words.iter().all(|word| one.contains(word)), "{text}: {one}");
        // Told once, however often it is named, and of the second document of a file too.
        let twice = text.replace("rules: [", "rules: [{name: again, to: [{ports: [8080]}]}, ");
        let file = format!(
            "{}---\n{twice}",
            document(
                "PolicyTest",
                "t",
                "shop",
                "workload: {port: 80}, cases: [{name: c, request: {from: web, path: /}, expect: {deny: default}}]"
            )
        );
        let told = warnings(&of(&file));
        assert_eq!(told.len(), 1, "{file}: {told:#?}");
    }
    for (text, services) in [
        // The workload's port, an outside service's, and where nothing is known of the namespace.
        (policy("shop", "target: {ports: [8080]}, ", "to: [{ports: [9090, 8080]}]"), true),
        (policy("shop", "", "to: [{ports: [81]}]"), false),
        (policy("other", "", "to: [{ports: [81]}]"), true),
        (policy("root", "target: {all: true}, ", "to: [{ports: [81]}]"), true),
        (policy("root", "target: {namespaces: [shop, other]}, ", "to: [{ports: [81]}]"), true),
        (policy("root", "target: {namespaces: [shop, edge]}, ", "to: [{ports: [8443, 9090]}]"), true),
        (policy("shop", "", "to: [{not: {ports: [81]}}]"), true),
    ] {
        let set = if services { of(&text) } else { vec![text.clone()] };
        assert_eq!(warnings(&set), Vec::<String>::new(), "{text}");
    }
    let outside = document(
        "Service",
        "api",
        "shop",
        "external: true, hosts: [api.x.example], ports: [{port: 443, protocol: tls}]",
    );
    assert!(warnings(&[policy("shop", "", "to: [{ports: [81]}]"), outside]).is_empty());
}

/// A name of the mesh is looked for in the mesh first.
#[test]
fn hosts_of_the_mesh_that_stand_outside_of_it() {
    let outside = |name: &str, host: &str| {
        let spec = format!("external: true, hosts: [{host}], ports: [{{port: 443, protocol: tls}}]");
        document("Service", name, "shop", &spec)
    };
    let orders = service("orders", "shop", "{port: 80, protocol: http}");
    for host in ["orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local"] {
        let said = warnings(&[orders.clone(), outside("partner", host)]);
        assert_eq!(said.len(), 1, "{host}: {said:?}");
        let words = [
            &format!("`{host}` is the name of the Service shop/orders"),
            "1.yaml:3:18",
            "rename that Service",
        ];
        assert!(words.iter().all(|word| said[0].contains(*word)), "{host}: {said:?}");
    }
    for (name, host) in
        [("partner", "orders.other"), ("partner", "api.orders.shop"), ("partner", "partner.shop")]
    {
        assert!(warnings(&[orders.clone(), outside(name, host)]).is_empty(), "{host}");
    }
}

#[test]
fn conditions_on_tokens_that_nobody_issues() {
    let rule = "to: [{ports: [80]}], when: {cel: 'jwt.level == 1'}";
    let of = |action: &str| policy("shop", "", rule).replace("action: Allow", &format!("action: {action}"));
    for (action, outcome) in [
        ("Allow", "never matches in this Allow"),
        ("Deny", "always fires in this Deny"),
        ("Audit", "is always marked"),
    ] {
        let found = warnings(&[of(action)]).join("\n");
        for part in [
            "no issuer of tokens is configured",
            outcome,
            "0.yaml:4:",
            "add it to MeshDefaults in the namespace `root`",
        ] {
            assert!(found.contains(part), "{action}, {part}: {found}");
        }
    }
    let issuer = document(
        "MeshDefaults",
        "d",
        "root",
        "jwt: {issuers: [{issuer: i, audiences: [a], jwks: {file: /keys}}]}",
    );
    let about_tokens = |documents: &[String]| warnings(documents).join("\n").contains("no issuer of tokens");
    assert!(!about_tokens(&[of("Deny"), issuer]));
    assert!(!about_tokens(&[policy("shop", "", "to: [{ports: [80]}], when: {cel: 'request.port == 80'}")]));
    let istio = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: shop}\n\
                 spec: {jwtRules: [{issuer: i, jwksUri: 'https://i/keys'}]}\n";
    assert!(!about_tokens(&[of("Deny"), istio.to_owned()]));
}

#[test]
fn services_of_other_trust_domains() {
    let own = service("orders", "shop", "{port: 80, protocol: http}");
    assert!(warnings(std::slice::from_ref(&own)).is_empty());
    let told = warnings(&[own.replace("spiffe://td/", "spiffe://partner/")]);
    let [one] = &told[..] else { panic!("{told:#?}") };
    for word in
        ["0.yaml:4:18", "another trust domain", "`td`", "while the control plane federates with `partner`"]
    {
        assert!(one.contains(word), "{word}: {one}");
    }
}
