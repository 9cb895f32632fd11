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

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use postern_tests::{Mesh, Origin, Plan, wire};

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

/// Panics unless every sidecar lives and none of them logged a panic.
pub(crate) fn expect_alive(mesh: &Mesh) {
    for sidecar in &mesh.sidecars {
        assert!(sidecar.is_running(), "{} ended", sidecar.id());
        let log = sidecar.log();
        assert!(!log.contains("panicked"), "{}: {log}", sidecar.id());
    }
}
