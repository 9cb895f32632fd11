//! A root that stays offline, with real processes: the ceremony, a mesh below it, tiers that follow each other under load, and what
//! foreign verifiers and linters say of every certificate.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postern_tests::{Load, Mesh, Nginx, Plan, foreign, openssl, pem, postern, target_directory, wait};
use serde_json::Value;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/keys.md");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/offline-root.md");

fn mesh(is_offline: bool) -> Mesh {
    let mut plan = Plan::new();
    if is_offline {
        plan.control("root: {offline: true}");
    }
    // Renewed every two to three seconds.
    plan.ttl("5s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document(
        "policy.yaml",
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: orders, namespace: shop}\nspec:\n  \
         target: {selector: {app: orders}}\n  action: Allow\n  rules: [{name: web, from: [{serviceAccounts: [web]}]}]\n",
    );
    plan.prepare()
}

/// `postern ca …`, where no configuration is.
fn there(arguments: &[&str]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.arg("ca").args(arguments);
    foreign::run(&mut command, Duration::from_secs(60))
}

/// `postern ca …` on the control plane's machine.
fn here(mesh: &Mesh, arguments: &[&str]) -> foreign::Run {
    let config = mesh.control.config().display().to_string();
    there(&[arguments, &["--config", &config]].concat())
}

fn told(run: &foreign::Run) -> Value {
    assert_eq!(run.code, 0, "{}{}", run.text(), run.stderr);
    serde_json::from_slice(&run.stdout).expect("it is JSON")
}

fn path(mesh: &Mesh, name: &str) -> String {
    mesh.directory().join(name).display().to_string()
}

/// The offline root of a mesh, in a directory that its control plane does not know.
struct Vault<'a> {
    mesh: &'a Mesh,
    root: String,
    secret: String,
}

impl<'a> Vault<'a> {
    fn new(mesh: &'a Mesh) -> Self {
        let (root, secret) = (path(mesh, "vault"), path(mesh, "passphrase"));
        fs::write(&secret, "seven words that nobody else has heard\n").expect("the directory is ours");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let vault = Self { mesh, root, secret };
        let made = there(&[
            "init",
            "--offline-root",
            "--trust-domain",
            "demo.postern",
            "--out",
            &vault.root,
            "--passphrase-file",
            &vault.secret,
        ]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert!(made.text().contains("rootSha256") && made.text().contains("--root-cert"), "{}", made.text());
        vault
    }

    fn certificate(&self) -> String {
        format!("{}/root.pem", self.root)
    }

    fn sign(&self, request: &str, out: &str, more: &[&str]) -> foreign::Run {
        let fixed = ["root", "sign", request, "--root", &self.root, "--out", out];
        there(&[&fixed[..], &["--passphrase-file", &self.secret], more].concat())
    }

    /// A tier, from its request to its import.
    fn tier(&self, name: &str, spare: bool) -> Value {
        let (csr, out) = (path(self.mesh, &format!("{name}.csr")), path(self.mesh, &format!("{name}.pem")));
        let asked = told(&here(self.mesh, &["tier", "csr", "--out", &csr, "--another", "--json"]));
        let sha256 = asked["sha256"].as_str().expect("a text");
        told(&self.sign(&csr, &out, &["--expect", sha256, "--json"]));
        let flag: &[&str] = if spare { &["--spare"] } else { &[] };
        told(&here(self.mesh, &[&["tier", "import", &out, "--json"], flag].concat()))
    }
}

fn start(mesh: &Mesh) {
    mesh.control.start();
    for sidecar in &mesh.sidecars {
        sidecar.create_token();
        sidecar.start();
    }
    mesh.sidecars.iter().for_each(postern_tests::Sidecar::wait_ready);
}

/// The certificates of a sidecar's chain, leaf first, as files.
fn chain(mesh: &Mesh, name: &str) -> Vec<String> {
    let text = fs::read_to_string(mesh.sidecar(name).state().join("svid.pem")).expect("it is stored");
    let mut files = Vec::new();
    for one in text.split_inclusive("-----END CERTIFICATE-----\n") {
        let Some(at) = one.find("-----BEGIN CERTIFICATE-----") else { continue };
        let file = path(mesh, &format!("{name}-{}.pem", files.len()));
        fs::write(&file, &one[at..]).expect("the directory is ours");
        files.push(file);
    }
    files
}

/// OpenSSL and GnuTLS believe the chain.
fn believed(chain: &[String], root: &str) {
    let rest: Vec<&str> = chain[1..].iter().flat_map(|file| ["-untrusted", file]).collect();
    for purpose in ["sslclient", "sslserver"] {
        let fixed = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", root];
        let run = openssl(&[&fixed[..], &rest, &[&chain[0]]].concat(), b"");
        assert_eq!(run.code, 0, "{}{}", run.text(), run.stderr);
    }
    let text: Vec<_> = chain.iter().map(|file| fs::read_to_string(file).expect("it is ours")).collect();
    let mut command = Command::new("certtool");
    command.args(["--verify", "--load-ca-certificate", root]);
    let run = foreign::run_with_input(&mut command, text.concat().as_bytes(), wait::PATIENCE);
    assert!(
        run.code == 0 && run.text().contains("Verified. The certificate is trusted"),
        "{}{}",
        run.text(),
        run.stderr
    );
}

#[test]
fn a_ceremony_carries_a_mesh_and_tiers_follow_each_other_under_load() {
    if !foreign::need(&["openssl", "certtool", "pkilint", "h2load", "nginx", "curl"]) {
        return;
    }
    let mesh = mesh(true);
    let vault = Vault::new(&mesh);
    let root = vault.certificate();

    // No root is made here, by no mistake.
    let run = || {
        let mut command = Command::new(postern());
        command.arg("control").arg("--config").arg(mesh.control.config());
        foreign::run(&mut command, wait::PATIENCE)
    };
    for refused in [run(), here(&mesh, &["init"])] {
        assert!(refused.code == 1 && refused.stderr.contains("root.offline"), "{}", refused.stderr);
    }

    // Nothing but the certificate comes here, and nothing runs before the first tier is there.
    let made = told(&here(&mesh, &["init", "--root-cert", &root, "--json"]));
    assert_eq!((&made["offlineRoot"], &made["needed"][0]), (&true.into(), &"tier_missing".into()));
    let state = mesh.control.state();
    let keys = fs::read_dir(state).expect("it was made").map(|entry| entry.expect("readable").file_name());
    assert!(!keys.into_iter().any(|name| name.to_string_lossy().starts_with("root-")), "no root's key");
    let early = run();
    assert!(early.code == 1 && early.stderr.contains("postern ca tier csr"), "{}", early.stderr);

    let (csr, tier) = (path(&mesh, "tier.csr"), path(&mesh, "tier.pem"));
    let asked = here(&mesh, &["tier", "csr", "--out", &csr]);
    assert_eq!(asked.code, 0, "{}", asked.stderr);
    let twice = here(&mesh, &["tier", "csr", "--out", &csr]);
    assert!(twice.code == 1 && twice.stderr.contains("exists already"), "{}", twice.stderr);
    let again = told(&here(&mesh, &["tier", "csr", "--out", &path(&mesh, "again.csr"), "--json"]));
    let sha256 = again["sha256"].as_str().expect("a text").to_owned();
    assert!(asked.text().contains(&sha256) && again["created"] == false, "{}", asked.text());
    // What was not compared is not signed.
    let shown = vault.sign(&csr, &tier, &[]);
    assert!(shown.code == 1 && shown.text().contains(&sha256), "{}{}", shown.text(), shown.stderr);
    let wrong = vault.sign(&csr, &tier, &["--expect", &"0".repeat(64)]);
    assert!(wrong.code == 1 && wrong.stderr.contains("exchanged on its way"), "{}", wrong.stderr);
    let short = vault.sign(&csr, &tier, &["--expect", &sha256[..31]]);
    assert_eq!(short.code, 2, "{}", short.stderr);
    assert!(!Path::new(&tier).exists());
    let signed = vault.sign(&csr, &tier, &["--expect", &sha256[..32]]);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    let record = fs::read_to_string(Path::new(&vault.root).join("signed.log")).expect("it is kept");
    assert!(record.lines().count() == 1 && record.contains(&sha256), "{record}");
    let imported = here(&mesh, &["tier", "import", &tier]);
    assert!(imported.code == 0 && imported.text().contains("start postern control"), "{}", imported.stderr);

    start(&mesh);
    let orders = (mesh.address("orders"), 8080);
    let _nginx = Nginx::start(&mesh, orders, "location / { return 200 \"yes\\n\"; }");
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    let first = chain(&mesh, "orders");
    assert_eq!(first.len(), 3, "leaf, issuing CA, tier");
    believed(&first, &root);
    lint(&[&first[..], std::slice::from_ref(&root)].concat());
    let (_, metrics) = mesh.control.page("/metrics").expect("it answers");
    assert!(
        metrics.contains("postern_ca_authority_not_after_seconds{kind=\"tier\",state=\"active\","),
        "{metrics}"
    );
    assert!(metrics.contains("postern_ca_operator_needed{what=\"tier_renewal_due\"} 0"), "{metrics}");
    let refused = here(&mesh, &["root", "prepare"]);
    assert!(refused.code == 1 && refused.stderr.contains("postern ca root import"), "{}", refused.stderr);

    // Another tier under load.
    let before = fs::read(&first[2]).expect("it is ours");
    let load = Load::start(&mesh, "web", "http://orders.shop/", Duration::from_secs(7));
    let next = vault.tier("next", false);
    assert_eq!(next["active"], true);
    for name in ["web", "orders"] {
        wait::until(&format!("{name} shows the new tier"), wait::PATIENCE, || {
            fs::read(&chain(&mesh, name)[2]).is_ok_and(|now| now != before)
        });
    }
    let loaded = load.end();
    println!("{} requests, {} failed", loaded.answered(), loaded.failed);
    assert_eq!(loaded.failed, 0, "{}", loaded.summary);
    assert_eq!(loaded.statuses.keys().collect::<Vec<_>>(), [&200], "{}", loaded.summary);
    assert!(loaded.answered() > 200, "that was no load: {}", loaded.summary);
    let second = chain(&mesh, "orders");
    believed(&second, &root);

    // A spare takes over when the tier is tainted.
    let spare = vault.tier("spare", true);
    assert_eq!(spare["active"], false);
    let tree = here(&mesh, &["status"]).text();
    assert!(tree.contains("offline, active") && tree.contains("a spare or successor"), "{tree}");
    let label = next["tier"].as_str().expect("a text");
    let tainted = here(&mesh, &["taint", label, "--reason", "backup tape lost"]);
    assert!(
        tainted.code == 0 && tainted.text().contains("all 2 sidecars refuse"),
        "{}{}",
        tainted.text(),
        tainted.stderr
    );
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    let status = told(&here(&mesh, &["status", "--json"]));
    let of = |label: &Value| {
        let all = status["authorities"].as_array().expect("a list");
        all.iter().find(|one| one["label"] == *label).expect("it is there").clone()
    };
    assert_eq!(of(&next["tier"])["tainted"], true);
    assert_eq!(of(&spare["tier"])["state"], "active");

    // Saved, lost, and put back: the tier's key is in it.
    let file = path(&mesh, "backup");
    let seal = path(&mesh, "seal.key");
    fs::write(&seal, "0123456789abcdef".repeat(4)).expect("the directory is ours");
    fs::set_permissions(&seal, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let waits = told(&here(&mesh, &["tier", "csr", "--out", &path(&mesh, "waits.csr"), "--json"]));
    let taken = here(&mesh, &["backup", &file, "--key-file", &seal]);
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    mesh.control.kill();
    fs::rename(state, mesh.directory().join("lost")).expect("it is ours");
    let restored = here(&mesh, &["restore", &file, "--key-file", &seal, "--new-epoch"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    mesh.control.start();
    wait::until("calls are answered", wait::PATIENCE, || {
        mesh.curl("web", &["--max-time", "10", "http://orders.shop/"]).status == 200
    });
    let again = told(&here(&mesh, &["tier", "csr", "--out", &path(&mesh, "restored.csr"), "--json"]));
    assert_eq!((&again["tier"], &again["created"]), (&waits["tier"], &false.into()));
}

/// Runs the commands of a page in a directory.
fn as_documented(page: &str, directory: &Path, change: impl Fn(&str) -> String) {
    let page = fs::read_to_string(page).expect("the page is there");
    let script = page.split("```sh\n").nth(1).and_then(|rest| rest.split("\n```").next());
    let script = change(script.expect("the page has the commands"));
    let mut command = Command::new("sh");
    command.arg("-euc").arg(script).current_dir(directory).env("TRUST_DOMAIN", "demo.postern");
    let run = foreign::run(&mut command, wait::PATIENCE);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn openssl_as_a_companys_root_signs_the_tier() {
    if !foreign::need(&["openssl", "certtool", "curl"]) {
        return;
    }
    let mesh = mesh(true);
    let company = mesh.directory().join("company");
    fs::create_dir(&company).expect("it is new");
    let root = company.join("root.pem").display().to_string();
    // A path length of 1 leaves no room.
    as_documented(KEYS, &company, str::to_owned);
    let narrow = here(&mesh, &["init", "--root-cert", &root]);
    assert!(narrow.code == 1 && narrow.stderr.contains("path length is 1"), "{}", narrow.stderr);
    assert_eq!(fs::read_dir(mesh.control.state()).expect("the plan made it").count(), 0);
    as_documented(KEYS, &company, |script| script.replace("pathlen:1", "pathlen:2"));

    let made = here(&mesh, &["init", "--root-cert", &root]);
    assert!(made.code == 0 && made.text().contains("NEEDED"), "{}{}", made.text(), made.stderr);
    let csr = company.join("tier.csr").display().to_string();
    assert_eq!(here(&mesh, &["tier", "csr", "--out", &csr]).code, 0);
    // OpenSSL forgets what its extension file does not say.
    let tier = company.join("tier.pem").display().to_string();
    as_documented(PAGE, &company, |script| script.replace("pathlen:1", "pathlen:0"));
    let refused = here(&mesh, &["tier", "import", &tier]);
    assert!(refused.code == 1 && refused.stderr.contains("path length is 0"), "{}", refused.stderr);
    as_documented(PAGE, &company, str::to_owned);
    let taken = here(&mesh, &["tier", "import", &tier]);
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    start(&mesh);
    let origin = postern_tests::Origin::http((mesh.address("orders"), 8080));
    assert_eq!(mesh.curl("web", &["http://orders.shop/"]).status, 200);
    assert_eq!(origin.requests().len(), 1);
    believed(&chain(&mesh, "orders"), &root);
}

#[test]
fn the_certificates_of_a_root_that_is_online_are_clean_too() {
    if !foreign::need(&["openssl", "certtool", "pkilint"]) {
        return;
    }
    let mesh = mesh(false);
    start(&mesh);
    let files = chain(&mesh, "orders");
    assert_eq!(files.len(), 2);
    let certificates = mesh.control.certificates();
    let root = path(&mesh, "root.pem");
    fs::write(&root, pem(&certificates.first().expect("the root is first").1))
        .expect("the directory is ours");
    believed(&files, &root);
    lint(&[&files[..], &[root]].concat());
}

/// What pkilint says and stays: its code, a part of its message, and why.
const KNOWN: [(&str, &str, &str); 2] = [
    (
        "pkix.invalid_uri_syntax",
        "\"spiffe://",
        "it knows the schemes of web addresses alone; SPIFFE's is no other URI",
    ),
    (
        "pkix.unknown_subject_key_identifier_calculation_method",
        "",
        "it knows SHA-1's (RFC 5280); ours is a half of SHA-256 (RFC 7093, 2), which any value may be",
    ),
];

/// pkilint has nothing else to say of these certificates, nor is one of the known findings out of date.
fn lint(files: &[String]) {
    let linter: PathBuf = target_directory().join("foreign/venv/bin/lint_pkix_cert");
    let mut seen = BTreeSet::new();
    for file in files {
        let mut command = Command::new(&linter);
        command.args(["lint", "--severity", "NOTICE", "--format", "JSON", file]);
        let run = foreign::run(&mut command, Duration::from_secs(60));
        let said: Value =
            serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("{file}: {}", run.stderr));
        for result in said["results"].as_array().expect("a list") {
            for found in result["finding_descriptions"].as_array().expect("a list") {
                let (code, message) = (found["code"].as_str(), found["message"].as_str().unwrap_or_default());
                let known =
                    KNOWN.iter().find(|(known, part, _)| code == Some(known) && message.contains(part));
                assert!(known.is_some(), "{file}: {result}");
                seen.extend(code.map(str::to_owned));
            }
        }
    }
    assert_eq!(seen.len(), KNOWN.len(), "{seen:?}");
}
