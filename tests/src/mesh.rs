//! A mesh of real processes.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::{postern, postern_proxy};
use crate::curl::{self, Answer};
use crate::documents::Documents;
use crate::loopback::Block;
use crate::metrics::Metrics;
use crate::plan::{Plan, SidecarPlan};
use crate::process::Process;
use crate::{foreign, pods, wait, wire};

/// Debug binaries on two busy cores: what takes 100 ms alone may take long here.
const READY: Duration = Duration::from_secs(30);

/// A control plane, sidecars and their documents. Everything dies with it; on a panic it prints all logs.
#[derive(Debug)]
pub struct Mesh {
    /// The sidecars, in the order of the plan.
    pub sidecars: Vec<Sidecar>,
    /// The control plane.
    pub control: ControlPlane,
    /// The directory that all sidecars read.
    pub documents: Documents,
    block: Arc<Block>,
    directory: TempDir,
}

/// The control plane's process.
#[derive(Debug)]
pub struct ControlPlane {
    address: IpAddr,
    config: PathBuf,
    state: PathBuf,
    log: PathBuf,
    environment: Mutex<Vec<(String, String)>>,
    process: Mutex<Option<Process>>,
}

/// A sidecar's process.
#[derive(Debug)]
pub struct Sidecar {
    plan: SidecarPlan,
    trust_domain: String,
    control_config: PathBuf,
    config: PathBuf,
    state: PathBuf,
    token: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Mesh {
    pub(crate) fn prepare(plan: Plan) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("postern-test-")
            .tempdir()
            .expect("a temporary directory can be made");
        let root = directory.path().to_owned();
        private(&root.join("control"));
        private(&root.join("documents"));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            path
        };
        if plan.sidecars.iter().any(|sidecar| sidecar.pod.is_some()) {
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(root.join("documents"), open).expect("the directory is ours");
        }
        let control_config = write("control.yaml", &plan.control_yaml(&root));
        let documents = Documents::new(root.join("documents"));
        let services = plan.services_yaml();
        // An empty file would refuse the set.
        if !plan.without_services && !plan.documents.contains_key("services.yaml") && !services.is_empty() {
            documents.write("services.yaml", &services);
        }
        for (name, text) in &plan.documents {
            documents.write(name, text);
        }
        let sidecars = plan
            .sidecars
            .iter()
            .map(|sidecar| {
                let name = &sidecar.name;
                private(&root.join(name));
                Sidecar {
                    trust_domain: plan.trust_domain.clone(),
                    control_config: control_config.clone(),
                    config: write(&format!("{name}.yaml"), &plan.sidecar_yaml(&root, sidecar)),
                    state: root.join(name),
                    token: root.join(format!("{name}.token")),
                    socket: sidecar.socket(&root),
                    log: root.join(format!("{name}.log")),
                    process: Mutex::new(None),
                    plan: sidecar.clone(),
                }
            })
            .collect();
        let control = ControlPlane {
            address: plan.block.address(0),
            config: control_config,
            state: root.join("control"),
            log: root.join("control.log"),
            environment: Mutex::default(),
            process: Mutex::new(None),
        };
        Self { sidecars, control, documents, block: Arc::new(plan.block), directory }
    }

    /// A sidecar by its name.
    pub fn sidecar(&self, name: &str) -> &Sidecar {
        let found = self.sidecars.iter().find(|sidecar| sidecar.plan.name == name);
        found.unwrap_or_else(|| panic!("the mesh has no sidecar {name}"))
    }

    /// A sidecar's and its workload's address.
    pub fn address(&self, name: &str) -> IpAddr {
        self.sidecar(name).plan.address
    }

    /// An address of the mesh's block at which no sidecar sits.
    pub fn spare_address(&self, at: usize) -> IpAddr {
        self.block.address(14 - at)
    }

    /// The mesh's directory: configuration, state, documents, logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// curl, as the workload beside sidecar `name` would call: through its outbound listener as an HTTP proxy.
    pub fn curl(&self, name: &str, arguments: &[&str]) -> Answer {
        curl::run(
            &["--noproxy", "", "--proxy", &format!("http://{}", self.sidecar(name).outbound())],
            arguments,
        )
    }

    /// curl without a proxy's manners: every host is looked for at the outbound listener of `name`, which tells services
    /// apart by `Host` or `:authority`.
    pub fn curl_by_host(&self, name: &str, arguments: &[&str]) -> Answer {
        let to = format!("::{}", self.sidecar(name).outbound());
        curl::run(&["--noproxy", "*", "--connect-to", &to], arguments)
    }

    /// curl without a proxy.
    pub fn curl_directly(&self, arguments: &[&str]) -> Answer {
        curl::run(&["--noproxy", "*"], arguments)
    }

    /// Replaces a document and waits until every running sidecar has a new generation in force.
    pub fn change(&self, name: &str, text: &str) {
        let before: Vec<u64> = self.running().map(Sidecar::generation).collect();
        self.documents.write(name, text);
        for (sidecar, before) in self.running().zip(before) {
            let what = format!("{}: a new generation after {before}", sidecar.plan.name);
            wait::until(&what, wait::PATIENCE, || sidecar.generation() > before);
        }
    }

    /// Another replica of the control plane, configured as the first one but for its name, its state and its address; `at` is from 0
    /// on. It is not started.
    pub fn replica(&self, at: usize, name: &str) -> ControlPlane {
        let (root, address) = (self.directory.path(), self.block.address(10 + at));
        private(&root.join(name));
        let text = fs::read_to_string(self.control.config()).expect("the plan wrote it");
        let other = |line: &str| match line.split_once(": ") {
            Some(("stateDir", _)) => format!("stateDir: {}", root.join(name).display()),
            Some(("replica", _)) => format!("replica: {name}"),
            _ => line.replace(&format!("\"{}:", self.control.address), &format!("\"{address}:")),
        };
        let text: Vec<_> = text.lines().map(other).collect();
        let config = root.join(format!("{name}.yaml"));
        fs::write(&config, text.join("\n") + "\n").expect("the directory is ours");
        let (state, log) = (root.join(name), root.join(format!("{name}.log")));
        ControlPlane { address, config, state, log, environment: Mutex::default(), process: Mutex::new(None) }
    }

    fn running(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.iter().filter(|sidecar| sidecar.is_running())
    }
}

impl ControlPlane {
    /// Starts it and waits until it is ready.
    pub fn start(&self) {
        self.start_unready();
        wait::until("the control plane is ready", READY, || {
            self.assert_lives();
            self.page("/ready").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Starts it.
    pub fn start_unready(&self) {
        let process = Process::start("control", &postern(), &self.log, |command| {
            command.arg("control").arg("--config").arg(&self.config);
            command.envs(self.environment.lock().iter().map(|(name, value)| (name, value)));
        });
        *self.process.lock() = Some(process);
    }

    /// Variables that it is started with from now on.
    pub fn environment(&self, variables: &[(String, String)]) {
        *self.environment.lock() = variables.to_vec();
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.process.lock().take();
    }

    /// Its process.
    pub fn process(&self) -> MappedMutexGuard<'_, Process> {
        the_process(&self.process)
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Everything it has logged, over all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its metrics.
    pub fn metrics(&self) -> Metrics {
        let (status, page) = self.page("/metrics").expect("the health listener answers");
        assert_eq!(status, 200, "{page}");
        Metrics::parse(&page)
    }

    /// Its address; identity API on port 24150.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// A health page or `/metrics`.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        wire::page((self.address, 24_191), path)
    }

    /// Every certificate that this CA has made, root and issuing CAs first: kind or SPIFFE id, and DER.
    pub fn certificates(&self) -> Vec<(String, Vec<u8>)> {
        let database = crate::forge::database(&self.state);
        let mut all = Vec::new();
        for query in [
            "SELECT kind, certificate FROM authority ORDER BY number",
            "SELECT spiffe_id, certificate FROM issued ORDER BY issued",
        ] {
            let mut statement = database.prepare(query).expect("the schema is known");
            let rows =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("the schema is known");
            all.extend(rows.map(|row| row.expect("the columns are known")));
        }
        all
    }

    /// A page of the mesh admin endpoint.
    pub fn admin(&self, path: &str) -> Value {
        let (status, text) =
            wire::page((self.address, 24_192), path).unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    fn assert_lives(&self) {
        if let Some(status) = self.process().ended() {
            panic!("the control plane ended with {status}");
        }
    }
}

impl Sidecar {
    /// Makes its join token with `postern ca token create`, anew if there is one.
    pub fn create_token(&self) {
        let _ = fs::remove_file(&self.token);
        let mut command = Command::new(postern());
        command.args(["ca", "token", "create", "--config"]).arg(&self.control_config);
        command.args(["--id", &self.id(), "--ttl", &self.plan.token_ttl, "--out"]).arg(&self.token);
        let made = foreign::run(&mut command, wait::PATIENCE);
        assert_eq!(made.code, 0, "postern ca token create: {}", made.stderr);
        if self.plan.pod.is_some() {
            pods::give(&self.token, pods::SIDECAR);
        }
    }

    /// Starts it, without waiting.
    pub fn start(&self) {
        if let Some(pod) = &self.plan.pod {
            return self.start_in_pod(pod.capability.as_deref());
        }
        let (own, under) = (postern_proxy(), &self.plan.under);
        let program = under.first().map_or(own.as_path(), Path::new);
        let process = Process::start(&self.plan.name, program, &self.log, |command| {
            if let Some(words) = under.get(1..) {
                command.args(words).arg(&own);
            }
            command.arg("run").arg("--config").arg(&self.config);
            command.envs(self.plan.environment.iter().map(|(name, value)| (name, value)));
        });
        *self.process.lock() = Some(process);
    }

    fn start_in_pod(&self, capability: Option<&str>) {
        let directory = self.token.parent().expect("it lies in the mesh's directory");
        let bundle = directory.join("bundle.pem");
        if !bundle.exists() {
            fs::copy(directory.join("control/bundle.pem"), &bundle).expect("the control plane wrote it");
        }
        pods::give(&self.state, pods::SIDECAR);
        let program = pods::shared(&postern_proxy(), directory);
        let process = Process::start(&self.plan.name, Path::new("ip"), &self.log, |command| {
            command.args(["netns", "exec", &self.plan.name, "setpriv", "--pdeathsig", "KILL"]);
            command.args(pods::user(pods::SIDECAR, capability)).arg(program);
            command.arg("run").arg("--config").arg(&self.config);
        });
        *self.process.lock() = Some(process);
    }

    /// Waits until it is ready and its mesh listener accepts.
    pub fn wait_ready(&self) {
        let name = &self.plan.name;
        wait::until(&format!("{name} is ready"), READY, || {
            if let Some(status) = self.process().ended() {
                panic!("{name} ended with {status}");
            }
            self.is_ready() && std::net::TcpStream::connect(self.outbound()).is_ok()
        });
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.process.lock().take();
    }

    /// Kills it, starts it anew and waits until it is ready.
    pub fn restart(&self) {
        self.kill();
        self.start();
        self.wait_ready();
    }

    /// Its process.
    pub fn process(&self) -> MappedMutexGuard<'_, Process> {
        the_process(&self.process)
    }

    /// Whether it was started and not killed.
    pub fn is_running(&self) -> bool {
        self.process.lock().as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// Everything it has logged, over all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its SPIFFE id.
    pub fn id(&self) -> String {
        format!("spiffe://{}/ns/shop/sa/{}", self.trust_domain, self.plan.name)
    }

    /// Its mesh listener.
    pub fn inbound(&self) -> SocketAddr {
        self.plan.inbound
    }

    /// Its workload's way out: an HTTP proxy.
    pub fn outbound(&self) -> SocketAddr {
        (self.plan.address, 24_140).into()
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its state directory: key, chain, bundle.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its join token's file.
    pub fn token(&self) -> &Path {
        &self.token
    }

    /// Its admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The workload's own socket, if it was planned.
    pub fn workload_socket(&self) -> PathBuf {
        self.socket.with_file_name(format!("{}-workload", self.plan.name)).join("api.sock")
    }

    /// A health page or `/metrics`; `None` if nobody answers.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        wire::page((self.plan.address, 24_191), path)
    }

    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.page("/ready").is_some_and(|(status, _)| status == 200)
    }

    /// Whether `/ready` bears this note.
    pub fn notes(&self, note: &str) -> bool {
        self.page("/ready").is_some_and(|(_, text)| text.contains(&format!("note: {note}\n")))
    }

    /// Its metrics.
    pub fn metrics(&self) -> Metrics {
        let (status, page) = self.page("/metrics").expect("the health listener answers");
        assert_eq!(status, 200, "{page}");
        Metrics::parse(&page)
    }

    /// A page of its admin socket.
    pub fn admin(&self, path: &str) -> Value {
        self.ask("GET", path, "")
    }

    /// A question to its admin socket; panics unless it is answered with success.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, text) = wire::socket_page(&self.socket, method, path, body)
            .unwrap_or_else(|| panic!("{}: {path}: no answer on the admin socket", self.plan.name));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// The policy generation in force; 0 if none.
    pub fn generation(&self) -> u64 {
        self.admin("/v1/policy")["generation"].as_u64().unwrap_or(0)
    }

    /// The serial number of its certificate.
    pub fn serial(&self) -> String {
        self.admin("/v1/identity")["serial"].as_str().unwrap_or_default().to_owned()
    }
}

fn the_process(process: &Mutex<Option<Process>>) -> MappedMutexGuard<'_, Process> {
    MutexGuard::map(process.lock(), |process| process.as_mut().expect("it was started"))
}

/// Directories with keys are refused unless they are ours alone.
fn private(path: &Path) {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
