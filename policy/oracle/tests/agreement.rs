//! Random rules and questions: Cedar and we are of one opinion about each, and name the same rule.

use std::io::Write as _;

use postern_oracle::{
    Ask, Cedar, Http, Model, NotWhat, NotWho, Opinion, Side, Tier, What, Who, documents, scope,
};
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{HeaderFields, HeaderLines, Operation, Source, load};
use postern_svid::SpiffeId;

/// Cedar takes milliseconds to read a policy and microseconds to answer: many questions for each set.
const SETS: u64 = 60;
const SETS_LONG: u64 = 3_000;
const QUESTIONS: usize = 400;

// Few words, so that rules and questions meet; each has a neighbour one step away.
const DOMAINS: [&str; 2] = ["td", "other"];
const NAMES: [&str; 3] = ["shop", "ops", "web"];
const METHODS: [&str; 4] = ["GET", "POST", "TRACE", "CONNECT"];
const PORTS: [u16; 3] = [80, 81, 82];
const NETS: [&str; 5] = ["10.0.0.0/8", "10.0.0.0/16", "10.0.0.1/32", "fd00::/8", "0.0.0.0/0"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.255.255", "10.1.0.0", "192.0.2.1", "fd00::1"];
const EXACT: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/b", "/a/b/c", "/{*}", "/{**}"];
const TEMPLATES: [&str; 6] = ["/a/{*}", "/a/{**}", "/{*}/b", "/{**}/b", "/a/{**}/b", "/{*}/b/{**}/{*}"];
const PREFIXES: [&str; 4] = ["/a", "/a/b", "/b", "/"];
const PATHS: [&str; 14] = [
    "/", "/a", "/a/", "/ab", "/a/b", "/a/b/", "/a/b/c", "/b", "/b/", "/c/b", "/a/c/b", "/a/b/c/b",
    "/b/b/a/c", "/c",
];
const HOSTS: [&str; 5] = ["a.x", "b.a.x", "*.x", "*.a.x", "10.0.0.1"];
const ASKED_HOSTS: [&str; 7] = ["a.x", "b.a.x", "c.b.a.x", "x", "aa.x", "10.0.0.1", "other.test"];

/// Splitmix64: a run is told by its seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("it is below a usize")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// One or two of them, or none in most cases.
    fn some(&mut self, percent: usize, of: &[&str]) -> Vec<String> {
        let count = if self.chance(percent) { 1 + self.below(2) } else { 0 };
        (0..count).map(|_| self.one(of).to_owned()).collect()
    }

    fn ports(&mut self, percent: usize) -> Vec<u16> {
        if self.chance(percent) { vec![self.one(&PORTS)] } else { Vec::new() }
    }

    fn account(&mut self) -> String {
        format!("{}/{}", self.one(&NAMES), self.one(&NAMES))
    }

    fn id(&mut self) -> String {
        let td = self.one(&DOMAINS);
        match self.below(8) {
            0 => format!("spiffe://{td}/plain"),
            1 => format!("spiffe://{td}/ns/shop/sa/web/deeper"),
            _ => format!("spiffe://{td}/ns/{}/sa/{}", self.one(&NAMES), self.one(&NAMES)),
        }
    }

    fn who(&mut self) -> Who {
        if self.chance(20) {
            return Who { unauthenticated: true, cidrs: self.some(70, &NETS), ..Who::default() };
        }
        let mut who =
            Who { namespaces: self.some(40, &NAMES), cidrs: self.some(25, &NETS), ..Who::default() };
        if self.chance(30) {
            who.accounts = vec![self.account()];
        }
        if self.chance(20) {
            who.trust_domain = Some(self.one(&DOMAINS).to_owned());
        } else if self.chance(25) {
            who.spiffe = vec![self.id(), self.id()];
        }
        if self.chance(30) {
            let mut not = NotWho {
                namespaces: self.some(50, &NAMES),
                cidrs: self.some(20, &NETS),
                ..NotWho::default()
            };
            if self.chance(30) {
                not.accounts = vec![self.account()];
            }
            if self.chance(20) {
                not.spiffe = vec![self.id()];
            }
            let is_empty = not.namespaces.is_empty() && not.cidrs.is_empty();
            who.not = (!is_empty || !not.accounts.is_empty() || !not.spiffe.is_empty()).then_some(not);
        }
        let names = who.namespaces.is_empty() && who.accounts.is_empty() && who.spiffe.is_empty();
        if names && who.trust_domain.is_none() && who.cidrs.is_empty() && who.not.is_none() {
            who.namespaces = vec![self.one(&NAMES).to_owned()];
        }
        who
    }

    fn what(&mut self) -> What {
        let mut what = What {
            methods: if self.chance(10) { vec!["*".into()] } else { self.some(40, &METHODS) },
            hosts: self.some(25, &HOSTS),
            ports: self.ports(30),
            ..What::default()
        };
        match self.below(5) {
            0 => what.paths = self.some(100, &EXACT),
            1 => what.paths = self.some(100, &TEMPLATES),
            2 => what.prefixes = self.some(100, &PREFIXES),
            _ => {}
        }
        if self.chance(25) {
            let mut not = NotWhat {
                methods: self.some(40, &METHODS),
                hosts: self.some(30, &HOSTS),
                ..NotWhat::default()
            };
            match self.below(3) {
                0 => not.prefixes = self.some(100, &PREFIXES[..3]),
                1 => not.paths = self.some(100, &TEMPLATES),
                _ => not.ports = vec![self.one(&PORTS)],
            }
            what.not = Some(not);
        }
        let fields = [&what.methods, &what.paths, &what.prefixes, &what.hosts];
        if fields.iter().all(|list| list.is_empty()) && what.ports.is_empty() && what.not.is_none() {
            what.ports = vec![self.one(&PORTS)];
        }
        what
    }

    fn rule(&mut self) -> Model {
        Model {
            side: if self.chance(65) { Side::Allow } else { Side::Deny },
            tier: self.one(&[Tier::Platform, Tier::App, Tier::App, Tier::App, Tier::Baseline]),
            ports: self.ports(15),
            from: if self.chance(80) {
                (0..1 + self.below(2)).map(|_| self.who()).collect()
            } else {
                Vec::new()
            },
            to: if self.chance(75) {
                (0..1 + self.below(2)).map(|_| self.what()).collect()
            } else {
                Vec::new()
            },
        }
    }

    fn ask(&mut self) -> Ask {
        Ask {
            identity: self.chance(85).then(|| self.id()),
            address: self.one(&ADDRESSES).parse().expect("an address"),
            port: self.one(&[80, 81, 82, 83]),
            http: self.chance(88).then(|| Http {
                method: self.one(&["GET", "POST", "TRACE", "CONNECT", "PURGE"]).to_owned(),
                path: self.one(&PATHS).to_owned(),
                host: self.one(&ASKED_HOSTS).to_owned(),
            }),
        }
    }
}

#[test]
fn of_one_opinion_about_random_rules() {
    let sets = if std::env::var_os("POSTERN_TEST_LONG").is_some() { SETS_LONG } else { SETS };
    let seed = std::env::var("POSTERN_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    let fields = HeaderFields::new();
    let mut counts = [0_u64; 3];
    for set in 0..sets {
        let mut draw = Draw(seed.wrapping_mul(1_000_003).wrapping_add(set));
        let rules: Vec<Model> = (0..1 + draw.below(9)).map(|_| draw.rule()).collect();
        let generation =
            load(&documents(&rules), &scope(), 1).unwrap_or_else(|errors| panic!("{rules:#?}\n{errors}"));
        let cedar = Cedar::new(&rules).unwrap_or_else(|error| panic!("{rules:#?}\n{error}"));
        for _ in 0..QUESTIONS {
            let ask = draw.ask();
            let prepared = Cedar::prepare(&ask).expect("a question that Cedar takes");
            let opinion =
                cedar.opinion(&prepared).unwrap_or_else(|error| panic!("{error}\n{ask:?}\n{rules:#?}"));
            let id = ask.identity.as_ref().map(|id| SpiffeId::parse(id).expect("an id"));
            let source = Source { identity: id.as_ref(), address: ask.address };
            let parts = ask.http.as_ref().map(|http| {
                let method = CanonMethod::parse(&http.method).expect("a method");
                let path = CanonPath::parse(http.path.as_str(), &generation.defaults().path).expect("a path");
                (method, path, CanonHost::parse(&http.host).expect("a host"))
            });
            let mut operation = Operation::Tcp;
            if let Some((method, path, asked)) = &parts {
                operation = Operation::http(method, path);
                if let Operation::Http { host, headers, .. } = &mut operation {
                    (*host, *headers) = (Some(asked), Some(&fields as &dyn HeaderLines));
                }
            }
            let verdict = generation.decide(&generation.connection(source), ask.port, operation);
            // Cedar names all rules of the tier that decided; ours is the first of them.
            let named = verdict
                .rule
                .map(|id| generation.rule(id).rule[1..].parse::<usize>().expect("r and a number"));
            let same =
                verdict.is_allowed() == opinion.is_allowed() && named == opinion.rules().first().copied();
            assert!(
                same,
                "seed {seed}, set {set}: Cedar says {opinion:?}, we say {verdict:?} by rule {named:?}\n{ask:?}\n{rules:#?}"
            );
            counts[match opinion {
                Opinion::Allow(_) => 0,
                Opinion::Deny(rules) if rules.is_empty() => 1,
                Opinion::Deny(_) => 2,
            }] += 1;
        }
    }
    let [allow, none, deny] = counts;
    let all = allow + none + deny;
    let _ = writeln!(
        std::io::stderr(),
        "Cedar and we: {all} decisions on {sets} sets of rules, 0 mismatches ({allow} allowed, {deny} denied by a rule, \
         {none} by default)"
    );
    assert!(counts.iter().all(|count| count * 20 > all), "{counts:?}");
}
