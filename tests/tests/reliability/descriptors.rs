//! R15: more callers than a sidecar may have descriptors for.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, processor_time, wait, wire};
use socket2::{Domain, Socket, Type};

use super::{POLICY, beside_others, call, expect_alive};

/// Connections that nobody waits for: some find a place, some are in the backlog.
fn crowd(to: SocketAddr, count: usize) -> Vec<Socket> {
    let one = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("the test has descriptors");
        socket.set_nonblocking(true).expect("it is a socket");
        let _ = socket.connect(&to.into());
        socket
    };
    (0..count).map(|_| one()).collect()
}

fn start(under: &[&str]) -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web").log("warn");
    // Who says nothing is held for as long as the test lasts.
    plan.sidecar("orders").serves(80, 8080, "http").log("warn").under(under).limit("firstByte", "60s");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

/// With four callers for each descriptor: it lives, rests, tells what it is asked, and serves as soon as they have gone.
fn crowded(mesh: &Mesh, files: usize, what: &str) {
    let orders = mesh.sidecar("orders");
    let lines = || orders.log().lines().count();
    let crowd = crowd(orders.inbound(), files * 4);
    // What is new to it is said by now.
    wait::pause(Duration::from_secs(1));
    let (used, said, since) = (processor_time(orders.process().id()), lines(), Instant::now());
    let mut slowest = Duration::ZERO;
    while since.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert!(matches!(orders.page("/live"), Some((200, _))), "{what}: it tells that it lives");
        slowest = slowest.max(asked.elapsed());
        wait::pause(Duration::from_millis(100));
    }
    let seconds = since.elapsed().as_secs_f64();
    let share = (processor_time(orders.process().id()) - used).as_secs_f64() / seconds * 100.0;
    let lines = (lines() - said) as f64 / seconds;
    drop(crowd);
    let released = Instant::now();
    wait::until("it serves again", wait::PATIENCE, || call(mesh, "orders.shop") == 200);
    let took = released.elapsed();
    println!(
        "R15 {what}, {} callers: {share:.0} % of a processor, {lines:.1} lines/s, /live within {slowest:.0?}, serves \
         {took:.1?} after they have gone",
        files * 4
    );
    assert!(share < 20.0, "{what}: it takes {share} % of a processor");
    assert!(lines <= 10.0, "{what}: {lines} lines a second");
    assert!(took < Duration::from_secs(1), "{what}: it serves only {took:?} after they have gone");
    expect_alive(mesh);
}

#[test]
fn more_callers_than_descriptors() {
    let _beside = beside_others();
    for files in [64, 256] {
        let limit = format!("--nofile={files}:{files}");
        let (mesh, _origin) = start(&["prlimit", &limit, "--"]);
        assert_eq!(call(&mesh, "orders.shop"), 200, "with {files} descriptors it serves");
        crowded(&mesh, files, &format!("{files} descriptors"));
    }
}

/// A limit that is lowered under a sidecar that counts on more: what it opens fails, and it goes on.
#[test]
fn a_limit_that_is_lowered_meanwhile() {
    let _beside = beside_others();
    let (mesh, _origin) = start(&[]);
    assert_eq!(call(&mesh, "orders.shop"), 200);
    let orders = mesh.sidecar("orders");
    // As many as it has open, and a few.
    let files = postern_tests::descriptors(orders.process().id()) + 8;
    let id = orders.process().id().to_string();
    let limit = format!("--nofile={files}:20000");
    let done = Command::new("prlimit").args(["--pid", &id, &limit]).output().expect("it is beside setpriv");
    assert!(done.status.success(), "{done:?}");
    let crowd: Vec<TcpStream> = (0..files * 4).map(|_| wire::connect(orders.inbound())).collect();
    let errors = || orders.metrics().value("postern_accept_errors_total");
    // The health listener may need what the crowd has taken: it had connections open before.
    wait::pause(Duration::from_secs(1));
    let (used, said, since) =
        (processor_time(orders.process().id()), orders.log().lines().count(), Instant::now());
    wait::pause(Duration::from_secs(2));
    let seconds = since.elapsed().as_secs_f64();
    let share = (processor_time(orders.process().id()) - used).as_secs_f64() / seconds * 100.0;
    let lines = (orders.log().lines().count() - said) as f64 / seconds;
    drop(crowd);
    let released = Instant::now();
    wait::until("it serves again", wait::PATIENCE, || call(&mesh, "orders.shop") == 200);
    let took = released.elapsed();
    println!(
        "R15 a limit lowered to {files}: {share:.0} % of a processor, {lines:.1} lines/s, {} errors of accept(), serves \
         {took:.1?} after",
        errors()
    );
    assert!(errors() > 0.0, "no descriptor was left");
    assert!(share < 20.0, "it takes {share} % of a processor");
    assert!(lines <= 10.0, "{lines} lines a second");
    assert!(took < Duration::from_secs(1), "it serves only {took:?} after they have gone");
    expect_alive(&mesh);
}
