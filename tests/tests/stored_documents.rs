//! A sidecar that is killed while its documents are broken comes back with those that were in force; and with nothing at
//! all if what it kept is not exactly what it wrote.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::time::Duration;

use postern_tests::{Mesh, Origin, Plan, Sidecar, digest, wait, wire};

const OPEN: &str = r#"
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

struct Pair {
    mesh: Mesh,
    _origin: Origin,
}

impl Pair {
    fn start() -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.document("policy.yaml", OPEN);
        let origin = Origin::http((plan.address("orders"), 8080));
        let pair = Self { mesh: plan.start(), _origin: origin };
        wait::until("web may", Duration::from_secs(5), || pair.status() == 200);
        pair.is_stored();
        pair
    }

    fn orders(&self) -> &Sidecar {
        self.mesh.sidecar("orders")
    }

    fn status(&self) -> u16 {
        let request = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
        wire::status(&wire::exchange(self.mesh.sidecar("web").outbound(), request))
    }

    /// The set in the directory is in force and kept for the next start.
    fn is_stored(&self) {
        let there = digest(&self.mesh.documents.files());
        wait::until("the set is stored", Duration::from_secs(5), || {
            let page = self.orders().admin("/v1/policy");
            page["digest"] == *there && page["storedDigest"] == *there
        });
    }

    fn file(&self) -> PathBuf {
        self.orders().state().join("documents.set")
    }

    /// A new life of orders, which will not become ready.
    fn start_anew(&self) {
        self.orders().kill();
        self.orders().start();
    }

    fn comes_back_with_nothing(&self, what: &str, says: &str) {
        self.start_anew();
        let orders = self.orders();
        wait::until(&format!("{what}: it says so"), wait::PATIENCE, || {
            orders.page("/ready").is_some_and(|(status, text)| status == 503 && text.contains("no_policy"))
                && orders.admin("/v1/policy")["storeError"].as_str().is_some_and(|text| text.contains(says))
        });
        assert!(!orders.notes("documents_from_store"), "{what}");
        assert!(orders.admin("/v1/policy")["generation"].is_null(), "{what}");
        assert!(orders.log().contains("the stored documents are ignored"), "{what}");
        wait::until(&format!("{what}: denied"), wait::PATIENCE, || self.status() == 403);
    }
}

#[test]
fn the_last_good_set_survives_a_kill() {
    let pair = Pair::start();
    let orders = pair.orders();
    let stored = digest(&pair.mesh.documents.files());
    pair.mesh.documents.write("policy.yaml", &OPEN.replace("action: Allow", "action: Alow"));
    orders.restart();
    assert_eq!(pair.status(), 200, "what was allowed is allowed");
    assert!(
        orders.notes("documents_from_store") && orders.notes("documents_refused"),
        "{:?}",
        orders.page("/ready")
    );
    let page = orders.admin("/v1/policy");
    assert_eq!((page["source"].as_str(), page["generation"].as_u64()), (Some("stateDir"), Some(1)), "{page}");
    assert_eq!(
        (page["digest"].as_str(), page["storedDigest"].as_str()),
        (Some(&*stored), Some(&*stored)),
        "{page}"
    );
    assert!(
        page["lastError"]["text"].as_str().is_some_and(|text| text.contains("policy.yaml:7:11")),
        "{page}"
    );
    assert_eq!(orders.metrics().value("postern_policy_from_store"), 1.0);
    assert_eq!(orders.metrics().value("postern_policy_stale"), 1.0);
    let log = orders.log();
    let line = log.find("the documents stored there are in force").expect("it is said");
    assert!(log[line..].contains("policy.yaml:7:11"), "{log}");

    // A stored set is no set for ever: a good one in the directory replaces it, with the next number.
    pair.mesh.documents.write("policy.yaml", &OPEN.replace("[web]", "[nobody]"));
    wait::until("the directory's set is in force", Duration::from_secs(5), || pair.status() == 403);
    pair.is_stored();
    let page = orders.admin("/v1/policy");
    assert_eq!(
        (page["source"].as_str(), page["generation"].as_u64()),
        (Some("documents"), Some(2)),
        "{page}"
    );
    assert!(page["lastError"].is_null() && !orders.notes("documents_from_store"), "{page}");
    assert_eq!(orders.metrics().value("postern_policy_from_store"), 0.0);

    // The directory gone altogether. Now what it kept denies.
    fs::rename(pair.mesh.documents.directory(), pair.mesh.directory().join("away")).expect("both are ours");
    orders.restart();
    assert_eq!(pair.status(), 403);
    let page = orders.admin("/v1/policy");
    assert_eq!(page["source"].as_str(), Some("stateDir"), "{page}");
    assert!(page["lastError"]["text"].as_str().is_some_and(|text| text.contains("cannot be read")), "{page}");
}

#[test]
fn a_good_directory_wins() {
    let pair = Pair::start();
    pair.orders().kill();
    pair.mesh.documents.write("policy.yaml", &OPEN.replace("[web]", "[nobody]"));
    pair.orders().start();
    pair.orders().wait_ready();
    assert_eq!(pair.status(), 403);
    assert_eq!(pair.orders().admin("/v1/policy")["source"].as_str(), Some("documents"));
}

#[test]
fn a_damaged_store_is_ignored_loudly() {
    let pair = Pair::start();
    pair.mesh.documents.write("policy.yaml", "kind: Nothing\n");
    pair.orders().kill();
    let good = fs::read(pair.file()).expect("it is stored");
    let put = |bytes: &[u8]| {
        let _ = fs::remove_file(pair.file());
        fs::write(pair.file(), bytes).expect("the state directory is ours");
        fs::set_permissions(pair.file(), fs::Permissions::from_mode(0o600)).expect("it is ours");
    };
    // An attacker's edit: everybody instead of web. The lengths stay.
    let text = String::from_utf8(good.clone()).expect("these documents are text");
    put(text.replace("serviceAccounts: [web]", "serviceAccounts: [sky]").as_bytes());
    pair.comes_back_with_nothing("edited", "SHA-256 is another");
    put(&good[..good.len() / 2]);
    pair.comes_back_with_nothing("cut off", "SHA-256 is another");
    put(&good);
    fs::set_permissions(pair.file(), fs::Permissions::from_mode(0o644)).expect("it is ours");
    pair.comes_back_with_nothing("open to others", "mode 0644");
    let away = pair.mesh.directory().join("away.set");
    fs::rename(pair.file(), &away).expect("both are ours");
    fs::set_permissions(&away, fs::Permissions::from_mode(0o600)).expect("it is ours");
    symlink(&away, pair.file()).expect("it is new");
    pair.comes_back_with_nothing("a symbolic link", "symbolic link");
    // Another workload's, whole as it is.
    let others = fs::read(pair.mesh.sidecar("web").state().join("documents.set")).expect("web has one too");
    put(&others);
    pair.comes_back_with_nothing("another workload's", "stored for spiffe://demo.postern/ns/shop/sa/web");
    // And the same, unharmed.
    put(&good);
    pair.start_anew();
    pair.orders().wait_ready();
    assert_eq!(pair.status(), 200);
}
