//! The last good set of documents, kept in the state directory.
//!
//! A sidecar that is killed while its documents are broken, or its directory is gone, comes back with what it had in
//! force. The file is one line with the SHA-256 of all that follows, one line of JSON that says whose set it is and where
//! each document ends, and the documents. It decides who may call: what is not exactly as we wrote it is not read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use postern_policy::SourceFile;
use serde::{Deserialize, Serialize};

use super::keeper::Set;
use super::read::{MAX_BYTES, MAX_FILES, digest_of, sha256};
use crate::config::Config;

const NAME: &str = "documents.set";
const MAGIC: &str = "postern-documents 1 ";
/// Room for the names of 10,000 files in a deep directory.
const MAX_HEADER: u64 = 16 << 20;

/// The file, and whose set it may hold.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    path: PathBuf,
    identity: String,
    root_namespace: String,
}

/// A set as it was stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) files: Vec<SourceFile>,
    pub(super) digest: String,
    pub(super) at: SystemTime,
    /// Whether an operator put it back in force.
    pub(super) is_pinned: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Header {
    /// Trust domain, namespace and service account at once.
    identity: String,
    root_namespace: String,
    digest: String,
    stored_unix_ms: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    pinned: bool,
    /// Name and length of each.
    files: Vec<(String, u64)>,
}

impl Store {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            directory: config.state_dir.clone(),
            path: config.state_dir.join(NAME),
            identity: config.identity.as_str().to_owned(),
            root_namespace: config.root_namespace.clone(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the stored set so that a crash at any point leaves the old one or the new one. If it fails there is none:
    /// one that was in force before may allow what has been withdrawn since.
    pub(super) fn write(&self, set: &Set, now: SystemTime) -> io::Result<()> {
        let written = self.replace(set, now);
        if written.is_err() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::error!(
                    "{}: an older set of documents stays stored: {error}; remove it",
                    self.path.display()
                ),
                _ => {}
            }
        }
        written
    }

    fn replace(&self, set: &Set, now: SystemTime) -> io::Result<()> {
        let Set { digest, files, is_pinned } = set;
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let header = Header {
            identity: self.identity.clone(),
            root_namespace: self.root_namespace.clone(),
            digest: digest.clone(),
            pinned: *is_pinned,
            stored_unix_ms: u64::try_from(millis).unwrap_or(u64::MAX),
            files: files.iter().map(|file| (file.name.clone(), file.text.len() as u64)).collect(),
        };
        let mut header = serde_json::to_vec(&header)?;
        header.push(b'\n');
        if header.len() as u64 > MAX_HEADER {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the names of the documents are too long",
            ));
        }
        let parts = || [header.as_slice()].into_iter().chain(files.iter().map(|file| file.text.as_slice()));
        let new = self.directory.join(format!(".{NAME}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        writeln!(file, "{MAGIC}{}", sha256(parts()))?;
        for part in parts() {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // A rename is durable only once its directory is.
        File::open(&self.directory)?.sync_all()
    }

    /// The stored set; `Ok(None)` if there is none. The error says why it cannot be used.
    pub(super) fn read(&self) -> Result<Option<Stored>, String> {
        match self.bytes() {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.parse(&bytes).map(Some),
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                Err("it is a symbolic link".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn bytes(&self) -> io::Result<Option<Vec<u8>>> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if meta.uid() != geteuid().as_raw() && meta.uid() != 0 {
            let owner = meta.uid();
            return Err(io::Error::other(format!(
                "it belongs to uid {owner}, neither to this process's user nor to root"
            )));
        }
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(io::Error::other(format!(
                "mode {mode:04o} lets others in, so they may have written it"
            )));
        }
        let most = MAX_BYTES + MAX_HEADER + 1_024;
        if meta.len() > most {
            return Err(io::Error::other("it is larger than any set"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Stored, String> {
        let (first, rest) = line(bytes).ok_or("it is cut off")?;
        let noted = first
            .strip_prefix(MAGIC.as_bytes())
            .ok_or("it is no set of documents that this version reads")?;
        if noted != sha256([rest]).as_bytes() {
            return Err("it is damaged: its SHA-256 is another".to_owned());
        }
        let (header, mut rest) = line(rest).ok_or("it is cut off")?;
        let header: Header =
            serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
        if header.identity != self.identity {
            return Err(format!("it was stored for {}, not for {}", header.identity, self.identity));
        }
        if header.root_namespace != self.root_namespace {
            return Err(format!(
                "it was stored under the root namespace {:?}, not {:?}",
                header.root_namespace, self.root_namespace
            ));
        }
        if header.files.len() > MAX_FILES {
            return Err("it names too many files".to_owned());
        }
        let mut files = Vec::with_capacity(header.files.len());
        for (name, length) in header.files {
            let length = usize::try_from(length).map_err(|_| "it is cut off")?;
            let (text, tail) = rest.split_at_checked(length).ok_or("it is cut off")?;
            files.push(SourceFile { name, text: text.to_vec() });
            rest = tail;
        }
        if !rest.is_empty() {
            return Err("something follows its last document".to_owned());
        }
        if digest_of(&files) != header.digest {
            return Err("its digest is another than noted".to_owned());
        }
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(header.stored_unix_ms));
        let at = at.unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Stored { files, digest: header.digest, at, is_pinned: header.pinned })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn store(directory: &Path) -> Store {
        Store {
            directory: directory.to_owned(),
            path: directory.join(NAME),
            identity: "spiffe://demo.postern/ns/shop/sa/orders".to_owned(),
            root_namespace: "postern-system".to_owned(),
        }
    }

    fn files() -> Vec<SourceFile> {
        let file = |name: &str, text: &[u8]| SourceFile { name: name.to_owned(), text: text.to_vec() };
        vec![
            file("/etc/a.yaml", b"one\ntwo\n"),
            file("/etc/with\na line.yaml", b""),
            file("/etc/c.yml", b"\xff\0"),
        ]
    }

    fn set(digest: &str) -> Set {
        let files = files().into_iter().map(std::sync::Arc::new).collect();
        Set { digest: digest.to_owned(), files, is_pinned: false }
    }

    fn write(store: &Store) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        store.write(&set(&digest_of(&files())), at).unwrap();
    }

    #[test]
    fn what_was_stored_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert!(store.read().unwrap().is_none());
        write(&store);
        write(&store);
        let stored = store.read().unwrap().unwrap();
        let pairs = |files: &[SourceFile]| -> Vec<_> {
            files.iter().map(|file| (file.name.clone(), file.text.clone())).collect()
        };
        assert_eq!(pairs(&stored.files), pairs(&files()));
        assert_eq!(stored.digest, digest_of(&files()));
        assert_eq!(stored.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis(), 1_800_000_000_123);
        assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn that_an_operator_put_it_back_is_stored_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for is_pinned in [true, false] {
            let set = Set { is_pinned, ..set(&digest_of(&files())) };
            store.write(&set, SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(store.read().unwrap().unwrap().is_pinned, is_pinned);
        }
    }

    #[test]
    fn not_one_bit_may_differ() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        write(&store);
        let good = fs::read(store.path()).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(store.path(), &bad).unwrap();
            assert!(store.read().is_err(), "byte {at}");
            fs::write(store.path(), &good[..at]).unwrap();
            assert!(store.read().is_err(), "cut at {at}");
        }
        fs::write(store.path(), [&good[..], b"x"].concat()).unwrap();
        assert!(store.read().is_err(), "more");
        // Its own sum does not make a set true.
        let header = b"{\"identity\":\"spiffe://demo.postern/ns/shop/sa/orders\",\"rootNamespace\":\"postern-system\",\"digest\":\"\",\"storedUnixMs\":1,\"files\":[[\"a\",18446744073709551615]]}\n";
        let forged = [format!("{MAGIC}{}\n", sha256([&header[..]])).as_bytes(), header].concat();
        fs::write(store.path(), forged).unwrap();
        assert!(store.read().unwrap_err().contains("cut off"));
    }

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        write(&store);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(store.read().unwrap_err().contains("lets others in"), "{mode:o}");
        }
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let away = dir.path().join("away");
        fs::rename(store.path(), &away).unwrap();
        symlink(&away, store.path()).unwrap();
        assert!(store.read().unwrap_err().contains("symbolic link"));
        fs::remove_file(store.path()).unwrap();
        fs::create_dir(store.path()).unwrap();
        assert!(store.read().unwrap_err().contains("not a regular file"));
    }

    #[test]
    fn another_workloads_set_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        write(&store(dir.path()));
        let mut other = store(dir.path());
        other.identity = "spiffe://demo.postern/ns/shop/sa/store".to_owned();
        assert!(other.read().unwrap_err().contains("stored for spiffe://demo.postern/ns/shop/sa/orders"));
        let mut other = store(dir.path());
        other.root_namespace = "elsewhere".to_owned();
        assert!(other.read().unwrap_err().contains("root namespace"));
    }

    #[test]
    fn a_set_that_cannot_be_stored_leaves_no_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        write(&store);
        // In the way of the new file, and not to be removed as one.
        fs::create_dir(dir.path().join(format!(".{NAME}.new"))).unwrap();
        store.write(&set(""), SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(store.read().unwrap().is_none());
    }
}
