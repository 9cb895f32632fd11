//! HTTP through a sidecar pair, between curl (or bytes that no client would send) and an origin that tells exactly what
//! reached it; and between curl and servers that were not written here.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use postern_tests::{Ended, Mesh, Nginx, Origin, Plan, Process, foreign, wait, wire};

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
    to: [{ports: [8080, 8081]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders-closed, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules:
  - name: admin
    from: [{serviceAccounts: [web]}]
    to: [{pathPrefix: ["/admin"], ports: [8080, 8081]}]
"#;

/// web, which calls, and orders, with HTTP on 8080, HTTP/2 on 8081 and opaque TCP on 9000.
fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(8081, 8081, "http2").serves(9000, 9000, "tcp");
    plan.document("policy.yaml", POLICY);
    plan
}

fn pair() -> (Mesh, Origin) {
    let plan = plan();
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

#[test]
fn versions_of_http() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    for (flag, version) in [("--http1.0", "1.0"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let answer = mesh.curl_by_host("web", &[flag, "http://orders.shop/some/path?q=1"]);
        assert_eq!(answer.status, 200, "{flag}: {answer:?}");
        let seen = answer.json();
        assert_eq!(seen["target"], "/some/path?q=1", "{flag}");
        assert_eq!(seen["version"], "HTTP/1.1", "{flag}: the workload is spoken to in its own version");
        let said = if version == "1.0" { ["1.0", "1.1"].as_slice() } else { &[version] };
        assert!(said.contains(&answer.version.as_str()), "{flag}: answered in {}", answer.version);
        assert_eq!(
            answer.header("connection").filter(|value| *value == "keep-alive" && version == "2"),
            None
        );
    }
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn connections_are_kept_alive_on_both_ends() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let url = "http://orders.shop/one";
    let answer =
        mesh.curl("web", &["-w", "|%{num_connects}|", "-o", "/dev/null", url, "-o", "/dev/null", url]);
    assert_eq!((answer.status, answer.text().as_str()), (200, "|1||0|"), "the workload's own connection");
    assert_eq!(origin.requests().len(), 2);
    assert_eq!(origin.connections(), 1, "the connection to the workload");
    assert_eq!(mesh.sidecar("web").metrics().value("postern_mesh_dials_total"), 1.0, "the mesh leg");
}

#[test]
fn bodies_of_ten_mebibytes() {
    if !foreign::need(&["curl"]) {
        return;
    }
    const SIZE: usize = 10 << 20;
    let (mesh, origin) = pair();
    let body: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    let file = mesh.directory().join("body");
    std::fs::write(&file, &body).expect("the mesh's directory can be written to");
    let data = format!("@{}", file.display());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (framing, header) in [("sized", "x-none: 1"), ("chunked", "transfer-encoding: chunked")] {
            if version != "--http1.1" && framing == "chunked" {
                continue;
            }
            let arguments = [version, "-H", header, "--data-binary", &data, "http://orders.shop/upload"];
            let answer = mesh.curl_by_host("web", &arguments);
            assert_eq!(answer.status, 200, "{version} {framing}: {}", answer.stderr);
            let seen = answer.json();
            assert_eq!((&seen["body"], &seen["sum"]), (&SIZE.into(), &sum.into()), "{version} {framing}");
            let lengths = origin.last().header("content-length").len();
            assert_eq!(lengths, usize::from(framing == "sized"), "{version} {framing}: the framing is kept");
        }
        for path in ["bytes", "chunked"] {
            let answer = mesh.curl_by_host("web", &[version, &format!("http://orders.shop/{path}/{SIZE}")]);
            assert_eq!((answer.status, answer.exit, answer.body.len()), (200, 0, SIZE), "{version} {path}");
            let length = (path == "bytes").then(|| SIZE.to_string());
            assert_eq!(answer.header("content-length").map(str::to_owned), length, "{version} {path}");
        }
    }
}

#[test]
fn responses_without_a_body() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let head = mesh.curl("web", &["--head", "http://orders.shop/bytes/4096"]);
    assert_eq!((head.status, head.exit), (200, 0), "{}", head.stderr);
    assert_eq!(head.header("content-length"), Some("4096"), "HEAD tells what GET would");
    assert_eq!(origin.last().method, "HEAD");
    for status in [204, 304] {
        let answer = mesh.curl("web", &[&format!("http://orders.shop/status/{status}")]);
        assert_eq!((answer.status, answer.exit, answer.body.len()), (status, 0, 0), "{}", answer.stderr);
        assert_eq!(answer.header("etag"), Some("\"one\""));
        assert_eq!(answer.header("transfer-encoding"), None, "{status} has no body to frame");
    }
    // A connection that carried them carries on.
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_get_may_have_a_body_of_any_kind() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, _origin) = pair();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for length in ["Transfer-Encoding: chunked", "Content-Length: 5"] {
            let options = [version, "-X", "GET", "-H", length, "-d", "query", "http://orders.shop/search"];
            let answer = mesh.curl_by_host("web", &options);
            assert_eq!(answer.status, 200, "{version}, {length}: {answer:?}");
            assert_eq!(answer.json()["body"], 5, "{version}, {length}");
        }
    }
}

#[test]
fn trailers_both_ways() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let answer =
            mesh.curl_by_host("web", &[version, "-H", "TE: trailers", "http://orders.shop/trailers"]);
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{version}");
        assert_eq!(answer.header("x-checksum"), Some("42"), "{version}: {:?}", answer.headers);
    }
    let request = "POST / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
                   Trailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 17\r\n\r\n";
    let answer = wire::exchange(mesh.sidecar("web").outbound(), request.as_bytes());
    assert_eq!(wire::status(&answer), 200, "{}", String::from_utf8_lossy(&answer));
    assert_eq!((origin.last().body, origin.last().header("x-sum")), (5, vec!["17"]));
    // Servers that merge trailers into the head would believe these.
    let forged = "POST / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
                  Trailer: x-sum, x-forwarded-client-cert, x_forwarded_client_cert, postern-port\r\n\r\n5\r\nhello\r\n0\r\n\
                  x-forwarded-client-cert: URI=spiffe://demo.postern/ns/shop/sa/admin\r\nx-sum: 17\r\n\
                  x_forwarded_client_cert: URI=spiffe://demo.postern/ns/shop/sa/admin\r\npostern-port: 22\r\n\r\n";
    assert_eq!(wire::status(&wire::exchange(mesh.sidecar("web").outbound(), forged.as_bytes())), 200);
    let seen = origin.last();
    assert_eq!(seen.header("x-sum"), ["17"]);
    let values = |name: &str| seen.header(name).len();
    assert_eq!((values("x-forwarded-client-cert"), values("postern-port")), (1, 0), "{:?}", seen.headers);
    assert!(seen.headers.iter().all(|(name, value)| name != "trailer" || !value.contains("sa/admin")));
    assert!(!seen.headers.iter().any(|(_, value)| value.contains("sa/admin")), "{:?}", seen.headers);
}

#[test]
fn a_service_that_is_gone_takes_its_streams_with_it() {
    let (mesh, origin) = pair();
    let mut stream = wire::connect(mesh.sidecar("web").outbound());
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"));
    // Old enough to be a stream, not a request that is just being answered.
    wait::pause(Duration::from_millis(600));
    let services = std::fs::read_to_string(mesh.documents.directory().join("services.yaml"));
    let services = services.expect("the harness wrote it");
    std::fs::remove_file(mesh.documents.directory().join("services.yaml")).expect("it is ours");
    let start = Instant::now();
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(ended.is_err() || !rest.ends_with(b"0\r\n\r\n"), "a cut that looks like an end");
    wait::until("the origin hears of it", wait::PATIENCE, || {
        origin.last().ended.is_some_and(|(ended, _)| ended == Ended::Gone)
    });
    mesh.documents.write("services.yaml", &services);
}

#[test]
fn services_are_found_by_name_and_port_only() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let names = [
        "orders.shop",
        "orders",
        "orders.shop.svc",
        "orders.shop.svc.cluster.local",
        "ORDERS.shop",
        "orders.shop.",
    ];
    for name in names {
        for answer in [
            mesh.curl("web", &[&format!("http://{name}/absolute")]),
            mesh.curl_by_host("web", &[&format!("http://{name}/origin-form")]),
        ] {
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        }
    }
    let reached = origin.requests().len();
    assert_eq!(reached, 2 * names.len());
    for (url, status, reason) in [
        ("http://nobody.shop/", 403, "unknown_service"),
        ("http://orders.other/", 403, "unknown_service"),
        ("http://orders.shop:8080/", 403, "unknown_service"),
        ("http://example.com/", 403, "unknown_service"),
        ("http://127.0.0.1/", 403, "unknown_service"),
        ("http://[::1]/", 403, "unknown_service"),
        ("http://orders.shop:9000/", 403, "http_to_tcp"),
    ] {
        let answer = mesh.curl("web", &[url]);
        assert_eq!((answer.status, answer.header("postern-error")), (status, Some(reason)), "{url}");
        let metric = format!("postern_failures_total{{direction=\"outbound\",reason=\"{reason}\"}}");
        assert!(mesh.sidecar("web").metrics().value(&metric) >= 1.0, "{url}");
    }
    assert_eq!(origin.requests().len(), reached, "nothing of it reached a workload");
    assert_eq!(mesh.sidecar("orders").metrics().sum("postern_requests_total"), reached as f64);
}

#[test]
fn bodies_stream_both_ways_without_waiting() {
    let (mesh, _origin) = pair();
    let mut stream = wire::connect(mesh.sidecar("web").outbound());
    write!(
        stream,
        "POST http://orders.shop/duplex HTTP/1.1\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .expect("the sidecar reads");
    // Each piece is answered before the next is sent: whoever collects bodies first never gets past the first.
    let mut slowest = Duration::ZERO;
    let mut head = None;
    for piece in ["first", "second", "third"] {
        let start = Instant::now();
        write!(stream, "{:x}\r\n{piece}\r\n", piece.len()).expect("the sidecar reads");
        let head = head.get_or_insert_with(|| wire::read_head(&mut stream));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut chunk = vec![0; format!("{:x}\r\n{piece}\r\n", piece.len()).len()];
        stream.read_exact(&mut chunk).expect("the piece comes back while the request is still being sent");
        assert_eq!(String::from_utf8_lossy(&chunk), format!("{:x}\r\n{piece}\r\n", piece.len()));
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a piece took {slowest:?} there and back");
    stream.write_all(b"0\r\n\r\n").expect("the sidecar reads");
    let mut end = [0; 5];
    stream.read_exact(&mut end).expect("the response ends with the request");
    assert_eq!(&end, b"0\r\n\r\n");
}

#[test]
fn a_caller_that_goes_away_cancels_the_call() {
    let (mesh, origin) = pair();
    for (path, answered) in [("/hold", false), ("/endless", true)] {
        let mut stream = wire::connect(mesh.sidecar("web").outbound());
        write!(stream, "GET http://orders.shop{path} HTTP/1.1\r\nHost: orders.shop\r\n\r\n")
            .expect("the sidecar reads");
        if answered {
            assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"), "{path}");
            stream.read_exact(&mut [0; 8]).expect("the first bytes come while the response runs");
        } else {
            wait::until("the request arrives", wait::PATIENCE, || {
                origin.requests().iter().any(|seen| seen.target == path)
            });
        }
        let left = Instant::now();
        stream.shutdown(Shutdown::Both).expect("an open socket can be shut down");
        drop(stream);
        let (ended, at) = wait::for_some(&format!("{path}: the origin notices"), wait::PATIENCE, || {
            origin.requests().iter().find(|seen| seen.target == path)?.ended
        });
        assert_eq!(ended, Ended::Gone, "{path}");
        let took = at.duration_since(left);
        assert!(took < Duration::from_millis(500), "{path}: the origin learnt of it after {took:?}");
    }
    wait::until("no stream is left", wait::PATIENCE, || {
        ["web", "orders"].iter().all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
}

#[test]
fn a_response_that_breaks_never_looks_whole() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, _origin) = pair();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let answer = mesh.curl_by_host("web", &[version, "http://orders.shop/cut"]);
        assert!(
            [18, 56, 92].contains(&answer.exit),
            "{version}: curl took half a body for whole: {answer:?}"
        );
        assert!(answer.body.len() <= 500);
    }
}

#[test]
fn forged_headers_do_not_arrive() {
    let (mesh, origin) = pair();
    let identity = "URI=spiffe://demo.postern/ns/shop/sa/web";
    let forgeries = [
        "X-Forwarded-Client-Cert: URI=spiffe://demo.postern/ns/shop/sa/admin\r\n",
        "x-forwarded-client-cert: URI=a\r\nX-Forwarded-Client-Cert: URI=b\r\n",
        "X_Forwarded_Client_Cert: URI=spiffe://demo.postern/ns/shop/sa/admin\r\n",
        "X-Forwarded_Client-Cert: URI=spiffe://demo.postern/ns/shop/sa/admin\r\n",
        // Nominated as hop-by-hop: a proxy that adds first and strips after would remove its own.
        "Connection: x-forwarded-client-cert, keep-alive\r\n",
        "Connection: close\r\nConnection: X-Forwarded-Client-Cert\r\nX-Forwarded-Client-Cert: URI=a\r\n",
        "Postern-Port: 9000\r\nPostern-Version: 2\r\nPostern-Decision: 1-a-1\r\nPostern-Anything: 1\r\n",
        "postern_port: 9000\r\n",
        "Connection: postern-port, postern-version\r\n",
        "X-HTTP-Method-Override: DELETE\r\nx-method-override: DELETE\r\nX-Http-Method: DELETE\r\n",
        "X-Original-URL: /DELETE\r\nX-Rewrite-Url: /DELETE\r\n",
    ];
    for forgery in forgeries {
        origin.forget();
        let request = format!("GET / HTTP/1.1\r\nHost: orders.shop\r\n{forgery}X-Mine: kept\r\n\r\n");
        let mut stream = wire::connect(mesh.sidecar("web").outbound());
        stream.write_all(request.as_bytes()).expect("the sidecar reads");
        let head = wire::read_head(&mut stream);
        if forgery.starts_with("Connection: ") {
            // Named as this hop's: refused, or another hop could be made to take away what ours has added.
            assert!(head.starts_with("HTTP/1.1 400"), "{forgery}: {head}");
            assert!(origin.requests().is_empty(), "{forgery}");
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{forgery}: {head}");
        let seen = origin.last();
        assert_eq!(seen.header("x-forwarded-client-cert"), [identity], "{forgery}");
        assert_eq!(seen.header("x-mine"), ["kept"], "{forgery}");
        for (name, value) in &seen.headers {
            assert!(!name.contains('_'), "{forgery}: {name}: {value} arrived");
            assert!(!name.to_ascii_lowercase().starts_with("postern-"), "{forgery}: {name}: {value} arrived");
            assert!(!value.contains("sa/admin"), "{forgery}: {name}: {value} arrived");
            assert!(
                !value.contains("DELETE"),
                "{forgery}: {name}: {value} arrived: something else was judged"
            );
        }
    }
}

#[test]
fn a_workload_cannot_speak_for_its_sidecar() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, _origin) = pair();
    let answer = mesh.curl("web", &["http://orders.shop/forged"]);
    assert_eq!(answer.status, 200);
    let decision = answer.header("postern-decision").expect("every judged response names its decision");
    assert!(decision.starts_with("1-") && !decision.contains("bad"), "{decision}");
    assert_eq!((answer.header("postern-error"), answer.header("postern-other")), (None, None));
}

#[test]
fn ambiguous_requests_are_refused() {
    let (mesh, origin) = pair();
    for (what, request) in [
        ("two Host lines", "GET / HTTP/1.1\r\nHost: orders.shop\r\nHost: orders.shop\r\n\r\n"),
        ("two different Hosts", "GET / HTTP/1.1\r\nHost: orders.shop\r\nHost: other.shop\r\n\r\n"),
        ("target and Host differ", "GET http://orders.shop/ HTTP/1.1\r\nHost: other.shop\r\n\r\n"),
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        (
            "a user in the authority",
            "GET http://orders.shop@evil/ HTTP/1.1\r\nHost: orders.shop@evil\r\n\r\n",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        (
            "a length and chunks, smuggling",
            "POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\nab\r\n",
        ),
        ("a folded line", "GET / HTTP/1.1\r\nHost: orders.shop\r\nA: b\r\n c\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : orders.shop\r\n\r\n"),
        ("https through a plain proxy", "GET https://orders.shop/ HTTP/1.1\r\nHost: orders.shop\r\n\r\n"),
    ] {
        let answer = wire::exchange(
            mesh.sidecar("web").outbound(),
            request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes(),
        );
        assert_eq!(wire::status(&answer), 400, "{what}: {}", String::from_utf8_lossy(&answer));
    }
    assert!(origin.requests().is_empty(), "{:?}", origin.requests());
}

/// W3C Trace Context: what the caller says of its trace is what the callee hears, each line of it, in its order, and nothing
/// is added. Sidecars that take no part in a trace pass it on (section 4.3).
#[test]
fn a_trace_goes_through_as_it_came() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = [
        ("traceparent", vec![parent]),
        ("tracestate", vec!["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "vendor@a=1"]),
        ("baggage", vec!["userId=alice;secret=no,serverNode=DF%2028"]),
    ];
    let lines: Vec<String> = fields
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")))
        .collect();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut arguments = vec![version];
        arguments.extend(lines.iter().flat_map(|line| ["-H", line]));
        arguments.push("http://orders.shop/traced");
        assert_eq!(mesh.curl_by_host("web", &arguments).status, 200, "{version}");
        for (name, values) in &fields {
            assert_eq!(&origin.last().header(name), values, "{version} {name}");
        }
        assert_eq!(mesh.curl_by_host("web", &[version, "http://orders.shop/untraced"]).status, 200);
        for (name, _) in &fields {
            assert!(origin.last().header(name).is_empty(), "{version} {name}: nobody asked for a trace");
        }
    }
}

#[test]
fn encodings_are_left_alone() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let direct = mesh.curl_directly(&[
        "-H",
        "Accept-Encoding: gzip, br",
        &format!("http://{}/gzip", origin.address()),
    ]);
    let through = mesh.curl("web", &["-H", "Accept-Encoding: gzip, br", "http://orders.shop/gzip"]);
    assert_eq!(through.body, direct.body, "not a byte is different");
    for name in ["content-encoding", "content-length", "etag"] {
        assert_eq!(through.header(name), direct.header(name), "{name}");
    }
    assert_eq!(origin.last().header("accept-encoding"), ["gzip, br"]);
    let plain = mesh.curl("web", &["--compressed", "http://orders.shop/gzip"]);
    assert_eq!(plain.text(), "postern\n", "{}", plain.stderr);
}

#[test]
fn an_origin_that_speaks_http2() {
    if !foreign::need(&["curl", "nghttpd"]) {
        return;
    }
    let plan = plan();
    let address = plan.address("orders");
    let mesh = plan.start();
    let root = mesh.directory().join("www");
    std::fs::create_dir(&root).expect("the mesh's directory can be written to");
    std::fs::write(root.join("file.txt"), "over two").expect("it was just made");
    let server =
        Process::start("nghttpd", "nghttpd".as_ref(), &mesh.directory().join("nghttpd.log"), |command| {
            command.args([
                "--no-tls",
                "--verbose",
                "--trailer",
                "x-checksum: 42",
                "-a",
                &address.to_string(),
                "-d",
            ]);
            command.arg(&root).arg("8081");
        });
    wait::until("nghttpd listens", wait::PATIENCE, || std::net::TcpStream::connect((address, 8081)).is_ok());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let url = "http://orders.shop:8081/file.txt";
        let answer = mesh.curl_by_host("web", &[version, "-H", "TE: trailers", url]);
        assert_eq!((answer.status, answer.text().as_str()), (200, "over two"), "{version}: {answer:?}");
        let body = "x".repeat(100_000);
        let answer = mesh.curl_by_host("web", &[version, "--data-binary", &body, url]);
        assert_eq!(answer.status, 200, "{version}: {answer:?}");
    }
    let log = server.log();
    assert!(log.contains(":authority: orders.shop:8081"), "{log}");
    assert!(log.contains("x-forwarded-client-cert: URI=spiffe://demo.postern/ns/shop/sa/web"), "{log}");
    assert!(!log.contains("] connection: ") && !log.contains(" transfer-encoding"), "{log}");
}

#[test]
fn nginx_as_the_workload() {
    if !foreign::need(&["curl", "nginx"]) {
        return;
    }
    let plan = plan();
    let address = plan.address("orders");
    let mesh = plan.start();
    let nginx = Nginx::start(&mesh, (address, 8080), "");
    let body: String = (0..100_000).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    std::fs::write(nginx.root.join("file.txt"), &body).expect("nginx's root can be written to");
    let url = "http://orders.shop/file.txt";
    let whole = mesh.curl("web", &[url]);
    assert_eq!((whole.status, whole.text()), (200, body.clone()));
    let etag = format!("If-None-Match: {}", whole.header("etag").expect("nginx names versions"));
    let unchanged = mesh.curl("web", &["-H", &etag, url]);
    assert_eq!((unchanged.status, unchanged.body.len(), unchanged.exit), (304, 0, 0));
    let part = mesh.curl("web", &["-r", "26-51", url]);
    assert_eq!((part.status, part.text().as_str()), (206, &body[26..52]));
    let squeezed = mesh.curl("web", &["-H", "Accept-Encoding: gzip", url]);
    assert_eq!((squeezed.status, squeezed.header("content-encoding")), (200, Some("gzip")));
    assert!(squeezed.body.len() < body.len() && squeezed.body.starts_with(&[0x1f, 0x8b]));
    let not_there = mesh.curl("web", &["http://orders.shop/nothing"]);
    assert_eq!((not_there.status, not_there.header("postern-error")), (404, None));
}
