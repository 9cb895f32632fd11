//! A CA that is saved while it works, lost, and put back, with real processes; and a database that was cut off.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use postern_tests::{Mesh, Origin, Plan, foreign, postern, wait};
use serde_json::Value;

fn ca(mesh: &Mesh, verb: &str, arguments: &[&Path]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.args(["ca", verb]).args(arguments).arg("--config").arg(mesh.control.config());
    foreign::run(&mut command, wait::PATIENCE)
}

fn told(run: &foreign::Run) -> Value {
    assert_eq!(run.code, 0, "{}", run.stderr);
    serde_json::from_slice(&run.stdout).expect("it is JSON")
}

/// A mesh whose CA's keys are sealed, so that its backups are too.
fn mesh() -> Mesh {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document(
        "policy.yaml",
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: orders, namespace: shop}\nspec:\n  \
         target: {selector: {app: orders}}\n  action: Allow\n  rules: [{name: web, from: [{serviceAccounts: [web]}]}]\n",
    );
    let mesh = plan.prepare();
    let secret = mesh.directory().join("seal.key");
    fs::write(&secret, "0123456789abcdef".repeat(4)).expect("the directory is ours");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let config = fs::read_to_string(mesh.control.config()).expect("the plan wrote it");
    let config = format!("{config}keys: {{seal: {{keyFile: {}}}}}\n", secret.display());
    fs::write(mesh.control.config(), config).expect("it is ours");
    mesh
}

#[test]
fn a_mesh_goes_on_under_a_ca_that_was_put_back() {
    let mesh = mesh();
    mesh.control.start();
    for sidecar in &mesh.sidecars {
        sidecar.create_token();
        sidecar.start();
    }
    mesh.sidecars.iter().for_each(postern_tests::Sidecar::wait_ready);
    let origin = Origin::http((mesh.address("orders"), 8080));
    let calls = |status: u16| {
        let answer = mesh.curl("web", &["http://orders.shop/"]);
        assert_eq!(answer.status, status, "{answer:?}");
    };
    calls(200);

    let file = mesh.directory().join("backup");
    let taken = told(&ca(&mesh, "backup", &[&file, Path::new("--json")]));
    assert_eq!((&taken["running"], &taken["trustDomain"]), (&true.into(), &"demo.postern".into()));
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o7777, 0o600);
    assert_eq!(ca(&mesh, "backup", &[&file]).code, 1, "never overwritten");
    let running = ca(&mesh, "restore", &[&file, Path::new("--new-epoch")]);
    assert!(running.code == 1 && running.stderr.contains("stop it first"), "{}", running.stderr);

    // The directory is lost.
    mesh.control.kill();
    let lost = mesh.directory().join("lost");
    fs::rename(mesh.control.state(), &lost).expect("it is ours");
    let refused = ca(&mesh, "restore", &[&file]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("--new-epoch"), "{}", refused.stderr);
    let restored = told(&ca(&mesh, "restore", &[&file, Path::new("--new-epoch"), Path::new("--json")]));
    let epoch = restored["bundleSequence"].as_u64().expect("a number");
    assert!(epoch > 1 << 50 && epoch < 1 << 53, "{epoch}");
    mesh.control.start();
    assert_eq!(
        fs::read(mesh.control.state().join("bundle.pem")).expect("it was written"),
        fs::read(lost.join("bundle.pem")).expect("it was there"),
        "the same root"
    );
    // The sidecars take the bundle of the new epoch, and go on.
    let newest = |name: &str| mesh.sidecar(name).metrics().value("postern_bundle_sequence");
    for name in ["web", "orders"] {
        wait::until(&format!("{name} has the bundle of the new epoch"), wait::PATIENCE * 2, || {
            newest(name) as u64 == epoch
        });
    }
    calls(200);
    drop(origin);

    // Cut off, the database keeps the control plane from starting, and the way back is told.
    mesh.control.kill();
    let database = mesh.control.state().join("ca.db");
    // What a killed process left in the journal comes into the file first.
    assert_eq!(ca(&mesh, "status", &[]).code, 0);
    let whole = fs::read(&database).expect("it is ours");
    for length in [0, 4_096, whole.len() - 1] {
        fs::write(&database, &whole[..length]).expect("it is ours");
        let mut command = Command::new(postern());
        command.arg("control").arg("--config").arg(mesh.control.config());
        let run = foreign::run(&mut command, wait::PATIENCE);
        assert_eq!(run.code, 1, "{length}: {}", run.stderr);
        assert!(run.stderr.contains("postern ca restore"), "{length}: {}", run.stderr);
    }
    fs::write(&database, &whole).expect("it is ours");
    mesh.control.start();
}
