//! Whose word comes first, what is only tried, and what is only marked.

use std::collections::BTreeMap;

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Explanation, Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};

fn generation(policies: &[&str]) -> Generation {
    let text: Vec<String> = policies
        .iter()
        .enumerate()
        .map(|(n, policy)| {
            let (namespace, spec) = policy.split_once(": ").expect("namespace and spec");
            format!(
                "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
            )
        })
        .collect();
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: text.join("---\n").into_bytes() };
    load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"))
}

fn ask(generation: &Generation, path: &str) -> Explanation {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
    let get = CanonMethod::get();
    let operation = Operation::http(&get, &path);
    let explained = generation.explain(source, 8080, operation);
    assert_eq!(explained.verdict, generation.decide_by_reference(source, 8080, operation), "{path}");
    explained
}

/// `effect by rule`, as short as a table wants it.
fn short(explained: &Explanation) -> String {
    let rule = match &explained.rule {
        Some(rule) => format!("{}/{}", rule.document, rule.rule),
        None => "nothing".to_owned(),
    };
    format!("{} by {rule}", if explained.verdict.is_allowed() { "allowed" } else { "denied" })
}

const PLATFORM: &str = "root: tier: Platform, target: {all: true}, action: ";

#[test]
fn the_first_tier_that_speaks_decides() {
    let platform_deny = format!("{PLATFORM}Deny, rules: [{{name: guard, to: [{{pathPrefix: [/admin]}}]}}]");
    let platform_allow = format!("{PLATFORM}Allow, rules: [{{name: probe, to: [{{paths: [/health]}}]}}]");
    let generation = generation(&[
        "shop: tier: Baseline, action: Allow, rules: [{name: same, from: [{namespaces: [shop]}]}]",
        "shop: action: Allow, rules: [{name: all}]",
        "shop: action: Deny, rules: [{name: some, to: [{paths: [/health, /secret]}]}]",
        "shop: tier: Baseline, action: Deny, rules: [{name: late}]",
        &platform_deny,
        &platform_allow,
    ]);
    for (path, expected) in [
        ("/admin/x", "denied by p4/guard"),
        // The platform's Allow stands above an App's Deny ...
        ("/health", "allowed by p5/probe"),
        ("/secret", "denied by p2/some"),
        // ... and everybody's Allow above the Deny of the baseline.
        ("/", "allowed by p1/all"),
        // One reading is everybody's, the other the platform's: the stricter answer wins.
        ("/admin;x", "denied by p4/guard"),
    ] {
        assert_eq!(short(&ask(&generation, path)), expected, "{path}");
    }
}

#[test]
fn the_baseline_speaks_where_nobody_else_does() {
    let generation = generation(&[
        "shop: tier: Baseline, action: Allow, rules: [{name: same, from: [{namespaces: [shop]}], to: [{pathPrefix: [/a]}]}]",
        "shop: tier: Baseline, action: Deny, rules: [{name: no, to: [{pathPrefix: [/a/b]}]}]",
        "shop: action: Allow, rules: [{name: one, to: [{paths: [/a/b/c]}]}]",
    ]);
    assert_eq!(short(&ask(&generation, "/a")), "allowed by p0/same");
    assert_eq!(short(&ask(&generation, "/a/b")), "denied by p1/no");
    assert_eq!(short(&ask(&generation, "/a/b/c")), "allowed by p2/one");
    assert_eq!(short(&ask(&generation, "/b")), "denied by nothing");
}

#[test]
fn a_shadow_changes_nothing_and_says_what_it_would() {
    let generation = generation(&[
        "shop: action: Allow, rules: [{name: all, to: [{pathPrefix: [/v1]}]}]",
        "shop: enforcement: Shadow, action: Deny, rules: [{name: tighter, to: [{pathPrefix: [/v1/x]}]}]",
        "shop: enforcement: Shadow, action: Allow, rules: [{name: wider, to: [{pathPrefix: [/v2]}]}]",
    ]);
    for (path, expected, shadow) in [
        ("/v1/y", "allowed by p0/all", None),
        ("/v1/x", "allowed by p0/all", Some((false, "tighter"))),
        ("/v2", "denied by nothing", Some((true, "wider"))),
        ("/v3", "denied by nothing", None),
    ] {
        let explained = ask(&generation, path);
        assert_eq!(short(&explained), expected, "{path}");
        let would = explained
            .shadow
            .as_ref()
            .map(|shadow| (shadow.allowed, shadow.rule.as_ref().map_or("", |rule| &*rule.rule)));
        assert_eq!(would, shadow, "{path}");
        assert_eq!(explained.to_string().contains("in the shadow"), shadow.is_some(), "{explained}");
    }
    // A shadow Allow is no advice: nothing there would be obeyed.
    assert!(!ask(&generation, "/v3").to_string().contains("wider"), "{}", ask(&generation, "/v3"));
}

#[test]
fn an_audit_marks_and_does_nothing_else() {
    let generation = generation(&[
        "shop: action: Audit, rules: [{name: writes, to: [{pathPrefix: [/v1]}]}]",
        "shop: action: Allow, rules: [{name: all, to: [{paths: [/v1]}]}]",
    ]);
    let (marked, denied) = (ask(&generation, "/v1"), ask(&generation, "/v1/x"));
    assert_eq!(short(&marked), "allowed by p1/all");
    assert_eq!(short(&denied), "denied by nothing");
    for explained in [marked, denied] {
        assert!(explained.to_string().contains("audited by rule shop/p0/writes"), "{explained}");
    }
    assert_eq!(ask(&generation, "/").audit, None);
}
