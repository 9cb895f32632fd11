//! What a mesh shall look like, before anything runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::loopback::Block;
use crate::mesh::Mesh;

/// The trust domain of every test's mesh.
pub const TRUST_DOMAIN: &str = "demo.postern";

/// A mesh to be: a control plane, sidecars, documents.
#[derive(Debug)]
pub struct Plan {
    pub(crate) block: Block,
    pub(crate) ttl: String,
    pub(crate) sidecars: Vec<SidecarPlan>,
    pub(crate) documents: BTreeMap<String, String>,
    pub(crate) without_services: bool,
    pub(crate) control: String,
    pub(crate) trust_domain: String,
    pub(crate) replicas: usize,
}

/// A sidecar to be, and what its workload serves.
#[derive(Clone, Debug)]
pub struct SidecarPlan {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) inbound: SocketAddr,
    pub(crate) ports: Vec<Port>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) limits: BTreeMap<String, String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) log: String,
    pub(crate) workers: usize,
    pub(crate) token_ttl: String,
    pub(crate) admin_port: bool,
    pub(crate) decision_log: bool,
    pub(crate) workload_api: Option<String>,
    pub(crate) pod: Option<PodPlan>,
    pub(crate) under: Vec<String>,
    pub(crate) more: String,
}

/// How a sidecar stands in a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    /// In the section `capture` besides the addresses.
    more: String,
    /// The capability that it has, if it has one.
    pub(crate) capability: Option<String>,
}

/// A port: as the Service names it, as the workload serves it, and what is spoken there.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    service: u16,
    workload: u16,
    protocol: String,
    upgrades: Vec<String>,
    paths: String,
}

impl Port {
    fn upgrades(&self) -> String {
        if self.upgrades.is_empty() {
            return String::new();
        }
        format!(", upgrades: [{}]", self.upgrades.join(", "))
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

impl Plan {
    /// A control plane and nothing else, on a block of addresses of its own.
    pub fn new() -> Self {
        Self { block: Block::take(), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            block: Block::of_pods(),
            ttl: "1h".to_owned(),
            sidecars: Vec::new(),
            documents: BTreeMap::new(),
            without_services: false,
            control: String::new(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            replicas: 0,
        }
    }

    /// The same for workloads in pods ([`crate::pods`]): every sidecar is in one, redirected, and each Service has addresses
    /// of its own, `10.96.0.N` and `fd96::N`, beside its pod's.
    pub fn in_pods() -> Self {
        Self { block: Block::of_pods(), ..Self::empty() }
    }

    /// Life of the SVIDs; under five minutes all processes run with `test: true`.
    pub fn ttl(&mut self, ttl: &str) -> &mut Self {
        ttl.clone_into(&mut self.ttl);
        self
    }

    /// Adds a sidecar for the workload `spiffe://demo.postern/ns/shop/sa/<name>`, with the label `app: <name>`.
    pub fn sidecar(&mut self, name: &str) -> &mut SidecarPlan {
        let address = self.block.address(1 + self.sidecars.len());
        self.sidecars.push(SidecarPlan {
            name: name.to_owned(),
            address,
            inbound: (address, 24_143).into(),
            ports: Vec::new(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            limits: BTreeMap::new(),
            environment: Vec::new(),
            log: "info".to_owned(),
            workers: 1,
            token_ttl: "10m".to_owned(),
            admin_port: false,
            decision_log: false,
            workload_api: None,
            pod: None,
            under: Vec::new(),
            more: String::new(),
        });
        self.sidecars.last_mut().expect("one was just pushed")
    }

    /// The address of a sidecar and its workload.
    pub fn address(&self, name: &str) -> IpAddr {
        let found = self.sidecars.iter().find(|sidecar| sidecar.name == name);
        found.unwrap_or_else(|| panic!("the plan has no sidecar {name}")).address
    }

    /// An address of the mesh's block at which no sidecar sits.
    pub fn spare_address(&self, at: usize) -> IpAddr {
        self.block.address(14 - at)
    }

    /// Adds a document. `services.yaml` is written from the sidecars' ports unless it is given here.
    pub fn document(&mut self, name: &str, text: &str) -> &mut Self {
        self.documents.insert(name.to_owned(), text.to_owned());
        self
    }

    /// The sidecar of this pod marks its connections, for which it gets CAP_NET_RAW: `more` is in its section `capture`.
    pub fn mark(&mut self, name: &str, more: &str) -> &mut Self {
        let found = self.sidecars.iter_mut().find(|sidecar| sidecar.name == name);
        found.unwrap_or_else(|| panic!("the plan has no sidecar {name}")).pod(more, Some("net_raw"));
        self
    }

    /// A line more of a sidecar's configuration.
    pub fn line(&mut self, name: &str, line: &str) -> &mut Self {
        let found = self.sidecars.iter_mut().find(|sidecar| sidecar.name == name);
        let sidecar = found.unwrap_or_else(|| panic!("the plan has no sidecar {name}"));
        let _ = writeln!(sidecar.more, "{line}");
        self
    }

    /// Leaves `services.yaml` out.
    pub fn without_services(&mut self) -> &mut Self {
        self.without_services = true;
        self
    }

    /// Another trust domain than [`TRUST_DOMAIN`], for a second mesh beside one.
    pub fn trust_domain(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.trust_domain);
        self
    }

    /// The address of the control plane.
    pub fn control_address(&self) -> IpAddr {
        self.block.address(0)
    }

    /// Sidecars know so many more addresses of the control plane: those of [`Mesh::replica`].
    pub fn replicas(&mut self, more: usize) -> &mut Self {
        self.replicas = more;
        self
    }

    /// The address of a replica of the control plane beside the first one, from 0 on.
    pub(crate) fn replica_address(&self, at: usize) -> IpAddr {
        self.block.address(10 + at)
    }

    /// A line more of the control plane's configuration.
    pub fn control(&mut self, line: &str) -> &mut Self {
        let _ = writeln!(self.control, "{line}");
        self
    }

    /// Writes all files and starts nothing.
    pub fn prepare(self) -> Mesh {
        Mesh::prepare(self)
    }

    /// Starts everything and waits until it is ready.
    pub fn start(self) -> Mesh {
        let mesh = self.prepare();
        mesh.control.start();
        for sidecar in &mesh.sidecars {
            sidecar.create_token();
            sidecar.start();
        }
        for sidecar in &mesh.sidecars {
            sidecar.wait_ready();
        }
        mesh
    }

    pub(crate) fn is_test(&self) -> bool {
        let minutes =
            self.ttl.ends_with('m') && self.ttl.trim_end_matches('m').parse::<u32>().unwrap_or(0) >= 5;
        !(minutes || self.ttl.ends_with('h'))
    }

    pub(crate) fn control_yaml(&self, directory: &Path) -> String {
        let address = self.block.address(0);
        format!(
            "trustDomain: {domain}\nstateDir: {state}\nlisten: {{address: \"{address}:24150\"}}\n\
             health: {{address: \"{address}:24191\"}}\nmeshAdmin: {{address: \"{admin}:24192\"}}\n\
             svid: {{ttl: {ttl}}}\ntest: {test}\n{more}",
            admin = if address.is_loopback() { address } else { [127, 0, 0, 1].into() },
            domain = self.trust_domain,
            more = self.control,
            state = directory.join("control").display(),
            ttl = self.ttl,
            test = self.is_test(),
        )
    }

    pub(crate) fn services_yaml(&self) -> String {
        let mut text = String::new();
        let domain = &self.trust_domain;
        for sidecar in self.sidecars.iter().filter(|sidecar| !sidecar.ports.is_empty()) {
            let name = &sidecar.name;
            let _ = write!(
                text,
                "---\napiVersion: postern.dev/v1alpha1\nkind: Service\n\
                 metadata: {{name: {name}, namespace: shop}}\nspec:\n  \
                 identity: spiffe://{domain}/ns/shop/sa/{name}\n  ports:\n",
            );
            for port in &sidecar.ports {
                let Port { service, workload, protocol, .. } = port;
                let (upgrades, paths) = (port.upgrades(), &port.paths);
                let _ = writeln!(
                    text,
                    "  - {{port: {service}, targetPort: {workload}, protocol: {protocol}{upgrades}{paths}}}"
                );
            }
            match sidecar.pod {
                None => {
                    let _ = writeln!(text, "  endpoints: [{{address: {}}}]", sidecar.address);
                }
                Some(_) => {
                    let [v4, v6] = sidecar.pod_addresses();
                    let number = sidecar.pod_number();
                    let _ = writeln!(text, "  addresses: [10.96.0.{number}, \"fd96::{number}\"]");
                    let _ = writeln!(text, "  endpoints: [{{address: {v4}}}, {{address: \"{v6}\"}}]");
                }
            }
        }
        text
    }

    pub(crate) fn sidecar_yaml(&self, directory: &Path, sidecar: &SidecarPlan) -> String {
        let (name, address) = (&sidecar.name, sidecar.address);
        let ports: Vec<String> = sidecar
            .ports
            .iter()
            .map(|port| {
                let (upgrades, paths) = (port.upgrades(), &port.paths);
                format!("{{port: {}, protocol: {}{upgrades}{paths}}}", port.workload, port.protocol)
            })
            .collect();
        let replicas: Vec<_> =
            (0..self.replicas).map(|at| format!("\"{}:24150\"", self.replica_address(at))).collect();
        let (inbound, outbound, health) = match sidecar.pod {
            None => (sidecar.inbound.to_string(), format!("{address}:24140"), format!("{address}:24191")),
            Some(_) => ("[::]:24143".to_owned(), "127.0.0.1:24140".to_owned(), "[::]:24191".to_owned()),
        };
        let mut text = format!(
            "identity: spiffe://{domain}/ns/shop/sa/{name}\nstateDir: {state}\ncontrolPlane:\n  \
             address: {control}:24150\n{replicas}  spiffeId: spiffe://{domain}/postern/control\n  \
             trustBundle: {bundle}\n  joinToken: {token}\n\
             workload:\n  address: {address}\n  ports: [{ports}]\n  labels: {labels}\n\
             inbound: {{address: \"{inbound}\"}}\noutbound: {{address: \"{outbound}\"}}\n\
             health: {{address: \"{health}\"}}\nadmin: {{socket: {socket}{admin_port}}}\ndocuments: {documents}\n\
             workers: {workers}\ntest: {test}\nlog: {{level: \"{log}\"}}\n",
            domain = self.trust_domain,
            replicas = if self.replicas == 0 {
                String::new()
            } else {
                format!("  replicas: [{}]\n", replicas.join(", "))
            },
            state = directory.join(name).display(),
            control = self.block.address(0),
            bundle = sidecar.bundle(directory).display(),
            token = directory.join(format!("{name}.token")).display(),
            ports = ports.join(", "),
            labels = flow_map(&sidecar.labels),
            socket = sidecar.socket(directory).display(),
            admin_port =
                if sidecar.admin_port { format!(", address: \"{address}:24190\"") } else { String::new() },
            documents = directory.join("documents").display(),
            workers = sidecar.workers,
            test = self.is_test(),
            log = sidecar.log,
        );
        text.push_str(&sidecar.more);
        if let Some(pod) = &sidecar.pod {
            let [v4, v6] = sidecar.pod_addresses();
            let _ = writeln!(text, "capture: {{mode: redirect, addresses: [{v4}, \"{v6}\"]{}}}", pod.more);
        }
        if sidecar.decision_log {
            let path = directory.join(format!("{name}.decisions.jsonl"));
            let _ = writeln!(text, "decisionLog: {{path: {}}}", path.display());
        }
        if let Some(more) = &sidecar.workload_api {
            let path = directory.join(format!("{name}-workload/api.sock"));
            let _ = writeln!(text, "workloadApi: {{socket: {}{more}}}", path.display());
        }
        if !sidecar.limits.is_empty() {
            let _ = writeln!(text, "limits: {}", flow_map(&sidecar.limits));
        }
        text
    }
}

impl SidecarPlan {
    /// The workload serves `workload`, which the Service shows as `service`: `http`, `http2`, `grpc`, `tcp` or `tls`.
    pub fn serves(&mut self, service: u16, workload: u16, protocol: &str) -> &mut Self {
        self.ports.push(Port {
            service,
            workload,
            protocol: protocol.to_owned(),
            upgrades: Vec::new(),
            paths: String::new(),
        });
        self
    }

    /// The port that was named last lists these upgrades.
    pub fn upgrades(&mut self, names: &[&str]) -> &mut Self {
        let port = self.ports.last_mut().expect("a port is named before its upgrades");
        port.upgrades = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The port that was named last says this about paths, to callers and to itself: `escapedSlashes: Keep`.
    pub fn paths(&mut self, said: &str) -> &mut Self {
        let port = self.ports.last_mut().expect("a port is named before what it says");
        port.paths = format!(", {said}");
        self
    }

    /// Overrides a limit: `limit("head", "500ms")`.
    pub fn limit(&mut self, name: &str, value: &str) -> &mut Self {
        self.limits.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a label.
    pub fn label(&mut self, name: &str, value: &str) -> &mut Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of the process's environment.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The level of the log.
    pub fn log(&mut self, level: &str) -> &mut Self {
        level.clone_into(&mut self.log);
        self
    }

    /// It is started by this program, with the sidecar's own words behind these; it must replace itself by the sidecar.
    pub fn under(&mut self, words: &[&str]) -> &mut Self {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Threads of the data path.
    pub fn workers(&mut self, workers: usize) -> &mut Self {
        self.workers = workers;
        self
    }

    /// Opens the admin port, at 24190 of its address.
    pub fn admin_port(&mut self) -> &mut Self {
        self.admin_port = true;
        self
    }

    /// Writes its decisions to `NAME.decisions.jsonl` in the mesh's directory.
    pub fn decision_log(&mut self) -> &mut Self {
        self.decision_log = true;
        self
    }

    /// Opens the workload's own socket, with `more` in its section: `, allow: {uids: [1000]}`.
    pub fn workload_api(&mut self, more: &str) -> &mut Self {
        self.workload_api = Some(more.to_owned());
        self
    }

    /// How long its join token may be used.
    pub fn token_ttl(&mut self, ttl: &str) -> &mut Self {
        ttl.clone_into(&mut self.token_ttl);
        self
    }

    /// Where its mesh listener is bound, if not at its own address. Services must be written by hand then.
    pub fn inbound(&mut self, address: &str) -> &mut Self {
        self.inbound = address.parse().unwrap_or_else(|error| panic!("{address}: {error}"));
        self
    }

    /// It stands in a pod of its name, with `more` in the section `capture`, such as `, mark: 7`, and `capability`.
    pub fn pod(&mut self, more: &str, capability: Option<&str>) -> &mut Self {
        self.pod = Some(PodPlan { more: more.to_owned(), capability: capability.map(str::to_owned) });
        self
    }

    fn pod_number(&self) -> u8 {
        match self.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => panic!("a plan numbers its pods by IPv4"),
        }
    }

    fn pod_addresses(&self) -> [String; 2] {
        [self.address.to_string(), format!("fd77::{}", self.pod_number())]
    }

    /// Where it finds its control plane's bundle; in a pod not in the control plane's own directory.
    pub(crate) fn bundle(&self, directory: &Path) -> PathBuf {
        directory.join(if self.pod.is_some() { "bundle.pem" } else { "control/bundle.pem" })
    }

    pub(crate) fn socket(&self, directory: &Path) -> PathBuf {
        match self.pod {
            Some(_) => directory.join(&self.name).join("admin.sock"),
            None => directory.join(format!("{}.sock", self.name)),
        }
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

fn flow_map(map: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map.iter().map(|(name, value)| format!("{name}: \"{value}\"")).collect();
    format!("{{{}}}", pairs.join(", "))
}
