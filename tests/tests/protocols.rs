//! Real servers and their own clients through the capture of both sides: none of them was written here or knows of a mesh.
//!
//! Each test runs its exchanges twice: the workload's sidecar is told what the ports speak, and then it is not, and finds out.
//! What was seen is noted for `docs/protocols.md`.

#[path = "protocols/databases.rs"]
mod databases;
#[path = "protocols/http.rs"]
mod http;
#[path = "protocols/http2.rs"]
mod http2;
#[path = "protocols/opaque.rs"]
mod opaque;
#[path = "protocols/streams.rs"]
mod streams;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use postern_tests::foreign::{self, Run};
use postern_tests::pods::{self, Pod, WORKLOAD};
use postern_tests::protocols::Way;
use postern_tests::{Mesh, Plan, Process, wait};

/// The servers' pod.
const V4: &str = "10.77.0.3";
const V6: &str = "fd77::3";
/// A user that has a name on every machine, which PostgreSQL asks for.
const NOBODY: u32 = 65_534;
/// For programs that lie where only root may read. It has no privilege either, and is redirected like anybody.
const ROOT: u32 = 0;
const WAYS: [Way; 2] = [Way::Declared, Way::Detected];

/// Whether the test `name` is where it can run: see [`pods::inside`].
fn inside(name: &str, tools: &[&str]) -> bool {
    foreign::need(tools) && pods::inside(name)
}

/// web, which calls, and orders, where the servers are.
struct Scene {
    // Ended before the directory with their logs is.
    servers: Vec<(u16, Process)>,
    mesh: Mesh,
    web: Pod,
    orders: Pod,
    ports: Vec<(u16, &'static str)>,
}

impl Scene {
    /// `ports` are the ports of orders and what they speak; web may call what `to`, a rule's, says.
    fn start(ports: &[(u16, &'static str)], to: &str) -> Self {
        let mut plan = Plan::in_pods();
        plan.sidecar("web").pod("", None);
        let orders = plan.sidecar("orders").pod("", None);
        for (port, protocol) in ports {
            orders.serves(*port, *port, protocol);
        }
        let policy = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: orders, namespace: shop}}\n\
             spec:\n  target: {{selector: {{app: orders}}}}\n  action: Allow\n  rules:\n  \
             - {{name: web, from: [{{serviceAccounts: [web]}}], to: [{to}]}}\n"
        );
        plan.document("policy.yaml", &policy);
        let mesh = plan.prepare();
        let mut pods = Pod::several(&["web", "orders"], mesh.directory()).into_iter();
        let (web, orders) = (pods.next().expect("it was made"), pods.next().expect("it was made"));
        for pod in [&web, &orders] {
            let applied = pod.init(&["apply"]);
            assert_eq!(applied.code, 0, "{}", applied.stderr);
        }
        mesh.control.start();
        for sidecar in &mesh.sidecars {
            sidecar.create_token();
            sidecar.start();
        }
        for sidecar in &mesh.sidecars {
            sidecar.wait_ready();
        }
        Self { servers: Vec::new(), mesh, web, orders, ports: ports.to_vec() }
    }

    /// Lets the servers' sidecar know what its ports speak, as at the beginning, or lets nobody say it.
    fn go(&self, way: Way) {
        if way == Way::Declared {
            return;
        }
        let path = self.mesh.directory().join("documents/services.yaml");
        let before = fs::read_to_string(&path).expect("the mesh wrote it");
        let mut services = before.clone();
        let sidecar = self.mesh.sidecar("orders");
        let config = fs::read_to_string(sidecar.config()).expect("the mesh wrote it");
        for (port, protocol) in &self.ports {
            let said = |protocol: &str| format!("targetPort: {port}, protocol: {protocol}");
            services = services.replace(&said(protocol), &said("tcp"));
        }
        let ports = config.lines().find(|line| line.starts_with("  ports: [")).unwrap_or_default().to_owned();
        assert!(!ports.is_empty(), "{config}");
        if services != before {
            self.mesh.change("services.yaml", &services);
        }
        sidecar.kill();
        fs::write(sidecar.config(), config.replace(&ports, "  ports: []")).expect("it is ours");
        sidecar.start();
        sidecar.wait_ready();
    }

    /// A directory of a server's own, in memory, which is `uid`'s.
    fn place(&self, name: &str, uid: u32) -> PathBuf {
        let place = Path::new("/run").join(name);
        fs::create_dir_all(&place).expect("the file system is the test's own");
        give(&place, uid);
        place
    }

    /// Starts a server of orders and waits until it listens.
    fn serve(&mut self, port: u16, uid: u32, words: &[&str]) {
        let log = self.mesh.directory().join(format!("server-{port}.log"));
        let process = self.orders.start(&format!("server {port}"), uid, &log, words, |_| {});
        let end = format!(":{port}");
        wait::until(&format!("{} listens at {port}", words[0]), wait::PATIENCE, || {
            assert!(process.ended().is_none(), "{words:?} ended: {}", process.log());
            let listening = self.orders.privileged(&["ss", "-Htln"]).text();
            listening.lines().any(|line| line.split_whitespace().nth(3).is_some_and(|at| at.ends_with(&end)))
        });
        self.servers.push((port, process));
    }

    /// What the server at this port has written.
    fn log(&self, port: u16) -> String {
        let found = self.servers.iter().find(|(own, _)| *own == port);
        found.map(|(_, server)| server.log()).unwrap_or_default()
    }

    /// Runs a client beside web.
    fn call(&self, words: &[&str]) -> Run {
        self.web.run(WORKLOAD, words)
    }

    /// The same, which must succeed; its output.
    fn get(&self, words: &[&str]) -> String {
        let run = self.call(words);
        assert_eq!(run.code, 0, "{words:?}: {}{}", run.text(), run.stderr);
        run.text()
    }

    fn curl(&self, words: &[&str]) -> Run {
        let mut all = vec!["curl", "-q", "-sS", "--noproxy", "*", "--globoff", "--max-time", "15"];
        all.extend(words);
        self.call(&all)
    }

    /// A shell's line, as the workload.
    fn shell(&self, line: &str) -> Run {
        // All of it ends, or whoever holds its output would be waited for.
        self.call(&["timeout", "-s", "KILL", "25", "sh", "-c", line])
    }
}

fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// An address as URLs have it.
fn url(at: &str) -> String {
    if at.contains(':') { format!("[{at}]") } else { at.to_owned() }
}

/// A text of so many bytes, different at each place.
fn text(bytes: usize) -> String {
    let lines: String = (0..=bytes / 8).map(|line| format!("{line:07}\n")).collect();
    lines[..bytes].to_owned()
}
