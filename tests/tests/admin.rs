//! The admin socket and `postern proxy`, which speaks to it: what it shows, what it refuses, and with which exit code.

use std::process::{Command, Output};

use postern_tests::{Mesh, Origin, Plan, postern, wait, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: reads
    from: [{serviceAccounts: [web]}]
    to: [{methods: [GET]}]
  - name: office
    from: [{spiffe: ["spiffe://demo.postern/ns/shop/sa/clerk"], cidrs: ["10.1.0.0/16"]}]
"#;

fn pair() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn ask(mesh: &Mesh, arguments: &[&str]) -> Output {
    let mut command = Command::new(postern());
    command.args(["proxy", "--socket"]).arg(mesh.sidecar("orders").socket()).args(arguments);
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn explain_says_by_its_exit_code_what_would_happen() {
    let (mesh, _origin) = pair();
    for (arguments, code, says) in [
        (&["explain", "--from", "shop/web", "--port", "8080", "GET", "/x"][..], 0, "shop/orders/reads"),
        (
            &["explain", "--from", "spiffe://demo.postern/ns/shop/sa/web", "--port", "8080", "GET", "/"],
            0,
            "reads",
        ),
        (&["explain", "--from", "shop/web", "--port", "8080", "PUT", "/x"], 1, "denied"),
        (&["explain", "--from", "shop/clerk", "--port", "8080", "PUT", "/"], 1, "denied"),
        (
            &["explain", "--from", "shop/clerk", "--address", "10.1.2.3", "--port", "8080", "PUT", "/"],
            0,
            "office",
        ),
        // Before any rule: the port speaks HTTP, and this has no form.
        (&["explain", "--port", "8080"], 1, "connect_to_http"),
        (&["explain", "--from", "shop/web", "--port", "8080", "GET", "/.."], 1, "bad_request"),
        (&["explain", "--from", "shop/web", "--port", "9999", "GET", "/"], 1, "port_not_declared"),
    ] {
        let asked = ask(&mesh, arguments);
        let said = text(&asked.stdout);
        assert_eq!(asked.status.code(), Some(code), "{arguments:?}: {said}{}", text(&asked.stderr));
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    for (arguments, says) in [
        (&["explain", "--from", "web", "--port", "8080", "GET", "/"][..], "from:"),
        (&["explain", "--from", "shop/web", "--port", "8080", "GET"], "METHOD and PATH"),
        (&["set-log", "loud"], "no level"),
    ] {
        let refused = ask(&mesh, arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused.stdout));
        assert!(refused.stdout.is_empty(), "{arguments:?}: {}", text(&refused.stdout));
        assert!(text(&refused.stderr).contains(says), "{arguments:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn the_log_changes_while_it_runs() {
    let (mesh, _origin) = pair();
    let level = || mesh.sidecar("orders").admin("/v1/log")["level"].clone();
    assert_eq!(ask(&mesh, &["set-log", "warn,postern::access=debug"]).status.code(), Some(0));
    assert_eq!(level(), "warn,postern::access=debug");
    assert_eq!(ask(&mesh, &["set-log", "loud"]).status.code(), Some(2));
    assert_eq!(level(), "warn,postern::access=debug");
}

#[test]
fn the_configuration_is_shown_whole_and_without_secrets() {
    let (mesh, _origin) = pair();
    let shown = mesh.sidecar("orders").admin("/v1/config");
    assert_eq!(shown["identity"], "spiffe://demo.postern/ns/shop/sa/orders");
    assert_eq!(shown["limits"]["connectWorkload"], 1.0);
    assert_eq!(shown["limits"]["meshStreams"], 250);
    assert!(shown["admin"]["socket"].is_string() && shown["log"]["level"].is_string(), "{shown}");
    let trust = &shown["controlPlane"]["trust"];
    assert!(trust["trustBundle"].is_string() || trust["rootSha256"].is_string(), "{shown}");
    assert!(!shown.to_string().contains("PRIVATE"), "{shown}");
}

/// More generations than are kept whole go by: what allowed a request is still known.
#[test]
fn an_old_allowance_keeps_the_name_of_its_rule() {
    let (mesh, _origin) = pair();
    let request = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
    assert_eq!(wire::status(&wire::exchange(mesh.sidecar("web").outbound(), request)), 200);
    let orders = mesh.sidecar("orders");
    for round in 0..20 {
        let before = orders.generation();
        mesh.documents.write("policy.yaml", &format!("{POLICY}# {round}\n"));
        wait::until("the next generation", wait::PATIENCE, || orders.generation() > before);
    }
    let decisions = orders.admin("/v1/decisions")["decisions"].clone();
    let oldest = decisions.as_array().and_then(|all| all.last()).expect("the request was judged");
    assert_eq!((&oldest["effect"], &oldest["generation"]), (&"allow".into(), &1.into()), "{oldest}");
    assert_eq!(oldest["rule"], "shop/orders/reads", "{oldest}");
}

/// A caller chooses the length of its paths, and must not choose the length of the log.
#[test]
fn long_paths_do_not_fill_the_log() {
    let mut plan = Plan::new();
    plan.sidecar("web").log("info,postern::access=debug");
    plan.sidecar("orders").serves(80, 8080, "http").log("info,postern::access=debug");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let path = "/a".repeat(3_000);
    for (method, status) in [("GET", 200), ("PUT", 403)] {
        let request = format!(
            "{method} {path}?token=secret HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n"
        );
        let answer = wire::exchange(mesh.sidecar("web").outbound(), request.as_bytes());
        assert_eq!(wire::status(&answer), status, "{}", text(&answer));
    }
    for (name, lines) in [("web", 2), ("orders", 3)] {
        let sidecar = mesh.sidecar(name);
        let told = || sidecar.log().lines().filter(|line| line.contains("… (6000 bytes)")).count();
        wait::until("requests and denial are logged", wait::PATIENCE, || told() == lines);
        let log = sidecar.log();
        assert!(log.lines().all(|line| line.len() < 1_000) && !log.contains("secret"), "{log}");
    }
}

const HEADER: &str = "X-Postern-Admin: 1";

fn with_a_port() -> (Mesh, Origin, String) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").admin_port();
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let port = format!("http://{}:24190", plan.address("orders"));
    (plan.start(), origin, port)
}

#[test]
fn the_admin_port_shows_what_the_socket_shows_and_no_secrets() {
    let (mesh, _origin, port) = with_a_port();
    let request = b"GET /orders?token=secret HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
    assert_eq!(wire::status(&wire::exchange(mesh.sidecar("web").outbound(), request)), 200);
    let orders = mesh.sidecar("orders");
    let token = std::fs::read_to_string(mesh.directory().join("orders.token")).expect("it was made");
    for page in ["version", "config", "identity", "policy", "services", "connections", "decisions", "log"] {
        let path = format!("/v1/{page}");
        let shown = mesh.curl_directly(&["-H", HEADER, &format!("{port}{path}")]);
        assert_eq!((shown.status, shown.exit), (200, 0), "{path}: {}", shown.text());
        if !["connections", "identity"].contains(&page) {
            assert_eq!(shown.json(), orders.admin(&path), "{path}");
        }
        for secret in ["PRIVATE", "secret", token.trim()] {
            assert!(!shown.text().contains(secret), "{path}: {}", shown.text());
        }
    }
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(mesh.curl_directly(&["-H", HEADER, &format!("{port}{path}")]).status, 200, "{path}");
    }
    assert_eq!(orders.admin("/v1/config")["admin"]["address"], port.trim_start_matches("http://"));
    let none = &mesh.sidecar("web").admin("/v1/config")["admin"]["address"];
    assert!(none.is_null(), "there is none unless it is asked for: {none}");
    assert!(std::net::TcpStream::connect((mesh.address("web"), 24_190)).is_err());
}

#[test]
fn the_admin_port_changes_nothing_and_answers_no_web_page() {
    let (mesh, _origin, port) = with_a_port();
    let config = format!("{port}/v1/config");
    let drain = format!("{port}/v1/drain");
    let rebound = format!("Host: rebound.example:{}", 24_190);
    for (arguments, status, says) in [
        (&[&*config][..], 403, HEADER),
        (&["-H", HEADER, "-H", &rebound, &config], 421, "localhost:24190"),
        (&["-H", HEADER, "-H", "Host: 127.0.0.1", &config], 421, "localhost:24190"),
        (&["-H", HEADER, "-X", "POST", &drain], 405, "only reads"),
        (
            &["-H", HEADER, "-X", "PUT", "-d", "{\"level\":\"off\"}", &format!("{port}/v1/log")],
            405,
            "only reads",
        ),
        (
            &[
                "-X",
                "OPTIONS",
                "-H",
                "Origin: http://evil.example",
                "-H",
                "Access-Control-Request-Headers: x-postern-admin",
                "-H",
                "Access-Control-Request-Private-Network: true",
                &config,
            ],
            405,
            "only reads",
        ),
        (&["-H", HEADER, &format!("{port}/v1/drain")], 405, "another method"),
        (&["-H", HEADER, &format!("{port}/v1/nothing")], 404, "/v1/config"),
    ] {
        let answer = mesh.curl_directly(arguments);
        assert_eq!(answer.status, status, "{arguments:?}: {}", answer.text());
        assert!(
            answer.json()["error"].as_str().is_some_and(|error| error.contains(says)),
            "{}",
            answer.text()
        );
        let mut names = answer.headers.iter().map(|(name, _)| name);
        assert!(!names.any(|name| name.starts_with("access-control")), "{:?}", answer.headers);
    }
    let head = mesh.curl_directly(&["-I", "-H", HEADER, &config]);
    assert_eq!(head.status, 200);
    let localhost = mesh.curl_directly(&["-H", HEADER, "-H", "Host: localhost:24190", &config]);
    assert_eq!(localhost.status, 200);
    assert!(mesh.sidecar("orders").is_ready(), "nobody drained it");
}

#[test]
fn idle_connections_to_the_admin_port_keep_nobody_out() {
    let (mesh, _origin, port) = with_a_port();
    let _idle: Vec<_> = (0..100).map(|_| wire::connect((mesh.address("orders"), 24_190))).collect();
    let shown = mesh.curl_directly(&["-H", HEADER, &format!("{port}/v1/version")]);
    assert_eq!(shown.status, 200);
    let hits = "postern_limit_hits_total{limit=\"admin_port\"}";
    assert!(mesh.sidecar("orders").metrics().value(hits) >= 30.0);
}
