//! Many questions for each set of rules, made from the rules' own words: what a rule names, what nearly is it, and what
//! no rule names. Random words rarely stand one byte beside a rule, which is where an index goes wrong.

use std::cell::Cell;
use std::io::Write as _;

use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::pattern::Segment;

/// Enough for 200,000 decisions in each run of the tests; `POSTERN_TEST_LONG` makes millions of them.
const SETS: u32 = 640;
const SETS_LONG: u32 = 16_000;
const SOURCES: usize = 16;
const REQUESTS: usize = 20;
/// More than the engine files under one dimension if it can help it.
const MANY: std::ops::Range<usize> = 60..90;

/// A rule as documents have them, or one with a list so long that another dimension is preferred for it.
fn one_rule() -> impl Strategy<Value = Rule> {
    let long = (written(), any::<bool>(), 0_u8..4, MANY).prop_map(|(written, alone, dimension, many)| {
        let base = rule(&written);
        // With nothing else to be filed under, or with something.
        let base = if alone { Rule { from: None, to: None, target_ports: None, ..base } } else { base };
        let own = |n: usize| format!("spiffe://home/ns/n{n}/sa/s");
        let target = |target: Target| Rule { to: Some(vec![target]), ..base.clone() };
        match dimension {
            0 => {
                let ids = (0..many).map(|n| SpiffeId::parse(&own(n)).unwrap()).collect();
                Rule { from: Some(vec![Peer { spiffe: Some(ids), ..Peer::default() }]), ..base }
            }
            1 => {
                let paths = (0..many).map(|n| PathPattern::Exact(format!("/p{n}").into())).collect();
                target(Target { paths: Some(paths), ..Target::default() })
            }
            2 => {
                let hosts = (0..many).map(|n| HostPattern::Below(format!("h{n}.x").into())).collect();
                target(Target { hosts: Some(hosts), ..Target::default() })
            }
            _ => target(Target {
                ports: Some((0..many).map(|n| u16::try_from(n + 80).unwrap()).collect()),
                ..Target::default()
            }),
        }
    });
    prop_oneof![6 => written().prop_map(|written| rule(&written)), 1 => long]
}

#[test]
fn engines_agree_at_boundaries() {
    let sets = if std::env::var_os("POSTERN_TEST_LONG").is_some() { SETS_LONG } else { SETS };
    let config = Config { cases: sets, failure_persistence: None, ..Config::default() };
    let counts = [const { Cell::new(0_u64) }; 3];
    let run = TestRunner::new(config).run(
        &(prop::collection::vec(one_rule(), 0..20), any::<u64>()),
        |(rules, seed)| {
            let pools = Pools::of(&rules);
            let mut draw = Draw(seed);
            let engine = Engine::new(rules, domains(), 1);
            // Untold for half of them, then a Thursday, for rules that hold at some times only.
            for n in 0..SOURCES {
                if n == SOURCES / 2 {
                    engine.tell_time(UNIX_EPOCH);
                }
                let (id, address) = (draw.one_of(&pools.ids), draw.one_of(&pools.addresses));
                let connection = engine.connection(Source { identity: id.as_ref(), address: *address });
                for _ in 0..REQUESTS {
                    let question = pools.question(&mut draw, id.clone(), *address);
                    let at = match check_on(&engine, &connection, &question)? {
                        Effect::Allow => 0,
                        Effect::Deny(DenyReason::NoRule) => 1,
                        Effect::Deny(_) => 2,
                    };
                    counts[at].set(counts[at].get() + 1);
                }
            }
            Ok(())
        },
    );
    if let Err(error) = run {
        panic!("{error}");
    }
    let [allow, none, deny] = counts.map(Cell::into_inner);
    let all = allow + none + deny;
    // Not through `println!`, which a passing test's output is swallowed with.
    let _ = writeln!(
        std::io::stderr(),
        "engine against reference: {all} decisions on {sets} sets of rules, 0 mismatches \
         ({allow} allowed, {deny} denied by a rule, {none} by default)"
    );
    assert!(all >= 200_000, "{all}");
    assert!([allow, none, deny].iter().all(|count| count * 20 > all), "{allow} {none} {deny}");
}

/// Splitmix64: questions are many, and a strategy's machinery would cost more than the decisions.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }

    pub(super) fn one_of<'p, T>(&mut self, pool: &'p [T]) -> &'p T {
        &pool[self.below(pool.len())]
    }
}

/// What questions are made of.
pub(super) struct Pools {
    pub(super) ids: Vec<Option<SpiffeId>>,
    pub(super) addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    methods: Vec<CanonMethod>,
    paths: Vec<CanonPath>,
    hosts: Vec<Option<CanonHost>>,
    /// Server names of TLS.
    names: Vec<Option<CanonHost>>,
    tokens: Vec<TokenSet>,
}

impl Pools {
    pub(super) fn of(rules: &[Rule]) -> Self {
        let (mut ids, mut paths, mut hosts) = (vec![None, None], Vec::new(), vec![None]);
        let mut names = vec![None];
        let mut ports: Vec<u16> = PORTS.to_vec();
        ports.extend([79, 83, 140]);
        let mut id = |text: String| ids.push(Some(SpiffeId::parse(&text).unwrap()));
        for text in ["ns/a/sa/b", "ns/a/sa/a", "ns/d/sa/a", "ns/a", "a", "ns/a/sa/a/b"] {
            for td in DOMAINS {
                id(format!("spiffe://{td}/{text}"));
            }
        }
        for rule in rules {
            for peer in rule.from.iter().flatten() {
                // Few of a long list, else nothing but its values would be asked for.
                let named = peer.spiffe.iter().flatten();
                named.rev().take(6).for_each(|named| ids.push(Some(named.clone())));
                let accounts =
                    peer.accounts.iter().chain(peer.not.as_ref().map(|not| &not.accounts)).flatten();
                for account in accounts {
                    for td in DOMAINS {
                        let text = format!("spiffe://{td}/ns/{}/sa/{}", account.namespace, account.name);
                        ids.push(Some(SpiffeId::parse(&text).unwrap()));
                    }
                }
            }
            for target in rule.to.iter().flatten() {
                let not = target.not.as_ref();
                let named = target.paths.iter().flatten().rev().take(6);
                for pattern in named.chain(not.into_iter().flat_map(|not| &not.paths)) {
                    near_path(pattern, &mut paths);
                }
                let named = target.hosts.iter().flatten().rev().take(6);
                for pattern in named.chain(not.into_iter().flat_map(|not| &not.hosts)) {
                    near_host(pattern, &mut hosts);
                }
                let named = target.sni.iter().flatten();
                for pattern in named.chain(not.into_iter().flat_map(|not| &not.sni)) {
                    near_host(pattern, &mut names);
                }
                ports.extend(target.ports.iter().flatten().rev().take(3));
            }
        }
        paths.extend(ASKED.iter().map(|path| (*path).to_owned()));
        paths.extend(["/caf%C3%A9", "/%F0%9F%98%80/a", "/a%20b", "/a/b%2563"].map(str::to_owned));
        hosts.extend(ASKED_HOSTS.iter().map(|host| CanonHost::parse(host).ok()));
        names.extend(ASKED_SNI.iter().map(|name| CanonHost::parse(name).ok()));
        let addresses =
            ["10.255.255.255", "11.0.0.0", "9.255.255.255", "10.0.255.255", "10.0.0.2", "fe00::", "::1"];
        let options = PathOptions::default();
        Self {
            ids,
            addresses: ADDRESSES.iter().chain(&addresses).map(|text| text.parse().unwrap()).collect(),
            ports,
            methods: ["GET", "POST", "TRACE", "CONNECT", "PURGE", "purge"].iter().map(method).collect(),
            paths: paths.iter().filter_map(|path| CanonPath::parse(path, &options).ok()).collect(),
            hosts,
            names,
            tokens: jwt::samples(),
        }
    }

    pub(super) fn question(&self, draw: &mut Draw, id: Option<SpiffeId>, address: IpAddr) -> Question {
        let port = *draw.one_of(&self.ports);
        if draw.below(8) == 0 {
            let sni = (draw.below(4) > 0).then(|| draw.one_of(&self.names).clone());
            return Question { id, address, port, request: None, sni };
        }
        let mut fields = HeaderFields::new();
        for _ in 0..draw.below(4) {
            fields.push(FIELDS[draw.below(FIELDS.len())], LINES[draw.below(LINES.len())]).unwrap();
        }
        let headers = match draw.below(10) {
            0 => None,
            1 => Some(HeaderFields::keep(&fields, &[FIELDS[0].into()])),
            _ => Some(fields),
        };
        let request = Asked {
            method: draw.one_of(&self.methods).clone(),
            path: draw.one_of(&self.paths).clone(),
            host: draw.one_of(&self.hosts).clone(),
            headers,
            upgrade: (draw.below(4) == 0)
                .then(|| Upgrade::parse(["websocket", "tcp", "other"][draw.below(3)]).unwrap()),
            tokens: draw.one_of(&self.tokens).clone(),
        };
        Question { id, address, port, request: Some(request), sni: None }
    }
}

/// What a pattern matches, and what it nearly does.
fn near_path(pattern: &PathPattern, out: &mut Vec<String>) {
    match pattern {
        PathPattern::Exact(path) | PathPattern::Prefix(path) => {
            let path = path.trim_end_matches('/');
            out.extend(
                ["", "/", "x", "/x", "/x/y", ";x", "/a;x/b", "%2561", "%40"]
                    .map(|end| format!("{path}{end}")),
            );
            // One byte less, one segment less.
            out.push(path[..path.len().saturating_sub(1)].to_owned());
            out.push(path.rsplit_once('/').map_or("/", |(parent, _)| parent).to_owned());
        }
        PathPattern::Template(template) => {
            for (one, many) in [("a", "a"), ("b", "b/a"), ("a", ""), ("%C3%A9", "a/b/c/")] {
                let filled: String = template
                    .segments
                    .iter()
                    .map(|segment| match segment {
                        Segment::Literal(text) => format!("/{text}"),
                        Segment::One => format!("/{one}"),
                        Segment::Many => format!("/{many}"),
                    })
                    .collect();
                out.extend(["", "/", "/b", "x"].map(|end| format!("{filled}{end}")));
                out.push(filled.rsplit_once('/').map_or("/", |(parent, _)| parent).to_owned());
            }
        }
        PathPattern::Methods { service, prefix } => {
            out.extend(["", "x", "/x", "/"].map(|end| format!("{service}{prefix}{end}")));
            out.push(format!("{service}{}", &prefix[..prefix.len().saturating_sub(1)]));
        }
        // Of Istio's rules, which have questions of their own.
        PathPattern::Beginning(text) => out.push(format!("{text}x")),
        PathPattern::Ending(text) => out.push(format!("/x{text}")),
    }
}

fn near_host(pattern: &HostPattern, out: &mut Vec<Option<CanonHost>>) {
    let (HostPattern::Exact(name) | HostPattern::Below(name)) = pattern;
    let near = ["", "a.", "a.b.", "x"].map(|front| CanonHost::parse(&format!("{front}{name}")));
    out.extend(near.into_iter().flatten().map(Some));
    // The parent, where there is one.
    out.extend(name.split_once('.').and_then(|(_, parent)| CanonHost::parse(parent).ok()).map(Some));
}
