//! Documents that speak for named namespaces, that break the glass for a while, and that say how long a set holds
//! without being confirmed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};

fn loaded(namespace: &str, text: &str) -> Result<Generation, String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: namespace.into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "a.yaml".into(), text: text.into() };
    load(&[file], &scope, 1).map_err(|errors| errors.to_string())
}

fn policy(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{{metadata}}}\nspec: {spec}\n---\n"
    )
}

/// Whether a peer of `shop/web`, or one without an identity, may `GET /`, and by which rule.
fn answer(generation: &Generation, authenticated: bool) -> (bool, String) {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: authenticated.then_some(&id), address: [10, 0, 0, 1].into() };
    let method = CanonMethod::get();
    let path = CanonPath::parse_for(&method, "/", &Default::default()).expect("a literal");
    let operation = Operation::http(&method, &path);
    let verdict = generation.decide(&generation.connection(source), 80, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, 80, operation), "engine and reference");
    let rule = verdict.rule.map_or_else(String::new, |rule| generation.rule(rule).to_string());
    (verdict.is_allowed(), rule)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// 2026-11-27T10:00:00Z.
const TEN: u64 = 1_795_773_600;
const GLASS: &str = "name: open, namespace: root, annotations: {postern.dev/break-glass: \"true\", \
                     postern.dev/reason: orders are down, postern.dev/opened-by: ada}";
const OPEN: &str = "{tier: Platform, target: {namespaces: [shop]}, action: Allow, rules: [{name: open, \
                    when: {time: {notBefore: \"2026-11-27T10:00:00Z\", notAfter: \"2026-11-27T10:15:00Z\"}}}]}";

#[test]
fn the_root_namespace_speaks_for_the_namespaces_that_it_names() {
    let text = policy(
        "name: p, namespace: root",
        "{target: {namespaces: [shop, pay]}, action: Allow, rules: [{name: r}]}",
    );
    for (namespace, expected) in [("shop", true), ("pay", true), ("ops", false), ("root", false)] {
        let generation = loaded(namespace, &text).expect("it is a good set");
        assert_eq!(answer(&generation, true).0, expected, "{namespace}");
        assert_eq!(generation.documents()[0].applies, Some(expected), "{namespace}");
    }
    for (metadata, target, says) in [
        ("name: p, namespace: shop", "{namespaces: [shop]}", "only documents of the root namespace"),
        ("name: p, namespace: root", "{namespaces: [shop], all: true}", "both given"),
        ("name: p, namespace: root", "{namespaces: []}", "is empty"),
        ("name: p, namespace: root", "{namespaces: ['sh*']}", "not a namespace"),
    ] {
        let text = policy(metadata, &format!("{{target: {target}, action: Allow, rules: [{{name: r}}]}}"));
        let error = loaded("shop", &text).expect_err(target);
        assert!(error.contains(says) && error.contains("a.yaml:4:"), "{error}");
    }
}

#[test]
fn broken_glass_opens_to_proven_peers_over_denies_of_apps_and_ends_by_itself() {
    let app = policy("name: not, namespace: shop", "{action: Deny, rules: [{name: all}]}");
    let generation = loaded("shop", &(app + &policy(GLASS, OPEN))).expect("it is a good set");
    let open = generation.documents()[1].break_glass.clone().expect("it is marked");
    assert_eq!((&*open.reason, open.by.as_deref()), ("orders are down", Some("ada")));
    assert_eq!((open.from, open.until), (TEN as i64, TEN as i64 + 900));
    for (seconds, expected) in [(TEN - 1, false), (TEN, true), (TEN + 899, true), (TEN + 900, false)] {
        let _ = generation.tell_time(at(seconds));
        let (allowed, rule) = answer(&generation, true);
        let named = if expected { "root/open/open" } else { "shop/not/all" };
        assert_eq!((allowed, rule.as_str()), (expected, named), "{seconds}");
        assert!(!answer(&generation, false).0, "nobody without an identity");
        assert_eq!(open.is_open(at(seconds)), expected);
    }
    let (id, _) = generation.rules().find(|(_, name)| &*name.document == "open").expect("it is there");
    assert!(generation.breaks_glass(id));
    assert_eq!(generation.rules().filter(|(id, _)| generation.breaks_glass(*id)).count(), 1);

    // The platform's own word still comes first, and other namespaces stay as they are.
    let platform = policy(
        "name: never, namespace: root",
        "{tier: Platform, target: {all: true}, action: Deny, rules: [{name: all}]}",
    );
    let generation = loaded("shop", &(platform + &policy(GLASS, OPEN))).expect("it is a good set");
    let _ = generation.tell_time(at(TEN));
    assert_eq!(answer(&generation, true), (false, "root/never/all".into()));
    let generation = loaded("pay", &policy(GLASS, OPEN)).expect("it is a good set");
    let _ = generation.tell_time(at(TEN));
    assert!(!answer(&generation, true).0);
}

#[test]
fn what_breaks_the_glass_ends_and_says_why() {
    for (from, to, says) in [
        ("break-glass: \"true\"", "break-glass: \"yes\"", "can only be \"true\""),
        ("postern.dev/reason: orders are down", "postern.dev/reason: ' '", "says why"),
        ("orders are down", "\"a\\e[2Jb\"", "characters that nobody sees"),
        ("orders are down", "\"a\\u202eb\"", "characters that nobody sees"),
        ("orders are down", &"x".repeat(257), "more than 256 bytes"),
        ("action: Allow", "action: Deny", "is an Allow"),
        ("{time: {notBefore: \"2026-11-27T10:00:00Z\", ", "{time: {", "begins and ends by itself"),
        ("notAfter: \"2026-11-27T10:15:00Z\"", "notAfter: \"2026-11-27T14:00:01Z\"", "4 h at most"),
        (
            "name: open, when",
            "name: open, from: [{unauthenticated: true}], when",
            "nobody without an identity",
        ),
    ] {
        let text = policy(GLASS, OPEN);
        assert!(text.contains(from), "{from}");
        let error = loaded("shop", &text.replacen(from, to, 1)).expect_err(says);
        assert!(error.contains(says), "{error}");
    }
    // Without the mark it is a policy like any other.
    let plain = policy(
        "name: open, namespace: root",
        "{target: {namespaces: [shop]}, action: Allow, rules: [{name: r}]}",
    );
    let generation = loaded("shop", &plain).expect("it is a good set");
    assert!(generation.documents()[0].break_glass.is_none());
    assert!(generation.rules().all(|(id, _)| !generation.breaks_glass(id)));
}

#[test]
fn a_set_may_say_how_long_it_holds_unconfirmed() {
    let defaults = |spec: &str| {
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: d, namespace: root}}\nspec: {{{spec}}}\n"
        )
    };
    for (spec, expected) in [
        ("", None),
        ("staleAfter: 0s", None),
        ("staleAfter: 10s", Some(Duration::from_secs(10))),
        ("staleAfter: 24h", Some(Duration::from_secs(86_400))),
    ] {
        let generation = loaded("shop", &defaults(spec)).expect(spec);
        assert_eq!(generation.defaults().stale_after, expected, "{spec}");
    }
    for bad in ["9s", "1ms", "soon", "-1h"] {
        assert!(loaded("shop", &defaults(&format!("staleAfter: {bad}"))).is_err(), "{bad}");
    }
}
