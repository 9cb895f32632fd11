//! Pairs of proxies under load, in turns.
//!
//! Way of a request: wrk (cpu 0) -> outbound proxy (cpu 1) -> mutual TLS -> inbound proxy with policy (cpu 1) -> nginx
//! (cpu 0). Both proxies share a processor and saturate it, so requests per second are the reciprocal of what a request
//! costs the pair, and latencies are queueing at saturation. Processor time per request is the steadiest figure.

use serde_json::{Value, json};

use crate::contenders::{self, Contender, HOST, PATH, Stage};
use crate::load::{self, Asked, Load};
use crate::machine::{self, CpuTime, Memory};
use crate::options::Options;
use crate::{Failure, table};

/// One contender in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) load: Load,
    /// Of each proxy, outbound first; zero without proxies.
    pub(crate) cpu: [CpuTime; 2],
    /// Right after the load.
    pub(crate) memory: [Memory; 2],
    /// Processors that something else kept busy meanwhile.
    pub(crate) strangers: f64,
}

/// All rounds of a contender.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) idle: [Memory; 2],
    pub(crate) cells: Vec<Cell>,
}

impl Cell {
    /// Processor time of a proxy, in microseconds per request.
    pub(crate) fn cost(&self, proxy: usize) -> f64 {
        self.cpu[proxy].total() * 1e6 / self.load.requests
    }

    /// Of the pair.
    pub(crate) fn pair_cost(&self) -> f64 {
        self.cost(0) + self.cost(1)
    }

    fn to_json(self) -> Value {
        let per_request = |seconds: f64| seconds * 1e6 / self.load.requests;
        let proxies: Vec<Value> = (0..2)
            .map(|at| {
                json!({
                    "user_us": per_request(self.cpu[at].user),
                    "system_us": per_request(self.cpu[at].system),
                    "memory": self.memory[at].to_json(),
                })
            })
            .collect();
        json!({
            "requests": self.load.requests,
            "requests_per_second": self.load.per_second,
            "p50_us": self.load.p50.as_secs_f64() * 1e6,
            "p99_us": self.load.p99.as_secs_f64() * 1e6,
            "outbound": proxies[0],
            "inbound": proxies[1],
            "strangers": self.strangers,
        })
    }
}

/// Runs the bench and prints its table.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if machine::processors() < 2 {
        return Err("two processors are needed: one for the proxies, one for load and backend".to_owned());
    }
    let stage = Stage::set(&[("policy.yaml".to_owned(), contenders::one_rule())])?;
    let contenders = contenders::start(&stage, options)?;
    let load_before = machine::load_average();
    let mut rows = rows(&contenders)?;
    for round in 1..=options.rounds {
        for (contender, row) in contenders.iter().zip(&mut rows) {
            eprintln!("round {round} of {}: {}", options.rounds, contender.name);
            row.cells.push(measure(&stage, contender, Asked::Path(PATH), options)?);
        }
    }
    let report = table::Report::new(rows, load_before, options);
    print!("{}", report.text());
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report.to_json());
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn rows(contenders: &[Contender]) -> Result<Vec<Row>, Failure> {
    let row = |contender: &Contender| {
        Ok(Row {
            name: contender.name,
            what: contender.what.clone(),
            idle: memory(contender)?,
            cells: Vec::new(),
        })
    };
    contenders.iter().map(row).collect()
}

/// A contender under load, once.
pub(crate) fn measure(
    stage: &Stage,
    contender: &Contender,
    asked: Asked<'_>,
    options: &Options,
) -> Result<Cell, Failure> {
    let load = |length| {
        let ran = load::run(&stage.wrk, contender.front, HOST, asked, options.connections, length);
        ran.map_err(|failure| format!("{}: {failure}", contender.name))
    };
    load(options.warm_up)?;
    let before = cpu(contender)?;
    let (busy, children) = (machine::busy()?, machine::cpu_time_of_ended_children()?);
    let backend = machine::cpu_time(stage.nginx())?.total();
    let start = std::time::Instant::now();
    let load = load(options.length)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = cpu(contender)?;
    let cpu = [after[0] - before[0], after[1] - before[1]];
    let ours = cpu[0].total() + cpu[1].total() + machine::cpu_time_of_ended_children()? - children
        + machine::cpu_time(stage.nginx())?.total()
        - backend;
    Ok(Cell {
        load,
        cpu,
        memory: memory(contender)?,
        strangers: ((machine::busy()? - busy - ours) / seconds).max(0.0),
    })
}

fn cpu(contender: &Contender) -> Result<[CpuTime; 2], Failure> {
    let Some([outbound, inbound]) = &contender.pair else { return Ok(<[CpuTime; 2]>::default()) };
    Ok([machine::cpu_time(outbound.id())?, machine::cpu_time(inbound.id())?])
}

fn memory(contender: &Contender) -> Result<[Memory; 2], Failure> {
    let Some([outbound, inbound]) = &contender.pair else { return Ok(<[Memory; 2]>::default()) };
    Ok([Memory::of(outbound.id())?, Memory::of(inbound.id())?])
}

impl Row {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "what": self.what,
            "idle": {"outbound": self.idle[0].to_json(), "inbound": self.idle[1].to_json()},
            "rounds": self.cells.iter().map(|cell| cell.to_json()).collect::<Vec<_>>(),
        })
    }
}
