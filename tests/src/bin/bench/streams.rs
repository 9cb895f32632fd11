//! Server-sent events: how late each one is, directly and through a pair of sidecars in turns, and how soon the service learns
//! that a client has left.
//!
//! Way of an event: a service in Node (cpu 0) -> inbound proxy (cpu 1) -> mutual TLS -> outbound proxy (cpu 1) -> client (cpu 0).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use postern_tests::events::{self, Pace, Seen, Streams};
use postern_tests::{Plan, TRUST_DOMAIN, wait};
use serde_json::{Value, json};

use crate::contenders::{CALLEE, CALLER, HOST, postern};
use crate::options::Options;
use crate::stats::Spread;
use crate::table::now;
use crate::{Failure, build, install, machine, process};

const PATH: &str = "/stream";
/// An event on each stream: what a model server sends, 20 tokens a second.
const EVERY: Duration = Duration::from_millis(50);
const AIM_ADDED_MS: f64 = 1.0;
const AIM_LEFT_MS: f64 = 100.0;

/// One way in one round, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Cell {
    events: usize,
    p50: f64,
    p99: f64,
    /// Until the service knew of the last client that had left.
    left: f64,
}

/// All rounds with events of one pace.
#[derive(Debug)]
struct Ways {
    name: &'static str,
    pace: Pace,
    direct: Vec<Cell>,
    through: Vec<Cell>,
}

impl Ways {
    const fn new(name: &'static str, pace: Pace) -> Self {
        Self { name, pace, direct: Vec::new(), through: Vec::new() }
    }

    fn row(&self, what: &str, of: fn(&Cell) -> f64, aim: &str) {
        let spread = |cells: &[Cell]| Spread::of(cells.iter().map(of)).show(2);
        let added = self.direct.iter().zip(&self.through).map(|(direct, through)| of(through) - of(direct));
        let (direct, through, added) =
            (spread(&self.direct), spread(&self.through), Spread::of(added).show(2));
        println!("| {}: {what} | {direct} | {through} | {added} | {aim} |", self.name);
    }

    fn to_json(&self) -> Value {
        let cells = |cells: &[Cell]| -> Vec<Value> {
            let one = |cell: &Cell| json!({"events": cell.events, "p50_ms": cell.p50, "p99_ms": cell.p99, "left_ms": cell.left});
            cells.iter().map(one).collect()
        };
        json!({"events": self.name, "direct": cells(&self.direct), "through": cells(&self.through)})
    }
}

/// Runs the bench and prints its table.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let proxy = build::proxy(options)?;
    build::control_plane(options)?;
    let node = install::debian("node", "nodejs")?;
    install::debian("taskset", "util-linux")?;
    let mut plan = Plan::new();
    plan.sidecar(CALLER);
    plan.sidecar(CALLEE).serves(80, 8080, "http");
    plan.document("policy.yaml", &policy());
    let service = SocketAddr::new(plan.address(CALLEE), 8080);
    let mesh = plan.prepare();
    let log = mesh.directory().join("service.log");
    let running = process::start(process::LOAD, "service", &node, &log, |command| {
        command.arg(events::server()).arg(service.ip().to_string()).arg("8080");
    });
    wait::until("the service listens", wait::PATIENCE, || running.log().contains("listening"));
    mesh.control.start();
    let _pair =
        [postern::sidecar(mesh.sidecar(CALLER), &proxy)?, postern::sidecar(mesh.sidecar(CALLEE), &proxy)?];
    pin_clients()?;

    let front = mesh.sidecar(CALLER).outbound();
    let mut found = [Ways::new("evenly spread", Pace::Even), Ways::new("all at once", Pace::Together)];
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for ways in &mut found {
            let (name, pace) = (format!("{round}-{:?}", ways.pace), ways.pace);
            ways.direct.push(measure(&format!("direct-{name}"), service, service, pace, options)?);
            ways.through.push(measure(&format!("through-{name}"), front, service, pace, options)?);
        }
    }
    report(&found, options)
}

/// One rule, as in the other benches.
fn policy() -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: orders, namespace: shop}}\n\
         spec:\n  target: {{selector: {{app: {CALLEE}}}}}\n  action: Allow\n  rules:\n  - name: reads\n    \
         from: [{{spiffe: [\"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{CALLER}\"]}}]\n    \
         to: [{{methods: [GET], paths: [\"{PATH}\"]}}]\n"
    )
}

/// This thread, which reads all events, beside the service: the proxies have their processor to themselves.
fn pin_clients() -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(process::LOAD)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| format!("the clients cannot be held to processor {}: {error}", process::LOAD))
}

fn measure(
    name: &str,
    to: SocketAddr,
    service: SocketAddr,
    pace: Pace,
    options: &Options,
) -> Result<Cell, Failure> {
    let streams = Streams::open(to, HOST, PATH, name, (options.connections, EVERY), pace);
    streams.watch(options.warm_up + options.length);
    let seen = streams.leave();
    if seen.garbled + seen.ended > 0 {
        return Err(format!("{name}: {} events garbled, {} streams ended", seen.garbled, seen.ended));
    }
    let expected = options.connections as f64 * options.length.as_secs_f64() / EVERY.as_secs_f64();
    if (seen.delays.len() as f64) < expected {
        return Err(format!("{name}: {} events came, {expected} were sent at least", seen.delays.len()));
    }
    let left = told(name, &seen, service)?;
    let mut delays: Vec<f64> = seen.delays.iter().map(|delay| delay.as_secs_f64() * 1e3).collect();
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    Ok(Cell { events: delays.len(), p50: at(0.5), p99: at(0.99), left })
}

/// When the service knows of all that left.
fn told(name: &str, seen: &Seen, service: SocketAddr) -> Result<f64, Failure> {
    let start = Instant::now();
    loop {
        let told = seen.told((service.ip(), service.port()), "/left");
        if told.len() == seen.names.len() {
            return Ok(told.iter().max().map_or(f64::NAN, |last| last.as_secs_f64() * 1e3));
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!(
                "{name}: the service knows that {} of {} left",
                told.len(),
                seen.names.len()
            ));
        }
        wait::pause(Duration::from_millis(50));
    }
}

fn report(found: &[Ways], options: &Options) -> Result<(), Failure> {
    let header = format!("{}, {}", now(), machine::describe());
    println!(
        "{header}, {} rounds of {} s, {} streams, an event every {} ms on each\n",
        options.rounds,
        options.length.as_secs(),
        options.connections,
        EVERY.as_millis()
    );
    println!("| what | directly | through the pair | added | aim |\n|---|---|---|---|---|");
    for ways in found {
        ways.row("an event, p50 ms", |cell| cell.p50, "-");
        ways.row("an event, p99 ms", |cell| cell.p99, &format!("{AIM_ADDED_MS} added"));
        ways.row("all have left, the service knows, ms", |cell| cell.left, &format!("{AIM_LEFT_MS}"));
    }
    if let Some(path) = &options.json {
        let ways: Vec<Value> = found.iter().map(Ways::to_json).collect();
        let all = json!({"bench": "streams", "run": header, "ways": ways});
        std::fs::write(path, format!("{all:#}\n")).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
