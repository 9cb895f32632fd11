//! Calls that would come back to the sidecar that makes them.

use postern_tests::{Answer, Mesh, Origin, Plan, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: orders-itself
    from: [{serviceAccounts: [orders]}]
"#;

/// One sidecar, and services that lead to it by each of its doors.
fn alone() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http").admin_port();
    let address = plan.address("orders");
    plan.document("policy.yaml", POLICY);
    let service = |name: &str, endpoints: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports:\n  \
             - {{port: 80, targetPort: 8080, protocol: http}}\n  - {{port: 9000, targetPort: 9000, protocol: tcp}}\n  \
             endpoints: [{endpoints}]\n"
        )
    };
    let mut services = service("orders", &format!("{{address: {address}}}"));
    for (name, port) in [("out", 24_140), ("health", 24_191), ("admin", 24_190)] {
        services.push_str(&service(name, &format!("{{address: {address}, meshPort: {port}}}")));
    }
    let both = format!("{{address: {address}, meshPort: 24140}}, {{address: {address}}}");
    services.push_str(&service("both", &both));
    // More ways back than a call has attempts.
    let doors: String = [24_140, 24_190, 24_191]
        .iter()
        .map(|port| format!("{{address: {address}, meshPort: {port}}}, "))
        .collect();
    services.push_str(&service("many", &format!("{doors}{{address: {address}}}")));
    plan.document("services.yaml", &services);
    let origin = Origin::http((address, 8080));
    (plan.start(), origin)
}

fn is_loop(what: &str, answer: &Answer) {
    assert_eq!(answer.status, 508, "{what}: {answer:?} {}", answer.text());
    assert_eq!(answer.header("postern-error"), Some("loop"), "{what}: {answer:?}");
    assert!(answer.text().contains("would come back to this sidecar"), "{what}: {}", answer.text());
}

#[test]
fn a_call_to_the_sidecars_own_listener_is_a_loop() {
    let (mesh, origin) = alone();
    let orders = mesh.sidecar("orders");
    let address = mesh.address("orders");
    let mut loops = 0;
    for port in [24_140, 24_143, 24_190, 24_191] {
        for host in [address.to_string(), "0.0.0.0".to_owned(), format!("[::ffff:{address}]")] {
            let url = format!("http://{host}:{port}/");
            is_loop(&url, &mesh.curl("orders", &[&url]));
            // Without a proxy's manners, Host tells.
            is_loop(&url, &mesh.curl_by_host("orders", &[&url]));
            is_loop(&url, &mesh.curl_by_host("orders", &["--http2-prior-knowledge", &url]));
            let connect =
                format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
            let tunnel = wire::exchange(orders.outbound(), connect.as_bytes());
            assert_eq!(wire::status(&tunnel), 508, "{}", String::from_utf8_lossy(&tunnel));
            loops += 4;
        }
    }
    let metric = "postern_failures_total{direction=\"outbound\",reason=\"loop\"}";
    assert_eq!(orders.metrics().value(metric), f64::from(loops));
    // Another's port is none of ours: nobody has declared it, that is all.
    let other = mesh.curl("orders", &[&format!("http://{}:24140/", mesh.spare_address(0))]);
    assert_eq!((other.status, other.header("postern-error")), (403, Some("unknown_service")));
    assert!(origin.requests().is_empty());
}

#[test]
fn a_service_whose_endpoint_is_the_way_out_is_a_loop_and_a_call_to_oneself_is_none() {
    let (mesh, origin) = alone();
    for name in ["out", "health", "admin"] {
        is_loop(name, &mesh.curl("orders", &[&format!("http://{name}.shop/")]));
        let connect = format!(
            "CONNECT {name}.shop:9000 HTTP/1.1\r\nHost: {name}.shop:9000\r\nConnection: close\r\n\r\n"
        );
        let tunnel = wire::exchange(mesh.sidecar("orders").outbound(), connect.as_bytes());
        assert_eq!(wire::status(&tunnel), 508, "{}", String::from_utf8_lossy(&tunnel));
    }
    assert!(origin.requests().is_empty());
    assert_eq!(mesh.curl("orders", &["http://orders.shop/"]).status, 200);
    // A good endpoint beside a bad one is found, whichever is drawn first.
    for _ in 0..8 {
        assert_eq!(mesh.curl("orders", &["http://both.shop/"]).status, 200);
        assert_eq!(mesh.curl("orders", &["http://many.shop/"]).status, 200);
    }
    assert_eq!(origin.requests().len(), 17);
}
