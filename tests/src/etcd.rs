//! An etcd of Debian's, with TLS both ways, that is killed, stopped, saved and put back.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use postern_ca_etcd::{Config, Endpoint, Prefix, Tls, User};
use postern_svid::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::loopback::Block;
use crate::process::Process;
use crate::{foreign, wait};

/// A cluster of one member. Its files are in the directory that it was given: it must be dropped before that.
#[derive(Debug)]
pub struct Etcd {
    directory: PathBuf,
    address: IpAddr,
    /// Another one for every state that is put back.
    data: Mutex<usize>,
    process: Mutex<Option<Process>>,
    _block: Option<Arc<Block>>,
}

impl Etcd {
    /// Starts one at an address of its own.
    pub fn start(directory: &Path) -> Self {
        let block = Arc::new(Block::take());
        let mut etcd = Self::start_at(directory, block.address(0));
        etcd._block = Some(block);
        etcd
    }

    /// Starts one at this address.
    pub fn start_at(directory: &Path, address: IpAddr) -> Self {
        let directory = directory.join("etcd");
        fs::create_dir(&directory).expect("the directory is ours");
        let authority = Authority::new();
        fs::write(directory.join("ca.pem"), &authority.pem).expect("it was just made");
        let etcd = Self { directory, address, data: Mutex::new(0), process: Mutex::new(None), _block: None };
        etcd.papers("server", &authority, ExtendedKeyUsagePurpose::ServerAuth);
        etcd.papers("client", &authority, ExtendedKeyUsagePurpose::ClientAuth);
        etcd.papers("stranger", &Authority::new(), ExtendedKeyUsagePurpose::ClientAuth);
        fs::write(etcd.file("other-ca.pem"), Authority::new().pem).expect("it was just made");
        etcd.start_again();
        etcd
    }

    fn papers(&self, name: &str, authority: &Authority, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec![self.address.to_string()]).expect("it is an address");
        params.distinguished_name.push(DnType::CommonName, name);
        // etcd's own gateway calls it with the server's certificate.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("keys can be made");
        let certificate = params.signed_by(&key, &authority.issuer).expect("the parameters are whole");
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).expect("the directory is ours");
        self.secret(&format!("{name}.key"), &key.serialize_pem());
    }

    /// Writes a file for nobody else into its directory.
    pub fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, text).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path
    }

    /// A file of its: `ca.pem`, `client.pem` and `client.key`, `stranger.pem` (of another authority), `other-ca.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts it again with what it had, and waits until it answers.
    pub fn start_again(&self) {
        let (client, peer) = (self.url(), format!("http://{}:2380", self.address));
        let file = |name| self.file(name);
        let process = Process::start("etcd", "etcd".as_ref(), &self.file("etcd.log"), |command| {
            command.arg("--data-dir").arg(self.data());
            command.args([
                "--name",
                "one",
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
                "--log-level",
                "warn",
            ]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &format!("one={peer}"), "--client-cert-auth"]);
            command.arg("--trusted-ca-file").arg(file("ca.pem"));
            command.arg("--cert-file").arg(file("server.pem")).arg("--key-file").arg(file("server.key"));
            // Leases may be as short as a second then.
            command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
            if cfg!(target_arch = "aarch64") {
                command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
            }
        });
        wait::until("etcd answers", wait::PATIENCE, || {
            assert!(process.ended().is_none(), "etcd ended: {}", process.log());
            self.try_ctl(&["endpoint", "health"]).code == 0
        });
        *self.process.lock() = Some(process);
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.process.lock().take();
    }

    /// Sends it a signal: SIGSTOP makes it hang, SIGCONT goes on.
    pub fn signal(&self, signal: Signal) {
        self.process.lock().as_ref().expect("it runs").signal(signal);
    }

    /// What its first endpoint is called.
    pub fn url(&self) -> String {
        format!("https://{}:2379", self.address)
    }

    /// `etcdctl`, which must succeed; what it says.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let ran = self.try_ctl(arguments);
        assert_eq!(ran.code, 0, "etcdctl {arguments:?}: {}{}", ran.text(), ran.stderr);
        ran.text()
    }

    /// `etcdctl` with the client certificate.
    pub fn try_ctl(&self, arguments: &[&str]) -> foreign::Run {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--cacert"])
            .arg(self.file("ca.pem"));
        command.arg("--cert").arg(self.file("client.pem")).arg("--key").arg(self.file("client.key"));
        command.args(["--dial-timeout", "2s", "--command-timeout", "5s"]).args(arguments);
        foreign::run(&mut command, wait::PATIENCE)
    }

    /// Saves a snapshot of it.
    pub fn save(&self, name: &str) {
        self.ctl(&["snapshot", "save", &self.file(name).display().to_string()]);
    }

    /// Kills it, puts a snapshot back as an operator does, and starts it.
    pub fn put_back(&self, name: &str) {
        self.kill();
        *self.data.lock() += 1;
        let peer = format!("http://{}:2380", self.address);
        let (from, to) = (self.file(name).display().to_string(), self.data().display().to_string());
        let cluster = format!("one={peer}");
        let rest = ["--name", "one", "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
        self.ctl(&[&["snapshot", "restore", &from, "--data-dir", &to], &rest[..]].concat());
        self.start_again();
    }

    /// From now on it has forgotten everything.
    pub fn forget(&self) {
        self.kill();
        *self.data.lock() += 1;
        self.start_again();
    }

    fn data(&self) -> PathBuf {
        self.file(&format!("data-{}", self.data.lock()))
    }

    /// What a control plane of this trust domain is configured with.
    pub fn config(&self, trust_domain: &TrustDomain) -> Config {
        Config {
            endpoints: vec![Endpoint::parse(&self.url()).expect("it is one")],
            prefix: Prefix::of(trust_domain),
            tls: Some(Tls {
                ca: self.file("ca.pem"),
                own: Some((self.file("client.pem"), self.file("client.key"))),
            }),
            user: None,
        }
    }

    /// The same as a line of its configuration file.
    pub fn yaml(&self) -> String {
        let path = |name| self.file(name).display().to_string();
        format!(
            "store: {{etcd: {{endpoints: [\"{}\"], tls: {{ca: {}, cert: {}, key: {}}}}}}}",
            self.url(),
            path("ca.pem"),
            path("client.pem"),
            path("client.key"),
        )
    }

    /// Turns its own authentication on: a user with this name who may do everything below `prefix`, and its password's file.
    pub fn ask_for_users(&self, name: &str, password: &str, prefix: &Prefix) -> User {
        let credentials = |name: &str, password: &str| format!("{name}:{password}");
        self.ctl(&["user", "add", &credentials("root", "root")]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["role", "add", "postern"]);
        self.ctl(&[
            "role",
            "grant-permission",
            "postern",
            "readwrite",
            "--prefix=true",
            &format!("{prefix}/"),
        ]);
        self.ctl(&["user", "add", &credentials(name, password)]);
        self.ctl(&["user", "grant-role", name, "postern"]);
        self.ctl(&["auth", "enable"]);
        User {
            name: name.to_owned(),
            password: self.secret(&format!("{name}.password"), &format!("{password}\n")),
        }
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "etcd's own authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("keys can be made");
        let pem = params.self_signed(&key).expect("the parameters are whole").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }
}
