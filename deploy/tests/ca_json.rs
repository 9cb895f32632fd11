//! Verbs of `postern ca` with `--json` of which nothing comes: one document on standard output, and the same exit code as without.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    let said = command.arg("ca").args(arguments).output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (said.status.code(), text(&said.stdout), text(&said.stderr))
}

fn file(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).expect("the directory can be written to");
    path.display().to_string()
}

#[test]
fn whatever_is_in_the_way_is_one_document() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let state = place.path().join("state").display().to_string();
    let bad = file(place.path(), "bad.yaml", "trustDomain: A B\nnonsense: 1\n");
    let config = format!(
        "trustDomain: demo.postern\nstateDir: {state}\nlisten: {{address: \"127.0.0.1:24150\"}}\n\
         health: {{address: \"127.0.0.1:24191\"}}\nmeshAdmin: {{address: \"127.0.0.1:24192\"}}\n"
    );
    let good = file(place.path(), "good.yaml", &config);
    let nothing = ["--config", "/nowhere/control.yaml"];
    let none = ["--trust-domain", "demo.postern", "--state-dir", state.as_str()];
    let deny = ["deny", "id", "spiffe://demo.postern/ns/a/sa/b", "--reason", "x"];
    let table: &[(&[&str], &[&str], i32, &str)] = &[
        (&["root", "prepare"], &nothing, 2, "/nowhere/control.yaml"),
        (&["root", "prepare"], &["--config", &bad], 2, "bad.yaml"),
        (&["root", "prepare"], &none, 1, "no CA has been here"),
        (&["root", "activate"], &none, 1, "no CA has been here"),
        (&["root", "remove"], &none, 1, "no CA has been here"),
        (&["root", "activate"], &["--force"], 2, "--reason"),
        (&["root", "import", "/nowhere.pem"], &["--config", &bad], 2, "bad.yaml"),
        (&["root", "import", "/nowhere.pem"], &["--config", &good], 1, ""),
        (
            &["root", "sign", "/nowhere.csr"],
            &["--root", "/nowhere", "--out", &state, "--expect", "12"],
            2,
            "",
        ),
        (&["root", "nonsense"], &[], 2, "nonsense"),
        (&["root"], &[], 2, ""),
        (&["init"], &nothing, 2, "/nowhere/control.yaml"),
        (&["status"], &none, 1, "no CA has been here"),
        (&["status"], &nothing, 2, "/nowhere/control.yaml"),
        (&["who"], &["--admin", "127.0.0.1:1"], 1, "is postern control running?"),
        (&deny, &none, 2, "--for"),
        (&deny, &[&["--for", "1d"][..], &none].concat(), 1, "no CA has been here"),
        (&["keys", "unseal"], &nothing, 2, "/nowhere/control.yaml"),
        (&["backup", "/nowhere/backup"], &nothing, 2, "/nowhere/control.yaml"),
        (&["ledger", "verify"], &none, 1, ""),
    ];
    for (verb, of, code, says) in table {
        let arguments = [*verb, *of].concat();
        let (with, out, err) = run(&[&arguments[..], &["--json"]].concat());
        assert_eq!((with, err.as_str()), (Some(*code), ""), "{arguments:?}: {out}");
        let answer: Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"));
        assert_eq!(answer["ok"], false, "{arguments:?}: {out}");
        let errors = answer["errors"].as_array().unwrap_or_else(|| panic!("{arguments:?}: {out}"));
        let message = errors.first().and_then(|error| error["message"].as_str()).unwrap_or_default();
        assert!(errors.len() == 1 && !message.is_empty() && out.contains(says), "{arguments:?}: {out}");
        // For people it is on standard error.
        let (without, out, err) = run(&arguments);
        assert_eq!((without, out.as_str()), (Some(*code), ""), "{arguments:?}: {err}");
        assert!(err.contains(says) && !err.starts_with('{'), "{arguments:?}: {err}");
    }
}

/// Whom the configuration names is shown before anything of theirs is here.
#[test]
fn a_federated_trust_domain_that_was_never_fetched_is_shown() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let state = place.path().join("state").display().to_string();
    let config = format!(
        "trustDomain: demo.postern\nstateDir: {state}\nlisten: {{address: \"127.0.0.1:24150\"}}\n\
         health: {{address: \"127.0.0.1:24191\"}}\nmeshAdmin: {{address: \"127.0.0.1:24192\"}}\n\
         federation:\n  trustDomains:\n  - {{name: partner.example, url: \"https://127.0.0.1:9/bundle\", profile: https_web}}\n"
    );
    let config = file(place.path(), "control.yaml", &config);
    let (code, out, err) = run(&["init", "--config", &config]);
    assert_eq!(code, Some(0), "{out}{err}");
    let status = ["status", "--admin", "127.0.0.1:1", "--config", &config];
    let (_, out, err) = run(&[&status[..], &["--json"]].concat());
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    let partner = &told["federated"][0];
    assert_eq!(
        (&partner["trustDomain"], &partner["bundleSequence"]),
        (&"partner.example".into(), &Value::Null)
    );
    let (_, out, _) = run(&status);
    assert!(out.contains("federated partner.example, not fetched yet"), "{out}");
}
