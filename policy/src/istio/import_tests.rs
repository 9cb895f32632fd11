//! What is rewritten decides as what was written.

use postern_svid::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::*;
use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::{Generation, HeaderFields, HeaderLines, Operation, Source, Tokens, Workload};

const FROM: [&str; 8] = [
    "principals: [home/ns/a/sa/b, else/ns/a/sa/b]",
    "principals: [\"*\"]",
    "notPrincipals: [home/ns/a/sa/b]",
    "ipBlocks: [10.0.0.0/16]",
    "notIpBlocks: [10.0.0.1]",
    "principals: [home/ns/a/sa/b], ipBlocks: [10.0.0.1, fd00::/8]",
    "namespaces: [a]",
    "serviceAccounts: [a/b]",
];
const TO: [&str; 13] = [
    "methods: [GET, POST]",
    "methods: [\"*\"]",
    "methods: [TRACE]",
    "notMethods: [GET]",
    "paths: [/a, \"/a/{*}\", \"/b/*\"]",
    "paths: [\"*\"]",
    "notPaths: [\"/a/{**}\"]",
    "ports: [\"80\", \"81\"]",
    "notPorts: [\"80\"]",
    "methods: [GET], paths: [/a], ports: [\"80\"]",
    "hosts: [a.x, \"*.x\"]",
    "notHosts: [a.x]",
    "paths: [/a*]",
];
const WHEN: [&str; 9] = [
    "key: \"request.headers[x-a]\", values: [v]",
    "key: \"request.headers[x-a]\", values: [\"*\"]",
    "key: \"request.headers[x-a]\", notValues: [v]",
    "key: \"request.headers[x-a]\", notValues: [\"*\"]",
    "key: \"request.headers[x-a]\", values: [\"v*\"]",
    "key: destination.port, values: [\"80\"]",
    "key: source.ip, notValues: [10.0.0.1]",
    "key: source.principal, values: [home/ns/a/sa/b]",
    "key: source.namespace, values: [a]",
];

fn items(of: &'static [&'static str], wrap: &'static str) -> impl Strategy<Value = Vec<String>> {
    let item = prop::sample::select(of).prop_map(move |text| match wrap {
        "" => format!("{{{text}}}"),
        word => format!("{{{word}: {{{text}}}}}"),
    });
    prop::collection::vec(item, 0..3)
}

prop_compose! {
    fn rule()(from in items(&FROM, "source"), to in items(&TO, "operation"), when in items(&WHEN, "")) -> String {
        let lists = [("from", from), ("to", to), ("when", when)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let lists: Vec<String> = lists.map(|(word, list)| format!("{word}: [{}]", list.join(", "))).collect();
        format!("{{{}}}", lists.join(", "))
    }
}

prop_compose! {
    fn policy()(
        action in prop::sample::select(vec!["ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"]),
        namespace in prop::sample::select(vec!["shop", "shop", "shop", "root"]),
        dry_run in prop::bool::weighted(0.1),
        selects in prop::bool::weighted(0.15),
        rules in prop::collection::vec(rule(), 1..3),
    ) -> (String, String) {
        let notes = match dry_run && action == "DENY" {
            true => ", annotations: {istio.io/dry-run: \"true\"}",
            false => "",
        };
        let selector = if selects { "selector: {matchLabels: {app: orders}}, " } else { "" };
        let rules = format!("rules: [{}]", rules.join(", "));
        (format!("namespace: {namespace}{notes}"), format!("{selector}action: {action}, {rules}"))
    }
}

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("home").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: [("app".to_owned(), "orders".to_owned())].into(),
        }),
    }
}

fn file(text: &str) -> SourceFile {
    SourceFile { name: "istio.yaml".into(), text: text.as_bytes().into() }
}

const DEFAULTS: &str = "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: d, namespace: root}\nspec: {trustDomains: {aliases: [alias]}}\n";

fn written(policies: &[(String, String)], kept: impl Fn(&str) -> bool) -> String {
    let mut out = DEFAULTS.to_owned();
    for (n, (header, spec)) in policies.iter().enumerate() {
        let namespace = header.trim_start_matches("namespace: ").split(',').next().unwrap_or_default();
        if kept(namespace) {
            out.push_str(&format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, {header}}}\nspec: {{{spec}}}\n"
            ));
        }
    }
    out
}

type Asked = (
    Option<&'static str>,
    &'static str,
    u16,
    Option<(&'static str, &'static str, &'static str, Vec<&'static str>)>,
);

fn asked() -> impl Strategy<Value = Asked> {
    let ids = vec![
        "spiffe://home/ns/a/sa/b",
        "spiffe://alias/ns/a/sa/b",
        "spiffe://else/ns/a/sa/b",
        "spiffe://home/ns/b/sa/b",
        "spiffe://home/k/v/ns/a/sa/b/c",
    ];
    let http = (
        prop::sample::select(vec!["GET", "POST", "PUT", "TRACE"]),
        prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b/", "/b/x", "/a;x"]),
        prop::sample::select(vec!["a.x", "a.x:80", "b.x", "x", "10.0.0.1"]),
        prop::collection::vec(prop::sample::select(vec!["v", "w", "vw", "v, w", "v,v"]), 0..3),
    );
    (
        prop::option::weighted(0.85, prop::sample::select(ids)),
        prop::sample::select(vec!["10.0.0.1", "10.0.1.1", "10.1.0.1", "fd00::1"]),
        prop::sample::select(vec![80_u16, 81, 82]),
        prop::option::weighted(0.85, http),
    )
}

fn allows(generation: &Generation, (id, address, port, http): &Asked) -> bool {
    let id = id.map(|id| SpiffeId::parse(id).unwrap());
    let source = Source { identity: id.as_ref(), address: address.parse().unwrap() };
    let Some((method, path, host, lines)) = http else {
        return generation.decide(&generation.connection(source), *port, Operation::Tcp).is_allowed();
    };
    let mut fields = HeaderFields::new();
    for line in lines {
        fields.push("x-a", line).unwrap();
    }
    let path = CanonPath::parse(path, &PathOptions::default()).unwrap();
    let operation = Operation::Http {
        method: &CanonMethod::parse(method).unwrap(),
        path: &path,
        host: Some(&CanonHost::parse(host).unwrap()),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: None,
        tokens: Tokens::Absent,
    };
    generation.decide(&generation.connection(source), *port, operation).is_allowed()
}

/// How many sets were rewritten, and decided alike or more strictly.
fn compare(policies: &[(String, String)], questions: &[Asked]) -> Result<[usize; 2], TestCaseError> {
    let text = written(policies, |_| true);
    let load = |text: &str| {
        load::load(&[file(text)], &scope(), 1)
            .map_err(|errors| TestCaseError::fail(format!("{errors}\n{text}")))
    };
    let before = load(&text)?;
    let mut rewritten = [0; 2];
    for lossy in [false, true] {
        let imported =
            import_istio(&[file(&text)], &scope(), lossy).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(lossy || imported.kept.is_empty() || !imported.notes.is_empty());
        rewritten[usize::from(lossy)] += imported.documents.len();
        let mut new = written(policies, |namespace| imported.kept.contains(namespace));
        for text in imported.documents.values() {
            new.push_str(text);
        }
        let after = load(&new)?;
        for question in questions {
            let (was, is) = (allows(&before, question), allows(&after, question));
            prop_assert!(
                was == is || (lossy && was),
                "{} {:?}: {} then {}\n{}\n{}",
                lossy,
                question,
                was,
                is,
                text,
                new
            );
        }
    }
    Ok(rewritten)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_rewritten_decides_alike(
        policies in prop::collection::vec(policy(), 1..4),
        questions in prop::collection::vec(asked(), 40),
    ) {
        let _ = compare(&policies, &questions)?;
    }
}

/// Enough of the random sets above are rewritten, or they would prove nothing.
#[test]
fn random_sets_are_rewritten() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut all = [0; 2];
    for _ in 0..200 {
        let policies = prop::collection::vec(policy(), 1..4).new_tree(&mut runner).unwrap().current();
        let rewritten = compare(&policies, &[]).unwrap();
        all = [all[0] + rewritten[0], all[1] + rewritten[1]];
    }
    assert!(all[0] > 15 && all[1] > all[0] + 15, "{all:?}");
}

fn import(text: &str, lossy: bool) -> Imported {
    import_istio(&[file(text)], &scope(), lossy).unwrap()
}

#[test]
fn documents_and_notes() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let deny =
        policy("no-purge", "action: DENY, rules: [{to: [{operation: {methods: [PURGE], paths: [/v1/*]}}]}]");
    let done = import(&deny, false);
    assert!(done.kept.is_empty() && done.notes.is_empty(), "{:?}", done.notes);
    assert_eq!(
        done.documents["shop"],
        "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: no-purge, namespace: shop}\nspec:\n  action: Deny\n  rules:\n  - name: rule-0\n    to:\n    - {methods: [\"PURGE\"], paths: [\"/v1/{**}\"]}\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: istio, namespace: shop}\nspec:\n  tier: Baseline\n  action: Allow\n  rules:\n  # As in Istio, what nothing denies is allowed to every peer of the mesh.\n  - name: implicit-allow\n"
    );
    // One rule that cannot be said keeps the namespace.
    let patterns =
        import(&(deny + &policy("b", "rules: [{to: [{operation: {paths: [\"*.html\"]}}]}]")), true);
    assert!(patterns.documents.is_empty() && patterns.kept.contains("shop"));
    assert_eq!((patterns.notes[0].name.as_str(), patterns.notes[0].is_stricter), ("b/rule-0", false));
    // What only becomes stricter is rewritten if that is good enough.
    let names = policy("a", "rules: [{from: [{source: {namespaces: [web]}}]}]");
    assert!(import(&names, false).kept.contains("shop"));
    let done = import(&names, true);
    assert!(done.documents["shop"].contains("namespaces: [\"web\"]") && done.notes[0].is_stricter);
    // Tokens are left to a person, and what adds their issuers stays beside what was rewritten.
    let request = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: shop}\nspec: {jwtRules: [{issuer: i, jwksUri: \"https://i/\"}]}\n";
    let done = import(
        &(policy("a", "action: DENY, rules: [{to: [{operation: {methods: [PURGE]}}]}]") + request),
        false,
    );
    assert!(done.kept.is_empty() && done.notes[0].what.contains("keep it"), "{:?}", done.notes);
    let asks = policy("a", "rules: [{from: [{source: {requestPrincipals: [\"i/*\"]}}]}]");
    assert!(import(&(asks + request), true).kept.contains("shop"));
    // A Deny that would mean fewer peers never is.
    let names = policy("a", "action: DENY, rules: [{from: [{source: {namespaces: [web]}}]}]");
    assert!(import(&names, true).kept.contains("shop"));
}
