//! Calls out of the mesh, and which of them a workload may make: real sidecars, curl, nginx outside, a name server that
//! says what the test wants. In a network of its own, because loopback is never outside.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use postern_tests::{Answer, Dns, Mesh, Nginx, Origin, Plan, foreign, namespace, openssl, wait, wire};

#[path = "egress/h2.rs"]
mod h2;
#[path = "egress/tls.rs"]
mod tls;

const OUTSIDE: &str = "192.0.2.10";
const METADATA: &str = "169.254.169.254";

const SERVICES: &str = "
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: partner, namespace: shop}
spec:
  external: true
  hosts: [api.partner.example, files.partner.example, rebound.partner.example, bad1.partner.example, bad2.partner.example, bad3.partner.example, bad4.partner.example]
  ports: [{port: 443, protocol: tls}, {port: 80, protocol: http}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: ledger-db, namespace: shop}
spec:
  external: true
  ports: [{port: 5432, protocol: tcp}, {port: 5433, protocol: tcp}]
  endpoints: [{address: 192.0.2.10}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: in, namespace: shop}
spec: {action: Allow, rules: [{name: all}]}
";

fn egress(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  source: {{selector: {{app: web}}}}\n{spec}"
    )
}

fn allow(rules: &str) -> String {
    egress("out", &format!("  action: Allow\n  rules:\n{rules}"))
}

/// A network with an outside and a name server; `None` where the test only passes through.
fn outside(test: &str) -> Option<Dns> {
    if !foreign::need(&["curl", "nginx", "openssl"]) {
        return None;
    }
    let Some(server) = Dns::of_this_machine() else {
        foreign::skip("this machine asks no name server, so that none can be put in its place");
        return None;
    };
    let mut setup = vec![format!("addr add {OUTSIDE}/32 dev lo"), format!("addr add {METADATA}/32 dev lo")];
    if !server.is_loopback() {
        setup.push(format!("addr add {server} dev lo"));
    }
    let setup: Vec<&str> = setup.iter().map(String::as_str).collect();
    if !namespace::inside(test, &setup) {
        return None;
    }
    let dns = Dns::start(server);
    dns.set("api.partner.example", &[OUTSIDE]);
    dns.set("files.partner.example", &[OUTSIDE]);
    Some(dns)
}

/// web, which calls, and two services of the mesh.
fn plan(policies: &str) -> Plan {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.sidecar("store").serves(80, 8080, "http").serves(9000, 9000, "tcp");
    plan.document("outside.yaml", SERVICES);
    if !policies.is_empty() {
        plan.document("egress.yaml", policies);
    }
    plan
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The files of a key and of a certificate for it.
fn certificate(mesh: &Mesh) -> (String, String) {
    let (key, certificate) = (mesh.directory().join("key.pem"), mesh.directory().join("certificate.pem"));
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    let made = openssl(
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=api.partner.example",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
        b"",
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    (key, certificate)
}

/// nginx with TLS and without, outside.
fn nginx(mesh: &Mesh) -> Nginx {
    let (key, certificate) = certificate(mesh);
    let more = format!(
        "listen {OUTSIDE}:443 ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
         location / {{ return 200 \"outside $http_host $http_x_forwarded_client_cert $http_postern_port\"; }}"
    );
    Nginx::start(mesh, (ip(OUTSIDE), 80), &more)
}

fn reason(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.header("postern-error").unwrap_or("-"))
}

const DENIED: (u16, &str) = (403, "egress_denied");
const GOOD: (u16, &str) = (200, "-");

#[test]
fn what_no_rule_opens_is_closed_and_what_one_opens_is_reached() {
    let Some(_dns) = outside("what_no_rule_opens_is_closed_and_what_one_opens_is_reached") else { return };
    let plan = plan("");
    let _orders = Origin::http((plan.address("orders"), 8080));
    let _store = Origin::http((plan.address("store"), 8080));
    let mesh = plan.start();
    let _nginx = nginx(&mesh);
    let get = |url: &str| mesh.curl("web", &["-k", url]);
    // curl says what the proxy answered to CONNECT, or what came through the tunnel.
    let statuses = || {
        [
            "http://orders.shop/",
            "http://store.shop/",
            "http://api.partner.example/",
            "http://files.partner.example/",
            "https://api.partner.example/",
        ]
        .map(|url| get(url).status)
    };
    assert_eq!(statuses(), [200, 200, 403, 403, 403], "the mesh is open, what is outside is not");
    let denied = get("http://api.partner.example/");
    assert_eq!(reason(&denied), DENIED);
    assert!(denied.text().starts_with("This call is not allowed. Decision 1-"), "{}", denied.text());
    let id = denied.header("postern-decision").expect("a refusal names its verdict").to_owned();
    let page = mesh.sidecar("web").admin("/v1/decisions");
    let decisions = page["decisions"].as_array().expect("a list");
    let decision = decisions.iter().find(|one| one["id"] == *id).expect("it can be looked up");
    for (field, expected) in [
        ("direction", "outbound"),
        ("destination", "shop/partner"),
        ("host", "api.partner.example"),
        ("reason", "no_rule"),
        ("effect", "deny"),
    ] {
        assert_eq!(decision[field], expected, "{decision}");
    }

    mesh.change(
        "egress.yaml",
        &allow(
            "  - {name: mesh, to: [{services: [orders]}]}\n  - {name: api, to: [{hosts: [api.partner.example], ports: [443], protocol: Tls}]}\n  - {name: reads, to: [{hosts: [files.partner.example], protocol: Http, methods: [GET], pathPrefix: [/v1]}]}\n",
        ),
    );
    assert_eq!(statuses(), [200, 403, 403, 403, 200], "once selected, only what is listed");
    assert_eq!(reason(&get("http://store.shop/")), DENIED);
    for (arguments, expected) in [
        (&["http://files.partner.example/v1/a"][..], GOOD),
        (&["http://files.partner.example/v1/../v2"], DENIED),
        (&["-X", "POST", "http://files.partner.example/v1/a"], DENIED),
        (
            &[
                "http://files.partner.example/v1/a",
                "-H",
                "Upgrade: websocket",
                "-H",
                "Connection: Upgrade",
                "-H",
                "Sec-WebSocket-Version: 13",
                "-H",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ],
            (403, "upgrade_refused"),
        ),
    ] {
        let answer = mesh.curl("web", arguments);
        assert_eq!(reason(&answer), expected, "{arguments:?}: {answer:?}");
    }
    // What arrives there tells nothing of the mesh.
    let seen = mesh.curl(
        "web",
        &["http://files.partner.example/v1", "-H", "postern-port: 1", "-H", "x-forwarded-client-cert: URI=x"],
    );
    assert_eq!(seen.text(), "outside files.partner.example  ");
    let through = get("https://api.partner.example/x");
    assert_eq!((through.status, through.text().as_str()), (200, "outside api.partner.example  "));

    // The tunnel is for the host that was asked for, and for TLS.
    let other = "other.example:443:api.partner.example:443";
    let fronted = mesh.curl("web", &["-k", "--connect-to", other, "https://other.example/"]);
    assert_eq!(fronted.status, 200, "CONNECT itself is allowed: {fronted:?}");
    assert_ne!(fronted.exit, 0, "and nothing comes through: {fronted:?}");
    let plain = mesh.curl("web", &["--proxytunnel", "http://api.partner.example:443/"]);
    assert_ne!(plain.exit, 0, "{plain:?}");
    let metrics = mesh.sidecar("web").metrics();
    let mismatches = metrics.value("postern_failures_total{direction=\"outbound\",reason=\"sni_mismatch\"}");
    assert!((mismatches - 2.0).abs() < 0.5, "{mismatches}");
    let log = mesh.sidecar("web").log();
    assert!(
        log.contains("the ClientHello is for other.example") && log.contains("this is no ClientHello"),
        "{log}"
    );
    for (rule, least) in [("mesh", 1.0), ("api", 4.0), ("reads", 2.0)] {
        let labels = format!("rule=\"shop/out/{rule}\",action=\"allow\",enforcement=\"enforce\"");
        let count = metrics.value(&format!("postern_rule_verdicts_total{{{labels}}}"));
        assert!(count >= least, "{rule}: {count}");
    }
}

#[test]
fn no_name_leads_to_addresses_inside() {
    let Some(dns) = outside("no_name_leads_to_addresses_inside") else { return };
    let plan = plan(&allow("  - {name: all, to: [{services: [partner]}, {cidrs: [0.0.0.0/0, '::/0']}]}\n"));
    let orders = Origin::http((plan.address("orders"), 8080));
    let workload = plan.address("orders").to_string();
    let metadata = Origin::http((ip(METADATA), 80));
    let good = Origin::http((ip(OUTSIDE), 80));
    let mesh = plan.start();
    let call = |url: &str| mesh.curl("web", &[url]);
    // By address nobody is called whom no Service names, however it is written.
    for host in [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "127.0.0.1",
        "localhost",
    ] {
        let answer = call(&format!("http://{host}/latest/meta-data/"));
        let is_refused = matches!(reason(&answer), (403, "unknown_service") | (400, "bad_request"));
        assert!(is_refused, "{host}: {answer:?}");
    }
    // Nor by a name that means it: the rules would allow any address.
    for (at, addresses) in
        [&[METADATA][..], &[OUTSIDE, METADATA], &["127.0.0.1"], &[&workload], &["::ffff:169.254.169.254"]]
            .into_iter()
            .enumerate()
    {
        let name =
            if at == 4 { "api.partner.example".to_owned() } else { format!("bad{}.partner.example", at + 1) };
        dns.set(&name, addresses);
        assert_eq!(reason(&call(&format!("http://{name}/"))), DENIED, "{name} is {addresses:?}");
    }
    // Nor by one that meant something else a moment ago.
    dns.set("rebound.partner.example", &[OUTSIDE]);
    assert_eq!(reason(&call("http://rebound.partner.example/")), GOOD);
    dns.set("rebound.partner.example", &[METADATA]);
    wait::until("the name means another address", Duration::from_secs(20), || {
        reason(&call("http://rebound.partner.example/")) == DENIED
    });
    assert_eq!(metadata.connections() + orders.connections(), 0, "an address inside was dialled");
    assert!(good.connections() > 0);
    let page = mesh.sidecar("web").admin("/v1/decisions").to_string();
    assert!(page.contains("\"reason\":\"address\""), "loopback and workloads are no matter of rules: {page}");
    // Named exactly, it is meant.
    mesh.change(
        "egress.yaml",
        &allow("  - {name: imds, to: [{cidrs: [169.254.169.254], ports: [80], protocol: Http}]}\n"),
    );
    dns.set("rebound.partner.example", &[METADATA]);
    wait::until("the metadata service is reached", Duration::from_secs(20), || {
        call("http://rebound.partner.example/").status == 200
    });
    assert!(metadata.connections() > 0);
    // A name without an address.
    mesh.change("egress.yaml", &allow("  - {name: all, to: [{services: [partner]}]}\n"));
    dns.set("files.partner.example", &[]);
    assert_eq!(reason(&call("http://files.partner.example/")), (503, "external_unreachable"));
}

/// A tunnel to `target` through the outbound listener of web; the status if it was refused.
fn tunnel(mesh: &Mesh, target: &str) -> Result<TcpStream, u16> {
    let mut stream = wire::connect(mesh.sidecar("web").outbound());
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").expect("the sidecar reads");
    let head = wire::read_head(&mut stream);
    match wire::status(head.as_bytes()) {
        200 => Ok(stream),
        status => Err(status),
    }
}

#[test]
fn a_change_resets_what_lost_permission_and_a_shadow_resets_nothing() {
    let Some(_dns) = outside("a_change_resets_what_lost_permission_and_a_shadow_resets_nothing") else {
        return;
    };
    let all = "  - {name: db, to: [{cidrs: [192.0.2.0/24], ports: [5432, 5433], protocol: Tcp}]}\n  - {name: mesh, to: [{services: [store]}]}\n";
    let plan = plan(&allow(all));
    let _store = Origin::echo((plan.address("store"), 9000));
    let _first = Origin::echo((ip(OUTSIDE), 5432));
    let _second = Origin::echo((ip(OUTSIDE), 5433));
    let mesh = plan.start();
    let open = |target: &str| {
        let mut stream = tunnel(&mesh, target).unwrap_or_else(|status| panic!("{target}: {status}"));
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a positive time is accepted");
        stream.write_all(b"x").expect("the tunnel takes bytes");
        stream.read_exact(&mut [0]).expect("they come back");
        stream
    };
    let mut alive = ["ledger-db.shop:5432", "ledger-db.shop:5433", "store.shop:9000"].map(open);
    let states = |alive: &mut [TcpStream; 3]| {
        alive.each_mut().map(|stream| {
            let sent = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
            match sent {
                Ok(()) => true,
                Err(error) => {
                    let is_reset = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
                    assert!(is_reset, "{error}");
                    false
                }
            }
        })
    };
    // What a shadow would take away is told, and goes on.
    let shadow = egress(
        "trial",
        "  enforcement: Shadow\n  action: Deny\n  rules: [{name: x, to: [{services: [store]}]}]\n",
    );
    mesh.change("egress.yaml", &(allow(all) + &shadow));
    wait::pause(Duration::from_secs(1));
    assert_eq!(states(&mut alive), [true; 3]);
    drop(tunnel(&mesh, "store.shop:9000").expect("a shadow changes nothing"));
    let page = mesh.sidecar("web").admin("/v1/decisions").to_string();
    assert!(page.contains("{\"effect\":\"deny\",\"rule\":\"shop/trial/x\"}"), "{page}");

    let fewer = all.replace("[5432, 5433]", "[5433]");
    mesh.change("egress.yaml", &allow(&fewer));
    let revoked = || mesh.sidecar("web").metrics().value("postern_policy_revoked_streams_total");
    wait::until("a stream is reset", Duration::from_secs(2), || revoked() >= 1.0);
    assert_eq!(states(&mut alive), [false, true, true], "and no other");
    assert_eq!(tunnel(&mesh, "ledger-db.shop:5432").err(), Some(403));
    mesh.change("egress.yaml", &allow(&fewer.lines().take(1).collect::<Vec<_>>().join("\n")));
    wait::until("the call within the mesh is reset", Duration::from_secs(2), || revoked() >= 2.0);
    assert_eq!(states(&mut alive), [false, true, false]);
}
