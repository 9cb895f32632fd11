use std::collections::BTreeMap;
use std::time::Duration;

use postern_svid::{SpiffeId, TrustDomain};

use super::*;
use crate::diagnostic::SourceFile;
use crate::load;
use crate::verdict::{Scope, Workload};

const SERVICE: &str = "apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  identity: spiffe://td/ns/shop/sa/orders
  ports:
  - {port: 80, targetPort: 8080, protocol: http, upgrades: [tcp]}
  - {port: 81, targetPort: 8081, protocol: grpc}
  - {port: 5432, protocol: tcp}
  - {port: 443, targetPort: 8443, protocol: tls}
  - {port: 83, targetPort: 8083, protocol: http, preserveRawPath: true}
  endpoints: [{address: 127.0.0.1}]
---
";
const ALL: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all, namespace: shop}
spec: {action: Allow, rules: [{name: r}]}
";

fn generation(text: &str) -> Generation {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "a.yaml".into(), text: text.into() };
    load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The answer to shop/web, at the port as its Service declares it.
fn answer(generation: &Generation, port: u16, told: Told<'_>, at: Option<u64>) -> Answer {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let declared = generation.services().leading_to_port("shop", "orders", port).map(Declared::from);
    let at = at.map(|at| UNIX_EPOCH + Duration::from_secs(at));
    generation.answer(&Question { source, port, declared, told, at })
}

fn http<'a>(method: &'a str, target: &'a str) -> Told<'a> {
    let (host, fields, upgrade) = (Some("orders.shop"), None, None);
    Told::Http { method, target, host, fields, upgrade, token: &ToldToken::Absent }
}

/// `allowed`, or the reason.
fn reason(answer: &Answer) -> String {
    let shown = serde_json::to_value(answer).unwrap();
    assert_eq!(shown["verdict"]["allowed"] == true, answer.is_allowed());
    shown["verdict"]["reason"].as_str().unwrap_or("allowed").to_owned()
}

#[test]
fn what_a_port_does_not_carry_is_refused() {
    let generation = generation(&(SERVICE.to_owned() + ALL));
    let [tcp, spdy] = ["tcp", "spdy/3.1"].map(|name| Upgrade::parse(name).unwrap());
    let upgrade = |upgrade, method| {
        let (host, fields) = (Some("orders.shop"), None);
        Told::Http { method, target: "/", host, fields, upgrade: Some(upgrade), token: &ToldToken::Absent }
    };
    for (port, told, expected, words) in [
        (8080, http("GET", "/"), "allowed", ""),
        (8080, Told::Tcp, "connect_to_http", "the Service shop/orders declares it http (a.yaml:7:5)"),
        (8081, Told::Tls { sni: None }, "connect_to_http", "(a.yaml:8:5)"),
        (5432, Told::Tcp, "allowed", ""),
        (5432, http("GET", "/"), "http_to_tcp", "the Service shop/orders declares it tcp (a.yaml:9:5)"),
        (5432, Told::Tls { sni: None }, "allowed", "not even a server name"),
        (8443, http("GET", "/"), "http_to_tcp", "to allow it: ask with `tcp`"),
        (8443, Told::Tls { sni: None }, "allowed", ""),
        (8080, upgrade(&Upgrade::WebSocket, "POST"), "allowed", "judged as GET"),
        (8081, upgrade(&Upgrade::WebSocket, "GET"), "allowed", ""),
        (8080, upgrade(&tcp, "POST"), "allowed", ""),
        (8080, upgrade(&tcp, "PUT"), "upgrade_refused", "with GET and POST"),
        (
            8080,
            upgrade(&spdy, "GET"),
            "upgrade_refused",
            "add spdy/3.1 to `upgrades` of port 80 of the Service",
        ),
        (8081, upgrade(&tcp, "GET"), "upgrade_refused", "only ports of the protocol http"),
        // Before anything else: a sidecar does not look at the path of what it does not carry.
        (5432, http("GET", "/.."), "http_to_tcp", ""),
        (8080, http("GET", "/.."), "bad_request", "400 before any rule"),
        (8083, http("GET", "/a//b"), "allowed", ""),
        // Nobody says what is spoken there.
        (9999, http("GET", "/"), "allowed", ""),
        (9999, Told::Tcp, "allowed", ""),
    ] {
        let answer = answer(&generation, port, told, None);
        assert_eq!(reason(&answer), expected, "{port} {told:?}: {answer}");
        assert!(answer.to_string().contains(words), "{port} {told:?}: {answer}");
    }
}

#[test]
fn services_that_contradict_each_other_say_nothing() {
    let other = SERVICE
        .replace("name: orders,", "name: canary,")
        .replace("targetPort: 8080, protocol: http, upgrades: [tcp]", "targetPort: 8080, protocol: tcp");
    let both = generation(&(SERVICE.to_owned() + &other + ALL));
    assert_eq!(reason(&answer(&both, 8080, Told::Tcp, None)), "allowed");
    assert_eq!(reason(&answer(&both, 8081, Told::Tcp, None)), "connect_to_http");
    // Another name, the same workload.
    let canary = generation(&(other + ALL));
    assert_eq!(reason(&answer(&canary, 8080, http("GET", "/"), None)), "http_to_tcp");
    let elsewhere =
        generation(&(SERVICE.replace("sa/orders", "sa/other").replace("name: orders", "name: other") + ALL));
    assert_eq!(reason(&answer(&elsewhere, 8080, Told::Tcp, None)), "allowed");
}

#[test]
fn a_fragment_is_cut_off_before_anything_is_judged() {
    let rule = ALL.replace("name: r", "name: r, to: [{paths: [/a]}]");
    let generation = generation(&(SERVICE.to_owned() + &rule));
    for (target, expected) in [
        ("/a", "allowed"),
        ("/a#b", "allowed"),
        ("/a?x#b", "allowed"),
        ("/a#/../../..", "allowed"),
        ("/a#\u{e9} %zz", "allowed"),
        ("/b#/a", "no_rule"),
        ("/a/..#", "no_rule"),
        ("/..#/a", "bad_request"),
    ] {
        let answer = answer(&generation, 8080, http("GET", target), None);
        assert_eq!(reason(&answer), expected, "{target}: {answer}");
        if expected == "allowed" {
            assert_eq!(answer.to_string().contains("fragment"), target.contains('#'), "{target}: {answer}");
        }
    }
}

const ISSUERS: &str = "apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: d, namespace: root}
spec:
  jwt:
    issuers: [{issuer: 'https://id.example.com', audiences: [orders, web], jwks: {file: /k}, clockSkew: 10s}]
---
";
const USERS: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: users, namespace: shop}
spec:
  action: Allow
  rules: [{name: r, from: [{jwt: {issuer: 'https://id.example.com'}}]}, {name: open, to: [{paths: [/open]}]}]
";

#[test]
fn a_token_is_held_against_its_issuer() {
    let text = ISSUERS.to_owned() + USERS;
    let strict = generation(&text);
    let lenient = generation(&text.replace("    issuers", "    otherTokens: Ignore\n    issuers"));
    let ask = |generation: &Generation, claims: &str, target: &str, at: Option<u64>| {
        let token = ToldToken::parse(claims);
        let told =
            Told::Http { method: "GET", target, host: None, fields: None, upgrade: None, token: &token };
        answer(generation, 8080, told, at)
    };
    let good = r#"{"iss":"https://id.example.com","aud":"web","exp":1000}"#;
    let with = |from: &str, to: &str| good.replace(from, to);
    for (claims, at, expected, words) in [
        (good.to_owned(), 500, "allowed", "taken for granted: that a key of https://id.example.com signed"),
        (with("\"web\"", "[\"x\",\"orders\"]"), 500, "allowed", ""),
        ("unverified".to_owned(), 500, "no_rule", "could not be verified"),
        (
            with("id.example.com", "id.exmaple.com"),
            500,
            "token_invalid",
            "did you mean `https://id.example.com`?",
        ),
        (
            with(r#""iss":"https://id.example.com","#, ""),
            500,
            "token_invalid",
            "the one issuer that is configured is `https://id",
        ),
        (with(r#""aud":"web","#, ""), 500, "token_invalid", "`aud` must name one of orders, web"),
        (with("web", "Web"), 500, "token_invalid", "for another audience"),
        (with(r#","exp":1000"#, ""), 500, "token_invalid", "has no claim `exp`"),
        (with("1000", "\"1000\""), 500, "token_invalid", "`exp` is of a wrong type"),
        (good.to_owned(), 1009, "allowed", ""),
        (
            good.to_owned(),
            1010,
            "token_invalid",
            "has ended: its `exp`, and 10 s of `clockSkew`, are past at 1970-01-01T00:16:50Z",
        ),
        (with("}", r#","nbf":511}"#), 500, "token_invalid", "not valid yet"),
        (with("}", r#","nbf":510}"#), 500, "allowed", ""),
        (with("}", r#","iat":511}"#), 500, "token_invalid", "from the future"),
        (
            with("}", r#","scope":"a","scope":"b"}"#),
            500,
            "token_invalid",
            "stands in the token's claims twice",
        ),
        ("[]".to_owned(), 500, "token_invalid", "no JSON object"),
    ] {
        let found = ask(&strict, &claims, "/", Some(at));
        assert_eq!(reason(&found), expected, "{claims} at {at}: {found}");
        assert!(found.to_string().contains(words), "{claims} at {at}: {found}");
        if expected == "token_invalid" {
            assert!(found.to_string().starts_with("denied: the sidecar answers 401"), "{found}");
            // What everybody may do is refused with such a token too, unless it may be somebody else's.
            assert_eq!(reason(&ask(&strict, &claims, "/open", Some(at))), expected, "{claims}");
            let is_other =
                ["exmaple", "[]"].iter().any(|word| claims.contains(word)) || !claims.contains("iss");
            let passes = if is_other { "allowed" } else { "token_invalid" };
            assert_eq!(reason(&ask(&lenient, &claims, "/open", Some(at))), passes, "{claims}");
        }
    }
    // What time it is is not known: then it is not held against the token, and that is said.
    let found = ask(&strict, good, "/", None);
    assert!(
        found.is_allowed() && found.to_string().contains("that it is in time, which is not told"),
        "{found}"
    );
    // Where no rule asks, nothing is read.
    let found = ask(&generation(&(ISSUERS.to_owned() + ALL)), "{}", "/", Some(500));
    assert!(found.is_allowed() && found.to_string().contains("its sidecar reads none"), "{found}");
}

/// Neither way: who has not told the host or the fields must not hear an answer that depends on them.
#[test]
fn what_depends_on_what_was_not_told_is_not_known() {
    let guard = |to: &str| {
        format!(
            "{ALL}---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: guard, namespace: shop}}\n\
             spec: {{action: Deny, rules: [{{name: d, to: [{to}]}}]}}\n"
        )
    };
    let allow = |to: &str| ALL.replace("name: r", &format!("name: r, to: [{to}]"));
    let mut debug = HeaderFields::new();
    debug.push("x-debug", "1").unwrap();
    let mut other = HeaderFields::new();
    other.push("accept", "1").unwrap();
    let ask = |text: &str, host, fields| {
        let told =
            Told::Http { method: "GET", target: "/", host, fields, upgrade: None, token: &ToldToken::Absent };
        answer(&generation(text), 8080, told, None)
    };
    let header = "{headers: [{name: x-debug, present: true}]}";
    let host = "{hosts: [admin.shop]}";
    let both = "{hosts: [admin.shop], headers: [{name: x-debug, exact: ['1', '2']}]}";
    for (text, told, expected, words) in [
        (
            guard(header),
            (None, None),
            "unknown",
            "this Deny would fire: shop/guard/d (a.yaml:9:37), if there is a header field `x-debug`",
        ),
        (guard(header), (None, None), "unknown", "tell the header fields (`--header`"),
        (guard(header), (None, Some(&debug)), "rule", "denied by rule shop/guard/d"),
        (guard(header), (None, Some(&other)), "allowed", "count as not sent: x-debug"),
        (guard(host), (None, None), "unknown", "if the host is admin.shop"),
        (guard(host), (None, None), "unknown", "tell the host (`--host`"),
        (guard(host), (Some("admin.shop"), None), "rule", ""),
        (guard(host), (Some("orders.shop"), None), "allowed", ""),
        (
            guard(both),
            (None, None),
            "unknown",
            "if the host is admin.shop and the header field `x-debug` is one of \"1\", \"2\"",
        ),
        // Known not to fire, whatever the other is.
        (guard(both), (Some("orders.shop"), None), "allowed", ""),
        (guard(both), (None, Some(&other)), "allowed", ""),
        (guard(both), (Some("admin.shop"), None), "unknown", "header field"),
        (guard("{not: {hosts: [orders.shop]}}"), (None, None), "unknown", "if the host is not orders.shop"),
        (allow(header), (None, None), "unknown", "this Allow would match: shop/all/r (a.yaml:4:"),
        (allow(header), (None, Some(&debug)), "allowed", ""),
        (allow(header), (None, Some(&other)), "no_rule", "there is no header field `x-debug`"),
        // Denied in any case, for whichever reason.
        (
            guard(header)
                .replace(
                    "kind: AccessPolicy\nmetadata: {name: all",
                    "kind: AccessPolicy\nmetadata: {name: al",
                )
                .replace("action: Allow", "action: Audit"),
            (None, None),
            "rule",
            "depends on what was not told: it does if there is a header field `x-debug`; if not, no Allow rule matches",
        ),
    ] {
        let (host, fields) = told;
        let found = ask(&text, host, fields);
        assert_eq!(reason(&found), expected, "{text}\n{told:?}: {found}");
        assert!(found.to_string().contains(words), "{words}\n{found}");
        let shown = serde_json::to_value(&found).unwrap();
        assert_eq!(shown["verdict"]["allowed"].is_null(), expected == "unknown", "{shown}");
        assert_eq!(shown["untold"].is_array(), expected == "unknown", "{shown}");
    }
    let cel = guard("{ports: [8080]}").replace(
        "ports: [8080]}]}",
        "ports: [8080]}], when: {cel: 'request.headers[\"x-debug\"] == \"1\"'}}",
    );
    let found = ask(&cel, None, None);
    assert_eq!(reason(&found), "unknown", "{found}");
    assert_eq!(reason(&ask(&cel, None, Some(&debug))), "rule");
}
