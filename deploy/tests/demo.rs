//! The demo as a process among others: what it leaves behind when it is killed.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::foreign;

/// Killed with the test, whatever becomes of it.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// State and parent of a process; none if it is gone.
fn state(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn children(of: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("this is Linux");
    let ids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| state(*id).is_some_and(|(_, parent)| parent == of)).collect()
}

/// A zombie has ended: that nobody waits for it is up to whoever inherited it.
fn runs(process: u32) -> bool {
    state(process).is_some_and(|(state, _)| state != 'Z')
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let own = std::process::id();
    let subnet = format!("127.{}.{}", 200 + own % 50, own / 50 % 250);
    let mut child = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(["demo", "--keep", "--subnet", &subnet, "--dir"])
        .arg(directory.path().join("demo"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("cargo has built it");
    let mut told = BufReader::new(child.stdout.take().expect("it is piped"));
    let demo = Demo(child);
    let mut line = String::new();
    while !line.contains("are ready") {
        line.clear();
        assert!(told.read_line(&mut line).expect("it prints text") > 0, "it ended before its mesh was ready");
    }
    let processes = children(demo.0.id());
    assert_eq!(processes.len(), 7, "control plane, services and sidecars: {processes:?}");
    // SIGKILL: nothing of the demo's own runs any more.
    drop(demo);
    let killed = Instant::now();
    loop {
        let left: Vec<_> = processes.iter().filter(|process| runs(**process)).collect();
        if left.is_empty() {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(5), "they go on without it: {left:?}");
        pause();
    }
}

#[test]
fn a_demo_that_cannot_begin_says_so_in_json_too() {
    let own = std::process::id();
    let subnet = format!("127.{}.{}", 150 + own % 50, own / 50 % 250);
    let taken = std::net::TcpListener::bind(format!("{subnet}.10:24150")).expect("nobody else is there");
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(["demo", "--json", "--subnet", &subnet])
        .output()
        .expect("cargo has built it");
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(told["ok"], false);
    let address = taken.local_addr().expect("it is bound").to_string();
    assert!(told["error"].as_str().is_some_and(|error| error.contains(&address)), "{told}");
}

/// The demo in namespaces, as root or not, with its files in `place`; none if this machine does not let it, which is said and
/// counted.
fn in_namespaces(is_root: bool, place: &Path) -> Option<Command> {
    if !foreign::need(&["ip", "nft"]) {
        return None;
    }
    let own_is_root = nix::unistd::geteuid().is_root();
    if is_root && !own_is_root {
        foreign::skip("only root has root's namespaces");
        return None;
    }
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let user: &[&str] = if own_is_root && !is_root { &nobody } else { &["--no-new-privs"] };
    let flags = if is_root { "-nm" } else { "-Urnm" };
    let tried = Command::new("setpriv").args(user).args(["unshare", flags, "true"]).output();
    let tried = tried.expect("util-linux is everywhere");
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr);
        foreign::skip(&format!("the kernel lets nobody make namespaces here: {}", why.trim()));
        return None;
    }
    // Where it was built may be closed to others.
    fs::set_permissions(place, Permissions::from_mode(0o1777)).expect("it is ours");
    let program = place.join("postern");
    fs::copy(env!("CARGO_BIN_EXE_postern"), &program).expect("there is room");
    let mut command = Command::new("setpriv");
    command.args(user).arg(&program).args(["demo", "--netns"]).env("TMPDIR", place).current_dir("/");
    Some(command)
}

/// Nothing of a demo whose files were in `place` runs, is mounted or lies there.
fn assert_nothing_is_left(place: &Path, but: &[&str]) {
    let name = place.display().to_string();
    let begun = Instant::now();
    loop {
        let left = processes_of(&name);
        if left.is_empty() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "they go on without it: {left:?}");
        pause();
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("this is Linux");
    assert!(!mounts.contains(&name), "{mounts}");
    let files = fs::read_dir(place).expect("it is ours").map(|entry| entry.expect("it is ours").file_name());
    let left: Vec<_> =
        files.filter(|file| !but.iter().any(|but| file.to_string_lossy().starts_with(but))).collect();
    assert!(left.is_empty(), "{left:?}");
    let links = Command::new("ip").args(["-o", "link"]).output().expect("it is installed");
    assert!(!String::from_utf8_lossy(&links.stdout).contains("switch"), "{links:?}");
}

/// Command lines in which a directory occurs.
fn processes_of(directory: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("this is Linux").flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(directory)).collect()
}

/// All of it holds, and nothing is left.
fn holds_in_namespaces(is_root: bool) {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let Some(mut command) = in_namespaces(is_root, place.path()) else { return };
    let output = command.arg("--json").output().expect("it has just been copied");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(output.status.code(), Some(0), "{told:#}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told["failed"], 0, "{told:#}");
    let names: Vec<&str> = told["expectations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str())
        .collect();
    for name in [
        "captured-calls",
        "direct-from-outside",
        "udp",
        "sidecars-impostor",
        "flushed-redirection",
        "rules-twice",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert_nothing_is_left(place.path(), &["postern"]);
}

#[test]
fn in_namespaces_as_root_nobody_gets_around_a_sidecar() {
    holds_in_namespaces(true);
}

#[test]
fn in_namespaces_without_root_nobody_gets_around_a_sidecar() {
    holds_in_namespaces(false);
}

/// Starts the demo in namespaces, lets it come up, ends it by `signal` and gives its exit code.
fn ended_in_namespaces(is_root: bool, signal: Signal, left: &[&str]) -> Option<i32> {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let mut command = in_namespaces(is_root, place.path())?;
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it has just been copied");
    let mut told = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut demo = Demo(child);
    let mut line = String::new();
    while !line.contains("are ready") {
        line.clear();
        assert!(told.read_line(&mut line).expect("it prints text") > 0, "it ended before its mesh was ready");
    }
    let name = place.path().display().to_string();
    assert!(processes_of(&name).len() > 10, "{:?}", processes_of(&name));
    let id = Pid::from_raw(demo.0.id().cast_signed());
    kill(id, signal).expect("it runs");
    let mut rest = String::new();
    let _ = std::io::Read::read_to_string(&mut told, &mut rest);
    let status = demo.0.wait().expect("it is a child");
    assert_nothing_is_left(place.path(), left);
    Some(status.code().unwrap_or(-1))
}

#[test]
fn an_interrupted_demo_in_namespaces_cleans_up() {
    if let Some(code) = ended_in_namespaces(true, Signal::SIGINT, &["postern", "postern-demo-"]) {
        assert_eq!(code, 1);
    }
}

#[test]
fn a_killed_demo_in_namespaces_leaves_files_and_nothing_else() {
    if let Some(code) = ended_in_namespaces(false, Signal::SIGKILL, &["postern", "postern-demo-"]) {
        assert_eq!(code, -1);
    }
}

#[test]
fn where_namespaces_are_forbidden_the_demo_says_so() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    if in_namespaces(false, place.path()).is_none() {
        return;
    }
    let forbidding =
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin \"$@\"";
    let output = Command::new("unshare")
        .args(["-Urn", "sh", "-c", forbidding, "sh", env!("CARGO_BIN_EXE_postern"), "demo", "--netns"])
        .output()
        .expect("util-linux is everywhere");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in ["user namespaces", "run it as root", "`postern demo` without --netns"] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
}

#[expect(clippy::disallowed_methods, reason = "the interval of a poll with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
