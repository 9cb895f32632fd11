//! One at a time on a state directory: two control planes would each turn the issuing CA, and nobody may change keys under
//! one that runs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use postern_ca::keys::KeyError;

/// The lock's name within the state directory.
const LOCK: &str = "control.lock";

/// Held while a control plane, or whatever must not meet one, works on a state directory.
pub struct Lock {
    _file: File,
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
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(LockError::InUse(state_dir.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(io(error)),
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
