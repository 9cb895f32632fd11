//! An agent's place: its files, its clock, and the agent while it runs.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use postern_agent::{Agent, Attestation, Config, Identity, Observer, StartError, Trust, start};
use postern_svid::{SpiffeId, TestClock};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::control::Ca;

pub(crate) const ID: &str = "spiffe://demo.postern/ns/shop/sa/orders";
pub(crate) const CONTROL: &str = "spiffe://demo.postern/postern/control";
pub(crate) const TOKEN: &str = "token-0123456789";

pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) config: Config,
    pub(crate) clock: TestClock,
}

impl Place {
    pub(crate) fn new(ca: &Ca, control_plane: std::net::SocketAddr) -> Self {
        let directory = TempDir::new().unwrap();
        let token = directory.path().join("token");
        private(&token, TOKEN);
        let bundle = directory.path().join("bundle.pem");
        fs::write(&bundle, ca.root_pem()).unwrap();
        let config = Config {
            control_plane: control_plane.to_string(),
            replicas: Vec::new(),
            control_plane_id: SpiffeId::parse(CONTROL).unwrap(),
            trust: Trust::Bundle(bundle),
            identity: SpiffeId::parse(ID).unwrap(),
            attestation: Attestation::JoinToken(token),
            state_dir: directory.path().join("state"),
            mark: None,
            test: true,
        };
        Self { directory, config, clock: ca.clock.clone() }
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    pub(crate) fn start(&self) -> Result<Agent, StartError> {
        start(self.config.clone(), Arc::new(self.clock.clone()))
    }

    pub(crate) fn run(&self) -> Running {
        let agent = self.start().unwrap();
        let observer = agent.observer();
        let (stop, stopped) = watch::channel(false);
        Running { observer, stop, task: Some(tokio::spawn(agent.run(stopped))) }
    }
}

pub(crate) struct Running {
    pub(crate) observer: Observer,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn current(&self) -> Option<Arc<Identity>> {
        self.observer.identity().borrow().clone()
    }

    pub(crate) async fn identity(&self) -> Arc<Identity> {
        self.until(|identity| identity.is_some()).await.unwrap()
    }

    pub(crate) async fn renewed(&self, after: &Identity) -> Arc<Identity> {
        let serial = after.svid.serial().to_vec();
        self.until(|identity| identity.as_ref().is_some_and(|now| now.svid.serial() != serial)).await.unwrap()
    }

    pub(crate) async fn until(&self, what: impl Fn(&Option<Arc<Identity>>) -> bool) -> Option<Arc<Identity>> {
        let mut identities = self.observer.identity();
        match tokio::time::timeout(Duration::from_secs(20), identities.wait_for(|now| what(now))).await {
            Ok(identity) => identity.unwrap().clone(),
            Err(_) => panic!("not in time: {:?}", self.observer.status()),
        }
    }

    pub(crate) async fn stop(mut self) {
        self.stop.send(true).unwrap();
        let task = self.task.take().unwrap();
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("it stops when told").unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // As a crash does: at once, wherever it is.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

pub(crate) fn clock() -> TestClock {
    TestClock::at(UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

pub(crate) async fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
