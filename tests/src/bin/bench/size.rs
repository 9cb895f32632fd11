//! One sidecar at rest: its binary, its memory alone and with idle mesh connections, its way from exec to ready.

mod connections;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postern_tests::{Sidecar, wait, wire};
use serde_json::{Value, json};

use crate::contenders::{self, CALLEE, CALLER, Stage, postern};
use crate::machine::{self, Memory};
use crate::options::Options;
use crate::stats::Spread;
use crate::table::{megabytes, now};
use crate::{Failure, build};

/// Until a sidecar that was just started, or just left, has put its house in order.
const SETTLE: Duration = Duration::from_secs(3);
/// The aims, from the project's plan.
const AIM_SIZE: f64 = 15.0;
const AIM_IDLE: f64 = 15.0;
const AIM_READY_MS: f64 = 100.0;

/// The memory of one sidecar through its day.
#[derive(Debug)]
struct Days {
    moments: Vec<(&'static str, Memory)>,
    connections: usize,
}

/// Runs the bench and prints its figures.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let proxy = build::proxy(options)?;
    let stage = Stage::set(&[("policy.yaml".to_owned(), contenders::one_rule())])?;
    postern::control_plane(&stage, options)?;
    let load_before = machine::load_average();
    let size = stripped_size(&proxy, &stage)?;
    let days = memory(&stage, &proxy, options.connections)?;
    let ready = exec_to_ready(stage.mesh.sidecar(CALLEE), &proxy, options.rounds)?;

    let header = format!("{}, {}, load average before {load_before:.1}", now(), machine::describe());
    println!("{header}\n\n| what | figure | aim |\n|---|---|---|");
    println!("| stripped postern-proxy | {:.1} MB | {AIM_SIZE} MB |", megabytes(size));
    for (moment, memory) in &days.moments {
        let aim = if *moment == "idle" { format!("{AIM_IDLE} MB") } else { "-".to_owned() };
        println!(
            "| resident, {} | {:.1} MB ({:.1} own + {:.1} of the binary's file) | {aim} |",
            moment.replace("N", &days.connections.to_string()),
            megabytes(memory.resident),
            megabytes(memory.anonymous),
            megabytes(memory.file),
        );
    }
    println!("| per idle connection, its request done | {:.1} KiB | - |", days.per_connection() / 1024.0);
    println!("| exec to ready, {} starts | {} ms | {AIM_READY_MS} ms |", options.rounds, ready.show(0));
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", to_json(&header, size, &days, ready));
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

impl Days {
    /// What one connection adds, in bytes.
    fn per_connection(&self) -> f64 {
        let resident = |name: &str| {
            let found = self.moments.iter().find(|(moment, _)| *moment == name);
            found.map_or(f64::NAN, |(_, memory)| memory.resident as f64)
        };
        (resident(AFTER_REQUEST) - resident("idle")) / self.connections as f64
    }
}

const AFTER_REQUEST: &str = "N idle connections, one request done on each";

fn to_json(header: &str, size: u64, days: &Days, ready: Spread) -> Value {
    let moments: serde_json::Map<String, Value> =
        days.moments.iter().map(|(moment, memory)| ((*moment).to_owned(), memory.to_json())).collect();
    json!({
        "bench": "size",
        "run": header,
        "stripped_bytes": size,
        "connections": days.connections,
        "memory": moments,
        "bytes_per_connection": days.per_connection(),
        "exec_to_ready_ms": ready.to_json(),
    })
}

/// The profile strips; a binary given by hand is stripped here, in a copy.
fn stripped_size(proxy: &Path, stage: &Stage) -> Result<u64, Failure> {
    let copy = stage.directory().join("stripped");
    let failed = |error: std::io::Error| format!("{}: {error}", proxy.display());
    std::fs::copy(proxy, &copy).map_err(failed)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    match Command::new("strip").arg(&copy).output() {
        Ok(output) if output.status.success() => {}
        other => eprintln!("`strip` did not work ({other:?}): the size is that of the file as it is"),
    }
    Ok(std::fs::metadata(&copy).map_err(failed)?.len())
}

fn memory(stage: &Stage, proxy: &Path, count: usize) -> Result<Days, Failure> {
    let (caller, callee) = (stage.mesh.sidecar(CALLER), stage.mesh.sidecar(CALLEE));
    // The caller's sidecar fetches the certificate that the connections show, and is not needed any more.
    drop(postern::sidecar(caller, proxy)?);
    let running = postern::sidecar(callee, proxy)?;
    let mut moments = Vec::new();
    wait::pause(SETTLE);
    moments.push(("idle", Memory::of(running.id())?));

    let held = connections::Held::open(caller.state(), callee.inbound(), count)?;
    expect_connections(callee, count)?;
    wait::pause(SETTLE);
    moments.push(("N idle connections", Memory::of(running.id())?));
    held.ask_on_each()?;
    wait::pause(SETTLE);
    expect_connections(callee, count)?;
    moments.push((AFTER_REQUEST, Memory::of(running.id())?));
    drop(held);
    expect_connections(callee, 0)?;
    wait::pause(SETTLE);
    moments.push(("after they have closed", Memory::of(running.id())?));
    Ok(Days { moments, connections: count })
}

/// The sidecar's own count: connections that it has refused would cost nothing.
fn expect_connections(sidecar: &Sidecar, count: usize) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let active = sidecar.metrics().value("postern_connections_active{direction=\"inbound\"}");
        if active == count as f64 {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("the sidecar counts {active} mesh connections, the bench holds {count}"));
        }
        wait::pause(Duration::from_millis(50));
    }
}

/// From just before the fork to the first 200 of `/ready`, with a certificate in the state directory.
fn exec_to_ready(sidecar: &Sidecar, proxy: &Path, starts: usize) -> Result<Spread, Failure> {
    let mut times = Vec::new();
    for _ in 0..starts {
        let start = Instant::now();
        let mut running = Running(spawn(sidecar.config(), proxy)?);
        let health = (sidecar.inbound().ip(), 24_191);
        while wire::page(health, "/ready").is_none_or(|(status, _)| status != 200) {
            if let Ok(Some(status)) = running.0.try_wait() {
                return Err(format!("postern-proxy ended with {status} before it was ready"));
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err("postern-proxy does not become ready from its state directory".to_owned());
            }
            wait::pause(Duration::from_micros(250));
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(times))
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without the programs that pin and guard: they would be measured too.
fn spawn(config: &Path, proxy: &Path) -> Result<Child, Failure> {
    let mut command = Command::new(proxy);
    command.arg("run").arg("--config").arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("{}: {error}", proxy.display()))
}
