//! What a decision costs Cedar, our engine and the reference interpreter, in turns in one process, on the rules of the
//! benches: `cargo bench -p postern-policy --bench neighbours` runs this and prints the table.
//!
//! A line for each round: the number of rules, then nanoseconds a decision of engine, reference and Cedar. All three must
//! first be of one opinion about every question.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use postern_oracle::{Ask, Cedar, Http, Model, NotWho, Prepared, Side, Tier, What, Who};
use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Connection, Generation, Operation, Source, load};
use postern_svid::SpiffeId;

#[path = "../../../benches/rules/mod.rs"]
mod rules;

use rules::{PORT, documents, question, scope};

const QUESTIONS: usize = 64;
const ROUNDS: usize = 7;
/// Each of the three has this long in a round, and at least a few decisions.
const SLICE: Duration = Duration::from_millis(100);
const FEWEST: usize = 5;
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn main() -> ExitCode {
    let mut sizes = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(size) if (1..=100_000).contains(&size) => sizes.push(size),
            _ => {
                eprintln!("usage: neighbour RULES...   (each from 1 to 100000)");
                return ExitCode::from(2);
            }
        }
    }
    for size in sizes {
        if let Err(failure) = compare(size) {
            eprintln!("{size} rules: {failure}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A question, as each of them takes it.
struct Asked {
    id: SpiffeId,
    path: CanonPath,
    connection: Connection,
    cedar: Prepared,
}

fn compare(size: usize) -> Result<(), String> {
    let generation = load(&documents(size), &scope(), 1).map_err(|errors| errors.to_string())?;
    let models: Vec<Model> = (0..size).map(model).collect();
    let cedar = Cedar::new(&models)?;
    let count = size.min(QUESTIONS);
    let asked: Vec<Asked> =
        (0..count).map(|n| Asked::about(&generation, n * size / count)).collect::<Result<_, _>>()?;
    let get = CanonMethod::get();
    let engine = |asked: &Asked| {
        generation.decide(&asked.connection, PORT, Operation::http(&get, &asked.path)).is_allowed()
    };
    let reference = |asked: &Asked| {
        let source = Source { identity: Some(&asked.id), address: ADDRESS };
        generation.decide_by_reference(source, PORT, Operation::http(&get, &asked.path)).is_allowed()
    };
    let theirs = |asked: &Asked| cedar.allows(&asked.cedar);
    for one in &asked {
        let answers = [engine(one), reference(one), cedar.opinion(&one.cedar)?.is_allowed(), theirs(one)];
        if answers.iter().any(|answer| *answer != answers[0]) {
            return Err(format!("{} at {}: answers differ: {answers:?}", one.id, one.path.path()));
        }
    }
    for _ in 0..ROUNDS {
        let [engine, reference, cedar] =
            [time(&asked, &engine), time(&asked, &reference), time(&asked, &theirs)];
        println!("{size} {engine:.1} {reference:.1} {cedar:.1}");
    }
    Ok(())
}

fn time(asked: &[Asked], decide: &dyn Fn(&Asked) -> bool) -> f64 {
    let (start, mut count) = (Instant::now(), 0);
    while count < FEWEST || start.elapsed() < SLICE {
        // One look at the clock for each pass would count where a decision takes nanoseconds.
        let pass = if count < FEWEST { FEWEST } else { (count / 8).max(1) };
        for n in count..count + pass {
            black_box(decide(&asked[n % asked.len()]));
        }
        count += pass;
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

impl Asked {
    fn about(generation: &Generation, n: usize) -> Result<Self, String> {
        let (id, path) = question(n);
        let id = format!("spiffe://{}/{id}", postern_oracle::TRUST_DOMAIN);
        let http = Http { method: "GET".to_owned(), path: path.clone(), host: "orders.shop".to_owned() };
        let ask = Ask { identity: Some(id.clone()), address: ADDRESS, port: PORT, http: Some(http) };
        let id = SpiffeId::parse(&id).map_err(|error| error.to_string())?;
        let path = CanonPath::parse(path, &generation.defaults().path).map_err(|error| error.to_string())?;
        let connection = generation.connection(Source { identity: Some(&id), address: ADDRESS });
        Ok(Self { id, path, connection, cedar: Cedar::prepare(&ask)? })
    }
}

/// Rule `n` of the benches, as Cedar is told it. Written by hand, not made from the document: a mistake would show as a
/// difference.
fn model(n: usize) -> Model {
    let rule = |side, who: Option<Who>, what: What| Model {
        side,
        tier: Tier::App,
        ports: Vec::new(),
        from: who.into_iter().collect(),
        to: vec![what],
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let below = |prefix: String| What { prefixes: vec![prefix], ..What::default() };
    match n % 20 {
        16 | 17 => {
            let who = Who { namespaces: vec![format!("ns{n}")], ..Who::default() };
            rule(Side::Allow, Some(who), What { methods: words(&["GET"]), ..below(format!("/n{n}")) })
        }
        18 => rule(Side::Deny, None, below(format!("/admin{n}"))),
        19 => {
            let not = NotWho { namespaces: words(&["ops"]), ..NotWho::default() };
            let who = Who { not: Some(not), ..Who::default() };
            rule(Side::Deny, Some(who), below(format!("/internal{n}")))
        }
        _ => {
            let accounts = vec![format!("shop/a{n}"), format!("shop/b{}", n % 97)];
            let what = What {
                methods: words(&["GET", "HEAD"]),
                paths: vec![format!("/v1/p{n}"), format!("/v1/q{n}/{{*}}")],
                ports: vec![PORT],
                ..What::default()
            };
            rule(Side::Allow, Some(Who { accounts, ..Who::default() }), what)
        }
    }
}
