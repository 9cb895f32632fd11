//! What rules say about tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{
    Claims, Explanation, Generation, Operation, Scope, Source, SourceFile, TokenSet, Tokens, Workload, load,
    run_tests,
};
use postern_svid::{SpiffeId, TrustDomain};

const DEFAULTS: &str = "apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: d, namespace: root}
spec:
  jwt:
    issuers:
    - {issuer: https://id.example.com, audiences: [orders, other], jwks: {file: /keys.json}}
    - {issuer: j, audiences: [orders], jwks: {url: https://j.example/keys, caFile: /ca.pem, maxStale: 1h}}
---
";

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

fn policy(action: &str, fields: &str) -> String {
    format!(
        "{DEFAULTS}apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec:\n  action: {action}\n  rules:\n  - name: r\n{fields}"
    )
}

fn loaded(text: &str) -> Result<Generation, String> {
    load(&[SourceFile { name: "a.yaml".into(), text: text.into() }], &scope(), 1)
        .map_err(|errors| errors.to_string())
}

fn token(claims: &str) -> TokenSet {
    let text = format!(r#"{{"exp":100,{claims}}}"#);
    TokenSet::verified(vec![Arc::new(Claims::from_json(text.as_bytes()).expect(claims))])
}

/// A token of the first issuer.
fn own(claims: &str) -> TokenSet {
    token(&format!(r#""iss":"https://id.example.com","aud":["orders"],"sub":"ann"{claims}"#))
}

fn asked<T>(peer: Option<&str>, tokens: Tokens<'_>, ask: impl FnOnce(Source<'_>, Operation<'_>) -> T) -> T {
    let id = peer.map(|id| SpiffeId::parse(id).expect("a literal"));
    let source = Source { identity: id.as_ref(), address: [10, 0, 0, 1].into() };
    let method = CanonMethod::get();
    let path = CanonPath::parse("/", &Default::default()).expect("a literal");
    ask(
        source,
        Operation::Http { method: &method, path: &path, host: None, headers: None, upgrade: None, tokens },
    )
}

const WEB: Option<&str> = Some("spiffe://td/ns/shop/sa/web");

fn is_allowed(generation: &Generation, peer: Option<&str>, tokens: Tokens<'_>) -> bool {
    asked(peer, tokens, |source, operation| {
        let verdict = generation.decide(&generation.connection(source), 8080, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
        verdict.is_allowed()
    })
}

fn explained(generation: &Generation, tokens: Tokens<'_>) -> Explanation {
    asked(WEB, tokens, |source, operation| generation.explain(source, 8080, operation))
}

/// Whether an Allow with this `jwt` admits, and whether a Deny with it denies what another rule allows.
fn both(jwt: &str, tokens: &TokenSet) -> (bool, bool) {
    let now = UNIX_EPOCH;
    let allow = loaded(&policy("Allow", &format!("    from: [{{{jwt}}}]\n"))).expect(jwt);
    let all = "\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: q, namespace: shop}\n\
               spec: {action: Allow, rules: [{name: r}]}\n";
    let deny = policy("Deny", &format!("    from: [{{{jwt}}}]\n    to: [{{ports: [8080]}}]")) + all;
    let deny = loaded(&deny).expect(jwt);
    assert!(allow.asks_tokens() && deny.asks_tokens());
    (is_allowed(&allow, WEB, tokens.at(now)), !is_allowed(&deny, WEB, tokens.at(now)))
}

#[test]
fn tokens_and_their_claims() {
    const ISSUER: &str = "issuer: https://id.example.com";
    for (demand, claims, allows, denies) in [
        ("", "", true, true),
        ("audiences: [orders]", "", true, true),
        ("audiences: [other]", "", false, false),
        ("audiences: [x, orders]", "", true, true),
        ("subjects: [ann, bob]", "", true, true),
        ("subjects: [an]", "", false, false),
        ("claims: {scope: {has: 'orders:write'}}", r#","scope":"a orders:write""#, true, true),
        ("claims: {scope: {has: 'orders:write'}}", r#","scope":"orders:writer""#, false, false),
        ("claims: {scope: {has: [a, b]}}", r#","scope":"b a""#, true, true),
        ("claims: {scope: {has: [a, b]}}", r#","scope":"a""#, false, false),
        ("claims: {scope: {has: [a, b]}}", r#","scope":["b","a"]"#, true, true),
        // Of another shape than the rule's writer thought of: an Allow does not guess, nor does a Deny.
        ("claims: {scope: {has: a}}", r#","scope":["a b"]"#, false, true),
        ("claims: {scope: {has: a}}", r#","scope":["b c"]"#, false, false),
        ("claims: {scope: {has: a}}", r#","scope":[["a"]]"#, false, true),
        ("claims: {scope: {has: a}}", r#","scope":{"a":1}"#, false, true),
        ("claims: {scope: {has: '7'}}", r#","scope":[7]"#, false, true),
        ("claims: {scope: {has: '7'}}", r#","scope":[70, 7.5, "70"]"#, false, false),
        ("claims: {scope: {has: 'true'}}", r#","scope":true"#, false, true),
        ("claims: {scope: {not: {has: a}}}", r#","scope":["b",["a"]]"#, false, true),
        ("claims: {scope: {not: {has: a}}}", r#","scope":["b",{"a":1}]"#, false, true),
        ("claims: {tenant: {exact: [a]}}", r#","tenant":[["b",["a"]]]"#, false, true),
        ("claims: {tenant: {exact: [a]}}", r#","tenant":[["b",["c"]],null]"#, false, false),
        ("claims: {tenant: {exact: [a]}}", r#","tenant":{"name":"b"}"#, false, true),
        ("claims: {tenant: {any: [a]}}", r#","tenant":[{"name":"a"}]"#, false, true),
        ("claims: {tenant: {any: [a]}}", r#","tenant":[["a"]]"#, false, true),
        ("claims: {tenant: {prefix: ['7']}}", r#","tenant":71"#, false, true),
        ("claims: {tenant: {prefix: ['7']}}", r#","tenant":17"#, false, false),
        ("claims: {tenant: {prefix: [tr]}}", r#","tenant":true"#, false, true),
        ("claims: {tenant: {not: {exact: [a]}}}", r#","tenant":["b",["a"]]"#, false, true),
        ("claims: {tenant: {not: {exact: [a]}}}", r#","tenant":["b",["c"]]"#, true, true),
        ("claims: {tenant: {not: {exact: [7]}}}", r#","tenant":7.0"#, false, false),
        ("claims: {tenant: {not: {exact: [7]}}}", r#","tenant":[[7.0]]"#, false, true),
        (
            "claims: {realm_access.roles: {any: [customer]}}",
            r#","realm_access":{"roles":["x","customer"]}"#,
            true,
            true,
        ),
        (
            "claims: {realm_access.roles: {any: [customer]}}",
            r#","realm_access":{"roles":"customer"}"#,
            true,
            true,
        ),
        ("claims: {realm_access.roles: {any: [customer]}}", r#","realm_access":["roles"]"#, false, false),
        ("claims: {tenant: {exact: [a, b]}}", r#","tenant":"b""#, true, true),
        ("claims: {tenant: {exact: [a]}}", r#","tenant":"A""#, false, false),
        // A list where one value is expected: an Allow does not guess which one counts, a Deny fires for any.
        ("claims: {tenant: {exact: [a]}}", r#","tenant":["a","b"]"#, false, true),
        ("claims: {tenant: {exact: [a]}}", r#","tenant":["a"]"#, false, true),
        ("claims: {tenant: {prefix: [eu-]}}", r#","tenant":"eu-1""#, true, true),
        ("claims: {level: {exact: [7]}}", r#","level":7"#, true, true),
        ("claims: {level: {exact: [7]}}", r#","level":"7""#, true, true),
        ("claims: {level: {exact: ['07']}}", r#","level":7"#, false, false),
        // Numbers are what they are worth.
        ("claims: {level: {exact: [7]}}", r#","level":7.0"#, true, true),
        ("claims: {level: {exact: [7]}}", r#","level":70e-1"#, true, true),
        ("claims: {level: {exact: [7.5]}}", r#","level":7.5"#, true, true),
        ("claims: {level: {exact: [0]}}", r#","level":-0.0"#, true, true),
        ("claims: {level: {exact: ['1e3']}}", r#","level":1000"#, false, true),
        ("claims: {level: {exact: ['7.50']}}", r#","level":7.5"#, false, true),
        // Whole numbers are compared to the last digit; where one has lost digits on the way, a Deny takes it for equal.
        ("claims: {level: {exact: [9007199254740993]}}", r#","level":9007199254740993"#, true, true),
        ("claims: {level: {exact: [9007199254740993]}}", r#","level":9007199254740992"#, false, false),
        ("claims: {level: {exact: [9007199254740993]}}", r#","level":9007199254740993.0"#, false, true),
        ("claims: {level: {exact: [36893488147419103232]}}", r#","level":36893488147419103232"#, false, true),
        ("claims: {level: {exact: [7]}}", r#","level":7.5"#, false, false),
        ("claims: {email_verified: {exact: [true]}}", r#","email_verified":true"#, true, true),
        ("claims: {email_verified: {exact: [true]}}", r#","email_verified":false"#, false, false),
        ("claims: {tenant: {present: true}}", r#","tenant":0"#, true, true),
        ("claims: {tenant: {present: true}}", r#","tenant":null"#, false, false),
        ("claims: {tenant: {present: false}}", "", true, true),
        ("claims: {tenant: {not: {exact: [a]}}}", r#","tenant":"b""#, true, true),
        ("claims: {tenant: {not: {exact: [a]}}}", r#","tenant":"a""#, false, false),
        ("claims: {tenant: {not: {exact: [a]}}}", r#","tenant":["b","a"]"#, false, true),
        // What is not there is no other value to an Allow.
        ("claims: {tenant: {not: {exact: [a]}}}", "", false, true),
        ("claims: {scope: {not: {has: admin}}}", r#","scope":"a b""#, true, true),
        ("claims: {scope: {not: {has: admin}}}", r#","scope":"a admin""#, false, false),
        ("claims: {scope: {not: {has: admin}}}", "", false, true),
        ("claims: {tenant: {exact: [a]}, scope: {has: x}}", r#","tenant":"a""#, false, false),
        ("claims: {scope: {has: a, not: {has: b}}}", r#","scope":"a b""#, false, false),
        (
            "claims: {'https://x.example/roles': {any: [a]}}",
            r#","https://x.example/roles":["a"]"#,
            true,
            true,
        ),
        (
            "claims: {/kubernetes.io/namespace: {exact: [n]}}",
            r#","kubernetes.io":{"namespace":"n"}"#,
            true,
            true,
        ),
    ] {
        let comma = if demand.is_empty() { "" } else { ", " };
        let jwt = format!("jwt: {{{ISSUER}{comma}{demand}}}");
        assert_eq!(both(&jwt, &own(claims)), (allows, denies), "{demand} {claims}");
    }
}

#[test]
fn absent_unknown_and_other_tokens() {
    let jwt = "jwt: {issuer: https://id.example.com}";
    let other = token(r#""iss":"j","aud":"orders""#);
    assert_eq!(both(jwt, &TokenSet::absent()), (false, false));
    assert_eq!(both(jwt, &TokenSet::unknown()), (false, true));
    assert_eq!(both(jwt, &other), (false, false));
    // Negated: who has no token at all is not somebody else. An Allow does not admit them, a Deny does not spare them.
    let not = "not: {jwt: {issuer: https://id.example.com, subjects: [mallory]}}";
    assert_eq!(both(not, &own("")), (true, true));
    let mallory = token(r#""iss":"https://id.example.com","aud":"orders","sub":"mallory""#);
    assert_eq!(both(not, &mallory), (false, false));
    assert_eq!(both(not, &TokenSet::absent()), (false, true));
    assert_eq!(both(not, &other), (false, true));
    assert_eq!(both(not, &TokenSet::unknown()), (false, true));
    // A token that has ended is none.
    let generation = loaded(&policy("Allow", &format!("    from: [{{{jwt}}}]\n"))).expect("good");
    assert!(is_allowed(&generation, WEB, own("").at(UNIX_EPOCH + Duration::from_secs(99))));
    assert!(!is_allowed(&generation, WEB, own("").at(UNIX_EPOCH + Duration::from_secs(100))));
    // Of opaque bytes no token will ever be known.
    let source = Source { identity: None, address: [10, 0, 0, 1].into() };
    let deny = loaded(&policy("Deny", &format!("    from: [{{{jwt}}}]\n"))).expect("good");
    let verdict = deny.decide(&deny.connection(source), 8080, Operation::Tcp);
    assert!(verdict.rule.is_some(), "{verdict:?}");
    assert!(deny.warnings().to_string().contains("opaque TCP"), "{}", deny.warnings());
}

#[test]
fn a_token_stands_beside_an_identity() {
    let jwt = "jwt: {issuer: https://id.example.com}";
    let from =
        |fields: &str| loaded(&policy("Allow", &format!("    from: [{{{fields}, {jwt}}}]\n"))).expect("good");
    let (own, now) = (own(""), UNIX_EPOCH);
    let web = from("serviceAccounts: [web]");
    assert!(is_allowed(&web, WEB, own.at(now)));
    assert!(!is_allowed(&web, Some("spiffe://td/ns/shop/sa/api"), own.at(now)));
    assert!(!is_allowed(&web, WEB, Tokens::Absent));
    // A token is no identity of the peer: who has none needs `unauthenticated`.
    assert!(!is_allowed(&web, None, own.at(now)));
    let strangers = from("unauthenticated: true");
    assert!(is_allowed(&strangers, None, own.at(now)));
    assert!(!is_allowed(&strangers, None, Tokens::Absent));
    assert!(!is_allowed(&strangers, WEB, own.at(now)));
    assert!(strangers.warnings().is_empty(), "{}", strangers.warnings());
    // In a Deny with `not` a stranger with the token is spared, and nobody else.
    let deny = policy("Deny", &format!("    from: [{{not: {{{jwt}}}}}]\n    to: [{{ports: [8080]}}]"));
    let all = "\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: q, namespace: shop}\n\
               spec: {action: Allow, rules: [{name: r, from: [{unauthenticated: true}]}]}\n";
    let deny = loaded(&(deny + all)).expect("good");
    assert!(is_allowed(&deny, None, own.at(now)));
    assert!(!is_allowed(&deny, None, Tokens::Absent));
    assert!(!is_allowed(&deny, None, Tokens::Unknown));
}

#[test]
fn mistakes() {
    let from = |jwt: &str| policy("Allow", &format!("    from: [{{jwt: {{{jwt}}}}}]\n"));
    let claim = |test: &str| from(&format!("issuer: j, claims: {{a: {test}}}"));
    let defaults = |issuer: &str| {
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: d, namespace: root}}\n\
             spec: {{jwt: {{issuers: [{{issuer: i, audiences: [o], {issuer}}}]}}}}\n"
        )
    };
    let keys = |jwks: &str| defaults(&format!("jwks: {{{jwks}}}"));
    let file = |fields: &str| defaults(&format!("jwks: {{file: /k}}, {fields}"));
    for (text, words) in [
        (
            from("issuer: https://id.example.org"),
            ["nobody configured", "did you mean `https://id.example.com`?"],
        ),
        (from("issuer: j").replace(DEFAULTS, ""), ["nobody configured", "add it to MeshDefaults"]),
        (from("subjects: [a]"), ["`issuer` is missing", ""]),
        (from("issuer: j, claims: {}"), ["`claims` is empty", ""]),
        (from("issuer: j, subjects: []"), ["`subjects` is empty", ""]),
        (from("issuer: j, claims: {sub: {exact: [a]}}"), ["field of its own", "write `subjects`"]),
        (from("issuer: j, claims: {exp: {exact: [1]}}"), ["when the token is verified", ""]),
        (from("issuer: j, claims: {a..b: {exact: [1]}}"), ["the name of a claim is empty", ""]),
        (claim("{}"), ["asks for nothing", "`has`"]),
        (claim("{exact: []}"), ["`exact` is empty", ""]),
        (claim("{prefix: ['']}"), ["every value begins so", "present: true"]),
        (claim("{has: []}"), ["`has` is empty", ""]),
        (claim("{has: 'a b'}"), ["holds no space", "has: [one, other]"]),
        (claim("{not: {}}"), ["`not` is empty", ""]),
        (claim("{present: false, has: a}"), ["absent has no value", ""]),
        (claim("{is: a}"), ["unknown field `is`", ""]),
        (keys(""), ["nowhere", "`file`, `url` or `inline`"]),
        (keys("file: /k, url: 'https://i/'"), ["one place", ""]),
        (keys("file: k"), ["not absolute", ""]),
        (keys("file: /k, caFile: /c"), ["for servers", ""]),
        (keys("file: /k, maxStale: 31d"), ["at most 30d", ""]),
        (keys("url: 'http://id.example.com/'"), ["could be anybody's", "https://"]),
        (keys("url: 'http://localhost.example.com/'"), ["could be anybody's", "https://"]),
        (keys("url: 'http://127.0.0.1@evil.example/'"), ["secrets", ""]),
        (keys("url: 'http://127.0.0.1.evil.example/'"), ["could be anybody's", ""]),
        (keys("url: 'file:///k'"), ["begins with `https://`", ""]),
        (keys("url: 'https:///k'"), ["no host", ""]),
        (keys("url: 'https://i/#x'"), ["fragment", ""]),
        (keys("url: 'http://127.0.0.1/', caFile: /c"), ["proves nothing", ""]),
        (keys("inline: {keys: []}"), ["no set of keys", ""]),
        (keys("inline: {keys: [{n: a}]}"), ["no `kty`", ""]),
        (keys("inline: {keys: [{kty: RSA, n: a, e: b, d: c}]}"), ["private key", "make another"]),
        (keys("inline: {keys: [{kty: oct, k: c}]}"), ["private key", ""]),
        (file("algorithms: [none]"), ["no signature", ""]),
        (file("algorithms: [HS256]"), ["shared secret", "RS256"]),
        (file("algorithms: [RS265]"), ["unknown value", "did you mean `RS256`?"]),
        (file("algorithms: []"), ["`algorithms` is empty", ""]),
        (file("clockSkew: 6m"), ["at most 5m", ""]),
        (file("header: {name: Authorization}"), ["lower case", ""]),
        (file("header: {name: cookie}"), ["no token is read", ""]),
        (
            keys("file: /k}}, {issuer: i, audiences: [o], jwks: {file: /k"),
            ["stands here twice", "the first: a.yaml:4"],
        ),
    ] {
        let refused = loaded(&text).expect_err(&text);
        for word in words {
            assert!(refused.contains(word), "{word:?} in\n{refused}");
        }
        assert!(refused.contains("--> a.yaml:") && refused.contains('^'), "{refused}");
    }
    let warned = loaded(&from("issuer: j, audiences: [order]")).expect("it loads");
    assert!(warned.warnings().to_string().contains("did you mean `orders`?"), "{}", warned.warnings());
    loaded(&keys("url: 'http://[::1]:8080/k?x=y'")).expect("loopback");
    loaded(&keys("inline: {\"keys\": [{\"kty\": \"EC\", \"kid\": \"1\"}]}")).expect("JSON is YAML");
}

#[test]
fn the_nearest_miss_names_the_claim() {
    let generation = loaded(&policy(
        "Allow",
        "    from: [{serviceAccounts: [web], jwt: {issuer: https://id.example.com, subjects: [ann], \
         claims: {scope: {has: 'orders:write'}, tenant: {exact: [a, b]}}}}]\n",
    ))
    .expect("good");
    let at = UNIX_EPOCH;
    for (tokens, words) in [
        (TokenSet::absent(), vec!["no token of https://id.example.com", "call with a token"]),
        (TokenSet::unknown(), vec!["could not be verified"]),
        (
            own(r#","scope":"secret""#),
            vec!["the token's `scope` has no `orders:write`", "the token has no `tenant`"],
        ),
        (
            own(r#","scope":"orders:write","tenant":"secret""#),
            vec!["the token's `tenant` is not one of \"a\", \"b\""],
        ),
        (
            token(r#""iss":"https://id.example.com","sub":"secret","scope":["orders:write"],"tenant":"a""#),
            vec!["the token's `sub` is not ann"],
        ),
    ] {
        let text = explained(&generation, tokens.at(at)).to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} in\n{text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
    // The way out does not lead around the token.
    let api = Some("spiffe://td/ns/shop/sa/api");
    let text = asked(api, own("").at(at), |source, operation| generation.explain(source, 8080, operation))
        .to_string();
    assert!(!text.contains("add an alternative") || text.contains("the same demands on tokens"), "{text}");
}

#[test]
fn cases_of_tests_state_tokens() {
    let text = policy(
        "Allow",
        "    from: [{jwt: {issuer: https://id.example.com, audiences: [orders], subjects: [ann], claims: {scope: {has: w}, n.l: {exact: [7]}}}}]\n",
    ) + "---\napiVersion: postern.dev/v1alpha1\nkind: PolicyTest\nmetadata: {name: t, namespace: shop}\nspec:
  workload: {port: 8080}
  cases:
  - {name: good, request: {from: web, path: /, jwt: {issuer: https://id.example.com, subject: ann, audiences: [orders], claims: {scope: r w, n: {l: 7}}}}, expect: {allow: p/r}}
  - {name: scope, request: {from: web, path: /, jwt: {issuer: https://id.example.com, subject: ann, audiences: [orders], claims: {scope: r, n: {l: 7}}}}, expect: {deny: default}}
  - {name: other, request: {from: web, path: /, jwt: {issuer: j, subject: ann, audiences: [orders]}}, expect: {deny: default}}
  - {name: audience, request: {from: web, path: /, jwt: {issuer: j, subject: ann}}, expect: {deny: token_invalid}}
  - {name: unverified, request: {from: web, path: /, jwt: {unverified: true}}, expect: {deny: default}}
  - {name: none, request: {from: web, path: /}, expect: {deny: default}}
";
    let file = SourceFile { name: "a.yaml".into(), text: text.into() };
    let report = run_tests(&[file], &scope()).map_err(|errors| errors.to_string()).expect("good");
    assert_eq!(report.passed(), 6, "{:#?}", report.cases);
    assert_eq!(report.percent(), 100);
}
