//! Whoever comes from outside of the mesh.

use postern_tests::pods::{self, OUTSIDE};
use postern_tests::{Answer, wait};

use super::{POLICY, Pods};

fn curl(pods: &Pods, words: &[&str]) -> Answer {
    pods.mesh.curl_directly(&[&["--max-time", "8"][..], words].concat())
}

#[test]
fn a_call_from_outside_lands_in_the_sidecar_and_is_refused() {
    if !pods::inside("strangers::a_call_from_outside_lands_in_the_sidecar_and_is_refused") {
        return;
    }
    let pods = Pods::start();
    let directory = pods.mesh.directory();
    pods.nothing_reaches("calls from outside", || {
        for at in ["10.77.0.3", "[fd77::3]"] {
            for (path, more) in [("/orders", &[][..]), ("/orders", &["--http2-prior-knowledge"])] {
                let answer = curl(&pods, &[&[&*format!("http://{at}:8080{path}")], more].concat());
                assert_eq!(answer.status, 403, "{answer:?}");
                // Which rule or which reason is none of a stranger's business; the id is for whoever it asks.
                assert!(
                    answer.header("postern-decision").is_some() && answer.header("postern-error").is_none()
                );
            }
            // TLS makes no difference, nor does anything that claims to be transport of the mesh.
            assert_eq!(curl(&pods, &["-k", &format!("https://{at}:8080/orders")]).status, 0);
            let answer = curl(
                &pods,
                &[
                    "-H",
                    "postern-port: 8080",
                    "-H",
                    "X-Forwarded-Client-Cert: URI=spiffe://demo.postern/ns/shop/sa/web",
                    &format!("http://{at}:8080/orders"),
                ],
            );
            assert_eq!(answer.status, 403, "{answer:?}");
            // The mesh listener itself is TLS or nothing.
            assert_eq!(curl(&pods, &[&format!("http://{at}:24143/orders")]).status, 0);
            assert_eq!(curl(&pods, &["-k", &format!("https://{at}:24143/orders")]).status, 0);
        }
        for address in ["10.77.0.3", "fd77::3"] {
            // An opaque port, one that nobody declares, the sidecar's own, and those that it asks itself at.
            for port in ["5432", "7000", "22", "24140", "24190", "24141", "24142"] {
                let got = pods::call_from_outside(directory, &["tcp", address, port]);
                assert!(got.starts_with("failed ConnectionReset"), "{address} {port}: {got}");
            }
            let got = pods::call_from_outside(directory, &["udp", address, "9999"]);
            assert!(got.starts_with("failed"), "{address}: {got}");
        }
    });
    let metrics = pods.mesh.sidecar("orders").metrics();
    for reason in ["port_not_declared", "loop"] {
        let counted =
            metrics.value(&format!("postern_failures_total{{direction=\"inbound\",reason=\"{reason}\"}}"));
        assert!(counted >= 2.0, "{reason}: {counted}");
    }
    // Over all of this it saw nothing wrong with its rules.
    assert_eq!(pods.orders.page_within("/ready").0, 200);
}

#[test]
fn a_rule_about_unauthenticated_peers_is_the_only_way_in() {
    if !pods::inside("strangers::a_rule_about_unauthenticated_peers_is_the_only_way_in") {
        return;
    }
    let open = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: node, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: page
    from: [{unauthenticated: true, cidrs: [10.77.0.1/32]}]
    to: [{ports: [8080], methods: [GET], paths: [/page]}, {ports: [5432]}]
";
    let pods = Pods::planned(&format!("{POLICY}---\n{open}"), |_| {}, &[]);
    let answer = curl(
        &pods,
        &[
            "-H",
            "X-Forwarded-Client-Cert: URI=spiffe://demo.postern/ns/shop/sa/web",
            "http://10.77.0.3:8080/page",
        ],
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = answer.json();
    assert!(!seen["fields"].to_string().contains("x-forwarded-client-cert"), "{seen}");
    assert_eq!(seen["local"], "::ffff:10.77.0.3");
    let directory = pods.mesh.directory();
    assert_eq!(
        pods::call_from_outside(directory, &["tcp", "10.77.0.3", "5432"]),
        "got '220 ready\\nhellobye 5\\n'"
    );
    pods.nothing_reaches("what the rule does not say", || {
        for words in [
            &["http://10.77.0.3:8080/orders"][..],
            &["-X", "POST", "http://10.77.0.3:8080/page"],
            // From another address.
            &["http://[fd77::3]:8080/page"],
        ] {
            assert_eq!(curl(&pods, words).status, 403, "{words:?}");
        }
        let got = pods::call_from_outside(directory, &["tcp", "fd77::3", "5432"]);
        assert!(got.starts_with("failed ConnectionReset"), "{got}");
    });
    // Taken back, it ends what runs.
    let still = std::net::TcpStream::connect("10.77.0.3:5432").expect("it is allowed");
    let mut first = [0; 10];
    std::io::Read::read_exact(&mut &still, &mut first).expect("the workload speaks first");
    pods.mesh.change("policy.yaml", POLICY);
    still.set_read_timeout(Some(wait::PATIENCE)).expect("it is a socket");
    let ended = std::io::Read::read(&mut &still, &mut first).expect_err("it is reset");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_probe_is_asked_by_the_sidecar_for_whoever_may_not_ask_it() {
    if !pods::inside("strangers::a_probe_is_asked_by_the_sidecar_for_whoever_may_not_ask_it") {
        return;
    }
    let probes = "probes: [{port: 8080, path: \"/healthz?full=1\"}, {port: 8080, path: /ill}, {port: 5432}, {port: 9}]";
    let shape = |plan: &mut postern_tests::Plan| {
        plan.line("orders", probes);
    };
    let pods = Pods::planned(POLICY, shape, &[]);
    let ask = |path: &str| pods.orders.page(path).expect("the health listener answers");
    assert_eq!(ask("/probe/8080/healthz?full=1"), (200, "ok\n".to_owned()));
    assert_eq!(ask("/probe/5432").0, 200);
    assert!(pods.reached().contains(&"request GET /healthz?full=1".to_owned()), "{:?}", pods.reached());
    assert_eq!(ask("/probe/8080/ill").0, 503, "the workload says so");
    assert_eq!(ask("/probe/9").0, 503, "nobody listens there");
    pods.nothing_reaches("what the configuration does not name", || {
        for other in [
            "/probe/8080/healthz",
            "/probe/8080/orders",
            "/probe/8080",
            "/probe/7000",
            "/probe/8080/healthz?full=1&x",
        ] {
            assert_eq!(ask(other).0, 404, "{other}");
        }
        // Without the sidecar's help the same question is a stranger's.
        assert_eq!(curl(&pods, &["http://10.77.0.3:8080/healthz?full=1"]).status, 403);
    });
    pods.workload.kill();
    assert_eq!(ask("/probe/8080/healthz?full=1"), (503, "the workload does not answer\n".to_owned()));
}

#[test]
fn nothing_but_dns_goes_past_the_sidecar() {
    if !pods::inside("strangers::nothing_but_dns_goes_past_the_sidecar") {
        return;
    }
    let pods = Pods::start();
    let outside = |address: &str, port: u16| {
        let socket = std::net::UdpSocket::bind((address, port)).expect("the network is the test's own");
        socket.set_nonblocking(true).expect("it is a socket");
        socket
    };
    let sinks: Vec<_> =
        OUTSIDE.iter().flat_map(|address| [443, 9999].map(|port| outside(address, port))).collect();
    let resolvers = [outside(OUTSIDE[0], 53), outside(OUTSIDE[1], 53)];
    for address in OUTSIDE {
        // QUIC is UDP to 443; the workload is told at once.
        for port in ["443", "9999"] {
            assert!(pods.web.call(&["udp", address, port]).starts_with("failed"), "{address} {port}");
        }
    }
    // The server that is named in the pod's resolv.conf, and no other.
    for address in OUTSIDE {
        pods.web.call(&["udp", address, "53", "question"]);
    }
    let received = |socket: &std::net::UdpSocket| {
        let mut buffer = [0; 64];
        std::iter::from_fn(|| socket.recv_from(&mut buffer).ok().map(|(count, _)| count)).collect::<Vec<_>>()
    };
    assert_eq!((received(&resolvers[0]), received(&resolvers[1])), (vec![8], vec![]));
    assert!(sinks.iter().all(|sink| received(sink).is_empty()));
    let listeners =
        OUTSIDE.map(|address| std::net::TcpListener::bind((address, 53)).expect("the port is free"));
    for listener in &listeners {
        listener.set_nonblocking(true).expect("it is a socket");
    }
    for address in OUTSIDE {
        // Nobody reads it: what matters is who is connected.
        pods.web.run(
            pods::WORKLOAD,
            &[
                "timeout",
                "1",
                "/usr/bin/python3",
                "-c",
                &format!("import socket; socket.create_connection(('{address}', 53), 1)"),
            ],
        );
    }
    assert!(listeners[0].accept().is_ok(), "DNS over TCP passes");
    assert!(listeners[1].accept().is_err(), "another server's does not");
    let ping = |pod: &postern_tests::pods::Pod| pod.privileged(&["ping", "-c", "1", "-W", "1", OUTSIDE[0]]);
    assert_ne!(ping(&pods.web).code, 0, "an echo request is data too");
    assert_eq!(pods.web.init(&["apply", "--allow-ping"]).code, 0);
    assert_eq!(ping(&pods.web).code, 0, "unless it is allowed");
}
