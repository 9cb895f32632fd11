//! The whole state of a CA in one sealed file, taken while a control plane runs on it, and put back.
//!
//! What is in it fits together: the database is a snapshot of one moment, the ledger is cut at the records that this moment
//! knows, and every key is there that it needs.

mod archive;
mod manifest;
mod restore;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_svid::TrustDomain;

use crate::keys::{self, KeyError, Seal};
use crate::ledger::{self, LedgerError, Walk};
use crate::store::{DATABASE, Kind, Sqlite, StoreError};
use archive::Writer;

pub use manifest::Manifest;
pub(crate) use restore::check_finished;
pub use restore::{Epoch, Restored, restore};

/// The snapshot of the database, while a backup is taken.
const SNAPSHOT: &str = "ca.db.backup";
/// Held while a backup is taken.
const LOCK: &str = "backup.lock";

/// Why there is no backup, or why one is not put back. Each text names the file and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Another one is being taken.
    #[error("{}: another backup is being taken; wait for its end", .0.display())]
    Busy(PathBuf),
    /// The content is not that of a backup.
    #[error("{}: {what}; use another backup", .path.display())]
    Content {
        /// The backup.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// Something is known that is newer.
    #[error(
        "{}: {detail}. Sidecars may have seen what came after it and would refuse what comes again; with --new-epoch every number goes on above all that they can have seen (docs/backup.md says what is lost)",
        .path.display()
    )]
    Older {
        /// The backup.
        path: PathBuf,
        /// What is known.
        detail: String,
    },
    /// A file or key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A key that the database needs is not there.
    #[error(
        "the key {0} is not in the state directory, though the database needs it; the control plane's log says more"
    )]
    MissingKey(String),
    /// Something is in the directory already.
    #[error(
        "{}: not empty (it holds {found}). A backup is put back only into an empty directory: move what is there away, it may be evidence", .path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Of another trust domain.
    #[error("{}: the backup of {found}, not of {wanted}", .path.display())]
    TrustDomain {
        /// The backup.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
}

/// Takes a backup of the CA of `td` in `directory` into the new file `to`, sealed with `seal`. `is_running` says whether a
/// control plane may be at work there meanwhile, and `in_token` of which
/// CAs the keys may be in a token, which keeps them. Gives what is in it.
pub fn take(
    directory: &Path,
    td: &TrustDomain,
    seal: &Seal,
    to: &Path,
    is_running: bool,
    in_token: &[Kind],
    now: SystemTime,
) -> Result<Manifest, BackupError> {
    keys::private_dir(directory)?;
    let _lock = lock(directory)?;
    let snapshot = Passing(directory.join(SNAPSHOT));
    snapshot.remove()?;
    // Keys of before and of after: what the snapshot needs is among them.
    let mut found = key_files(directory)?;
    Sqlite::snapshot(directory, td, &snapshot.0)?;
    let manifest::Snapshot { manifest, needed, head } = manifest::of(&snapshot.0, td, is_running, now)?;
    for file in key_files(directory)? {
        if !found.contains(&file) {
            found.push(file);
        }
    }
    let io = |error| KeyError::Io(to.to_owned(), error);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(to.to_owned()),
        _ => io(error),
    })?;
    let written = (|| {
        let mut archive = Writer::new(seal.writer(to, io::BufWriter::new(file))?, to);
        archive.bytes("manifest", manifest.text().as_bytes())?;
        archive.file(DATABASE, &snapshot.0, u64::MAX)?;
        let mut saved = Vec::new();
        for name in &found {
            // One that is gone meanwhile was not needed any more.
            if let Some(content) = read_if_there(&directory.join(name))? {
                archive.bytes(name, &content)?;
                saved.extend(name.rsplit_once('.').map(|(name, _)| name.to_owned()));
            }
        }
        let missing =
            needed.into_iter().find(|(kind, label)| !in_token.contains(kind) && !saved.contains(label));
        if let Some((_, missing)) = missing {
            return Err(BackupError::MissingKey(missing));
        }
        ledger_files(directory, &manifest, &mut archive)?;
        if let Some(head) = head {
            archive.bytes(&format!("{}/{}", ledger::DIRECTORY, ledger::LATEST), head.as_bytes())?;
        }
        archive.finish()
    })();
    if written.is_err() {
        // Half a backup is none; what removing it meets is not the news.
        let _ = fs::remove_file(to);
    }
    written?;
    Ok(manifest)
}

/// The ledger's files, up to the records that the snapshot knows.
fn ledger_files(directory: &Path, manifest: &Manifest, archive: &mut Writer<'_>) -> Result<(), BackupError> {
    let ledger = directory.join(ledger::DIRECTORY);
    let segments = match ledger::segments(&ledger) {
        // No control plane has run here yet: all records wait in the database.
        Err(LedgerError::None(_)) => return Ok(()),
        other => other?,
    };
    let known: Vec<u64> =
        segments.into_iter().filter(|first| *first == 0 || *first < manifest.ledger_size).collect();
    let name = |path: &Path| {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        format!("{}/{file}", ledger::DIRECTORY)
    };
    let Some((newest, ended)) = known.split_last() else { return Ok(()) };
    for first in ended {
        let path = ledger::segment_path(&ledger, *first);
        archive.file(&name(&path), &path, u64::MAX)?;
    }
    let mut walk = Walk::begin(&ledger, *newest)?;
    while walk.position() < manifest.ledger_size {
        match walk.read() {
            Ok(Some(_)) => {}
            // The rest waits in the snapshot, and is being written here just now.
            Ok(None) => break,
            Err(LedgerError::Damaged { sequence, .. }) if sequence >= manifest.ledger_waiting => break,
            Err(error) => return Err(error.into()),
        }
    }
    let (path, length) = walk.place();
    archive.file(&name(path), path, length)?;
    for size in ledger::heads(&ledger)?.into_iter().filter(|size| *size <= manifest.ledger_size) {
        let path = ledger::head_path(&ledger, size);
        archive.file(&name(&path), &path, u64::MAX)?;
    }
    Ok(())
}

/// The names of all files with keys, in whatever form they rest.
fn key_files(directory: &Path) -> Result<Vec<String>, KeyError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.extend(name.to_str().filter(|name| archive::is_key(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn read_if_there(path: &Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, KeyError> {
    match keys::read_private(path, archive::MAX_KEY) {
        Err(KeyError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn lock(directory: &Path) -> Result<File, BackupError> {
    let path = directory.join(LOCK);
    let io = |error| KeyError::Io(path.clone(), error);
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path);
    let file = opened.map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(BackupError::Busy(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(io(error).into()),
    }
}

/// A file that is gone when this is dropped.
struct Passing(PathBuf);

impl Passing {
    fn remove(&self) -> Result<(), KeyError> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KeyError::Io(self.0.clone(), error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the snapshot of a backup stays; the next backup removes it");
        }
    }
}

#[cfg(test)]
mod tests;
