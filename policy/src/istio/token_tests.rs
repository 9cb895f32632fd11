//! RequestAuthentications, and rules that ask for tokens and server names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use postern_svid::{SpiffeId, TrustDomain};
use serde_json::{Value, json};

use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::tokens::{Claims, TokenSet};
use crate::{Generation, Operation, Scope, Source, SourceFile, Workload, load};

fn read(text: &str) -> Result<Generation, String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("prod").unwrap(),
        root_namespace: "istio-system".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".into(), "orders".into())]),
        }),
    };
    let file = SourceFile { name: "istio.yaml".into(), text: text.as_bytes().into() };
    load(&[file], &scope, 1).map_err(|errors| errors.to_string())
}

fn document(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn policy(spec: &str) -> String {
    document("AuthorizationPolicy", "p", "shop", spec)
}

const RULE: &str = "issuer: \"https://id.x\", jwksUri: \"https://id.x/jwks\"";

fn request(name: &str, namespace: &str, spec: &str) -> String {
    document("RequestAuthentication", name, namespace, spec)
}

fn issuer() -> String {
    request("r", "shop", &format!("jwtRules: [{{{RULE}}}]"))
}

/// By both engines. No token is `null`, one that cannot be verified is `"unverified"`.
fn allows(generation: &Generation, token: &Value) -> bool {
    let id = SpiffeId::parse("spiffe://prod/ns/web/sa/front").unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let tokens = match token {
        Value::Null => TokenSet::absent(),
        Value::Object(claims) => {
            let mut claims = claims.clone();
            claims.entry("exp").or_insert_with(|| u32::MAX.into());
            TokenSet::verified(vec![Arc::new(Claims::from_object(claims).unwrap())])
        }
        _ => TokenSet::unknown(),
    };
    let operation = Operation::Http {
        method: &CanonMethod::parse("GET").unwrap(),
        path: &CanonPath::parse("/", &PathOptions::default()).unwrap(),
        host: None,
        headers: None,
        upgrade: None,
        tokens: tokens.at(UNIX_EPOCH),
    };
    decided(generation, source, operation)
}

fn decided(generation: &Generation, source: Source<'_>, operation: Operation<'_>) -> bool {
    let verdict = generation.decide(&generation.connection(source), 8080, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
    let explained = generation.explain(source, 8080, operation);
    assert!(!explained.to_string().is_empty());
    verdict.is_allowed()
}

#[test]
fn what_rules_ask_of_tokens() {
    let ann = json!({"iss": "https://id.x", "sub": "ann", "aud": ["shop", "web"], "azp": "app",
        "scope": "read write", "groups": ["dev", "ops"], "realm": {"role": "admin"}, "age": 7, "words": "a b"});
    let source = |fields: &str| format!("from: [{{source: {{{fields}}}}}]");
    let when = |key: &str, fields: &str| format!("when: [{{key: \"{key}\", {fields}}}]");
    // Whether an ALLOW allows: with the token, without one, with one of which nothing is known.
    for (rule, with, without) in [
        (source("requestPrincipals: [\"https://id.x/ann\"]"), true, false),
        (source("requestPrincipals: [\"https://id.x/bob\"]"), false, false),
        (source("requestPrincipals: [\"*\"]"), true, false),
        (source("notRequestPrincipals: [\"*\"]"), false, true),
        (source("notRequestPrincipals: [\"*/bob\"]"), true, true),
        (source("requestPrincipals: [\"*\"], notRequestPrincipals: [\"*/ann\"]"), false, false),
        (source("requestPrincipals: [\"*\"], namespaces: [web]"), true, false),
        (source("requestPrincipals: [\"*\"], namespaces: [other]"), false, false),
        (when("request.auth.principal", "values: [\"https://id.x/*\"]"), true, false),
        (when("request.auth.audiences", "values: [web]"), true, false),
        (when("request.auth.audiences", "values: [other]"), false, false),
        (when("request.auth.presenter", "values: [app]"), true, false),
        (when("request.auth.presenter", "notValues: [app]"), false, true),
        (when("request.auth.claims[scope]", "values: [write]"), true, false),
        (when("request.auth.claims[scope]", "values: [\"read write\"]"), false, false),
        (when("request.auth.claims[words]", "values: [a]"), false, false),
        (when("request.auth.claims[words]", "values: [\"a b\"]"), true, false),
        (when("request.auth.claims[groups]", "values: [ops]"), true, false),
        (when("request.auth.claims[groups]", "values: [\"o*\"]"), true, false),
        (when("request.auth.claims[groups]", "values: [\"*v\"]"), true, false),
        (when("request.auth.claims[groups]", "notValues: [dev]"), false, true),
        (when("request.auth.claims[realm][role]", "values: [admin]"), true, false),
        (when("request.auth.claims[realm]", "values: [\"*\"]"), false, false),
        (when("request.auth.claims[absent]", "values: [\"*\"]"), false, false),
        (when("request.auth.claims[absent]", "notValues: [\"*\"]"), true, true),
        // A number is no text, as in Istio.
        (when("request.auth.claims[age]", "values: [\"7\"]"), false, false),
    ] {
        let unknown = json!("unverified");
        let allow = read(&(issuer() + &policy(&format!("rules: [{{{rule}}}]")))).unwrap();
        assert_eq!(allows(&allow, &ann), with, "ALLOW {rule}");
        assert_eq!(allows(&allow, &Value::Null), without, "ALLOW without a token: {rule}");
        assert!(!allows(&allow, &unknown), "ALLOW unknown: {rule}");
        // What the peer alone settles does not depend on tokens.
        let settled = rule.contains("other]") && rule.contains("namespaces");
        let deny = read(&(issuer() + &policy(&format!("action: DENY, rules: [{{{rule}}}]")))).unwrap();
        assert_eq!(!allows(&deny, &ann), with, "DENY {rule}");
        assert_eq!(!allows(&deny, &Value::Null), without, "DENY without a token: {rule}");
        assert_eq!(!allows(&deny, &unknown), !settled, "DENY unknown: {rule}");
        // Of opaque bytes nothing will be known either.
        let id = SpiffeId::parse("spiffe://prod/ns/web/sa/front").unwrap();
        let peer = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        assert!(!decided(&allow, peer, Operation::Tcp), "ALLOW TCP {rule}");
        assert_eq!(!decided(&deny, peer, Operation::Tcp), !settled, "DENY TCP {rule}");
    }
}

#[test]
fn all_that_is_asked_is_asked_of_one_token() {
    let rules = "rules: [{from: [{source: {requestPrincipals: [\"*/ann\"]}}], \
        when: [{key: \"request.auth.claims[scope]\", values: [write]}]}]";
    let allow = read(&(issuer() + &policy(rules))).unwrap();
    let deny = read(&(issuer() + &policy(&format!("action: DENY, {rules}")))).unwrap();
    let token = |sub: &str, scope: &str| {
        let claims = json!({"iss": "https://id.x", "exp": 9, "sub": sub, "scope": scope});
        std::sync::Arc::new(crate::tokens::Claims::from_object(claims.as_object().unwrap().clone()).unwrap())
    };
    let id = SpiffeId::parse("spiffe://prod/ns/web/sa/front").unwrap();
    let peer = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    for (tokens, expected) in [
        (vec![token("ann", "write"), token("bob", "read")], true),
        (vec![token("ann", "read"), token("bob", "write")], false),
    ] {
        let tokens = TokenSet::verified(tokens);
        let operation = Operation::Http {
            method: &CanonMethod::parse("GET").unwrap(),
            path: &CanonPath::parse("/", &PathOptions::default()).unwrap(),
            host: None,
            headers: None,
            upgrade: None,
            tokens: tokens.at(UNIX_EPOCH),
        };
        assert_eq!(decided(&allow, peer, operation), expected);
        assert!(!decided(&deny, peer, operation));
    }
}

#[test]
fn server_names() {
    let id = SpiffeId::parse("spiffe://prod/ns/web/sa/front").unwrap();
    let peer = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let name = CanonHost::parse("db.example").unwrap();
    for (fields, named, unnamed) in [
        ("values: [db.example]", true, false),
        ("values: [DB.example]", true, false),
        ("values: [\"*.example\"]", true, false),
        ("values: [\"db*\"]", true, false),
        ("values: [\"*\"]", true, false),
        ("values: [other.example]", false, false),
        ("notValues: [db.example]", false, true),
        ("notValues: [other.example]", true, true),
    ] {
        let rules = format!("rules: [{{when: [{{key: connection.sni, {fields}}}]}}]");
        let allow = read(&policy(&rules)).unwrap();
        let deny = read(&policy(&format!("action: DENY, {rules}"))).unwrap();
        assert!(allow.asks_sni(8080), "{fields}");
        let tls = Operation::Tls { sni: Some(&name) };
        assert_eq!(decided(&allow, peer, tls), named, "{fields}");
        assert_eq!(decided(&deny, peer, tls), !named, "{fields}");
        assert_eq!(decided(&allow, peer, Operation::Tls { sni: None }), unnamed, "{fields}");
        assert_eq!(decided(&deny, peer, Operation::Tls { sni: None }), !unnamed, "{fields}");
        // A request that can be read has no name, and of opaque bytes it is not known.
        assert_eq!(allows(&allow, &Value::Null), unnamed, "{fields}");
        assert!(!decided(&allow, peer, Operation::Tcp) && !decided(&deny, peer, Operation::Tcp), "{fields}");
    }
    let port = "{to: [{operation: {ports: [\"5432\"]}}], when: [{key: connection.sni, values: [a]}]}";
    let generation = read(&policy(&format!("rules: [{port}]"))).unwrap();
    assert!(generation.asks_sni(5432) && !generation.asks_sni(8080));
}

#[test]
fn issuers_of_a_workload() {
    let names = |generation: &Generation| {
        let issuers = generation.defaults().jwt.issuers.iter();
        issuers.map(|issuer| issuer.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    let rule = format!("jwtRules: [{{{RULE}}}]");
    for (text, expected) in [
        (request("r", "shop", &rule), "https://id.x"),
        (request("r", "istio-system", &rule), "https://id.x"),
        (request("r", "other", &rule), ""),
        (
            request("r", "shop", &format!("selector: {{matchLabels: {{app: orders}}}}, {rule}")),
            "https://id.x",
        ),
        (request("r", "shop", &format!("selector: {{matchLabels: {{app: other}}}}, {rule}")), ""),
        // The same twice is the same once.
        (request("a", "shop", &rule) + &request("b", "istio-system", &rule), "https://id.x"),
        (
            defaults("audiences: [a]") + &request("r", "shop", &rule.replace("id.x", "id.y")),
            "https://id.x https://id.y",
        ),
    ] {
        let generation = read(&text).unwrap();
        assert_eq!(names(&generation), expected, "{text}");
        // An invalid token is refused even where no rule asks for one.
        let added = expected.contains("id.y") || (!text.contains("MeshDefaults") && !expected.is_empty());
        assert_eq!(generation.asks_tokens(), added, "{text}");
    }
    let generation = read(&request(
        "r",
        "shop",
        &format!(
            "jwtRules: [{{{RULE}, audiences: [a, b], fromHeaders: [{{name: X-Token, prefix: \"t \"}}], forwardOriginalToken: true}}]"
        ),
    ));
    let generation = generation.unwrap();
    let issuer = generation.defaults().jwt.issuer("https://id.x").unwrap();
    assert_eq!((issuer.audiences.len(), &*issuer.header.name, &*issuer.header.prefix), (2, "x-token", "t "));
    assert!(issuer.forward);
    let generation = read(&self::issuer()).unwrap();
    let issuer = generation.defaults().jwt.issuer("https://id.x").unwrap();
    assert!(!issuer.forward && issuer.audiences.is_empty() && &*issuer.header.prefix == "Bearer ");
}

fn defaults(fields: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: d, namespace: istio-system}}\n\
         spec: {{jwt: {{issuers: [{{issuer: \"https://id.x\", jwks: {{url: \"https://id.x/jwks\"}}, {fields}}}]}}}}\n"
    )
}

#[test]
fn an_issuer_is_described_once() {
    let rule = |fields: &str| format!("jwtRules: [{{{RULE}{fields}}}]");
    let selected = |app: &str, rule: &str| format!("selector: {{matchLabels: {{app: {app}}}}}, {rule}");
    let other_keys = rule("").replace("/jwks", "/keys");
    let aud = rule(", audiences: [a]");
    for (text, expected) in [
        (request("a", "shop", &rule("")) + &request("b", "shop", &other_keys), "its keys in another place"),
        (
            request("a", "istio-system", &rule("")) + &request("b", "shop", &other_keys),
            "its keys in another place",
        ),
        (request("a", "shop", &rule("")) + &request("b", "shop", &aud), "other audiences"),
        (
            request("a", "shop", &rule("")) + &request("b", "shop", &rule(", forwardOriginalToken: true")),
            "forwarded",
        ),
        (
            request("a", "shop", &rule("")) + &request("b", "shop", &rule(", fromHeaders: [{name: x-t}]")),
            "another header field",
        ),
        (defaults("audiences: [b]") + &request("b", "other", &aud), "other audiences"),
        // No workload hears of both.
        (request("a", "shop", &rule("")) + &request("b", "other", &other_keys), ""),
        (
            request("a", "shop", &selected("orders", &rule("")))
                + &request("b", "shop", &selected("web", &aud)),
            "",
        ),
        (defaults("audiences: [a], forward: false") + &request("b", "shop", &aud), ""),
    ] {
        match read(&text) {
            Ok(_) => assert_eq!(expected, "", "{text}"),
            Err(said) => assert!(!expected.is_empty() && said.contains(expected), "{text}\n{said}"),
        }
    }
    let many: Vec<String> = (0..17).map(|n| format!("{{issuer: i{n}, jwksUri: \"https://a/\"}}")).collect();
    let two = many.split_at(9);
    let text = request("a", "shop", &format!("jwtRules: [{}]", two.0.join(", ")))
        + &request("b", "shop", &format!("jwtRules: [{}]", two.1.join(", ")));
    assert!(read(&text).unwrap_err().contains("at most 16"));
}

#[test]
fn refused_and_warned_of() {
    for (spec, expected) in [
        ("", "says nothing"),
        ("jwtRules: []", "`jwtRules` is empty"),
        ("targetRef: {kind: Gateway}, jwtRules: [{RULE}]", "not attached"),
        ("jwtRules: [{issuer: a}]", "a/.well-known/openid-configuration"),
        ("jwtRules: [{issuer: \"\", jwksUri: \"https://a/\"}]", "an issuer's name"),
        ("jwtRules: [{issuer: a, jwksUri: \"http://a/\"}]", "could be anybody's"),
        ("jwtRules: [{issuer: a, jwksUri: \"https://a/\", jwks: \"{}\"}]", "come from one place"),
        ("jwtRules: [{issuer: a, jwks: nothing}]", "no JSON"),
        ("jwtRules: [{issuer: a, jwks: \"{}\"}]", "no set of keys"),
        (
            "jwtRules: [{issuer: a, jwks: \"{\\\"keys\\\": [{\\\"kty\\\": \\\"RSA\\\", \\\"d\\\": \\\"x\\\"}]}\"}]",
            "private key",
        ),
        ("jwtRules: [{RULE, audiences: []}]", "`audiences` is empty"),
        ("jwtRules: [{RULE, fromParams: [a]}]", "never from a URL or a cookie"),
        ("jwtRules: [{RULE, fromCookies: [a]}]", "never from a URL or a cookie"),
        ("jwtRules: [{RULE, fromHeaders: [{name: a}, {name: b}]}]", "one header field"),
        ("jwtRules: [{RULE, fromHeaders: [{name: Cookie}]}]", "no token is read"),
        ("jwtRules: [{RULE, outputPayloadToHeader: x}]", "`forwardOriginalToken: true`"),
        (
            "jwtRules: [{RULE, outputClaimToHeaders: [{header: x, claim: y}]}]",
            "not written into header fields",
        ),
        ("jwtRules: [{RULE, timeout: 5s}]", "leave `timeout` out"),
        ("jwtRules: [{RULE, spaceDelimitedClaims: [roles]}]", "one text here"),
        ("jwtRules: [{RULE, jwksURI: a}]", "unknown field"),
    ] {
        let said = read(&request("r", "shop", &spec.replace("RULE", RULE))).err().unwrap_or_default();
        assert!(said.contains(expected), "{spec}\n{said}");
    }
    assert!(
        read(&request("r", "shop", &format!("jwtRules: [{{{RULE}, spaceDelimitedClaims: [scope]}}]")))
            .is_ok()
    );
    let warned = |text: String| read(&text).unwrap().warnings().to_string();
    let asks = policy("rules: [{from: [{source: {requestPrincipals: [\"https://id.y/ann\"]}}]}]");
    assert!(warned(asks.clone()).contains("RequestAuthentication with `jwtRules`"));
    assert!(warned(issuer() + &asks).contains("did you mean `https://id.x`"));
    let asks = policy("rules: [{from: [{source: {requestPrincipals: [\"https://id.x\"]}}]}]");
    assert!(warned(issuer() + &asks).contains("nobody configured"));
    let asks = policy("rules: [{when: [{key: request.auth.audiences, values: [a]}]}]");
    assert!(warned(asks.clone()).contains("nobody configured"));
    assert!(!warned(issuer() + &asks).contains("nobody configured"));
}
