//! A decision allocates nothing, whatever it looks at: it is asked for every request.

use std::collections::BTreeMap;
use std::sync::Arc;

use allocation_counter::measure;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{
    Call, Claims, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, TokenSet, Workload, load,
};
use postern_svid::{SpiffeId, TrustDomain};

const DOCUMENTS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: d, namespace: root}
spec: {jwt: {issuers: [{issuer: i, audiences: [o], jwks: {file: /keys}}]}}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: a, namespace: shop}
spec:
  action: Allow
  rules:
  - name: accounts
    from: [{serviceAccounts: [web], cidrs: [10.0.0.0/8]}, {not: {namespaces: [ops]}}]
    to:
    - {paths: [/never]}
  - name: tokens
    from:
    - {jwt: {issuer: i, audiences: [x]}}
    - {jwt: {issuer: i, audiences: [o], subjects: [s], claims: {scope: {has: [a, w]}, r.s: {any: [x, "y"]}, t: {exact: [7, u], prefix: [v]}}}}
    - {not: {jwt: {issuer: i, claims: {scope: {not: {has: b}}}}}}
    to:
    - {pathPrefix: [/other]}
  - name: more
    from: [{serviceAccounts: [web], cidrs: [10.0.0.0/8]}, {not: {namespaces: [ops]}}]
    to:
    - {methods: [GET], paths: ["/v1/{*}", "/v1/{**}/x"], hosts: ["*.shop"], headers: [{name: x-a, exact: [v], list: any}]}
    - {pathPrefix: [/v1, /v2], not: {methods: [DELETE], hosts: [admin.shop]}}
    - {grpc: ["shop.Orders/Get*"]}
    when: {time: {weekly: ["Mon-Sun 00:00-24:00"], zone: Europe/Oslo}}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: b, namespace: shop}
spec:
  enforcement: Shadow
  action: Deny
  rules: [{name: shadow, to: [{headers: [{name: x-b, present: true}]}]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: c, namespace: shop}
spec:
  tier: Baseline
  action: Audit
  rules: [{name: all}]
"#;

#[test]
fn a_decision_allocates_nothing() {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: DOCUMENTS.into() };
    let generation = load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    generation.tell_time(std::time::UNIX_EPOCH);
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let connection = generation.connection(source);
    let host = CanonHost::parse("orders.shop").expect("a literal");
    let mut fields = HeaderFields::new();
    for (name, value) in [("x-a", "u, v"), ("x-a", "w"), ("x-b", "1")] {
        fields.push(name, value).expect("a literal");
    }
    let claims = br#"{"iss":"i","aud":["p","o"],"sub":"s","exp":9,"scope":"a w","r":{"s":["z","y"]},"t":7}"#;
    let tokens = TokenSet::verified(vec![Arc::new(Claims::from_json(claims).expect("good claims"))]);
    let mut verdicts = Vec::with_capacity(64);
    for path in ["/v1/a", "/v1/a/b/x", "/v2", "/other", "/v1/a;p=1/b", "/v1/%2561", "/shop.Orders/GetIt"] {
        let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
        for method in ["GET", "POST", "DELETE", "PURGE"] {
            let method = CanonMethod::parse(method).expect("a literal");
            let operation = Operation::Http {
                method: &method,
                path: &path,
                host: Some(&host),
                headers: Some(&fields as &dyn HeaderLines),
                upgrade: None,
                tokens: tokens.at(std::time::UNIX_EPOCH),
            };
            let counted = measure(|| verdicts.push(generation.decide(&connection, 8080, operation)));
            assert_eq!(counted.count_total, 0, "{method} {path}");
        }
    }
    let counted = measure(|| verdicts.push(generation.decide(&connection, 8080, Operation::Tcp)));
    assert_eq!(counted.count_total, 0);
    // The questions met rules of every kind, or this would prove little.
    assert!(verdicts.iter().any(|verdict| verdict.is_allowed() && verdict.shadow.is_some()));
    assert!(verdicts.iter().any(|verdict| !verdict.is_allowed()));
    assert!(verdicts.iter().all(|verdict| verdict.audit.is_some()));
    assert!(measure(|| drop(std::hint::black_box(vec![1_u8]))).count_total > 0, "nothing is counted");
}

/// The second request of a caller finds its bucket; the first one's place is the only thing that is ever allocated.
#[test]
fn an_admission_under_a_known_key_allocates_nothing() {
    let text = r#"
apiVersion: postern.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: a, namespace: shop}
spec:
  limits:
  - {name: total, rate: 1000/s, burst: 100}
  - {name: each, rate: 10/s, burst: 5, key: [source.identity, source.namespace, source.address, request.header.x-a]}
  - {name: some, rate: 10/s, burst: 5, match: {pathPrefix: [/v1], hosts: ["*.shop"], headers: [{name: x-a, prefix: [v]}]}, key: [source.identity]}
  overrides: [{from: [{serviceAccounts: [web]}], rate: 20/s}]
---
apiVersion: postern.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: b, namespace: shop}
spec: {enforcement: Shadow, limits: [{name: tried, rate: 1/s, key: [request.header.x-a]}]}
"#;
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: text.into() };
    let generation = load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let connection = generation.connection(source);
    let host = CanonHost::parse("orders.shop").expect("a literal");
    let (method, path) =
        (CanonMethod::get(), CanonPath::parse("/v1/a;p=1", &Default::default()).expect("a literal"));
    let mut fields = HeaderFields::new();
    fields.push("x-a", "v").expect("a literal");
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: Some(&host),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: None,
        tokens: postern_policy::Tokens::Absent,
    };
    let admit = |millis| {
        generation.admit(&connection, source, 80, operation, std::time::Duration::from_millis(millis))
    };
    assert!(admit(0).is_none());
    let mut refused = 0;
    for millis in 1..100 {
        let counted = measure(|| refused += u32::from(admit(millis).is_some()));
        assert_eq!(counted.count_total, 0, "{millis}");
    }
    assert!((1..99).contains(&refused), "{refused}");
    assert_eq!(generation.limits().map(|limit| limit.counts().keys).sum::<usize>(), 3);
}

const OUTSIDE: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: partner, namespace: shop}
spec:
  external: true
  hosts: [api.partner.example]
  ports: [{port: 443, protocol: tls}, {port: 80, protocol: http}]
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: out, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: host, to: [{hosts: ["*.partner.example"], protocol: Http, methods: [GET], paths: ["/v1/{*}", "/v1/{**}/x"]}]}
  - {name: net, to: [{cidrs: [192.0.2.0/24, "::/0"], except: [192.0.2.9], ports: [443]}]}
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: less, namespace: shop}
spec:
  enforcement: Shadow
  action: Deny
  rules: [{name: service, to: [{services: [partner]}]}]
"#;

#[test]
fn a_decision_about_a_call_out_allocates_nothing() {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: OUTSIDE.into() };
    let generation = load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    let host = CanonHost::parse("api.partner.example").expect("a literal");
    let get = CanonMethod::get();
    let mut verdicts = Vec::with_capacity(64);
    for addresses in
        [&["192.0.2.1"][..], &["192.0.2.9", "2001:db8::1"], &["127.0.0.1"], &["169.254.169.254"], &[]]
    {
        let addresses: Vec<std::net::IpAddr> =
            addresses.iter().map(|one| one.parse().expect("a literal")).collect();
        for path in ["/v1/a", "/v1/a;p=1/x", "/other"] {
            let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
            for (port, operation) in [(80, Operation::http(&get, &path)), (443, Operation::Tcp)] {
                let port = generation.services().find(&host, port, "shop").expect("it is there");
                let call = Call { port, host: &host, addresses: &addresses, own: &addresses[..0], operation };
                let counted = measure(|| verdicts.push(generation.decide_egress(&call)));
                assert_eq!(counted.count_total, 0, "{addresses:?} {path:?}");
            }
        }
    }
    assert!(verdicts.iter().any(|verdict| verdict.is_allowed() && verdict.shadow.is_some()));
    assert!(verdicts.iter().any(|verdict| !verdict.is_allowed()));
}

const ISTIO: &str = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people, namespace: shop}
spec:
  jwtRules:
  - {issuer: "https://id.x", jwksUri: "https://id.x/jwks", audiences: [shop]}
  - {issuer: "https://id.y", jwksUri: "https://id.y/jwks"}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tokens, namespace: shop}
spec:
  rules:
  - from:
    - source: {requestPrincipals: ["https://id.y/*", "*/bob"], namespaces: [web]}
    - source: {requestPrincipals: ["https://id.x/a*"], notRequestPrincipals: ["*/mallory"], ipBlocks: [10.0.0.0/8]}
    to: [{operation: {paths: ["/v1/*"], methods: [GET], hosts: ["orders.shop", "*.example"]}}]
    when:
    - {key: "request.auth.claims[scope]", values: [write]}
    - {key: "request.auth.claims[realm][roles]", values: ["adm*"], notValues: [guest]}
    - {key: "request.auth.audiences", values: [shop]}
    - {key: "request.auth.presenter", notValues: [other]}
  - to: [{operation: {ports: ["8443"]}}]
    when: [{key: connection.sni, values: [db.example, "*.eu.example"], notValues: ["old*"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: less, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {requestPrincipals: ["*/eve"]}}]
    to: [{operation: {ports: ["8080"]}}]
  - to: [{operation: {ports: ["8080"]}}]
    when: [{key: "request.auth.claims[banned]", values: ["*"]}]
  - to: [{operation: {ports: ["8443"]}}]
    when: [{key: connection.sni, values: [secret.eu.example]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: names, namespace: shop}
spec:
  action: Allow
  rules:
  - name: one
    to:
    - {sni: [db.example, "*.us.example"], ports: [9443], not: {sni: [old.us.example]}}
"#;

#[test]
fn what_istio_asks_of_tokens_and_server_names_allocates_nothing() {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let file = SourceFile { name: "p.yaml".into(), text: ISTIO.into() };
    let generation = load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    let id = SpiffeId::parse("spiffe://td/ns/web/sa/front").expect("a literal");
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let connection = generation.connection(source);
    let token = |rest: &str| {
        let payload = format!(r#"{{"iss":"https://id.x","aud":["web","shop"],"azp":"app","exp":9,{rest}}}"#);
        Arc::new(Claims::from_json(payload.as_bytes()).expect("good claims"))
    };
    let ann = token(r#""sub":"ann","scope":"read write","realm":{"roles":["dev","admin"]}"#);
    let sets = [
        TokenSet::verified(vec![Arc::clone(&ann)]),
        TokenSet::verified(vec![token(r#""sub":"bob","scope":["a"],"age":7"#), ann]),
        TokenSet::verified(vec![token(r#""sub":"eve""#)]),
        TokenSet::verified(vec![token(r#""sub":"ann","banned":"yes""#)]),
        TokenSet::absent(),
        TokenSet::unknown(),
    ];
    let host = CanonHost::parse("orders.shop").expect("a literal");
    let method = CanonMethod::get();
    let fields = HeaderFields::new();
    let mut verdicts = Vec::with_capacity(64);
    let mut ask = |what: &dyn std::fmt::Debug, port: u16, operation: Operation<'_>| {
        let counted = measure(|| verdicts.push(generation.decide(&connection, port, operation)));
        assert_eq!(counted.count_total, 0, "{what:?} at {port}");
        let verdict = verdicts[verdicts.len() - 1];
        assert_eq!(verdict, generation.decide_by_reference(source, port, operation), "{what:?} at {port}");
        verdict.is_allowed()
    };
    let mut allowed = Vec::new();
    for tokens in &sets {
        for path in ["/v1/a", "/v1/a;p=1/%2561", "/v2"] {
            let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
            let operation = Operation::Http {
                method: &method,
                path: &path,
                host: Some(&host),
                headers: Some(&fields as &dyn HeaderLines),
                upgrade: None,
                tokens: tokens.at(std::time::UNIX_EPOCH),
            };
            allowed.push(ask(&(tokens, &path), 8080, operation));
        }
    }
    // Of each way to answer there is some, or this would prove little: by tokens,
    assert_eq!(allowed.iter().filter(|is| **is).count(), 4, "{allowed:?}");
    let names = ["db.example", "a.eu.example", "secret.eu.example", "b.us.example", "old.us.example", "x.y"];
    let names: Vec<CanonHost> = names.iter().map(|name| CanonHost::parse(name).expect("a literal")).collect();
    let mut allowed = [0, 0];
    for (port, count) in [8443, 9443].into_iter().zip(&mut allowed) {
        for sni in names.iter().map(Some).chain([None]) {
            *count += u32::from(ask(&sni, port, Operation::Tls { sni }));
        }
        assert!(!ask(&"no handshake", port, Operation::Tcp));
    }
    // and by names: db and a.eu at one port, db and b.us at the other.
    assert_eq!(allowed, [2, 2]);
}
