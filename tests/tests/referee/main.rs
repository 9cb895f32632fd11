//! Envoy 1.40 as a referee that nobody here wrote: Istio's policies and requests, drawn at random and aimed at the rules'
//! boundaries, through Envoy's RBAC filters and through Postern's engine.
//!
//! Each set of policies is written twice from the values it was drawn from: as YAML for Postern, and as Istio's control
//! plane would write it for Envoy. What differs must be one of the deliberate deviations that docs/istio.md lists; a
//! request with nothing odd about it must be answered alike, and a deviation that no longer occurs fails the test too.
//!
//! `POSTERN_REFEREE_SEED` and `POSTERN_REFEREE_SETS` draw others.

mod draw;
mod envoy;
mod own;
mod papers;
mod policy;
mod rbac;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::time::Instant;

use postern_policy::export::{self, EnvoyFilters};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};
use postern_tests::{Block, foreign, is_long};

use draw::Draw;
use envoy::Rules;
use policy::{Policy, Words};
use request::{Asked, Odd};

/// With a proven identity; the last two in shapes that Kubernetes does not make.
const IDS: [&str; 9] = [
    "spiffe://home/ns/web/sa/front",
    "spiffe://alias/ns/web/sa/front",
    "spiffe://else/ns/web/sa/front",
    "spiffe://home/ns/web/sa/back",
    "spiffe://home/ns/webs/sa/front",
    "spiffe://home/ns/shop/sa/front",
    "spiffe://home/ns/ops/sa/front",
    "spiffe://home/k/v/ns/web/sa/front/k/v",
    "spiffe://home/front",
];
const REQUESTS: usize = 36;

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("home").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    }
}

fn yaml(set: &[Policy]) -> String {
    set.iter().enumerate().map(|(n, policy)| policy.yaml(n)).collect()
}

fn generation(set: &[Policy]) -> Generation {
    let defaults = "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: d, namespace: root}\n\
                    spec: {trustDomains: {aliases: [alias]}}\n";
    let text = defaults.to_owned() + &yaml(set);
    let file = SourceFile { name: "set.yaml".into(), text: text.clone().into_bytes() };
    load(&[file], &scope(), 1).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// What differs, by what is odd about the request. `None`: nothing is.
type Differences = BTreeMap<Option<Odd>, usize>;

#[test]
fn envoy_decides_alike() {
    if !foreign::need(&["envoy"]) {
        return;
    }
    let number = |name: &str, other: usize| {
        std::env::var(name).ok().map_or(other, |text| text.parse().expect("it is a number"))
    };
    let seed = number("POSTERN_REFEREE_SEED", 1);
    let sets = number("POSTERN_REFEREE_SETS", if is_long() { 5_000 } else { 250 });
    let start = Instant::now();
    let mut draw = Draw::new(seed as u64);
    let block = Block::take();
    let host = block.address(0);
    let ports = ports(host);
    let addresses = [block.address(1), block.address(2), block.address(3)];
    let words = Words {
        ports: vec![ports[0].to_string(), ports[1].to_string(), ports[2].to_string(), "9".to_owned()],
        networks: vec![
            addresses[0].to_string(),
            format!("{}/32", addresses[1]),
            "127.0.0.0/8".into(),
            "10.0.0.0/8".into(),
        ],
    };
    let sets: Vec<Vec<Policy>> = (0..sets)
        .map(|_| (0..1 + draw.below(3)).map(|_| Policy::draw(&mut draw, &words)).collect())
        .collect();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let papers = papers::Papers::make(&IDS);
    let generations: Vec<Generation> = sets.iter().map(|set| generation(set)).collect();
    let own: Vec<Generation> = own::SPECS.iter().map(|spec| own::generation(spec, &words)).collect();
    // First the sets as Istio would write them, then as they are exported, then our own rules.
    let written = sets.iter().map(|set| Rules::of(set));
    let exported = generations.iter().chain(&own).map(exported);
    let all: Vec<Rules> = written.chain(exported).collect();
    let mut envoy = envoy::Envoy::start(directory.path(), &papers, host, ports, &all);

    let (mut allowed, mut denied, mut exports, mut bytes) = (0, 0, 0, [0; 2]);
    let mut differences = Differences::new();
    for (n, (set, generation)) in sets.iter().zip(&generations).enumerate() {
        for _ in 0..REQUESTS {
            let asked = Asked::draw(&mut draw, set, &IDS, &addresses, &ports[..2]);
            let theirs = envoy.status(asked.id, asked.address, asked.port, &asked.bytes(n)) == 200;
            let ours = asked.judged_by(generation);
            if theirs {
                allowed += 1;
            } else {
                denied += 1;
            }
            if theirs != ours {
                note(&mut differences, &asked, set, theirs);
            }
            if asked.is_exported() {
                let theirs = envoy.status(asked.id, asked.address, asked.port, &asked.bytes(sets.len() + n));
                assert_eq!(theirs == 200, ours, "exported, Envoy says {theirs}: {asked:#?}\n{}", yaml(set));
                exports += 1;
            }
        }
        // Each asks for a handshake of its own.
        for _ in 0..2 {
            let (id, address) = (draw.of(&IDS), draw.pick(&addresses));
            let theirs = envoy.passes_bytes(id, address, ports[2], n);
            let ours = opaque(generation, id, address, ports[2]);
            assert_eq!(theirs, ours, "opaque bytes of {id} from {address}: Envoy and Postern\n{}", yaml(set));
            bytes[usize::from(theirs)] += 1;
            let theirs = envoy.passes_bytes(id, address, ports[2], sets.len() + n);
            assert_eq!(theirs, ours, "exported: opaque bytes of {id} from {address}\n{}", yaml(set));
        }
    }
    for (n, (spec, generation)) in own::SPECS.iter().zip(&own).enumerate() {
        let route = 2 * sets.len() + n;
        for _ in 0..4 * REQUESTS {
            let asked = Asked::draw(&mut draw, &[], &IDS, &addresses, &ports[..2]);
            if asked.is_exported() {
                let theirs = envoy.status(asked.id, asked.address, asked.port, &asked.bytes(route));
                assert_eq!(theirs == 200, asked.judged_by(generation), "{spec}: {asked:#?}");
                exports += 1;
            }
        }
        for id in IDS {
            let theirs = envoy.passes_bytes(id, addresses[0], ports[2], route);
            assert_eq!(
                theirs,
                opaque(generation, id, addresses[0], ports[2]),
                "{spec}: opaque bytes of {id}"
            );
        }
    }
    println!(
        "{} sets, {} requests ({allowed} allowed, {denied} denied by Envoy), {} connections of opaque bytes ({} pass), \
         {exports} requests by what was exported, {:?}",
        sets.len(),
        allowed + denied,
        bytes[0] + bytes[1],
        bytes[1],
        start.elapsed()
    );
    for (odd, count) in &differences {
        println!("  {:<16} {count}", odd.map_or("several at once", Odd::name));
    }
    // An agreement about nothing would prove nothing.
    assert!(allowed > denied / 5 && denied > allowed / 5, "{allowed} {denied}");
    assert!(bytes[0] > 50 && bytes[1] > 50, "{bytes:?}");
    let found: BTreeSet<&str> = differences.keys().flatten().map(|odd| odd.name()).collect();
    assert_eq!(found, documented(), "found on the left, in docs/istio.md on the right");
}

fn exported(generation: &Generation) -> Rules {
    let EnvoyFilters { http, tcp, losses: _ } = export::envoy(generation);
    Rules { http: Rules::exported(&http), tcp: Rules::exported(&tcp) }
}

/// A difference must have a reason among the listed ones.
fn note(differences: &mut Differences, asked: &Asked, set: &[Policy], theirs: bool) {
    let reasons: Vec<Odd> = asked.odd.iter().copied().filter(|odd| odd.explains(set, theirs)).collect();
    assert!(
        !reasons.is_empty(),
        "Envoy {}, Postern {}, and nothing explains it\n{asked:#?}\n{}",
        if theirs { "allows" } else { "denies" },
        if theirs { "denies" } else { "allows" },
        yaml(set)
    );
    let reason = if let [only] = reasons[..] { Some(only) } else { None };
    *differences.entry(reason).or_default() += 1;
}

fn opaque(generation: &Generation, id: &str, address: IpAddr, port: u16) -> bool {
    let id = SpiffeId::parse(id).expect("a literal");
    let source = Source { identity: Some(&id), address };
    generation.decide(&generation.connection(source), port, Operation::Tcp).is_allowed()
}

/// The names in the first column of the list.
fn documented() -> BTreeSet<&'static str> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/istio.md"));
    let page: &'static str = Box::leak(page.expect("the page is there").into_boxed_str());
    let list = page.split("## Deliberate deviations").nth(1).expect("the list is there");
    let list = list.split("\n## ").next().unwrap_or_default();
    list.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

/// Three ports that are free now, and nobody else's at this address.
fn ports(host: IpAddr) -> [u16; 3] {
    let held = [(); 3].map(|()| TcpListener::bind((host, 0)).expect("a port is free"));
    held.map(|listener| listener.local_addr().expect("it is bound").port())
}
