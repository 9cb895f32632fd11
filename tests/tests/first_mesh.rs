//! The first mesh by hand, as `docs/operations.md` tells it: its very commands, run by a shell.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use postern_tests::{foreign, namespace, postern, postern_proxy};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");

/// The page's commands.
fn commands() -> String {
    let page = fs::read_to_string(PAGE).expect("the page is there");
    let (_, section) = page.split_once("\n## A first mesh by hand\n").expect("the section is there");
    let (_, block) = section.split_once("```sh\n").expect("its commands are in a block");
    block.split_once("\n```").expect("the block ends").0.to_owned()
}

/// In a network of its own, because the page's addresses are for everybody.
#[test]
fn the_documented_commands_make_a_mesh() {
    if !foreign::need(&["curl"]) || !namespace::inside("the_documented_commands_make_a_mesh", &[]) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    // Both in one place, as after the installation.
    let programs = directory.path().join("bin");
    fs::create_dir(&programs).expect("it is ours");
    for program in [postern(), postern_proxy()] {
        let name = program.file_name().expect("it has a name");
        std::os::unix::fs::symlink(&program, programs.join(name)).expect("it is ours");
    }
    let script = directory.path().join("script");
    // A failing command ends it, and whatever it started ends with it; without that, exactly the page.
    fs::write(
        &script,
        format!("set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{}\n", commands()),
    )
    .expect("it is ours");
    let path = std::env::var("PATH").unwrap_or_default();
    // `timeout` ends all of its group.
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "90", "bash"]).arg(&script).current_dir(directory.path());
    command.env("PATH", format!("{}:{path}", programs.display()));
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    let run = foreign::run(&mut command, Duration::from_secs(120));
    let logs = || ["control", "web", "orders"].map(|name| log(directory.path(), name)).join("\n");
    assert_eq!(run.code, 0, "{}\n{}\n{}", run.text(), run.stderr, logs());
    let said = run.text();
    let said: Vec<&str> = said.lines().filter(|line| !line.contains("a join token for")).collect();
    assert_eq!(said, ["hello from orders", "403"], "{}\n{}", run.stderr, logs());
}

fn log(directory: &Path, name: &str) -> String {
    let text = fs::read_to_string(directory.join("first-mesh").join(format!("{name}.log")));
    format!("--- {name}\n{}", text.unwrap_or_default())
}
