//! `when.cel` in documents: what it does to decisions, what is told of it, and where its mistakes stand.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use allocation_counter::measure;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, EscapedSlashes, PathOptions};
use postern_policy::{
    Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Tokens, Workload, load,
    run_tests,
};
use postern_svid::{SpiffeId, TrustDomain};

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    }
}

fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         action: {action}\n  rules:\n{rules}\n"
    )
}

fn try_load(text: &str) -> Result<Generation, String> {
    let file = SourceFile { name: "p.yaml".into(), text: text.as_bytes().to_vec() };
    load(&[file], &scope(), 1).map_err(|errors| errors.to_string())
}

fn loaded(text: &str) -> Generation {
    try_load(text).unwrap_or_else(|errors| panic!("{errors}"))
}

struct Ask<'a> {
    path: &'a str,
    tenant: Option<&'a str>,
}

impl Ask<'_> {
    fn about<T>(&self, generation: &Generation, then: impl FnOnce(Source<'_>, Operation<'_>) -> T) -> T {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
        let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let path = CanonPath::parse(self.path, &generation.defaults().path).expect("a literal");
        let (method, host) = (CanonMethod::get(), CanonHost::parse("orders.shop").expect("a literal"));
        let mut all = HeaderFields::new();
        if let Some(tenant) = self.tenant {
            all.push("x-tenant", tenant).expect("a literal");
        }
        // What a sidecar keeps of a request.
        let fields = HeaderFields::keep(&all, generation.headers_named());
        let operation = Operation::Http {
            method: &method,
            path: &path,
            host: Some(&host),
            headers: Some(&fields as &dyn HeaderLines),
            upgrade: None,
            tokens: Tokens::Absent,
        };
        then(source, operation)
    }

    fn is_allowed(&self, generation: &Generation) -> bool {
        self.about(generation, |source, operation| {
            let verdict = generation.decide(&generation.connection(source), 8080, operation);
            assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
            verdict.is_allowed()
        })
    }

    fn explained(&self, generation: &Generation) -> String {
        self.about(generation, |source, operation| generation.explain(source, 8080, operation).to_string())
    }
}

const OPEN: &str = "  - {name: all}";

#[test]
fn an_allow_needs_true_and_a_deny_what_is_not_false() {
    let rule =
        "  - {name: r, to: [{pathPrefix: [/a]}], when: {cel: 'request.headers[\"x-tenant\"] == \"a\"'}}";
    let allow = loaded(&policy("p", "Allow", rule));
    assert_eq!(allow.headers_named(), [Box::from("x-tenant")]);
    assert!(!allow.asks_tokens());
    assert!(loaded(&policy("p", "Allow", "  - {name: r, when: {cel: 'has(jwt.a)'}}")).asks_tokens());
    let deny = loaded(&(policy("p", "Deny", rule) + &policy("open", "Allow", OPEN)));
    for (path, tenant, is_true, is_unknown) in [
        ("/a/b", Some("a"), true, false),
        ("/a/b", Some("b"), false, false),
        ("/a/b", Some("a, b"), false, true),
        ("/a/b", None, false, true),
        ("/c", Some("a"), false, false),
        ("/c", None, false, false),
    ] {
        let ask = Ask { path, tenant };
        assert_eq!(ask.is_allowed(&allow), is_true, "{path} {tenant:?}");
        assert_eq!(!ask.is_allowed(&deny), is_true || is_unknown, "{path} {tenant:?}");
    }
    // Every reading of a path is asked about by itself.
    let paths = loaded(&policy("p", "Allow", "  - {name: r, when: {cel: \"request.path == '/a;x'\"}}"));
    assert!(!Ask { path: "/a;x", tenant: None }.is_allowed(&paths));
    let paths =
        loaded(&policy("p", "Allow", "  - {name: r, when: {cel: \"request.path.startsWith('/a')\"}}"));
    assert!(Ask { path: "/a;x", tenant: None }.is_allowed(&paths));
}

#[test]
fn explanations_say_which_condition_fails() {
    let allow = loaded(&policy(
        "p",
        "Allow",
        "  - {name: r, when: {cel: 'request.headers[\"x-tenant\"] == \"a\" && request.port == 8080'}}",
    ));
    let says = |tenant, expected: &str| {
        let text = Ask { path: "/", tenant }.explained(&allow);
        assert!(text.contains(expected), "{text}");
    };
    says(
        Some("b"),
        "the condition `request.headers[\"x-tenant\"] == \"a\" && request.port == 8080` is false",
    );
    says(None, "holds is not known: the header field `x-tenant` is not there");
    says(Some("a,b"), "holds is not known: the header field `x-tenant` has several values");
    says(Some("a"), "allowed by rule");
    let deny =
        loaded(&policy("p", "Deny", "  - {name: r, when: {cel: 'request.headers[\"x-tenant\"] == \"a\"'}}"));
    let text = Ask { path: "/", tenant: None }.explained(&deny);
    assert!(text.contains("`x-tenant` is not there; a Deny fires then"), "{text}");
    assert!(!Ask { path: "/", tenant: Some("a") }.explained(&deny).contains("fires then"));
}

#[test]
fn conditions_of_several_lines_are_told_in_one() {
    let text = "  - name: r\n    when:\n      cel: |\n        request.port == 8080 &&\n\n          request.path == '/x'\n";
    let said = Ask { path: "/", tenant: None }.explained(&loaded(&policy("p", "Allow", text)));
    assert!(said.contains("the condition `request.port == 8080 && request.path == '/x'` is false"), "{said}");
}

#[test]
fn tests_of_policies_reach_conditions() {
    let text = policy(
        "p",
        "Allow",
        "  - {name: r, when: {cel: 'request.headers[\"x-tenant\"] == \"a\" && now < timestamp(\"2026-11-27T10:00:00Z\")'}}",
    ) + r#"---
apiVersion: postern.dev/v1alpha1
kind: PolicyTest
metadata: {name: t, namespace: shop}
spec:
  workload: {port: 8080}
  cases:
  - {name: untold, request: {from: web, path: /, headers: [{name: x-tenant, value: a}]}, expect: {deny: default}}
  - {name: in time, request: {from: web, path: /, headers: [{name: x-tenant, value: a}], at: "2026-11-27T09:59:59Z"}, expect: {allow: p/r}}
  - {name: too late, request: {from: web, path: /, headers: [{name: x-tenant, value: a}], at: "2026-11-27T10:00:00Z"}, expect: {deny: default}}
"#;
    let file = SourceFile { name: "p.yaml".into(), text: text.into_bytes() };
    let report = run_tests(&[file], &scope()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((report.passed(), report.percent()), (3, 100), "{report:?}");
}

/// `now` counts minutes: whoever tells the time learns when rules must be asked again.
#[test]
fn minutes() {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let clock = loaded(&policy("p", "Allow", "  - {name: r, when: {cel: \"now > timestamp(0)\"}}"));
    assert!(clock.depends_on_time());
    assert!(clock.tell_time(at(59)), "it was not known before");
    assert!(!Ask { path: "/", tenant: None }.is_allowed(&clock));
    assert!(!clock.tell_time(at(30)) && clock.tell_time(at(60)) && !clock.tell_time(at(119)));
    assert!(Ask { path: "/", tenant: None }.is_allowed(&clock));
    assert!(!loaded(&policy("p", "Allow", OPEN)).depends_on_time());
}

/// A condition about the path is one: what is forwarded in another spelling than the judged one is refused.
#[test]
fn conditions_speak_of_paths() {
    let raw = PathOptions { escaped_slashes: EscapedSlashes::Reject, preserve_raw: true };
    let path = CanonPath::parse("/%61", &raw).expect("a literal");
    for (cel, ports, is_judged) in [
        ("request.path == '/b'", "", true),
        ("request.path == '/b'", ", to: [{ports: [8080]}]", true),
        ("request.path == '/b'", ", to: [{ports: [80]}]", false),
        ("request.method == 'GET'", "", false),
    ] {
        let rule = format!("  - {{name: r, when: {{cel: \"{cel}\"}}{ports}}}");
        let generation = loaded(&policy("p", "Deny", &rule));
        assert_eq!(generation.check_path(8080, &path).is_err(), is_judged, "{cel} {ports}");
    }
}

#[test]
fn rules_that_do_not_match_in_all_else_ask_no_condition() {
    let text = policy(
        "p",
        "Allow",
        "  - {name: a, from: [{serviceAccounts: [other]}], when: {cel: \"request.path + 'x' != ''\"}}\n  - {name: b, to: \
         [{methods: [POST]}], when: {cel: \"request.path + 'x' != ''\"}}\n  - {name: c, to: [{paths: [/c]}], when: {cel: \
         \"request.path + 'x' != ''\"}}\n  - {name: d, to: [{ports: [9090]}], when: {cel: \"request.path + 'x' != ''\"}}\n  - \
         {name: e, when: {cel: \"request.path + 'x' != ''\", time: {zone: UTC, weekly: [\"Mon 00:00-00:01\"]}}}",
    ) + &policy(
        "q",
        "Deny",
        "  - {name: a, to: [{hosts: [other.shop]}], when: {cel: \"request.path + 'x' != ''\"}}",
    );
    let generation = loaded(&text);
    generation.tell_time(UNIX_EPOCH);
    let count = |path| {
        Ask { path, tenant: None }.about(&generation, |source, operation| {
            let connection = generation.connection(source);
            let mut allowed = false;
            let counted = measure(|| allowed = generation.decide(&connection, 8080, operation).is_allowed());
            (allowed, counted.count_total)
        })
    };
    assert_eq!(count("/a"), (false, 0));
    let (allowed, allocations) = count("/c");
    assert!(allowed && allocations > 0, "a condition that is asked may allocate: {allocations}");
}

/// Mistakes stand where they are, in every style in which YAML writes a text.
#[test]
fn places() {
    for (written, line, column, under) in [
        ("request.pth == ''", 1, 1, "request.pth"),
        ("'request.path == ''a'' && request.pth == '''''", 1, 27, "request.pth"),
        ("\"request.path == \\\"\\u00e9\\\" && request.pth == ''\"", 1, 32, "request.pth"),
        ("|\n          request.path == 'a' &&\n          request.pth == ''", 3, 11, "request.pth"),
        ("|-\n\n          request.path == 'a' &&\n            request.pth == ''", 4, 13, "request.pth"),
        (">-\n          request.path == 'a'\n          && request.pth == ''", 3, 14, "request.pth"),
        ("request.path == 'a'\n          && request.pth == ''", 2, 14, "request.pth"),
        ("'request.path == \"\u{e9}\" &&\n\n          request.pth == \"\"'", 3, 11, "request.pth"),
        ("'true || request.headers[\"X-Tenant\"] == \"\"'", 1, 26, "\"X-Tenant\""),
        ("'request.path =='", 1, 17, "'"),
        ("|\n          request.path == 'a' &&\n          (request.path == ''", 3, 30, " "),
    ] {
        let rule = format!("  - name: r\n    when:\n      cel: {written}");
        let errors = try_load(&policy("p", "Allow", &rule)).err().unwrap_or_default();
        let column = if line == 1 { column + 11 } else { column };
        let place = format!("p.yaml:{}:{column}", line + 9);
        assert!(errors.contains(&place), "{written}: {place}\n{errors}");
        let carets = errors.lines().find(|line| line.contains('^')).unwrap_or_default();
        assert_eq!(carets.matches('^').count(), under.chars().count(), "{written}\n{errors}");
    }
}

#[test]
fn documents_without_sense() {
    for (when, expected) in [
        ("{cel: ''}", "`cel` is empty"),
        ("{cel: '  '}", "`cel` is empty"),
        ("{}", "write `time` or `cel`"),
        ("{cel: 'request.headers[\"x_tenant\"] == \"\"'}", "never reach a workload"),
        ("{cel: 'request.headers[\"host\"] == \"\"'}", "no rule can ask for the field `host`"),
        ("{cell: 'true'}", "did you mean `cel`"),
    ] {
        let rule = format!("  - {{name: r, when: {when}}}");
        let errors = try_load(&policy("p", "Allow", &rule)).err().unwrap_or_default();
        assert!(errors.contains(expected), "{when}: {errors}");
    }
    let deny = loaded(&policy("p", "Deny", "  - {name: r, when: {cel: \"request.path == '/a'\"}}"));
    assert!(deny.warnings().to_string().contains("opaque TCP"), "{}", deny.warnings());
    let deny = loaded(&policy("p", "Deny", "  - {name: r, when: {cel: \"source.namespace == 'a'\"}}"));
    assert!(deny.warnings().is_empty(), "{}", deny.warnings());
}
