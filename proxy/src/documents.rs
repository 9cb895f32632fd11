//! The directory of documents: watched, read as one set, loaded whole or not at all, published, and judged again.
//!
//! Editors write in place, tools rename, Kubernetes swaps the symbolic link `..data`. So events only say *when* to look;
//! what is there is told by reading everything, and by reading it twice until two readings agree. A slow poll backs the
//! events up, because a watch on a directory that is replaced goes silent.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher as _};
use postern_policy::{Diagnostics, Generation, Scope, SourceFile, Workload};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::rejudge;
use crate::sidecar::Sidecar;
use read::{digest, read_stable};
use store::Store;

mod read;
mod store;

pub use read::read_directory;

/// Generations kept whole.
const KEPT: usize = 16;
/// Generations of which number, digest and time are remembered.
const REMEMBERED: usize = 1_024;
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
    let mut loader = Loader::new(sidecar);
    loader.load().await;
    loaded.send_replace(true);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            changed = changed.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(POLL) => {}
        }
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
    store: Arc<Store>,
    number: u64,
    /// Of the set that was read last, good or bad.
    digest: Option<String>,
    /// The set in force could not be stored.
    owed: bool,
    /// The store is asked once, and only if the directory's first set is refused.
    asked_store: bool,
}

/// What a look at the directory has found.
enum Found {
    /// Another set than last time, by its digest; and the files of one that is good.
    Other(String, Result<(Arc<Generation>, Vec<SourceFile>), Diagnostics>),
    /// The set in force, which is still to be stored.
    Unstored(String, Vec<SourceFile>),
}

impl Loader {
    fn new(sidecar: Arc<Sidecar>) -> Self {
        let store = Arc::new(Store::new(&sidecar.config));
        Self { sidecar, store, number: 0, digest: None, owed: false, asked_store: false }
    }

    async fn load(&mut self) {
        let directory = self.sidecar.config.documents.clone();
        let scope = scope(&self.sidecar);
        let (number, known, owed) = (self.number + 1, self.digest.clone(), self.owed);
        let task = tokio::task::spawn_blocking(move || {
            let set = read_stable(&directory)?;
            let digest = digest(&set);
            if known.as_ref() == Some(&digest) {
                return set.ok().filter(|_| owed).map(|files| Found::Unstored(digest, files));
            }
            let loaded =
                set.and_then(|files| Ok((Arc::new(postern_policy::load(&files, &scope, number)?), files)));
            Some(Found::Other(digest, loaded))
        });
        match task.await {
            Ok(Some(Found::Other(digest, Ok((generation, files))))) => {
                self.digest = Some(digest.clone());
                self.put_in_force(digest.clone(), generation, Origin::Directory);
                self.store(digest, files).await;
            }
            Ok(Some(Found::Other(digest, Err(diagnostics)))) => {
                self.refuse(digest, diagnostics);
                self.ask_store().await;
            }
            Ok(Some(Found::Unstored(digest, files))) => self.store(digest, files).await,
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
        let _ = generation.tell_time(sidecar.clock.wall());
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
    }

    fn refuse(&mut self, digest: String, diagnostics: Diagnostics) {
        let sidecar = &self.sidecar;
        self.digest = Some(digest.clone());
        // Of the set that is in force the files are gone: what could not be stored while they were there never will.
        self.owed = false;
        tracing::error!(
            in_force = self.number,
            "documents refused, the last good set stays in force:\n{diagnostics}"
        );
        sidecar.history.lock().refused = Some(Refused { digest, at: sidecar.clock.wall(), diagnostics });
        sidecar.metrics.policy_loads[1].inc();
        sidecar.metrics.policy_stale.set(1);
    }

    /// Keeps the set in force for the next start. In force it is already: a slow disk must not delay a withdrawal.
    async fn store(&mut self, digest: String, files: Vec<SourceFile>) {
        let (store, copy, now) = (Arc::clone(&self.store), digest.clone(), self.sidecar.clock.wall());
        let task = tokio::task::spawn_blocking(move || store.write(&files, &copy, now));
        let written = task.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        self.sidecar.history.lock().stored = written.is_ok().then_some(digest);
        match written {
            Ok(()) => self.owed = false,
            Err(error) => {
                if !self.owed {
                    let path = self.store.path().display();
                    tracing::warn!(
                        "{path}: the documents in force cannot be stored: {error}; should the sidecar start anew while they are refused, it denies everything"
                    );
                }
                self.owed = true;
            }
        }
    }

    /// For a start without good documents: those that were in force last, as long as nothing else is.
    async fn ask_store(&mut self) {
        if self.asked_store || self.number > 0 {
            return;
        }
        self.asked_store = true;
        let (store, scope, number) = (Arc::clone(&self.store), scope(&self.sidecar), self.number + 1);
        let task = tokio::task::spawn_blocking(move || {
            let Some(stored) = store.read()? else { return Ok(None) };
            let generation = postern_policy::load(&stored.files, &scope, number)
                .map_err(|diagnostics| format!("they are refused by now:\n{diagnostics}"))?;
            Ok(Some((stored, Arc::new(generation))))
        });
        let path = self.store.path().display().to_string();
        match task.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Some((stored, generation))) => {
                let refused = self.sidecar.history.lock().refused.clone();
                let why = refused.map_or_else(String::new, |refused| refused.diagnostics.to_string());
                tracing::warn!(
                    stored_at_unix =
                        stored.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
                    digest = stored.digest,
                    "{path}: the documents stored there are in force, because the present ones are refused:\n{why}"
                );
                self.sidecar.history.lock().stored = Some(stored.digest.clone());
                self.put_in_force(stored.digest, generation, Origin::Store);
            }
            Ok(None) => tracing::warn!("{path}: no documents are stored there either: everything is denied"),
            Err(why) => {
                tracing::error!("{path}: the stored documents are ignored: {why}; everything is denied");
                self.sidecar.history.lock().store_error = Some(why);
            }
        }
    }
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
