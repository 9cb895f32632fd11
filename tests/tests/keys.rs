//! Where the CA's keys rest, with real processes: sealed, unsealed, and opened by a program that was not written here.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::{ControlPlane, Plan, foreign, postern, wait};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/keys.md");

fn keys(verb: &str, arguments: &[&Path]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.args(["ca", "keys", verb]).args(arguments);
    foreign::run(&mut command, wait::PATIENCE)
}

/// All files below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn named(state: &Path, end: &str) -> Vec<PathBuf> {
    files(state).into_iter().filter(|path| path.extension().is_some_and(|found| found == end)).collect()
}

/// What a start says that must fail.
fn refused(control: &ControlPlane) -> String {
    let mut command = Command::new(postern());
    command.arg("control").arg("--config").arg(control.config());
    let run = foreign::run(&mut command, wait::PATIENCE);
    assert_eq!(run.code, 1, "{}", run.stderr);
    run.stderr
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).expect("the directory is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// The whole way of a mesh whose keys become sealed, change their secret, and are unsealed again.
#[test]
fn sealed_keys_serve_a_mesh_and_leave_no_plaintext() {
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.start();
    let (control, state) = (&mesh.control, mesh.control.state());
    let plain = fs::read_to_string(control.config()).expect("the plan wrote it");
    let (key, words) = (mesh.directory().join("seal.key"), mesh.directory().join("seal.words"));
    secret(&key, &format!("{}\n", "0123456789abcdef".repeat(4)));
    secret(&words, "seven words that nobody ever guesses\n");
    let config = |seal: &str| fs::write(control.config(), format!("{plain}{seal}")).expect("it is ours");
    let by_key = format!("keys: {{seal: {{keyFile: {}}}}}\n", key.display());
    config(&by_key);
    let of = [Path::new("--config"), control.config()];

    let running = keys("seal", &of);
    assert_eq!(running.code, 1);
    assert!(running.stderr.contains("stop it first"), "{}", running.stderr);
    control.kill();
    let unsealed: Vec<(PathBuf, Vec<u8>)> = named(state, "key")
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).expect("it is ours")))
        .collect();
    assert_eq!(unsealed.len(), 3, "root, issuing CA, ledger: {unsealed:?}");
    assert!(refused(control).contains("not sealed, though the configuration has keys.seal"));

    let sealed = keys("seal", &of);
    assert_eq!(sealed.code, 0, "{}", sealed.stderr);
    assert!(sealed.text().contains("ledger: sealed\n"), "{}", sealed.text());
    for path in files(state) {
        let found = fs::read(&path).expect("it is ours");
        for (key, der) in &unsealed {
            // The private scalar lies within these bytes, whatever the key's kind.
            let holds = found.windows(12).any(|part| part == &der[36..48]);
            assert!(!holds, "{} holds {}", path.display(), key.display());
        }
    }
    control.start();
    let orders = mesh.sidecar("orders");
    orders.kill();
    fs::remove_dir_all(orders.state()).expect("it is ours");
    fs::create_dir(orders.state()).expect("it is ours");
    fs::set_permissions(orders.state(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    orders.create_token();
    orders.start();
    orders.wait_ready();
    control.kill();

    // A wrong or missing secret is told with its place and the way out, and changes nothing.
    config("");
    let text = refused(control);
    assert!(text.contains(".sealed: sealed, and the configuration names no"), "{text}");
    config(&format!("keys: {{seal: {{keyFile: {}}}}}\n", words.display()));
    let text = refused(control);
    assert!(text.contains(&format!("keys.seal: keyFile {}: not a key", words.display())), "{text}");
    config("keys: {seal: {environment: POSTERN_NO_SUCH_VARIABLE}}\n");
    let text = refused(control);
    assert!(text.contains("environment POSTERN_NO_SUCH_VARIABLE: that variable is not set"), "{text}");
    let other = mesh.directory().join("other.key");
    secret(&other, &"fedcba9876543210".repeat(4));
    config(&format!("keys: {{seal: {{keyFile: {}}}}}\n", other.display()));
    let text = refused(control);
    assert!(text.contains("sealed with another secret than the one in keyFile"), "{text}");

    // Another secret, of another kind; then none.
    config(&by_key);
    let resealed = keys("reseal", &[of[0], of[1], Path::new("--to-passphrase-file"), &words]);
    assert_eq!(resealed.code, 0, "{}", resealed.stderr);
    config(&format!("keys: {{seal: {{passphraseFile: {}}}}}\n", words.display()));
    control.start();
    control.kill();
    if foreign::need(&["cryptography"]) {
        opened_by_another_program(state, &words, &unsealed);
    }
    let open = keys("unseal", &[of[0], of[1], Path::new("--json")]);
    assert_eq!(open.code, 0, "{}", open.stderr);
    let told: serde_json::Value = serde_json::from_slice(&open.stdout).expect("it is JSON");
    assert_eq!(told["unsealed"].as_array().map(Vec::len), Some(unsealed.len()), "{told}");
    for (path, der) in &unsealed {
        assert_eq!(fs::read(path).expect("it is back"), *der);
    }
    fs::write(control.config(), &plain).expect("it is ours");
    control.start();
}

fn opened_by_another_program(state: &Path, secret: &Path, unsealed: &[(PathBuf, Vec<u8>)]) {
    let page = fs::read_to_string(PAGE).expect("the page is there");
    let program = page.split("```python\n").nth(1).and_then(|rest| rest.split("\n```").next());
    let (python, _) = foreign::python("none");
    for sealed in named(state, "sealed") {
        let mut command = Command::new(&python);
        command.arg("-c").arg(program.expect("the page has a program")).arg(&sealed).arg(secret);
        let run = foreign::run(&mut command, wait::PATIENCE);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let der = unsealed.iter().find(|(path, _)| path.file_stem() == sealed.file_stem());
        assert_eq!(run.stdout, der.expect("each was there before").1, "{}", sealed.display());
    }
}
