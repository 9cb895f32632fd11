//! The directory of documents: watched, read as one set, loaded whole or not at all, published, and judged again.
//!
//! Editors write in place, tools rename, Kubernetes swaps the symbolic link `..data`. So events only say *when* to look;
//! what is there is told by reading everything, and by reading it twice until two readings agree. A slow poll backs the
//! events up, because a watch on a directory that is replaced goes silent.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use nix::fcntl::OFlag;
use notify::{RecursiveMode, Watcher as _};
use postern_policy::{Diagnostic, Diagnostics, Generation, Scope, SourceFile, Workload};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::listener::is_exhaustion;
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

/// Generations kept whole.
const KEPT: usize = 16;
/// Generations of which number, digest and time are remembered.
const REMEMBERED: usize = 1_024;
/// More files, or more bytes, are no set of documents but an accident (a home directory, a log).
const MAX_FILES: usize = 10_000;
const MAX_BYTES: u64 = 64 << 20;
/// Events come in bursts; after the first, this much quiet is waited for, but never long.
const QUIET: Duration = Duration::from_millis(20);
const AT_MOST: Duration = Duration::from_millis(100);
/// How often the directory is read without any event.
const POLL: Duration = Duration::from_secs(2);
/// A request that ends within this is no stream. Changes are in force for all streams within a second, the time to read
/// the documents included.
const YOUNG: Duration = Duration::from_millis(500);

/// What was in force lately, and what became of the last load.
#[derive(Debug, Default)]
pub struct History {
    kept: VecDeque<Arc<Generation>>,
    remembered: VecDeque<Remembered>,
    /// Why the set that is there now is not in force.
    pub refused: Option<Refused>,
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
    let mut loader = Loader { sidecar, number: 0, digest: None };
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
    number: u64,
    /// Of the set that was read last, good or bad.
    digest: Option<String>,
}

impl Loader {
    async fn load(&mut self) {
        let directory = self.sidecar.config.documents.clone();
        let scope = scope(&self.sidecar);
        let (number, known) = (self.number + 1, self.digest.clone());
        let task = tokio::task::spawn_blocking(move || {
            let set = read_stable(&directory)?;
            let digest = digest(&set);
            if known.as_ref() == Some(&digest) {
                return None;
            }
            let generation = set.and_then(|files| postern_policy::load(&files, &scope, number));
            Some((digest, generation))
        });
        match task.await {
            Ok(Some((digest, generation))) => self.publish(digest, generation),
            Ok(None) => {}
            // A panic while compiling must not take the last good set away.
            Err(error) => tracing::error!(%error, "loading the documents failed"),
        }
    }

    fn publish(&mut self, digest: String, generation: Result<Generation, Diagnostics>) {
        let sidecar = &self.sidecar;
        let now = sidecar.clock.wall();
        self.digest = Some(digest.clone());
        match generation {
            Ok(generation) => {
                self.number = generation.number();
                let generation = Arc::new(generation);
                let forgotten = {
                    let mut history = sidecar.history.lock();
                    history.refused = None;
                    history.push(Arc::clone(&generation), digest, now)
                };
                if let Some(forgotten) = forgotten {
                    sidecar.decisions.name_rules(&forgotten);
                }
                sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(Arc::clone(&generation)));
                sidecar.metrics.policy_loads[0].inc();
                sidecar.metrics.policy_stale.set(0);
                sidecar.metrics.policy_generation.set(i64::try_from(self.number).unwrap_or(i64::MAX));
                tracing::info!(generation = self.number, "documents in force");
                rejudge(sidecar, &generation);
            }
            Err(diagnostics) => {
                tracing::error!(
                    in_force = self.number,
                    "documents refused, the last good set stays in force:\n{diagnostics}"
                );
                sidecar.history.lock().refused = Some(Refused { digest, at: now, diagnostics });
                sidecar.metrics.policy_loads[1].inc();
                sidecar.metrics.policy_stale.set(1);
            }
        }
    }
}

/// Resets what lost permission: at once, or after the grace that the documents give. A request that is just being
/// answered was allowed when it was judged; cutting it would protect nothing and break an answer in the middle. So it is
/// asked about once more when it has run so long that it is a stream.
fn rejudge(sidecar: &Arc<Sidecar>, generation: &Arc<Generation>) {
    let grace = generation.defaults().on_change.grace;
    if grace.is_zero() {
        revoke(sidecar, generation);
    }
    let sidecar = Arc::clone(sidecar);
    spawn(async move {
        tokio::time::sleep(grace.max(YOUNG)).await;
        // Whatever is in force by then decides: a change that was taken back resets nothing.
        let current = sidecar.snapshots.load().policy.clone();
        if let Some(current) = current {
            revoke(&sidecar, &current);
        }
    });
}

fn revoke(sidecar: &Sidecar, generation: &Generation) {
    let revoked = sidecar.registry.rejudge(generation, &sidecar.config.namespace, YOUNG);
    if revoked > 0 {
        sidecar.metrics.policy_revoked.inc_by(revoked as u64);
        tracing::info!(revoked, generation = generation.number(), "streams lost permission and are reset");
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

/// Reads until two readings agree: a file that is being written is not a document yet. `None` if no descriptor is left
/// to read with: that says nothing about the documents, and the next poll tries again.
fn read_stable(directory: &Path) -> Option<Result<Vec<SourceFile>, Diagnostics>> {
    const TRIES: usize = 50;
    let mut exhausted = false;
    let mut last = read(directory, &mut exhausted);
    for _ in 0..TRIES {
        #[expect(clippy::disallowed_methods, reason = "a blocking thread, between two readings")]
        std::thread::sleep(Duration::from_millis(10));
        let next = read(directory, &mut exhausted);
        if exhausted {
            return None;
        }
        if digest(&last) == digest(&next) {
            return Some(next);
        }
        last = next;
    }
    Some(last)
}

/// Every `*.yaml` and `*.yml` directly in `directory`, by name, symbolic links followed, hidden entries left out
/// (editors' and Kubernetes' own).
pub fn read_directory(directory: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    read(directory, &mut false)
}

/// `exhausted` is set if it fails because no descriptor is left.
fn read(directory: &Path, exhausted: &mut bool) -> Result<Vec<SourceFile>, Diagnostics> {
    let name = directory.display().to_string();
    let whole = |message: String| {
        let mut all = Diagnostics::new();
        all.push(Diagnostic::whole(&name, message));
        all
    };
    let entries = fs::read_dir(directory).map_err(|error| {
        *exhausted |= is_exhaustion(&error);
        whole(format!("the documents cannot be read: {error}"))
    })?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| whole(format!("the documents cannot be listed: {error}")))?.path();
        if is_document(&path) {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            return Err(whole(format!("more than {MAX_FILES} files: this is no directory of documents")));
        }
    }
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    let mut bytes = 0;
    for path in paths {
        let file = path.display().to_string();
        let text = match read_bounded(&path, MAX_BYTES - bytes) {
            Ok(text) => text,
            Err(error) => {
                *exhausted |= is_exhaustion(&error);
                return Err(whole(format!("{file}: {error}")));
            }
        };
        bytes += text.len() as u64;
        files.push(SourceFile { name: file, text });
    }
    Ok(files)
}

fn is_document(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_bounded(path: &Path, left: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    // Opening a pipe waits for a writer otherwise, for ever.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(left + 1).read_to_end(&mut text)?;
    if text.len() as u64 > left {
        return Err(std::io::Error::other(format!("the documents hold more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

/// SHA-256 over names and contents, each with its length; over the text of the error for a set that cannot be read.
fn digest(set: &Result<Vec<SourceFile>, Diagnostics>) -> String {
    let mut context = Context::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    match set {
        Ok(files) => {
            for file in files {
                let name = file.name.rsplit('/').next().unwrap_or(&file.name);
                add(name.as_bytes());
                add(&file.text);
            }
        }
        Err(diagnostics) => add(diagnostics.to_string().as_bytes()),
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_documents_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt", "c.yaml~"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("..2026")).unwrap();
        fs::write(dir.path().join("..2026/d.yaml"), "d").unwrap();
        std::os::unix::fs::symlink("..2026/d.yaml", dir.path().join("d.yaml")).unwrap();
        let files = read_directory(dir.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.yml", "b.yaml", "d.yaml"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_an_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_directory(&dir.path().join("missing")).is_err());
        std::os::unix::fs::symlink("nowhere", dir.path().join("a.yaml")).unwrap();
        let error = read_directory(dir.path()).unwrap_err().to_string();
        assert!(error.contains("a.yaml"), "{error}");
    }

    #[test]
    fn names_and_contents_cannot_be_shifted_into_each_other() {
        let file =
            |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.as_bytes().to_vec() };
        let one = digest(&Ok(vec![file("a", "bc"), file("d", "")]));
        assert_ne!(one, digest(&Ok(vec![file("a", "b"), file("cd", "")])));
        assert_eq!(one, digest(&Ok(vec![file("x/a", "bc"), file("x/d", "")])));
    }
}
