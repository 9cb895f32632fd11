//! Events about a directory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::watch;

/// The operating system's word that something changed; never trusted to be complete.
pub(super) struct Watched {
    watcher: Option<notify::RecommendedWatcher>,
    /// What the watch was set on.
    set_on: Option<Place>,
    /// Kept, for its end is the end of following.
    #[cfg(feature = "sim")]
    _events: watch::Sender<()>,
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
    /// In a simulation there are no events, for nobody knows when they come.
    #[cfg(feature = "sim")]
    pub(super) fn start(_directory: &Path, events: watch::Sender<()>) -> Self {
        Self { watcher: None, set_on: None, _events: events }
    }

    #[cfg(not(feature = "sim"))]
    pub(super) fn start(directory: &Path, events: watch::Sender<()>) -> Self {
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

    pub(super) fn renew(&mut self, directory: &Path) {
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
