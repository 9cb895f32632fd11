//! The directory of documents: watched, read as one set, loaded whole or not at all, published, and judged again.
//!
//! Editors write in place, tools rename, Kubernetes swaps the symbolic link `..data`. So events only say *when* to look;
//! what is there is told by reading, and by reading it twice until two readings agree. A slow poll reads everything and
//! backs the events up, because a watch on a directory that is replaced goes silent.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use postern_policy::{Diagnostics, Generation, Scope, SourceFile, Workload};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::rejudge;
use crate::sidecar::Sidecar;
use keeper::{Disk, Keeper, OVERDUE};
use read::{Readings, digest};
use store::{Store, Stored};

mod keeper;
mod read;
mod store;

pub use read::read_directory;

/// Generations kept whole.
const KEPT: usize = 16;
/// Generations of which number, digest and time are remembered.
const REMEMBERED: usize = 1_024;
/// Warnings about a loaded set that the log shows.
const WARNINGS_SHOWN: usize = 3;
/// Events come in bursts; after the first, this much quiet is waited for, but never long.
const QUIET: Duration = Duration::from_millis(20);
const AT_MOST: Duration = Duration::from_millis(100);
/// How often the directory is read without any event.
const POLL: Duration = Duration::from_secs(2);

/// What was in force lately, and what became of the last load.
#[derive(Debug, Default)]
pub struct History {
    kept: VecDeque<Arc<Generation>>,
    remembered: VecDeque<Remembered>,
    /// Why the set that is there now is not in force.
    pub refused: Option<Refused>,
    /// Where the set in force came from.
    pub origin: Option<Origin>,
    /// Digest of the set that the state directory keeps for the next start.
    pub stored: Option<String>,
    /// Why the state directory does not keep the set in force: the last write failed, or does not end.
    pub unstored: Option<String>,
    /// Why the stored set was of no use when it was needed.
    pub store_error: Option<String>,
}

/// Where a set came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The directory of documents.
    Directory,
    /// The state directory, which keeps the last good set for a start without good documents.
    Store,
}

impl Origin {
    /// Its word in the admin endpoint: the field of the configuration that names the place.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Directory => "documents",
            Self::Store => "stateDir",
        }
    }
}

/// One generation's mark.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Its number.
    pub number: u64,
    /// SHA-256 over the names and contents of its files, in hexadecimal.
    pub digest: String,
    /// When it came into force.
    pub loaded_at: SystemTime,
}

/// A set that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its digest.
    pub digest: String,
    /// When it was read.
    pub at: SystemTime,
    /// Everything that is wrong with it.
    pub diagnostics: Diagnostics,
}

impl History {
    /// The generation of this number, if it is still kept.
    pub fn generation(&self, number: u64) -> Option<&Arc<Generation>> {
        self.kept.iter().find(|generation| generation.number() == number)
    }

    /// The last generations, newest first.
    pub fn remembered(&self) -> impl Iterator<Item = &Remembered> {
        self.remembered.iter().rev()
    }

    /// Returns the generation that is not kept any more.
    fn push(
        &mut self,
        generation: Arc<Generation>,
        digest: String,
        loaded_at: SystemTime,
    ) -> Option<Arc<Generation>> {
        self.remembered.push_back(Remembered { number: generation.number(), digest, loaded_at });
        self.kept.push_back(generation);
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        if self.kept.len() > KEPT { self.kept.pop_front() } else { None }
    }
}

/// Loads the directory and follows it until `stop`. `loaded` says when the first set has been tried.
pub async fn follow(sidecar: Arc<Sidecar>, loaded: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
    let directory = sidecar.config.documents.clone();
    let (events, mut changed) = watch::channel(());
    let mut watcher = Watched::start(&directory, events);
    let store = Arc::new(Store::new(&sidecar.config));
    let mut loader = Loader::new(sidecar, store);
    loader.load().await;
    loaded.send_replace(true);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            changed = changed.changed() => if changed.is_err() {
                return;
            },
            answer = loader.stored() => {
                loader.take_stored(answer);
                continue;
            }
            () = tokio::time::sleep(POLL) => {
                watcher.renew(&directory);
                loader.poll().await;
                continue;
            }
        }
        // The first of the two readings is done while more events may come, so it costs no time.
        loader.glance();
        let deadline = Instant::now() + AT_MOST;
        while timeout_at(deadline.min(Instant::now() + QUIET), changed.changed()).await.is_ok() {}
        watcher.renew(&directory);
        loader.load().await;
    }
}

/// The operating system's word that something changed; never trusted to be complete.
struct Watched {
    watcher: Option<notify::RecommendedWatcher>,
    /// What the watch was set on.
    set_on: Option<Place>,
}

/// A directory itself, not its name: a watch stays with the directory, whatever is put under the name afterwards, be it
/// by a swapped symbolic link or by a rename.
#[derive(Eq, PartialEq)]
struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    fn of(directory: &Path) -> Option<Self> {
        let path = fs::canonicalize(directory).ok()?;
        let found = fs::metadata(&path).ok()?;
        Some(Self { path, device: found.dev(), inode: found.ino() })
    }
}

impl Watched {
    fn start(directory: &Path, events: watch::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too, and must not lead to reading them again.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                events.send_replace(());
            }
        });
        let watcher = watcher
            .map_err(|error| tracing::warn!(%error, "no file events: the documents are read every 2 s"))
            .ok();
        let mut watched = Self { watcher, set_on: None };
        watched.renew(directory);
        watched
    }

    fn renew(&mut self, directory: &Path) {
        let place = Place::of(directory);
        let Some(watcher) = &mut self.watcher else { return };
        if place == self.set_on {
            return;
        }
        if let Some(old) = self.set_on.take() {
            let _ = watcher.unwatch(&old.path);
        }
        if let Some(place) = place
            && watcher.watch(&place.path, RecursiveMode::NonRecursive).is_ok()
        {
            self.set_on = Some(place);
        }
    }
}

struct Loader {
    sidecar: Arc<Sidecar>,
    readings: Arc<Mutex<Readings>>,
    policies: Arc<Mutex<postern_policy::Loader>>,
    disk: Arc<dyn Disk>,
    keeper: Keeper,
    number: u64,
    /// Of the set that was read last, good or bad.
    digest: Option<String>,
    /// The store is asked once, and only if the directory's first set is refused.
    asked_store: bool,
    /// Its answer, while it is still to come.
    asking: Option<JoinHandle<FromStore>>,
}

/// What the store has for a start without good documents, or why it has nothing.
type FromStore = Result<Option<(Stored, Arc<Generation>)>, String>;
/// Another set than last time: its digest, and the files of one that is good.
type Found = (String, Result<(Arc<Generation>, Vec<SourceFile>), Diagnostics>);

impl Loader {
    fn new(sidecar: Arc<Sidecar>, disk: Arc<dyn Disk>) -> Self {
        let keeper = Keeper::start(Arc::clone(&sidecar), Arc::clone(&disk));
        let readings = Arc::new(Mutex::new(Readings::new(sidecar.config.documents.clone())));
        let policies = Arc::default();
        Self {
            sidecar,
            readings,
            policies,
            disk,
            keeper,
            number: 0,
            digest: None,
            asked_store: false,
            asking: None,
        }
    }

    /// Reads what is there at the first sign of a change; the next load waits for it.
    fn glance(&self) {
        let readings = Arc::clone(&self.readings);
        drop(tokio::task::spawn_blocking(move || readings.lock().glance()));
    }

    /// Loads although nothing said that anything changed.
    async fn poll(&mut self) {
        self.readings.lock().poll();
        self.load().await;
    }

    async fn load(&mut self) {
        let (readings, policies) = (Arc::clone(&self.readings), Arc::clone(&self.policies));
        let scope = scope(&self.sidecar);
        let (number, known) = (self.number + 1, self.digest.clone());
        let task = tokio::task::spawn_blocking(move || -> Option<Found> {
            let set = readings.lock().stable(known.as_deref())?;
            let digest = digest(&set);
            if known.as_ref() == Some(&digest) {
                return None;
            }
            let loaded =
                set.and_then(|files| Ok((Arc::new(policies.lock().load(&files, &scope, number)?), files)));
            Some((digest, loaded))
        });
        match task.await {
            Ok(Some((digest, Ok((generation, files))))) => {
                self.digest = Some(digest.clone());
                self.put_in_force(digest.clone(), generation, Origin::Directory);
                // In force it is already: a slow disk must not delay a withdrawal, this one or the next.
                self.keeper.keep(digest, files);
            }
            Ok(Some((digest, Err(diagnostics)))) => {
                self.refuse(digest, diagnostics);
                self.ask_store().await;
            }
            Ok(None) => {}
            // A panic while compiling must not take the last good set away.
            Err(error) => {
                tracing::error!(%error, "loading the documents failed");
                self.ask_store().await;
            }
        }
    }

    fn put_in_force(&mut self, digest: String, generation: Arc<Generation>, origin: Origin) {
        let sidecar = &self.sidecar;
        self.number = generation.number();
        let forgotten = {
            let mut history = sidecar.history.lock();
            if origin == Origin::Directory {
                history.refused = None;
            }
            history.origin = Some(origin);
            history.push(Arc::clone(&generation), digest, sidecar.clock.wall())
        };
        if let Some(forgotten) = forgotten {
            sidecar.decisions.name_rules(&forgotten);
        }
        let mut generation = generation;
        // Nobody else has it yet; one that comes into force again still has what did not change.
        if let (Some(next), Some(previous)) =
            (Arc::get_mut(&mut generation), &sidecar.snapshots.load().policy)
        {
            next.inherit_limits(previous);
        }
        let _ = generation.tell_time(sidecar.clock.wall());
        sidecar.metrics.rate_limits.follow(&generation);
        let rule_counts = sidecar.metrics.rules.follow(&generation);
        sidecar.snapshots.publish(|snapshot| {
            snapshot.policy = Some(Arc::clone(&generation));
            snapshot.rule_counts = rule_counts;
        });
        if origin == Origin::Directory {
            sidecar.metrics.policy_loads[0].inc();
            sidecar.metrics.policy_stale.set(0);
        }
        sidecar.metrics.policy_from_store.set(i64::from(origin == Origin::Store));
        sidecar.metrics.policy_generation.set(i64::try_from(self.number).unwrap_or(i64::MAX));
        tracing::info!(generation = self.number, "documents in force");
        rejudge::all(sidecar, &generation);
        warn_about(&generation);
    }

    fn refuse(&mut self, digest: String, diagnostics: Diagnostics) {
        let sidecar = &self.sidecar;
        self.digest = Some(digest.clone());
        // The findings stand last: a field after them would look like a part of their advice.
        match self.number {
            0 => tracing::error!(
                "documents refused, and none are in force: everything is denied:\n{diagnostics}"
            ),
            number => {
                tracing::error!("documents refused, generation {number} stays in force:\n{diagnostics}");
            }
        }
        sidecar.history.lock().refused = Some(Refused { digest, at: sidecar.clock.wall(), diagnostics });
        sidecar.metrics.policy_loads[1].inc();
        sidecar.metrics.policy_stale.set(1);
    }

    /// For a start without good documents: those that were in force last, as long as nothing else is. A disk that does
    /// not answer in time is not waited for: good documents may come first.
    async fn ask_store(&mut self) {
        if self.asked_store || self.number > 0 {
            return;
        }
        self.asked_store = true;
        let (disk, scope, number) = (Arc::clone(&self.disk), scope(&self.sidecar), self.number + 1);
        self.asking = Some(tokio::task::spawn_blocking(move || {
            let Some(stored) = disk.read()? else { return Ok(None) };
            let generation = postern_policy::load(&stored.files, &scope, number)
                .map_err(|diagnostics| format!("they are refused by now:\n{diagnostics}"))?;
            Ok(Some((stored, Arc::new(generation))))
        }));
        match timeout(OVERDUE, self.stored()).await {
            Ok(answer) => self.take_stored(answer),
            Err(_) => tracing::warn!(
                "{}: reading the stored documents takes longer than {} s; until it ends, or good documents come, everything is denied",
                self.disk.place(),
                OVERDUE.as_secs()
            ),
        }
    }

    /// The store's answer, if one is to come; may be dropped and asked for again.
    async fn stored(&mut self) -> FromStore {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = asking.await.unwrap_or_else(|error| Err(error.to_string()));
        self.asking = None;
        answer
    }

    fn take_stored(&mut self, answer: FromStore) {
        if self.number > 0 {
            return;
        }
        let place = self.disk.place();
        match answer {
            Ok(Some((stored, generation))) => {
                let refused = self.sidecar.history.lock().refused.clone();
                let why = refused.map_or_else(String::new, |refused| refused.diagnostics.to_string());
                tracing::warn!(
                    stored_at_unix =
                        stored.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
                    digest = stored.digest,
                    "{place}: the documents stored there are in force, because the present ones are refused:\n{why}"
                );
                self.sidecar.history.lock().stored = Some(stored.digest.clone());
                self.put_in_force(stored.digest, generation, Origin::Store);
            }
            Ok(None) => tracing::warn!("{place}: no documents are stored there either: everything is denied"),
            Err(why) => {
                tracing::error!("{place}: the stored documents are ignored: {why}; everything is denied");
                self.sidecar.history.lock().store_error = Some(why);
            }
        }
    }
}

/// Says in one line what a set that was loaded warns about; `postern policy check` has all of it.
fn warn_about(generation: &Generation) {
    let warnings = generation.warnings();
    if warnings.is_empty() {
        return;
    }
    let first: Vec<String> = warnings.iter().take(WARNINGS_SHOWN).map(ToString::to_string).collect();
    tracing::warn!(
        "the documents in force have {} warnings (`postern policy check DIR` shows all), the first:\n{}",
        warnings.total(),
        first.join("\n\n")
    );
}

pub(crate) fn scope(sidecar: &Sidecar) -> Scope {
    let config = &sidecar.config;
    Scope {
        trust_domain: config.identity.trust_domain(),
        root_namespace: config.root_namespace.clone(),
        workload: Some(Workload {
            namespace: config.namespace.clone(),
            service_account: config.service_account.clone(),
            labels: config.workload.labels.clone(),
        }),
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
