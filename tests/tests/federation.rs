//! Two meshes, two trust domains, two control planes: they exchange their bundles, and their workloads call each other.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, foreign, postern, wait, wire};
use serde_json::Value;

/// Whoever of `{partner}` is allowed may call; nobody of this mesh.
const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: partner, namespace: shop}
spec:
  target: {all: true}
  action: Allow
  rules:
  - name: partner
    from: [{trustDomain: {partner}, serviceAccounts: [{caller}]}]
"#;

/// A service of the other mesh.
const SERVICE: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: {name}, namespace: shop}
spec:
  identity: spiffe://{partner}/ns/shop/sa/{name}
  ports: [{port: 80, targetPort: 8080, protocol: http}]
  endpoints: [{address: {address}}]
"#;

const LONG: Duration = Duration::from_secs(30);

struct Side {
    mesh: Mesh,
    name: &'static str,
    domain: &'static str,
    plain: String,
    _origin: Origin,
}

impl Side {
    fn start((name, domain): (&'static str, &'static str), partner: (&'static str, &'static str)) -> Self {
        let mut plan = Plan::new();
        plan.ttl("2m").trust_domain(domain).control("jwt: {}");
        plan.sidecar(name).serves(80, 8080, "http").workload_api("");
        let policy = POLICY.replace("{partner}", partner.1).replace("{caller}", partner.0);
        plan.document(
            "policy.yaml",
            &policy.replace("{all: true}", &format!("{{selector: {{app: {name}}}}}")),
        );
        let origin = Origin::http((plan.address(name), 8080));
        let mesh = plan.start();
        let plain = std::fs::read_to_string(mesh.control.config()).expect("it is there");
        Self { mesh, name, domain, plain, _origin: origin }
    }

    fn knows(&self, other: &Self) {
        let service = SERVICE.replace("{partner}", other.domain).replace("{name}", other.name);
        let address = other.mesh.address(other.name).to_string();
        self.mesh.change("partner.yaml", &service.replace("{address}", &address));
    }

    /// Restarts the control plane with these lines of `federation` more.
    fn federate(&self, section: &str) {
        self.mesh.control.kill();
        std::fs::write(self.mesh.control.config(), format!("{}{section}", self.plain)).expect("it is ours");
        self.mesh.control.start();
    }

    fn endpoint(&self) -> String {
        format!(
            "federation:\n  listen: {{address: \"{}:24152\"}}\n  profile: https_spiffe\n",
            self.mesh.control.address()
        )
    }

    fn following(&self, other: &Self) -> String {
        format!(
            "  trustDomains:\n  - name: {domain}\n    url: https://{address}:24152/bundle.json\n    profile: https_spiffe\n    \
             spiffeId: spiffe://{domain}/postern/control\n    bootstrapBundle: {bundle}\n",
            domain = other.domain,
            address = other.mesh.control.address(),
            bundle = other.mesh.control.state().join("bundle.pem").display(),
        )
    }

    fn calls(&self, other: &Self) -> u16 {
        self.mesh.curl(self.name, &[&format!("http://{}.shop/status/200", other.name)]).status
    }

    fn endless(&self, other: &Self) -> TcpStream {
        let mut stream = wire::connect(self.mesh.sidecar(self.name).outbound());
        write!(stream, "GET /endless HTTP/1.1\r\nHost: {}.shop\r\n\r\n", other.name)
            .expect("the sidecar reads");
        assert!(
            wire::read_head(&mut stream).starts_with("HTTP/1.1 200"),
            "{} calls {}",
            self.name,
            other.name
        );
        stream
    }
}

fn ends(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("it is a socket");
    let begun = Instant::now();
    let mut piece = [0; 4_096];
    loop {
        assert!(begun.elapsed() < LONG, "it still runs");
        match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[test]
fn two_trust_domains_call_each_other_until_one_leaves() {
    if !foreign::need(&["curl", "openssl"]) {
        return;
    }
    let (one, two) = (("web", "demo.postern"), ("store", "partner.postern"));
    let (ours, theirs) = (Side::start(one, two), Side::start(two, one));
    ours.knows(&theirs);
    theirs.knows(&ours);
    // Nobody vouches for the other side yet, whatever the policy allows.
    assert_ne!((ours.calls(&theirs), theirs.calls(&ours)), (200, 200));

    ours.federate(&format!("{}{}", ours.endpoint(), ours.following(&theirs)));
    theirs.federate(&format!("{}{}", theirs.endpoint(), theirs.following(&ours)));
    wait::until("both call each other", LONG, || ours.calls(&theirs) == 200 && theirs.calls(&ours) == 200);
    let running = ours.endless(&theirs);
    let mut cut = theirs.endless(&ours);
    // The page says whose bundles there are, and the endpoint serves the standard's document to anybody.
    let told = ours.mesh.sidecar("web").admin("/v1/identity");
    assert_eq!(told["federated"][0]["trustDomain"], "partner.postern", "{told}");
    // The first bundle is a file's; the state has what was fetched since.
    wait::until("the state has the fetched bundle", LONG, || {
        let mut status = std::process::Command::new(postern());
        status.args(["ca", "status", "--json", "--config"]).arg(ours.mesh.control.config());
        let status = foreign::run(&mut status, wait::PATIENCE);
        let told: Value = serde_json::from_slice(&status.stdout).expect("it is JSON");
        told["federated"][0]["trustDomain"] == "partner.postern"
    });
    let document = ours.mesh.curl_directly(&[
        "--insecure",
        &format!("https://{}:24152/bundle.json", ours.mesh.control.address()),
    ]);
    assert_eq!(
        (document.status, document.header("content-type")),
        (200, Some("application/json")),
        "{document:?}"
    );
    let document: Value = serde_json::from_slice(&document.body).expect("it is JSON");
    assert_eq!(
        (&document["keys"][0]["use"], &document["keys"][1]["use"]),
        (&"x509-svid".into(), &"jwt-svid".into())
    );
    assert_eq!(document["spiffe_refresh_hint"], 300);

    // A sidecar that comes back without its control plane has the other side's bundle still.
    theirs.mesh.control.kill();
    theirs.mesh.sidecar("store").restart();
    wait::until("it is called", LONG, || ours.calls(&theirs) == 200);
    drop(running);
    theirs.mesh.control.start();
    cut = if theirs.calls(&ours) == 200 { theirs.endless(&ours) } else { cut };

    // One side takes the other out: its connections end at once, both ways, and no new one begins.
    ours.federate(&ours.endpoint());
    ends(&mut cut);
    wait::until("they are refused", LONG, || theirs.calls(&ours) != 200 && ours.calls(&theirs) != 200);
    assert_eq!(ours.mesh.sidecar("web").admin("/v1/identity")["federated"], serde_json::json!([]));
}

/// What `postern ca bundle show` prints is what the endpoint serves.
#[test]
fn the_bundle_for_others() {
    if !foreign::need(&["curl"]) {
        return;
    }
    let mut plan = Plan::new();
    let address = plan.control_address();
    plan.control(&format!("federation: {{listen: {{address: \"{address}:24152\"}}, profile: https_spiffe}}"));
    let mesh = plan.start();
    let url = |path: &str| format!("https://{address}:24152{path}");
    let get = |path: &str| mesh.curl_directly(&["--insecure", &url(path)]);
    let served: Value = serde_json::from_slice(&get("/bundle.json").body).expect("it is JSON");
    let show = |format: &str| {
        let mut command = std::process::Command::new(postern());
        command.args(["ca", "bundle", "show", "--format", format, "--config"]).arg(mesh.control.config());
        let ran = foreign::run(&mut command, LONG);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.text()
    };
    assert_eq!(serde_json::from_str::<Value>(&show("spiffe")).expect("it is JSON"), served);
    let pem = std::fs::read_to_string(mesh.control.state().join("bundle.pem")).expect("it is there");
    assert_eq!(show("pem").trim(), pem.trim());

    assert_eq!((get("/").status, get("/bundle.json?x=1").status), (404, 200));
    assert_eq!(mesh.curl_directly(&["--insecure", "--data", "x", &url("/bundle.json")]).status, 405);
    // A stranger who says nothing is not waited for, and holds nobody up.
    let silent: Vec<TcpStream> =
        (0..100).filter_map(|_| TcpStream::connect((address, 24_152)).ok()).collect();
    assert_eq!(get("/bundle.json").status, 200);
    drop(silent);
    // Plain HTTP is no answer, and TLS without our trust is none for whoever checks it.
    assert_ne!(mesh.curl_directly(&[&url("/bundle.json")]).status, 200);
}
