//! Redirected workloads, in network namespaces as in pods: processes that know of no proxy, and whose connections go through
//! their sidecars all the same, or nowhere.

#[path = "capture/calls.rs"]
mod calls;
#[path = "capture/outside.rs"]
mod outside;
#[path = "capture/rules.rs"]
mod rules;
#[path = "capture/strangers.rs"]
mod strangers;

use std::time::Duration;

use postern_tests::pods::Pod;
use postern_tests::{Mesh, Plan, Process, wait};

/// As the issue has it: what is gone is known within this.
const NOTICED: Duration = Duration::from_secs(5);

/// web and admin may call orders; web only reads, and talks to its database port.
const POLICY: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - {name: read, from: [{serviceAccounts: [web]}], to: [{ports: [8080], methods: [GET], paths: [/orders, /self]}]}
  - {name: base, from: [{serviceAccounts: [web]}], to: [{ports: [5432]}]}
  - {name: self, from: [{serviceAccounts: [orders]}], to: [{ports: [8080], paths: [/self]}]}
";

/// Two workloads in pods, redirected, and what they serve.
struct Pods {
    mesh: Mesh,
    web: Pod,
    orders: Pod,
    workload: Process,
}

impl Pods {
    fn start() -> Self {
        Self::planned(POLICY, |_| {}, &[])
    }

    /// `shape` changes the plan, `init` are more words for `postern-init apply`.
    fn planned(policy: &str, shape: impl FnOnce(&mut Plan), init: &[&str]) -> Self {
        let mut plan = Plan::in_pods();
        plan.sidecar("web").pod("", None);
        plan.sidecar("orders").pod("", None).serves(80, 8080, "http").serves(5432, 5432, "tcp");
        plan.document("policy.yaml", policy);
        shape(&mut plan);
        let mesh = plan.prepare();
        let mut pods = Pod::several(&["web", "orders"], mesh.directory()).into_iter();
        let (web, orders) = (pods.next().expect("it was made"), pods.next().expect("it was made"));
        for pod in [&web, &orders] {
            let applied = pod.init(&[&["apply", "--probe"][..], init].concat());
            assert_eq!(applied.code, 0, "{}", applied.stderr);
            assert_eq!(applied.text().matches("came redirected").count(), 2, "{}", applied.text());
        }
        let workload = orders.start_workload(&[]);
        mesh.control.start();
        for sidecar in &mesh.sidecars {
            sidecar.create_token();
            sidecar.start();
        }
        for sidecar in &mesh.sidecars {
            sidecar.wait_ready();
        }
        Self { mesh, web, orders, workload }
    }

    /// What has reached the workload of orders so far: connections, requests and datagrams, each a line.
    fn reached(&self) -> Vec<String> {
        let log = self.workload.log();
        log.lines().filter(|line| *line != "listening").map(str::to_owned).collect()
    }

    /// Runs `calls` and asserts that not one connection, request or datagram reached the workload.
    fn nothing_reaches(&self, what: &str, calls: impl FnOnce()) {
        let before = self.reached();
        calls();
        // What was on its way would be there by then.
        wait::pause(Duration::from_millis(200));
        assert_eq!(self.reached(), before, "{what}");
    }
}

/// Waits until a sidecar says that it is not ready, for this reason.
fn not_ready(pod: &Pod, reason: &str) {
    wait::until(&format!("{} says {reason}", pod.name), NOTICED, || {
        let (status, text) = pod.page_within("/ready");
        status == 503 && text.contains(reason)
    });
}

fn ready(pod: &Pod) {
    wait::until(&format!("{} is ready again", pod.name), Duration::from_secs(12), || {
        pod.page_within("/ready").0 == 200
    });
}
