//! The command, as far as no privilege is needed. What its rules do is seen by `tests/tests/capture.rs`.

use std::process::Command;

/// Exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let said = Command::new(env!("CARGO_BIN_EXE_postern-init")).args(arguments).output();
    let said = said.expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (said.status.code(), text(&said.stdout), text(&said.stderr))
}

#[test]
fn it_shows_what_it_would_write() {
    let (code, shown, err) = run(&["show", "--dns-server", "10.0.0.53,fd00::53", "--skip-inbound", "9100"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{shown}");
    assert!(
        shown.starts_with("table inet postern\ndelete table inet postern\ntable inet postern {\n"),
        "{shown}"
    );
    for part in [
        "chain nat_in {",
        "chain nat_out {",
        "chain lock_in {",
        "chain lock_out {",
        "10.0.0.53",
        "fd00::53",
        "9100",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let (_, without, _) = run(&["show", "--dns-server", "10.0.0.53", "--no-lock"]);
    assert!(!without.contains("chain lock_out {") && without.contains("chain nat_out {"), "{without}");
}

#[test]
fn what_is_wrong_on_the_command_line_is_told_with_exit_code_2() {
    for (arguments, says) in [
        (&[][..], "no command"),
        (&["redirect"], "\"redirect\" is no command"),
        (&["show", "--skip-inbound", "80;flush ruleset"], "is no port"),
        (&["show", "--config", "/nowhere/init.yaml"], "/nowhere/init.yaml"),
    ] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.starts_with("postern-init: ") && err.contains(says), "{arguments:?}: {err}");
    }
    let (code, out, _) = run(&["--version"]);
    assert_eq!((code, out.as_str()), (Some(0), concat!("postern-init ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn without_nft_it_names_the_package() {
    let (code, _, err) = run(&["apply", "--dns-server", "10.0.0.53", "--nft", "/nowhere/nft"]);
    assert!(code == Some(1) && err.contains("package nftables"), "{code:?}: {err}");
}
