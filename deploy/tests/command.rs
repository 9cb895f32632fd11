//! The command line of the real binary. That this test exists also makes `cargo test --workspace` build the binary, which
//! the whole-mesh tests run.

use std::process::{Command, Output};

fn postern(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern")).args(arguments).output().expect("cargo has built it")
}

#[test]
fn a_wrong_command_line_is_told_from_a_failure() {
    for wrong in
        [&[][..], &["dmeo"], &["control"], &["ca", "token", "create"], &["demo", "--subnet", "10.0.0"]]
    {
        let refused = postern(wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        assert!(!refused.stderr.is_empty() && refused.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    for verb in ["control", "sidecar"] {
        let refused = postern(&[verb, "--config", "/nowhere/of-it.yaml"]);
        assert_eq!(refused.status.code(), Some(2), "{verb}");
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(told.contains("/nowhere/of-it.yaml"), "{verb}: {told}");
    }
}

#[test]
fn it_tells_its_version() {
    let version = postern(&["--version"]);
    assert!(version.status.success());
    let expected = concat!("postern ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
}

/// A state directory that cannot be looked into is not one without a CA.
#[test]
fn a_ca_that_cannot_be_looked_at_is_not_taken_for_none() {
    let place = tempfile::tempdir().expect("a temporary directory");
    // Root may look anywhere, but not into a file.
    let file = place.path().join("state");
    std::fs::write(&file, "").expect("it is ours");
    let of = ["--trust-domain", "demo.postern", "--state-dir", file.to_str().expect("a plain path")];
    for verb in [&["status"][..], &["root", "prepare"], &["ledger", "verify"], &["bundle", "show"]] {
        let refused = postern(&[&["ca"], verb, &of].concat());
        let told = String::from_utf8_lossy(&refused.stderr);
        if refused.status.code() == Some(2) {
            continue;
        }
        assert_eq!(refused.status.code(), Some(1), "{verb:?}: {told}");
        assert!(!told.contains("no CA has been here") && !told.contains("no ledger"), "{verb:?}: {told}");
        assert!(told.contains("state"), "{verb:?}: {told}");
    }
}
