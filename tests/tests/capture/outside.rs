//! Redirected calls out of the mesh, to services that documents know by their hosts alone.

use std::process::Command;

use postern_tests::pods::{self, OUTSIDE};
use postern_tests::{Dns, Nginx, Origin, WebCa, foreign, wait};

use super::{POLICY, Pods};

/// Where the test serves nothing that is meant.
const ELSEWHERE: &str = "10.77.0.99";

fn services(ca: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: partner, namespace: shop}}
spec:
  external: true
  hosts: [api.partner.example, \"*.files.partner.example\"]
  ports:
  - {{port: 443, protocol: tls}}
  - {{port: 80, protocol: http}}
  - {{port: 8443, targetPort: 443, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: ledger-db, namespace: shop}}
spec:
  external: true
  hosts: [other-db.partner.example, db.partner.example]
  ports: [{{port: 5432, protocol: tcp}}]
"
    )
}

const EGRESS: &str = "apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: web-out, namespace: shop}
spec:
  source: {selector: {app: web}}
  action: Allow
  rules:
  - name: partner
    to: [{hosts: [api.partner.example, \"*.files.partner.example\"], protocol: Http, methods: [GET]}, {hosts: [api.partner.example], protocol: Tls}]
  - {name: db, to: [{hosts: [db.partner.example], protocol: Tcp}]}
  - {name: mesh, to: [{services: [orders]}]}
";

#[test]
fn what_is_outside_is_found_by_its_host_and_never_where_the_workload_thinks() {
    if !pods::inside("outside::what_is_outside_is_found_by_its_host_and_never_where_the_workload_thinks")
        || !foreign::need(&["nginx", "openssl"])
    {
        return;
    }
    let run = |words: &[&str]| {
        let ended = Command::new(words[0]).args(&words[1..]).status().expect("it starts");
        assert!(ended.success(), "{words:?}");
    };
    let directory = tempfile::tempdir().expect("there is room");
    let ca = WebCa::new(directory.path());
    for path in [directory.path(), &directory.path().join("web-ca")] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("it is ours");
    }
    // The mounts are this test's own.
    let resolv = directory.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\noptions attempts:1 timeout:1\n", OUTSIDE[0]))
        .expect("there is room");
    run(&["mount", "--bind", &resolv.display().to_string(), "/etc/resolv.conf"]);
    run(&["ip", "addr", "add", &format!("{ELSEWHERE}/24"), "dev", "pods"]);
    let at = OUTSIDE[0].parse().expect("an address");
    let dns = Dns::start(at);
    for host in ["api.partner.example", "a.files.partner.example", "db.partner.example"] {
        dns.set(host, &[OUTSIDE[0]]);
    }
    dns.set("other-db.partner.example", &["192.0.2.77"]);
    let services = services(&ca.root().display().to_string());
    let pods = Pods::planned(
        POLICY,
        |plan| {
            plan.document("outside.yaml", &services).document("egress.yaml", EGRESS);
        },
        &[],
    );
    let good = ca.server("good", &["api.partner.example"], (-60, 3_600));
    let _nginx = Nginx::start(
        &pods.mesh,
        (at, 80),
        &format!(
            "listen {at}:443 ssl; ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ return 200 \"outside $scheme $http_host $remote_addr\"; }}",
            good.chain.display(),
            good.key.display()
        ),
    );
    let db = Origin::echo((at, 5_432));
    let elsewhere: Vec<Origin> = [80, 443, 5_432, 8_443]
        .map(|port| Origin::silent((ELSEWHERE.parse().expect("an address"), port)))
        .into();

    let wrongly = |host: &str, port: u16| format!("{host}:{port}:{ELSEWHERE}");
    for (words, expected) in [
        (vec!["http://api.partner.example/"], Ok("outside http api.partner.example 10.77.0.2")),
        (vec!["http://a.files.partner.example/"], Ok("outside http a.files.partner.example 10.77.0.2")),
        (vec!["-k", "https://api.partner.example/"], Ok("outside https api.partner.example 10.77.0.2")),
        (vec!["http://api.partner.example:8443/"], Ok("outside https api.partner.example:8443 10.77.0.2")),
        (vec!["-X", "POST", "http://api.partner.example:8443/"], Err((403, "Decision"))),
        // By IPv6 as well, where nothing is.
        (
            vec!["--resolve", "api.partner.example:80:[fd77::77]", "http://api.partner.example/"],
            Ok("outside http api.partner.example 10.77.0.2"),
        ),
        (
            vec!["--resolve", &wrongly("api.partner.example", 80), "http://api.partner.example/"],
            Ok("outside http api.partner.example 10.77.0.2"),
        ),
        (
            vec!["--resolve", &wrongly("api.partner.example", 443), "-k", "https://api.partner.example/"],
            Ok("outside https api.partner.example 10.77.0.2"),
        ),
        // No such host, none that rules allow, and names of the mesh: not one of them is believed.
        (
            vec!["--resolve", &wrongly("evil.example", 80), "http://evil.example/"],
            Err((403, "No service of the mesh")),
        ),
        (vec!["--resolve", &wrongly("evil.example", 443), "-k", "https://evil.example/"], Err((0, "reset"))),
        (
            vec![
                "--resolve",
                &wrongly("a.files.partner.example", 443),
                "-k",
                "https://a.files.partner.example/",
            ],
            Err((0, "reset")),
        ),
        (vec!["-H", "Host: orders.shop", "http://10.77.0.99/orders"], Err((403, "No service of the mesh"))),
        (vec!["-H", "Host: partner.shop", "http://10.77.0.99/"], Err((403, "No service of the mesh"))),
        (vec!["http://10.77.0.99:8443/"], Err((403, "No service of the mesh"))),
    ] {
        let (status, body) = pods.web.curl(&words);
        match expected {
            Ok(text) => assert_eq!((status, body.as_str()), (200, text), "{words:?}"),
            Err((expected, text)) => {
                assert_eq!(status, expected, "{words:?}: {body}");
                assert!(body.contains(text), "{words:?}: {body}");
            }
        }
    }
    // An address in the mesh stays what it is, whatever the request says.
    let (status, body) = pods.web.curl(&["-H", "Host: api.partner.example", "http://10.77.0.3:8080/orders"]);
    assert!(status == 200 && body.contains("10.77.0.3"), "{status} {body}");

    assert_eq!(pods.web.call(&["tcp", OUTSIDE[0], "5432", "a question"]), "got 'a question'");
    for address in [ELSEWHERE, "192.0.2.77"] {
        let got = pods.web.call(&["tcp", address, "5432", "a question"]);
        assert!(got.starts_with("failed ConnectionReset"), "{address}: {got}");
    }
    assert_eq!(db.connections(), 1);
    for origin in &elsewhere {
        assert_eq!((origin.connections(), origin.bytes()), (0, 0), "{}", origin.address());
    }
    // Another workload's policy lets nothing out.
    for words in [&["http://api.partner.example/"][..], &["-k", "https://api.partner.example/"]] {
        let (status, body) = pods.orders.curl(words);
        assert!(matches!(status, 403 | 0), "{words:?}: {status} {body}");
    }
    pods.mesh.change("egress.yaml", "# nothing goes out\n");
    wait::until("nothing is allowed out any more", wait::PATIENCE, || {
        pods.web.curl(&["http://api.partner.example/"]).0 == 403
    });
}
