//! Where the demo keeps its files, and what becomes of those of demos that were killed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::demo::failure::{Explain, Failure};

const PREFIX: &str = "postern-demo-";
/// Locked while the demo runs whose directory this is in. What is kept for people to look into has none.
const LOCK: &str = "running";

/// The directory of one demo.
pub(crate) enum Home {
    Given(PathBuf),
    Temporary { directory: TempDir, lock: OnceLock<File> },
}

impl Home {
    /// The directory that is given, or a temporary one; then those that killed demos left are removed.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self, Failure> {
        let Some(given) = given else {
            remove_abandoned(&std::env::temp_dir());
            let private = Permissions::from_mode(0o700);
            let made = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir();
            let directory = made.explain("cannot make a temporary directory")?;
            return Ok(Self::Temporary { directory, lock: OnceLock::new() });
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(given);
        made.explain(format!("cannot make the directory {}", given.display()))?;
        Ok(Self::Given(given.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary { directory, .. } => directory.path(),
        }
    }

    /// Says that somebody is in, as long as this process lives, however it ends.
    pub(crate) fn occupy(&self) -> Result<(), Failure> {
        let Self::Temporary { directory, lock } = self else { return Ok(()) };
        let path = directory.path().join(LOCK);
        let file = File::create_new(&path).explain(format!("cannot write {}", path.display()))?;
        file.try_lock().explain(format!("cannot lock {}", path.display()))?;
        // Once for each demo; the lock goes when the file is closed.
        let _ = lock.set(file);
        Ok(())
    }

    /// Removes a temporary directory unless there is a reason to look into it, and says what became of it.
    pub(crate) fn close(self, keep: bool) -> String {
        match self {
            Self::Temporary { directory, .. } if keep => {
                let _ = fs::remove_file(directory.path().join(LOCK));
                format!("Files and logs: {}", directory.keep().display())
            }
            Self::Temporary { directory, .. } => match directory.close() {
                Ok(()) => "The mesh is stopped, its files are removed.".to_owned(),
                Err(error) => format!("The mesh is stopped; its files could not be removed: {error}"),
            },
            Self::Given(path) => format!("The mesh is stopped. Files and logs: {}", path.display()),
        }
    }
}

/// Removes the directories that demos left which could not clean up. Others share the place: only what is this user's own,
/// bears our name and holds a lock that nobody has is touched.
fn remove_abandoned(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let is_named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Of the entry itself: a symbolic link is no directory.
        let is_own = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if !is_named || !is_own {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_demos_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().expect("there is room");
        let made = |name: &str, locked: bool| {
            let directory = place.path().join(name);
            fs::create_dir(&directory).expect("it is ours");
            let lock = locked.then(|| File::create_new(directory.join(LOCK)).expect("it is ours"));
            (directory, lock)
        };
        let (running, lock) = made("postern-demo-running", true);
        lock.as_ref().map(File::try_lock).expect("it was asked for").expect("nobody has it");
        let (kept, _) = made("postern-demo-kept", false);
        let (other, _) = made("another", true);
        let (dead, _) = made("postern-demo-dead", true);
        let elsewhere = place.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("it is ours");
        File::create_new(elsewhere.join(LOCK)).expect("it is ours");
        std::os::unix::fs::symlink(&elsewhere, place.path().join("postern-demo-link")).expect("it is ours");
        remove_abandoned(place.path());
        let left = [&running, &kept, &other, &dead, &elsewhere].map(|directory| directory.exists());
        assert_eq!(left, [true, true, true, false, true]);
        drop(lock);
        remove_abandoned(place.path());
        assert!(!running.exists(), "its demo is gone by now");
    }
}
