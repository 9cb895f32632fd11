//! HTTP/2 outside of the mesh, spoken by nginx: through a tunnel, where the workload's own TLS agrees on it, and in
//! plaintext with prior knowledge, where the sidecar judges and forwards request by request.

use super::*;

const SERVICE: &str = "
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: h2, namespace: shop}
spec:
  external: true
  hosts: [h2.partner.example]
  ports: [{port: 443, protocol: tls}, {port: 81, protocol: http2}, {port: 80, protocol: http2}]
";
const URL: &str = "http://h2.partner.example:81";

fn rules(prefix: &str) -> String {
    allow(&format!(
        "  - {{name: tunnel, to: [{{hosts: [h2.partner.example], ports: [443], protocol: Tls}}]}}\n  - {{name: reads, to: [{{hosts: [h2.partner.example], ports: [80, 81], protocol: Http, methods: [GET], pathPrefix: {prefix}}}]}}\n"
    ))
}

#[test]
fn http2_goes_out_judged_request_by_request() {
    let Some(dns) = outside("h2::http2_goes_out_judged_request_by_request") else { return };
    dns.set("h2.partner.example", &[OUTSIDE]);
    let mut plan = plan(&rules("[/v1, /large, /slow]"));
    plan.document("h2.yaml", SERVICE);
    let mesh = plan.start();
    let (key, certificate) = certificate(&mesh);
    let said = "$server_protocol $request_method $request_uri $http_host $http_x_kept $http_x_forwarded_client_cert$http_postern_port$http_connection";
    let nginx = Nginx::start(
        &mesh,
        (ip(OUTSIDE), 80),
        &format!(
            "listen {OUTSIDE}:81 http2; listen {OUTSIDE}:443 ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             location / {{ return 200 \"{said}\"; }} location /large {{ }} location /slow {{ limit_rate 20k; }}"
        ),
    );
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    for name in ["large", "slow"] {
        std::fs::write(nginx.root.join(name), &large).expect("the server's root can be written to");
    }
    let call = |arguments: &[&str]| mesh.curl("web", arguments);

    // Its own TLS, its own HTTP/2: the tunnel is asked about, and nothing in it.
    let through = call(&["-k", "--http2", "-X", "POST", "https://h2.partner.example/x"]);
    assert_eq!((through.status, through.version.as_str()), (200, "2"), "{through:?}");
    assert!(through.text().starts_with("HTTP/2.0 POST /x h2.partner.example "), "{}", through.text());

    // What arrives is HTTP/2, says what was asked, and tells nothing of the mesh.
    let fields = ["x-kept: yes", "x-forwarded-client-cert: URI=x", "postern-port: 1", "Connection: te"];
    let mut arguments = vec!["-H", fields[0], "-H", fields[1], "-H", fields[2], "-H", fields[3]];
    let url = format!("{URL}/v1//a/../b?q=1");
    arguments.push(&url);
    let seen = call(&arguments);
    assert_eq!(reason(&seen), GOOD, "{seen:?}");
    assert_eq!(seen.text(), "HTTP/2.0 GET /v1/b?q=1 h2.partner.example:81 yes ");
    let whole = call(&[&format!("{URL}/large")]);
    assert_eq!((whole.status, whole.exit), (200, 0), "{}", whole.stderr);
    assert!(whole.body == large, "{} bytes of {} came", whole.body.len(), large.len());

    for (arguments, expected) in [
        (&["-X", "POST", "-d", "x", "http://h2.partner.example:81/v1/a"][..], DENIED),
        (&["http://h2.partner.example:81/v1/../v2"], DENIED),
        (&["http://h2.partner.example:81/"], DENIED),
    ] {
        let answer = call(arguments);
        assert_eq!(reason(&answer), expected, "{arguments:?}: {answer:?}");
        let id = answer.header("postern-decision").expect("a refusal names its decision");
        let page = mesh.sidecar("web").admin(&format!("/v1/decisions/{id}"));
        assert_eq!(page["decision"]["destination"], "shop/h2", "{page}");
    }
    // Whoever does not speak it there is not spoken to in another way.
    let other = call(&["http://h2.partner.example/v1/a"]);
    assert!(matches!(reason(&other), (502, "external_reset") | (503, "external_unreachable")), "{other:?}");

    // A running answer ends with its permission, and no other does.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| call(&[&format!("{URL}/slow")]));
        let streams = || mesh.sidecar("web").admin("/v1/connections").to_string().contains("/slow");
        wait::until("it runs", wait::PATIENCE, streams);
        wait::pause(Duration::from_millis(700));
        mesh.change("egress.yaml", &rules("[/v1, /large]"));
        let cut = slow.join().expect("curl ends");
        assert_ne!(cut.exit, 0, "it was cut: {} bytes came", cut.body.len());
        assert!(cut.body.len() < large.len(), "{}", cut.body.len());
    });
    assert_eq!(mesh.sidecar("web").metrics().value("postern_policy_revoked_streams_total"), 1.0);
    assert_eq!(reason(&call(&[&format!("{URL}/slow")])), DENIED);
    assert_eq!(reason(&call(&[&format!("{URL}/v1/a")])), GOOD);
}
