//! The files of a backup in a row: the length of the name (2 bytes, big-endian), the name, the length of the content (8 bytes),
//! the content; a name without letters ends it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::BackupError;
use crate::keys::{KeyError, OpenedReader, SealedWriter};
use crate::ledger;
use crate::store::DATABASE;

/// The longest key, sealed.
pub(super) const MAX_KEY: u64 = 16 * 1_024;
/// Names of ours are shorter.
const MAX_NAME: usize = 128;

/// Writes one.
pub(super) struct Writer<'a> {
    out: SealedWriter<BufWriter<File>>,
    path: &'a Path,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: SealedWriter<BufWriter<File>>, path: &'a Path) -> Self {
        Self { out, path }
    }

    pub(super) fn bytes(&mut self, name: &str, content: &[u8]) -> Result<(), BackupError> {
        self.entry(name, content.len() as u64, content, self.path)
    }

    /// The first `most` bytes of a file.
    pub(super) fn file(&mut self, name: &str, from: &Path, most: u64) -> Result<(), BackupError> {
        let io = |error| KeyError::Io(from.to_owned(), error);
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(from);
        let file = opened.map_err(io)?;
        let length = file.metadata().map_err(io)?.len().min(most);
        self.entry(name, length, file, from)
    }

    fn entry(&mut self, name: &str, length: u64, content: impl Read, from: &Path) -> Result<(), BackupError> {
        debug_assert!(is_entry(name), "{name}");
        let io = |error| KeyError::Io(self.path.to_owned(), error);
        let short = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let head = [&short.to_be_bytes()[..], name.as_bytes(), &length.to_be_bytes()].concat();
        self.out.write_all(&head).map_err(io)?;
        if io::copy(&mut content.take(length), &mut self.out).map_err(io)? != length {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
            return Err(KeyError::Io(from.to_owned(), error).into());
        }
        Ok(())
    }

    /// Ends it, durably.
    pub(super) fn finish(mut self) -> Result<(), BackupError> {
        let io = |error| KeyError::Io(self.path.to_owned(), error);
        self.out.write_all(&[0; 2]).map_err(io)?;
        let file = self.out.finish().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
        file.and_then(|file| file.sync_all()).map_err(io)?;
        Ok(crate::keys::sync_parent(self.path).map_err(io)?)
    }
}

/// Reads one.
pub(super) struct Reader<'a> {
    from: OpenedReader<File>,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(super) fn new(from: OpenedReader<File>, path: &'a Path) -> Self {
        Self { from, path }
    }

    /// The name and the length of the next file, which is then to be read; `None` at the end, after which nothing comes.
    pub(super) fn next(&mut self) -> Result<Option<(String, u64)>, BackupError> {
        let content = |what| BackupError::Content { path: self.path.to_owned(), what };
        let mut short = [0; 2];
        self.exact(&mut short)?;
        let length = usize::from(u16::from_be_bytes(short));
        if length == 0 {
            let mut after = [0];
            let read = self.from.read(&mut after).map_err(|error| self.io(error))?;
            return if read == 0 { Ok(None) } else { Err(content("something follows its end")) };
        }
        if length > MAX_NAME {
            return Err(content("a file in it has a name that none of a CA has"));
        }
        let mut name = vec![0; length];
        self.exact(&mut name)?;
        let mut size = [0; 8];
        self.exact(&mut size)?;
        match String::from_utf8(name) {
            Ok(name) if is_entry(&name) => Ok(Some((name, u64::from_be_bytes(size)))),
            _ => Err(content("a file in it has a name that none of a CA has")),
        }
    }

    /// A short content.
    pub(super) fn short(&mut self, length: u64, most: u64) -> Result<Vec<u8>, BackupError> {
        if length > most {
            let what = "a file in it is longer than such a file is";
            return Err(BackupError::Content { path: self.path.to_owned(), what });
        }
        let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
        self.exact(&mut content)?;
        Ok(content)
    }

    /// A content into a new file of mode 0600.
    pub(super) fn write_to(&mut self, length: u64, to: &Path) -> Result<(), BackupError> {
        let io = |error| KeyError::Io(to.to_owned(), error);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut file = opened.map_err(io)?;
        let mut left = length;
        let mut buffer = zeroize::Zeroizing::new(vec![0; 64 * 1_024]);
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.exact(&mut buffer[..part])?;
            file.write_all(&buffer[..part]).map_err(io)?;
            left -= part as u64;
        }
        Ok(file.sync_all().map_err(io)?)
    }

    fn exact(&mut self, into: &mut [u8]) -> Result<(), BackupError> {
        match self.from.read_exact(into) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = "it ends in the middle of a file";
                Err(BackupError::Content { path: self.path.to_owned(), what })
            }
            other => other.map_err(|error| self.io(error)),
        }
    }

    fn io(&self, error: io::Error) -> BackupError {
        KeyError::Io(self.path.to_owned(), error).into()
    }
}

/// Whether a backup may hold a file of this name: whoever can make backups must not be able to write anywhere else.
fn is_entry(name: &str) -> bool {
    match name.strip_prefix(ledger::DIRECTORY).and_then(|rest| rest.strip_prefix('/')) {
        Some(file) => {
            let number = file.strip_suffix(".segment").or_else(|| file.strip_suffix(".head"));
            file == ledger::LATEST
                || number.is_some_and(|n| n.len() == 20 && n.bytes().all(|byte| byte.is_ascii_digit()))
        }
        None => name == DATABASE || name == "manifest" || is_key(name),
    }
}

/// Whether a file of the state directory holds a key.
pub(super) fn is_key(name: &str) -> bool {
    let key = name.strip_suffix(".key").or_else(|| name.strip_suffix(".sealed"));
    key.is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in [
            "manifest",
            "ca.db",
            "ledger.key",
            "root-0123.sealed",
            "ledger/latest.head",
            "ledger/00000000000000000000.segment",
            "ledger/00000000000000001203.head",
        ] {
            assert!(is_entry(good), "{good}");
        }
        for bad in [
            "",
            ".key",
            "../a.key",
            "a/b.key",
            "/etc/a.key",
            "a\0.key",
            "ca.db-wal",
            "ca.mark",
            "bundle.pem",
            "ledger",
            "ledger/",
            "ledger/..",
            "ledger/../../etc/00000000000000000000.segment",
            "ledger/1.segment",
            "ledger/0000000000000000000é.head",
            "ledger//latest.head",
            "ledger/a.key",
        ] {
            assert!(!is_entry(bad), "{bad}");
        }
    }
}
