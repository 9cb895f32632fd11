//! Upgrades by name through a sidecar pair, between Python's own HTTP client and server, spoken as Docker's clients do.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_tests::{Mesh, Peer, Plan, Process, foreign, wait};
use serde_json::Value;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: docker, namespace: shop}
spec:
  target: {selector: {app: docker}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
    to:
    - methods: [POST]
      paths: [/attach, /other-name, /no-name, /not-nominated, /success, /busy]
      ports: [8080]
    - {methods: [GET, PUT], paths: [/exec], ports: [8080]}
"#;

struct Pair {
    // Dropped first: it prints its log from the mesh's directory.
    server: Process,
    mesh: Mesh,
}

/// `listed`: what the callee's own port lists; the Service lists tcp and spdy/3.1.
fn pair(listed: &[&str]) -> Pair {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("docker").serves(80, 8080, "http").upgrades(listed);
    plan.document("policy.yaml", POLICY);
    let address = plan.address("docker");
    let services = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: docker, namespace: shop}}\nspec:\n  \
         identity: spiffe://demo.postern/ns/shop/sa/docker\n  ports:\n  \
         - {{port: 80, targetPort: 8080, protocol: http, upgrades: [tcp, spdy/3.1]}}\n  \
         endpoints: [{{address: {address}}}]\n"
    );
    plan.document("services.yaml", &services);
    let mesh = plan.start();
    let (python, script) = foreign::python("upgrade_server.py");
    let server = Process::start("upgrade_server", &python, &mesh.directory().join("server.log"), |command| {
        command.arg(script).arg(address.to_string()).arg("8080");
    });
    wait::until("the server listens", wait::PATIENCE, || server.log().contains("listening"));
    Pair { server, mesh }
}

impl Pair {
    fn call(&self, cases: &[&str]) -> BTreeMap<String, Value> {
        let (python, script) = foreign::python("upgrade_client.py");
        let outbound = self.mesh.sidecar("web").outbound();
        let mut command = std::process::Command::new(python);
        command.arg(script).arg(outbound.ip().to_string()).arg(outbound.port().to_string());
        command.arg("http://docker.shop").args(cases);
        let run = foreign::run(&mut command, Duration::from_secs(120));
        assert_eq!(run.code, 0, "the client failed: {}\n{}", run.stderr, run.text());
        let result = |line: &str| -> Option<(String, Value)> {
            let value: Value = serde_json::from_str(line).ok()?;
            Some((value["case"].as_str()?.to_owned(), value))
        };
        run.text().lines().filter_map(result).collect()
    }
}

#[test]
fn what_a_port_lists_becomes_a_byte_stream_of_the_method_that_was_judged() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair(&["tcp", "spdy/3.1"]);
    let results = pair.call(&["POST,/attach,tcp", "GET,/exec,SPDY/3.1"]);
    for (case, method, name) in
        [("POST,/attach,tcp", "POST", "tcp"), ("GET,/exec,SPDY/3.1", "GET", "spdy/3.1")]
    {
        let result = &results[case];
        assert_eq!((&result["status"], &result["same"]), (&101.into(), &true.into()), "{result}");
        let hello = &result["hello"];
        assert_eq!(hello["method"], method, "{hello}");
        assert_eq!(
            (&hello["fields"]["upgrade"], &hello["fields"]["connection"]),
            (&name.into(), &"Upgrade".into())
        );
        let caller = "URI=spiffe://demo.postern/ns/shop/sa/web";
        assert_eq!(hello["fields"]["x-forwarded-client-cert"], caller, "{hello}");
        assert_eq!(hello["fields"]["postern-method"], Value::Null, "{hello}");
        // What the workload says beside its name comes through; what belongs to its hop does not.
        assert_eq!(
            (&result["fields"]["upgrade"], &result["fields"]["content-length"]),
            (&name.into(), &Value::Null)
        );
        assert_eq!(result["fields"]["content-type"], "application/vnd.docker.raw-stream");
    }
    wait::until("no stream is left", wait::PATIENCE, || {
        ["web", "docker"]
            .iter()
            .all(|name| pair.mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
}

#[test]
fn an_upgrade_is_allowed_to_whom_its_method_and_path_are() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair(&["tcp"]);
    // The client says `Postern-Method: GET` of each.
    let results = pair.call(&["GET,/attach,tcp", "POST,/exec,tcp", "POST,/elsewhere,tcp"]);
    for (case, result) in &results {
        assert_eq!(result["status"], 403, "{case}: {result}");
        assert_eq!(result["fields"]["postern-error"], "policy_denied", "{result}");
        assert!(result["body"].as_str().is_some_and(|body| body.contains("Decision ")), "{case}: {result}");
    }
    assert_eq!(results.len(), 3);
    assert!(!pair.server.log().contains("asked"), "{}", pair.server.log());
    let metrics = pair.mesh.sidecar("docker").metrics();
    assert_eq!(metrics.value("postern_decisions_total{effect=\"deny\"}"), 3.0);
    // And a stream that loses its permission is reset.
    let mut stream = postern_tests::wire::connect(pair.mesh.sidecar("web").outbound());
    let ask =
        b"POST /attach HTTP/1.1\r\nHost: docker.shop\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\nearly";
    std::io::Write::write_all(&mut stream, ask).expect("the sidecar reads");
    let head = postern_tests::wire::read_head(&mut stream);
    assert_eq!(postern_tests::wire::status(head.as_bytes()), 101, "{head}");
    let mut said = Vec::new();
    while !said.ends_with(b"early") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut stream, &mut byte).expect("bytes sent with the head are echoed too");
        said.push(byte[0]);
    }
    pair.mesh.change("policy.yaml", &POLICY.replace("/attach, ", ""));
    let ended = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    assert!(ended.is_err(), "it was reset, not closed: {ended:?}");
}

#[test]
fn what_no_port_lists_goes_as_a_plain_request() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair(&["tcp"]);
    let cases = [
        "POST,/attach,foo",
        "POST,/attach,h2c",
        "POST,/attach,TLS/1.0",
        "POST,/attach,tcp spdy/3.1",
        // Listed, but of a method that is not carried.
        "PUT,/exec,tcp",
    ];
    let results = pair.call(&cases);
    assert_eq!(results.len(), cases.len(), "{results:?}");
    for (case, result) in results {
        assert_eq!(result["status"], 200, "{case}: {result}");
        let seen: Value =
            serde_json::from_str(result["body"].as_str().unwrap_or_default()).unwrap_or_default();
        assert!(seen["method"].is_string() && seen["fields"]["upgrade"].is_null(), "{case}: {result}");
    }
    assert!(!pair.server.log().contains("switched"), "{}", pair.server.log());
    // The callee's own port must list it too; a body leaves no place where the byte stream would begin.
    for case in ["GET,/exec,spdy/3.1", "POST,/attach,tcp,body"] {
        let results = pair.call(&[case]);
        let result = results.values().next().expect("one case, one result");
        assert_eq!(result["status"], 403, "{case}: {result}");
        assert!(
            result["body"].as_str().is_some_and(|body| body.contains("upgrade is not allowed")),
            "{result}"
        );
    }
}

#[test]
fn a_workload_that_does_not_answer_the_upgrade_is_not_believed() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair(&["tcp"]);
    let wrong = ["POST,/other-name,tcp", "POST,/no-name,tcp", "POST,/not-nominated,tcp", "POST,/success,tcp"];
    let results = pair.call(&wrong);
    assert_eq!(results.len(), wrong.len(), "{results:?}");
    for (case, result) in results {
        assert_eq!(result["status"], 502, "{case}: {result}");
    }
    // No is an answer.
    let results = pair.call(&["POST,/busy,tcp"]);
    let busy = &results["POST,/busy,tcp"];
    assert_eq!(busy["status"], 409, "{busy}");
    assert!(busy["body"].as_str().is_some_and(|body| body.contains("/busy")), "{busy}");
}

/// What a sidecar of ours would never send, and a peer with a valid identity can.
#[test]
fn a_peer_cannot_choose_what_is_judged() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let pair = pair(&["tcp"]);
    let peer = Peer::connect(&pair.mesh, "web", "docker", pair.mesh.sidecar("docker").inbound());
    for (protocol, path, methods, status) in [
        ("tcp", "/attach", &["POST"][..], 200),
        ("TCP", "/attach", &["POST"], 200),
        ("tcp", "/attach", &["GET"], 403),
        ("tcp", "/attach", &[], 403),
        ("tcp", "/attach", &["POST", "GET"], 403),
        ("tcp", "/attach", &["GET", "POST"], 403),
        ("tcp", "/exec", &["PUT"], 403),
        ("h2c", "/attach", &["POST"], 403),
        ("spdy/3.1", "/attach", &["POST"], 403),
        ("tcp, h2c", "/attach", &["POST"], 403),
        // Judged, and asked for, as a GET, whatever else is said.
        ("websocket", "/attach", &["POST"], 403),
    ] {
        let mut head = http::Request::new(());
        *head.method_mut() = http::Method::CONNECT;
        *head.uri_mut() = format!("http://docker.shop{path}").parse().expect("it is a URI");
        head.headers_mut().insert("postern-port", 8080.into());
        for method in methods {
            head.headers_mut().append("postern-method", method.parse().expect("it is a value"));
        }
        head.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        let (answer, _stream) = peer.open(head);
        assert_eq!(answer.status(), status, "{protocol} {path} {methods:?}");
    }
    let log = pair.server.log();
    assert_eq!(log.matches("asked POST /attach").count(), 2, "{log}");
    assert_eq!(log.matches("asked").count(), 2, "nothing else was asked for: {log}");
}
