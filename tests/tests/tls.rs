//! The mesh listener against peers that must not get in, and the outbound side against peers that must not be believed.
//! OpenSSL and curl play the peers; the certificates are forged with the mesh's own CA keys wherever possible, so that
//! each is refused for exactly one reason.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use postern_tests::{
    Answer, Forge, Mesh, Metrics, Origin, Papers, Plan, Process, foreign, openssl, wait, wire,
};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

const WEB: &str = "spiffe://demo.postern/ns/shop/sa/web";
const ORDERS: &str = "spiffe://demo.postern/ns/shop/sa/orders";

/// Everybody who has proven anything may do everything, so that only the handshake stands in the way. And whoever has
/// proven nothing may too: even that opens no plaintext door.
const OPEN: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: open, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: everybody
    from: [{namespaces: [shop]}]
  - name: nobody-in-particular
    from: [{unauthenticated: true, cidrs: ["127.0.0.0/8"]}]
"#;

fn pair() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").limit("firstByte", "1s").limit("handshake", "1s");
    plan.document("policy.yaml", OPEN);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn refusals(metrics: &Metrics) -> BTreeMap<String, f64> {
    let of_family = |(name, value): (&str, f64)| {
        let reason = name.strip_prefix("postern_tls_refusals_total{reason=\"")?.strip_suffix("\"}")?;
        (value > 0.0).then(|| (reason.to_owned(), value))
    };
    metrics.iter().filter_map(of_family).collect()
}

/// Does `call`, and demands that it was refused for `reason` and nothing else, and that nothing reached the workload.
fn assert_refused(mesh: &Mesh, origin: &Origin, what: &str, reason: &str, call: impl FnOnce()) {
    let orders = mesh.sidecar("orders");
    let before = refusals(&orders.metrics());
    let (connections, bytes) = (origin.connections(), origin.bytes());
    call();
    let mut expected = before.clone();
    *expected.entry(reason.to_owned()).or_default() += 1.0;
    wait::until(&format!("{what}: a refusal is counted"), wait::PATIENCE, || {
        refusals(&orders.metrics()) != before
    });
    assert_eq!(refusals(&orders.metrics()), expected, "{what}");
    assert_eq!(
        (origin.connections(), origin.bytes()),
        (connections, bytes),
        "{what}: something reached the workload"
    );
}

/// curl as a peer with plain mutual TLS: it sends its request as soon as its own side of the handshake is done.
fn curl(mesh: &Mesh, papers: Option<&Papers>, more: &[&str]) -> Answer {
    let url = format!("https://{}/stolen", mesh.sidecar("orders").inbound());
    let mut arguments = vec!["--insecure", "--http2"];
    let (chain, key);
    if let Some(papers) = papers {
        (chain, key) = (papers.chain.display().to_string(), papers.key.display().to_string());
        arguments.extend(["--cert", &chain, "--key", &key]);
    }
    arguments.extend(more);
    arguments.push(&url);
    mesh.curl_directly(&arguments)
}

/// openssl s_client, with an HTTP/2 preface ready to be sent, until the listener closes.
fn s_client(mesh: &Mesh, papers: Option<&Papers>, more: &[&str]) -> foreign::Run {
    let address = mesh.sidecar("orders").inbound().to_string();
    let mut arguments = vec!["s_client", "-connect", &address, "-ign_eof", "-alpn", "postern/1,h2"];
    let (chain, key);
    if let Some(papers) = papers {
        (chain, key) = (papers.chain.display().to_string(), papers.key.display().to_string());
        arguments.extend(["-cert", &chain, "-key", &key, "-cert_chain", &chain]);
    }
    arguments.extend(more);
    openssl(&arguments, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
}

#[test]
fn a_real_certificate_gets_in() {
    if !foreign::need(&["curl", "openssl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let answer = curl(&mesh, Some(&Papers::of_sidecar(&mesh, "web")), &[]);
    assert_eq!((answer.status, answer.version.as_str()), (200, "2"), "{answer:?}");
    assert_eq!(origin.last().header("x-forwarded-client-cert"), [format!("URI={WEB}")]);
    // What the forge makes is as good, unless a test breaks it: what is refused below is refused for the change alone.
    let forged = Forge::stolen(&mesh).leaf("good", WEB, |_| {});
    assert_eq!(curl(&mesh, Some(&forged), &[]).status, 200);
    assert_eq!(refusals(&mesh.sidecar("orders").metrics()).remove("closed").unwrap_or_default(), 0.0);
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn versions_and_missing_certificates() {
    if !foreign::need(&["curl", "openssl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let real = Papers::of_sidecar(&mesh, "web");
    assert_refused(&mesh, &origin, "TLS 1.2", "tls_version", || {
        let run = s_client(&mesh, Some(&real), &["-tls1_2"]);
        assert!(run.stderr.contains("alert protocol version"), "{}", run.stderr);
    });
    assert_refused(&mesh, &origin, "TLS 1.2 by curl", "tls_version", || {
        assert_eq!(curl(&mesh, Some(&real), &["--tls-max", "1.2"]).status, 0);
    });
    assert_refused(&mesh, &origin, "no certificate", "no_certificate", || {
        let run = s_client(&mesh, None, &[]);
        assert!(run.stderr.contains("alert certificate required"), "{}", run.stderr);
    });
    assert_refused(&mesh, &origin, "no certificate, by curl", "no_certificate", || {
        assert_eq!(curl(&mesh, None, &[]).status, 0);
    });
    assert_refused(&mesh, &origin, "another protocol", "alpn", || {
        let run = s_client(&mesh, Some(&real), &["-alpn", "http/1.1"]);
        assert!(run.stderr.contains("no application protocol"), "{}", run.stderr);
    });
    assert_refused(&mesh, &origin, "no protocol at all", "alpn", || {
        assert_eq!(curl(&mesh, Some(&real), &["--no-alpn"]).status, 0);
    });
}

#[test]
fn certificates_that_are_wrong_in_one_thing() {
    if !foreign::need(&["curl", "openssl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let ca = Forge::stolen(&mesh);
    let elsewhere = Forge::foreign(&mesh, "elsewhere.example");
    let namesake = Forge::foreign(&mesh, "demo.postern");
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("test names are ASCII"));
    let cases = [
        ("self_signed", ca.self_signed("self", WEB)),
        ("untrusted", namesake.leaf("namesake", WEB, |_| {})),
        ("expired", ca.leaf("expired", WEB, |leaf| Forge::life(leaf, -600, -5))),
        ("not_yet_valid", ca.leaf("early", WEB, |leaf| Forge::life(leaf, 300, 600))),
        (
            "unknown_trust_domain",
            elsewhere.leaf("elsewhere", "spiffe://elsewhere.example/ns/shop/sa/web", |_| {}),
        ),
        // Our own CA may not speak for others.
        ("unknown_trust_domain", ca.leaf("outside", "spiffe://elsewhere.example/ns/shop/sa/web", |_| {})),
        ("no_spiffe_id", ca.leaf("dns", WEB, |leaf| leaf.subject_alt_names = vec![dns("web.shop.svc")])),
        ("no_spiffe_id", ca.leaf("nameless", WEB, |leaf| leaf.subject_alt_names.clear())),
        ("other_name", ca.leaf("both", WEB, |leaf| leaf.subject_alt_names.push(dns("web.shop.svc")))),
        ("several_ids", ca.leaf("two", WEB, |leaf| leaf.subject_alt_names.push(Forge::uri(ORDERS)))),
        ("bad_spiffe_id", ca.leaf("bad", "spiffe://demo.postern/ns//sa/web", |_| {})),
        ("ca_as_leaf", ca.leaf("ca", WEB, |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("key_usage", ca.leaf("signer", WEB, |leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyCertSign])),
        (
            "key_usage",
            ca.leaf("server", WEB, |leaf| {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
            }),
        ),
    ];
    for (reason, papers) in &cases {
        let what = papers.chain.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        assert_refused(&mesh, &origin, &format!("{what} by openssl"), reason, || {
            let run = s_client(&mesh, Some(papers), &[]);
            assert!(run.stderr.contains("alert"), "{what}: OpenSSL was not told: {}", run.stderr);
        });
        assert_refused(&mesh, &origin, &format!("{what} by curl"), reason, || {
            let answer = curl(&mesh, Some(papers), &[]);
            assert_eq!((answer.status, answer.body.len()), (0, 0), "{what}: {answer:?}");
        });
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn what_is_not_tls() {
    let (mesh, origin) = pair();
    let inbound = mesh.sidecar("orders").inbound();
    for (what, bytes) in [
        ("HTTP/1", &b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n"[..]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("a mesh request in plain", b"GET / HTTP/1.1\r\nHost: orders.shop\r\npostern-port: 8080\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("zeros", &[0; 64]),
        ("PROXY", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n"),
    ] {
        assert_refused(&mesh, &origin, what, "not_tls", || {
            let answer = wire::exchange(inbound, bytes);
            assert!(!answer.starts_with(b"HTTP"), "{what}: {}", String::from_utf8_lossy(&answer));
        });
    }
    assert_refused(&mesh, &origin, "nothing at all", "first_byte", || {
        assert_eq!(wire::exchange(inbound, b""), b"");
    });
    assert_refused(&mesh, &origin, "half a ClientHello", "handshake_timeout", || {
        assert_eq!(wire::exchange(inbound, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"), b"");
    });
    assert!(origin.requests().is_empty());
}

const SERVICE: &str = "
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: NAME, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/IDENTITY
  ports: [{port: 80, protocol: http, targetPort: 8080}]
  endpoints: [{address: ADDRESS}]
";

fn service(name: &str, identity: &str, address: impl std::fmt::Display) -> String {
    SERVICE.replace("NAME", name).replace("IDENTITY", identity).replace("ADDRESS", &address.to_string())
}

#[test]
fn an_endpoint_must_prove_the_very_identity_that_is_expected() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let (mesh, origin) = pair();
    let address = mesh.address("orders");
    let text = service("right", "orders", address)
        + "---"
        + &service("wrong", "store", address)
        + "---"
        + &service("longer", "orders2", address);
    mesh.change("services.yaml", &text);
    assert_eq!(mesh.curl("web", &["http://right.shop/"]).status, 200);
    for name in ["wrong", "longer"] {
        let answer = mesh.curl("web", &[&format!("http://{name}.shop/")]);
        assert_eq!(
            (answer.status, answer.header("postern-error")),
            (502, Some("remote_identity")),
            "{answer:?}"
        );
    }
    let failures = "postern_failures_total{direction=\"outbound\",reason=\"remote_identity\"}";
    assert_eq!(mesh.sidecar("web").metrics().value(failures), 2.0);
    assert_eq!(origin.requests().len(), 1);
    // The connection that the right service has open is not lent to the wrong one.
    assert_eq!(mesh.curl("web", &["http://right.shop/"]).status, 200);
}

#[test]
fn an_endpoint_with_a_wrong_certificate_gets_no_request() {
    if !foreign::need(&["curl", "openssl"]) {
        return;
    }
    let (mesh, _origin) = pair();
    let ca = Forge::stolen(&mesh);
    let address = mesh.spare_address(1);
    mesh.change("services.yaml", &service("rogue", "rogue", address));
    let rogue = "spiffe://demo.postern/ns/shop/sa/rogue";
    let client_only = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (what, papers) in [
        ("expired", ca.leaf("s-expired", rogue, |leaf| Forge::life(leaf, -600, -5))),
        ("self-signed", ca.self_signed("s-self", rogue)),
        ("another root", Forge::foreign(&mesh, "demo.postern").leaf("s-namesake", rogue, |_| {})),
        ("for clients", ca.leaf("s-client", rogue, |leaf| leaf.extended_key_usages = client_only)),
        ("the real one of another", Papers::of_sidecar(&mesh, "orders")),
    ] {
        let server = s_server(&mesh, address, &papers);
        let answer = mesh.curl("web", &["-H", "x-secret: 42", "http://rogue.shop/"]);
        assert_eq!((answer.status, answer.header("postern-error")), (502, Some("remote_identity")), "{what}");
        assert!(!server.log().contains("PRI * HTTP"), "{what}: the request was sent to it");
    }
    // As a control: a certificate that is right is spoken to.
    let server = s_server(&mesh, address, &ca.leaf("s-good", rogue, |_| {}));
    let answer = mesh.curl("web", &["--max-time", "2", "http://rogue.shop/"]);
    assert_ne!(answer.header("postern-error"), Some("remote_identity"), "{answer:?}");
    wait::until("the preface arrives", wait::PATIENCE, || server.log().contains("PRI * HTTP"));
    drop(server);
    // And one that speaks no TLS gets a ClientHello, never a request.
    let plain = Origin::http((address, 24_143));
    let answer = mesh.curl("web", &["http://rogue.shop/"]);
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    assert!(plain.requests().iter().all(|seen| !seen.method.contains("GET") && !seen.method.contains("PRI")));
}

/// openssl as a sidecar: TLS 1.3, our protocol, a client certificate demanded. What it is sent lands in the log.
fn s_server(mesh: &Mesh, address: std::net::IpAddr, papers: &Papers) -> Process {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let log = mesh.directory().join(format!("s_server-{number}.log"));
    let server = Process::start("s_server", Path::new("openssl"), &log, |command| {
        command.args([
            "s_server",
            "-accept",
            &format!("{address}:24143"),
            "-alpn",
            "postern/1",
            "-Verify",
            "3",
        ]);
        command.arg("-cert").arg(&papers.chain).arg("-cert_chain").arg(&papers.chain);
        command.arg("-key").arg(&papers.key);
        // It ends with its input.
        command.stdin(Stdio::piped());
    });
    wait::until("openssl s_server listens", wait::PATIENCE, || server.log().contains("ACCEPT"));
    server
}
