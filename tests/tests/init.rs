//! A CA that is made before its control plane starts, with a root from OpenSSL.

use std::fs;
use std::path::Path;
use std::process::Command;

use postern_tests::{Mesh, Origin, Plan, foreign, openssl, pem, postern, wait};
use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/keys.md");

fn init(mesh: &Mesh, more: &[&Path]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.args(["ca", "init", "--json", "--config"]).arg(mesh.control.config()).args(more);
    foreign::run(&mut command, wait::PATIENCE)
}

fn told(run: &foreign::Run) -> Value {
    assert_eq!(run.code, 0, "{}", run.stderr);
    serde_json::from_slice(&run.stdout).expect("it is JSON")
}

/// Runs the page's own commands in a new directory.
fn root_as_documented(directory: &Path) {
    fs::create_dir(directory).expect("it is new");
    let page = fs::read_to_string(PAGE).expect("the page is there");
    let script = page.split("```sh\n").nth(1).and_then(|rest| rest.split("\n```").next());
    let mut command = Command::new("sh");
    command.arg("-euc").arg(script.expect("the page has the commands")).current_dir(directory);
    let run = foreign::run(&mut command, wait::PATIENCE);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

fn mesh() -> Mesh {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document(
        "policy.yaml",
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: orders, namespace: shop}\nspec:\n  \
         target: {selector: {app: orders}}\n  action: Allow\n  rules: [{name: web, from: [{serviceAccounts: [web]}]}]\n",
    );
    plan.prepare()
}

#[test]
fn a_root_from_openssl_carries_a_mesh() {
    if !foreign::need(&["openssl", "curl"]) {
        return;
    }
    let mesh = mesh();
    let (ours, other) = (mesh.directory().join("ours"), mesh.directory().join("other"));
    root_as_documented(&ours);
    root_as_documented(&other);
    let files = |of: &Path| [of.join("root.pem"), of.join("root.key")];
    let with = |[certificate, key]: &[std::path::PathBuf; 2]| {
        init(&mesh, &[Path::new("--root-cert"), certificate, Path::new("--root-key"), key])
    };

    // Refused files leave nothing behind.
    let [certificate, _] = files(&ours);
    let mixed = with(&[certificate.clone(), other.join("root.key")]);
    assert_eq!(mixed.code, 1);
    assert!(mixed.text().contains("key of another certificate"), "{}", mixed.text());
    assert_eq!(fs::read_dir(mesh.control.state()).expect("the plan made it").count(), 0);

    let first = told(&with(&files(&ours)));
    assert_eq!(first["created"], true);
    let again = told(&with(&files(&ours)));
    assert_eq!((&again["created"], &again["rootSha256"]), (&Value::Bool(false), &first["rootSha256"]));
    assert_eq!(told(&init(&mesh, &[]))["rootSha256"], first["rootSha256"]);
    let fingerprint = openssl(
        &["x509", "-noout", "-fingerprint", "-sha256", "-in", &certificate.display().to_string()],
        b"",
    );
    let fingerprint = fingerprint.text().replace(':', "").to_lowercase();
    let sha256 = first["rootSha256"][0].as_str().expect("a text");
    assert!(fingerprint.trim().ends_with(sha256), "{fingerprint} {sha256}");
    let another = with(&files(&other));
    assert_eq!(another.code, 1);
    assert!(another.text().contains("has a CA with another root"), "{}", another.text());

    mesh.control.start();
    // It is there, served or not.
    let running = told(&init(&mesh, &[]));
    assert_eq!((&running["created"], &running["rootSha256"]), (&Value::Bool(false), &first["rootSha256"]));
    let another = with(&files(&other));
    assert!(another.code == 1 && another.text().contains("another root"), "{}", another.text());
    for sidecar in &mesh.sidecars {
        sidecar.create_token();
        sidecar.start();
    }
    mesh.sidecars.iter().for_each(postern_tests::Sidecar::wait_ready);
    let origin = Origin::http((mesh.address("orders"), 8080));
    let answer = mesh.curl("web", &["http://orders.shop/"]);
    assert_eq!((answer.status, origin.requests().len()), (200, 1));

    let certificates = mesh.control.certificates();
    let find = |kind: &str| {
        let found = certificates.iter().find(|(name, _)| name.contains(kind));
        pem(&found.unwrap_or_else(|| panic!("no {kind}")).1)
    };
    let write = |name: &str, text: String| {
        let path = mesh.directory().join(name);
        fs::write(&path, text).expect("it is ours");
        path.display().to_string()
    };
    let (issuing, leaf) = (write("issuing.pem", find("issuing")), write("leaf.pem", find("/sa/orders")));
    let root = certificate.display().to_string();
    let verified = openssl(
        &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &root, "-untrusted", &issuing, &leaf],
        b"",
    );
    assert_eq!(verified.code, 0, "{}{}", verified.text(), verified.stderr);
}

#[test]
fn a_ca_is_made_once_and_the_control_plane_takes_it_up() {
    let mesh = mesh();
    let first = told(&init(&mesh, &[]));
    assert_eq!(first["created"], true);
    let bundle = fs::read(first["bundle"].as_str().expect("a path")).expect("it was written");
    mesh.control.start();
    let log = fs::read_to_string(mesh.directory().join("control.log")).expect("it logs");
    assert!(!log.contains("a new root was made"), "{log}");
    assert_eq!(fs::read(mesh.control.state().join("bundle.pem")).expect("it is there"), bundle);
    let alone = init(&mesh, &[Path::new("--root-key"), Path::new("x")]);
    assert_eq!(alone.code, 2, "{}", alone.stderr);
}
