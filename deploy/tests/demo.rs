//! The demo as a process among others: what it leaves behind when it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

#[expect(clippy::disallowed_methods, reason = "the interval of a poll with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
