//! An operator's verbs against running sidecars: an earlier set put back, glass broken over a broken directory, a decision
//! looked up; and a set that goes stale.

use std::process::Command;
use std::time::Duration;

use postern_tests::{Mesh, Origin, Plan, postern, wait, wire};

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
---
apiVersion: postern.dev/v1alpha1
kind: PolicyTest
metadata: {name: orders, namespace: shop}
spec:
  workload: {serviceAccount: orders, labels: {app: orders}, port: 8080}
  cases:
  - {name: web, request: {from: web, path: /}, expect: {allow: true}}
"#;

struct Pair {
    mesh: Mesh,
    _origin: Origin,
}

impl Pair {
    fn start(documents: &str) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.document("policy.yaml", documents);
        let origin = Origin::http((plan.address("orders"), 8080));
        let pair = Self { mesh: plan.start(), _origin: origin };
        wait::until("web may", Duration::from_secs(5), || pair.status() == 200);
        pair
    }

    fn answer(&self) -> Vec<u8> {
        let request = b"GET /v1/7 HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
        wire::exchange(self.mesh.sidecar("web").outbound(), request)
    }

    fn status(&self) -> u16 {
        wire::status(&self.answer())
    }

    /// `postern policy` against the sidecar of orders: exit code, and all that it says.
    fn policy(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let socket = self.mesh.sidecar("orders").socket().display().to_string();
        let mut command = Command::new(postern());
        command.arg("policy").args(arguments).args(["--sidecar", &socket]);
        let output = command.output().expect("the binary starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    fn waits(&self, what: &str, status: u16) {
        wait::until(what, Duration::from_secs(5), || self.status() == status);
    }
}

#[test]
fn operators_roll_back_open_and_look_up() {
    let pair = Pair::start(OPEN);
    let orders = pair.mesh.sidecar("orders");
    let (code, said) = pair.policy(&["check"]);
    assert!(code == Some(0) && said.contains("ok: generation 1 is in force since"), "{said}");
    let (code, said) = pair.policy(&["test"]);
    assert!(code == Some(0) && said.contains("1 case passed"), "{said}");

    let closed = OPEN.replace("[{serviceAccounts: [web]}]", "[{serviceAccounts: [nobody]}]");
    pair.mesh.documents.write("policy.yaml", &closed);
    pair.waits("nobody may", 403);
    let (code, said) = pair.policy(&["test"]);
    assert!(code == Some(1) && said.contains("1 of 1 case failed"), "{said}");

    // The caller was told an id: it leads to the rule, or to its absence.
    let answer = String::from_utf8_lossy(&pair.answer()).into_owned();
    let id =
        answer.lines().find_map(|line| line.strip_prefix("postern-decision: ")).expect("it is told").trim();
    let (code, said) = pair.policy(&["explain", id]);
    assert!(code == Some(1) && said.contains("deny (no_rule)") && said.contains("GET /v1/7"), "{said}");
    assert!(said.contains("orders/web"), "the nearest rule is shown: {said}");
    let (code, said) = pair.policy(&["explain", "1-ffffff-1"]);
    assert!(code == Some(1) && said.contains("another sidecar"), "{said}");
    let (code, said) = pair.policy(&["explain", "nonsense"]);
    assert!(code == Some(2) && said.contains("no decision id"), "{said}");
    let (code, said) = pair.policy(&["explain", "--to", ":8080", "--from", "shop/nobody", "GET", "/"]);
    assert!(code == Some(0) && said.contains("allowed"), "{said}");

    let (code, said) = pair.policy(&["rollback"]);
    assert!(code == Some(0) && said.contains("generation 1 are in force as generation 3"), "{said}");
    assert_eq!(pair.status(), 200);
    assert!(orders.notes("policy_pinned") && orders.is_ready());
    wait::until("it is stored", Duration::from_secs(5), || {
        let page = orders.admin("/v1/policy");
        page["storedDigest"].is_string() && page["storedDigest"] == page["digest"]
    });
    orders.restart();
    assert_eq!(pair.status(), 200, "a restart changes nothing");
    let (code, said) = pair.policy(&["rollback", "--resume", "--json"]);
    assert!(code == Some(0) && said.contains("\"followed\":true"), "{said}");
    pair.waits("the directory is followed", 403);
    let (code, said) = pair.policy(&["rollback", "--to", "99"]);
    assert!(code == Some(1) && said.contains("not kept"), "{said}");

    pair.mesh.documents.write("policy.yaml", "kind: Nothing\n");
    wait::until("it is refused", Duration::from_secs(5), || orders.notes("documents_refused"));
    let (code, said) = pair.policy(&["check"]);
    assert!(code == Some(1) && said.contains("unknown kind `Nothing`"), "{said}");
    let open = ["open", "--namespace", "shop", "--for", "2s", "--reason", "INC-7", "--by", "ada"];
    let (code, said) = pair.policy(&open);
    assert!(code == Some(0) && said.contains("is open until"), "{said}");
    assert_eq!(pair.status(), 200);
    let (code, said) = pair.policy(&["open", "--list"]);
    assert!(code == Some(0) && said.contains("by ada: INC-7"), "{said}");
    assert!(orders.notes("policy_open"));
    pair.waits("it ends by itself", 403);
    wait::until("it is whole", Duration::from_secs(5), || !orders.notes("policy_open"));
    let log = orders.log();
    for line in ["glass is broken", "let in through broken glass", "glass is whole again"] {
        assert!(log.contains(line), "{line}");
    }
    let (code, said) = pair.policy(&["open", "--namespace", "shop", "--for", "5h", "--reason", "INC-7"]);
    assert!(code == Some(2) && said.contains("4h"), "{said}");
    let (code, said) = pair.policy(&["open", "--namespace", "pay", "--for", "1m", "--reason", "INC-7"]);
    assert!(code == Some(2) && said.contains("nothing in the namespace pay"), "{said}");
}

#[test]
fn a_set_that_nobody_confirms_denies_everything() {
    let defaults = "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: default, namespace: postern-system}\nspec: {staleAfter: 10s}\n---";
    let pair = Pair::start(&format!("{defaults}{OPEN}"));
    let orders = pair.mesh.sidecar("orders");
    pair.mesh.documents.write("policy.yaml", "kind: Nothing\n");
    wait::until("it is refused", Duration::from_secs(5), || orders.notes("documents_refused"));
    assert_eq!(pair.status(), 200, "for now the last good set decides");
    wait::until("it is stale", Duration::from_secs(20), || {
        orders.page("/ready").is_some_and(|(status, text)| status == 503 && text.contains("policy_stale"))
    });
    pair.waits("everything is denied", 403);
    assert_eq!(orders.metrics().value("postern_policy_failed_closed"), 1.0);
    pair.mesh.documents.write("policy.yaml", OPEN);
    pair.waits("a good set heals", 200);
    orders.wait_ready();
}
