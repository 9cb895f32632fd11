//! What a decision costs against the number of rules: the table of docs/benchmarks.md.
//!
//! `cargo bench -p postern-policy --bench decide`
//!
//! The rules are those that people write: who may call which path with which method; a tenth by namespace and prefix, a
//! tenth Denies by prefix, half of these with an exception. Questions go to every rule (*uniform*) or to 64 of them
//! (*hot*), and each is checked against the reference interpreter first.
//!
//! A sidecar has parsed a request a moment before it decides, so the paths of a uniform batch are parsed just before its
//! time starts; what a connection keeps was made long ago and stays cold. *All cold* asks with paths that were parsed long
//! ago too, which no sidecar does: it is there to show what that takes.

#![expect(clippy::unwrap_used, reason = "a measurement")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Connection, Generation, Operation, Source, load};
use postern_svid::SpiffeId;

mod rules;

use rules::{PORT, documents, scope};

const SIZES: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];
const HOT: usize = 64;
/// Decisions timed together: one alone is too short for the clock.
const BATCH: usize = 32;
const FOR: Duration = Duration::from_millis(400);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A caller and what it asks for; the rule number says which rule answers.
struct Question {
    id: SpiffeId,
    path: CanonPath,
    connection: Connection,
}

impl Question {
    fn to(generation: &Generation, n: usize) -> Self {
        let (id, path) = rules::question(n);
        let id = SpiffeId::parse(&format!("spiffe://td/{id}")).unwrap();
        let path = CanonPath::parse(path, &generation.defaults().path).unwrap();
        let connection = generation.connection(Source { identity: Some(&id), address: ADDRESS });
        Self { id, path, connection }
    }
}

/// Nanoseconds a question: the median and the 99th percentile of batches. `prepare` does before a batch's time starts what
/// a sidecar has just done when it asks.
fn measure<'q, P>(
    questions: &'q [Question],
    prepare: impl Fn(&'q Question) -> P,
    mut ask: impl FnMut(&P) -> bool,
) -> (f64, f64) {
    let mut times = Vec::new();
    let mut next = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let begun = Instant::now();
    while begun.elapsed() < FOR {
        batch.clear();
        batch.extend((0..BATCH).map(|_| {
            // A stride that meets every question, in an order that no prefetcher guesses.
            next = (next + 7_919) % questions.len();
            prepare(&questions[next])
        }));
        let start = Instant::now();
        for question in &batch {
            black_box(ask(question));
        }
        times.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn main() {
    let get = CanonMethod::get();
    println!(
        "| rules | load ms | hot ns | p99 | uniform ns | p99 | all cold ns | p99 | connect ns | rule by rule us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for rules in SIZES {
        let files = documents(rules);
        let start = Instant::now();
        let generation = load(&files, &scope(), 1).unwrap_or_else(|errors| panic!("{errors}"));
        let loaded = start.elapsed().as_secs_f64() * 1e3;
        let asked = rules.min(20_000);
        let uniform: Vec<Question> =
            (0..asked).map(|n| Question::to(&generation, n * rules / asked)).collect();
        let step = (asked / HOT).max(1);
        let hot: Vec<Question> =
            (0..HOT.min(asked)).map(|n| Question::to(&generation, n * step * rules / asked)).collect();
        for question in hot.iter().chain(uniform.iter().step_by(asked.div_ceil(50))) {
            let source = Source { identity: Some(&question.id), address: ADDRESS };
            let operation = Operation::http(&get, &question.path);
            assert_eq!(
                generation.decide(&question.connection, PORT, operation),
                generation.decide_by_reference(source, PORT, operation)
            );
        }
        let options = generation.defaults().path;
        let parse = |question: &'_ Question| CanonPath::parse(question.path.path(), &options).unwrap();
        let decide = |connection: &Connection, path: &CanonPath| {
            generation.decide(connection, PORT, Operation::http(&get, path)).is_allowed()
        };
        let as_it_is = |question: &&Question| decide(&question.connection, &question.path);
        let (hot_median, hot_p99) = measure(&hot, |question| question, as_it_is);
        let (median, p99) = measure(
            &uniform,
            |question| (&question.connection, parse(question)),
            |(connection, path)| decide(connection, path),
        );
        let (cold, cold_p99) = measure(&uniform, |question| question, as_it_is);
        let (connect, _) = measure(
            &uniform,
            |question| SpiffeId::parse(question.id.as_str()).unwrap(),
            |id| {
                let source = Source { identity: Some(id), address: ADDRESS };
                generation.connection(source).generation() == 1
            },
        );
        let (reference, _) = measure(
            &hot,
            |question| question,
            |question| {
                let source = Source { identity: Some(&question.id), address: ADDRESS };
                let operation = Operation::http(&get, &question.path);
                generation.decide_by_reference(source, PORT, operation).is_allowed()
            },
        );
        println!(
            "| {rules} | {loaded:.1} | {hot_median:.0} | {hot_p99:.0} | {median:.0} | {p99:.0} | {cold:.0} | {cold_p99:.0} | {connect:.0} | {:.1} |",
            reference / 1e3
        );
    }
}
