//! Bytes as rules and questions: the compiled engine answers as its specification does, whatever is asked of whatever rules,
//! with the same rule, shadow and audit; what a connection is certain of is what each of its streams gets; and every answer
//! can be explained.

#![no_main]

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use postern_policy::{
    Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Stage, Upgrade, Workload,
    load,
};
use postern_svid::{SpiffeId, TrustDomain};

static SCOPE: LazyLock<Scope> = LazyLock::new(|| Scope {
    trust_domain: TrustDomain::parse("td").expect("a literal"),
    root_namespace: "a".into(),
    workload: Some(Workload {
        namespace: "a".into(),
        service_account: "a".into(),
        labels: Default::default(),
    }),
});

/// More would only make single inputs slow.
const MAX_RULES: usize = 24;
const MAX_QUESTIONS: usize = 64;

// Few words, so that rules and questions meet; each has a neighbour one byte or one segment away.
const PEERS: [&str; 12] = [
    "namespaces: [a]",
    "namespaces: [b, c]",
    "serviceAccounts: [a, b/a]",
    "spiffe: ['spiffe://td/ns/a/sa/a', 'spiffe://else/a']",
    "trustDomain: else",
    "trustDomain: alias, namespaces: [a]",
    "cidrs: [10.0.0.0/8]",
    "cidrs: [10.0.0.0/16, 'fd00::/8'], namespaces: [a]",
    "not: {namespaces: [a]}",
    "not: {serviceAccounts: [b/a], cidrs: [10.0.0.0/16]}, namespaces: [b]",
    "not: {trustDomain: else}",
    "unauthenticated: true, cidrs: [10.0.0.0/8]",
];
const PATHS: [&str; 16] = [
    "paths: [/]",
    "paths: [/a, /a/b]",
    "paths: [/a/]",
    "paths: ['/a;x', '/%2561']",
    "paths: ['/{*}']",
    "paths: ['/a/{*}', '/{*}/b']",
    "paths: ['/a/{**}']",
    "paths: ['/{**}/b', '/{*}/b/{**}/{*}']",
    "pathPrefix: [/]",
    "pathPrefix: [/a]",
    "pathPrefix: [/a/b, /b]",
    "pathPrefix: [/caf%C3%A9]",
    "grpc: [a/b, 'a/b*']",
    "grpc: ['b/*']",
    "not: {pathPrefix: [/a/b]}",
    "not: {paths: ['/{*}']}",
];
const METHODS: [&str; 5] =
    ["methods: [GET]", "methods: [POST, TRACE]", "methods: ['*']", "methods: [CONNECT]", "methods: [PURGE]"];
const MORE: [&str; 14] = [
    "hosts: [a.x]",
    "hosts: ['*.x', 10.0.0.1]",
    "hosts: ['*.a.x']",
    "headers: [{name: x-a, exact: [v]}]",
    "headers: [{name: x-a, prefix: [v]}]",
    "headers: [{name: x-a, not: {exact: [v]}}]",
    "headers: [{name: x-a, present: true}, {name: x-b, present: false}]",
    "upgrade: [websocket]",
    "upgrade: ['*']",
    "sni: [a.x, '*.a.x']",
    "ports: [80]",
    "ports: [81, 82]",
    "ports: [80, 83]",
    "ports: [82]",
];
const IDS: [&str; 9] = [
    "td/ns/a/sa/a",
    "td/ns/b/sa/a",
    "td/ns/c/sa/c",
    "alias/ns/a/sa/a",
    "else/ns/a/sa/a",
    "else/a",
    "td/a",
    "td/ns/a",
    "td/ns/a/sa/a/b",
];
const ADDRESSES: [&str; 6] =
    ["10.0.0.1", "10.1.0.0", "10.255.255.255", "11.0.0.0", "::ffff:10.0.0.1", "fd00::1"];
const ASKED: [&str; 24] = [
    "/",
    "/a",
    "/a/",
    "/ab",
    "/a/b",
    "/a/b/",
    "/a/bc",
    "/a/b/c",
    "/b",
    "/b/",
    "/b/a",
    "/c/b",
    "/a/c/b",
    "/c/b/a/c",
    "/c",
    "/a;x",
    "/a;x/b",
    "/%2561",
    "/%2561/b",
    "/b;y/%2561",
    "/caf%C3%A9/x",
    "/a//b",
    "/a/b%2F",
    "/%61/b",
];
const HOSTS: [&str; 7] = ["a.x", "A.X.:80", "b.a.x", "x", "10.0.0.1", "aa.x", "c"];
const LINES: [&str; 6] = ["v", "w", "vw", "v, w", "v,v", ""];

/// Choices, one byte each; when they are used up the first of everything.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> usize {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                usize::from(*first)
            }
            None => 0,
        }
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next() % of.len()]
    }
}

/// Documents from choices: each rule its own.
fn documents(bytes: &mut Bytes<'_>) -> String {
    let mut out = String::from(
        "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: d, namespace: a}\n\
         spec: {trustDomains: {aliases: [alias]}}\n",
    );
    for n in 0..bytes.next() % MAX_RULES {
        let kind = bytes.next();
        let action = ["Allow", "Allow", "Deny", "Audit"][kind % 4];
        let tier = ["App", "App", "Platform", "Baseline"][kind / 4 % 4];
        let shadow = if kind / 16 % 8 == 7 && action != "Audit" { "Shadow" } else { "Enforce" };
        let target = if kind / 128 == 1 { "target: {ports: [80, 82]}, " } else { "" };
        let mut rule = format!("name: r{n}");
        let shape = bytes.next();
        if shape % 4 > 0 {
            let peers: Vec<String> =
                (0..1 + shape % 2).map(|_| format!("{{{}}}", bytes.one(&PEERS))).collect();
            let _ = write!(rule, ", from: [{}]", peers.join(", "));
        }
        if shape / 4 % 4 > 0 {
            let targets: Vec<String> = (0..1 + shape / 16 % 2).map(|_| target_text(bytes)).collect();
            let _ = write!(rule, ", to: [{}]", targets.join(", "));
        }
        if shape / 64 == 3 {
            rule.push_str(", when: {time: {weekly: ['Thu 00:00-12:00'], zone: UTC}}");
        }
        let _ = write!(
            out,
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: a}}\n\
             spec: {{{target}action: {action}, tier: {tier}, enforcement: {shadow}, rules: [{{{rule}}}]}}\n"
        );
    }
    out
}

fn target_text(bytes: &mut Bytes<'_>) -> String {
    let shape = bytes.next();
    let mut fields: Vec<&str> = Vec::new();
    if shape % 2 == 0 {
        fields.push(bytes.one(&PATHS));
    }
    // What says methods by itself takes no other.
    if shape / 2 % 3 == 0 && !fields.iter().any(|field| field.starts_with("grpc")) {
        fields.push(bytes.one(&METHODS));
    }
    if shape / 6 % 2 == 0 || fields.is_empty() {
        // A request that can be read has no server name: such an alternative is refused.
        let more = bytes.one(&MORE);
        let is_opaque = more.starts_with("sni");
        fields.extend((fields.is_empty() || !is_opaque).then_some(more));
    }
    format!("{{{}}}", fields.join(", "))
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let text = documents(&mut bytes);
    let file = SourceFile { name: "p.yaml".into(), text: text.clone().into_bytes() };
    let generation = match load(&[file], &SCOPE, 1) {
        Ok(generation) => generation,
        Err(errors) => panic!("these documents are meant to load:\n{text}\n{errors}"),
    };
    for n in 0..MAX_QUESTIONS {
        if bytes.0.is_empty() {
            break;
        }
        // Untold at first; then a Thursday before noon, and after it.
        if n % 16 == 8 {
            let _ = generation.tell_time(UNIX_EPOCH + Duration::from_secs(n as u64 / 16 * 43_200));
        }
        ask(&generation, &mut bytes, &text);
    }
});

fn ask(generation: &Generation, bytes: &mut Bytes<'_>, text: &str) {
    let who = bytes.next();
    let id = SpiffeId::parse(&format!("spiffe://{}", IDS[who % IDS.len()])).expect("a literal");
    let identity = (who < 220).then_some(&id);
    let source = Source { identity, address: bytes.one(&ADDRESSES).parse().expect("a literal") };
    let port = bytes.one(&[80_u16, 81, 82, 83]);
    let shape = bytes.next();
    let host = CanonHost::parse(bytes.one(&HOSTS)).expect("a literal");
    let method =
        CanonMethod::parse(["GET", "POST", "TRACE", "CONNECT", "PURGE"][shape % 5]).expect("a literal");
    let path = CanonPath::parse(bytes.one(&ASKED), &PathOptions::default())
        .unwrap_or_else(|_| CanonPath::parse("/a/b", &PathOptions::default()).expect("a literal"));
    let mut fields = HeaderFields::new();
    for name in ["x-a", "x-b"].iter().take(shape / 5 % 3) {
        fields.push(name, bytes.one(&LINES)).expect("a literal");
    }
    let upgrade = Upgrade::parse(["websocket", "tcp"][shape % 2]).expect("a literal");
    let mut operation = Operation::http(&method, &path);
    match shape / 15 {
        0 => operation = Operation::Tcp,
        1 => operation = Operation::Tls { sni: (shape % 3 > 0).then_some(&host) },
        more => {
            if let Operation::Http { host: sent, headers, upgrade: wanted, .. } = &mut operation {
                *sent = (more % 5 > 0).then_some(&host);
                *headers = (more % 4 > 0).then_some(&fields as &dyn HeaderLines);
                *wanted = (more % 3 == 0).then_some(&upgrade);
            }
        }
    }
    let connection = generation.connection(source);
    let verdict = generation.decide(&connection, port, operation);
    let reference = generation.decide_by_reference(source, port, operation);
    assert_eq!(verdict, reference, "{source:?} {port} {operation:?}\n{text}");
    match connection.stage() {
        Stage::Allow(certain) | Stage::Deny(certain) => {
            assert_eq!(certain, verdict, "the stage differs\n{text}")
        }
        Stage::Defer => {}
    }
    let explained = generation.explain(source, port, operation);
    assert_eq!(explained.verdict, verdict);
    assert!(!explained.to_string().is_empty());
}
