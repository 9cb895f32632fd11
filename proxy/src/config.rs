//! `sidecar.yaml`, read once into types that cannot be wrong any more. All mistakes are reported together, each with
//! its place.

mod capture;
mod ports;
mod probes;
mod upgrades;
mod workload_api;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use postern_agent::workload::Endpoint as WorkloadApi;
use postern_agent::{Attestation, Trust};
use postern_policy::norm::PathOptions;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostic, Diagnostics, PortPaths, Protocol, SourceFile, UpgradeName};
use postern_svid::SpiffeId;
use serde::Deserialize;

pub use capture::CaptureConfig;
pub use decision_log::{DecisionLogConfig, WITHHELD};
pub use probes::Probe;

use crate::limits::Limits;
use crate::observe::log;
use join_token::{JoinToken, Process, Proofs, X509Pop, attestation};
use ports::{Port, Ports};

mod decision_log;
mod join_token;

mod listeners;

/// Everything a sidecar is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The workload's id.
    pub identity: SpiffeId,
    /// Its namespace, from the id.
    pub namespace: String,
    /// Its service account, from the id.
    pub service_account: String,
    /// Where key, chain and bundle are kept.
    pub state_dir: PathBuf,
    /// `host:port` of the identity API.
    pub control_plane: String,
    /// Other replicas of it.
    pub control_plane_replicas: Vec<String>,
    /// Who must answer there.
    pub control_plane_id: SpiffeId,
    /// What proves it.
    pub trust: Trust,
    /// What proves the workload.
    pub attestation: Attestation,
    /// Where the workload listens.
    pub workload: WorkloadConfig,
    /// The mesh listener.
    pub inbound: SocketAddr,
    /// The workload's way out.
    pub outbound: SocketAddr,
    /// How connections come redirected, if they do.
    pub capture: Option<CaptureConfig>,
    /// `/live`, `/ready` and `/metrics`.
    pub health: SocketAddr,
    /// What is asked of the workload there.
    pub probes: Vec<Probe>,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// The admin port, which only reads; usually there is none.
    pub admin_port: Option<SocketAddr>,
    /// Where the workload gets its own certificate, if it does.
    pub workload_api: Option<WorkloadApi>,
    /// The directory of documents.
    pub documents: PathBuf,
    /// Whether each of its files must end with YAML's end mark: without it, it was cut while it was written.
    pub end_marks: bool,
    /// Whose documents may speak for the whole mesh.
    pub root_namespace: String,
    /// Threads of the data path.
    pub workers: usize,
    /// Allows certificate lives under five minutes.
    pub test: bool,
    /// How the log is written.
    pub log: LogConfig,
    /// Where decisions are logged, if they are.
    pub decision_log: Option<DecisionLogConfig>,
    /// Limits and deadlines.
    pub limits: Limits,
}

/// The workload beside the sidecar.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    /// Its address; requests go nowhere else.
    pub address: IpAddr,
    /// The ports it serves to the mesh.
    pub ports: BTreeMap<u16, Protocol>,
    /// What requests to those ports may turn into, WebSocket aside.
    pub upgrades: BTreeMap<u16, Vec<UpgradeName>>,
    /// How the paths of requests to those ports are read, where it is not as everywhere.
    pub paths: BTreeMap<u16, PortPaths>,
    /// Labels for the selectors of policies.
    pub labels: BTreeMap<String, String>,
}

impl WorkloadConfig {
    /// How paths are read at this port of the workload.
    pub fn path_options(&self, port: u16, defaults: PathOptions) -> PathOptions {
        self.paths.get(&port).copied().unwrap_or_default().options(defaults)
    }
}

/// Level and shape of the log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A filter such as `info` or `info,postern_proxy=debug`.
    pub level: String,
    /// Lines for people or JSON.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, Diagnostics> {
        let name = path.display().to_string();
        let text = std::fs::read(path).map_err(|error| {
            one(Diagnostic::whole(&name, format!("the configuration cannot be read: {error}")))
        })?;
        Self::parse(&SourceFile { name, text })
    }

    /// Checks a configuration's text.
    pub fn parse(file: &SourceFile) -> Result<Self, Diagnostics> {
        let raw: File = yaml::parse(file)?;
        let mut wrong = Diagnostics::new();
        let identity = spiffe_id(file, &raw.identity, &mut wrong);
        let control_plane_id = spiffe_id(file, &raw.control_plane.spiffe_id, &mut wrong);
        if let (Some(own), Some(control)) = (&identity, &control_plane_id)
            && *control != own.trust_domain().control_plane()
        {
            wrong.push(
                yaml::at(
                    file,
                    &raw.control_plane.spiffe_id,
                    "this is not the control plane of the identity's trust domain",
                )
                .with_help(format!("write {}", own.trust_domain().control_plane())),
            );
        }
        let account = identity.as_ref().and_then(|id| {
            let parts = id.namespace_and_account().map(|(n, s)| (n.to_owned(), s.to_owned()));
            if parts.is_none() {
                wrong.push(
                    yaml::at(file, &raw.identity, "a workload's id names its namespace and service account")
                        .with_help("write spiffe://<trust domain>/ns/<namespace>/sa/<service account>"),
                );
            }
            parts
        });
        let trust = trust(file, &raw.control_plane, &mut wrong);
        let attestation =
            attestation(file, &raw.control_plane.proofs(), &raw.control_plane.spiffe_id, &mut wrong);
        let address = listeners::workload(file, &raw.workload.address, &mut wrong);
        let Ports { protocols: ports, upgrades, paths } = ports::check(file, &raw, address, &mut wrong);
        if let Some(workers) = raw.workers.as_ref().filter(|workers| !(1..=64).contains(&workers.value)) {
            wrong.push(yaml::at(file, workers, "workers must be 1 to 64"));
        }
        let limits = limits(file, &raw.limits, &mut wrong);
        let decision_log =
            raw.decision_log.as_ref().map(|section| decision_log::check(file, section, &mut wrong));
        let workload_api = raw
            .workload_api
            .as_ref()
            .map(|section| workload_api::check(file, section, &raw.state_dir, &raw.admin.socket, &mut wrong));
        if let Some(level) = &raw.log.level
            && let Err(text) = log::check(&level.value)
        {
            wrong.push(yaml::at(file, level, text));
        }
        listeners::check(file, &raw, &mut wrong);
        let capture = capture::check(file, &raw, &mut wrong);
        let probes = probes::check(file, &raw, &mut wrong);
        control_plane(file, &raw.control_plane, &mut wrong);
        let (
            Some(identity),
            Some(control_plane_id),
            Some((namespace, service_account)),
            Some(trust),
            Some(attestation),
        ) = (identity, control_plane_id, account, trust, attestation)
        else {
            return Err(wrong);
        };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self {
            identity,
            namespace,
            service_account,
            state_dir: raw.state_dir,
            control_plane: raw.control_plane.address.value,
            control_plane_replicas: raw.control_plane.replicas.into_iter().map(|one| one.value).collect(),
            control_plane_id,
            trust,
            attestation,
            workload: WorkloadConfig { address, ports, upgrades, paths, labels: raw.workload.labels },
            inbound: raw.inbound.address.value,
            outbound: raw.outbound.address.value,
            capture,
            health: raw.health.address.value,
            probes,
            admin_socket: raw.admin.socket,
            admin_port: raw.admin.address.map(|address| address.value),
            workload_api,
            documents: raw.documents,
            end_marks: raw.end_marks,
            root_namespace: raw.root_namespace,
            workers: raw.workers.map_or(1, |workers| workers.value),
            test: raw.test,
            log: LogConfig {
                level: raw.log.level.map_or_else(|| "info".to_owned(), |level| level.value),
                format: raw.log.format,
            },
            decision_log,
            limits,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    identity: Spanned<String>,
    state_dir: PathBuf,
    control_plane: ControlPlane,
    workload: Workload,
    inbound: Listener,
    outbound: Listener,
    capture: Option<capture::Raw>,
    health: Listener,
    #[serde(default)]
    probes: Vec<probes::Raw>,
    admin: Admin,
    workload_api: Option<workload_api::Raw>,
    documents: PathBuf,
    #[serde(default)]
    end_marks: bool,
    #[serde(default = "root_namespace")]
    root_namespace: String,
    workers: Option<Spanned<usize>>,
    #[serde(default)]
    test: bool,
    #[serde(default)]
    log: Log,
    decision_log: Option<Spanned<decision_log::Raw>>,
    #[serde(default)]
    limits: BTreeMap<String, Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    level: Option<Spanned<String>>,
    format: LogFormat,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ControlPlane {
    address: Spanned<String>,
    #[serde(default)]
    replicas: Vec<Spanned<String>>,
    spiffe_id: Spanned<String>,
    trust_bundle: Option<PathBuf>,
    root_sha256: Option<Spanned<String>>,
    join_token: Option<Spanned<JoinToken>>,
    service_account_token: Option<Spanned<PathBuf>>,
    oidc_token: Option<Spanned<PathBuf>>,
    x509pop: Option<Spanned<X509Pop>>,
    peer_process: Option<Spanned<Process>>,
}

impl ControlPlane {
    fn proofs(&self) -> Proofs<'_> {
        Proofs {
            join_token: self.join_token.as_ref(),
            service_account_token: self.service_account_token.as_ref(),
            oidc_token: self.oidc_token.as_ref(),
            x509pop: self.x509pop.as_ref(),
            process: self.peer_process.as_ref(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    address: Spanned<IpAddr>,
    ports: Vec<Port>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: Spanned<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Admin {
    socket: PathBuf,
    address: Option<Spanned<SocketAddr>>,
}

fn root_namespace() -> String {
    "postern-system".to_owned()
}

fn one(diagnostic: Diagnostic) -> Diagnostics {
    let mut all = Diagnostics::new();
    all.push(diagnostic);
    all
}

fn spiffe_id(file: &SourceFile, text: &Spanned<String>, wrong: &mut Diagnostics) -> Option<SpiffeId> {
    SpiffeId::parse(&text.value).map_err(|error| wrong.push(yaml::at(file, text, error.to_string()))).ok()
}

fn trust(file: &SourceFile, raw: &ControlPlane, wrong: &mut Diagnostics) -> Option<Trust> {
    match (&raw.trust_bundle, &raw.root_sha256) {
        (Some(path), None) => Some(Trust::Bundle(path.clone())),
        (None, Some(hex)) => match parse_sha256(&hex.value) {
            Some(digest) => Some(Trust::RootSha256(digest)),
            None => {
                wrong.push(yaml::at(file, hex, "a SHA-256 is 64 hexadecimal digits"));
                None
            }
        },
        (Some(_), Some(hex)) => {
            wrong.push(
                yaml::at(file, hex, "trustBundle and rootSha256 are both given")
                    .with_help("keep one of them"),
            );
            None
        }
        (None, None) => {
            wrong.push(
                yaml::at(
                    file,
                    &raw.spiffe_id,
                    "nothing proves the control plane: trustBundle and rootSha256 are missing",
                )
                .with_help(
                    "add `trustBundle: <bundle.pem of the control plane>`; there is no trust on first use",
                ),
            );
            None
        }
    }
}

fn limits(file: &SourceFile, raw: &BTreeMap<String, Spanned<String>>, wrong: &mut Diagnostics) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in raw {
        if let Err(text) = limits.set(name, &value.value) {
            wrong.push(yaml::at(file, value, text));
        }
    }
    for (names, text) in limits.conflicts() {
        // The defaults fit together, so that one of the two is there.
        if let Some(value) = names.iter().find_map(|name| raw.get(*name)) {
            wrong.push(yaml::at(file, value, text));
        }
    }
    limits
}

/// More would be tried in turn for longer than anybody waits.
const MOST_REPLICAS: usize = 8;

fn control_plane(file: &SourceFile, raw: &ControlPlane, wrong: &mut Diagnostics) {
    control_plane_address(file, &raw.address, raw, wrong);
    for (at, replica) in raw.replicas.iter().enumerate() {
        control_plane_address(file, replica, raw, wrong);
        let earlier = raw.replicas[..at].iter().chain([&raw.address]);
        if earlier.into_iter().any(|one| one.value == replica.value) {
            wrong.push(yaml::at(file, replica, "this address is there already"));
        }
        if at == MOST_REPLICAS {
            let message = format!("at most {MOST_REPLICAS} replicas beside controlPlane.address");
            wrong.push(yaml::at(file, replica, message));
        }
    }
}

fn control_plane_address(
    file: &SourceFile,
    address: &Spanned<String>,
    raw: &ControlPlane,
    wrong: &mut Diagnostics,
) {
    if let Some(path) = address.value.strip_prefix("unix:") {
        if !path.starts_with('/') {
            wrong.push(
                yaml::at(file, address, "a socket's path begins with `/`")
                    .with_help("write unix:/run/postern-control/identity.sock"),
            );
        }
        return;
    }
    if let Some(process) = &raw.peer_process {
        wrong.push(
            yaml::at(file, process, "the kernel tells of this process over a Unix socket alone")
                .with_help("write controlPlane.address as unix:PATH, the control plane's listenUnix"),
        );
    }
    let parts = address.value.rsplit_once(':');
    let is_good = parts.is_some_and(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !is_good {
        let what = format!("{:?} is no host:port", address.value);
        wrong.push(
            yaml::at(file, address, what)
                .with_help("write the control plane's address, such as 10.0.0.10:24150"),
        );
    }
}

fn parse_sha256(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}
