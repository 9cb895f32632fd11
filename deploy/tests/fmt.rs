//! `postern policy fmt` on real files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/shop");
const UGLY: &str = "kind: Sidecar\r\napiVersion: networking.istio.io/v1 # Istio's\r\nspec:\r\n    egress:\r\n      - hosts: [ a,b ]\r\n";
const NEAT: &str =
    "apiVersion: networking.istio.io/v1 # Istio's\nkind: Sidecar\nspec:\n  egress:\n  - hosts: [a, b]\n";

fn fmt(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(["policy", "fmt"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // Who reads no input has closed it.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[test]
fn the_examples_are_formatted() {
    let checked = fmt(&["--check", SHOP], "");
    assert_eq!(checked.status.code(), Some(0), "{}{}", text(&checked.stdout), text(&checked.stderr));
}

#[test]
fn files_are_listed_then_rewritten_and_stay_what_they_were() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (real, link) = (directory.path().join("real"), directory.path().join("a.yaml"));
    fs::write(&real, UGLY).expect("it can be written");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("it is ours");
    symlink(&real, &link).expect("it can be made");
    let path = shown(directory.path());

    let checked = fmt(&["--check", path], "");
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("a.yaml:1\n  - \"kind: Sidecar\\r\\n\"\n  + \"apiVersion: "), "{said}");
    assert_eq!(fs::read_to_string(&real).expect("it is there"), UGLY);

    let done = fmt(&[path], "");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).starts_with("formatted "), "{}", text(&done.stdout));
    assert_eq!(fs::read_to_string(&real).expect("it is there"), NEAT);
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert_eq!(fs::metadata(&real).expect("it is there").permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(directory.path()).expect("it can be listed").count(), 2, "nothing is left over");

    let again = fmt(&["--json", path], "");
    let json: serde_json::Value = serde_json::from_slice(&again.stdout).expect("it is JSON");
    assert_eq!((again.status.code(), &json["files"][0]["status"]), (Some(0), &"unchanged".into()), "{json}");
}

#[test]
fn standard_input_goes_to_standard_output() {
    let done = fmt(&["-"], UGLY);
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(0), NEAT.to_owned()));
    let checked = fmt(&["--check", "--json", "-"], UGLY);
    let json: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("it is JSON");
    assert_eq!(checked.status.code(), Some(1));
    assert_eq!((&json["ok"], &json["files"][0]["line"]), (&false.into(), &1.into()), "{json}");
}

#[test]
fn what_is_no_yaml_is_shown_and_others_are_formatted() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (bad, good) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
    fs::write(&bad, "a: 1\nb: [\n").expect("it can be written");
    fs::write(&good, UGLY).expect("it can be written");
    let done = fmt(&[shown(directory.path())], "");
    let told = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains("a.yaml:2:4") && told.contains('^') && told.contains("1 refused"), "{told}");
    assert_eq!(fs::read_to_string(&bad).expect("it is there"), "a: 1\nb: [\n");
    assert_eq!(fs::read_to_string(&good).expect("it is there"), NEAT);
}

#[test]
fn a_wrong_command_line_is_told() {
    for wrong in [&[][..], &["-", SHOP], &["/nowhere/of-it.yaml"]] {
        assert_eq!(fmt(wrong, "").status.code(), Some(2), "{wrong:?}");
    }
}
