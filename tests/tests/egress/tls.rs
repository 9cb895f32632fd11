//! TLS that the sidecar opens to what is outside, so that requests leave encrypted and are judged all the same; and hosts
//! with `*.`.

use postern_tests::WebCa;

use super::*;

fn service(ca: &str) -> String {
    format!(
        "---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: secure, namespace: shop}}
spec:
  external: true
  hosts: [secure.example, \"*.wild.example\", other.example]
  ports:
  - {{port: 80, targetPort: 443, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 81, targetPort: 443, protocol: http2, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 82, targetPort: 443, protocol: http, tls: {{originate: true, caFile: {ca}, serverName: secure.example}}}}
  - {{port: 83, targetPort: 443, protocol: http, tls: {{originate: true}}}}
  - {{port: 84, targetPort: 84, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 85, targetPort: 85, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 86, targetPort: 80, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 87, targetPort: 443, protocol: http, tls: {{originate: true, caFile: /nowhere/ca.pem}}}}
  - {{port: 88, targetPort: 86, protocol: http2, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 89, targetPort: 86, protocol: http, tls: {{originate: true, caFile: {ca}}}}}
  - {{port: 90, targetPort: 80, protocol: http}}
  - {{port: 443, protocol: tls}}
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: deep, namespace: shop}}
spec:
  external: true
  hosts: [\"*.deep.wild.example\", one.wild.example]
  ports: [{{port: 90, targetPort: 80, protocol: http}}]
"
    )
}

const UNTRUSTED: (u16, &str) = (502, "external_untrusted");
const RESET: (u16, &str) = (502, "external_reset");

#[test]
fn the_sidecar_opens_tls_and_judges_what_leaves() {
    let Some(dns) = outside("tls::the_sidecar_opens_tls_and_judges_what_leaves") else { return };
    for host in ["secure.example", "other.example", "a.wild.example", "b.a.wild.example"] {
        dns.set(host, &[OUTSIDE]);
    }
    for host in ["x.deep.wild.example", "one.wild.example", "wild.example"] {
        dns.set(host, &[OUTSIDE]);
    }
    let mut plan = plan(&allow(
        "  - {name: reads, to: [{hosts: [secure.example, other.example, \"*.wild.example\"], protocol: Http, methods: [GET], pathPrefix: [/v1]}]}\n  - {name: tunnel, to: [{hosts: [\"*.wild.example\"], ports: [443], protocol: Tls}]}\n",
    ));
    let directory = tempfile::tempdir().expect("there is room");
    let ca = WebCa::new(directory.path());
    plan.document("secure.yaml", &service(&ca.root().display().to_string()));
    let mesh = plan.start();
    let good = ca.server("good", &["secure.example", "*.wild.example"], (-60, 3_600));
    let over = ca.server("over", &["secure.example"], (-7_200, -60));
    let said = "$scheme $ssl_protocol $ssl_alpn_protocol $ssl_server_name $server_protocol $http_host $http_traceparent [$ssl_client_s_dn$http_x_forwarded_client_cert$http_postern_port]";
    let location = format!("location / {{ return 200 \"{said}\"; }}");
    let server = |port: u16, papers: &postern_tests::Papers, more: &str| {
        let (chain, key) = (papers.chain.display(), papers.key.display());
        format!(
            "server {{ listen {OUTSIDE}:{port} ssl {more}; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {chain}; ssl_certificate_key {key}; {location} }}\n"
        )
    };
    let old = server(86, &good, "").replace(" TLSv1.3", "");
    let servers = [server(443, &good, "http2"), server(84, &over, ""), server(85, &good, ""), old].concat();
    // Its own server's end, then those with TLS.
    let nginx = Nginx::start(
        &mesh,
        (ip(OUTSIDE), 80),
        &format!("{location} }}\n{servers} server {{ listen {OUTSIDE}:8099;"),
    );
    let get = |url: &str| {
        mesh.curl("web", &["-H", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", url])
    };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    for (url, expected) in [
        (
            "http://secure.example/v1",
            format!("https TLSv1.3 http/1.1 secure.example HTTP/1.1 secure.example {trace} []"),
        ),
        (
            "http://secure.example:81/v1",
            format!("https TLSv1.3 h2 secure.example HTTP/2.0 secure.example:81 {trace} []"),
        ),
        (
            "http://other.example:82/v1",
            format!("https TLSv1.3 http/1.1 secure.example HTTP/1.1 other.example:82 {trace} []"),
        ),
        (
            "http://a.wild.example/v1",
            format!("https TLSv1.3 http/1.1 a.wild.example HTTP/1.1 a.wild.example {trace} []"),
        ),
        ("http://a.wild.example:90/v1", format!("http    HTTP/1.1 a.wild.example:90 {trace} []")),
        ("http://x.deep.wild.example:90/v1", format!("http    HTTP/1.1 x.deep.wild.example:90 {trace} []")),
        // The web has not done away with TLS 1.2 yet.
        (
            "http://secure.example:89/v1",
            format!("https TLSv1.2 http/1.1 secure.example HTTP/1.1 secure.example:89 {trace} []"),
        ),
        // By its own name: the first host that is written out is who must prove itself.
        ("http://secure.shop/v1", String::new()),
    ] {
        let answer = get(url);
        if expected.is_empty() {
            assert_eq!(reason(&answer), DENIED, "{url}: the rules are about hosts: {answer:?}");
            continue;
        }
        assert_eq!(reason(&answer), GOOD, "{url}: {answer:?}");
        assert_eq!(answer.text(), expected, "{url}");
    }
    // What is judged is what leaves, encrypted or not.
    for arguments in [
        &["-X", "POST", "http://secure.example/v1"][..],
        &["http://secure.example:81/v2"],
        &["http://secure.example/v1/../v2"],
    ] {
        assert_eq!(reason(&mesh.curl("web", arguments)), DENIED, "{arguments:?}");
    }
    let through = mesh.curl("web", &["-k", "https://b.a.wild.example/"]);
    assert_eq!(through.status, 200, "a host with a star stands for its tunnels too: {through:?}");

    for (url, expected, told) in [
        // For another host, of another authority, over, no TLS at all, no HTTP/2, and a file that is not there.
        ("http://other.example/v1", UNTRUSTED, "other.example"),
        ("http://b.a.wild.example/v1", UNTRUSTED, "b.a.wild.example"),
        ("http://secure.example:83/v1", UNTRUSTED, "UnknownIssuer"),
        ("http://secure.example:84/v1", UNTRUSTED, "expired"),
        ("http://secure.example:86/v1", RESET, "corrupt message"),
        ("http://secure.example:88/v1", RESET, "NoApplicationProtocol"),
        ("http://secure.example:87/v1", UNTRUSTED, "/nowhere/ca.pem"),
        ("http://wild.example:90/v1", (403, "unknown_service"), "wild.example"),
        // The service that says most of a host has it, whatever ports that has.
        ("http://one.wild.example/v1", (403, "unknown_service"), "one.wild.example"),
    ] {
        let answer = get(url);
        assert_eq!(reason(&answer), expected, "{url}: {answer:?}");
        let log = mesh.sidecar("web").log();
        assert!(log.contains(told), "{url}: the log says why ({told}): {log}");
    }
    drop(nginx);
    let answer = get("http://secure.example/v1");
    assert_eq!(reason(&answer), (503, "external_unreachable"), "{answer:?}");
}
