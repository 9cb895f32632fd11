//! Workloads beside their sidecar that know only SPIFFE, or only Envoy's secret discovery, and renew with it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use postern_tests::{Mesh, Plan, foreign, wait};
use serde_json::Value;

#[path = "workload_api/envoy.rs"]
mod envoy;
#[path = "workload_api/jwt.rs"]
mod jwt;
#[path = "workload_api/rust.rs"]
mod rust;

/// What the foreign client got, a line of JSON each.
fn ask(mesh: &Mesh, name: &str, case: &[&str]) -> Vec<Value> {
    let (python, script) = foreign::python("spiffe_client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(mesh.sidecar(name).workload_socket()).args(case);
    let ran = foreign::run(&mut command, Duration::from_secs(150));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.text().lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

#[test]
fn a_workload_that_knows_only_spiffe() {
    if !foreign::need(&["spiffe", "grpc"]) {
        return;
    }
    let own = geteuid().as_raw();
    let mut plan = Plan::new();
    plan.ttl("5s");
    let orders = plan.sidecar("orders").serves(80, 8080, "http").workload_api("");
    orders.limit("drainMin", "0s").limit("drainMax", "1s");
    plan.sidecar("web").workload_api(&format!(", mode: \"0660\", allow: {{uids: [{}]}}", own + 1));
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");

    let context = &ask(&mesh, "orders", &["context"])[0];
    assert_eq!(context["id"], orders.id());
    assert_eq!(context["key"], true, "{context}");
    assert!(context["chain"].as_u64() >= Some(1), "{context}");
    assert_eq!(context["roots"], 1);
    assert_eq!(ask(&mesh, "orders", &["bundles"])[0]["roots"], 1);

    // One watch across three renewals: five contexts, each with another certificate, the sidecar's own.
    let begun = Instant::now();
    let watched = ask(&mesh, "orders", &["watch", "4"]);
    let serials: BTreeSet<&str> = watched.iter().filter_map(|context| context["serial"].as_str()).collect();
    assert_eq!(serials.len(), 4, "{watched:?}");
    assert!(watched.iter().all(|context| context["key"] == true && context["id"] == orders.id()));
    assert!(begun.elapsed() < Duration::from_secs(60));
    // As its sidecar logs each.
    let log = orders.log();
    for serial in serials {
        assert!(log.contains(&format!("serial=\"{serial}\"")), "{serial}: {log}");
    }

    let refused = &ask(&mesh, "orders", &["without_header"])[0];
    assert_eq!(refused["code"], "INVALID_ARGUMENT", "{refused}");
    let refused = &ask(&mesh, "orders", &["jwt"])[0];
    assert_eq!(refused["code"], "UNIMPLEMENTED", "{refused}");
    assert!(refused["details"].as_str().is_some_and(|text| text.contains("JWT")), "{refused}");

    // Another user's socket: it opens for us, and its owner says no.
    let refused = &ask(&mesh, "web", &["with_header"])[0];
    assert_eq!(refused["code"], "PERMISSION_DENIED", "{refused}");
    assert!(
        refused["details"].as_str().is_some_and(|text| text.contains(&format!("uid {own}"))),
        "{refused}"
    );
    let web = mesh.sidecar("web");
    assert!(web.log().contains("not answered at the workload API"), "{}", web.log());

    let metrics = web.metrics();
    let denied = r#"postern_workload_api_requests_total{method="FetchX509SVID",result="permission_denied"}"#;
    assert_eq!(metrics.value(denied), 1.0);
    let metrics = orders.metrics();
    for (result, method, count) in [
        ("ok", "FetchX509SVID", 2.0),
        ("ok", "FetchX509Bundles", 1.0),
        ("invalid_argument", "FetchX509SVID", 1.0),
        ("unimplemented", "FetchJWTBundles", 1.0),
    ] {
        let name = format!("postern_workload_api_requests_total{{method=\"{method}\",result=\"{result}\"}}");
        assert_eq!(metrics.value(&name), count, "{name}");
    }
    wait::until("the streams end", Duration::from_secs(10), || {
        orders.admin("/v1/identity")["workloadApi"]["streams"] == 0
    });
    assert_eq!(web.admin("/v1/identity")["workloadApi"]["refused"], 1);
    assert_eq!(web.admin("/v1/config")["workloadApi"]["allow"]["uids"][0], own + 1);

    let mode = |name: &str| {
        let meta = std::fs::metadata(mesh.sidecar(name).workload_socket()).expect("the socket is there");
        meta.permissions().mode() & 0o7777
    };
    assert_eq!((mode("orders"), mode("web")), (0o600, 0o660));
    // A killed sidecar leaves its socket behind, and takes it over when it comes back.
    orders.kill();
    assert!(orders.workload_socket().exists());
    orders.restart();
    assert_eq!(ask(&mesh, "orders", &["context"])[0]["id"], orders.id());
    // One that ends takes it along.
    orders.process().signal(Signal::SIGTERM);
    assert!(orders.process().wait(Duration::from_secs(20)).success());
    assert!(!orders.workload_socket().exists());
}
