//! Hosts, header fields, gRPC methods and what is left out: tables of what rules mean, held against both engines.

use std::collections::BTreeMap;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{
    Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Tokens, Upgrade, Workload,
    load, run_tests,
};
use postern_svid::{SpiffeId, TrustDomain};

fn try_generation(action: &str, to: &str) -> Result<Generation, String> {
    // Beside a Deny everything is allowed, so that the Deny shows.
    let open = match action {
        "Deny" => {
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: open, namespace: shop}\nspec: {tier: Baseline, action: Allow, rules: [{name: all}]}\n"
        }
        _ => "",
    };
    let text = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  action: {action}\n  rules:\n  - name: r\n    to: [{to}]\n{open}"
    );
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: text.into_bytes() };
    load(&[file], &scope, 1).map_err(|errors| errors.to_string())
}

fn generation(action: &str, to: &str) -> Generation {
    try_generation(action, to).unwrap_or_else(|errors| panic!("{errors}"))
}

struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { method: "GET", path: "/", host: "orders.shop", headers: &[] }
    }
}

impl Ask<'_> {
    fn is_allowed(&self, generation: &Generation) -> bool {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
        let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let method = CanonMethod::parse(self.method).expect("a literal");
        let path = CanonPath::parse(self.path, &generation.defaults().path).expect("a literal");
        let host = CanonHost::parse(self.host).expect("a literal");
        let mut fields = HeaderFields::new();
        for (name, value) in self.headers {
            fields.push(name, value).expect("a literal");
        }
        let operation = Operation::Http {
            method: &method,
            path: &path,
            host: Some(&host),
            headers: Some(&fields as &dyn HeaderLines),
            upgrade: None,
            tokens: Tokens::Absent,
        };
        let verdict = generation.decide(&generation.connection(source), 8080, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
        verdict.is_allowed()
    }
}

#[test]
fn hosts() {
    for (pattern, host, expected) in [
        ("admin.example.com", "admin.example.com", true),
        ("admin.example.com", "ADMIN.Example.com.", true),
        ("admin.example.com", "admin.example.com:80", true),
        ("admin.example.com", "admin.example.com:4443", true),
        ("admin.example.com", "xadmin.example.com", false),
        ("admin.example.com", "x.admin.example.com", false),
        ("'*.example.com'", "a.example.com", true),
        ("'*.example.com'", "a.b.example.com:1", true),
        ("'*.example.com'", "example.com", false),
        ("'*.example.com'", "aexample.com", false),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "[::ffff:10.0.0.1]:9", true),
        ("'*.1'", "10.0.0.1", false),
    ] {
        let to = format!("{{hosts: [{pattern}]}}");
        let question = Ask { host, ..Ask::default() };
        match try_generation("Allow", &to) {
            Ok(allow) => assert_eq!(question.is_allowed(&allow), expected, "{pattern} {host}"),
            Err(errors) => assert!(!expected && errors.contains("address"), "{errors}"),
        }
        if let Ok(deny) = try_generation("Deny", &to) {
            assert_eq!(!question.is_allowed(&deny), expected, "deny {pattern} {host}");
        }
    }
}

/// Field by field, the value that a Deny must catch and the value that an Allow may trust are not the same: servers
/// differ in which line, and which element, they read.
#[test]
fn header_fields() {
    const ROLE: &str = "x-role";
    for (test, lines, allow, deny) in [
        ("exact: [admin]", &["admin"][..], true, true),
        ("exact: [admin]", &["user"], false, false),
        ("exact: [admin]", &[], false, false),
        ("exact: [admin]", &["Admin"], false, false),
        ("exact: [admin]", &["user,admin"], false, true),
        ("exact: [admin]", &["user", "admin"], false, true),
        ("exact: [admin]", &["admin", "admin"], false, true),
        ("exact: [admin, user]", &["user"], true, true),
        ("exact: [''] ", &[""], true, true),
        ("prefix: [adm]", &["admin"], true, true),
        ("prefix: [adm]", &["user, admin"], false, true),
        ("prefix: [adm]", &["user"], false, false),
        ("present: true", &["a", "b"], true, true),
        ("present: true", &[""], true, true),
        ("present: true", &[], false, false),
        ("present: false", &[], true, true),
        ("present: false", &["a"], false, false),
        // An Allow never trusts a field that is not there; a Deny fires on all that is not certainly excepted.
        ("not: {exact: [guest]}", &[], false, true),
        ("not: {exact: [guest]}", &["guest"], false, false),
        ("not: {exact: [guest]}", &["admin"], true, true),
        ("not: {exact: [guest]}", &["admin, guest"], false, true),
        ("not: {exact: [guest]}", &["guest", "guest"], false, true),
        ("not: {prefix: [gue]}", &["guest"], false, false),
    ] {
        let to = format!("{{headers: [{{name: {ROLE}, {test}}}]}}");
        let headers: Vec<(&str, &str)> = lines.iter().map(|line| (ROLE, *line)).collect();
        let question = Ask { headers: &headers, ..Ask::default() };
        assert_eq!(question.is_allowed(&generation("Allow", &to)), allow, "Allow {test} {lines:?}");
        assert_eq!(!question.is_allowed(&generation("Deny", &to)), deny, "Deny {test} {lines:?}");
    }
    for (list, lines, expected) in [
        ("any", &["user, admin"][..], true),
        ("any", &["user", "other"], false),
        ("all", &["admin", "admin,admin"], true),
        ("all", &["admin,user"], false),
        ("all", &[], false),
    ] {
        let to = format!("{{headers: [{{name: {ROLE}, exact: [admin], list: {list}}}]}}");
        let headers: Vec<(&str, &str)> = lines.iter().map(|line| (ROLE, *line)).collect();
        let question = Ask { headers: &headers, ..Ask::default() };
        assert_eq!(question.is_allowed(&generation("Allow", &to)), expected, "{list} {lines:?}");
    }
}

#[test]
fn grpc_methods() {
    for (pattern, method, path, expected) in [
        ("shop.Orders/GetOrder", "POST", "/shop.Orders/GetOrder", true),
        ("shop.Orders/GetOrder", "GET", "/shop.Orders/GetOrder", false),
        ("shop.Orders/GetOrder", "POST", "/shop.Orders/GetOrders", false),
        ("shop.Orders/List*", "POST", "/shop.Orders/ListAll", true),
        ("shop.Orders/List*", "POST", "/shop.Orders/List", true),
        ("shop.Orders/List*", "POST", "/shop.Orders/List/x", false),
        ("shop.Orders/List*", "POST", "/shop.Order/List", false),
        ("shop.Orders/*", "POST", "/shop.Orders/Any", true),
        ("shop.Orders/*", "POST", "/shop.Orders/", false),
        ("shop.Orders/*", "POST", "/shop.Orders/Any/x", false),
    ] {
        let to = format!("{{grpc: ['{pattern}']}}");
        let question = Ask { method, path, ..Ask::default() };
        assert_eq!(question.is_allowed(&generation("Allow", &to)), expected, "{pattern} {method} {path}");
        assert_eq!(
            !question.is_allowed(&generation("Deny", &to)),
            expected,
            "Deny {pattern} {method} {path}"
        );
    }
}

#[test]
fn what_is_left_out() {
    let to = "{pathPrefix: [/v1], not: {methods: [DELETE], pathPrefix: [/v1/admin], hosts: ['*.internal'], ports: [9090]}}";
    for (question, expected) in [
        (Ask { path: "/v1/x", ..Ask::default() }, true),
        (Ask { path: "/v1/x", method: "DELETE", ..Ask::default() }, false),
        (Ask { path: "/v1/admin/x", ..Ask::default() }, false),
        // One reading of it is excluded.
        (Ask { path: "/v1/admin;x/y", ..Ask::default() }, false),
        (Ask { path: "/v1/x", host: "a.internal", ..Ask::default() }, false),
        (Ask { path: "/v2", ..Ask::default() }, false),
    ] {
        let Ask { method, path, host, .. } = question;
        assert_eq!(question.is_allowed(&generation("Allow", to)), expected, "{method} {host} {path}");
    }
    // A Deny that leaves one path out denies the reading that is not left out.
    let deny = generation("Deny", "{not: {paths: [/health]}}");
    assert!(Ask { path: "/health", ..Ask::default() }.is_allowed(&deny));
    assert!(!Ask { path: "/health;x", ..Ask::default() }.is_allowed(&deny));
    assert!(!Ask { path: "/", ..Ask::default() }.is_allowed(&deny));
}

/// What opaque bytes never show: a Deny fires, an Allow does not.
#[test]
fn opaque_bytes() {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    for (to, allow, deny) in [
        ("{hosts: [a]}", false, true),
        ("{headers: [{name: x-a, present: false}]}", false, true),
        ("{grpc: [a/b]}", false, true),
        ("{not: {hosts: [a]}}", false, true),
        ("{not: {methods: [GET]}}", false, true),
        ("{not: {ports: [9090]}}", true, true),
        ("{not: {ports: [8080], methods: [GET]}}", false, false),
    ] {
        for (action, expected) in [("Allow", allow), ("Deny", !deny)] {
            let generation = generation(action, to);
            let verdict = generation.decide(&generation.connection(source), 8080, Operation::Tcp);
            assert_eq!(verdict, generation.decide_by_reference(source, 8080, Operation::Tcp));
            assert_eq!(verdict.is_allowed(), expected, "{action} {to}");
        }
    }
}

/// Upgrades are a part of the request: rules that do not speak of them cover them.
#[test]
fn upgrades() {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let (get, path) = (CanonMethod::get(), CanonPath::parse("/", &Default::default()).expect("a literal"));
    for (to, none, websocket, tcp) in [
        ("{upgrade: [websocket]}", false, true, false),
        ("{upgrade: [tcp, websocket]}", false, true, true),
        ("{upgrade: ['*']}", false, true, true),
        ("{methods: [GET]}", true, true, true),
        ("{methods: [GET], upgrade: [tcp]}", false, false, true),
        ("{not: {upgrade: ['*']}}", true, false, false),
        ("{not: {upgrade: [websocket]}}", true, false, true),
    ] {
        for (asked, expected) in [(None, none), (Some("websocket"), websocket), (Some("tcp"), tcp)] {
            let upgrade = asked.map(|name| Upgrade::parse(name).expect("a literal"));
            let operation = Operation::Http {
                method: &get,
                path: &path,
                host: None,
                headers: None,
                upgrade: upgrade.as_ref(),
                tokens: Tokens::Absent,
            };
            for action in ["Allow", "Deny"] {
                let generation = generation(action, to);
                let verdict = generation.decide(&generation.connection(source), 8080, operation);
                assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
                assert_eq!(verdict.is_allowed(), expected == (action == "Allow"), "{action} {to} {asked:?}");
            }
        }
    }
}

/// The server name of TLS that is passed on: known, known to be none, or never to be known.
#[test]
fn server_names() {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let (get, path) = (CanonMethod::get(), CanonPath::parse("/", &Default::default()).expect("a literal"));
    let name = |text: &str| CanonHost::parse(text).expect("a literal");
    let (db, other) = (name("DB.example.com"), name("example.com"));
    let questions = [
        Operation::Tls { sni: Some(&db) },
        Operation::Tls { sni: Some(&other) },
        Operation::Tls { sni: None },
        Operation::Tcp,
        Operation::http(&get, &path),
    ];
    for (to, allow, deny) in [
        ("{sni: [db.example.com]}", [true, false, false, false, false], [true, false, false, true, false]),
        ("{sni: ['*.example.com']}", [true, false, false, false, false], [true, false, false, true, false]),
        ("{not: {sni: [db.example.com]}}", [false, true, true, false, true], [false, true, true, true, true]),
        ("{sni: [db.example.com], ports: [1]}", [false; 5], [false; 5]),
        // What is inside of TLS is never known.
        ("{methods: [GET]}", [false, false, false, false, true], [true; 5]),
    ] {
        for (action, fires) in [("Allow", allow), ("Deny", deny)] {
            let generation = generation(action, to);
            for (operation, fires) in questions.into_iter().zip(fires) {
                let verdict = generation.decide(&generation.connection(source), 8080, operation);
                assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
                assert_eq!(verdict.is_allowed(), fires == (action == "Allow"), "{action} {to} {operation:?}");
                let explained = generation.explain(source, 8080, operation).to_string();
                assert!(
                    verdict.is_allowed() || action == "Deny" || explained.contains("nearest"),
                    "{explained}"
                );
            }
        }
    }
    assert!(generation("Allow", "{sni: [a.b]}").asks_sni(8080));
    assert!(!generation("Allow", "{sni: [a.b], ports: [1]}").asks_sni(8080));
    assert!(generation("Deny", "{not: {sni: [a.b]}}").asks_sni(8080));
    assert!(!generation("Deny", "{hosts: [a.b]}").asks_sni(8080));
}

#[test]
fn tests_of_policies_state_upgrades_and_server_names() {
    let text = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: chat, to: [{paths: [/chat], upgrade: [websocket]}]}
  - {name: db, to: [{sni: ["*.db.example"], ports: [5432]}]}
---
apiVersion: postern.dev/v1alpha1
kind: PolicyTest
metadata: {name: t, namespace: shop}
spec:
  workload: {port: 5432}
  cases:
  - {name: a chat, request: {from: web, path: /chat, upgrade: websocket}, expect: {allow: p/chat}}
  - {name: another, request: {from: web, path: /chat, upgrade: tcp}, expect: {deny: default}}
  - {name: none, request: {from: web, path: /chat}, expect: {deny: default}}
  - {name: named, request: {from: web, tcp: true, sni: a.db.example}, expect: {allow: p/db}}
  - {name: other name, request: {from: web, tcp: true, sni: db.example}, expect: {deny: default}}
  - {name: no name, request: {from: web, tcp: true, sni: ""}, expect: {deny: default}}
  - {name: unread, request: {from: web, tcp: true}, expect: {deny: default}}
"#;
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: None,
    };
    let run = |text: &str| run_tests(&[SourceFile { name: "p.yaml".into(), text: text.into() }], &scope);
    let report = run(text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((report.passed(), report.percent()), (7, 100), "{report:?}");
    for (written, wrong, expected) in [
        ("upgrade: tcp", "upgrade: TCP", "write tcp"),
        ("tcp: true, sni: db.example", "path: /, sni: db.example", "write `tcp: true`"),
        ("sni: db.example", "sni: 'db.example:1'", "has no port"),
        ("tcp: true, sni: db.example", "tcp: true, upgrade: tcp", "has no method"),
    ] {
        assert!(text.contains(written), "{written}");
        let errors = run(&text.replace(written, wrong)).err().unwrap_or_default().to_string();
        assert!(errors.contains(expected), "{wrong}: {errors}");
    }
}

#[test]
fn mistakes() {
    for (action, to, expected) in [
        ("Allow", "{hosts: ['a.example:80']}", "without its port"),
        ("Allow", "{hosts: [A.example]}", "write `a.example`"),
        ("Allow", "{hosts: ['*']}", "no host name has"),
        ("Allow", "{hosts: ['*.10.0.0.1']}", "no name below an address"),
        ("Allow", "{hosts: []}", "`hosts` is empty"),
        ("Allow", "{headers: [{name: X-Role, exact: [a]}]}", "write `x-role`"),
        ("Allow", "{headers: [{name: x_role, exact: [a]}]}", "never reach a workload"),
        ("Allow", "{headers: [{name: host, exact: [a]}]}", "write `hosts`"),
        ("Allow", "{headers: [{name: postern-port, exact: [a]}]}", "never come from a caller"),
        ("Allow", "{headers: [{name: x-role}]}", "asks for nothing"),
        ("Allow", "{headers: [{name: x-role, exact: ['a,b']}]}", "holds no comma"),
        ("Allow", "{headers: [{name: x-role, exact: [' a']}]}", "no space at its ends"),
        ("Allow", "{headers: [{name: x-role, prefix: ['']}]}", "write `present: true`"),
        ("Allow", "{headers: [{name: x-role, exact: []}]}", "`exact` is empty"),
        ("Allow", "{headers: [{name: x-role, present: true, exact: [a]}]}", "only one of"),
        ("Allow", "{headers: [{name: x-role, present: true, list: any}]}", "says how"),
        ("Deny", "{headers: [{name: x-role, exact: [a], list: all}]}", "no meaning"),
        ("Allow", "{headers: [{name: x-role, exact: [a], list: some}]}", "unknown value"),
        ("Allow", "{headers: [{name: x-role, not: {}}]}", "`not` is empty"),
        ("Allow", "{grpc: [shop.Orders]}", "names no gRPC method"),
        ("Allow", "{grpc: ['shop.Orders/a/b']}", "names no gRPC method"),
        ("Allow", "{grpc: ['*/Get']}", "names no gRPC method"),
        ("Allow", "{grpc: ['a/b'], methods: [POST]}", "method and path itself"),
        ("Allow", "{not: {}}", "`not` is empty"),
        ("Allow", "{not: {methods: ['*']}}", "matches nothing"),
        ("Allow", "{hots: [a]}", "did you mean `hosts`"),
        ("Allow", "{upgrade: []}", "`upgrade` is empty"),
        ("Allow", "{upgrade: [WebSocket]}", "write websocket"),
        ("Allow", "{upgrade: [h2c]}", "never passed on"),
        ("Allow", "{upgrade: ['*', tcp]}", "stands alone"),
        ("Allow", "{upgrade: ['a b']}", "not the name of an upgrade"),
        ("Allow", "{sni: []}", "`sni` is empty"),
        ("Allow", "{sni: [10.0.0.1]}", "never an address"),
        ("Allow", "{sni: [DB.example]}", "write `db.example`"),
        ("Allow", "{sni: ['a.b:443']}", "without its port"),
        ("Allow", "{sni: [a.b], methods: [GET]}", "matches nothing"),
        ("Allow", "{not: {sni: []}}", "`sni` is empty"),
    ] {
        let errors = try_generation(action, to).err().unwrap_or_default();
        assert!(errors.contains(expected), "{to}: {errors}");
        assert!(errors.contains("p.yaml:8:"), "{errors}");
    }
}
