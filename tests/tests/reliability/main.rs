//! What goes wrong around a mesh, beside a load that is paced and looked at: nothing of it may be felt further than it must
//! be, and it must be over soon after its cause. docs/reliability.md has the scenarios with their figures.
//!
//! `POSTERN_TEST_LONG=1 cargo test --workspace --test reliability -- --nocapture` runs them at their full size and prints the figures.

mod clock;
mod descriptors;
mod documents;
mod endpoints;
mod flap;
mod idle;
mod memory;
mod network;
mod resets;
mod silent;
mod slow;
mod stopped;

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use postern_tests::{Mesh, Origin, Plan, Told, is_long, wire};

/// web may call everything.
pub(crate) const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: web, namespace: postern-system}
spec:
  target: {all: true}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [shop/web]}]
"#;

/// Tests that compare times have the machine for themselves, as far as this program goes.
static MACHINE: RwLock<()> = RwLock::new(());

pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write()
}

pub(crate) fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read()
}

/// web and orders, whose workload is at 8080, both with these limits.
pub(crate) fn pair(limits: &[(&str, &str)]) -> (Mesh, Origin) {
    let mut plan = Plan::new();
    for name in ["web", "orders"] {
        let sidecar = plan.sidecar(name).log("warn");
        for (limit, value) in limits {
            sidecar.limit(limit, value);
        }
        if name == "orders" {
            sidecar.serves(80, 8080, "http");
        }
    }
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    // The first call pays for a handshake.
    assert_eq!(call(&mesh, "orders.shop"), 200);
    (mesh, origin)
}

/// One call of web's, on a connection of its own: its status, 0 if there is none.
pub(crate) fn call(mesh: &Mesh, host: &str) -> u16 {
    let request = format!("GET /bytes/10 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    wire::status(&wire::exchange(mesh.sidecar("web").outbound(), request.as_bytes()))
}

/// How long the load before something runs, whose times are compared with those beside it.
pub(crate) fn before() -> Duration {
    Duration::from_secs(if is_long() { 10 } else { 2 })
}

/// Panics if what runs beside something takes longer than before it. At full size 99 of 100 take at most so many tenths of
/// their time before, or 10 ms, below which the scheduler decides; at the small size four times that and [`allowance`], which
/// only waiting for a lock or a timer exceeds.
pub(crate) fn expect_as_fast(what: &str, before: &Told, beside: &Told, tenths: u32) {
    let (before, beside) = (before.p99(), beside.p99());
    let most = match is_long() {
        true => (before * tenths / 10).max(Duration::from_millis(10)),
        false => before * 4 + allowance(),
    };
    assert!(
        beside <= most,
        "{what}: 99 of 100 took {beside:.0?}, and {before:.0?} before: at most {most:.0?}"
    );
}

/// Stops what runs beside a test at its end, a failed one too: a scope waits for its threads.
pub(crate) struct Stops<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is allowed beside a deadline. At full size next to nothing. The small size runs where others build: so much that
/// only what waits exceeds it, and a minute where three wait for each processor, when times say nothing.
pub(crate) fn allowance() -> Duration {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get) as f64;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    match is_long() {
        true => Duration::from_millis(100),
        false if load <= 3.0 * processors => Duration::from_secs(1),
        false => {
            println!("{load} programs want {processors} processors: times are not judged");
            Duration::from_secs(60)
        }
    }
}

/// Panics unless every sidecar lives and none of them logged a panic.
pub(crate) fn expect_alive(mesh: &Mesh) {
    for sidecar in &mesh.sidecars {
        assert!(sidecar.is_running(), "{} ended", sidecar.id());
        let log = sidecar.log();
        assert!(!log.contains("panicked"), "{}: {log}", sidecar.id());
    }
}
