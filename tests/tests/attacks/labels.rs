//! Names by the thousand: hosts, paths and methods that come once each, allowed, denied and unknown. None of them may become a
//! series of `/metrics`, a line of its own in a log, or memory that stays.

use std::net::SocketAddr;
use std::time::Instant;

use postern_tests::{Envoy, Mesh, Origin, Plan, foreign, is_long, resident, wait, wire};
use serde_json::Value;

use super::{Line, POLICY};

/// Asked before it is measured: pools, buffers and the ring of decisions are full then.
const FIRST: usize = 2_000;
/// Requests on the way at once, on each connection.
const AT_ONCE: usize = 50;
const CONNECTIONS: usize = 4;
/// Series that appear with their first event, whatever it is.
const FEW: usize = 8;

fn many() -> usize {
    if is_long() { 100_000 } else { 4_000 }
}

/// The number decides what is new about it, and is in it.
fn request(number: usize) -> String {
    let (method, path, host) = match number % 6 {
        0 => ("GET".to_owned(), format!("/p{number}?q={number}"), "orders.shop".to_owned()),
        1 => ("GET".to_owned(), "/".to_owned(), format!("h{number}.example.org")),
        2 => ("GET".to_owned(), "/".to_owned(), format!("orders{number}.shop")),
        3 => (format!("M{number}"), "/".to_owned(), "orders.shop".to_owned()),
        // What is denied is logged: with what would end a text in it, or steer a terminal.
        4 => (
            "GET".to_owned(),
            format!("/admin/{number}%22%20forged=%22true%22,%22%C2%9B2J"),
            "orders.shop".to_owned(),
        ),
        _ => ("GET".to_owned(), format!("/admin/{}{number}", "x".repeat(600)), "orders.shop".to_owned()),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-N{number}: forged\t[2J\r\n\r\n")
}

/// Asks for so many from `first` on; the answers by hundreds.
fn flood(to: SocketAddr, first: usize, count: usize) -> [usize; 6] {
    let each = count / CONNECTIONS;
    let ask = |from: usize| {
        let mut classes = [0; 6];
        let mut line = Line::open(to);
        for batch in (from..from + each).step_by(AT_ONCE) {
            let numbers = batch..(batch + AT_ONCE).min(from + each);
            let flow: String = numbers.clone().map(request).collect();
            line.send(flow.as_bytes());
            for _ in numbers {
                classes[usize::from(line.status() / 100).min(5)] += 1;
            }
        }
        classes
    };
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..CONNECTIONS).map(|at| scope.spawn(move || ask(first + at * each))).collect();
        asking.into_iter().fold([0; 6], |sum, one| {
            let classes = one.join().expect("no panic");
            std::array::from_fn(|at| sum[at] + classes[at])
        })
    })
}

fn mesh() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web").decision_log();
    plan.sidecar("orders").serves(80, 8080, "http").decision_log();
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

/// Series of a sidecar, and its memory in MiB.
fn weight(mesh: &Mesh, name: &str) -> (usize, u64) {
    let sidecar = mesh.sidecar(name);
    (sidecar.metrics().iter().count(), resident(sidecar.process().id()))
}

#[test]
fn names_become_neither_series_nor_lines_nor_memory() {
    let (mesh, origin) = mesh();
    let outbound = mesh.sidecar("web").outbound();
    flood(outbound, 0, FIRST);
    let before = ["web", "orders"].map(|name| weight(&mesh, name));
    let (begun, count) = (Instant::now(), many());
    let classes = flood(outbound, FIRST, count);
    let took = begun.elapsed();
    origin.forget();
    assert!(classes[0] == 0 && classes[5] == 0, "each is answered: {classes:?}");
    assert!(classes[2] >= count / 10 && classes[4] >= count / 2, "{classes:?}");
    for (name, (series, memory)) in ["web", "orders"].iter().zip(before) {
        let (now, grown) = weight(&mesh, name);
        let grown = grown.saturating_sub(memory);
        let log = mesh.sidecar(name).log();
        let lines = log.lines().count();
        println!(
            "| {count} names in {:.0} s | {name} | {series} series, then {now}; +{grown} MiB; {lines} lines of log |",
            took.as_secs_f64()
        );
        assert!(now <= series + FEW, "{name}: {series} series became {now}");
        assert!(grown <= 10, "{name} grew by {grown} MiB");
        // What goes on in a second line is indented.
        let is_ours = |line: &str| line.as_bytes().get(10) == Some(&b'T') || line.starts_with("    ");
        let odd = log.lines().find(|line| !is_ours(line));
        assert_eq!(odd, None, "{name}: no line begins with what was sent");
        assert!(!log.contains('\u{1b}'), "{name}: nothing steers a terminal");
        let longest = log.lines().map(str::len).max().unwrap_or(0);
        assert!(longest <= 2_048, "{name}: a line of {longest} bytes");
    }
    // The far sidecar judged what came through, and each verdict is one line, and JSON.
    let file = mesh.directory().join("orders.decisions.jsonl");
    let decisions = std::fs::read_to_string(file).expect("it is written");
    for line in decisions.lines() {
        let decision: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(decision.is_object() && line.len() <= 8 << 10, "{line}");
    }
    assert!(decisions.lines().count() >= 1_000, "decisions are logged");
}

#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (mesh, origin) = mesh();
    let [at, admin] = [8000, 9901].map(|port| SocketAddr::from((mesh.spare_address(0), port)));
    let envoy = Envoy::new(at, origin.address()).admin(admin).start(mesh.directory());
    wait::until("Envoy tells its figures", wait::PATIENCE, || std::net::TcpStream::connect(admin).is_ok());
    // It answers no HTTP/1.0.
    let question = "GET /stats/prometheus HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n";
    let series = || {
        let page = wire::exchange(admin, question.as_bytes());
        page.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"envoy_")).count()
    };
    flood(at, 0, FIRST);
    let before = (series(), resident(envoy.id()));
    let classes = flood(at, FIRST, many());
    let grown = resident(envoy.id()).saturating_sub(before.1);
    println!(
        "| {} names | Envoy | {} series, then {}; +{grown} MiB; {classes:?} |",
        many(),
        before.0,
        series()
    );
}
