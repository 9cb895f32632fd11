//! WebSockets through a sidecar pair, between a client and a server from PyPI's websockets.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Mesh, Plan, Process, foreign, wait, wire};
use serde_json::{Value, json};

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
    to: [{methods: [GET], paths: ["/chat", "/watched"], ports: [8080]}]
"#;

struct Pair {
    // Dropped first: it prints its log from the mesh's directory.
    server: Process,
    mesh: Mesh,
}

fn pair() -> Pair {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    let mesh = plan.start();
    let (python, script) = foreign::python("ws_server.py");
    let server = Process::start("ws_server", &python, &mesh.directory().join("ws_server.log"), |command| {
        command.arg(script).arg(address.to_string()).arg("8080");
    });
    wait::until("the server listens", wait::PATIENCE, || server.log().contains("listening"));
    Pair { server, mesh }
}

impl Pair {
    fn client(&self, cases: &[&str]) -> Command {
        let (python, script) = foreign::python("ws_client.py");
        let outbound = self.mesh.sidecar("web").outbound();
        let mut command = Command::new(python);
        command.arg(script).arg(outbound.ip().to_string()).arg(outbound.port().to_string());
        command.arg("ws://orders.shop").args(cases);
        command
    }

    fn call(&self, cases: &[&str]) -> BTreeMap<String, Value> {
        results(&foreign::run(&mut self.client(cases), Duration::from_secs(120)))
    }
}

fn results(run: &foreign::Run) -> BTreeMap<String, Value> {
    assert_eq!(run.code, 0, "the client failed: {}\n{}", run.stderr, run.text());
    let result = |line: &str| -> Option<(String, Value)> {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["case"].as_str()?.to_owned(), value))
    };
    run.text().lines().filter_map(result).collect()
}

#[test]
fn messages_pings_and_closes() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair();
    let results = pair.call(&["echo", "plain", "ping", "closes", "caller"]);
    assert_eq!(results["echo"]["same"], json!([true, true, true, true, true, true, true, true]));
    let negotiated = results["echo"]["extensions"].as_str().unwrap_or_default();
    assert!(negotiated.contains("permessage-deflate"), "extensions are between the two ends: {negotiated:?}");
    assert_eq!((&results["plain"]["same"], &results["plain"]["extensions"]), (&true.into(), &"".into()));
    assert_eq!((&results["ping"]["ponged"], &results["ping"]["server"]), (&true.into(), &"pong came".into()));
    assert_eq!(results["closes"]["codes"], json!([[1000, ""], [1001, "away"], [4001, "ours"]]));
    assert_eq!(results["caller"]["caller"], "['URI=spiffe://demo.postern/ns/shop/sa/web']");
    wait::until("the client's close arrives", wait::PATIENCE, || {
        pair.server.log().contains("closed 4002 mine")
    });
}

#[test]
fn a_denied_path_never_opens() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair();
    let denied = &pair.call(&["denied"])["denied"];
    assert_eq!((&denied["status"], &denied["error"]), (&403.into(), &"policy_denied".into()), "{denied}");
    assert!(denied["body"].as_str().is_some_and(|body| body.contains("Decision ")), "{denied}");
    assert!(!pair.server.log().contains("open"), "{}", pair.server.log());
    // What was judged as GET is not a way in for other methods: the handshake is a GET or it is none.
    let metrics = pair.mesh.sidecar("orders").metrics();
    assert_eq!(metrics.value("postern_decisions_total{effect=\"deny\"}"), 1.0);
}

#[test]
fn other_upgrades_are_not_passed_on() {
    let pair = pair();
    let outbound = pair.mesh.sidecar("web").outbound();
    let head = "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nSec-WebSocket-Version: 13\r\n";
    for (what, fields) in [
        ("no key", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        ("a short key", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abcd\r\n"),
    ] {
        let answer = wire::exchange(outbound, format!("{head}{fields}\r\n").as_bytes());
        assert_eq!(wire::status(&answer), 403, "{what}: {}", String::from_utf8_lossy(&answer));
    }
    // h2c, and names nobody knows: a plain request, the upgrade gone. The server refuses what is no handshake.
    for upgrade in ["h2c", "TLS/1.0", "foo"] {
        let fields = format!(
            "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABk\r\n"
        );
        let answer = wire::exchange(outbound, format!("{head}{fields}\r\n").as_bytes());
        assert_ne!(wire::status(&answer), 101, "{upgrade}: {}", String::from_utf8_lossy(&answer));
    }
    assert!(!pair.server.log().contains("open"), "{}", pair.server.log());
}

#[test]
fn a_policy_change_resets_only_what_lost_permission() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair();
    let mut command = pair.client(&["watch"]);
    let child = std::thread::spawn(move || foreign::run(&mut command, Duration::from_secs(60)));
    let open = || pair.mesh.sidecar("orders").admin("/v1/connections").to_string().contains("/watched");
    wait::until("the WebSocket is open", wait::PATIENCE, open);
    pair.mesh.change("policy.yaml", &POLICY.replace("methods: [GET]", "methods: [GET, POST]"));
    wait::stays("a change that keeps the permission keeps the stream", Duration::from_millis(500), open);
    pair.mesh.change("policy.yaml", &POLICY.replace("\"/watched\"", "\"/other\""));
    let run = child.join().expect("the client's thread does not panic");
    let ended = &results(&run)["watch"];
    assert_eq!(ended["close_frame"], false, "it was taken away, not closed: {ended}");
    assert!(ended["count"].as_u64().is_some_and(|count| count > 3), "{ended}");
    wait::until("the server's side ends too", wait::PATIENCE, || pair.server.log().contains("closed"));
}
