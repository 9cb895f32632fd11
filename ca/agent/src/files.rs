//! Files that hold secrets: only ours, never half written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::error::StartError;

/// More than any chain, bundle or token: eight roots, and revocations as long as one message of the control plane, in text.
const MAX_FILE: u64 = 1024 * 1024;

/// Makes `path` as 0700 if it is missing and refuses it if it is no directory, not ours, or open to others.
pub(crate) fn private_directory(path: &Path) -> Result<(), StartError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| io_error(path, error))?;
    let meta = fs::metadata(path).map_err(|error| io_error(path, error))?;
    if !meta.is_dir() {
        return Err(StartError::WrongKind { path: path.to_owned(), wanted: "directory" });
    }
    // Not even root's: whoever owns the directory can put its files aside.
    if meta.uid() != geteuid().as_raw() {
        return Err(StartError::Owner { path: path.to_owned(), uid: meta.uid() });
    }
    check_mode(path, &meta, 0o700)
}

/// Reads what somebody else keeps fresh and may let others read: kubelet gives projected tokens to a group.
pub(crate) fn read_public(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    const MAX_PUBLIC: u64 = 16 * 1024;
    // Opening a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_PUBLIC).unwrap_or(0) + 1));
    file.take(MAX_PUBLIC + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PUBLIC {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 16 KiB"));
    }
    Ok(bytes)
}

/// Reads a file that must be a regular one, ours or root's, and closed to everybody else. `None` if there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StartError> {
    // Before opening: a FIFO would block.
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(StartError::WrongKind { path: path.to_owned(), wanted: "regular file" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, error)),
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, error)),
    };
    // Of what was opened, not of what has the name by now.
    let meta = file.metadata().map_err(|error| io_error(path, error))?;
    if !meta.is_file() {
        return Err(StartError::WrongKind { path: path.to_owned(), wanted: "regular file" });
    }
    if meta.uid() != geteuid().as_raw() && meta.uid() != 0 {
        return Err(StartError::Owner { path: path.to_owned(), uid: meta.uid() });
    }
    check_mode(path, &meta, 0o600)?;
    if meta.len() > MAX_FILE {
        return Err(io_error(path, io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB")));
    }
    // Room for all of it at once: growing would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE).unwrap_or(0) + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|error| io_error(path, error))?;
    Ok(Some(bytes))
}

/// Puts `bytes` under `name` in `directory` as 0600 so that a crash at any point leaves either the old or the new file.
pub(crate) fn write_private(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    sync_directory(directory)
}

/// Removes `name`; that it is gone already is fine.
pub(crate) fn remove(directory: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_directory(directory),
    }
}

/// A rename is durable only once its directory is.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(crate) fn io_error(path: &Path, error: io::Error) -> StartError {
    StartError::Io { path: path.to_owned(), error }
}

fn check_mode(path: &Path, meta: &fs::Metadata, allowed: u32) -> Result<(), StartError> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StartError::Mode { path: path.to_owned(), mode, allowed });
    }
    Ok(())
}
