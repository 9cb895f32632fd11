//! Certificates that live for seconds, renewed again and again under load: nobody may notice.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

use postern_tests::{Load, Mesh, Nginx, Origin, Plan, foreign, is_long, openssl, wait, wire};

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

/// The serial numbers that orders has seen its peers prove.
fn peer_serials(mesh: &Mesh) -> Vec<String> {
    let connections = mesh.sidecar("orders").admin("/v1/connections")["connections"].clone();
    let all = connections.as_array().cloned().unwrap_or_default();
    let inbound = all.iter().filter(|connection| connection["direction"] == "inbound");
    inbound
        .map(|connection| {
            assert_eq!(connection["peer"], "spiffe://demo.postern/ns/shop/sa/web", "{connection}");
            connection["serial"].as_str().unwrap_or_default().to_owned()
        })
        .collect()
}

/// The serial number of the certificate that a stranger is shown at a mesh listener.
fn served(mesh: &Mesh, name: &str) -> String {
    let address = mesh.sidecar(name).inbound().to_string();
    let shown = openssl(&["s_client", "-connect", &address, "-alpn", "postern/1"], b"");
    let serial = openssl(&["x509", "-noout", "-serial"], &shown.stdout);
    let text = serial.text();
    let serial = text.trim().strip_prefix("serial=").unwrap_or_else(|| panic!("{name}: {}", shown.text()));
    serial.to_ascii_lowercase()
}

/// One long response and nothing else: no other request brings a fresh connection about, so each renewal must.
#[test]
fn a_lone_stream_outlives_its_certificates() {
    let mut plan = Plan::new();
    plan.ttl("6s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").limit("expiryGrace", "1s");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let mut endless = wire::connect(mesh.sidecar("web").outbound());
    std::io::Write::write_all(&mut endless, b"GET /endless HTTP/1.1\r\nHost: orders.shop\r\n\r\n")
        .expect("the sidecar reads");
    assert!(wire::read_head(&mut endless).starts_with("HTTP/1.1 200"));
    let (start, mut serials) = (std::time::Instant::now(), BTreeSet::new());
    while start.elapsed() < Duration::from_secs(24) {
        endless.read_exact(&mut [0; 10]).expect("the endless response goes on");
        serials.extend(peer_serials(&mesh));
        wait::pause(Duration::from_millis(100));
    }
    assert_eq!((origin.requests().len(), origin.last().ended), (1, None));
    assert!(serials.len() >= 5, "web has proven {} certificates in four lives", serials.len());
    // Of the connections in between nothing is left: the first carries the stream, the last is the newest proof.
    assert!(peer_serials(&mesh).len() <= 3, "{:?}", peer_serials(&mesh));
}

#[test]
fn renewals_under_load_break_nothing() {
    if !foreign::need(&["h2load", "nginx", "openssl"]) {
        return;
    }
    let (ttl, time) = if is_long() { ("20s", 70) } else { ("8s", 28) };
    let time = Duration::from_secs(time);
    let mut plan = Plan::new();
    plan.ttl(ttl);
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(81, 8081, "http");
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    let origin = Origin::http((address, 8081));
    let mesh = plan.start();
    let _nginx = Nginx::start(&mesh, (address, 8080), "location / { return 200 \"yes\\n\"; }");
    assert!(mesh.sidecar("web").notes("test_mode"), "short lives are for tests, and /ready says so");

    // A response that never ends, begun under the first certificates.
    let mut endless = wire::connect(mesh.sidecar("web").outbound());
    std::io::Write::write_all(&mut endless, b"GET /endless HTTP/1.1\r\nHost: orders.shop:81\r\n\r\n")
        .expect("the sidecar reads");
    assert!(wire::read_head(&mut endless).starts_with("HTTP/1.1 200"));

    let load = Load::start(&mesh, "web", "http://orders.shop/", time);
    let (mut peers, mut web, mut orders) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    while !load.is_over() {
        peers.extend(peer_serials(&mesh));
        web.insert(served(&mesh, "web"));
        orders.insert(served(&mesh, "orders"));
        endless.read_exact(&mut [0; 10]).expect("the endless response goes on");
        wait::pause(Duration::from_millis(200));
    }
    let loaded = load.end();
    assert_eq!(loaded.failed, 0, "{}", loaded.summary);
    assert_eq!(loaded.statuses.keys().collect::<Vec<_>>(), [&200], "{}", loaded.summary);
    assert!(loaded.answered() > 1_000, "that was no load: {}", loaded.summary);

    // The first of each was there before: five new ones.
    assert!(peers.len() >= 6, "orders has seen its peer prove {} certificates", peers.len());
    assert!(web.len() >= 5 && orders.len() >= 5, "web has served {}, orders {}", web.len(), orders.len());
    let issued = mesh.control.certificates().len();
    assert!(issued >= web.len() + orders.len(), "{issued}");
    // A peer proves the very certificates that it serves.
    assert!(peers.intersection(&web).count() >= 5, "proven {peers:?}, served {web:?}");

    // The endless response ran on its first connection, past the end of the certificates that opened it.
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(origin.last().ended, None);
    endless.read_exact(&mut [0; 1_000]).expect("the endless response goes on");
    // At its end h2load takes back what it has in flight, 16 requests at most. Nothing else may have failed.
    for sidecar in [mesh.sidecar("web"), mesh.sidecar("orders")] {
        let metrics = sidecar.metrics();
        let failures: Vec<(&str, f64)> = metrics
            .iter()
            .filter(|(name, value)| name.starts_with("postern_failures_total") && *value > 0.0)
            .collect();
        let taken_back = |(name, count): &(&str, f64)| name.contains("reason=\"canceled\"") && *count <= 16.0;
        assert!(failures.iter().all(taken_back), "{failures:?}");
    }
    println!(
        "{} requests; peers {}, web {}, orders {}",
        loaded.answered(),
        peers.len(),
        web.len(),
        orders.len()
    );
}
