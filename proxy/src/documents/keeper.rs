//! Keeps the set in force for the next start, beside everything else: a disk that is slow or hangs delays no reload.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_policy::SourceFile;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::store::{Store, Stored};
use crate::runtime::Owned;
use crate::sidecar::Sidecar;

/// What the state directory takes longer for is told: disks answer in milliseconds.
pub(super) const OVERDUE: Duration = Duration::from_secs(5);
/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(2);

/// The store as the documents' loader knows it. Both calls block for as long as the disk does.
pub(super) trait Disk: Send + Sync + 'static {
    /// Replaces the stored set; if that fails, none is left.
    fn write(&self, set: &Set, now: SystemTime) -> io::Result<()>;
    /// The stored set, or why it cannot be used.
    fn read(&self) -> Result<Option<Stored>, String>;
    /// Its place, for people.
    fn place(&self) -> String;
}

impl Disk for Store {
    fn write(&self, set: &Set, now: SystemTime) -> io::Result<()> {
        Self::write(self, set, now)
    }

    fn read(&self) -> Result<Option<Stored>, String> {
        Self::read(self)
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }
}

/// Writes one set at a time, and next the latest that came meanwhile; those between are never written.
#[derive(Debug)]
pub(super) struct Keeper {
    waiting: Arc<Waiting>,
    _task: Owned,
}

#[derive(Debug, Default)]
struct Waiting {
    set: Mutex<Option<Set>>,
    came: Notify,
}

/// What is kept for the next start.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) digest: String,
    pub(super) files: Vec<Arc<SourceFile>>,
    /// Whether an operator put it back in force: then it comes before the directory's.
    pub(super) is_pinned: bool,
}

impl Keeper {
    /// A keeper with nothing to do yet. It ends when this is dropped; a write that has begun is left to the disk.
    pub(super) fn start(sidecar: Arc<Sidecar>, disk: Arc<dyn Disk>) -> Self {
        let waiting = Arc::new(Waiting::default());
        let task = Owned::spawn(run(sidecar, disk, Arc::clone(&waiting)));
        Self { waiting, _task: task }
    }

    /// Has this set kept, which is in force.
    pub(super) fn keep(&self, set: Set) {
        *self.waiting.set.lock() = Some(set);
        self.waiting.came.notify_one();
    }
}

async fn run(sidecar: Arc<Sidecar>, disk: Arc<dyn Disk>, waiting: Arc<Waiting>) {
    // Told once, and again only after a success.
    let mut told = false;
    loop {
        let next = waiting.set.lock().take();
        let Some(set) = next else {
            waiting.came.notified().await;
            continue;
        };
        let (set, written) = write(&sidecar, &disk, set, &mut told).await;
        let is_latest = waiting.set.lock().is_none();
        match written {
            Ok(()) => {
                sidecar.history.lock().stored = Some(set.digest);
                if is_latest {
                    note(&sidecar, None);
                    if std::mem::take(&mut told) {
                        tracing::info!("{}: the documents in force are stored", disk.place());
                    }
                }
            }
            Err(error) => {
                sidecar.history.lock().stored = None;
                tell(
                    &sidecar,
                    &disk,
                    &mut told,
                    &format!("the documents in force cannot be stored: {error}"),
                    "it denies everything",
                );
                waiting.set.lock().get_or_insert(set);
                let _ = timeout(RETRY, waiting.came.notified()).await;
            }
        }
    }
}

/// One write, to its end, which may never come.
async fn write(
    sidecar: &Arc<Sidecar>,
    disk: &Arc<dyn Disk>,
    set: Set,
    told: &mut bool,
) -> (Set, io::Result<()>) {
    let set = Arc::new(set);
    let mut task = {
        let (disk, set, now) = (Arc::clone(disk), Arc::clone(&set), sidecar.clock.wall());
        crate::runtime::blocking(move || disk.write(&set, now))
    };
    let ended = match timeout(OVERDUE, &mut task).await {
        Ok(ended) => ended,
        Err(_) => {
            let what = format!("writing the documents in force takes longer than {} s", OVERDUE.as_secs());
            tell(sidecar, disk, told, &what, "older ones may be in force again");
            task.await
        }
    };
    let written = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
    // The writer's copy is gone with its task.
    (Arc::unwrap_or_clone(set), written)
}

fn tell(sidecar: &Sidecar, disk: &Arc<dyn Disk>, told: &mut bool, what: &str, then: &str) {
    note(sidecar, Some(what.to_owned()));
    if !std::mem::replace(told, true) {
        tracing::warn!(
            "{}: {what}; should the sidecar start anew while they are refused, {then}",
            disk.place()
        );
    }
}

fn note(sidecar: &Sidecar, unstored: Option<String>) {
    sidecar.metrics.policy_unstored.set(i64::from(unstored.is_some()));
    sidecar.history.lock().unstored = unstored;
}
