//! The same rules, told to both, answer alike.

use postern_oracle::{
    Ask, Cedar, Http, Model, NotWhat, NotWho, Opinion, Side, Tier, What, Who, documents, scope,
};
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{Effect, Generation, HeaderFields, Operation, Source, load};
use postern_svid::SpiffeId;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn rules() -> Vec<Model> {
    let rule = |side, tier| Model { side, tier, ports: vec![], from: vec![], to: vec![] };
    let who = |namespaces: &[&str]| Who { namespaces: words(namespaces), ..Who::default() };
    let what = |paths: &[&str]| What { paths: words(paths), ..What::default() };
    let admin = What { prefixes: words(&["/admin"]), ..What::default() };
    let ops = NotWho { namespaces: words(&["ops"]), ..NotWho::default() };
    let not_ops = Who { not: Some(ops), ..Who::default() };
    let reads = What {
        methods: words(&["GET", "HEAD"]),
        ..what(&["/v1/{*}", "/v1/{*}/items/{**}", "/v1/a/{**}/end"])
    };
    let not_hidden =
        NotWhat { prefixes: words(&["/files/hidden"]), methods: words(&["PUT"]), ..NotWhat::default() };
    let files = What { prefixes: words(&["/files"]), not: Some(not_hidden), ..What::default() };
    let hosts = What { hosts: words(&["a.test", "*.b.test"]), ports: vec![8081], ..What::default() };
    let open = Who { unauthenticated: true, cidrs: words(&["10.0.0.0/8"]), ..Who::default() };
    let accounts = Who { accounts: words(&["shop/web", "shop/cron"]), ..Who::default() };
    let foreign = Who { trust_domain: Some("other".into()), ..who(&["shop"]) };
    let id = Who {
        spiffe: words(&["spiffe://td/plain"]),
        cidrs: words(&["10.0.0.0/8", "fd00::/8"]),
        ..Who::default()
    };
    vec![
        Model { from: vec![not_ops], to: vec![admin], ..rule(Side::Deny, Tier::Platform) },
        Model { from: vec![accounts], to: vec![reads], ..rule(Side::Allow, Tier::App) },
        Model { from: vec![foreign, id], to: vec![files.clone()], ..rule(Side::Allow, Tier::App) },
        Model { from: vec![who(&["ops"])], ..rule(Side::Allow, Tier::App) },
        Model { to: vec![hosts], ..rule(Side::Deny, Tier::App) },
        Model { from: vec![open], to: vec![what(&["/open"])], ..rule(Side::Allow, Tier::Baseline) },
        Model { to: vec![files], ports: vec![8082], ..rule(Side::Deny, Tier::Baseline) },
        Model { ports: vec![9000], ..rule(Side::Allow, Tier::Baseline) },
    ]
}

fn ours(generation: &Generation, ask: &Ask) -> (bool, Option<usize>) {
    let id = ask.identity.as_ref().map(|id| SpiffeId::parse(id).expect("an id"));
    let connection = generation.connection(Source { identity: id.as_ref(), address: ask.address });
    let fields = HeaderFields::new();
    let verdict = match &ask.http {
        None => generation.decide(&connection, ask.port, Operation::Tcp),
        Some(Http { method, path, host }) => {
            let method = CanonMethod::parse(method).expect("a method");
            let path = CanonPath::parse(path.as_str(), &generation.defaults().path).expect("a path");
            let host = CanonHost::parse(host).expect("a host");
            let mut operation = Operation::http(&method, &path);
            if let Operation::Http { host: sent, headers, .. } = &mut operation {
                (*sent, *headers) = (Some(&host), Some(&fields as &dyn postern_policy::HeaderLines));
            }
            generation.decide(&connection, ask.port, operation)
        }
    };
    let number = verdict.rule.map(|id| generation.rule(id).rule[1..].parse().expect("r and a number"));
    (verdict.effect == Effect::Allow, number)
}

#[test]
fn both_answer_alike() {
    let rules = rules();
    let generation = load(&documents(&rules), &scope(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    let cedar = Cedar::new(&rules).expect("Cedar takes them");
    let ids = [
        None,
        Some("spiffe://td/ns/shop/sa/web"),
        Some("spiffe://td/ns/ops/sa/web"),
        Some("spiffe://td/ns/other/sa/web"),
        Some("spiffe://other/ns/shop/sa/web"),
        Some("spiffe://other/ns/ops/sa/web"),
        Some("spiffe://td/plain"),
    ];
    let paths = [
        "/",
        "/admin",
        "/administrator",
        "/admin/x",
        "/v1/a",
        "/v1/",
        "/v1/a/items",
        "/v1/a/items/",
        "/v1/a/items/b/c",
        "/v1/a/end",
        "/v1/a/b/end",
        "/v1/a/b/c/end",
        "/v1/a/b/c",
        "/files",
        "/files/a",
        "/files/hidden",
        "/files/hiddenx",
        "/files/hidden/b",
        "/open",
        "/open/",
    ];
    let (mut count, mut allowed) = (0, 0);
    for identity in ids {
        for address in ["10.1.2.3", "192.0.2.1", "fd00::1", "::ffff:10.1.2.3"] {
            for port in [8080, 8081, 8082, 9000] {
                let mut asks = vec![None];
                for (n, path) in paths.iter().enumerate() {
                    for method in ["GET", "PUT", "TRACE"] {
                        // Hosts matter at one port only: everywhere else one of them will do.
                        let hosts = ["a.test", "b.test", "x.b.test", "x.y.b.test"];
                        for host in hosts.into_iter().skip(n % 4).take(if port == 8081 { 4 } else { 1 }) {
                            let http =
                                Http { method: method.into(), path: (*path).into(), host: host.into() };
                            asks.push(Some(http));
                        }
                    }
                }
                for http in asks {
                    let ask = Ask {
                        identity: identity.map(str::to_owned),
                        address: address.parse().expect("an address"),
                        port,
                        http,
                    };
                    let question = Cedar::prepare(&ask).expect("Cedar takes it");
                    let opinion: Opinion = cedar.opinion(&question).expect("no policy fails");
                    let (is_allowed, rule) = ours(&generation, &ask);
                    assert_eq!(
                        is_allowed,
                        opinion.is_allowed(),
                        "{ask:?}: we say {rule:?}, Cedar {opinion:?}"
                    );
                    assert_eq!(rule, opinion.rules().first().copied(), "{ask:?}: {opinion:?}");
                    assert_eq!(cedar.allows(&question), is_allowed);
                    count += 1;
                    allowed += u32::from(is_allowed);
                }
            }
        }
    }
    println!("{count} questions, {allowed} of them allowed, answered alike");
    assert!(allowed > count / 20, "questions that are all denied prove little");
}
