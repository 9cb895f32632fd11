//! The engine against its specification, on random rules and questions.

mod jwt;

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use crate::cond::Condition;
use crate::norm::{CanonHost, CanonMethod, CanonPath, EscapedSlashes, PathOptions};
use crate::pattern::PathPattern;
use crate::rule::{
    Account, Excluded, ExcludedTarget, HeaderMatch, HeaderTest, HostPattern, ListOf, Methods, OwnDomains,
    Peer, Rule, Target, ValuePattern,
};
use crate::tokens::TokenSet;
use crate::upgrade::{Upgrade, Upgrades};
use crate::verdict::{
    Action, DenyReason, Effect, Enforcement, Operation, Scope, Source, Stage, Tier, Workload,
};
use crate::window::{Weekly, Window};
use crate::{HeaderFields, HeaderLines, SourceFile, eval_ref, load};

use super::{Connection, Engine};

mod boundaries;
mod changes;
mod limits;
mod proofs;

// Few words, so that rules and questions meet.
const DOMAINS: [&str; 3] = ["home", "alias", "else"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const METHODS: [&str; 4] = ["GET", "POST", "TRACE", "CONNECT"];
const PORTS: [u16; 3] = [80, 81, 82];
const NETS: [&str; 6] = ["10.0.0.0/8", "10.0.0.0/16", "10.0.0.1/32", "0.0.0.0/0", "fd00::/8", "::/0"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1"];
const EXACT: [&str; 7] = ["/", "/a", "/a/", "/a/b", "/b", "/a;x", "/%2561"];
const PREFIX: [&str; 5] = ["/", "/a", "/a/b", "/b", "/a/b/c"];
const ASKED: [&str; 18] = [
    "/",
    "/a",
    "/a/",
    "/ab",
    "/a/b",
    "/a/b/",
    "/a/b/c",
    "/b",
    "/b/a",
    "/b/a/c/b",
    "/a;x",
    "/a;x/b",
    "/%2561",
    "/b;y/%2561",
    "/a//b",
    "/%61/b",
    "/c",
    "/c/a/a/a/b",
];

const GRPC: [&str; 4] = ["a/b", "a/*", "a/b*", "b/*"];
const HOSTS: [&str; 6] = ["a.x", "b.a.x", "*.x", "*.a.x", "10.0.0.1", "*.b"];
const ASKED_HOSTS: [&str; 8] = ["a.x", "A.X.:80", "b.a.x:81", "c.b.a.x", "x", "10.0.0.1", "aa.x", "d.b"];
const ASKED_SNI: [&str; 5] = ["a.x", "b.a.x", "c.b.a.x", "x", "aa.x"];
const UPGRADES: [&str; 3] = ["websocket", "tcp", "spdy/3.1"];
const SNI: [&str; 4] = ["a.x", "b.a.x", "*.x", "*.a.x"];
/// True, false, and unknown in every way.
const CEL: [&str; 16] = [
    "true",
    "false",
    "request.method == 'GET'",
    "request.path.startsWith('/a')",
    "request.path == '/a' || request.headers['x-a'] == 'v'",
    "request.headers['x-a'] == 'v' && request.headers['x-b'] != 'w'",
    "'x-b' in request.headers",
    "!('x-b' in request.headers)",
    "request.host.endsWith('.x')",
    "request.port == 80",
    "source.namespace == 'a'",
    "source.trustDomain != 'home' || source.serviceAccount in ['a', 'b']",
    "source.address == '10.0.0.1'",
    "now < timestamp('1970-01-02T00:00:00Z')",
    "jwt.tenant == 'a'",
    "!has(jwt.tenant) && 1 / (request.port - 81) > 0",
];
const FIELDS: [&str; 2] = ["x-a", "x-b"];
const VALUES: [&str; 4] = ["v", "w", "vw", ""];
const LINES: [&str; 7] = ["v", "w", "vw", "v, w", "v,v", "", "z"];

fn some<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    prop::collection::vec(prop::sample::select(of.to_vec()), 1..3)
}

fn maybe<S: Strategy>(of: S) -> impl Strategy<Value = Option<S::Value>>
where
    S::Value: Clone,
{
    prop::option::weighted(0.35, of)
}

fn id() -> impl Strategy<Value = String> {
    let path = prop_oneof![
        8 => (prop::sample::select(&NAMES), prop::sample::select(&NAMES)).prop_map(|(ns, sa)| format!("ns/{ns}/sa/{sa}")),
        1 => Just("ns/a/sa/b/c".to_owned()),
        1 => Just("a".to_owned()),
    ];
    (prop::sample::select(&DOMAINS), path).prop_map(|(td, path)| format!("spiffe://{td}/{path}"))
}

fn template() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "c", "{*}", "{*}", "{**}"]);
    prop::collection::vec(segment, 1..6).prop_map(|segments| {
        let mut many = false;
        let one = segments.into_iter().filter(|s| *s != "{**}" || !std::mem::replace(&mut many, true));
        one.map(|segment| format!("/{segment}")).collect()
    })
}

/// A rule in document form: the same value becomes YAML text and a rule for the engine.
#[derive(Clone, Debug)]
struct Written {
    action: Action,
    tier: Tier,
    enforcement: Enforcement,
    target_ports: Option<Vec<u16>>,
    from: Option<Vec<WrittenPeer>>,
    to: Option<Vec<WrittenTarget>>,
    /// Some of these hold at the time that is told.
    weekly: Option<&'static str>,
    cel: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct WrittenPeer {
    unauthenticated: bool,
    fields: Fields,
    not: Option<Fields>,
}

#[derive(Clone, Debug, Default)]
struct Fields {
    spiffe: Option<Vec<String>>,
    accounts: Option<Vec<(&'static str, &'static str)>>,
    namespaces: Option<Vec<&'static str>>,
    domain: Option<&'static str>,
    cidrs: Option<Vec<&'static str>>,
    jwt: Option<jwt::Written>,
}

#[derive(Clone, Debug, Default)]
struct WrittenTarget {
    methods: Option<Vec<&'static str>>,
    paths: Option<Vec<String>>,
    prefix: bool,
    grpc: bool,
    hosts: Option<Vec<&'static str>>,
    headers: Vec<WrittenHeader>,
    upgrade: Option<Vec<&'static str>>,
    sni: Option<Vec<&'static str>>,
    ports: Option<Vec<u16>>,
    not: Option<WrittenNot>,
}

#[derive(Clone, Debug)]
struct WrittenNot {
    methods: Option<Vec<&'static str>>,
    prefix: Option<Vec<&'static str>>,
    hosts: Option<Vec<&'static str>>,
    upgrade: Option<Vec<&'static str>>,
    sni: Option<Vec<&'static str>>,
    ports: Option<Vec<u16>>,
}

#[derive(Clone, Debug)]
struct WrittenHeader {
    name: &'static str,
    test: WrittenTest,
}

#[derive(Clone, Debug)]
enum WrittenTest {
    Present(bool),
    Is(bool, Vec<&'static str>, Option<&'static str>),
    Not(bool, Vec<&'static str>),
}

prop_compose! {
    fn fields()(
        spiffe in maybe(prop::collection::vec(id(), 1..3)),
        accounts in maybe(some(&[("a", "a"), ("a", "b"), ("b", "a"), ("c", "c")])),
        namespaces in maybe(some(&NAMES)),
        domain in maybe(prop::sample::select(&DOMAINS)),
        cidrs in maybe(some(&NETS)),
        jwt in prop::option::weighted(0.2, jwt::jwt()),
    ) -> Fields {
        let mut fields = Fields { spiffe, accounts, namespaces, domain, cidrs, jwt };
        if fields.spiffe.is_some() {
            fields.domain = None;
        }
        fields
    }
}

impl Fields {
    fn is_empty(&self) -> bool {
        let Self { spiffe, accounts, namespaces, domain, cidrs, jwt } = self;
        let names = spiffe.is_some() || accounts.is_some() || namespaces.is_some() || domain.is_some();
        !names && cidrs.is_none() && jwt.is_none()
    }

    fn yaml(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(ids) = &self.spiffe {
            out.push(format!("spiffe: {ids:?}"));
        }
        if let Some(accounts) = &self.accounts {
            // Namespace a is the documents' own, and may be left out.
            let names: Vec<String> = accounts
                .iter()
                .map(|(ns, sa)| if *ns == "a" { (*sa).into() } else { format!("{ns}/{sa}") })
                .collect();
            out.push(format!("serviceAccounts: {names:?}"));
        }
        out.extend(self.namespaces.as_ref().map(|names| format!("namespaces: {names:?}")));
        out.extend(self.domain.map(|td| format!("trustDomain: {td}")));
        out.extend(self.cidrs.as_ref().map(|nets| format!("cidrs: {nets:?}")));
        out.extend(self.jwt.as_ref().map(jwt::Written::yaml));
        out
    }
}

prop_compose! {
    fn peer()(
        unauthenticated in prop::bool::weighted(0.2),
        mut fields in fields(),
        not in maybe(fields()),
    ) -> WrittenPeer {
        let mut not = not.filter(|not| !not.is_empty());
        if unauthenticated {
            fields = Fields { cidrs: fields.cidrs, jwt: fields.jwt, ..Fields::default() };
            not = None;
        } else if fields.is_empty() && not.is_none() {
            fields.namespaces = Some(vec!["a"]);
        }
        WrittenPeer { unauthenticated, fields, not }
    }
}

prop_compose! {
    fn target()(
        methods in maybe(prop_oneof![3 => some(&METHODS), 1 => Just(vec!["*"])]),
        paths in prop::option::weighted(0.7, prop_oneof![
            some(&EXACT).prop_map(|list| (Kind::Paths, list.into_iter().map(str::to_owned).collect::<Vec<_>>())),
            some(&PREFIX).prop_map(|list| (Kind::Prefix, list.into_iter().map(str::to_owned).collect())),
            prop::collection::vec(template(), 1..3).prop_map(|list| (Kind::Paths, list)),
            some(&GRPC).prop_map(|list| (Kind::Grpc, list.into_iter().map(str::to_owned).collect())),
        ]),
        hosts in prop::option::weighted(0.2, some(&HOSTS)),
        headers in prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(header(), 1..3)],
        upgrade in prop::option::weighted(0.15, upgrades()),
        sni in prop::option::weighted(0.1, some(&SNI)),
        ports in maybe(some(&PORTS)),
        not in prop::option::weighted(0.2, not()),
    ) -> WrittenTarget {
        // In an Allow nothing about HTTP stands beside a server name.
        if sni.is_some() {
            let not = not.map(|not| WrittenNot { ports: not.ports.or_else(|| Some(vec![81])), ..not });
            return WrittenTarget { sni, ports, not, ..WrittenTarget::default() };
        }
        let (kind, paths) = match paths {
            Some((kind, paths)) => (kind, Some(paths)),
            None => (Kind::Paths, None),
        };
        let methods = methods.filter(|_| kind != Kind::Grpc);
        let empty = methods.is_none() && paths.is_none() && hosts.is_none() && headers.is_empty() && not.is_none() && upgrade.is_none();
        let ports = if empty { Some(ports.unwrap_or_else(|| vec![80])) } else { ports };
        let (prefix, grpc) = (kind == Kind::Prefix, kind == Kind::Grpc);
        WrittenTarget { methods, paths, prefix, grpc, hosts, headers, upgrade, sni, ports, not }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Paths,
    Prefix,
    Grpc,
}

prop_compose! {
    fn not()(
        methods in maybe(some(&METHODS)),
        prefix in maybe(some(&PREFIX[1..])),
        hosts in maybe(some(&HOSTS)),
        upgrade in prop::option::weighted(0.2, upgrades()),
        sni in prop::option::weighted(0.2, some(&SNI)),
        ports in maybe(some(&PORTS)),
    ) -> WrittenNot {
        let empty = methods.is_none() && prefix.is_none() && hosts.is_none() && upgrade.is_none() && sni.is_none();
        let ports = if empty { Some(ports.unwrap_or_else(|| vec![81])) } else { ports };
        WrittenNot { methods, prefix, hosts, upgrade, sni, ports }
    }
}

fn upgrades() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![3 => some(&UPGRADES), 1 => Just(vec!["*"])]
}

fn header() -> impl Strategy<Value = WrittenHeader> {
    let name = prop::sample::select(&FIELDS);
    let list = prop::option::of(prop::sample::select(vec!["any", "all"]));
    let test = prop_oneof![
        any::<bool>().prop_map(WrittenTest::Present),
        (any::<bool>(), some(&VALUES), list)
            .prop_map(|(exact, values, list)| WrittenTest::Is(exact, values, list)),
        (any::<bool>(), some(&VALUES)).prop_map(|(exact, values)| WrittenTest::Not(exact, values)),
    ];
    (name, test).prop_map(|(name, test)| WrittenHeader { name, test })
}

prop_compose! {
    fn written()(
        action in prop_oneof![6 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Audit)],
        tier in prop_oneof![1 => Just(Tier::Platform), 4 => Just(Tier::App), 1 => Just(Tier::Baseline)],
        shadow in prop::bool::weighted(0.1),
        target_ports in prop::option::weighted(0.2, some(&PORTS)),
        from in prop::option::weighted(0.8, prop::collection::vec(peer(), 1..3)),
        to in prop::option::weighted(0.7, prop::collection::vec(target(), 1..3)),
        weekly in prop::option::weighted(0.1, prop::sample::select(vec!["Thu 00:00-01:00", "Fri 00:00-01:00"])),
        cel in prop::option::weighted(0.15, prop::sample::select(&CEL)),
    ) -> Written {
        let shadow = shadow && action != Action::Audit;
        let enforcement = if shadow { Enforcement::Shadow } else { Enforcement::Enforce };
        Written { action, tier, enforcement, target_ports, from, to, weekly, cel }
    }
}

fn documents(rules: &[Written]) -> String {
    let mut out = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: d, namespace: a}}\nspec: {{trustDomains: {{aliases: [alias]}}, {}}}\n",
        jwt::DEFAULTS
    );
    for (n, rule) in rules.iter().enumerate() {
        let mut parts = vec![format!("name: r{n}")];
        if let Some(peers) = &rule.from {
            let peers: Vec<String> = peers.iter().map(peer_yaml).collect();
            parts.push(format!("from: [{}]", peers.join(", ")));
        }
        if let Some(targets) = &rule.to {
            let targets: Vec<String> =
                targets.iter().map(|target| target_yaml(target, rule.action)).collect();
            parts.push(format!("to: [{}]", targets.join(", ")));
        }
        let time = rule.weekly.map(|hours| format!("time: {{zone: UTC, weekly: [\"{hours}\"]}}"));
        let cel = rule.cel.map(|text| format!("cel: {text:?}"));
        let when: Vec<String> = time.into_iter().chain(cel).collect();
        if !when.is_empty() {
            parts.push(format!("when: {{{}}}", when.join(", ")));
        }
        let target = rule
            .target_ports
            .as_ref()
            .map(|ports| format!("target: {{ports: {ports:?}}}, "))
            .unwrap_or_default();
        out.push_str(&format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: a}}\nspec: {{{target}action: {}, tier: {:?}, enforcement: {:?}, rules: [{{{}}}]}}\n",
            rule.action,
            rule.tier,
            rule.enforcement,
            parts.join(", ")
        ));
    }
    out
}

fn peer_yaml(peer: &WrittenPeer) -> String {
    let mut fields = peer.fields.yaml();
    if peer.unauthenticated {
        fields.push("unauthenticated: true".into());
    }
    fields.extend(peer.not.as_ref().map(|not| format!("not: {{{}}}", not.yaml().join(", "))));
    format!("{{{}}}", fields.join(", "))
}

fn target_yaml(target: &WrittenTarget, action: Action) -> String {
    let WrittenTarget { methods, paths, prefix, grpc, hosts, headers, upgrade, sni, ports, not } = target;
    let mut fields = Vec::new();
    fields.extend(methods.as_ref().map(|list| format!("methods: {list:?}")));
    let name = match (prefix, grpc) {
        (true, _) => "pathPrefix",
        (_, true) => "grpc",
        _ => "paths",
    };
    fields.extend(paths.as_ref().map(|list| format!("{name}: {list:?}")));
    fields.extend(hosts.as_ref().map(|list| format!("hosts: {list:?}")));
    if !headers.is_empty() {
        let headers: Vec<String> = headers.iter().map(|header| header_yaml(header, action)).collect();
        fields.push(format!("headers: [{}]", headers.join(", ")));
    }
    fields.extend(upgrade.as_ref().map(|list| format!("upgrade: {list:?}")));
    fields.extend(sni.as_ref().map(|list| format!("sni: {list:?}")));
    fields.extend(ports.as_ref().map(|list| format!("ports: {list:?}")));
    if let Some(WrittenNot { methods, prefix, hosts, upgrade, sni, ports }) = not {
        let mut inner = Vec::new();
        inner.extend(methods.as_ref().map(|list| format!("methods: {list:?}")));
        inner.extend(prefix.as_ref().map(|list| format!("pathPrefix: {list:?}")));
        inner.extend(hosts.as_ref().map(|list| format!("hosts: {list:?}")));
        inner.extend(upgrade.as_ref().map(|list| format!("upgrade: {list:?}")));
        inner.extend(sni.as_ref().map(|list| format!("sni: {list:?}")));
        inner.extend(ports.as_ref().map(|list| format!("ports: {list:?}")));
        fields.push(format!("not: {{{}}}", inner.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

fn header_yaml(header: &WrittenHeader, action: Action) -> String {
    let word = |exact: &bool| if *exact { "exact" } else { "prefix" };
    let test = match &header.test {
        WrittenTest::Present(present) => format!("present: {present}"),
        WrittenTest::Is(exact, _, list) => {
            let list = list.filter(|_| action == Action::Allow);
            let list = list.map(|list| format!(", list: {list}")).unwrap_or_default();
            format!("{}: {:?}{list}", word(exact), header.values())
        }
        WrittenTest::Not(exact, _) => format!("not: {{{}: {:?}}}", word(exact), header.values()),
    };
    format!("{{name: {}, {test}}}", header.name)
}

impl WrittenHeader {
    /// A prefix of nothing is refused.
    fn values(&self) -> Vec<&'static str> {
        match &self.test {
            WrittenTest::Present(_) => Vec::new(),
            WrittenTest::Is(true, values, _) | WrittenTest::Not(true, values) => values.clone(),
            WrittenTest::Is(false, values, _) | WrittenTest::Not(false, values) => {
                values.iter().map(|value| if value.is_empty() { "v" } else { value }).collect()
            }
        }
    }
}

fn rule(written: &Written) -> Rule {
    Rule {
        action: written.action,
        tier: written.tier,
        enforcement: written.enforcement,
        target_ports: written.target_ports.clone(),
        from: written.from.as_ref().map(|peers| peers.iter().map(rule_peer).collect()),
        to: written.to.as_ref().map(|targets| targets.iter().map(rule_target).collect()),
        condition: written.cel.map(|text| Condition::parse(text).unwrap()),
        window: written.weekly.map(|hours| {
            Box::new(Window {
                weekly: vec![Weekly::parse(hours).unwrap()],
                zone: jiff::tz::TimeZone::UTC,
                not_before: None,
                not_after: None,
            })
        }),
        istio: None,
    }
}

fn rule_peer(peer: &WrittenPeer) -> Peer {
    let fields = parsed(&peer.fields);
    Peer {
        unauthenticated: peer.unauthenticated,
        spiffe: peer.fields.spiffe.is_some().then_some(fields.spiffe),
        accounts: peer.fields.accounts.is_some().then_some(fields.accounts),
        namespaces: peer.fields.namespaces.is_some().then_some(fields.namespaces),
        trust_domain: fields.trust_domain,
        cidrs: peer.fields.cidrs.is_some().then_some(fields.cidrs),
        jwt: fields.jwt,
        not: peer.not.as_ref().map(|not| Box::new(parsed(not))),
    }
}

fn parsed(fields: &Fields) -> Excluded {
    Excluded {
        spiffe: fields.spiffe.iter().flatten().map(|id| SpiffeId::parse(id).unwrap()).collect(),
        accounts: fields
            .accounts
            .iter()
            .flatten()
            .map(|(namespace, name)| Account { namespace: (*namespace).into(), name: (*name).into() })
            .collect(),
        namespaces: fields.namespaces.iter().flatten().map(|name| (*name).into()).collect(),
        trust_domain: fields.domain.map(|td| TrustDomain::parse(td).unwrap()),
        cidrs: fields.cidrs.iter().flatten().map(|net| net.parse::<IpNet>().unwrap()).collect(),
        jwt: fields.jwt.as_ref().map(|jwt| Box::new(jwt.rule())),
    }
}

fn rule_target(target: &WrittenTarget) -> Target {
    let WrittenTarget { methods, paths, prefix, grpc, hosts, headers, upgrade, sni, ports, not } = target;
    let pattern = |text: &String| match (prefix, grpc) {
        (true, _) => PathPattern::parse_prefix(text, EscapedSlashes::Reject).unwrap(),
        (_, true) => PathPattern::parse_grpc(text).unwrap(),
        _ => PathPattern::parse(text, EscapedSlashes::Reject).unwrap(),
    };
    let methods = match methods.as_deref() {
        Some(["*"]) => Some(Methods::Any),
        Some(list) => Some(Methods::Only(list.iter().map(method).collect())),
        None => grpc.then(|| Methods::Only(vec![method(&"POST")])),
    };
    Target {
        methods,
        paths: paths.as_ref().map(|list| list.iter().map(pattern).collect()),
        grpc: *grpc,
        hosts: hosts.as_ref().map(|list| list.iter().map(host).collect()),
        headers: headers.iter().map(rule_header).collect(),
        upgrade: upgrade.as_ref().map(rule_upgrades),
        sni: sni.as_ref().map(|list| list.iter().map(host).collect()),
        ports: ports.clone(),
        not: not.as_ref().map(|WrittenNot { methods, prefix, hosts, upgrade, sni, ports }| {
            let prefix = prefix.iter().flatten();
            Box::new(ExcludedTarget {
                methods: methods.iter().flatten().map(method).collect(),
                paths: prefix
                    .map(|text| PathPattern::parse_prefix(text, EscapedSlashes::Reject).unwrap())
                    .collect(),
                hosts: hosts.iter().flatten().map(host).collect(),
                upgrade: upgrade.as_ref().map(rule_upgrades),
                sni: sni.iter().flatten().map(host).collect(),
                ports: ports.clone().unwrap_or_default(),
            })
        }),
    }
}

fn method(text: &&str) -> CanonMethod {
    CanonMethod::parse(text).unwrap()
}

fn host(text: &&str) -> HostPattern {
    match text.strip_prefix("*.") {
        Some(domain) => HostPattern::Below(domain.into()),
        None => HostPattern::Exact((*text).into()),
    }
}

fn rule_upgrades(names: &Vec<&'static str>) -> Upgrades {
    match names.as_slice() {
        ["*"] => Upgrades::Any,
        names => Upgrades::Only(names.iter().map(|name| Upgrade::parse(name).unwrap()).collect()),
    }
}

fn rule_header(header: &WrittenHeader) -> HeaderMatch {
    let patterns = |exact: bool| {
        let make = if exact { ValuePattern::Exact } else { ValuePattern::Prefix };
        header.values().into_iter().map(|value| make(value.into())).collect()
    };
    let test = match &header.test {
        WrittenTest::Present(true) => HeaderTest::Present,
        WrittenTest::Present(false) => HeaderTest::Absent,
        WrittenTest::Is(exact, _, list) => HeaderTest::Is(
            patterns(*exact),
            match list {
                None => ListOf::One,
                Some("any") => ListOf::Any,
                Some(_) => ListOf::All,
            },
        ),
        WrittenTest::Not(exact, _) => HeaderTest::Not(patterns(*exact)),
    };
    HeaderMatch { name: header.name.into(), test }
}

#[derive(Clone, Debug)]
struct Question {
    id: Option<SpiffeId>,
    address: IpAddr,
    port: u16,
    request: Option<Asked>,
    /// Without a request: what is known of a TLS handshake.
    sni: Option<Option<CanonHost>>,
}

#[derive(Clone, Debug)]
struct Asked {
    method: CanonMethod,
    path: CanonPath,
    host: Option<CanonHost>,
    headers: Option<HeaderFields>,
    upgrade: Option<Upgrade>,
    tokens: TokenSet,
}

prop_compose! {
    fn asked()(
        method in prop::sample::select(vec!["GET", "POST", "TRACE", "CONNECT", "PURGE"]),
        path in prop::sample::select(&ASKED),
        host in prop::option::weighted(0.9, prop::sample::select(&ASKED_HOSTS)),
        lines in prop::collection::vec((prop::sample::select(&FIELDS), prop::sample::select(&LINES)), 0..4),
        known in 0..10,
        upgrade in prop::option::weighted(0.3, prop::sample::select(vec!["websocket", "tcp", "other"])),
        tokens in jwt::tokens(),
    ) -> Asked {
        let mut fields = HeaderFields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        let headers = match known {
            0 => None,
            1 => Some(HeaderFields::keep(&fields, &[FIELDS[0].into()])),
            _ => Some(fields),
        };
        Asked {
            method: self::method(&method),
            path: CanonPath::parse(path, &PathOptions::default()).unwrap(),
            host: host.map(|host| CanonHost::parse(host).unwrap()),
            headers,
            upgrade: upgrade.map(|name| Upgrade::parse(name).unwrap()),
            tokens,
        }
    }
}

prop_compose! {
    fn question()(
        id in prop::option::weighted(0.8, id()),
        address in prop::sample::select(&ADDRESSES),
        port in prop::sample::select(vec![80_u16, 81, 82, 83]),
        request in prop::option::weighted(0.7, asked()),
        sni in prop::option::weighted(0.7, prop::option::weighted(0.9, prop::sample::select(&ASKED_SNI))),
    ) -> Question {
        let sni = sni.map(|name| name.map(|name| CanonHost::parse(name).unwrap()));
        let id = id.map(|id| SpiffeId::parse(&id).unwrap());
        Question { id, address: address.parse().unwrap(), port, request, sni }
    }
}

impl Question {
    fn source(&self) -> Source<'_> {
        Source { identity: self.id.as_ref(), address: self.address }
    }

    fn operation(&self) -> Operation<'_> {
        match &self.request {
            Some(Asked { method, path, host, headers, upgrade, tokens }) => Operation::Http {
                method,
                path,
                host: host.as_ref(),
                headers: headers.as_ref().map(|fields| fields as &dyn HeaderLines),
                upgrade: upgrade.as_ref(),
                tokens: tokens.at(jwt::now()),
            },
            None => match &self.sni {
                Some(sni) => Operation::Tls { sni: sni.as_ref() },
                None => Operation::Tcp,
            },
        }
    }
}

fn domains() -> OwnDomains {
    let td = |name: &str| TrustDomain::parse(name).unwrap();
    OwnDomains { canonical: td("home"), aliases: vec![td("alias")] }
}

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("home").unwrap(),
        root_namespace: "a".into(),
        workload: Some(Workload {
            namespace: "a".into(),
            service_account: "a".into(),
            labels: std::collections::BTreeMap::new(),
        }),
    }
}

fn check(engine: &Engine, question: &Question) -> Result<Effect, TestCaseError> {
    check_on(engine, &engine.connection(question.source()), question)
}

fn check_on(engine: &Engine, connection: &Connection, question: &Question) -> Result<Effect, TestCaseError> {
    let (source, operation) = (question.source(), question.operation());
    let verdict = engine.decide(connection, question.port, operation);
    let expected =
        eval_ref::decide(&engine.rules, &engine.domains, source, question.port, operation, engine.told());
    prop_assert_eq!(verdict, expected.by(verdict.generation), "{:?}", question);
    // Traffic is answered with the stage's verdict: it must name the same rule too, or logs contradict explanations.
    match connection.stage() {
        Stage::Allow(certain) | Stage::Deny(certain) => {
            prop_assert_eq!(certain, expected.by(verdict.generation), "stage {:?}", question);
        }
        Stage::Defer => {}
    }
    Ok(verdict.effect)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engines_agree_on_rules(
        rules in prop::collection::vec(written(), 0..40),
        questions in prop::collection::vec(question(), 40),
    ) {
        let engine = Engine::new(rules.iter().map(rule).collect(), domains(), 1);
        for (n, question) in questions.iter().enumerate() {
            // Not told, then a Thursday, then a Friday.
            if n >= 10 {
                engine.tell_time(UNIX_EPOCH + Duration::from_secs(n as u64 / 20 * 86_400));
            }
            let _ = check(&engine, question)?;
        }
    }

    /// The text of documents means what the rules mean.
    #[test]
    fn engines_agree_on_documents(
        rules in prop::collection::vec(written(), 0..8),
        questions in prop::collection::vec(question(), 20),
    ) {
        let file = SourceFile { name: "p".into(), text: documents(&rules).into_bytes() };
        let generation = load(&[file], &scope(), 3).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let engine = Engine::new(rules.iter().map(rule).collect(), domains(), 3);
        for question in &questions {
            let effect = check(&engine, question)?;
            let verdict = generation.decide(&generation.connection(question.source()), question.port, question.operation());
            prop_assert_eq!(verdict.effect, effect, "{:?}", question);
            let explained = generation.explain(question.source(), question.port, question.operation());
            prop_assert_eq!(explained.verdict, verdict);
            // The sentences exist, and the nearest miss is one.
            let text = explained.to_string();
            prop_assert!(!text.is_empty());
            if let Some(miss) = explained.nearest {
                prop_assert!(!miss.failed.is_empty(), "{}", text);
            }
        }
    }

    /// CVE-2021-36213's kin: a Deny never opens anything, an Allow never closes anything.
    #[test]
    fn more_denies_deny_more(
        rules in prop::collection::vec(written(), 0..12),
        extra in written(),
        questions in prop::collection::vec(question(), 20),
    ) {
        let before = Engine::new(rules.iter().map(rule).collect(), domains(), 1);
        let after = Engine::new(rules.iter().chain([&extra]).map(rule).collect(), domains(), 1);
        for question in &questions {
            let (was, is) = (check(&before, question)?, check(&after, question)?);
            match extra.action {
                _ if extra.enforcement == Enforcement::Shadow => prop_assert_eq!(was, is),
                Action::Audit => prop_assert_eq!(was, is),
                Action::Deny => prop_assert!(was == Effect::Allow || is != Effect::Allow),
                Action::Allow => prop_assert!(was != Effect::Allow || is == Effect::Allow),
            }
        }
    }
}

/// The questions above meet the rules: an agreement about nothing would prove nothing.
#[test]
fn questions_reach_every_answer() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut allow, mut deny, mut none, mut stages) = (0, 0, 0, [0; 3]);
    for _ in 0..150 {
        let rules = prop::collection::vec(written(), 0..6).new_tree(&mut runner).unwrap().current();
        let engine = Engine::new(rules.iter().map(rule).collect(), domains(), 1);
        for _ in 0..20 {
            let question = question().new_tree(&mut runner).unwrap().current();
            match check(&engine, &question).unwrap() {
                Effect::Allow => allow += 1,
                Effect::Deny(DenyReason::NoRule) => none += 1,
                Effect::Deny(_) => deny += 1,
            }
            stages[match engine.connection(question.source()).stage() {
                Stage::Allow(_) => 0,
                Stage::Deny(_) => 1,
                Stage::Defer => 2,
            }] += 1;
        }
    }
    assert!(allow > 100 && deny > 100 && none > 100, "{allow} {deny} {none}");
    assert!(stages[1] > 100 && stages[2] > 100, "{stages:?}");
}

/// An Allow stage takes one rule for everything, TRACE, CONNECT and opaque bytes included. No document can say that
/// today (an alternative of `to` holds something), so random rules do not reach it.
#[test]
fn one_rule_for_everything_is_certain() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let named = ["TRACE", "CONNECT"].map(|method| CanonMethod::parse(method).unwrap());
    let named = Target { methods: Some(Methods::Only(named.into())), ..Target::default() };
    let anyone = Peer { not: Some(Box::default()), ..Peer::default() };
    let everything = |action, to| Rule {
        action,
        tier: Tier::App,
        enforcement: Enforcement::Enforce,
        target_ports: None,
        from: Some(vec![anyone.clone()]),
        to,
        window: None,
        condition: None,
        istio: None,
    };
    let allow = everything(Action::Allow, Some(vec![Target::default(), named]));
    let ports = Rule { target_ports: Some(vec![80]), ..allow.clone() };
    let deny = everything(Action::Deny, None);
    let deny_all = Target { methods: Some(Methods::Any), ..Target::default() };
    let deny_methods = everything(Action::Deny, Some(vec![deny_all]));
    let only_untold = everything(Action::Allow, None);
    let mut runner = TestRunner::deterministic();
    for (rules, expected) in [
        (vec![&allow], "allow"),
        (vec![&only_untold], "defer"),
        (vec![&only_untold, &allow], "defer"),
        (vec![&allow, &only_untold], "allow"),
        (vec![&ports, &allow], "defer"),
        (vec![&allow, &deny], "deny"),
        (vec![&deny_methods, &deny], "deny"),
        (vec![&ports], "defer"),
    ] {
        let engine = Engine::new(rules.into_iter().cloned().collect(), domains(), 1);
        let source = Source {
            identity: Some(&SpiffeId::parse("spiffe://home/a").unwrap()),
            address: [10, 0, 0, 1].into(),
        };
        let stage = match engine.connection(source).stage() {
            Stage::Allow(_) => "allow",
            Stage::Deny(_) => "deny",
            Stage::Defer => "defer",
        };
        assert_eq!(stage, expected, "{:?}", engine.rules);
        for _ in 0..100 {
            let _ = check(&engine, &question().new_tree(&mut runner).unwrap().current()).unwrap();
        }
    }
}

/// More kinds of templates than the index takes, all with the same first segment.
#[test]
fn templates_beyond_the_index() {
    let mut rules = Vec::new();
    for mask in 0..64_u32 {
        let segments: String = (0..6).map(|n| if mask >> n & 1 == 1 { "/{*}" } else { "/a" }).collect();
        let to = WrittenTarget { paths: Some(vec![segments]), ..WrittenTarget::default() };
        rules.push(rule(&Written {
            action: Action::Deny,
            tier: Tier::App,
            enforcement: Enforcement::Enforce,
            target_ports: None,
            from: None,
            to: Some(vec![to]),
            weekly: None,
            cel: None,
        }));
    }
    let engine = Engine::new(rules, domains(), 1);
    for mask in 0..64_u32 {
        let path: String = (0..6).map(|n| if mask >> n & 1 == 1 { "/b" } else { "/a" }).collect();
        let request = Asked {
            method: CanonMethod::get(),
            path: CanonPath::parse(&path, &PathOptions::default()).unwrap(),
            host: None,
            headers: None,
            upgrade: None,
            tokens: TokenSet::absent(),
        };
        let address = ADDRESSES[0].parse().unwrap();
        let question = Question { id: None, address, port: 1, request: Some(request), sni: None };
        assert_eq!(check(&engine, &question).unwrap(), Effect::Deny(DenyReason::Rule), "{path}");
    }
}
