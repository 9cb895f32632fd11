//! R16: sidecars of 128 MiB, and callers who want them to hold more.

use std::net::SocketAddr;
use std::time::Duration;

use postern_tests::frames::{Raw, flag, frame, kind};
use postern_tests::{Cgroup, Mesh, Origin, Paced, Plan, foreign, is_long, resident, wait, wire};
use std::io::Write as _;

use super::{POLICY, alone, call, expect_alive};

const BOUND: u64 = 128 << 20;

fn start(cgroups: &[Cgroup; 2]) -> (Mesh, Origin) {
    let mut plan = Plan::new();
    for (name, cgroup) in ["web", "orders"].into_iter().zip(cgroups) {
        let words = cgroup.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let sidecar = plan.sidecar(name).log("warn").under(&words);
        if !is_long() {
            sidecar.limit("stall", "2s");
        }
        if name == "orders" {
            sidecar.serves(80, 8080, "http");
        }
    }
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

/// Megabytes asked for by the hundred and not taken, heads without an end, frames of nothing; whatever is answered.
fn attack(to: SocketAddr, connections: usize) -> Vec<Raw> {
    let large = "a".repeat(15_000);
    (0..connections)
        .map(|number| {
            let mut raw = Raw::plain(to, "orders.shop");
            // SETTINGS_INITIAL_WINDOW_SIZE: bodies wait for a window that never opens.
            raw.hello(&[(4, 0)]);
            for at in 0..100 {
                let stream = raw.stream();
                let more: &[(&str, &str)] = if at % 10 == 0 { &[("x-large", &large)] } else { &[] };
                let head = raw.head(stream, flag::END_STREAM, "GET", "/bytes/1000000", more);
                if raw.send(&head).is_err() {
                    break;
                }
            }
            match number % 3 {
                // A block of headers that goes on and on (CVE-2024-27316).
                0 => {
                    let stream = raw.stream();
                    let _ = raw.send(&frame(kind::HEADERS, flag::NONE, stream, &[0x82]));
                    for _ in 0..50 {
                        let _ = raw.send(&frame(kind::CONTINUATION, flag::NONE, stream, &[0; 4_000]));
                    }
                }
                1 => {
                    let _ = raw.send(&frame(kind::SETTINGS, flag::NONE, 0, &[]).repeat(1_000));
                }
                _ => {
                    let _ = raw.send(&frame(kind::PING, flag::NONE, 0, &[0; 8]).repeat(1_000));
                }
            }
            raw
        })
        .collect()
}

#[test]
fn what_is_asked_for_beyond_memory_is_refused() {
    // Without optimisation the processor runs out before the memory does.
    if !is_long() {
        return;
    }
    let _alone = alone();
    let cgroups = match ["web", "orders"].map(|name| Cgroup::with_memory(name, BOUND)) {
        [Ok(web), Ok(orders)] => [web, orders],
        [web, orders] => {
            let why = web.and(orders).err().unwrap_or_default();
            return foreign::skip(&format!("the kernel lets nobody make a cgroup of memory here: {why}"));
        }
    };
    let (mesh, _origin) = start(&cgroups);
    let outbound = mesh.sidecar("web").outbound();
    assert_eq!(call(&mesh, "orders.shop"), 200);
    let (connections, time) = if is_long() { (60, 60) } else { (24, 5) };
    let load = Paced::start(outbound, "orders.shop", 50);
    let attackers = std::thread::scope(|scope| {
        let several: Vec<_> = (0..4).map(|_| scope.spawn(|| attack(outbound, connections / 4))).collect();
        several.into_iter().flat_map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
    });
    // And bodies that nobody reads.
    let deaf: Vec<_> = (0..connections)
        .map(|_| {
            let mut stream = wire::connect(outbound);
            let _ = stream.write_all(b"GET /bytes/64000000 HTTP/1.1\r\nHost: orders.shop\r\n\r\n");
            stream
        })
        .collect();
    wait::pause(Duration::from_secs(time));
    // The kernel kills who goes beyond it.
    expect_alive(&mesh);
    let held = ["web", "orders"].map(|name| resident(mesh.sidecar(name).process().id()));
    let refused = mesh.sidecar("web").metrics().value("postern_limit_hits_total{limit=\"memory\"}");
    drop((attackers, deaf));
    let told = load.end();
    let served = told.count() - told.failed().len();
    let peaks = cgroups.each_ref().map(Cgroup::peak);
    println!(
        "R16 two sidecars of 128 MiB, {connections} hostile connections of 100 streams: resident {held:?} MiB, most used \
         {peaks:?} MiB, {refused} times refused for memory; honest: {}",
        told.line()
    );
    expect_alive(&mesh);
    assert!(served * 10 >= told.count() * 9, "{:#?}", &told.failed()[..told.failed().len().min(5)]);
    wait::until("it serves as before", wait::PATIENCE, || call(&mesh, "orders.shop") == 200);
}
