//! What goes wrong in the life of a sidecar, one trouble at a time: it says what is wrong, bounds what it costs, and
//! recovers by itself where it can.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, wait, wire};

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
    to: [{ports: [8080, 9000]}]
"#;

fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(9000, 9000, "tcp");
    plan.document("policy.yaml", POLICY);
    plan
}

fn get(mesh: &Mesh, fields: &str) -> Vec<u8> {
    let request = format!("GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n{fields}\r\n");
    wire::exchange(mesh.sidecar("web").outbound(), request.as_bytes())
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

#[test]
fn a_listener_that_is_taken_ends_the_start() {
    let plan = plan();
    let taken = TcpListener::bind((plan.address("web"), 24_143)).unwrap();
    let mesh = plan.prepare();
    mesh.control.start();
    let web = mesh.sidecar("web");
    web.create_token();
    web.start();
    let status = web.process().wait(wait::PATIENCE);
    assert_eq!(status.code(), Some(1));
    let log = web.log();
    assert!(log.contains("inbound.address") && log.contains(":24143") && log.contains("ss -ltnp"), "{log}");
    drop(taken);
    web.start();
    web.wait_ready();
}

#[test]
fn without_a_control_plane_it_keeps_trying_and_is_not_ready() {
    let mesh = plan().prepare();
    mesh.control.start();
    let web = mesh.sidecar("web");
    web.create_token();
    mesh.control.kill();
    web.start();
    wait::until("the health listener answers", wait::PATIENCE, || web.page("/live").is_some());
    wait::stays("not ready, and alive", Duration::from_secs(2), || {
        web.page("/ready").is_some_and(|(status, text)| status == 503 && text.contains("no_identity"))
    });
    let page = web.admin("/v1/identity");
    assert!(page["controlPlane"]["lastError"].is_string(), "it says why: {page}");
    mesh.control.start();
    web.wait_ready();
}

#[test]
fn it_serves_with_its_certificate_to_the_last_second_and_not_after() {
    let mut plan = plan();
    plan.ttl("12s");
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    mesh.control.kill();
    let died = Instant::now();
    // At least 45 % of the life are left: renewals that are due now fail.
    wait::stays("calls go on without the control plane", Duration::from_secs(4), || {
        wire::status(&get(&mesh, "")) == 200
    });
    let orders = mesh.sidecar("orders");
    wait::until("the certificates end", Duration::from_secs(30), || {
        orders.page("/ready").is_some_and(|(status, text)| status == 503 && text.contains("identity_expired"))
    });
    assert!(died.elapsed() < Duration::from_secs(20), "{:?}", died.elapsed());
    wait::until("the caller's certificate has ended too", wait::PATIENCE, || !mesh.sidecar("web").is_ready());
    let before = origin.requests().len();
    let answer = get(&mesh, "");
    assert_eq!(wire::status(&answer), 503, "{}", text(&answer));
    assert!(text(&answer).contains("no_identity"), "{}", text(&answer));
    assert_eq!(origin.requests().len(), before, "nothing reached the workload");
    mesh.control.start();
    // Renewal needs a valid certificate, and the tokens are spent: somebody has to vouch for them again.
    for name in ["web", "orders"] {
        mesh.sidecar(name).create_token();
    }
    for name in ["web", "orders"] {
        wait::until("a new token brings it back", Duration::from_secs(30), || mesh.sidecar(name).is_ready());
    }
    wait::until("calls work again", wait::PATIENCE, || wire::status(&get(&mesh, "")) == 200);
}

#[test]
fn a_token_that_has_expired_is_refused_with_the_way_out() {
    let mut plan = plan();
    plan.sidecar("late").token_ttl("10s");
    let mesh = plan.prepare();
    mesh.control.start();
    let late = mesh.sidecar("late");
    late.create_token();
    wait::pause(Duration::from_millis(10_500));
    late.start();
    let refused = wait::for_some("the refusal", wait::PATIENCE, || {
        let (_, _) = late.page("/live")?;
        late.admin("/v1/identity")["controlPlane"]["lastError"].as_str().map(str::to_owned)
    });
    assert!(refused.contains("token"), "{refused}");
    assert!(!late.is_ready());
    late.create_token();
    late.wait_ready();
}

#[test]
fn a_token_serves_one_workload_only() {
    let mesh = plan().start();
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    // A thief comes with a key of its own.
    web.kill();
    for file in std::fs::read_dir(web.state()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    web.start();
    wait::until("the used token is refused", wait::PATIENCE, || {
        web.page("/live").is_some() && web.admin("/v1/identity")["controlPlane"]["lastError"].is_string()
    });
    wait::stays("and stays refused", Duration::from_secs(1), || !web.is_ready());
    assert!(orders.is_ready());
}

#[test]
fn a_false_control_plane_gets_no_token() {
    let real = plan().start();
    let mesh = plan().prepare();
    mesh.control.start();
    let web = mesh.sidecar("web");
    web.create_token();
    // The right id, from the wrong root: the sidecar trusts another mesh's bundle.
    let config = std::fs::read_to_string(web.config()).unwrap();
    let own = mesh.control.state().join("bundle.pem");
    let foreign = real.control.state().join("bundle.pem");
    let changed = config.replace(&own.display().to_string(), &foreign.display().to_string());
    assert_ne!(config, changed);
    std::fs::write(web.config(), changed).unwrap();
    web.start();
    wait::until("the handshake fails", wait::PATIENCE, || {
        web.page("/live").is_some() && web.admin("/v1/identity")["controlPlane"]["lastError"].is_string()
    });
    wait::stays("not ready", Duration::from_secs(1), || !web.is_ready());
    // The token was never sent: it still works with the true bundle.
    web.kill();
    std::fs::write(web.config(), config).unwrap();
    web.start();
    web.wait_ready();
}

#[test]
fn a_workload_that_is_down_is_502_with_the_reason() {
    let mesh = plan().start();
    let answer = get(&mesh, "");
    assert_eq!(wire::status(&answer), 502, "{}", text(&answer));
    assert!(text(&answer).contains("The workload does not accept connections."), "{}", text(&answer));
    let metrics = mesh.sidecar("orders").metrics();
    let failures = "postern_failures_total{direction=\"inbound\",reason=\"workload_unreachable\"}";
    assert_eq!(metrics.value(failures), 1.0);
    let origin = Origin::http((mesh.address("orders"), 8080));
    wait::until("the workload is back", wait::PATIENCE, || wire::status(&get(&mesh, "")) == 200);
    assert!(!origin.requests().is_empty());
}

#[test]
fn a_megabyte_of_headers_is_431() {
    let plan = plan();
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let field = format!("X-Much: {}\r\n", "a".repeat(1 << 20));
    let answer = get(&mesh, &field);
    assert_eq!(wire::status(&answer), 431, "{}", text(&answer));
    let many: String = (0..101).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(wire::status(&get(&mesh, &many)), 431);
    let enough: String = (0..90).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(wire::status(&get(&mesh, &enough)), 200, "as much as is allowed passes both legs");
    let large = format!("X-Much: {0}\r\nX-More: {0}\r\n", "a".repeat(30 << 10));
    assert_eq!(wire::status(&get(&mesh, &large)), 200, "as large as is allowed passes both legs");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_request_line_byte_by_byte_is_served_and_a_head_that_never_ends_is_cut() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("head", "2s");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();

    let mut slow = wire::connect(outbound);
    for byte in b"GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
        wait::pause(Duration::from_millis(5));
    }
    assert!(wire::read_head(&mut slow).starts_with("HTTP/1.1 200"));

    // One byte a tenth of a second keeps every single read short: only a clock over the whole head ends this.
    let mut endless = wire::connect(outbound);
    endless.write_all(b"GET / HTTP/1.1\r\nHost: orders.shop\r\nX-Endless: ").unwrap();
    let started = Instant::now();
    while endless.write_all(b"a").is_ok() && started.elapsed() < Duration::from_secs(10) {
        wait::pause(Duration::from_millis(100));
    }
    let took = started.elapsed();
    assert!((1..6).contains(&took.as_secs()), "cut after {took:?}");

    // The same on a connection that has already served a request.
    let mut kept = wire::connect(outbound);
    kept.write_all(b"GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").unwrap();
    wire::read_head(&mut kept);
    // The response has ended by then; a head that begins while it still runs is bounded by `idle` only.
    wait::pause(Duration::from_millis(300));
    kept.write_all(b"GET / HT").unwrap();
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = kept.read_to_end(&mut rest);
    assert!((1..6).contains(&started.elapsed().as_secs()), "cut after {:?}", started.elapsed());
}

#[test]
fn half_a_handshake_and_silence_are_cut_and_counted() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").limit("handshake", "1s").limit("firstByte", "1s");
    plan.document("policy.yaml", POLICY);
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");
    let half = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00];
    for bytes in [&half[..], b""] {
        let started = Instant::now();
        let answer = wire::exchange(orders.inbound(), bytes);
        let took = started.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{took:?}");
        assert!(answer.len() < 64, "nothing but an alert: {answer:?}");
    }
    // Counted right after the line is cut, which is what was waited for.
    wait::until("both are counted", wait::PATIENCE, || {
        let metrics = orders.metrics();
        ["first_byte", "handshake_timeout"]
            .iter()
            .all(|reason| metrics.value(&format!("postern_tls_refusals_total{{reason=\"{reason}\"}}")) == 1.0)
            && ["first_byte", "handshake"]
                .iter()
                .all(|limit| metrics.value(&format!("postern_limit_hits_total{{limit=\"{limit}\"}}")) == 1.0)
    });
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    // Small numbers of the same proportions: what is shown does not hang on how many descriptors a machine allows.
    plan.sidecar("orders")
        .serves(80, 8080, "http")
        .limit("handshakes", "8")
        .limit("handshakesPerSource", "200");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");
    let begun = [0x16, 0x03, 0x01, 0x02, 0x00];
    for words in [&b""[..], &begun] {
        let strangers: Vec<_> = (0..100)
            .map(|_| {
                let mut stranger = wire::connect_from(mesh.spare_address(0), orders.inbound());
                stranger.write_all(words).expect("the sidecar takes bytes");
                stranger
            })
            .collect();
        wait::pause(Duration::from_millis(200));
        // A fresh connection between the sidecars each time: the pool's own is closed by a restart.
        mesh.sidecar("web").restart();
        mesh.sidecar("web").wait_ready();
        let start = Instant::now();
        let answer = get(&mesh, "");
        assert_eq!(wire::status(&answer), 200, "{}", text(&answer));
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?} beside strangers that say {words:?}",
            start.elapsed()
        );
        drop(strangers);
    }
    assert!(orders.metrics().value("postern_limit_hits_total{limit=\"handshakes_per_source\"}") > 0.0);
}

/// Permission that is withdrawn from a stream whose caller does not read: there is nothing to send, and still it ends.
#[test]
fn not_reading_does_not_keep_a_permission() {
    let plan = plan();
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");
    let mut deaf = wire::connect(mesh.sidecar("web").outbound());
    deaf.write_all(b"GET /bytes/200000000 HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    assert!(wire::read_head(&mut deaf).starts_with("HTTP/1.1 200"));
    let sent = || orders.admin("/v1/connections").to_string().matches("responseBytes").count();
    assert!(sent() > 0, "the response runs");
    // Until every buffer on the way is full.
    wait::pause(Duration::from_secs(1));
    mesh.change("policy.yaml", &POLICY.replace("action: Allow", "action: Deny"));
    let start = Instant::now();
    wait::until("the stream ends", Duration::from_secs(5), || {
        orders.metrics().value("postern_streams_active{direction=\"inbound\"}") == 0.0
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(orders.metrics().value("postern_policy_revoked_streams_total"), 1.0);
}

#[test]
fn a_peer_that_stops_reading_is_cut_and_costs_bounded_memory() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("stall", "2s");
    plan.sidecar("orders").serves(80, 8080, "http").serves(9000, 9000, "tcp").limit("stall", "2s");
    plan.document("policy.yaml", POLICY);
    let flood = Flood::start((plan.address("orders"), 9000));
    let mesh = plan.start();
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let before = resident(orders.process().id());
    let mut deaf: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = wire::connect(web.outbound());
            stream.write_all(b"CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n").unwrap();
            assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"));
            stream
        })
        .collect();
    let active = "postern_streams_active{direction=\"inbound\"}";
    wait::until("eight tunnels run", wait::PATIENCE, || orders.metrics().value(active) == 8.0);
    wait::until("the stalled tunnels are cut", Duration::from_secs(30), || {
        orders.metrics().value(active) == 0.0
    });
    let grown = resident(orders.process().id()).saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more resident memory", grown >> 20);
    // A cut must not look like an end: the workload's client sees a reset.
    let mut all = Vec::new();
    let error = deaf[0].read_to_end(&mut all).expect_err("a reset, not a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    drop(flood);
}

/// A workload that never stops sending.
struct Flood(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Flood {
    fn start(address: (IpAddr, u16)) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stopped = std::sync::Arc::clone(&stopped);
                std::thread::spawn(move || {
                    let Ok(mut stream) = stream else { return };
                    let chunk = vec![7_u8; 64 << 10];
                    while !stopped.load(std::sync::atomic::Ordering::Relaxed)
                        && stream.write_all(&chunk).is_ok()
                    {}
                });
            }
        });
        Self(stop)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Resident memory in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel writes it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is a number of kB");
    kib << 10
}

#[test]
fn no_documents_at_all_deny_everything() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.prepare();
    mesh.control.start();
    let broken = mesh.directory().join("documents/broken.yaml");
    std::fs::write(&broken, "kind: [").unwrap();
    for name in ["web", "orders"] {
        mesh.sidecar(name).create_token();
        mesh.sidecar(name).start();
    }
    let web = mesh.sidecar("web");
    wait::until("web waits for documents", wait::PATIENCE, || {
        web.page("/ready").is_some_and(|(status, text)| {
            status == 503 && text.contains("no_policy") && !text.contains("no_identity")
        })
    });
    let answer = get(&mesh, "");
    assert_eq!(wire::status(&answer), 403, "{}", text(&answer));
    assert!(origin.requests().is_empty());
    std::fs::remove_file(&broken).unwrap();
    for name in ["web", "orders"] {
        mesh.sidecar(name).wait_ready();
    }
    assert_eq!(wire::status(&get(&mesh, "")), 200);
}

#[test]
fn a_drain_lets_what_runs_end_and_takes_nothing_new() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders")
        .serves(80, 8080, "http")
        .serves(9000, 9000, "tcp")
        .limit("drainMin", "1s")
        .limit("drainMax", "20s");
    plan.document("policy.yaml", POLICY);
    let echo = Origin::echo((plan.address("orders"), 9000));
    let mesh = plan.start();
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let mut tunnel = wire::connect(web.outbound());
    tunnel.write_all(b"CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n").unwrap();
    assert!(wire::read_head(&mut tunnel).starts_with("HTTP/1.1 200"));
    orders.ask("POST", "/v1/drain", "");
    wait::until("not ready at once", Duration::from_secs(1), || {
        orders.page("/ready").is_some_and(|(status, text)| status == 503 && text.contains("draining"))
    });
    wait::pause(Duration::from_secs(2));
    // Past the minimum: new connections find no door, the tunnel still works.
    let refused = std::net::TcpStream::connect(orders.inbound());
    assert!(refused.is_err() || wire::exchange(orders.inbound(), b"").is_empty());
    tunnel.write_all(b"still here").unwrap();
    let mut back = [0; 10];
    tunnel.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still here");
    assert!(orders.is_running());
    drop(tunnel);
    let status = orders.process().wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
    assert!(echo.bytes() > 0);
}
