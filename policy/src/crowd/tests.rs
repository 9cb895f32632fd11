use super::*;
use crate::diagnostic::SourceFile;
use crate::generation::Generation;
use crate::load::load;
use crate::verdict::{Scope, Workload};

/// Rules of one document for each spec: `action: …` and the rules, where `N` counts from 0.
fn generation(specs: &[(&str, &str, usize)]) -> Generation {
    let mut text = String::new();
    for (at, (head, rule, count)) in specs.iter().enumerate() {
        text.push_str(&format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{at}, namespace: shop}}\nspec:\n  {head}\n  rules:\n"
        ));
        for n in 0..*count {
            text.push_str(&format!("  - {{name: r{n}, {}}}\n", rule.replace('N', &n.to_string())));
        }
    }
    loaded(text)
}

fn loaded(text: String) -> Generation {
    let scope = Scope {
        trust_domain: postern_svid::TrustDomain::parse("td").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: Default::default(),
        }),
    };
    let file = SourceFile { name: "a.yaml".into(), text: text.into_bytes() };
    load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"))
}

/// One AuthorizationPolicy, whose sources are as told.
fn of_istio(source: &str, count: usize) -> Generation {
    let mut text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  rules:\n".to_owned();
    for n in 0..count {
        text.push_str(&format!("  - from: [{{source: {{{}}}}}]\n", source.replace('N', &n.to_string())));
    }
    loaded(text)
}

/// Size and key of each crowd.
fn found(generation: &Generation, traffic: Traffic, more_than: usize) -> Vec<(usize, String)> {
    let crowds = crowds(generation.engine.rules.iter().map(|rule| &**rule), traffic, more_than);
    let key = |crowd: &Crowd<'_>| match &crowd.key {
        Key::Nothing => "nothing".to_owned(),
        Key::Compared => "compared".to_owned(),
        Key::Term(term) => term.to_string(),
    };
    crowds.iter().map(|crowd| (crowd.rules.len(), key(crowd))).collect()
}

const ALLOW: &str = "action: Allow";

#[test]
fn what_the_engine_files_together_is_a_crowd() {
    for (head, rule, key) in [
        (ALLOW, "to: [{methods: [GN], paths: [/x]}]", "the path /x"),
        (ALLOW, "to: [{methods: [GN], pathPrefix: [/x]}]", "the prefix /x"),
        (ALLOW, "to: [{methods: [GN], paths: ['/x/{*}']}]", "the path /x/{*}"),
        (ALLOW, "to: [{methods: [GN]}]", "nothing"),
        (ALLOW, "to: [{not: {paths: [/N]}}]", "nothing"),
        ("action: Deny", "to: [{hosts: [hN.x]}]", "nothing"),
        ("action: Deny", "from: [{not: {namespaces: [nN]}}]", "nothing"),
        (ALLOW, "to: [{methods: [GN], hosts: [h.x]}]", "the host h.x"),
        (ALLOW, "to: [{methods: [GN], ports: [80]}]", "the port 80"),
        (ALLOW, "from: [{cidrs: [0.0.0.0/0]}], to: [{methods: [GN]}]", "the network 0.0.0.0/0"),
        (ALLOW, "from: [{namespaces: [web]}], to: [{methods: [GN]}]", "the namespace web"),
        (ALLOW, "from: [{trustDomain: else}], to: [{methods: [GN]}]", "the trust domain else"),
        // The narrower of two fields that are both shared.
        (
            ALLOW,
            "from: [{serviceAccounts: [w/a]}], to: [{paths: [/x], methods: [GN]}]",
            "the service account w/a",
        ),
    ] {
        let generation = generation(&[(head, rule, 40)]);
        assert_eq!(found(&generation, Traffic::Http, 30), [(40, key.to_owned())], "{rule}");
        assert_eq!(generation.engine.worst_list(), 40, "the engine's own count: {rule}");
        assert_eq!(generation.most_candidates(), 40, "{rule}");
        assert_eq!(found(&generation, Traffic::Http, 40), [], "{rule}");
    }
}

#[test]
fn what_is_told_apart_is_none() {
    for rule in [
        "to: [{paths: [/xN]}]",
        "from: [{serviceAccounts: [w/aN]}], to: [{paths: [/x]}]",
        "from: [{cidrs: [0.0.0.0/0]}], to: [{pathPrefix: [/xN]}]",
        "from: [{serviceAccounts: [w/a]}], to: [{paths: ['/xN/{*}/y']}]",
        "to: [{hosts: [hN.x]}]",
    ] {
        let generation = generation(&[(ALLOW, rule, 40)]);
        assert_eq!(found(&generation, Traffic::Http, 5), [], "{rule}");
        assert_eq!(generation.most_candidates(), 1, "{rule}");
    }
}

/// Several names that are few's, beside one that is everybody's.
#[test]
fn callers_are_told_apart_by_what_is_most_specific() {
    for rule in [
        "from: [{trustDomain: else, serviceAccounts: [w/aN, w/bN]}]",
        "from: [{serviceAccounts: [w/aN, w/bN], cidrs: [10.0.0.0/8]}]",
        "from: [{namespaces: [nN, mN], cidrs: [10.0.0.0/8]}]",
        "from: [{namespaces: [web, ops], cidrs: [10.0.0.N/32]}]",
        "from: [{unauthenticated: true, cidrs: [10.0.0.N/32]}]",
    ] {
        told_apart(&generation(&[(ALLOW, rule, 40)]), rule);
    }
    for source in [
        "principals: [td/ns/w/sa/aN, td/ns/w/sa/bN], namespaces: [w]",
        "namespaces: [nN, mN], ipBlocks: [10.0.0.0/8]",
        "namespaces: [web, ops], ipBlocks: [10.0.0.N]",
        "ipBlocks: [10.0.0.N, 10.0.1.N]",
    ] {
        told_apart(&of_istio(source, 40), source);
    }
}

fn told_apart(generation: &Generation, rule: &str) {
    for traffic in [Traffic::Http, Traffic::Opaque] {
        assert_eq!(found(generation, traffic, 5), [], "{rule}");
    }
    assert_eq!(generation.engine.worst_list(), 1, "the engine's own count: {rule}");
    assert_eq!(generation.most_candidates(), 1, "{rule}");
}

#[test]
fn lists_that_a_question_meets_together_are_one_crowd() {
    // Obeyed and tried, allowed and denied: none is longer than the bound, all together are.
    let rule = "to: [{methods: [GN], paths: [/x]}]";
    let all = generation(&[
        (ALLOW, rule, 20),
        ("action: Deny", rule, 20),
        ("action: Audit", rule, 20),
        ("enforcement: Shadow\n  action: Allow", rule, 20),
        ("tier: Baseline\n  action: Allow", rule, 20),
        // And those that every question meets.
        (ALLOW, "to: [{methods: [GN]}]", 20),
    ]);
    assert_eq!(found(&all, Traffic::Http, 30), [(120, "the path /x".to_owned())]);
    assert_eq!(all.most_candidates(), 120);
    assert!(all.engine.worst_list() < 120, "one list is shorter than all of them");
    let below = |prefix: &str| format!("to: [{{methods: [GN], pathPrefix: [{prefix}]}}]");
    let nested = generation(&[
        (ALLOW, &below("/"), 10),
        (ALLOW, &below("/a"), 20),
        (ALLOW, &below("/a/b"), 10),
        (ALLOW, &below("/c"), 10),
        (ALLOW, "to: [{methods: [GN], paths: [/a/b]}]", 10),
    ]);
    assert_eq!(found(&nested, Traffic::Http, 25), [(50, "the prefix /a".to_owned())]);
    let net = |net: &str| format!("from: [{{cidrs: [{net}]}}], to: [{{methods: [GN]}}]");
    let nets = generation(&[
        (ALLOW, &net("10.0.0.0/8"), 20),
        (ALLOW, &net("10.1.0.0/16"), 10),
        (ALLOW, &net("11.0.0.0/8"), 20),
    ]);
    assert_eq!(found(&nets, Traffic::Http, 25), [(30, "the network 10.0.0.0/8".to_owned())]);
}

#[test]
fn no_rule_is_told_of_twice() {
    let set = generation(&[
        (ALLOW, "to: [{methods: [GN]}]", 40),
        (ALLOW, "to: [{methods: [GN], paths: [/x]}]", 50),
        (ALLOW, "to: [{methods: [GN], paths: [/y, /z]}]", 40),
    ]);
    let expected = [(40, "nothing"), (50, "the path /x")];
    let crowds = found(&set, Traffic::Http, 30);
    assert_eq!(crowds[..2], expected.map(|(count, key)| (count, key.to_owned())));
    assert_eq!(crowds.len(), 3, "{crowds:?}");
    assert_eq!(crowds[2].0, 40);
}

#[test]
fn opaque_bytes_are_asked_about_by_what_is_known_of_them() {
    let denied = ("action: Deny", "from: [{not: {namespaces: [ops]}}], to: [{pathPrefix: [/aN]}]", 40);
    // Done with at a glance: never allowed there, always denied there.
    let set = generation(&[
        denied,
        (ALLOW, "to: [{paths: [/xN]}]", 60),
        ("action: Deny", "to: [{paths: [/yN]}]", 60),
    ]);
    assert_eq!(found(&set, Traffic::Http, 30), []);
    assert_eq!(found(&set, Traffic::Opaque, 30), [(40, "nothing".to_owned())]);
}

#[test]
fn rules_under_many_terms_are_filed_by_fewer() {
    let many: Vec<String> = (0..65).map(|n| format!("w/m{n}")).collect();
    let from =
        format!("from: [{{serviceAccounts: [{}]}}], to: [{{methods: [GN], paths: [/x]}}]", many.join(", "));
    assert_eq!(
        found(&generation(&[(ALLOW, &from, 40)]), Traffic::Http, 30),
        [(40, "the path /x".to_owned())]
    );
}

#[test]
fn a_warning_says_who_why_how_long_and_what_to_do() {
    let set = generation(&[(
        ALLOW,
        "to: [{methods: [GN], paths: [/x], headers: [{name: x-a, present: true}]}]",
        40,
    )]);
    let rules = &set.engine.rules;
    let crowds = crowds(rules.iter().map(|rule| &**rule), Traffic::Http, 30);
    let warning =
        crowds[0].warning(|id| (&rules[id as usize], &set.names[id as usize]), Some("workloads in shop"));
    assert_eq!(
        warning.to_string(),
        "warning: a request can make the engine look at 40 rules one by one (workloads in shop): what most of them share, \
         the path /x, is the narrowest that is looked up; about 1 us each time. Among them: shop/p0/r0 (a.yaml:8:12), \
         shop/p0/r1 (a.yaml:9:12), …, shop/p0/r39 (a.yaml:47:12)\n --> a.yaml:8:12\n  = help: join rules that differ in \
         methods or header fields only; or give each rule its own callers or longer paths"
    );
    assert_eq!(duration(2_345_678), "2.3 ms");
}
