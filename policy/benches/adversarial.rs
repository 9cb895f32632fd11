//! The worst sets of rules that can be written, and what they cost: the table of docs/benchmarks.md.
//!
//! `cargo bench -p postern-policy --bench adversarial [-- RULES]`
//!
//! In every set all rules meet one question and none fires, so that all that the index proposes are looked at. *Candidates*
//! counts them, *ns each* is what one costs; *connect* is what resolving the caller costs, once per connection. Answers are
//! held against the reference interpreter before anything is timed.

#![expect(clippy::unwrap_used, reason = "a measurement")]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{HeaderFields, Operation, Source, Tokens, load};
use postern_svid::SpiffeId;

mod rules;

use rules::hostile::{Ask, Shape, shapes};
use rules::{PORT, scope};

const RULES: usize = 10_000;
const FOR: Duration = Duration::from_millis(200);
const FEWEST: usize = 9;

struct Row {
    name: &'static str,
    candidates: usize,
    decide: f64,
    connect: f64,
    is_warned_of: bool,
}

fn main() {
    // cargo adds `--bench`.
    let rules = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(RULES);
    let mut rows: Vec<Row> = shapes(rules).into_iter().map(measure).collect();
    rows.sort_by(|a, b| b.decide.total_cmp(&a.decide));
    println!("{rules} rules of each shape:\n");
    println!("| shape | decision us | candidates | ns each | connect us | warned of |");
    println!("|---|---|---|---|---|---|");
    for Row { name, candidates, decide, connect, is_warned_of } in &rows {
        println!(
            "| {name} | {:.1} | {candidates} | {:.0} | {:.1} | {} |",
            decide / 1e3,
            decide / *candidates as f64,
            connect / 1e3,
            if *is_warned_of { "yes" } else { "no" }
        );
    }
    if let Some(Row { name, decide, .. }) = rows.first() {
        println!("\nWorst: {name}, {:.2} ms a decision.", decide / 1e6);
    }
}

fn measure(shape: Shape) -> Row {
    let Shape { name, files, ask: Ask { identity, address, path, host, headers } } = shape;
    let generation = load(&files, &scope(), 1).unwrap_or_else(|errors| panic!("{name}: {errors}"));
    let identity = SpiffeId::parse(identity).unwrap();
    let address: IpAddr = address.parse().unwrap();
    let source = Source { identity: Some(&identity), address };
    let path = CanonPath::parse(path, &generation.defaults().path).unwrap();
    let host = CanonHost::parse(host).unwrap();
    let mut fields = HeaderFields::new();
    headers.iter().for_each(|(name, value)| fields.push(name, value).unwrap());
    let get = CanonMethod::get();
    let operation = Operation::Http {
        method: &get,
        path: &path,
        host: Some(&host),
        headers: Some(&fields),
        upgrade: None,
        tokens: Tokens::Absent,
    };
    let connection = generation.connection(source);
    let verdict = generation.decide(&connection, PORT, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, PORT, operation), "{name}");
    assert_eq!(verdict.rule, None, "{name}");
    Row {
        name,
        candidates: generation.most_candidates(),
        decide: time(|| generation.decide(&connection, PORT, operation).is_allowed()),
        connect: time(|| generation.connection(source).generation() == 1),
        is_warned_of: generation
            .warnings()
            .iter()
            .any(|warning| warning.message.contains("rules one by one")),
    }
}

/// The median, in nanoseconds.
fn time(mut ask: impl FnMut() -> bool) -> f64 {
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < FEWEST || begun.elapsed() < FOR {
        let start = Instant::now();
        black_box(ask());
        times.push(start.elapsed().as_nanos() as f64);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
