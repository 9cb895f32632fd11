//! The engine against its specification, on random rules and calls.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use postern_svid::SpiffeId;
use proptest::prelude::*;

use super::*;
use crate::changes::Changes;
use crate::egress::reference;
use crate::egress::rule::{Destination, ServicePattern, Whither};
use crate::norm::{CanonHost, CanonPath, EscapedSlashes, PathOptions};
use crate::pattern::PathPattern;
use crate::port_paths::PortPaths;
use crate::rule::HostPattern;
use crate::services::{Endpoint, Protocol, Service, ServiceName, ServicePort, Transport};
use crate::verdict::Tier;
use crate::window::{Weekly, Window};

// Few words, so that rules and calls meet.
const NAMES: [&str; 3] = ["a", "b", "c"];
const HOSTS: [&str; 5] = ["a.x", "b.a.x", "*.x", "*.a.x", "c.y"];
const ASKED_HOSTS: [&str; 5] = ["a.x", "b.a.x", "c.b.a.x", "c.y", "d.y"];
const NETS: [&str; 9] = [
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "fd00::/8",
    "::/0",
    "fe80::1/128",
];
const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.1.0.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "192.0.2.1",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "127.0.0.1",
];
const PORTS: [u16; 3] = [80, 443, 5432];
const METHODS: [&str; 3] = ["GET", "POST", "TRACE"];
const PATHS: [&str; 6] = ["/", "/a", "/a/b", "/{*}", "/a/{**}", "/{*}/b"];
const PREFIXES: [&str; 3] = ["/", "/a", "/b"];
const ASKED: [&str; 8] = ["/", "/a", "/a/b", "/b", "/b/b", "/a;x", "/a;x/b", "/c/%2561"];

fn some<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    prop::collection::vec(prop::sample::select(of.to_vec()), 1..3)
}

fn maybe<S: Strategy>(of: S) -> impl Strategy<Value = Option<S::Value>>
where
    S::Value: Clone,
{
    prop::option::weighted(0.3, of)
}

fn nets(of: Vec<&str>) -> Vec<IpNet> {
    of.into_iter().map(|net| net.parse().unwrap()).collect()
}

fn host_pattern(text: &str) -> HostPattern {
    match text.strip_prefix("*.") {
        Some(domain) => HostPattern::Below(domain.into()),
        None => HostPattern::Exact(text.into()),
    }
}

fn service_pattern() -> impl Strategy<Value = ServicePattern> {
    let name = prop::sample::select(&NAMES);
    let one = (name, prop::sample::select(&NAMES)).prop_map(|(namespace, name)| {
        ServicePattern::One(ServiceName { namespace: namespace.into(), name: name.into() })
    });
    let namespace = prop::sample::select(&NAMES).prop_map(|name| ServicePattern::Namespace(name.into()));
    prop_oneof![5 => one, 1 => namespace, 1 => Just(ServicePattern::Meshed)]
}

fn whither() -> impl Strategy<Value = Whither> {
    prop_oneof![
        3 => prop::collection::vec(service_pattern(), 1..3).prop_map(Whither::Services),
        3 => some(&HOSTS).prop_map(|list| Whither::Hosts(list.into_iter().map(host_pattern).collect())),
        3 => (some(&NETS), maybe(some(&NETS))).prop_map(|(of, except)| {
            Whither::Addresses { nets: nets(of), except: nets(except.unwrap_or_default()) }
        }),
    ]
}

fn paths() -> impl Strategy<Value = Vec<PathPattern>> {
    let exact = some(&PATHS).prop_map(|list| {
        list.into_iter().map(|path| PathPattern::parse(path, EscapedSlashes::Reject).unwrap()).collect()
    });
    let prefix = some(&PREFIXES).prop_map(|list| {
        list.into_iter()
            .map(|path| PathPattern::parse_prefix(path, EscapedSlashes::Reject).unwrap())
            .collect()
    });
    prop_oneof![exact, prefix]
}

prop_compose! {
    fn destination()(
        whither in whither(),
        ports in maybe(some(&PORTS)),
        protocol in maybe(prop::sample::select(vec![Spoken::Http, Spoken::Tls, Spoken::Tcp])),
        methods in maybe(prop_oneof![
            some(&METHODS).prop_map(|list| Methods::Only(list.into_iter().map(|m| CanonMethod::parse(m).unwrap()).collect())),
            Just(Methods::Any),
        ]),
        paths in maybe(paths()),
    ) -> Destination {
        Destination { whither, ports, protocol, methods, paths }
    }
}

prop_compose! {
    fn rule()(
        action in prop_oneof![6 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Audit)],
        tier in prop_oneof![1 => Just(Tier::Platform), 4 => Just(Tier::App), 1 => Just(Tier::Baseline)],
        shadow in prop::bool::weighted(0.15),
        to in prop::option::weighted(0.9, prop::collection::vec(destination(), 1..3)),
        weekly in prop::option::weighted(0.1, prop::sample::select(vec!["Thu 00:00-01:00", "Fri 00:00-01:00"])),
    ) -> EgressRule {
        let shadow = shadow && action != Action::Audit;
        let enforcement = if shadow { Enforcement::Shadow } else { Enforcement::Enforce };
        let window = weekly.map(|hours| Window {
            weekly: vec![Weekly::parse(hours).unwrap()],
            zone: jiff::tz::TimeZone::UTC,
            not_before: None,
            not_after: None,
        });
        EgressRule { action, tier, enforcement, to, window }
    }
}

/// Calls that a change spared, that it concerned, and that it turned round.
static CONCERNED: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// A call with everything that it borrows.
#[derive(Clone, Debug)]
struct Asked {
    port: ServicePort,
    host: CanonHost,
    addresses: Vec<IpAddr>,
    request: Option<(CanonMethod, CanonPath)>,
}

impl Asked {
    fn call(&self) -> Call<'_> {
        let operation = match &self.request {
            Some((method, path)) => Operation::http(method, path),
            None => Operation::Tcp,
        };
        Call { port: &self.port, host: &self.host, addresses: &self.addresses, own: &[], operation }
    }
}

prop_compose! {
    fn asked()(
        namespace in prop::sample::select(&NAMES),
        name in prop::sample::select(&NAMES),
        external in prop::bool::weighted(0.7),
        number in prop::sample::select(&PORTS),
        protocol in prop::sample::select(vec![Protocol::Http, Protocol::Grpc, Protocol::Tls, Protocol::Tcp]),
        host in prop::sample::select(&ASKED_HOSTS),
        addresses in prop::collection::vec(prop::sample::select(&ADDRESSES), 0..3),
        method in prop::sample::select(&METHODS),
        path in prop::sample::select(&ASKED),
    ) -> Asked {
        let path = CanonPath::parse(path, &PathOptions::default()).unwrap();
        let request = protocol.is_http().then(|| (CanonMethod::parse(method).unwrap(), path));
        let addresses = addresses.into_iter().map(|address| address.parse().unwrap()).collect();
        Asked {
            port: port(namespace, name, number, protocol, external),
            host: CanonHost::parse(host).unwrap(),
            addresses,
            request,
        }
    }
}

fn port(namespace: &str, name: &str, port: u16, protocol: Protocol, external: bool) -> ServicePort {
    ServicePort {
        port,
        name: None,
        protocol,
        target_port: port,
        upgrades: Arc::default(),
        paths: PortPaths::default(),
        service: ServiceName { namespace: namespace.into(), name: name.into() },
        originate: None,
        external,
        hosts: Arc::default(),
        endpoints: Arc::default(),
        place: crate::diagnostic::Place { file: "services.yaml".into(), line: 1, column: 1 },
    }
}

/// A set of rules, sorted as generations sort them, both ways.
fn egress(mut rules: Vec<EgressRule>, services: &Services) -> Egress {
    rules.sort_by_key(|rule| rule.tier);
    Egress::new(rules.into_iter().map(Arc::new).collect(), services, 7, 3)
}

fn by_reference(egress: &Egress, call: &Call<'_>) -> Verdict {
    reference::decide(&egress.rules, egress.first, &egress.mesh, call, egress.told()).by(3)
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_and_reference_agree(
        rules in prop::collection::vec(rule(), 0..8),
        calls in prop::collection::vec(asked(), 50),
        told in any::<bool>(),
    ) {
        let egress = egress(rules, &Services::default());
        if told {
            egress.tell_time(UNIX_EPOCH + Duration::from_secs(60));
        }
        for asked in &calls {
            let call = asked.call();
            prop_assert_eq!(egress.decide(&call), by_reference(&egress, &call), "{:?}\n{:#?}", asked, egress.rules);
        }
    }

    /// A Deny more never allows more, wherever it stands.
    #[test]
    fn a_deny_more_allows_nothing(
        rules in prop::collection::vec(rule(), 0..6),
        deny in rule(),
        calls in prop::collection::vec(asked(), 30),
    ) {
        let before = egress(rules.clone(), &Services::default());
        let deny = EgressRule { action: Action::Deny, enforcement: Enforcement::Enforce, ..deny };
        let after = egress(rules.into_iter().chain([deny]).collect(), &Services::default());
        for asked in &calls {
            let call = asked.call();
            prop_assert!(!after.decide(&call).is_allowed() || before.decide(&call).is_allowed(), "{asked:?}");
        }
    }

    /// Asking only the calls that a change may concern leaves the same ones as asking all.
    #[test]
    fn whoever_is_judged_otherwise_is_concerned(
        kept in prop::collection::vec(rule(), 2..10),
        gone in prop::collection::vec(rule(), 0..3),
        come in prop::collection::vec(rule(), 0..3),
        calls in prop::collection::vec(asked(), 40),
        hour in any::<bool>(),
    ) {
        let services = Services::default();
        let with = |more: &[EgressRule]| egress(kept.iter().chain(more).cloned().collect(), &services);
        let (before, after) = (with(&gone), with(&come));
        if hour {
            before.tell_time(UNIX_EPOCH + Duration::from_secs(86_399));
            after.tell_time(UNIX_EPOCH + Duration::from_secs(86_400));
        }
        let changes = Changes::of_egress(&before, &after, &services);
        if gone.is_empty() && come.is_empty() && kept.iter().all(|rule| rule.window.is_none()) {
            prop_assert!(changes.are_none());
        }
        for asked in &calls {
            let call = asked.call();
            let concerned = changes.may_concern_call(&call);
            let turned = before.decide(&call).is_allowed() != after.decide(&call).is_allowed();
            prop_assert!(concerned || !turned, "{:?}", asked);
            CONCERNED[usize::from(concerned)].fetch_add(1, Ordering::Relaxed);
            CONCERNED[2].fetch_add(usize::from(turned), Ordering::Relaxed);
        }
        // Else everybody would be, and nothing would be proven.
        let [spared, concerned, turned] = CONCERNED.each_ref().map(|count| count.load(Ordering::Relaxed));
        prop_assert!(spared + concerned < 8_000 || (spared * 3 > concerned && turned > 40));
    }

    /// What is outside and what must not be dialled needs no luck in the rules.
    #[test]
    fn nothing_opens_the_own_machine(rules in prop::collection::vec(rule(), 0..6), asked in asked()) {
        let asked = Asked { addresses: vec![[127, 0, 0, 1].into()], ..asked };
        let asked = Asked { port: ServicePort { external: true, ..asked.port.clone() }, ..asked };
        let verdict = egress(rules, &Services::default()).decide(&asked.call());
        prop_assert_eq!(verdict.effect, Effect::Deny(DenyReason::Address));
    }
}

/// What an alternative leaves out it leaves out of addresses too that an Allow must name.
#[test]
fn what_is_named_and_left_out_is_left_out() {
    let link_local: IpAddr = "fe80::1".parse().unwrap();
    let allowed = |except: &[&str]| {
        let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect();
        let whither = Whither::Addresses { nets: nets(&["fe80::1/128", "fe80::/16"]), except: nets(except) };
        let to = Destination { whither, ports: None, protocol: None, methods: None, paths: None };
        let egress = egress(
            vec![EgressRule {
                action: Action::Allow,
                tier: Tier::App,
                enforcement: Enforcement::Enforce,
                to: Some(vec![to]),
                window: None,
            }],
            &Services::default(),
        );
        let asked = Asked {
            port: port("a", "a", 80, Protocol::Tcp, true),
            host: CanonHost::parse("a.x").unwrap(),
            addresses: vec![link_local],
            request: None,
        };
        assert_eq!(egress.decide(&asked.call()), by_reference(&egress, &asked.call()));
        egress.decide(&asked.call()).is_allowed()
    };
    assert!(allowed(&[]) && allowed(&["fe80::2/128"]));
    assert!(!allowed(&["fe80::1/128"]) && !allowed(&["fe80::/64"]));
}

/// The calls above meet the rules: an agreement about nothing would prove nothing.
#[test]
fn questions_meet_rules() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut allowed, mut denied, mut unruled, mut shadows, mut audits, mut addresses) = (0, 0, 0, 0, 0, 0);
    for _ in 0..400 {
        let rules = prop::collection::vec(rule(), 3..8).new_tree(&mut runner).unwrap().current();
        let egress = egress(rules, &Services::default());
        for _ in 0..10 {
            let asked = asked().new_tree(&mut runner).unwrap().current();
            let verdict = egress.decide(&asked.call());
            match verdict.effect {
                Effect::Allow => allowed += 1,
                Effect::Deny(DenyReason::Rule) => denied += 1,
                Effect::Deny(DenyReason::Address) => addresses += 1,
                Effect::Deny(_) => unruled += 1,
            }
            shadows += usize::from(verdict.shadow.is_some());
            audits += usize::from(verdict.audit.is_some());
        }
    }
    let seen = [allowed, denied, unruled, shadows, audits, addresses];
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}

#[test]
fn the_address_of_a_workload_is_not_outside() {
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/a").unwrap();
    let endpoint = Endpoint {
        address: [10, 0, 0, 1].into(),
        mesh_port: 24_143,
        identities: vec![id],
        transport: Transport::Postern,
    };
    let meshed = Service {
        name: ServiceName { namespace: "a".into(), name: "a".into() },
        external: false,
        hosts: Arc::default(),
        addresses: Arc::default(),
        ports: Vec::new(),
        endpoints: Arc::new([endpoint]),
    };
    let everything = Destination {
        whither: Whither::Addresses { nets: nets(vec!["0.0.0.0/0", "10.0.0.1/32"]), except: Vec::new() },
        ports: None,
        protocol: None,
        methods: None,
        paths: None,
    };
    let rule = EgressRule {
        action: Action::Allow,
        tier: Tier::Platform,
        enforcement: Enforcement::Enforce,
        to: Some(vec![everything]),
        window: None,
    };
    let egress = egress(vec![rule], &Services::new(vec![meshed], "root"));
    let mut asked = Asked {
        port: port("a", "out", 443, Protocol::Tcp, true),
        host: CanonHost::parse("out.a").unwrap(),
        addresses: vec!["10.0.0.2".parse().unwrap()],
        request: None,
    };
    assert!(egress.decide(&asked.call()).is_allowed());
    asked.addresses.push("::ffff:10.0.0.1".parse().unwrap());
    assert_eq!(egress.decide(&asked.call()).effect, Effect::Deny(DenyReason::Address));
    assert_eq!(by_reference(&egress, &asked.call()).effect, Effect::Deny(DenyReason::Address));
}

/// Rules that share nothing a call asks for are not looked at, however many there are.
#[test]
fn candidates_do_not_grow_with_the_rules() {
    let of = |n: usize| {
        let whither = match n % 3 {
            0 => Whither::Services(vec![ServicePattern::One(ServiceName {
                namespace: "a".into(),
                name: format!("s{n}").into(),
            })]),
            1 => Whither::Hosts(vec![
                host_pattern(&format!("h{n}.example")),
                host_pattern(&format!("*.h{n}.example")),
            ]),
            _ => Whither::Addresses {
                nets: nets(vec![&format!("10.{}.{}.0/24", n / 256 % 256, n % 256)]),
                except: Vec::new(),
            },
        };
        let to = Destination { whither, ports: Some(vec![443]), protocol: None, methods: None, paths: None };
        let (action, tier, enforcement) = (Action::Allow, Tier::App, Enforcement::Enforce);
        EgressRule { action, tier, enforcement, to: Some(vec![to]), window: None }
    };
    let egress = egress((0..9_000).map(of).collect(), &Services::default());
    assert_eq!(egress.worst_list(), 1);
}
