//! From unsealed to sealed keys and back. At every moment each key can be read in one of its forms, so that a step that broke
//! off is done again and nothing else: a new form is durable and has been read back before the old one goes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::Path;

use super::seal::{Seal, SealError};
use super::sealed::{self, SEALED, is_key};
use super::{KEY, KeyError, MAX_KEY_FILE, named, read_private, replace, sync_parent};

/// Called before each change of the disk.
type Step<'a> = &'a mut dyn FnMut() -> Result<(), KeyError>;

/// Seals every key of `directory` that is not sealed yet; gives their names. No control plane may run there.
pub fn seal(directory: &Path, seal: &Seal) -> Result<Vec<String>, KeyError> {
    seal_by(directory, seal, &mut || Ok(()))
}

/// Takes the seal off every key of `directory`; gives their names. No control plane may run there.
pub fn unseal(directory: &Path, seal: &Seal) -> Result<Vec<String>, KeyError> {
    unseal_by(directory, seal, &mut || Ok(()))
}

/// Seals every key of `directory` with `to` that is sealed with `from`; gives their names. No control plane may run there.
pub fn reseal(directory: &Path, from: &Seal, to: &Seal) -> Result<Vec<String>, KeyError> {
    reseal_by(directory, from, to, &mut || Ok(()))
}

/// Removes sealed keys that a `replace` that was killed left half written. Whoever calls holds the directory.
fn remove_half_written(directory: &Path) -> Result<(), KeyError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let half = name.to_str().and_then(|name| name.rsplit_once(".new."));
        let is_half = |(of, process): (&str, &str)| {
            of.ends_with(SEALED) && process.bytes().all(|byte| byte.is_ascii_digit())
        };
        // What is not sealed is overwritten first, and so by somebody else.
        if half.is_some_and(is_half) {
            super::remove(&directory.join(name))?;
        }
    }
    Ok(())
}

fn seal_by(directory: &Path, seal: &Seal, step: Step<'_>) -> Result<Vec<String>, KeyError> {
    remove_half_written(directory)?;
    // With another secret than the rest is sealed with, some keys would open with this one and some with that one.
    for name in named(directory, SEALED)? {
        sealed::open(directory, &name, seal)?;
    }
    erase_leftovers(directory, step)?;
    let names = named(directory, KEY)?;
    for name in &names {
        let (unsealed, path) = (directory.join(format!("{name}{KEY}")), sealed::path(directory, name));
        let content = read_private(&unsealed, MAX_KEY_FILE)?;
        let known = if path.exists() { Some(sealed::open(directory, name, seal)?) } else { None };
        match known {
            Some(known) if known == content => {}
            // It was being overwritten.
            Some(_) if !is_key(&content) => {}
            Some(_) => return Err(SealError::Both { unsealed, sealed: path }.into()),
            None if !is_key(&content) => return Err(KeyError::NoKey(unsealed)),
            None => {
                step()?;
                replace(&path, 0o600, &seal.seal(name, &content)?)?;
                if sealed::open(directory, name, seal)? != content {
                    return Err(SealError::Damaged { path, what: "it reads back differently" }.into());
                }
            }
        }
        erase(&unsealed, step)?;
    }
    Ok(names)
}

fn unseal_by(directory: &Path, seal: &Seal, step: Step<'_>) -> Result<Vec<String>, KeyError> {
    remove_half_written(directory)?;
    let names = named(directory, SEALED)?;
    // All of them or none.
    for name in &names {
        sealed::open(directory, name, seal)?;
    }
    for name in &names {
        let (unsealed, path) = (directory.join(format!("{name}{KEY}")), sealed::path(directory, name));
        let content = sealed::open(directory, name, seal)?;
        if unsealed.exists() {
            let known = read_private(&unsealed, MAX_KEY_FILE)?;
            if known != content && is_key(&known) {
                return Err(SealError::Both { unsealed, sealed: path }.into());
            }
        }
        step()?;
        replace(&unsealed, 0o600, &content)?;
        if read_private(&unsealed, MAX_KEY_FILE)? != content {
            return Err(KeyError::NoKey(unsealed));
        }
        step()?;
        super::remove(&path)?;
        sync_parent(&path).map_err(|error| KeyError::Io(path, error))?;
    }
    Ok(names)
}

fn reseal_by(directory: &Path, from: &Seal, to: &Seal, step: Step<'_>) -> Result<Vec<String>, KeyError> {
    remove_half_written(directory)?;
    if let Some(name) = named(directory, KEY)?.first() {
        return Err(SealError::Unsealed(directory.join(format!("{name}{KEY}"))).into());
    }
    let mut due = Vec::new();
    for name in named(directory, SEALED)? {
        // One that opens already was done before this broke off.
        if sealed::open(directory, &name, to).is_err() {
            sealed::open(directory, &name, from)?;
            due.push(name);
        }
    }
    for name in &due {
        let path = sealed::path(directory, name);
        let content = sealed::open(directory, name, from)?;
        let resealed = to.seal(name, &content)?;
        if to.open(&path, name, &resealed)? != content {
            return Err(SealError::Library.into());
        }
        step()?;
        replace(&path, 0o600, &resealed)?;
    }
    Ok(due)
}

/// What an unsealing that a crash ended may have left: a key under a passing name.
fn erase_leftovers(directory: &Path, step: Step<'_>) -> Result<(), KeyError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    for entry in fs::read_dir(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let is_leftover = entry.file_name().to_str().is_some_and(|name| name.contains(".key.new."));
        if is_leftover && entry.file_type().map_err(io)?.is_file() {
            erase(&entry.path(), step)?;
        }
    }
    Ok(())
}

/// Overwrites a file before it is removed. What a disk or file system keeps of the old blocks is beyond us
/// (`docs/keys.md`).
fn erase(path: &Path, step: Step<'_>) -> Result<(), KeyError> {
    let io = |error: io::Error| KeyError::Io(path.to_owned(), error);
    step()?;
    // One that its owner may only read is still ours.
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(io)?;
    let opened = OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
    let mut file = opened.map_err(io)?;
    let length = file.metadata().map_err(io)?.len().min(MAX_KEY_FILE);
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    file.write_all(&zeros).and_then(|()| file.sync_all()).map_err(io)?;
    step()?;
    super::remove(path)?;
    sync_parent(path).map_err(io)
}

#[cfg(test)]
mod tests;
