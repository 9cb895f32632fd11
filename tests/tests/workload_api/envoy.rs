//! An Envoy as a full peer of sidecars: its certificate and roots come from the sidecar beside it, by secret discovery.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{
    Mesh, Origin, Plan, Process, TRUST_DOMAIN, foreign, is_long, openssl, postern, wait, wire,
};
use serde_json::{Value, json};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
/// Where the workload beside this Envoy calls out, and where Envoy takes calls of the mesh.
const OUT: u16 = 24_240;
const IN: u16 = 24_143;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: edge
    from: [{serviceAccounts: [edge]}]
"#;

/// A secret by its name, from the sidecar.
fn secret(name: &str) -> Value {
    json!({"name": name, "sds_config": {
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sidecar"}}],
        },
    }})
}

/// Envoy's side of mutual TLS: its own secret, the roots under `roots`, and exactly this peer.
fn mutual(side: &str, roots: &str, peer: &str) -> Value {
    let common = json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [secret("default")],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": {"exact": format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{peer}")},
                }],
            },
            "validation_context_sds_secret_config": secret(roots),
        },
    });
    let mut context = json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.{side}TlsContext"),
        "common_tls_context": common,
    });
    if side == "Downstream" {
        context["require_client_certificate"] = json!(true);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn cluster(name: &str, address: &Value, connections_live: &str, transport: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name,
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http2_protocol_options": {}},
            // Less than what is left of a certificate when it is renewed: Envoy goes on with a connection, and with what it
            // has proven there, to the certificate's end, when its requests are refused.
            "common_http_protocol_options": {"max_connection_duration": connections_live},
        }},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    });
    if let Some(transport) = transport {
        cluster["transport_socket"] = transport;
    }
    cluster
}

fn listener(at: SocketAddr, action: &Value, transport: Option<Value>) -> Value {
    let mut route = json!({"match": {"prefix": "/"}});
    route.as_object_mut().expect("it is one").extend(action.as_object().expect("it is one").clone());
    let mut chain = json!({"filters": [{
        "name": "http",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "http",
            "http_filters": [{
                "name": "router",
                "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")},
            }],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        },
    }]});
    if let Some(transport) = transport {
        chain["transport_socket"] = transport;
    }
    json!({"name": at.to_string(), "address": socket_address(at), "filter_chains": [chain]})
}

fn socket_address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn start(mesh: &Mesh, host: IpAddr) -> Process {
    let orders = mesh.sidecar("orders").inbound();
    let pipe = json!({"pipe": {"path": mesh.sidecar("edge").workload_socket()}});
    let answer = json!({"direct_response": {"status": 200, "body": {"inline_string": "from Envoy"}}});
    let config = json!({
        "node": {"id": "edge", "cluster": "edge"},
        "static_resources": {
            "clusters": [
                cluster("sidecar", &pipe, "3600s", None),
                cluster("orders", &socket_address(orders), "2s", Some(mutual("Upstream", "ROOTCA", "orders"))),
            ],
            "listeners": [
                listener((host, OUT).into(), &json!({"route": {"cluster": "orders"}}), None),
                listener((host, IN).into(), &answer, Some(mutual("Downstream", "ALL", "web"))),
            ],
        },
    });
    let path = mesh.directory().join("envoy.json");
    std::fs::write(&path, config.to_string()).expect("the directory can be written to");
    let program = foreign::python("").0.with_file_name("envoy");
    let process = Process::start("envoy", &program, &mesh.directory().join("envoy.log"), |command| {
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--config-path",
        ]);
        command.arg(&path);
    });
    for port in [OUT, IN] {
        wait::until("Envoy listens", Duration::from_secs(60), || {
            assert!(process.ended().is_none(), "Envoy ended: {}", process.log());
            TcpStream::connect((host, port)).is_ok()
        });
    }
    process
}

/// The whole answer to a request at `at`, for a service by this name.
fn get(at: SocketAddr, host: &str) -> String {
    let mut stream = wire::connect(at);
    let request = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// A mesh with an Envoy beside the sidecar `edge`; the parts end in this order.
struct Beside {
    envoy: Process,
    mesh: Mesh,
    origin: Origin,
    host: IpAddr,
    /// Where the workload beside Envoy calls out.
    out: SocketAddr,
    /// Where web's workload does.
    web: SocketAddr,
}

impl Beside {
    fn start(ttl: &str) -> Self {
        let mut plan = Plan::new();
        plan.ttl(ttl);
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.sidecar("edge").workload_api("");
        plan.document("policy.yaml", POLICY);
        let (host, orders) = (plan.spare_address(0), plan.address("orders"));
        let service = |name: &str, endpoint: String| {
            format!(
                "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
                 identity: spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}\n  \
                 ports: [{{port: 80, protocol: http, targetPort: 8080}}]\n  endpoints: [{{{endpoint}}}]\n"
            )
        };
        let services = service("orders", format!("address: {orders}"))
            + &service("edge", format!("address: {host}, meshPort: {IN}, transport: mtls"));
        plan.document("services.yaml", &services);
        let origin = Origin::http((orders, 8080));
        let mesh = plan.start();
        let envoy = start(&mesh, host);
        let (out, web) = (SocketAddr::new(host, OUT), mesh.sidecar("web").outbound());
        // Its listeners stand before its secrets have come.
        wait::until("Envoy has its secrets", Duration::from_secs(20), || {
            get(out, "orders.shop").starts_with("HTTP/1.1 200")
                && get(web, "edge.shop").starts_with("HTTP/1.1 200")
        });
        Self { envoy, mesh, origin, host, out, web }
    }

    /// One call each way, which must be answered.
    fn both_ways(&self, asked: u32) {
        let answer = get(self.out, "orders.shop");
        assert!(answer.starts_with("HTTP/1.1 200"), "{asked}: {answer}\n{}", self.envoy.log());
        let answer = get(self.web, "edge.shop");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("from Envoy"),
            "{asked}: {answer}\n{}",
            self.envoy.log()
        );
    }

    fn nothing_was_refused(&self) {
        let refused =
            r#"postern_workload_api_requests_total{method="StreamSecrets",result="refused_by_client"}"#;
        assert_eq!(self.mesh.sidecar("edge").metrics().value(refused), 0.0, "{}", self.envoy.log());
    }
}

#[test]
fn an_envoy_with_secrets_from_its_sidecar_is_a_peer_both_ways_across_renewals() {
    if !foreign::need(&["envoy", "openssl"]) {
        return;
    }
    // At least; and until three renewals have been seen from both sides.
    let time = Duration::from_secs(if is_long() { 60 } else { 8 });
    let beside = Beside::start("8s");
    let Beside { mesh, origin, host, web, .. } = &beside;

    // Each side takes exactly the one whom it expects, though the roots vouch for all of them.
    let other = get(mesh.sidecar("orders").outbound(), "edge.shop");
    assert!(!other.is_empty() && !other.starts_with("HTTP/1.1 200"), "{other}");
    let other = get(*web, "orders.shop");
    assert!(other.starts_with("HTTP/1.1 403"), "{other}");

    let (mut proven, mut served, mut asked) = (BTreeSet::new(), BTreeSet::new(), 0);
    let begun = Instant::now();
    let enough = |proven: &BTreeSet<String>, served: &BTreeSet<String>| {
        proven.len() >= 4 && served.len() >= 4 && proven.intersection(served).count() >= 3
    };
    while begun.elapsed() < time || !enough(&proven, &served) {
        assert!(begun.elapsed() < Duration::from_secs(60), "proven {proven:?}, served {served:?}");
        beside.both_ways(asked);
        asked += 1;
        if asked % 10 == 0 {
            proven.extend(peers(mesh));
            served.insert(shown(SocketAddr::new(*host, IN)));
        }
        wait::pause(Duration::from_millis(20));
    }
    // Envoy has proven and served what its sidecar got, and orders has seen who it is.
    assert!(asked > 100, "that was no load: {asked}");
    let seen = origin.last();
    assert_eq!(
        seen.header("x-forwarded-client-cert"),
        ["URI=spiffe://demo.postern/ns/shop/sa/edge"],
        "{seen:?}"
    );
    beside.nothing_was_refused();
}

#[test]
fn an_envoy_follows_from_one_root_to_the_next() {
    if !foreign::need(&["envoy", "openssl"]) {
        return;
    }
    let beside = Beside::start("8s");
    let mesh = &beside.mesh;
    let ca = |arguments: &[&str]| ca(mesh, arguments);
    let roots = || roots(mesh).into_iter().map(|(_, state)| state).collect::<Vec<_>>();
    println!("{}", ca(&["root", "prepare"]).trim());
    let (begun, mut asked, mut served) = (Instant::now(), 0, BTreeSet::new());
    loop {
        beside.both_ways(asked);
        asked += 1;
        if asked % 20 == 0 {
            let of = shown_issuer(SocketAddr::new(beside.host, IN));
            if served.insert(of.clone()) {
                println!("{:5.1} s  Envoy serves a certificate of {of}", begun.elapsed().as_secs_f64());
            }
            if roots() == ["removed", "active"] {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "{}", ca(&["status"]));
        wait::pause(Duration::from_millis(20));
    }
    // And once more without what the old root had vouched for.
    (0..20).for_each(|more| beside.both_ways(asked + more));
    assert!(served.len() >= 2, "{served:?}");
    println!("{asked} calls each way, none failed");
    beside.nothing_was_refused();
}

/// A root whose key is lost: nobody's request fails, and in the end nobody takes what it has vouched for, Envoy neither.
#[test]
fn an_envoy_comes_through_an_emergency_and_refuses_every_old_chain_in_the_end() {
    if !foreign::need(&["envoy", "curl", "openssl"]) {
        return;
    }
    // Long enough for the two renewals, each of which Envoy's connections outlive by two seconds.
    let beside = Beside::start("20s");
    let mesh = &beside.mesh;
    let papers = mesh.directory().join("stolen.pem");
    std::fs::copy(mesh.sidecar("web").state().join("svid.pem"), &papers).expect("the sidecar has stored it");
    let papers = papers.display().to_string();
    let thief = || {
        let url = format!("https://{}/", SocketAddr::new(beside.host, IN));
        let as_web = ["--insecure", "--http2", "--max-time", "5", "--cert", &papers, "--key", &papers, &url];
        mesh.curl_directly(&as_web).status
    };
    assert_eq!(thief(), 200, "a copied key is good until somebody notices");
    let (root, _) = roots(mesh).remove(0);
    let (begun, mut asked) = (Instant::now(), 0);
    let said = std::thread::scope(|scope| {
        let tainting = scope.spawn(|| ca(mesh, &["taint", &root, "--reason", "root key lost"]));
        while !tainting.is_finished() {
            beside.both_ways(asked);
            asked += 1;
            wait::pause(Duration::from_millis(20));
        }
        tainting.join().expect("the verb came to its end")
    });
    print!("{said}");
    assert!(said.contains("all 3 sidecars refuse"), "{said}");
    // Its dates are right still: it was refused within the time that the verb has printed.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_ne!(thief(), 200, "what came from the tainted root is refused by Envoy too");
    let ours = SocketAddr::new(beside.host, IN);
    let fresh = shown_issuer(ours);
    let issued = ca(mesh, &["status", "--json"]);
    let status: Value = serde_json::from_str(&issued).expect("it is JSON");
    let active = status["authorities"].as_array().cloned().unwrap_or_default();
    let active = active.iter().find(|one| one["kind"] == "issuing" && one["state"] == "active").cloned();
    let label = active.map(|one| one["label"].to_string()).unwrap_or_default();
    assert!(label.contains(&fresh), "Envoy serves a certificate of {fresh}, {label} signs");
    (0..50).for_each(|more| beside.both_ways(asked + more));
    println!("{asked} calls each way meanwhile, none failed");
    beside.nothing_was_refused();
}

/// `postern ca …` on the mesh's control plane.
fn ca(mesh: &Mesh, arguments: &[&str]) -> String {
    let mut command = Command::new(postern());
    command.arg("ca").args(arguments).arg("--config").arg(mesh.control.config());
    let ran = foreign::run(&mut command, Duration::from_secs(90));
    assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.text(), ran.stderr);
    ran.text()
}

/// Label and state of each root, oldest first.
fn roots(mesh: &Mesh) -> Vec<(String, String)> {
    let status: Value = serde_json::from_str(&ca(mesh, &["status", "--json"])).expect("it is JSON");
    let all = status["authorities"].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let roots = all.iter().filter(|one| one["kind"] == "root");
    roots.map(|one| (text(one, "label"), text(one, "state"))).collect()
}

/// The unique name of the CA that signed the certificate which a stranger is shown.
fn shown_issuer(at: SocketAddr) -> String {
    let shown = openssl(&["s_client", "-connect", &at.to_string(), "-alpn", "h2"], b"");
    let issuer = openssl(&["x509", "-noout", "-issuer", "-nameopt", "sep_multiline"], &shown.stdout);
    let text = issuer.text();
    let name = text.lines().find_map(|line| line.trim().strip_prefix("serialNumber="));
    name.unwrap_or_else(|| panic!("{text}{}", shown.text())).to_owned()
}

/// The serial numbers that orders has seen edge prove.
fn peers(mesh: &Mesh) -> Vec<String> {
    let connections = mesh.sidecar("orders").admin("/v1/connections")["connections"].clone();
    let all = connections.as_array().cloned().unwrap_or_default();
    let inbound = all.iter().filter(|connection| connection["direction"] == "inbound");
    inbound.filter_map(|connection| connection["serial"].as_str().map(str::to_owned)).collect()
}

/// The serial number of the certificate that a stranger is shown.
fn shown(at: SocketAddr) -> String {
    let shown = openssl(&["s_client", "-connect", &at.to_string(), "-alpn", "h2"], b"");
    let serial = openssl(&["x509", "-noout", "-serial"], &shown.stdout);
    let text = serial.text();
    let serial = text.trim().strip_prefix("serial=").unwrap_or_else(|| panic!("{}", shown.text()));
    serial.to_ascii_lowercase()
}
