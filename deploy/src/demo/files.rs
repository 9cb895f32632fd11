//! The demo's directory: configuration, documents, tokens, state and logs.
//!
//! Everything a person needs to run the same mesh by hand is left here in plain files with `--keep` or `--dir`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::demo::documents;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::netns::MARK;
use crate::demo::plan::{Apart, Ground, Place, Plan, SERVICE_PORT, Service, TRUST_DOMAIN};

/// Life of every certificate of the demo: short enough that renewals are seen, long enough that the control plane can
/// be dead through one whole renewal window (45-55 % of life) and its first retries, and come back in time.
pub(crate) const SVID_TTL_S: u64 = 20;

/// `sun_path` of a Unix socket holds 107 bytes and a NUL; a sidecar binds it under a name up to 8 bytes longer, then renames it.
const SOCKET_PATH_LIMIT: usize = 99;

/// The directory of one demo.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    /// Lays out an empty directory: configuration of every process and the documents.
    pub(crate) fn lay_out(root: &Path, plan: &Plan) -> Result<Self, Failure> {
        let root = root.canonicalize().explain(format!("cannot use the directory {}", root.display()))?;
        let mut entries = fs::read_dir(&root).explain(format!("cannot read {}", root.display()))?;
        ensure!(
            entries.next().is_none(),
            "{} is not empty: name a new or an empty directory",
            root.display()
        );
        let files = Self { root };
        let longest = Service::ALL.map(|service| files.admin_socket(service).as_os_str().len());
        ensure!(
            longest.iter().all(|length| *length <= SOCKET_PATH_LIMIT),
            "{} is too long a path: the names of admin sockets in it would exceed the {SOCKET_PATH_LIMIT} bytes that they can have",
            files.root.display()
        );
        files.write_all(plan).explain(format!("cannot write to {}", files.root.display()))?;
        Ok(files)
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The control plane's configuration.
    pub(crate) fn control_config(&self) -> PathBuf {
        self.root.join("control.yaml")
    }

    /// Where the control plane leaves its trust bundle for operators.
    pub(crate) fn published_bundle(&self) -> PathBuf {
        self.control_state().join("bundle.pem")
    }

    /// The operator's copy of it, which every sidecar starts from.
    pub(crate) fn trust_bundle(&self) -> PathBuf {
        self.root.join("bundle.pem")
    }

    /// A sidecar's configuration.
    pub(crate) fn sidecar_config(&self, service: Service) -> PathBuf {
        self.of(service).join("sidecar.yaml")
    }

    /// A sidecar's join token.
    pub(crate) fn token(&self, service: Service) -> PathBuf {
        self.of(service).join("token")
    }

    /// A sidecar's admin socket.
    pub(crate) fn admin_socket(&self, service: Service) -> PathBuf {
        self.state(service).join("admin.sock")
    }

    /// A sidecar's certificate and key.
    pub(crate) fn svid(&self, service: Service) -> PathBuf {
        self.state(service).join("svid.pem")
    }

    /// The Service and policy documents, watched by all three sidecars.
    pub(crate) fn documents(&self) -> PathBuf {
        self.root.join("documents")
    }

    /// What a process printed.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// Puts a document in place as a careful editor does: written beside, then renamed over the old one.
    pub(crate) fn publish(&self, name: &str, text: &str) -> Result<(), Failure> {
        let staged = self.root.join("staging").join(name);
        fs::write(&staged, text)
            .and_then(|()| fs::rename(&staged, self.documents().join(name)))
            .explain(format!("cannot write the document {name}"))
    }

    /// Takes a document away.
    pub(crate) fn withdraw(&self, name: &str) -> Result<(), Failure> {
        fs::remove_file(self.documents().join(name)).explain(format!("cannot remove the document {name}"))
    }

    /// Where a namespace, or a program that all of them run, is mounted.
    pub(crate) fn mounted(&self, name: &str) -> PathBuf {
        self.root.join("mounted").join(name)
    }

    /// All that is a sidecar's own.
    pub(crate) fn of_sidecar(&self, service: Service) -> [PathBuf; 3] {
        [self.of(service), self.state(service), self.sidecar_config(service)]
    }

    fn control_state(&self) -> PathBuf {
        self.root.join("control")
    }

    fn of(&self, service: Service) -> PathBuf {
        self.root.join(service.name())
    }

    fn state(&self, service: Service) -> PathBuf {
        self.of(service).join("state")
    }

    fn write_all(&self, plan: &Plan) -> io::Result<()> {
        private_dir(&self.control_state())?;
        for name in ["documents", "staging", "logs"] {
            private_dir(&self.root.join(name))?;
        }
        private_file(&self.control_config(), &self.control_yaml(plan))?;
        for service in Service::ALL {
            private_dir(&self.of(service))?;
            private_dir(&self.state(service))?;
            private_file(&self.sidecar_config(service), &self.sidecar_yaml(plan, service))?;
        }
        for (name, text) in documents::all(plan) {
            fs::write(self.documents().join(name), text)?;
        }
        Ok(())
    }

    fn control_yaml(&self, plan: &Plan) -> String {
        format!(
            "trustDomain: {TRUST_DOMAIN}\n\
             stateDir: {state}\n\
             listen: {{address: \"{listen}\"}}\n\
             health: {{address: \"{health}\"}}\n\
             meshAdmin: {{address: \"{admin}\"}}\n\
             svid: {{ttl: {SVID_TTL_S}s}}\n\
             test: true          # allows certificates that live for seconds\n\
             log: {{level: info, format: text}}\n",
            state = quoted(&self.control_state()),
            listen = plan.control(),
            health = plan.control_health(),
            admin = plan.mesh_admin(),
        )
    }

    fn sidecar_yaml(&self, plan: &Plan, service: Service) -> String {
        format!(
            "identity: {id}\n\
             stateDir: {state}\n\
             controlPlane:\n\
             \x20 address: {control}\n\
             \x20 spiffeId: spiffe://{TRUST_DOMAIN}/postern/control\n\
             \x20 trustBundle: {bundle}\n\
             \x20 joinToken: {token}\n\
             workload:\n\
             \x20 address: {host}\n\
             \x20 ports: [{{port: {SERVICE_PORT}, protocol: http}}]\n\
             \x20 labels: {{app: {service}}}\n\
             inbound: {{address: \"{inbound}\"}}\n\
             outbound: {{address: \"{outbound}\"}}\n\
             health: {{address: \"{health}\"}}\n\
             {capture}\
             admin: {{socket: {admin}}}\n\
             documents: {documents}\n\
             rootNamespace: postern-system\n\
             workers: 1\n\
             test: true          # allows certificates that live for seconds\n\
             log: {{level: info, format: text}}\n",
            id = service.spiffe_id(),
            state = quoted(&self.state(service)),
            control = plan.control(),
            bundle = quoted(&self.trust_bundle()),
            token = quoted(&self.token(service)),
            host = plan.host(service),
            inbound = plan.bound(plan.mesh(service)),
            outbound = plan.outbound(service),
            health = plan.bound(plan.health(service)),
            capture = capture(plan, service),
            admin = quoted(&self.admin_socket(service)),
            documents = quoted(&self.documents()),
        )
    }
}

/// What the sidecar is told of redirection.
fn capture(plan: &Plan, service: Service) -> String {
    let Ground::Namespaces(apart) = plan.ground else { return String::new() };
    let [v4, v6] = plan.both(Place::Service(service));
    let mark = match apart {
        Apart::User => String::new(),
        Apart::Mark => format!(", mark: {MARK:#x}"),
    };
    format!("capture: {{mode: redirect, addresses: [{v4}, \"{v6}\"]{mark}}}\n")
}

/// A path as a double-quoted YAML scalar, whatever it holds.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy().as_ref()).to_string()
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn private_file(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
