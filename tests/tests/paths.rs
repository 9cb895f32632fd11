//! How paths travel through a sidecar pair to a server of Python's that says what it got. The tables of docs/paths.md are
//! read from the page and asked for, row by row.

use std::path::Path;

use postern_tests::{Mesh, Peer, Plan, Process, foreign, wait, wire};

/// Of each port's number in the tables: 80 says nothing, 81 keeps, 82 decodes, 83 preserves, 84 preserves and keeps; no
/// rule speaks of paths there. 85 preserves, and rules speak of paths.
const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: store, namespace: shop}
spec:
  target: {selector: {app: store}}
  action: Allow
  rules:
  - name: any-path
    from: [{serviceAccounts: [web]}]
    to: [{ports: [8080, 8081, 8082, 8083, 8084]}]
  - name: some-paths
    from: [{serviceAccounts: [web]}]
    to: [{pathPrefix: [/bucket, "/@scope%2Fpkg"], ports: [8085]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: store-not, namespace: shop}
spec:
  target: {selector: {app: store}}
  action: Deny
  rules:
  - name: admin
    from: [{serviceAccounts: [web]}]
    to: [{pathPrefix: [/admin], ports: [8080, 8081, 8082]}]
"#;

struct Pair {
    // Dropped first: it prints its log from the mesh's directory.
    _server: Process,
    mesh: Mesh,
}

impl Pair {
    fn start(plan: Plan, ports: &[&str]) -> Self {
        let address = plan.address("store");
        let mesh = plan.start();
        let (python, script) = foreign::python("echo_server.py");
        let server =
            Process::start("echo_server", &python, &mesh.directory().join("server.log"), |command| {
                command.arg(script).arg(address.to_string()).args(ports);
            });
        wait::until("the server listens", wait::PATIENCE, || server.log().contains("listening"));
        Self { _server: server, mesh }
    }

    /// The status, and what the server got: its request line's target and its Host.
    fn ask(&self, target: &str, host: &str) -> (u16, Option<(String, String)>) {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = wire::exchange(self.mesh.sidecar("web").outbound(), text.as_bytes());
        let status = wire::status(&answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let seen = body.split_once("\nHost: ").and_then(|(line, host)| {
            let target = line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1")?;
            Some((target.to_owned(), host.trim_end().to_owned()))
        });
        assert_eq!(seen.is_some(), status == 200, "{target} {host}: {answer}");
        (status, seen)
    }
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/paths.md");
    std::fs::read_to_string(path).expect("the page is there")
}

/// The cells of the page's rows that begin with a Service's port.
fn rows(page: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let inside = line.trim().trim_matches('|');
        inside.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows = page.lines().filter(|line| line.starts_with("| 8")).map(cells);
    rows.collect()
}

#[test]
fn the_page_says_what_is_answered() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    let store = plan.sidecar("store");
    store.serves(80, 8080, "http");
    store.serves(81, 8081, "http").paths("escapedSlashes: Keep");
    store.serves(82, 8082, "http").paths("escapedSlashes: Decode");
    store.serves(83, 8083, "http").paths("preserveRawPath: true");
    store.serves(84, 8084, "http").paths("escapedSlashes: Keep, preserveRawPath: true");
    store.serves(85, 8085, "http").paths("escapedSlashes: Keep, preserveRawPath: true");
    plan.document("policy.yaml", POLICY);
    let pair = Pair::start(plan, &["8080", "8081", "8082", "8083", "8084", "8085"]);
    let rows = rows(&page());
    assert!(rows.len() >= 40, "the page has its tables: {}", rows.len());
    for row in rows {
        let [port, target, host, expected] = row.as_slice() else { panic!("{row:?}") };
        let host = if host.is_empty() { format!("store.shop:{port}") } else { host.clone() };
        let (status, seen) = pair.ask(target, &host);
        let found = match seen {
            Some((got, got_host)) if got_host == format!("store.shop:{port}") => got,
            Some((got, got_host)) => format!("{got} for {got_host}"),
            None => status.to_string(),
        };
        assert_eq!(found, *expected, "port {port}, {target}, Host {host}");
    }
}

/// The callee's sidecar judges, and forwards what it judged, whatever the caller's made of the path.
#[test]
fn a_difference_between_service_and_workload_opens_nothing() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    let store = plan.sidecar("store");
    store.serves(80, 8080, "http");
    store.serves(81, 8081, "http").paths("escapedSlashes: Keep");
    store.serves(82, 8082, "http").paths("escapedSlashes: Decode");
    store.serves(83, 8083, "http").paths("preserveRawPath: true");
    let address = plan.address("store");
    let says = [
        (180, 8080, "escapedSlashes: Keep"),
        (181, 8081, "escapedSlashes: Reject"),
        (182, 8081, "escapedSlashes: Decode"),
        (183, 8082, "escapedSlashes: Keep"),
        (184, 8080, "preserveRawPath: true"),
        (185, 8083, "escapedSlashes: Reject"),
    ];
    let ports = says.map(|(port, target, paths)| {
        format!("  - {{port: {port}, targetPort: {target}, protocol: http, {paths}}}\n")
    });
    let service = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: store, namespace: shop}}\nspec:\n  \
         identity: spiffe://demo.postern/ns/shop/sa/store\n  ports:\n{}  endpoints: [{{address: {address}}}]\n",
        ports.concat()
    );
    plan.document("services.yaml", &service);
    plan.document("policy.yaml", POLICY);
    let pair = Pair::start(plan, &["8080", "8081", "8082", "8083"]);
    for (port, target, expected) in [
        (180, "/a%2Fb", "400"),
        (181, "/a%2Fb", "400"),
        (182, "/a%2Fb", "/a/b"),
        (182, "/admin%2Fb", "403"),
        (183, "/a%2Fb", "/a/b"),
        (183, "/admin%2Fb", "403"),
        (183, "/a%2F..%2Fadmin", "403"),
        (184, "/a//b", "/a/b"),
        (184, "//admin", "403"),
        (184, "/%61dmin", "403"),
        (185, "/a//b", "/a/b"),
    ] {
        let (status, seen) = pair.ask(target, &format!("store.shop:{port}"));
        let found = seen.map_or_else(|| status.to_string(), |(got, _)| got);
        assert_eq!(found, expected, "port {port}, {target}");
    }
    // A peer with a valid identity need not have a sidecar of ours: what it spells is judged here.
    let peer = Peer::connect(&pair.mesh, "web", "store", pair.mesh.sidecar("store").inbound());
    for (port, target, host, status) in [
        (8080, "//admin", "store.shop", 403),
        (8081, "/admin%2fb", "store.shop", 403),
        (8083, "/a//b", "store.shop", 200),
        (8083, "/a//b", "Store.shop", 400),
        (8083, "/a%2fb", "store.shop", 400),
    ] {
        let mut head = http::Request::new(());
        *head.uri_mut() = format!("http://{host}{target}").parse().expect("it is a URI");
        head.headers_mut().insert("postern-port", port.into());
        let (answer, _stream) = peer.open(head);
        assert_eq!(answer.status(), status, "{port} {target} {host}");
    }
}

/// Rules that come while requests are served: what went on in any spelling is refused from then on.
#[test]
fn a_rule_about_paths_ends_the_freedom_of_spelling() {
    if !foreign::need(&["websockets"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    let store = plan.sidecar("store");
    store.serves(83, 8083, "http").paths("preserveRawPath: true");
    // Without it no rule may name a kept slash.
    store.serves(81, 8081, "http").paths("escapedSlashes: Keep");
    plan.document("policy.yaml", POLICY);
    let pair = Pair::start(plan, &["8083"]);
    let asked = || pair.ask("/bucket//key", "store.shop:83");
    assert_eq!(asked(), (200, Some(("/bucket//key".to_owned(), "store.shop:83".to_owned()))));
    pair.mesh.change("policy.yaml", &POLICY.replace("8081, 8082]", "8081, 8082, 8083]"));
    assert_eq!(asked(), (400, None));
    assert_eq!(pair.ask("/bucket/key", "store.shop:83").0, 200);
    pair.mesh.change("policy.yaml", POLICY);
    assert_eq!(asked().0, 200);
}
