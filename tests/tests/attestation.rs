//! Sidecars that start from nothing by a cluster's tokens: made by PyJWT, with the claims of a real cluster.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::{Issuer, Mesh, Metrics, Origin, Plan, foreign, postern, wait};

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
"#;

const REGISTRATIONS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: accounts}
spec:
  id: spiffe://demo.postern/ns/{k8s.namespace}/sa/{k8s.serviceAccount}
  from:
  - k8s: {cluster: eu, namespaces: [shop], serviceAccounts: ["*"]}
---
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: job}
spec:
  id: spiffe://demo.postern/ns/shop/sa/job
  from:
  - oidc: {provider: ci, subjects: ["repo:acme/shop:*"], claims: {environment: [production]}}
"#;

/// A mesh whose sidecars prove themselves by tokens of `issuer`.
struct Attested {
    issuer: Issuer,
    mesh: Mesh,
}

impl Attested {
    fn start(plan: Plan) -> Self {
        let mesh = plan.prepare();
        let issuer = Issuer::start(&mesh, mesh.spare_address(0), 8_443);
        let attested = Self { issuer, mesh };
        attested.keys("first,second");
        fs::create_dir(attested.path("registrations")).expect("it is new");
        attested.register(REGISTRATIONS);
        let mut config = fs::read_to_string(attested.mesh.control.config()).expect("the plan wrote it");
        let keys = attested.path("jwks.json");
        let keys = keys.display();
        config.push_str(&format!(
            "attestation:\n  kubernetes:\n  - {{cluster: eu, issuer: https://kubernetes.default.svc.cluster.local, jwks: {{file: {keys}}}}}\n  \
             oidc:\n  - {{provider: ci, issuer: https://ci.example, audience: postern, jwks: {{file: {keys}}}}}\n\
             registrations: {}\n",
            attested.path("registrations").display()
        ));
        fs::write(attested.mesh.control.config(), config).expect("it is ours");
        attested.mesh.control.start();
        attested
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mesh.directory().join(name)
    }

    fn keys(&self, keys: &str) {
        replace(&self.path("jwks.json"), &self.issuer.keys(&self.mesh, keys));
    }

    fn register(&self, text: &str) {
        replace(&self.path("registrations/all.yaml"), text);
    }

    /// As an API server of 1.35 makes it for a pod, for an hour.
    fn token(&self, key: &str, account: &str, more: &str) -> String {
        let claims = format!(
            r#"{{"iss": "https://kubernetes.default.svc.cluster.local", "aud": ["postern:demo.postern"], "exp": 3600, "iat": 0, "nbf": 0,
              "jti": "0f2a6b1c-4c8e-4f39-9d55-0f7f2ac3a5d1", "sub": "system:serviceaccount:shop:{account}",
              "kubernetes.io": {{"namespace": "shop", "node": {{"name": "node-1", "uid": "3d9e4b6a-5e0f-4a77-8a53-d0d3f3b9a1f0"}},
                "pod": {{"name": "{account}-7d4b9c", "uid": "9b1c7e52-0a50-4f0c-b0c9-0a8f2f7f0c11"}},
                "serviceaccount": {{"name": "{account}", "uid": "5a1b2c3d-1111-2222-3333-444455556666"}}}}{more}}}"#
        );
        self.issuer.token(&self.mesh, key, &claims, "")
    }

    /// Gives a sidecar this token in place of a join token.
    fn give(&self, sidecar: &str, field: &str, token: &str) {
        let file = self.path(&format!("{sidecar}.projected"));
        replace(&file, token);
        let sidecar = self.mesh.sidecar(sidecar);
        let config = fs::read_to_string(sidecar.config()).expect("the plan wrote it");
        let by_token = format!("joinToken: {}", sidecar.token().display());
        let config = config.replace(&by_token, &format!("{field}: {}", file.display()));
        assert!(config.contains(field), "{config}");
        fs::write(sidecar.config(), config).expect("it is ours");
    }

    fn metrics(&self) -> Metrics {
        Metrics::parse(&self.mesh.control.page("/metrics").expect("it answers").1)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("control.log")).expect("there is a log")
    }
}

/// As kubelet and editors do it: never half.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("the directory is ours");
    fs::rename(&new, path).expect("both are ours");
}

fn issued(proof: &str) -> String {
    format!("postern_ca_issued_total{{proof=\"{proof}\"}}")
}

#[test]
fn sidecars_start_from_nothing_and_call_each_other() {
    if !foreign::need(&["jwt"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.ttl("12s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.sidecar("job");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let attested = Attested::start(plan);
    let mesh = &attested.mesh;
    attested.give("web", "serviceAccountToken", &attested.token("first", "web", ""));
    attested.give("orders", "serviceAccountToken", &attested.token("second", "orders", ""));
    let job = r#"{"iss": "https://ci.example", "aud": "postern", "sub": "repo:acme/shop:ref:refs/heads/main", "environment": "production"}"#;
    attested.give("job", "oidcToken", &attested.issuer.token(mesh, "first", job, ""));
    for sidecar in &mesh.sidecars {
        sidecar.start();
    }
    for sidecar in &mesh.sidecars {
        sidecar.wait_ready();
    }
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    assert_eq!(origin.requests().len(), 1);

    // A broken set changes nothing, and is told with its place.
    attested.register(&REGISTRATIONS.replace("namespaces", "namespace"));
    wait::until("the broken set is refused", wait::PATIENCE, || {
        mesh.control.page("/ready").is_some_and(|(_, text)| text.contains("registrations_refused"))
    });
    assert!(mesh.control.page("/ready").is_some_and(|(status, _)| status == 200));
    assert!(attested.log().contains("all.yaml:8:"), "{}", attested.log());
    let before = attested.metrics().value(&issued("kubernetes"));
    // Everybody renews by it, each in its own lineage.
    wait::until("renewals", wait::PATIENCE, || {
        let metrics = attested.metrics();
        metrics.value(&issued("kubernetes")) >= before + 4.0 && metrics.value(&issued("oidc")) >= 2.0
    });
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    let state = mesh.control.state().display().to_string();
    let mut search = Command::new(postern());
    search.args(["ca", "ledger", "search", "--kind", "certificate", "--json", "--state-dir", &state]);
    let found = foreign::run(&mut search, wait::PATIENCE).text();
    let mut lineages = BTreeMap::<String, Vec<String>>::new();
    for line in found.lines().filter(|line| line.contains("kubernetes") || line.contains("oidc")) {
        let record: serde_json::Value = serde_json::from_str(line).expect("one object a line");
        let text =
            |name: &str| record[name].as_str().unwrap_or_else(|| panic!("{name}: {record}")).to_owned();
        assert!(
            text("facts").contains(if text("proof") == "oidc" { "oidc:sub:repo" } else { "k8s:ns:shop" }),
            "{record}"
        );
        assert!(["accounts", "job"].contains(&text("registration").as_str()), "{record}");
        lineages.entry(text("id")).or_default().push(text("lineage"));
    }
    assert!(lineages.len() == 3 && lineages.values().all(|all| all[0] == all[1]), "{lineages:?}");

    // Keys are exchanged: the file is read again, and who has no new token is refused, in one opaque sentence.
    attested.keys("first");
    wait::until("orders is refused", wait::PATIENCE, || {
        mesh.sidecar("orders")
            .log()
            .contains("the proof was not accepted; the control plane's log has the reason")
    });
    assert!(attested.log().contains("`kid`"), "{}", attested.log());
    replace(&attested.path("orders.projected"), &attested.token("first", "orders", ""));
    let serial = mesh.sidecar("orders").serial();
    wait::until("orders renews by its new token", wait::PATIENCE, || {
        mesh.sidecar("orders").serial() != serial
    });

    // Without its registration an identity ends.
    attested.register(&REGISTRATIONS.replace("[shop]", "[bank]"));
    wait::until("web is refused", wait::PATIENCE, || {
        mesh.sidecar("web").log().contains("no registration grants it the id asked for")
    });
    assert!(
        attested.log().contains("nearest is accounts (does not fit: k8s:ns:shop, wanted: bank)"),
        "{}",
        attested.log()
    );
    // It said so while it could: what a token says is in no answer.
    assert!(!mesh.sidecar("web").log().contains("wanted: bank"));
}

/// Whatever PyJWT signs and whatever is forged from it: no proof.
#[test]
fn no_other_token_gets_in() {
    if !foreign::need(&["jwt"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    let attested = Attested::start(plan);
    let mesh = &attested.mesh;
    let good = attested.token("first", "web", "");
    let (message, _) = good.rsplit_once('.').expect("three parts");
    let (_, claims) = message.split_once('.').expect("three parts");
    let none = "eyJhbGciOiJub25lIiwia2lkIjoiZmlyc3QifQ";
    for (token, says) in [
        (format!("{none}.{claims}."), "RS256 or ES256"),
        (attested.token("third", "web", ""), "RS256 or ES256"),
        (attested.token("stolen", "web", ""), "`kid`"),
        (attested.issuer.token(mesh, "stolen", "{}", "&as=first"), "no cluster"),
        (
            attested.token("first", "web", r#", "aud": ["https://kubernetes.default.svc"]"#),
            "not for postern:demo.postern",
        ),
        (attested.token("first", "web", r#", "iss": "https://elsewhere""#), "no cluster"),
        (attested.token("first", "web", r#", "exp": -1"#), "ended"),
        (attested.token("first", "web", r#", "exp": 7300"#), "7300 s"),
        (
            attested.token(
                "first",
                "web",
                r#", "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "1"}}"#,
            ),
            "pod",
        ),
        ("a".repeat(8_000), "three parts"),
    ] {
        attested.give("web", "serviceAccountToken", &token);
        let sidecar = mesh.sidecar("web");
        let refused = |log: &str| log.matches("certificate refused").count();
        let before = refused(&attested.log());
        sidecar.start();
        wait::until("it is refused", wait::PATIENCE, || refused(&attested.log()) > before);
        sidecar.kill();
        let log = attested.log();
        let last = log.lines().rfind(|line| line.contains("certificate refused")).unwrap_or_default();
        assert!(last.contains(says), "{says}: {last}");
    }
    assert!(attested.metrics().value(&issued("kubernetes")) < 0.5);
    replace(&attested.path("web.projected"), &good);
    let web = mesh.sidecar("web");
    web.start();
    wait::until("the good one gets in", wait::PATIENCE, || web.log().contains("new SVID in force"));
}

/// Certificates that OpenSSL made for machines, RSA and P-256: each signs for its own connection, with every renewal.
#[test]
fn machines_start_by_certificates_of_their_own_ca() {
    if !foreign::need(&["openssl"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.ttl("12s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.prepare();
    let path = |name: &str| mesh.directory().join(name).display().to_string();
    let run = |arguments: &[&str]| {
        let made = foreign::run(Command::new("openssl").args(arguments), wait::PATIENCE);
        assert_eq!(made.code, 0, "openssl {arguments:?}: {}", made.stderr);
    };
    let ca = |name: &str| {
        let (key, pem, subject) =
            (path(&format!("{name}.key")), path(&format!("{name}.pem")), format!("/CN={name}"));
        run(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &pem,
            "-subj",
            &subject,
            "-days",
            "2",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ]);
        (key, pem)
    };
    let (hall, other) = (ca("hall"), ca("other"));
    let names = path("names");
    fs::write(&names, "subjectAltName=DNS:machine.example\n").expect("it is ours");
    let machine = |name: &str, kind: &[&str], by: &(String, String)| {
        let (key, csr, pem) = (
            path(&format!("{name}-vm.key")),
            path(&format!("{name}-vm.csr")),
            path(&format!("{name}-vm.pem")),
        );
        let subject = format!("/CN={name}");
        let request = ["req", "-nodes", "-keyout", &key, "-out", &csr, "-subj", &subject];
        run(&[&request, kind].concat());
        run(&[
            "x509", "-req", "-in", &csr, "-CA", &by.1, "-CAkey", &by.0, "-days", "1", "-extfile", &names,
            "-out", &pem,
        ]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let sidecar = mesh.sidecar(name);
        let config = fs::read_to_string(sidecar.config()).expect("the plan wrote it");
        let by_token = format!("joinToken: {}", sidecar.token().display());
        let config = config.replace(&by_token, &format!("x509pop: {{certificate: {pem}, key: {key}}}"));
        fs::write(sidecar.config(), config).expect("it is ours");
    };
    machine("web", &["-newkey", "rsa:2048"], &other);
    machine("orders", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &hall);
    let registrations = path("registrations");
    fs::create_dir(&registrations).expect("it is new");
    let registration = "apiVersion: postern.dev/v1alpha1\nkind: Registration\nmetadata: {name: machines}\nspec:\n  \
        id: spiffe://demo.postern/ns/shop/sa/{x509pop.commonName}\n  \
        from: [{x509pop: {ca: hall, commonNames: [web, orders], dnsNames: [machine.example]}}]\n";
    fs::write(format!("{registrations}/machines.yaml"), registration).expect("it is ours");
    let mut config = fs::read_to_string(mesh.control.config()).expect("the plan wrote it");
    config.push_str(&format!(
        "attestation: {{x509pop: [{{ca: hall, bundle: {}}}]}}\nregistrations: {registrations}\n",
        hall.1
    ));
    fs::write(mesh.control.config(), config).expect("it is ours");
    mesh.control.start();
    for sidecar in &mesh.sidecars {
        sidecar.start();
    }
    // A certificate of another CA is none, whatever it says.
    wait::until("web is refused", wait::PATIENCE, || {
        mesh.sidecar("web").log().contains("the proof was not accepted")
    });
    mesh.sidecar("web").kill();
    machine("web", &["-newkey", "rsa:2048"], &hall);
    mesh.sidecar("web").start();
    for sidecar in &mesh.sidecars {
        sidecar.wait_ready();
    }
    let serial = mesh.sidecar("web").serial();
    wait::until("web renews", wait::PATIENCE, || mesh.sidecar("web").serial() != serial);
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    let metrics = Metrics::parse(&mesh.control.page("/metrics").expect("it answers").1);
    assert!(metrics.value(&issued("x509pop")) > 2.5);
}

/// On one machine no secret is needed: the kernel says who connects.
#[test]
fn processes_of_this_machine_start_by_what_the_kernel_says() {
    let mut plan = Plan::new();
    plan.ttl("12s");
    plan.sidecar("web");
    plan.document("policy.yaml", POLICY);
    let mesh = plan.prepare();
    let socket = mesh.directory().join("identity.sock");
    let registrations = mesh.directory().join("registrations");
    fs::create_dir(&registrations).expect("it is new");
    let register = |uid: u32| {
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Registration\nmetadata: {{name: local}}\nspec:\n  \
             id: spiffe://demo.postern/ns/shop/sa/web\n  from: [{{unix: {{uids: [{uid}]}}}}]\n"
        );
        replace(&registrations.join("local.yaml"), &text);
    };
    let own = nix::unistd::geteuid().as_raw();
    register(own + 1);
    let mut config = fs::read_to_string(mesh.control.config()).expect("the plan wrote it");
    config.push_str(&format!(
        "listenUnix: {}\nregistrations: {}\n",
        socket.display(),
        registrations.display()
    ));
    fs::write(mesh.control.config(), config).expect("it is ours");
    let web = mesh.sidecar("web");
    let config = fs::read_to_string(web.config()).expect("the plan wrote it");
    let config = config.replace(&format!("joinToken: {}", web.token().display()), "peerProcess: {}").replace(
        &format!("address: {}:24150", mesh.control.address()),
        &format!("address: unix:{}", socket.display()),
    );
    fs::write(web.config(), config).expect("it is ours");
    mesh.control.start();
    web.start();
    wait::until("another user's is refused", wait::PATIENCE, || {
        web.log().contains("no registration grants it")
    });
    register(own);
    web.wait_ready();
    let serial = web.serial();
    wait::until("it renews", wait::PATIENCE, || web.serial() != serial);
    let metrics = Metrics::parse(&mesh.control.page("/metrics").expect("it answers").1);
    assert!(metrics.value(&issued("unix")) > 1.5);
    // What is left of a control plane that was killed makes way.
    mesh.control.kill();
    mesh.control.start();
}

#[test]
fn the_operator_asks_what_is_registered() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let all = directory.path().join("all.yaml");
    fs::write(&all, REGISTRATIONS).expect("it is ours");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(postern());
        command.args(["ca", "registration"]).args(arguments);
        command.arg(directory.path()).args(["--trust-domain", "demo.postern"]);
        let run = foreign::run(&mut command, wait::PATIENCE);
        (run.code, format!("{}{}", run.text(), run.stderr))
    };
    let (code, said) = run(&["check"]);
    assert!(code == 0 && said.contains("2 registrations, no mistakes"), "{said}");
    let web = ["--id", "spiffe://demo.postern/ns/shop/sa/web"];
    let facts = |namespace: &str| {
        ["k8s:cluster:eu".to_owned(), format!("k8s:ns:{namespace}"), "k8s:sa:web".to_owned()]
    };
    let explain = |namespace: &str, more: &[&str]| {
        let facts = facts(namespace);
        let facts = facts.iter().flat_map(|fact| ["--fact", fact]);
        let arguments: Vec<&str> =
            ["explain"].into_iter().chain(web).chain(facts).chain(more.iter().copied()).collect();
        run(&arguments)
    };
    let (code, said) = explain("shop", &[]);
    assert!(
        code == 0 && said.contains("is granted to k8s:cluster:eu") && said.contains("all.yaml:4:18"),
        "{said}"
    );
    let (code, said) = explain("bank", &[]);
    assert!(
        code == 1 && said.contains("is not granted") && said.contains("k8s:ns:bank, wanted: shop"),
        "{said}"
    );
    let (code, said) = explain("bank", &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("one object");
    assert!(
        code == 1 && json["granted"] == false && json["registrations"][0]["name"] == "accounts",
        "{said}"
    );
    let (code, said) = run(&["explain", web[0], web[1], "--fact", "k8s:namespace:shop"]);
    assert!(code == 2 && said.contains("k8s:ns"), "{said}");

    fs::write(&all, REGISTRATIONS.replace("subjects", "subject")).expect("it is ours");
    let (code, said) = run(&["check"]);
    assert!(code == 1 && said.contains("all.yaml:16:") && said.contains("did you mean `subjects`"), "{said}");
    let (code, said) = run(&["check", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("one object");
    assert!(code == 1 && json["ok"] == false && json["findings"][0]["line"] == 16, "{said}");
}
