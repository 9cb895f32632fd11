//! Rate limits, asked of real sidecars by clients that are none of ours: curl, h2load, grpcio.

use std::io::Write as _;
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Load, Mesh, Origin, Plan, Process, foreign, wait, wire};
use serde_json::Value;

const ALLOW: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules: [{name: shop, from: [{namespaces: [shop]}]}]
"#;

fn limits(spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: orders-limits, namespace: shop}}\nspec:\n  target: {{selector: {{app: orders}}}}\n{spec}\n"
    )
}

struct Shop {
    mesh: Mesh,
    origin: Origin,
}

impl Shop {
    fn start(spec: &str) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("gateway");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.document("allow.yaml", ALLOW);
        plan.document("limits.yaml", &limits(spec));
        let origin = Origin::http((plan.address("orders"), 8080));
        Self { mesh: plan.start(), origin }
    }

    fn status(&self, caller: &str, path: &str) -> u16 {
        self.mesh.curl(caller, &[&format!("http://orders.shop{path}")]).status
    }

    fn count(&self, limit: &str, result: &str) -> f64 {
        let labels =
            format!("namespace=\"shop\",policy=\"orders-limits\",limit=\"{limit}\",result=\"{result}\"");
        self.mesh.sidecar("orders").metrics().value(&format!("postern_rate_limit_total{{{labels}}}"))
    }

    fn keys(&self, limit: &str) -> f64 {
        let labels = format!("namespace=\"shop\",policy=\"orders-limits\",limit=\"{limit}\"");
        self.mesh.sidecar("orders").metrics().value(&format!("postern_rate_limit_keys{{{labels}}}"))
    }

    /// Other documents, in force.
    fn change(&self, spec: &str) {
        self.mesh.change("limits.yaml", &limits(spec));
    }
}

#[test]
fn a_rate_is_held_under_load_and_a_refusal_is_nobodys_failure() {
    let shop = Shop::start("  limits: [{name: total, rate: 100/s, burst: 30}]");
    assert_eq!(shop.count("total", "refused"), 0.0, "zeros are there from the load on");
    let begun = Instant::now();
    let loaded = Load::start(&shop.mesh, "web", "http://orders.shop/", Duration::from_secs(4)).end();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(loaded.failed, 0, "{}", loaded.summary);
    let of = |status| loaded.statuses.get(&status).copied().unwrap_or(0);
    let (passed, refused) = (of(200), of(429));
    assert_eq!(passed + refused, loaded.answered(), "{:?}", loaded.statuses);
    assert!(refused > 0, "there was no load: {}", loaded.summary);
    // Never more than the burst and the rate; and not much less: h2load waits for nothing.
    assert!((passed as f64) <= 30.0 + 100.0 * took, "{passed} passed in {took} s");
    assert!((passed as f64) >= 30.0 + 100.0 * 3.0, "{passed} passed in {took} s");
    // What h2load cut off at its end was asked about too, so the far counts may be a few more.
    let (seen, admitted) = (shop.origin.requests().len() as u64, shop.count("total", "admitted") as u64);
    assert!(
        (passed..=admitted).contains(&seen),
        "{seen} of {admitted}: what is refused never reaches the workload"
    );
    assert!(admitted <= passed + 16, "{admitted} {loaded:?}");
    // Each request was asked about once: the caller's sidecar tries none again.
    let asked = (shop.count("total", "admitted") + shop.count("total", "refused")) as u64;
    assert!((loaded.answered()..=loaded.answered() + 16).contains(&asked), "{asked} {loaded:?}");
    let web = shop.mesh.sidecar("web").metrics();
    let failed = |reason: &str| {
        web.value(&format!("postern_failures_total{{direction=\"outbound\",reason=\"{reason}\"}}"))
    };
    for reason in ["rate_limited", "remote_reset", "remote_unreachable", "overloaded"] {
        assert_eq!(failed(reason), 0.0, "{reason}");
    }
    let orders = shop.mesh.sidecar("orders").metrics();
    let reason = "postern_failures_total{direction=\"inbound\",reason=\"rate_limited\"}";
    assert_eq!(orders.value(reason), shop.count("total", "refused"));
}

#[test]
fn callers_are_told_apart_and_one_of_them_is_overridden() {
    let shop = Shop::start(
        "  limits:\n  - {name: each, rate: 15/m, burst: 2, key: [source.identity]}\n  - {name: export, rate: 1/h, match: {pathPrefix: [/export]}}\n  overrides:\n  - {from: [{serviceAccounts: [gateway]}], limit: each, rate: 1000/s, burst: 9}",
    );
    let web = || shop.status("web", "/");
    assert_eq!([web(), web()], [200, 200]);
    let refused = shop.mesh.curl("web", &["http://orders.shop/"]);
    assert_eq!(refused.status, 429);
    // The override's bucket is another one, and larger.
    assert!((0..9).all(|_| shop.status("gateway", "/") == 200));
    let wait: u64 = refused.header("retry-after").expect("it says when").parse().expect("in whole seconds");
    assert!((1..=4).contains(&wait), "{wait}");
    wait::pause(Duration::from_secs(wait));
    assert_eq!(web(), 200, "who comes again when it is told passes");
    // The caller hears nothing of the limit; the operator everything.
    let id = refused.header("postern-decision").expect("a decision is named").to_owned();
    assert_eq!(refused.header("postern-error"), Some("rate_limited"));
    assert!(refused.text().contains(&id), "{}", refused.text());
    assert!(!format!("{refused:?}").contains("each"), "{refused:?}");
    let orders = shop.mesh.sidecar("orders");
    let page = orders.admin("/v1/decisions");
    let all = page["decisions"].as_array().expect("a list").iter().filter(|one| one["id"] == id);
    let [decision] = all.collect::<Vec<_>>()[..] else { panic!("one decision: {page}") };
    for (field, value) in [
        ("effect", "deny"),
        ("reason", "rate_limited"),
        ("limit", "shop/orders-limits/each"),
        ("rule", "shop/orders/shop"),
    ] {
        assert_eq!(decision[field], value, "{decision}");
    }
    assert_eq!(decision["status"], 429, "{decision}");
    let log = orders.log();
    assert!(log.contains("rate limited") && log.contains("limit=shop/orders-limits/each"), "{log}");
    let page = orders.admin("/v1/limits");
    let each = &page["limits"][0];
    assert_eq!((&each["limit"], &each["rate"]), (&"shop/orders-limits/each".into(), &"15/m".into()));
    assert_eq!((&each["burst"], &each["maxKeys"]), (&2.into(), &10_000.into()), "{page}");
    assert_eq!(each["refused"], 1, "{page}");
    assert!(each["keys"].as_u64().is_some_and(|keys| (1..=2).contains(&keys)), "{page}");
    assert_eq!(page["limits"][1]["maxKeys"], Value::Null, "{page}");
    // A limit with a path counts that path, in whatever spelling.
    assert_eq!(shop.status("gateway", "/export/a"), 200);
    assert_eq!(shop.status("gateway", "/x/..//%65xport/b"), 429);
    assert_eq!(shop.status("gateway", "/exports"), 200);
}

#[test]
fn a_reload_keeps_what_did_not_change() {
    let spec = |enforcement: &str, rate: &str, other: &str| {
        format!(
            "  enforcement: {enforcement}\n  limits:\n  - {{name: other, rate: {other}, match: {{paths: [/other]}}}}\n  - {{name: all, rate: {rate}, burst: 2}}"
        )
    };
    let shop = Shop::start(&spec("Enforce", "1/h", "5/s"));
    let ask = || shop.status("web", "/");
    assert_eq!(ask(), 200);
    shop.change(&spec("Enforce", "1/h", "7/s"));
    assert_eq!([ask(), ask()], [200, 429], "one was left");
    shop.change(&spec("Shadow", "1/h", "7/s"));
    assert_eq!(ask(), 200);
    let shadow = shop.count("all", "shadow_refused");
    assert!((shadow - 1.0).abs() < 0.5, "it says whom it would refuse: {shadow}");
    shop.change(&spec("Enforce", "1/h", "7/s"));
    assert_eq!(ask(), 429);
    shop.change(&spec("Enforce", "2/h", "7/s"));
    assert_eq!([ask(), ask(), ask()], [200, 200, 429], "what changed starts anew");
    // The counts go on under the limit's name.
    assert!((shop.count("all", "refused") - 3.0).abs() < 0.5);
    shop.mesh.sidecar("orders").restart();
    assert_eq!(ask(), 200, "a restart forgets, as the manual says");
}

/// The keys are a header field's, of which a caller makes up as many as it likes.
#[test]
fn made_up_keys_take_bounded_memory() {
    const KEYS: usize = 20_000;
    let shop = Shop::start(
        "  limits: [{name: tenants, rate: 1/h, burst: 1, key: [request.header.x-tenant], maxKeys: 500}]",
    );
    let memory = || {
        let pid = shop.mesh.sidecar("orders").process().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kibibytes")
    };
    let ask = |stream: &mut TcpStream, tenant: usize| {
        let padding = "x".repeat(200);
        write!(stream, "HEAD / HTTP/1.1\r\nHost: orders.shop\r\nx-tenant: {padding}{tenant}\r\n\r\n")
            .expect("the sidecar reads");
        wire::status(wire::read_head(stream).as_bytes())
    };
    let outbound = shop.mesh.sidecar("web").outbound();
    let mut stream = wire::connect(outbound);
    // What a connection and its buffers take is there before.
    assert!((0..400).all(|tenant| ask(&mut stream, tenant) == 200));
    let before = memory();
    let passed: usize = std::thread::scope(|scope| {
        let part = |n: usize| {
            let mut stream = wire::connect(outbound);
            (400..KEYS).filter(|tenant| tenant % 4 == n && ask(&mut stream, *tenant) == 200).count()
        };
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || part(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
    });
    // A hundred more find a place, and all the others share one bucket.
    assert_eq!(passed, 101);
    assert!((shop.keys("tenants") - 500.0).abs() < 0.5);
    let grown = memory().saturating_sub(before);
    // 20,000 keys of 200 bytes alone would be 4 MiB; the log of decisions has its own bound.
    println!("{grown} KiB for {KEYS} keys");
    assert!(grown < 8 << 10, "{before} KiB before, {grown} more");
}

#[test]
fn a_tunnel_is_counted_when_it_begins() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(9000, 9000, "tcp");
    plan.document("allow.yaml", ALLOW);
    plan.document("limits.yaml", &limits("  limits: [{name: tunnels, rate: 1/h, burst: 2}]"));
    let origin = Origin::echo((plan.address("orders"), 9000));
    let mesh = plan.start();
    let open = || {
        let mut stream = wire::connect(mesh.sidecar("web").outbound());
        write!(stream, "CONNECT orders.shop:9000 HTTP/1.1\r\nHost: orders.shop:9000\r\n\r\n")
            .expect("the sidecar reads");
        let head = wire::read_head(&mut stream);
        (wire::status(head.as_bytes()), stream)
    };
    let (first, second, third) = (open(), open(), open());
    assert_eq!((first.0, second.0, third.0), (200, 200, 429));
    wait::until("the allowed ones arrive", wait::PATIENCE, || origin.connections() == 2);
    // What runs goes on.
    let (_, mut stream) = first;
    stream.write_all(&[7; 1_000]).expect("the tunnel takes bytes");
    wait::until("the bytes arrive", wait::PATIENCE, || origin.bytes() == 1_000);
    assert_eq!(origin.connections(), 2, "the refused one never reached the workload");
}

#[test]
fn a_grpc_client_sees_the_status_and_when_to_come_again() {
    if !foreign::need(&["grpc"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(50051, 50051, "grpc");
    plan.document("allow.yaml", ALLOW);
    plan.document(
        "limits.yaml",
        &limits("  limits: [{name: reads, rate: 1/h, burst: 1, match: {grpc: ['shop.Orders/*']}}]"),
    );
    let address: IpAddr = plan.address("orders");
    let mesh = plan.start();
    let (python, script) = foreign::python("grpc_server.py");
    let server =
        Process::start("grpc_server", &python, &mesh.directory().join("grpc_server.log"), |command| {
            command.arg(script).arg(format!("{address}:50051"));
        });
    wait::until("the gRPC server listens", wait::PATIENCE, || server.log().contains("listening"));
    let (python, script) = foreign::python("grpc_client.py");
    let mut client = Command::new(python);
    client.arg(script).arg(mesh.sidecar("web").outbound().to_string()).arg("orders.shop:50051");
    let run = foreign::run(client.args(["unary", "list"]), Duration::from_secs(60));
    assert_eq!(run.code, 0, "the client failed: {}\n{}", run.stderr, run.text());
    let results: Vec<Value> = run.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let [first, second] = &results[..] else { panic!("{results:?}") };
    assert_eq!(first["code"], "OK", "{first}");
    assert_eq!(second["code"], "RESOURCE_EXHAUSTED", "{second}");
    let details = second["details"].as_str().unwrap_or_default();
    assert!(details.contains("Decision") && !details.contains("reads"), "{second}");
    let told = |name: &str| -> u64 {
        let fields = [&second["trailing"], &second["initial"]];
        let value = fields.iter().find_map(|fields| fields[name].as_str());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {second}"))
    };
    assert!((3_500..=3_600).contains(&told("retry-after")), "{second}");
    assert!((3_500_000..=3_600_000).contains(&told("grpc-retry-pushback-ms")), "{second}");
}
