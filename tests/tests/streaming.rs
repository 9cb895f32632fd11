//! Server-sent events through a sidecar pair, from a service in Node: each event by itself and at once, and whoever leaves is
//! missed at once. How late events are, measured: `cargo run --release -p postern-tests --bin bench -- streams`.

use std::time::Duration;

use postern_tests::events::{self, Pace, Streams};
use postern_tests::{Mesh, Plan, Process, foreign, wait, wire};

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
    to: [{methods: [GET], paths: [/stream]}]
"#;

struct Pair {
    // Dropped first: it prints its log from the mesh's directory.
    _service: Process,
    mesh: Mesh,
}

fn pair() -> Pair {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    let mesh = plan.start();
    let log = mesh.directory().join("sse_server.log");
    let service = Process::start("sse_server", "node".as_ref(), &log, |command| {
        command.arg(events::server()).arg(address.to_string()).arg("8080");
    });
    wait::until("the service listens", wait::PATIENCE, || service.log().contains("listening"));
    Pair { _service: service, mesh }
}

#[test]
fn each_event_comes_by_itself_and_who_leaves_is_missed() {
    const COUNT: usize = 20;
    if !foreign::need(&["node"]) {
        return;
    }
    let pair = pair();
    let every = Duration::from_millis(200);
    let front = pair.mesh.sidecar("web").outbound();
    let streams = Streams::open(front, "orders.shop", "/stream", "h1", (COUNT, every), Pace::Even);
    streams.watch(Duration::from_secs(3));
    let seen = streams.leave();
    assert_eq!((seen.garbled, seen.ended), (0, 0), "{seen:?}");
    assert!(seen.delays.len() >= COUNT * 10, "{} events", seen.delays.len());
    assert!(seen.comments >= COUNT * 2, "comments are the service's own: {}", seen.comments);
    // One that waits for the next one, or for a buffer to fill, is as late as that one comes.
    let late = seen.delays.iter().filter(|delay| **delay > every / 2).count();
    assert!(late * 20 <= seen.delays.len(), "{late} of {} events were held back", seen.delays.len());
    let service = (pair.mesh.address("orders"), 8080);
    let told = wait::for_some("the service learns of all who left", wait::PATIENCE, || {
        let told = seen.told(service, "/left");
        (told.len() == COUNT).then_some(told)
    });
    let last = told.iter().max().expect("there are some");
    assert!(*last < Duration::from_secs(2), "{last:?}");
    println!(
        "{} events, {late} later than {:?}; leaving was known within {last:?}",
        seen.delays.len(),
        every / 2
    );
}

#[test]
fn what_asks_others_not_to_buffer_arrives() {
    use std::io::Write as _;
    if !foreign::need(&["node"]) {
        return;
    }
    let pair = pair();
    let mut stream = wire::connect(pair.mesh.sidecar("web").outbound());
    write!(stream, "GET /stream?every=50&name=head HTTP/1.1\r\nHost: orders.shop\r\n\r\n")
        .expect("it is read");
    let head = wire::read_head(&mut stream).to_ascii_lowercase();
    for line in
        ["content-type: text/event-stream\r\n", "x-accel-buffering: no\r\n", "cache-control: no-store\r\n"]
    {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    assert!(!head.contains("content-length"), "{head}");
}

/// An HTTP/2 client says that it goes by RST_STREAM or GOAWAY; curl that is killed, by neither.
#[test]
fn a_client_of_http2_that_dies_is_missed_too() {
    if !foreign::need(&["node", "curl"]) {
        return;
    }
    let pair = pair();
    let mesh = &pair.mesh;
    let log = mesh.directory().join("curl.log");
    let curl = Process::start("curl", "curl".as_ref(), &log, |command| {
        command.args(["-sN", "--noproxy", "*", "--http2-prior-knowledge"]);
        command.args(["--connect-to", &format!("::{}", mesh.sidecar("web").outbound())]);
        command.arg("http://orders.shop/stream?every=50&name=h2");
    });
    wait::until("events come", wait::PATIENCE, || curl.log().matches("data: ").count() > 3);
    let left = events::clock();
    drop(curl);
    let told = wait::for_some("the service learns of it", wait::PATIENCE, || {
        let (_, text) = wire::page((mesh.address("orders"), 8080), "/left")?;
        let all: serde_json::Value = serde_json::from_str(&text).ok()?;
        all.as_array()?.iter().find(|one| one["name"] == "h2")?["at"].as_str()?.parse::<u64>().ok()
    });
    assert!(told.saturating_sub(left) < 2_000_000_000, "{} ms", told.saturating_sub(left) / 1_000_000);
}
