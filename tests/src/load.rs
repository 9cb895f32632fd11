//! `h2load`, and what became of each of its requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::foreign::{self, Run};
use crate::mesh::Mesh;

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    running: JoinHandle<Run>,
    log: PathBuf,
}

/// A load that has ended.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Requests by status, from h2load's log of every single one.
    pub statuses: BTreeMap<u16, u64>,
    /// Failed, errored and timed out requests, from its summary.
    pub failed: u64,
    /// Its summary.
    pub summary: String,
}

impl Load {
    /// Sends requests for `url` through the outbound listener of sidecar `name` for a while.
    pub fn start(mesh: &Mesh, name: &str, url: &str, time: Duration) -> Self {
        let log = mesh.directory().join("h2load.log");
        let mut command = Command::new("h2load");
        command.args(["-c", "4", "-m", "4", "-t", "1", "-D", &time.as_secs().to_string()]);
        command.arg(format!("--connect-to={}", mesh.sidecar(name).outbound()));
        command.arg(format!("--log-file={}", log.display()));
        command.arg(url);
        let limit = time + Duration::from_secs(60);
        Self { running: std::thread::spawn(move || foreign::run(&mut command, limit)), log }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.running.is_finished()
    }

    /// Waits for its end.
    pub fn end(self) -> Loaded {
        let run = self.running.join().expect("h2load ends in time");
        let summary = run.text();
        assert_eq!(run.code, 0, "h2load: {summary}{}", run.stderr);
        let mut statuses = BTreeMap::new();
        let log = std::fs::read_to_string(&self.log).expect("h2load has written its log");
        for line in log.lines() {
            // h2load writes -1 for a request that got no status.
            let status = line.split('\t').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            *statuses.entry(status).or_default() += 1;
        }
        // requests: 5 total, 5 started, 5 done, 5 succeeded, 0 failed, 0 errored, 0 timeout
        let line = summary.lines().find(|line| line.starts_with("requests:")).unwrap_or_default();
        let count = |what: &str| -> u64 {
            let of_this = line.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
            of_this.unwrap_or_else(|| panic!("h2load's summary has no {what}: {summary}"))
        };
        // "failed" counts every status of 400 and more too; what broke is what errored or timed out.
        Loaded { statuses, failed: count("errored") + count("timeout"), summary }
    }
}

impl Loaded {
    /// Requests that were answered.
    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }
}
