//! Every broken set of `policy/tests/broken`, one after another, in the directory of a sidecar that runs: each is refused
//! and told, and what was in force stays in force.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, wait, wire};

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(5);

const GOOD: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: what-stays, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - {name: web, from: [{serviceAccounts: [web]}], to: [{paths: [/open]}]}
"#;

/// The sets, each with the first line of what its writer is told.
fn sets() -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/tests/broken");
    let entries = fs::read_dir(&directory).expect("the sets are there");
    let mut sets: Vec<(PathBuf, String)> = entries
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        // It is a mistake only where there is nothing else.
        .filter(|path| !path.ends_with("document-only-comments-between.yaml"))
        .map(|path| {
            let told = fs::read_to_string(path.with_extension("txt")).expect("each has its text");
            let first = told.lines().next().unwrap_or_default().to_owned();
            (path, first)
        })
        .collect();
    sets.sort();
    assert!(sets.len() >= 50, "{}", sets.len());
    sets
}

fn status(mesh: &Mesh, path: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n");
    wire::status(&wire::exchange(mesh.sidecar("web").outbound(), request.as_bytes()))
}

#[test]
fn a_broken_set_changes_nothing() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", GOOD);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.prepare();
    mesh.control.start();
    for sidecar in &mesh.sidecars {
        sidecar.create_token();
        sidecar.start();
    }
    for sidecar in &mesh.sidecars {
        sidecar.wait_ready();
    }
    let in_force = || (status(&mesh, "/open"), status(&mesh, "/closed"));
    wait::until("the good set is in force", SOON, || in_force() == (200, 403));
    let orders = mesh.sidecar("orders");
    let generation = orders.generation();
    let refusals = || orders.metrics().value("postern_policy_loads_total{result=\"refused\"}");
    let began = Instant::now();
    let sets = sets();
    for (set, told) in &sets {
        let before = refusals();
        mesh.documents.write_bytes("wrong.yaml", &fs::read(set).expect("it can be read"));
        wait::until(&format!("{} is refused: {told}", set.display()), SOON, || {
            let error = orders.admin("/v1/policy")["lastError"]["text"].clone();
            error.as_str().is_some_and(|text| text.contains(told) && text.contains("wrong.yaml"))
                && refusals() > before
        });
        assert_eq!(orders.metrics().value("postern_policy_stale"), 1.0, "{}", set.display());
        assert_eq!(orders.generation(), generation, "{}", set.display());
        assert_eq!(in_force(), (200, 403), "{}", set.display());
    }
    println!("{} broken sets refused in {:?}", sets.len(), began.elapsed());
    assert!(orders.is_ready() && orders.notes("documents_refused"));
    mesh.documents.remove("wrong.yaml");
    wait::until("the refusal is over", SOON, || orders.metrics().value("postern_policy_stale") == 0.0);
    assert_eq!(in_force(), (200, 403));
}
