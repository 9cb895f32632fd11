//! R10: mesh connections that are open and do nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use postern_tests::frames::{Raw, kind};
use postern_tests::{Mesh, Paced, is_long, processor_time, resident, wait};

use super::{alone, before, expect_as_fast, pair};

/// What a sidecar in this build takes for each, in KiB; docs/benchmarks.md has the figure of a release, and the aim.
const EACH: u64 = 96;

/// To look whether something has come takes the kernel's tick, 4 ms or 10: one thread would be late for thousands.
const HOLDERS: usize = 16;

/// A thread that answers the PINGs of what it is given.
fn hold(stop: &Arc<AtomicBool>) -> (mpsc::Sender<Raw>, JoinHandle<Vec<Raw>>) {
    let (opened, fresh) = mpsc::channel();
    let stopped = Arc::clone(stop);
    let holding = std::thread::spawn(move || {
        let mut held: Vec<Raw> = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            held.extend(fresh.try_iter());
            for raw in &mut held {
                raw.read(Duration::from_millis(1));
            }
            wait::pause(Duration::from_millis(200));
        }
        held.extend(fresh.try_iter());
        held
    });
    (opened, holding)
}

/// Connections whose PINGs are answered, until they are let go.
struct Idle {
    stop: Arc<AtomicBool>,
    holding: Vec<JoinHandle<Vec<Raw>>>,
}

impl Idle {
    fn open(mesh: &Mesh, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (open, holding): (Vec<_>, Vec<_>) = (0..HOLDERS).map(|_| hold(&stop)).unzip();
        // The first are held while the last are opened, which may take longer than a PING.
        for opened in open.iter().cycle().take(count) {
            let mut raw = Raw::mesh(mesh, "web", "orders");
            raw.hello(&[]);
            let settings = raw.wait_for(wait::PATIENCE, |frame| frame.kind == kind::SETTINGS);
            assert!(settings.is_some(), "a mesh connection is served");
            opened.send(raw).expect("they are held");
        }
        Self { stop, holding }
    }

    /// Their connections, which nobody answers for any more.
    fn end(self) -> Vec<Raw> {
        self.stop.store(true, Ordering::Relaxed);
        self.holding.into_iter().flat_map(|one| one.join().expect("no panic")).collect()
    }
}

#[test]
fn idle_connections_cost_memory_and_nothing_else() {
    let _alone = alone();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard one anybody may");
    // As many as a sidecar takes that may have so many descriptors.
    let most = (hard as usize / 2).saturating_sub(200) / 2 - 100;
    let (count, hold) = if is_long() { (most.min(9_000), 300) } else { (300, 2) };
    let (mesh, _origin) = pair(&[("drainMin", "1s"), ("drainMax", "25s")]);
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let load = |time| Paced::during(web.outbound(), "orders.shop", 100, time);
    let before = load(before());
    let process = orders.process().id();
    let start = resident(process);

    let idle = Idle::open(&mesh, count);
    let active = || orders.metrics().value("postern_connections_active{direction=\"inbound\"}");
    assert!(active() >= count as f64, "all of them are open: {}", active());
    let (used, since) = (processor_time(process), Instant::now());
    wait::pause(Duration::from_secs(2));
    let share = (processor_time(process) - used).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
    let beside = load(Duration::from_secs(hold));
    let held = resident(process);
    assert!(active() >= count as f64, "none was closed: {}", active());
    drop(idle.end());
    wait::until("they are gone", wait::PATIENCE, || active() < 10.0);
    let mut after = resident(process);
    let gone = Instant::now();
    while after * 10 > start * 13 && gone.elapsed() < Duration::from_secs(15) {
        wait::pause(Duration::from_millis(250));
        after = resident(process);
    }

    let last = Idle::open(&mesh, 50);
    let asked = Instant::now();
    orders.process().signal(Signal::SIGTERM);
    let ended = orders.process().wait(Duration::from_secs(40));
    let drained = asked.elapsed();
    println!(
        "R10 {count} idle mesh connections: {start} -> {held} -> {after} MiB, {share:.1} % of a processor; before: {}; \
         beside them: {}; drained in {drained:.1?}",
        before.line(),
        beside.line()
    );
    before.expect_all("before", 20);
    beside.expect_all("beside idle connections", 20);
    expect_as_fast("beside idle connections", &before, &beside, 20);
    assert!(
        held <= start + 30 + count as u64 * EACH / 1_024,
        "{count} of them cost too much: {start} -> {held} MiB"
    );
    assert!(after * 10 <= start * 13, "memory is not given back: {start} -> {held} -> {after} MiB");
    // Their PINGs are the work of a build without optimisation.
    assert!(share <= 3.0 + count as f64 / 300.0, "idle, they take {share} % of a processor");
    assert!(ended.success() && drained < Duration::from_secs(30), "drained: {ended}, after {drained:?}");
    drop(last.end());
}
