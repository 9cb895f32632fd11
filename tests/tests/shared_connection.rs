//! Many callers share one mesh connection: what one of them does wrong, or stops half-way, is not felt by the others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postern_tests::frames::{Raw, flag, frame, kind, status};
use postern_tests::{Block, Envoy, Mesh, Origin, Plan, foreign, is_long, wait};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
"#;

/// Odd requests on one connection of the workload; fewer than close it for what it does.
const EACH: usize = 20;

/// What is odd about one of them.
fn odd(raw: &Raw, stream: u32, sort: usize) -> Vec<u8> {
    let data = |flags: u8, bytes: &[u8]| frame(kind::DATA, flags, stream, bytes);
    let open = |more: &[(&str, &str)]| raw.head(stream, flag::NONE, "POST", "/odd", more);
    match sort % 8 {
        // Empty DATA: passed on, a hundred in a connection's life would end it.
        0 => [open(&[]), data(0, &[]).repeat(4), data(flag::END_STREAM, &[])].concat(),
        1 => [open(&[]), data(0, b"a"), data(0, &[]).repeat(3), data(flag::END_STREAM, b"b")].concat(),
        // The length said is not the body's, in either direction.
        2 => [open(&[("content-length", "2")]), data(flag::END_STREAM, b"four")].concat(),
        3 => [open(&[("content-length", "9")]), data(flag::END_STREAM, b"four")].concat(),
        // Taken back before, in and after the body.
        4 => [open(&[]), frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat(),
        5 => [open(&[]), data(0, b"half"), frame(kind::RST_STREAM, 0, stream, &2_u32.to_be_bytes())].concat(),
        // Padding and nothing else, one byte at a time.
        6 => [
            open(&[]),
            data(flag::PADDED, &[3, 0, 0, 0]),
            data(0, b"a").repeat(20),
            data(flag::END_STREAM, &[]),
        ]
        .concat(),
        // Trailers that may not be.
        _ => {
            let trailers = postern_tests::frames::block(&[("content-length", "9"), ("x-sum", "1")]);
            let end = flag::END_STREAM | flag::END_HEADERS;
            [open(&[]), data(0, b"body"), frame(kind::HEADERS, end, stream, &trailers)].concat()
        }
    }
}

/// One connection's worth of them, each waited for.
fn poison(to: SocketAddr, round: usize) {
    let mut raw = Raw::plain(to, "orders.shop");
    raw.hello(&[]);
    for at in 0..EACH {
        let stream = raw.stream();
        let bytes = odd(&raw, stream, round + at);
        if raw.send(&bytes).is_err() {
            return;
        }
        if !matches!((round + at) % 8, 4 | 5) {
            let is_end = |one: &postern_tests::frames::Frame| {
                one.kind == kind::GOAWAY
                    || (one.stream == stream
                        && (one.kind == kind::RST_STREAM || one.flags & flag::END_STREAM != 0))
            };
            raw.wait_for(Duration::from_secs(10), is_end);
        }
    }
}

/// Takes back what it asks for, time and again, as fast as its own sidecar lets it before it is cut.
fn take_back(mesh: &Mesh) {
    let mut raw = Raw::plain(mesh.sidecar("web").outbound(), "orders.shop");
    raw.hello(&[]);
    for _ in 0..400 {
        let streams: Vec<u32> = (0..6).map(|_| raw.stream()).collect();
        let heads: Vec<u8> =
            streams.iter().flat_map(|one| raw.head(*one, flag::END_STREAM, "GET", "/hold", &[])).collect();
        let _ = raw.send(&heads);
        if raw.is_cut(Duration::from_millis(14)) {
            return;
        }
        let reset = |one: &u32| frame(kind::RST_STREAM, 0, *one, &8_u32.to_be_bytes());
        let _ = raw.send(&streams.iter().flat_map(reset).collect::<Vec<u8>>());
    }
    panic!("nobody stops it");
}

/// Asks again and again until told to stop; what came of it.
fn innocent(to: SocketAddr, stop: &AtomicBool, asked: &AtomicUsize) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut raw = Raw::plain(to, "orders.shop");
        raw.hello(&[]);
        for _ in 0..100 {
            let stream = raw.stream();
            let head = raw.head(stream, flag::END_STREAM, "GET", "/innocent", &[]);
            let _ = raw.send(&head);
            let answer = raw.wait_for(Duration::from_secs(10), |one| {
                one.stream == stream && one.kind != kind::WINDOW_UPDATE
            });
            let ended = raw.wait_for(Duration::from_secs(10), |one| {
                one.stream == stream && one.flags & flag::END_STREAM != 0
            });
            asked.fetch_add(1, Ordering::Relaxed);
            if answer.as_ref().and_then(status) != Some(200) || ended.is_none() {
                failed.push(format!("{answer:?}"));
            }
        }
    }
    failed
}

/// So many odd requests of four callers, and those of an innocent one meanwhile: how many, and which of them failed.
fn beside_each_other(to: SocketAddr, odd_requests: usize) -> (usize, Vec<String>) {
    let (stop, asked, next) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = std::thread::scope(|scope| {
        let innocents = scope.spawn(|| innocent(to, &stop, &asked));
        let poisoners: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let round = next.fetch_add(1, Ordering::Relaxed);
                        if round >= odd_requests / EACH {
                            return;
                        }
                        poison(to, round);
                    }
                })
            })
            .collect();
        for one in poisoners {
            one.join().expect("no panic");
        }
        stop.store(true, Ordering::Relaxed);
        innocents.join().expect("no panic")
    });
    (asked.load(Ordering::Relaxed), failed)
}

/// Two stock Envoys one behind the other, with HTTP/2 between them, for comparison.
#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (block, directory) = (Block::take(), tempfile::tempdir().expect("a directory can be made"));
    let origin = Origin::http((block.address(1), 8080));
    let [near, far] = [2, 3].map(|at| SocketAddr::from((block.address(at), 8000)));
    let _far = Envoy::new(far, origin.address()).named("far").start(directory.path());
    let _near = Envoy::new(near, far).named("near").upstream_http2().start(directory.path());
    let (asked, failed) = beside_each_other(near, 10_000);
    println!("| Envoy | 10,000 odd requests, {asked} innocent ones, {} failed |", failed.len());
}

#[test]
fn one_callers_mistakes_are_not_the_others() {
    let odd_requests = if is_long() { 10_000 } else { 2_000 };
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let (asked, failed) = beside_each_other(mesh.sidecar("web").outbound(), odd_requests);
    println!("{odd_requests} odd requests, {asked} innocent ones, {} failed", failed.len());
    assert!(failed.is_empty(), "{} of {asked} failed: {:?}", failed.len(), &failed[..failed.len().min(3)]);
    assert!(asked >= odd_requests / 20, "only {asked} were asked beside {odd_requests}");
    // One connection carried all of it: nobody had to dial anew.
    assert_eq!(mesh.sidecar("web").metrics().value("postern_mesh_dials_total"), 1.0);
    wait::until("nothing is left of it", wait::PATIENCE, || {
        ["web", "orders"].iter().all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
}

/// Rapid reset by one caller is passed on, for the workload must not work for nobody; the far sidecar counts it as its peer's.
#[test]
fn one_callers_resets_do_not_end_the_others_requests() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = std::thread::scope(|scope| {
        let innocents = scope.spawn(|| innocent(mesh.sidecar("web").outbound(), &stop, &asked));
        for _ in 0..3 {
            take_back(&mesh);
        }
        stop.store(true, Ordering::Relaxed);
        innocents.join().expect("no panic")
    });
    let asked = asked.load(Ordering::Relaxed);
    let hits =
        |name: &str| mesh.sidecar(name).metrics().value("postern_limit_hits_total{limit=\"client_resets\"}");
    println!(
        "{asked} innocent requests, {} failed; cut {} times here, {} there",
        failed.len(),
        hits("web"),
        hits("orders")
    );
    assert!(failed.is_empty(), "{} of {asked} failed: {:?}", failed.len(), &failed[..failed.len().min(3)]);
    assert!(asked >= 100 && hits("web") >= 3.0, "{asked}");
}
