//! The admin socket and `postern proxy`, which speaks to it: what it shows, what it refuses, and with which exit code.

use std::process::{Command, Output};

use postern_tests::{Mesh, Origin, Plan, postern, wire};

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
        (&["explain", "--port", "8080"], 1, "denied"),
    ] {
        let asked = ask(&mesh, arguments);
        let said = text(&asked.stdout);
        assert_eq!(asked.status.code(), Some(code), "{arguments:?}: {said}{}", text(&asked.stderr));
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    for (arguments, says) in [
        (&["explain", "--from", "web", "--port", "8080", "GET", "/"][..], "from:"),
        (&["explain", "--from", "shop/web", "--port", "8080", "GET", "/.."], "path:"),
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
        postern_tests::wait::until("the next generation", postern_tests::wait::PATIENCE, || {
            orders.generation() > before
        });
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
        postern_tests::wait::until("requests and denial are logged", postern_tests::wait::PATIENCE, || {
            told() == lines
        });
        let log = sidecar.log();
        assert!(log.lines().all(|line| line.len() < 1_000) && !log.contains("secret"), "{log}");
    }
}
