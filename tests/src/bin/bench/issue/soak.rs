//! Whether the control plane's memory stands still while a large mesh renews: many lineages in the store, renewals at a steady pace,
//! each by a connection of its own with the certificate that it replaces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_tests::Mesh;
use postern_tests::identity::Client;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::place::{self, Holder};
use crate::machine::{self, Memory};
use crate::options::Options;
use crate::table::{megabytes, now};
use crate::{Failure, build};

/// The aim, from the project's plan.
const AIM_PER_MINUTE: f64 = 1.0;
/// At first caches fill: this part of the time is not looked at.
const WARM_UP: f64 = 0.3;
/// A shorter run shows what it sees, and fails nobody.
const JUDGED: Duration = Duration::from_secs(300);
/// Renewals under way.
const AT_A_TIME: usize = 128;

/// Runs it and prints what it saw; fails if a renewal failed, or if the memory grew over a time that is long enough to tell.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    build::control_plane(options)?;
    let wanted = options.rate * (options.length.as_secs() as usize + 2);
    if wanted > options.lineages {
        return Err(format!("{wanted} renewals need as many lineages: --lineages {wanted}"));
    }
    let (mesh, holders) = place::prepare(options.lineages, wanted)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| format!("threads: {error}"))?;
    let mesh = Arc::new(mesh);
    let seen = runtime.block_on(renew(&mesh, holders, options))?;

    let slope = slope(&seen.memory);
    let (first, last) = (seen.memory.first(), seen.memory.last());
    let resident = |sample: Option<&(f64, u64)>| megabytes(sample.map_or(0, |(_, bytes)| *bytes));
    println!(
        "{}, {}\n\n| what | figure | aim |\n|---|---|---|\n| lineages | {} | - |\n| renewals | {} in {} s, {} failed | {}/s, 0 failed |\n\
         | p50, p99 with the handshake | {:.1} ms, {:.1} ms | - |\n| control plane's CPU for each | {:.0} us | - |\n\
         | resident at the start of the look, at the end | {:.1} MB, {:.1} MB | - |\n| slope | {slope:.2} MB/min | {AIM_PER_MINUTE} MB/min |",
        now(),
        machine::describe(),
        options.lineages,
        seen.latencies.len(),
        options.length.as_secs(),
        seen.failed,
        options.rate,
        seen.percentile(0.5),
        seen.percentile(0.99),
        seen.cpu_us(),
        resident(first),
        resident(last),
    );
    if let Some(path) = &options.json {
        let value = json!({"bench": "soak", "memory": seen.memory, "failed": seen.failed, "slope_mb_per_minute": slope});
        std::fs::write(path, format!("{value:#}\n"))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if seen.failed > 0 {
        return Err(format!("{} renewals failed; the first: {}", seen.failed, seen.why));
    }
    if options.length >= JUDGED && slope >= AIM_PER_MINUTE {
        return Err(format!("resident memory grows by {slope:.2} MB a minute"));
    }
    Ok(())
}

struct Seen {
    latencies: Vec<Duration>,
    failed: usize,
    why: String,
    cpu: f64,
    /// Seconds since the begin, bytes.
    memory: Vec<(f64, u64)>,
}

impl Seen {
    fn percentile(&self, of: f64) -> f64 {
        let at = (self.latencies.len() as f64 * of) as usize;
        self.latencies.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn cpu_us(&self) -> f64 {
        self.cpu * 1e6 / self.latencies.len() as f64
    }
}

async fn renew(mesh: &Arc<Mesh>, holders: Vec<Holder>, options: &Options) -> Result<Seen, Failure> {
    let server = mesh.control.process().id();
    let cpu = machine::cpu_time(server)?.total();
    let began = Instant::now();
    let mut pace =
        tokio::time::interval(Duration::from_secs(1) / u32::try_from(options.rate).unwrap_or(u32::MAX));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut tasks, places) = (JoinSet::new(), Arc::new(Semaphore::new(AT_A_TIME)));
    let mut seen =
        Seen { latencies: Vec::new(), failed: 0, why: String::new(), cpu: 0.0, memory: Vec::new() };
    let mut looked = began;
    for holder in holders {
        if began.elapsed() >= options.length {
            break;
        }
        pace.tick().await;
        if looked.elapsed() >= Duration::from_secs(1) {
            looked = Instant::now();
            seen.memory.push((began.elapsed().as_secs_f64(), Memory::of(server)?.resident));
        }
        let place = places.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let mesh = mesh.clone();
        tasks.spawn(async move {
            let _place = place;
            let asked = Instant::now();
            let mut client = Client::connect(&mesh.control, Some(&holder.svid)).await.ok_or("not let in")?;
            let next = client.issue(&holder.id, None, Some(&holder.svid)).await;
            next.ok_or("refused").map(|_| asked.elapsed())
        });
        while let Some(done) = tasks.try_join_next() {
            seen.count(done.map_err(|error| error.to_string())?);
        }
    }
    while let Some(done) = tasks.join_next().await {
        seen.count(done.map_err(|error| error.to_string())?);
    }
    seen.cpu = machine::cpu_time(server)?.total() - cpu;
    seen.latencies.sort();
    let from = options.length.as_secs_f64() * WARM_UP;
    seen.memory.retain(|(at, _)| *at >= from);
    Ok(seen)
}

impl Seen {
    fn count(&mut self, done: Result<Duration, &'static str>) {
        match done {
            Ok(time) => self.latencies.push(time),
            Err(why) => {
                self.failed += 1;
                why.clone_into(&mut self.why);
            }
        }
    }
}

/// Megabytes a minute, by least squares.
fn slope(memory: &[(f64, u64)]) -> f64 {
    let count = memory.len() as f64;
    let mean = |of: &dyn Fn(&(f64, u64)) -> f64| memory.iter().map(of).sum::<f64>() / count;
    let (time, bytes) = (mean(&|one| one.0), mean(&|one| one.1 as f64));
    let over = memory.iter().map(|one| (one.0 - time) * (one.1 as f64 - bytes)).sum::<f64>();
    let under = memory.iter().map(|one| (one.0 - time).powi(2)).sum::<f64>();
    over / under * 60.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope() {
        let grows: Vec<_> = (0..60).map(|at| (f64::from(at), 50_000_000 + at as u64 * 100_000)).collect();
        assert!((slope(&grows) - 6.0).abs() < 1e-6);
        assert!(slope(&[(0.0, 5), (1.0, 5), (2.0, 5)]).abs() < 1e-9);
    }
}
