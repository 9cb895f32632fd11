//! The mesh under faults, on a network that is not there: three workloads with real sidecars and the real control plane with
//! its CA, all in one thread on turmoil. Every seed is another course of partitions, delays, crashes, wrong clocks, new
//! documents and denials, and the same one each time. docs/simulation.md tells what is simulated and what is not.
//!
//! ```console
//! $ cargo test --workspace --features postern-simulation/simulation --test simulation
//! $ POSTERN_SIM_SEED=17 cargo test --workspace --features postern-simulation/simulation --test simulation -- one_seed --nocapture
//! ```

mod book;
mod faults;
mod mesh;
mod pod;
mod policy;
mod seed;

use std::cell::RefCell;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use mesh::Ran;

/// Seeds of a run of all tests: each takes about a second of a processor. Many more run at night.
const SEEDS: u64 = 60;
/// Seeds that are run a second time, to see that they are the same.
const TWICE: u64 = 4;
const REPLAY: &str = "cargo test --workspace --features postern-simulation/simulation --test simulation -- one_seed --nocapture";

thread_local! {
    static PANICS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why a task of this thread has panicked, if one has: tokio catches it, and nobody else would hear of it.
fn panics() -> Option<String> {
    PANICS.with_borrow_mut(Option::take)
}

fn hear_of_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(Some(panic.to_string()));
            usual(panic);
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The whole story of one seed, told with `POSTERN_SIM_SEED`.
#[test]
fn one_seed() {
    hear_of_panics();
    let seed = number("POSTERN_SIM_SEED").unwrap_or(0);
    let began = Instant::now();
    let ran = mesh::run(seed);
    if number("POSTERN_SIM_SEED").is_some() {
        for line in &ran.lines {
            println!("{line}");
        }
    }
    println!(
        "seed {seed}: {} requests, {} reached a workload, {} certificates, well again after {} ms, {} ms in all, {:?} of ours",
        ran.requests,
        ran.arrived,
        ran.certificates,
        ran.converged_ms,
        ran.ended_ms,
        began.elapsed()
    );
    assert!(ran.broken.is_empty(), "{}", ran.broken.join("\n"));
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    hear_of_panics();
    let first = number("POSTERN_SIM_SEED").unwrap_or(1_000);
    let twice = number("POSTERN_SIM_TWICE").unwrap_or(TWICE);
    for seed in first..first + twice {
        let (one, other) = (mesh::run(seed), mesh::run(seed));
        same(seed, &one, &other);
    }
}

fn same(seed: u64, one: &Ran, other: &Ran) {
    // Each line begins with its time. What happens in one instant, at several places, has no order.
    let [one, other] = [one, other].map(|ran| {
        let mut lines = ran.lines.clone();
        lines.sort();
        lines
    });
    let at = one.iter().zip(&other).position(|(one, other)| one != other);
    if let Some(at) = at {
        let around = at.saturating_sub(10);
        let tell = |lines: &[String]| lines[around..lines.len().min(at + 3)].join("\n");
        panic!("seed {seed} differs from itself:\n{}\n--- and ---\n{}", tell(&one), tell(&other));
    }
    assert_eq!(one.len(), other.len(), "seed {seed} differs from itself in length");
}

#[test]
fn no_seed_breaks_an_invariant() {
    hear_of_panics();
    let first = number("POSTERN_SIM_FIRST").unwrap_or(1);
    let seeds = number("POSTERN_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, began) = (AtomicU64::new(first), Instant::now());
    let (broken, ran) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Some failures are enough to look at.
                    if seed >= first + seeds || broken.lock().len() >= 5 {
                        return;
                    }
                    let one = mesh::run(seed);
                    if let Some(what) = one.broken.first() {
                        let told = format!("seed {seed}: {what}\n  POSTERN_SIM_SEED={seed} {REPLAY}");
                        // At once as well: a long run may be broken off.
                        println!("{told}");
                        broken.lock().push(told);
                    }
                    ran.lock().push(one);
                }
            });
        }
    });
    let (ran, broken) = (ran.into_inner(), broken.into_inner());
    let sum = |of: &dyn Fn(&Ran) -> u64| ran.iter().map(of).sum::<u64>();
    println!(
        "{} seeds in {:?}: {} s simulated, {} requests, {} reached a workload, {} certificates; well again after {} ms at most",
        ran.len(),
        began.elapsed(),
        sum(&|ran| ran.ended_ms) / 1_000,
        sum(&|ran| ran.requests),
        sum(&|ran| ran.arrived),
        sum(&|ran| ran.certificates as u64),
        ran.iter().map(|ran| ran.converged_ms).max().unwrap_or(0),
    );
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // A course in which nothing ever arrives would break nothing either.
    assert!(sum(&|ran| ran.arrived) > sum(&|ran| ran.requests) / 10, "hardly a request arrived");
}
