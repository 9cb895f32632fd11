//! A backup put back. Until all of it is there the directory bears a mark that keeps everybody from using it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use postern_svid::TrustDomain;

use super::archive::{self, Reader};
use super::{BackupError, Manifest};
use crate::keys::{self, KeyError, Seal};
use crate::ledger::{self, Head};
use crate::store::{DATABASE, MARK, Sqlite, StoreError, UNFINISHED};

/// A manifest is some lines.
const MAX_MANIFEST: u64 = 4_096;

/// How the numbers go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Epoch {
    /// From where the backup was: right only if nothing was issued after it.
    Same,
    /// Above everything that can have been seen since, by the clock: it is the time now.
    New(SystemTime),
}

/// What was put back.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// The trust bundle's version from now on.
    pub bundle_sequence: u64,
    /// Join tokens that could still be used, and cannot any more.
    pub voided_tokens: u64,
    /// Where the ledger of before lies, if another one begins.
    pub old_ledger: Option<std::path::PathBuf>,
}

/// Puts the backup in `from` into `directory`, which is made or empty, but for the mark of the state that was lost. `known_head`
/// is a head of the ledger that was kept elsewhere.
pub fn restore(
    directory: &Path,
    td: &TrustDomain,
    seal: &Seal,
    from: &Path,
    epoch: Epoch,
    known_head: Option<&Path>,
) -> Result<Restored, BackupError> {
    let io = |error| KeyError::Io(from.to_owned(), error);
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(from);
    let file = opened.map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(KeyError::NotAFile(from.to_owned()).into());
    }
    let mut archive = Reader::new(seal.reader(from, file)?, from);
    let content = |what| BackupError::Content { path: from.to_owned(), what };
    let manifest = match archive.next()? {
        Some((name, length)) if name == "manifest" => {
            Manifest::parse(from, &archive.short(length, MAX_MANIFEST)?)?
        }
        _ => return Err(content("it does not begin with its manifest")),
    };
    if manifest.trust_domain != td.as_str() {
        return Err(BackupError::TrustDomain {
            path: from.to_owned(),
            found: manifest.trust_domain,
            wanted: td.as_str().to_owned(),
        });
    }
    keys::private_dir(directory)?;
    only_a_mark(directory)?;
    if epoch == Epoch::Same {
        nothing_newer(directory, &manifest, from)?;
    }
    let unfinished = directory.join(UNFINISHED);
    keys::write_private(&unfinished, b"a backup is being put back here\n")?;
    let restored = unpack(directory, td, &mut archive, manifest, from, epoch, known_head);
    if restored.is_err() {
        clear(directory);
    }
    let restored = restored?;
    fs::remove_file(&unfinished).map_err(|error| KeyError::Io(unfinished.clone(), error))?;
    keys::sync_parent(&unfinished).map_err(|error| KeyError::Io(unfinished, error))?;
    Ok(restored)
}

fn unpack(
    directory: &Path,
    td: &TrustDomain,
    archive: &mut Reader<'_>,
    manifest: Manifest,
    from: &Path,
    epoch: Epoch,
    known_head: Option<&Path>,
) -> Result<Restored, BackupError> {
    let ledger = directory.join(ledger::DIRECTORY);
    DirBuilder::new().mode(0o700).create(&ledger).map_err(|error| KeyError::Io(ledger.clone(), error))?;
    while let Some((name, length)) = archive.next()? {
        if name == "manifest" || archive::is_key(&name) && length > archive::MAX_KEY {
            return Err(BackupError::Content {
                path: from.to_owned(),
                what: "a file in it that does not belong",
            });
        }
        archive.write_to(length, &directory.join(&name))?;
    }
    for place in [&ledger, directory] {
        File::open(place)
            .and_then(|opened| opened.sync_all())
            .map_err(|error| KeyError::Io(place.to_owned(), error))?;
    }
    let database = directory.join(DATABASE);
    let seen = Sqlite::look(&database, td)?;
    if let Some(path) = known_head {
        newer_than_head(&manifest, &seen, path, from, epoch)?;
    }
    // An empty directory would be a ledger that was lost.
    if ledger::segments(&ledger).is_err() {
        fs::remove_dir_all(&ledger).map_err(|error| KeyError::Io(ledger.clone(), error))?;
    }
    let (mut voided_tokens, mut old_ledger) = (0, None);
    let mut bundle_sequence = seen.bundle_sequence;
    if let Epoch::New(now) = epoch {
        let marked = Sqlite::marked(&database, "bundle_sequence")?;
        (bundle_sequence, voided_tokens) = Sqlite::begin_epoch(&database, td, marked, now)?;
        if let Some(state) = &seen.ledger
            && ledger.exists()
        {
            let aside = directory.join(format!("ledger-{}", crate::hex(&state.identity.id)));
            fs::rename(&ledger, &aside).map_err(|error| KeyError::Io(ledger.clone(), error))?;
            old_ledger = Some(aside);
        }
        // With another key nobody takes a head of this ledger for one of the old.
        for end in ["key", "sealed"] {
            let key = directory.join(format!("{}.{end}", ledger::KEY));
            keys::remove(&key)?;
        }
    }
    Sqlite::write_mark(&database, td)?;
    Ok(Restored { manifest, bundle_sequence, voided_tokens, old_ledger })
}

/// Nothing but what remembers the state that was lost.
fn only_a_mark(directory: &Path) -> Result<(), BackupError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    // Of a whole CA, what says most.
    if directory.join(DATABASE).exists() {
        let found = format!("a CA: {DATABASE}");
        return Err(BackupError::NotEmpty { path: directory.to_owned(), found });
    }
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // The lock is the caller's own.
        if name != MARK && name != "control.lock" {
            let found = name.to_string_lossy().into_owned();
            return Err(BackupError::NotEmpty { path: directory.to_owned(), found });
        }
    }
    Ok(())
}

fn nothing_newer(directory: &Path, manifest: &Manifest, from: &Path) -> Result<(), BackupError> {
    let older = |detail: String| BackupError::Older { path: from.to_owned(), detail };
    if manifest.is_running {
        return Err(older(
            "it was taken while a control plane was at work, which went on from there".to_owned(),
        ));
    }
    let numbers = [
        ("bundle_sequence", manifest.bundle_sequence),
        ("journal", manifest.journal),
        ("issued", manifest.issued),
    ];
    for (name, of_backup) in numbers {
        let marked = Sqlite::marked(&directory.join(DATABASE), name)?;
        if let Some(marked) = marked.filter(|marked| *marked > of_backup) {
            return Err(older(format!("its {name} is {of_backup}, and {MARK} there remembers {marked}")));
        }
    }
    Ok(())
}

/// Whether a head from elsewhere covers more than the backup has. Only one that this ledger's key has signed counts.
fn newer_than_head(
    manifest: &Manifest,
    seen: &crate::store::Seen,
    path: &Path,
    from: &Path,
    epoch: Epoch,
) -> Result<(), BackupError> {
    let text = fs::read(path).map_err(|error| KeyError::Io(path.to_owned(), error))?;
    let text = std::str::from_utf8(&text).unwrap_or_default();
    let key = seen.ledger.as_ref().and_then(|state| Some((&state.identity, state.key?)));
    let head = key
        .ok_or("the backup has no ledger to hold it against")
        .and_then(|(identity, key)| Head::verify(text, identity, key));
    let head = head.map_err(|what| ledger::LedgerError::Head { file: path.to_owned(), what })?;
    let (size, known) = (manifest.ledger_size, head.tree.size());
    if epoch == Epoch::Same && known > size {
        let detail = format!("it has {size} records of the ledger, and {} covers {known}", path.display());
        return Err(BackupError::Older { path: from.to_owned(), detail });
    }
    Ok(())
}

/// After a failure: only what was just made is there. The mark that keeps others away goes last.
fn clear(directory: &Path) {
    let cleared = (|| {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == MARK || name == "control.lock" || name == UNFINISHED {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_file(directory.join(UNFINISHED))
    })();
    if let Err(error) = cleared {
        tracing::warn!(%error, directory = %directory.display(), "what a restore left could not be removed: remove it before the next one");
    }
}

/// Refuses a directory in which a restore broke off.
pub(crate) fn check_finished(directory: &Path) -> Result<(), StoreError> {
    if directory.join(UNFINISHED).exists() {
        return Err(StoreError::File(format!(
            "{}: putting a backup back broke off here; empty the directory and run postern ca restore again",
            directory.display()
        )));
    }
    Ok(())
}
