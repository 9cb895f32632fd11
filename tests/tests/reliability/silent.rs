//! R12: a workload that takes a call and does not answer, or stops within its answer; nobody beside it feels it, and it costs
//! nothing once its callers have gone.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use postern_tests::{Mesh, Origin, Paced, Plan, wait, wire};

use super::{POLICY, alone, before, call, expect_alive, expect_as_fast};

/// Calls that are never answered, in each of the two ways.
const EACH: usize = 20;

fn asking(to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = wire::connect(to);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    stream
}

fn active(mesh: &Mesh) -> f64 {
    ["web", "orders"].iter().map(|name| mesh.sidecar(name).metrics().sum("postern_streams_active")).sum()
}

#[test]
fn an_answer_that_does_not_come_is_its_callers_affair() {
    let _alone = alone();
    let mut plan = Plan::new();
    plan.sidecar("web").log("warn");
    plan.sidecar("orders").serves(80, 8080, "http").log("warn");
    plan.sidecar("books").serves(80, 8080, "http").log("warn");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let _books = Origin::http((plan.address("books"), 8080));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();
    for host in ["books.shop", "orders.shop"] {
        assert_eq!(call(&mesh, host), 200);
    }
    let load = |host| Paced::during(outbound, host, 100, before());
    let before = load("books.shop");

    let mut callers: Vec<TcpStream> = (0..EACH).map(|_| asking(outbound, "/hold")).collect();
    callers.extend((0..EACH).map(|_| {
        let mut stream = asking(outbound, "/half");
        assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"));
        let mut half = [0; 500];
        stream.read_exact(&mut half).expect("half of it comes");
        stream
    }));
    wait::until("all of them have arrived", wait::PATIENCE, || origin.requests().len() > 2 * EACH);
    let [beside, same] = ["books.shop", "orders.shop"].map(load);
    for caller in &mut callers {
        caller.set_read_timeout(Some(Duration::from_millis(1))).expect("a positive time");
        let more = caller.read(&mut [0]);
        assert!(more.is_err(), "nothing more comes, and nothing looks like an end: {more:?}");
    }
    drop(callers);
    wait::until("nothing is left of them", Duration::from_secs(2), || active(&mesh) == 0.0);
    println!(
        "R12 {} calls without an answer; before: {}; another service beside them: {}; the same service: {}",
        2 * EACH,
        before.line(),
        beside.line(),
        same.line()
    );
    for (what, told) in [("another service", &beside), ("the same service", &same)] {
        told.expect_all(what, 20);
        expect_as_fast(what, &before, told, 12);
    }
    expect_alive(&mesh);
}
