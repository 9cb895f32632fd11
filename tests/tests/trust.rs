//! A root that leaves the trust bundle takes with it what rests on it, open connections included.
//!
//! Two sidecars come back from state directories whose bundle holds a second root, and one of them shows a certificate of
//! that root. Then the control plane returns, and its bundle does not know the second root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use postern_tests::{Forge, Mesh, Origin, Plan, Sidecar, TRUST_DOMAIN, wait, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: everybody, namespace: shop}
spec:
  target: {all: true}
  action: Allow
  rules:
  - name: shop
    from: [{namespaces: [shop]}]
"#;

struct Shop {
    mesh: Mesh,
    _origins: [Origin; 2],
}

impl Shop {
    /// All sidecars trust both roots, `outsider` has its certificate from the second one, and there is no control plane.
    fn with_two_roots(outsider: &str) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.sidecar("steady").serves(80, 8080, "http");
        plan.document("policy.yaml", &POLICY.replace("{all: true}", "{selector: {app: orders}}"));
        plan.document(
            "steady.yaml",
            &POLICY.replace("{all: true}", "{selector: {app: steady}}").replace("everybody", "steady"),
        );
        let origins = ["orders", "steady"].map(|name| Origin::http((plan.address(name), 8080)));
        let mesh = plan.start();
        mesh.control.kill();
        let second = Forge::foreign(&mesh, TRUST_DOMAIN);
        let roots = fs::read_to_string(mesh.control.state().join("bundle.pem")).expect("it was written");
        for sidecar in &mesh.sidecars {
            sidecar.kill();
            let bundle = format!(
                "postern-bundle 1\ntrust-domain: {TRUST_DOMAIN}\nsequence: 0\n{roots}{}",
                second.issuing_pem()
            );
            private(&sidecar.state().join("bundle.pem"), &bundle);
        }
        let papers = second.leaf(outsider, &mesh.sidecar(outsider).id(), |_| {});
        let read = |path: &Path| fs::read_to_string(path).expect("it was just written");
        let svid = format!("postern-svid 1\n{}{}", read(&papers.key), read(&papers.chain));
        private(&mesh.sidecar(outsider).state().join("svid.pem"), &svid);
        for sidecar in &mesh.sidecars {
            sidecar.start();
        }
        for sidecar in &mesh.sidecars {
            sidecar.wait_ready();
            assert_eq!(bundle_of(sidecar), (0, 2));
        }
        Self { mesh, _origins: origins }
    }

    /// A response without end, through the sidecar `from`.
    fn endless(&self, from: &str, to: &str) -> TcpStream {
        let mut stream = wire::connect(self.mesh.sidecar(from).outbound());
        write!(stream, "GET /endless HTTP/1.1\r\nHost: {to}.shop\r\n\r\n").expect("the sidecar reads");
        assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"), "{from} calls {to}");
        stream.read_exact(&mut [0; 100]).expect("it goes on");
        stream
    }

    /// Brings the control plane back and waits until `at` has its bundle.
    fn the_root_goes(&self, at: &str) {
        self.mesh.control.start();
        let sidecar = self.mesh.sidecar(at);
        wait::until("the control plane's bundle is in force", Duration::from_secs(60), || {
            bundle_of(sidecar) == (1, 1)
        });
    }

    fn distrusted(&self, at: &str, direction: &str) -> f64 {
        let name = format!("postern_connections_distrusted_total{{direction=\"{direction}\"}}");
        self.mesh.sidecar(at).metrics().value(&name)
    }
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}

fn bundle_of(sidecar: &Sidecar) -> (u64, u64) {
    let bundle = &sidecar.admin("/v1/identity")["bundle"];
    (bundle["sequence"].as_u64().unwrap_or(u64::MAX), bundle["roots"].as_u64().unwrap_or(0))
}

/// Reads until the stream breaks off; it must, before `within` is over.
fn breaks_off(stream: &mut TcpStream, within: Duration) {
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("it is a socket");
    let (start, mut pieces) = (Instant::now(), Vec::new());
    let mut piece = [0; 4_096];
    loop {
        assert!(start.elapsed() < within, "it still runs");
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => pieces.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    assert!(!pieces.ends_with(b"0\r\n\r\n"), "a cut must not look like an end");
}

fn goes_on(stream: &mut TcpStream) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        stream.read_exact(&mut [0; 10]).expect("whom the bundle vouches for is left alone");
    }
}

#[test]
fn a_caller_whose_root_is_gone_is_cut_off() {
    let shop = Shop::with_two_roots("web");
    let mut cut = shop.endless("web", "orders");
    let mut kept = shop.endless("steady", "orders");
    shop.the_root_goes("orders");
    breaks_off(&mut cut, Duration::from_secs(2));
    goes_on(&mut kept);
    assert_eq!(shop.distrusted("orders", "inbound"), 1.0);
    assert_eq!(shop.distrusted("web", "outbound"), 0.0, "it was orders that closed");
    let orders = shop.mesh.sidecar("orders");
    let connections = orders.admin("/v1/connections").to_string();
    assert!(!connections.contains("/sa/web") && connections.contains("/sa/steady"), "{connections}");
    let log = orders.log();
    assert!(log.contains("no longer vouches for a peer") && log.contains("/sa/web"), "{log}");
}

#[test]
fn a_service_whose_root_is_gone_is_let_go() {
    let shop = Shop::with_two_roots("orders");
    let mut cut = shop.endless("web", "orders");
    let mut kept = shop.endless("web", "steady");
    shop.the_root_goes("web");
    breaks_off(&mut cut, Duration::from_secs(2));
    goes_on(&mut kept);
    assert_eq!(shop.distrusted("web", "outbound"), 1.0);
    assert_eq!(shop.distrusted("orders", "inbound"), 0.0, "it was web that let go");
    let log = shop.mesh.sidecar("web").log();
    assert!(log.contains("the connection to it is cut") && log.contains("/sa/orders"), "{log}");
}
