use std::collections::BTreeMap;

use postern_svid::TrustDomain;

use super::*;
use crate::load;

const RULES: &str = r#"apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders-api, namespace: shop}
spec:
  target: {selector: {app: orders}, ports: [8080]}
  action: Allow
  rules:
  - name: reads
    from: [{serviceAccounts: [web]}]
    to: [{methods: [GET], paths: ["/v1/orders/{*}"]}]
  - name: by-day
    from: [{serviceAccounts: [batch/export]}]
    when: {time: {weekly: ["Mon-Fri 06:00-22:00"], zone: UTC}}
  - name: tenant-a
    from: [{serviceAccounts: [gate]}]
    to: [{headers: [{name: x-tenant, exact: [a]}], hosts: [orders.shop]}]
  - name: never-asked
    from: [{serviceAccounts: [nobody]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: guard, namespace: postern-system}
spec:
  tier: Platform
  target: {all: true}
  action: Deny
  rules: [{name: admin, to: [{pathPrefix: [/admin], ports: [8080]}]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: tighten, namespace: shop}
spec:
  enforcement: Shadow
  action: Deny
  rules: [{name: no-seven, to: [{paths: [/v1/orders/7], ports: [8080]}]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: watch, namespace: shop}
spec: {action: Audit, rules: [{name: web, from: [{serviceAccounts: [web]}]}]}
"#;

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("demo.postern").unwrap(),
        root_namespace: "postern-system".into(),
        workload: Some(Workload {
            namespace: "else".into(),
            service_account: "else".into(),
            labels: BTreeMap::new(),
        }),
    }
}

fn test(cases: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{name: t, namespace: shop}}\nspec:\n  workload: {{labels: {{app: orders}}, port: 8080}}\n  cases:\n{cases}"
    )
}

fn set(cases: &str) -> [SourceFile; 2] {
    let file = |name: &str, text: String| SourceFile { name: name.into(), text: text.into() };
    [file("rules.yaml", RULES.into()), file("tests.yaml", test(cases))]
}

fn ran(cases: &str) -> TestReport {
    run_tests(&set(cases), &scope()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Each expectation that holds, and beside it one that does not.
#[test]
fn verdicts_are_held_against_what_is_expected() {
    let web = "from: web, path: /v1/orders/8";
    for (request, holds, fails) in [
        (web, "allow: orders-api/reads", "allow: orders-api/by-day"),
        (web, "allow: shop/orders-api/reads", "deny: default"),
        (web, "allow: true", "deny: true"),
        (web, "{allow: true, audit: watch/web}", "{allow: true, shadow: tighten/no-seven}"),
        ("from: web, path: /v1/orders/7", "{allow: true, shadow: tighten/no-seven}", "deny: bad_request"),
        ("from: web, path: /v1/orders/8, method: DELETE", "deny: default", "allow: true"),
        ("from: web, path: /v1/orders/8, port: 8081", "deny: default", "allow: orders-api/reads"),
        ("from: web, rawPath: /v1/orders/../%61dmin", "deny: default", "deny: postern-system/guard/admin"),
        ("from: web, rawPath: /v1/../%61dmin", "deny: postern-system/guard/admin", "deny: default"),
        ("from: web, rawPath: /../admin", "deny: bad_request", "deny: default"),
        ("from: web, rawPath: /../admin", "deny: true", "{deny: bad_request, audit: watch/web}"),
        ("from: web, tcp: true", "deny: postern-system/guard/admin", "allow: true"),
        ("unauthenticated: true, path: /v1/orders/8", "deny: default", "allow: true"),
        ("from: other/web, path: /v1/orders/8", "deny: default", "allow: true"),
        ("from: \"spiffe://demo.postern/ns/shop/sa/web\", path: /v1/orders/8", "allow: true", "deny: true"),
        ("from: batch/export, path: /", "deny: default", "allow: true"),
        (
            "from: batch/export, path: /, at: \"2026-11-27T10:00:00Z\"",
            "allow: orders-api/by-day",
            "deny: true",
        ),
        ("from: batch/export, path: /, at: \"2026-11-27T23:00:00Z\"", "deny: default", "allow: true"),
        (
            "from: gate, path: /, host: orders.shop, headers: [{name: x-tenant, value: a}]",
            "allow: orders-api/tenant-a",
            "deny: true",
        ),
        (
            "from: gate, path: /, host: orders.shop, headers: [{name: x-tenant, value: a}, {name: x-tenant, value: b}]",
            "deny: default",
            "allow: true",
        ),
        ("from: gate, path: /, host: orders.shop", "deny: default", "allow: true"),
        (
            "from: web, path: /v1/orders/8, headers: [{name: content-type, value: application/grpc}]",
            "deny: bad_request",
            "allow: true",
        ),
    ] {
        for (expect, passes) in [(holds, true), (fails, false)] {
            let expect = if expect.starts_with('{') { expect.to_owned() } else { format!("{{{expect}}}") };
            let report = ran(&format!("  - {{name: one, request: {{{request}}}, expect: {expect}}}\n"));
            let [case] = report.cases.as_slice() else { panic!("one case") };
            assert_eq!(case.passed, passes, "{request} {expect}: {case:?}");
            assert_eq!(case.explanation.is_some(), !passes, "{request} {expect}");
            assert_eq!((case.place.line, &*case.place.file), (8, "tests.yaml"));
        }
    }
}

#[test]
fn each_test_is_about_a_workload_of_its_own_and_keeps_its_order() {
    let mut files = set("  - {name: late, request: {from: batch/export, path: /, at: '2026-11-27T10:00:00Z'}, \
                         expect: {allow: true}}\n  - {name: untold, request: {from: batch/export, path: /}, expect: \
                         {deny: default}}\n")
    .to_vec();
    let other =
        test("  - {name: elsewhere, request: {from: web, path: /v1/orders/8}, expect: {deny: default}}\n")
            .replace("app: orders", "app: stock")
            .replace("name: t,", "name: a,");
    files.insert(0, SourceFile { name: "first.yaml".into(), text: other.into() });
    let report = run_tests(&files, &scope()).unwrap_or_else(|errors| panic!("{errors}"));
    let cases: Vec<(&str, &str, bool)> =
        report.cases.iter().map(|case| (case.test.as_str(), &*case.case, case.passed)).collect();
    assert_eq!(cases, [("shop/a", "elsewhere", true), ("shop/t", "late", true), ("shop/t", "untold", true)]);
}

#[test]
fn rules_that_no_verdict_names_are_not_covered() {
    let report =
        ran("  - {name: a, request: {from: web, path: /v1/orders/7}, expect: {allow: true}}\n  - {name: b, \
                      request: {from: web, path: /admin}, expect: {deny: true}}\n");
    let open: Vec<String> =
        report.rules.iter().filter(|rule| !rule.covered).map(|rule| rule.rule.to_string()).collect();
    assert_eq!(open, ["by-day", "tenant-a", "never-asked"].map(|rule| format!("shop/orders-api/{rule}")));
    assert_eq!((report.passed(), report.covered(), report.rules.len(), report.percent()), (2, 4, 7, 57));
}

/// Each with the words and the column of its mistake, which stands in line 8 unless it is about the whole.
#[test]
fn tests_are_read_as_strictly_as_rules() {
    let case =
        |request: &str, expect: &str| format!("  - {{name: c, request: {request}, expect: {expect}}}\n");
    let asked = |request: &str| case(request, "{allow: true}");
    let expected = |expect: &str| case("{from: web, path: /}", expect);
    for (cases, words) in [
        ("    []\n".to_owned(), "`cases` is empty"),
        (asked("{form: web, path: /}"), "did you mean `from`?"),
        (asked("{path: /}"), "the request has no caller"),
        (asked("{from: web, unauthenticated: true, path: /}"), "has no name"),
        (asked("{unauthenticated: false, path: /}"), "can only be true"),
        (asked("{from: 'web*', path: /}"), "patterns are not known here"),
        (asked("{from: 'spiffe://', path: /}"), "not a SPIFFE id"),
        (asked("{from: web}"), "the request has no path"),
        (asked("{from: web, path: /a, rawPath: /a}"), "a request has one path"),
        (asked("{from: web, path: /a//b}"), "write `/a/b`, or `rawPath`"),
        (asked("{from: web, path: /../b}"), "`rawPath` is for paths as they are sent"),
        (asked("{from: web, path: /, method: get}"), "write `GET`"),
        (asked("{from: web, path: /, tcp: true}"), "opaque TCP has no"),
        (asked("{from: web, tcp: false}"), "`tcp` can only be true"),
        (asked("{from: web, path: /, address: here}"), "`here` is no address"),
        (asked("{from: web, path: /, port: 0}"), "0 is no port"),
        (asked("{from: web, path: /, at: noon}"), "not a point in time"),
        (asked("{from: web, path: /, headers: []}"), "`headers` is empty"),
        (asked("{from: web, path: /, headers: [{name: x_y, value: a}]}"), "never reach a workload"),
        (expected("{}"), "nothing is expected"),
        (expected("{allow: true, deny: true}"), "allowed or denied"),
        (expected("{allow: reads}"), "`reads` names no rule"),
        (expected("{allow: default}"), "`default` names no rule"),
        (case("{from: web, path: /}", "{allow: true}").replace("name: c", "name: ''"), "a case's name"),
        (asked("{from: web, path: /}").repeat(2), "stands here twice"),
    ] {
        let set = set(&cases);
        let errors = load(&set, &scope(), 0).expect_err(&cases).to_string();
        assert!(errors.contains(words) && errors.contains('^'), "{cases}: {errors}");
        let at = errors.contains("tests.yaml:8:") || errors.contains("tests.yaml:9:") || cases.contains("[]");
        assert!(at, "{cases}: {errors}");
        assert_eq!(run_tests(&set, &scope()).expect_err(&cases).to_string(), errors);
    }
    let mut portless = set(&asked("{from: web, path: /}"));
    portless[1].text = String::from_utf8_lossy(&portless[1].text).replace(", port: 8080", "").into();
    assert!(load(&portless, &scope(), 0).expect_err("no port").to_string().contains("has no port"));
}

/// Renaming a rule must not keep a set from the mesh because of its tests; whoever runs them is told.
#[test]
fn names_that_no_rule_has_warn_sidecars_and_fail_tests() {
    for (expect, words) in [
        ("{allow: orders-api/raeds}", "did you mean `shop/orders-api/reads`?"),
        ("{deny: nothing/like-it}", "a rule is named"),
        ("{deny: orders-api/reads}", "it is an Allow"),
        ("{allow: postern-system/guard/admin}", "it is a Deny"),
        ("{deny: tighten/no-seven}", "in the shadow"),
        ("{allow: true, shadow: orders-api/reads}", "it is an Allow"),
        ("{allow: true, audit: orders-api/reads}", "it is an Allow"),
    ] {
        let set = set(&format!("  - {{name: c, request: {{from: web, path: /}}, expect: {expect}}}\n"));
        let errors = run_tests(&set, &scope()).expect_err(expect).to_string();
        assert!(errors.contains(words) && errors.contains("tests.yaml:8:"), "{expect}: {errors}");
        let generation = load(&set, &scope(), 0).unwrap_or_else(|errors| panic!("{expect}: {errors}"));
        assert!(generation.warnings().to_string().contains(words), "{expect}");
        let document = generation.documents().iter().find(|document| document.kind == "PolicyTest");
        assert!(document.is_some_and(|document| document.applies == Some(false)), "{expect}");
    }
}

const SERVICE: &str = "---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports:
  - {port: 80, targetPort: 8080, protocol: http, upgrades: [tcp]}
  - {port: 81, targetPort: 8081, protocol: http, escapedSlashes: Keep}
  - {port: 5432, protocol: tcp}
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: d, namespace: postern-system}
spec:
  jwt: {issuers: [{issuer: 'https://id.example.com', audiences: [orders], jwks: {file: /k}}]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: web, from: [{serviceAccounts: [web]}]}
  - {name: users, from: [{serviceAccounts: [app], jwt: {issuer: 'https://id.example.com'}}]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: no-admin, namespace: shop}
spec: {action: Deny, rules: [{name: host, to: [{hosts: [admin.shop]}]}]}
";

/// What the workload's sidecar refuses before any rule is asked is refused here too, whatever the rules say.
#[test]
fn cases_are_answered_as_the_port_and_the_issuers_have_it() {
    let of = |fields: &str| format!("jwt: {{issuer: 'https://id.example.com', {fields}}}");
    let app = |jwt: &str| format!("from: app, path: /, host: orders.shop, {jwt}");
    for (request, expect) in [
        ("from: web, path: /, host: orders.shop".to_owned(), "allow: all/web"),
        ("from: web, tcp: true".into(), "deny: connect_to_http"),
        ("from: web, tcp: true, port: 5432".into(), "deny: no-admin/host"),
        ("from: web, path: /, host: orders.shop, port: 5432".into(), "deny: http_to_tcp"),
        ("from: web, path: /, host: orders.shop, upgrade: tcp".into(), "allow: true"),
        ("from: web, path: /, host: orders.shop, upgrade: spdy/3.1".into(), "deny: upgrade_refused"),
        ("from: web, path: /, host: orders.shop, upgrade: tcp, method: PUT".into(), "deny: upgrade_refused"),
        ("from: web, path: '/a%2Fb', host: orders.shop, port: 8081".into(), "allow: true"),
        ("from: web, rawPath: '/a%2fb', host: orders.shop, port: 8081".into(), "allow: true"),
        ("from: web, rawPath: '/a%2Fb', host: orders.shop".into(), "deny: bad_request"),
        ("from: web, rawPath: '/a#b', host: orders.shop".into(), "allow: true"),
        ("from: web, path: /, host: 'a b'".into(), "deny: bad_request"),
        (app(&of("audiences: [orders]")), "allow: all/users"),
        (app(&of("audiences: [web]")), "deny: token_invalid"),
        (app(&of("subject: ann")), "deny: token_invalid"),
        (app("jwt: {issuer: else, audiences: [orders]}"), "deny: token_invalid"),
        (
            app(&(of("audiences: [orders], claims: {exp: 5}") + ", at: '2026-11-27T10:00:00Z'")),
            "deny: token_invalid",
        ),
        (app(&of("audiences: [orders], claims: {exp: 5}")), "allow: all/users"),
        (app("jwt: {unverified: true}"), "deny: default"),
    ] {
        let mut files = set(&format!("  - {{name: one, request: {{{request}}}, expect: {{{expect}}}}}\n"));
        files[0].text = SERVICE.trim_start_matches("---\n").into();
        files[1].text = String::from_utf8_lossy(&files[1].text)
            .replace("{labels: {app: orders}", "{serviceAccount: orders, labels: {app: orders}")
            .into();
        let report = run_tests(&files, &scope()).unwrap_or_else(|errors| panic!("{request}: {errors}"));
        let [case] = report.cases.as_slice() else { panic!("one case") };
        assert!(case.passed, "{request} {expect}: {case:?}");
    }
}

#[test]
fn a_case_whose_answer_depends_on_the_host_fails_without_it() {
    let mut files = set("  - {name: one, request: {from: web, path: /}, expect: {deny: true}}\n");
    files[0].text = SERVICE.trim_start_matches("---\n").into();
    let report = run_tests(&files, &scope()).unwrap_or_else(|errors| panic!("{errors}"));
    let [case] = report.cases.as_slice() else { panic!("one case") };
    assert!(!case.passed && case.got.contains("depends on the host"), "{case:?}");
    assert!(
        case.explanation.as_ref().is_some_and(|text| text.contains("if the host is admin.shop")),
        "{case:?}"
    );
}
