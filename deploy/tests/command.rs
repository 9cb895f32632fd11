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
