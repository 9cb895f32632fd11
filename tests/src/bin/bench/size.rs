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

use connections::{Held, Window};

/// Until a sidecar that was just started, or just left, has put its house in order.
const SETTLE: Duration = Duration::from_secs(3);
/// Until a sidecar has looked for memory that lies free, which it does every five seconds, and found what came meanwhile.
const GIVEN_BACK: Duration = Duration::from_secs(12);
/// Until a sidecar has seen that all have come, or gone.
const OPEN: Duration = Duration::from_secs(30);
/// The aims, from the project's plan.
const AIM_SIZE: f64 = 15.0;
const AIM_IDLE: f64 = 15.0;
const AIM_READY_MS: f64 = 100.0;
const AIM_CONNECTION_KB: f64 = 24.0;
const AIM_SLOW_MB: f64 = 50.0;
const AIM_CUT: Duration = Duration::from_secs(35);
/// After all connections have closed, of what it was at the start.
const AIM_AFTER: f64 = 1.3;
/// How many do not read.
const SLOW: usize = 1_000;

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
    let mut slow = Vec::new();
    for window in [Window::Standard, Window::Socket] {
        if !options.is_quick {
            slow.push(slow_readers(&stage, &proxy, window, SLOW)?);
        }
    }
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
    let per_connection = days.per_connection() / 1e3;
    println!("| per idle connection, its request done | {per_connection:.1} kB | {AIM_CONNECTION_KB} kB |");
    println!("| after they have closed, of the start | {:.2} | {AIM_AFTER} |", days.after());
    for slow in &slow {
        let (name, grown) = (slow.name(), megabytes(slow.held.resident - slow.start.resident));
        println!("| {SLOW} answers of 1 MiB, {name}: growth | {grown:.1} MB | {AIM_SLOW_MB} MB |");
        let (cut, after) = (slow.cut.as_secs_f64(), slow.after());
        println!("| all of them cut after | {cut:.1} s | {} s |", AIM_CUT.as_secs());
        println!("| after they have closed, of the start | {after:.2} | {AIM_AFTER} |");
    }
    println!("| exec to ready, {} starts | {} ms | {AIM_READY_MS} ms |", options.rounds, ready.show(0));
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", to_json(&header, size, &days, &slow, ready));
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

impl Days {
    /// What one connection adds, in bytes.
    fn per_connection(&self) -> f64 {
        (self.resident(AFTER_REQUEST) - self.resident("idle")) / self.connections as f64
    }

    /// What is resident at the end, as a part of what was at the start.
    fn after(&self) -> f64 {
        self.resident(AFTER_CLOSE) / self.resident("idle")
    }

    fn resident(&self, name: &str) -> f64 {
        let found = self.moments.iter().find(|(moment, _)| *moment == name);
        found.map_or(f64::NAN, |(_, memory)| memory.resident as f64)
    }
}

/// The memory of one sidecar whose callers do not read.
#[derive(Debug)]
struct Slow {
    window: Window,
    start: Memory,
    held: Memory,
    cut: Duration,
    end: Memory,
}

impl Slow {
    fn name(&self) -> &'static str {
        match self.window {
            Window::Standard => "windows stay shut",
            Window::Socket => "sockets are not read",
        }
    }

    fn after(&self) -> f64 {
        self.end.resident as f64 / self.start.resident as f64
    }

    fn to_json(&self) -> Value {
        json!({
            "readers": SLOW,
            "what": self.name(),
            "start": self.start.to_json(),
            "held": self.held.to_json(),
            "cut_s": self.cut.as_secs_f64(),
            "end": self.end.to_json(),
        })
    }
}

const AFTER_REQUEST: &str = "N idle connections, one request done on each";
const AFTER_CLOSE: &str = "after they have closed";

fn to_json(header: &str, size: u64, days: &Days, slow: &[Slow], ready: Spread) -> Value {
    let moments: serde_json::Map<String, Value> =
        days.moments.iter().map(|(moment, memory)| ((*moment).to_owned(), memory.to_json())).collect();
    json!({
        "bench": "size",
        "run": header,
        "stripped_bytes": size,
        "connections": days.connections,
        "memory": moments,
        "bytes_per_connection": days.per_connection(),
        "slow_readers": slow.iter().map(Slow::to_json).collect::<Vec<_>>(),
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

    let held = Held::open(caller.state(), callee.inbound(), count, Window::Standard)?;
    expect_connections(callee, count, OPEN)?;
    wait::pause(SETTLE);
    moments.push(("N idle connections", Memory::of(running.id())?));
    held.ask_on_each()?;
    // The workload was asked on as many connections, which rest for four seconds: then they are closed too.
    wait::pause(GIVEN_BACK);
    expect_connections(callee, count, OPEN)?;
    moments.push((AFTER_REQUEST, Memory::of(running.id())?));
    drop(held);
    expect_connections(callee, 0, OPEN)?;
    wait::pause(GIVEN_BACK);
    moments.push((AFTER_CLOSE, Memory::of(running.id())?));
    Ok(Days { moments, connections: count })
}

/// A sidecar's memory while nobody reads what was asked for, and how long it bears that.
fn slow_readers(stage: &Stage, proxy: &Path, window: Window, count: usize) -> Result<Slow, Failure> {
    let (caller, callee) = (stage.mesh.sidecar(CALLER), stage.mesh.sidecar(CALLEE));
    let running = postern::sidecar(callee, proxy)?;
    wait::pause(SETTLE);
    let start = Memory::of(running.id())?;
    let connections = Held::open(caller.state(), callee.inbound(), count, window)?;
    let unread = connections.ask_and_do_not_read()?;
    let asked = Instant::now();
    let cut = if window == Window::Socket {
        connections.deafen();
        wait::pause(SETTLE);
        let held = Memory::of(running.id())?;
        // Who does not read does not see how it ends either.
        expect_connections(callee, 0, AIM_CUT)?;
        drop(unread);
        (held, asked.elapsed())
    } else {
        wait::pause(SETTLE);
        let held = Memory::of(running.id())?;
        (held, connections.until_cut(unread, AIM_CUT)?)
    };
    drop(connections);
    expect_connections(callee, 0, OPEN)?;
    wait::pause(GIVEN_BACK);
    Ok(Slow { window, start, held: cut.0, cut: cut.1, end: Memory::of(running.id())? })
}

/// The sidecar's own count: connections that it has refused would cost nothing.
fn expect_connections(sidecar: &Sidecar, count: usize, at_most: Duration) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let active = sidecar.metrics().value("postern_connections_active{direction=\"inbound\"}");
        if active == count as f64 {
            return Ok(());
        }
        if start.elapsed() > at_most {
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
