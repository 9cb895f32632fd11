//! One at a time on a state directory: two control planes would each turn the issuing CA, and nobody may change keys under
//! one that runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use postern_ca::keys::KeyError;

/// The lock's name within the state directory.
const LOCK: &str = "control.lock";

/// Held while a control plane, or whatever must not meet one, works on a state directory.
pub struct Lock {
    _file: File,
    _directory: Option<File>,
}

impl Lock {
    /// Takes the lock of `state_dir`, or fails at once.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join(LOCK);
        let io = |error| LockError::File(KeyError::Io(path.clone(), error));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::InUse(state_dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // The file can be deleted by somebody who tidies up; the directory cannot without what is in it. Where directories cannot be
        // locked, the file has to do.
        let directory = File::open(state_dir).map_err(io)?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { _file: file, _directory: Some(directory) }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(state_dir.to_owned())),
            Err(TryLockError::Error(_)) => Ok(Self { _file: file, _directory: None }),
        }
    }
}

/// Why the lock was not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The lock's file.
    #[error(transparent)]
    File(#[from] KeyError),
    /// Somebody holds it.
    #[error("{}: a control plane runs on this state directory, or something that must not meet one; stop it first", .0.display())]
    InUse(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_even_without_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(LockError::InUse(_))));
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(LockError::InUse(_))));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
