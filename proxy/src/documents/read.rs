//! Reading a set: a directory's files as one, twice alike, within bounds.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use nix::fcntl::OFlag;
use postern_policy::{Diagnostic, Diagnostics, SourceFile};

use crate::listener::is_exhaustion;
use crate::runtime::hold;

/// More files, or more bytes, are no set of documents but an accident (a home directory, a log).
pub(super) const MAX_FILES: usize = 10_000;
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Between the end of a reading and the beginning of the one that must agree with it.
const APART: Duration = Duration::from_millis(10);
const TRIES: usize = 50;
/// How long a file must have looked the same, outside, before its bytes are taken for those read then. File systems count
/// time in steps of up to 2 s: what is written twice within one step looks the same, and was read between.
const SETTLED: Duration = Duration::from_secs(2);

/// Files of a directory as they were found.
pub(super) type Files = Result<Vec<SourceFile>, Diagnostics>;

/// Readings of one directory, one after the other. A file that has looked the same for long - device, inode, size, times of
/// change - is not read again when an event says that something changed; a poll reads everything, whatever it looks like.
#[derive(Debug)]
pub(super) struct Readings {
    directory: PathBuf,
    /// By name.
    seen: HashMap<OsString, Seen>,
    settled: Duration,
    /// What was read at the first sign of a change, and when that ended.
    first: Option<(Files, Instant)>,
    polled: bool,
    exhausted: bool,
    opened: usize,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// When it first looked like this.
    since: Instant,
    /// Whether it had looked like this for long when it was read.
    is_settled: bool,
    text: Vec<u8>,
}

/// What a file looks like outside. Nobody sets the time of its last change of state (`ctime`), only the system does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

impl Readings {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            seen: HashMap::new(),
            settled: SETTLED,
            first: None,
            polled: false,
            exhausted: false,
            opened: 0,
        }
    }

    /// Reads at the first sign of a change, while more of them may come. It counts as the first of two readings.
    pub(super) fn glance(&mut self) -> &Files {
        let files = self.read();
        &self.first.insert((files, Instant::now())).0
    }

    #[cfg(test)]
    pub(super) const fn has_first(&self) -> bool {
        self.first.is_some()
    }

    /// Nothing said that anything changed: everything is read, and once is enough if it is what is `known`.
    pub(super) fn poll(&mut self) {
        self.first = None;
        self.polled = true;
    }

    /// Reads until two readings agree: a file that is being written is not a document yet. `None` if no descriptor is
    /// left to read with: that says nothing about the documents, and the next poll tries again. `known` is the digest of
    /// the last set.
    pub(super) fn stable(&mut self, known: Option<&str>) -> Option<Files> {
        let (mut last, mut ended) = match self.first.take() {
            Some(first) => first,
            None => (self.read(), Instant::now()),
        };
        let polled = std::mem::take(&mut self.polled);
        if polled && !self.exhausted && known.is_some_and(|known| digest(&last) == known) {
            return Some(last);
        }
        for _ in 0..TRIES {
            hold(APART.saturating_sub(ended.elapsed()));
            let next = self.read();
            if std::mem::take(&mut self.exhausted) {
                return None;
            }
            if are_alike(&last, &next) {
                return Some(next);
            }
            (last, ended) = (next, Instant::now());
        }
        Some(last)
    }

    fn read(&mut self) -> Files {
        self.opened = 0;
        let directory = self.directory.clone();
        let mut before = std::mem::take(&mut self.seen);
        let mut exhausted = false;
        let files = read(&directory, &mut exhausted, &mut |name, path, left| {
            self.file(before.remove_entry(name), name, path, left)
        });
        self.exhausted |= exhausted;
        files
    }

    /// A file's bytes, from the `last` time if nothing speaks against it.
    fn file(
        &mut self,
        last: Option<(OsString, Seen)>,
        name: &OsStr,
        path: &Path,
        left: u64,
    ) -> io::Result<Vec<u8>> {
        let usable = |last: &Seen| {
            !self.polled
                && last.is_settled
                && last.text.len() as u64 <= left
                && fs::metadata(path).is_ok_and(|found| Stamp::of(&found) == last.stamp)
        };
        let last = match last {
            Some((name, last)) if usable(&last) => {
                let text = last.text.clone();
                self.seen.insert(name, last);
                return Ok(text);
            }
            last => last.map(|(_, last)| last),
        };
        // Before a byte is read: what is written from here on changes the stamp, or comes within the time to settle.
        let now = Instant::now();
        let (found, text) = read_bounded(path, left)?;
        self.opened += 1;
        let stamp = Stamp::of(&found);
        let since = last.filter(|last| last.stamp == stamp).map_or(now, |last| last.since);
        let is_settled = now.duration_since(since) >= self.settled;
        self.seen.insert(name.to_owned(), Seen { stamp, since, is_settled, text: text.clone() });
        Ok(text)
    }
}

fn are_alike(one: &Files, other: &Files) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one == other,
        (one, other) => digest(one) == digest(other),
    }
}

/// Every `*.yaml` and `*.yml` directly in `directory`, by name, symbolic links followed, hidden entries left out
/// (editors' and Kubernetes' own).
pub fn read_directory(directory: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    read(directory, &mut false, &mut |_, path, left| Ok(read_bounded(path, left)?.1))
}

/// Reads a file, by its name and its path, of at most so many bytes.
type BytesOf<'a> = dyn FnMut(&OsStr, &Path, u64) -> io::Result<Vec<u8>> + 'a;

/// `exhausted` is set if it fails because no descriptor is left.
fn read(directory: &Path, exhausted: &mut bool, bytes_of: &mut BytesOf<'_>) -> Files {
    let name = directory.display().to_string();
    let whole = |message: String| {
        let mut all = Diagnostics::new();
        all.push(Diagnostic::whole(&name, message));
        all
    };
    let entries = fs::read_dir(directory).map_err(|error| {
        *exhausted |= is_exhaustion(&error);
        whole(format!("the documents cannot be read: {error}"))
    })?;
    // Names are compared faster than paths, and there are thousands.
    let mut names = Vec::new();
    for entry in entries {
        let name =
            entry.map_err(|error| whole(format!("the documents cannot be listed: {error}")))?.file_name();
        if is_document(&name) {
            names.push(name);
        }
        if names.len() > MAX_FILES {
            return Err(whole(format!("more than {MAX_FILES} files: this is no directory of documents")));
        }
    }
    names.sort();
    let mut files = Vec::with_capacity(names.len());
    let mut bytes = 0;
    for name in names {
        let path = directory.join(&name);
        let file = path.display().to_string();
        let text = match bytes_of(&name, &path, MAX_BYTES - bytes) {
            Ok(text) => text,
            Err(error) => {
                *exhausted |= is_exhaustion(&error);
                return Err(whole(format!("{file}: {error}")));
            }
        };
        bytes += text.len() as u64;
        files.push(SourceFile { name: file, text });
    }
    Ok(files)
}

fn is_document(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    !hidden && Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_bounded(path: &Path, left: u64) -> io::Result<(fs::Metadata, Vec<u8>)> {
    use std::io::Read as _;
    // Opening a pipe waits for a writer otherwise, for ever.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(left + 1).read_to_end(&mut text)?;
    if text.len() as u64 > left {
        return Err(io::Error::other(format!("the documents hold more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok((found, text))
}

/// A set's digest; for one that cannot be read, over the text of its error.
pub(super) fn digest(set: &Files) -> String {
    match set {
        Ok(files) => digest_of(files),
        Err(diagnostics) => sha256([diagnostics.to_string().as_bytes()]),
    }
}

/// SHA-256 over names and contents, each with its length.
pub(super) fn digest_of<F: Borrow<SourceFile>>(files: &[F]) -> String {
    let mut context = Context::new(&SHA256);
    for file in files.iter().map(Borrow::borrow) {
        let name = file.name.rsplit('/').next().unwrap_or(&file.name);
        for part in [name.as_bytes(), &file.text] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
    }
    hex(context)
}

/// SHA-256 over `parts`, one after the other.
pub(super) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = Context::new(&SHA256);
    parts.into_iter().for_each(|part| context.update(part));
    hex(context)
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_documents_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt", "c.yaml~"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("..2026")).unwrap();
        fs::write(dir.path().join("..2026/d.yaml"), "d").unwrap();
        std::os::unix::fs::symlink("..2026/d.yaml", dir.path().join("d.yaml")).unwrap();
        let files = read_directory(dir.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.yml", "b.yaml", "d.yaml"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_an_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_directory(&dir.path().join("missing")).is_err());
        std::os::unix::fs::symlink("nowhere", dir.path().join("a.yaml")).unwrap();
        let error = read_directory(dir.path()).unwrap_err().to_string();
        assert!(error.contains("a.yaml"), "{error}");
    }

    #[test]
    fn names_and_contents_cannot_be_shifted_into_each_other() {
        let file =
            |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.as_bytes().to_vec() };
        let one = digest(&Ok(vec![file("a", "bc"), file("d", "")]));
        assert_ne!(one, digest(&Ok(vec![file("a", "b"), file("cd", "")])));
        assert_eq!(one, digest(&Ok(vec![file("x/a", "bc"), file("x/d", "")])));
    }
    fn texts(files: Option<Files>) -> Vec<String> {
        let files = files.expect("there are descriptors").expect("the directory can be read");
        files.into_iter().map(|file| String::from_utf8(file.text).expect("it is text")).collect()
    }

    fn three() -> (tempfile::TempDir, Readings) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(dir.path().join(name).with_extension("yaml"), name).unwrap();
        }
        let readings = Readings::new(dir.path().to_owned());
        (dir, readings)
    }

    #[test]
    fn only_what_changed_is_read_again_once_the_rest_has_settled() {
        let (dir, mut readings) = three();
        readings.settled = Duration::ZERO;
        assert_eq!(texts(readings.stable(None)), ["a", "b", "c"]);
        fs::write(dir.path().join("b.yaml"), "B").unwrap();
        readings.glance();
        assert_eq!(readings.opened, 1);
        assert_eq!(texts(readings.stable(None)), ["a", "B", "c"]);
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        fs::rename(dir.path().join("b.yaml"), dir.path().join("d.yaml")).unwrap();
        assert_eq!(texts(readings.stable(None)), ["c", "B"]);
        // A poll believes nothing that it has not read.
        readings.poll();
        assert_eq!(texts(readings.stable(None)), ["c", "B"]);
        assert_eq!(readings.opened, 0, "the second reading is an ordinary one");
    }

    #[test]
    fn a_poll_reads_everything_and_once_if_nothing_changed() {
        let (_dir, mut readings) = three();
        readings.settled = Duration::ZERO;
        let known = digest(&readings.stable(None).unwrap());
        readings.poll();
        assert_eq!(texts(readings.stable(Some(&known))), ["a", "b", "c"]);
        assert_eq!(readings.opened, 3);
    }

    /// What was read while somebody wrote is no set; the next reading has to say the same.
    #[test]
    fn a_set_is_what_two_readings_agree_on() {
        let (dir, mut readings) = three();
        readings.settled = APART / 2;
        readings.glance();
        fs::write(dir.path().join("b.yaml"), "B").unwrap();
        assert_eq!(texts(readings.stable(None)), ["a", "B", "c"]);
        // It was found so twice, the second time after it had settled: else it would be read once more.
        assert!(readings.seen.values().all(|seen| seen.is_settled), "{:?}", readings.seen);
    }

    #[test]
    fn what_has_not_settled_is_read_whatever_it_looks_like() {
        let (_dir, mut readings) = three();
        for _ in 0..3 {
            readings.glance();
            assert_eq!(readings.opened, 3);
        }
        // As if the first look had been long ago.
        for seen in readings.seen.values_mut() {
            seen.since = seen.since.checked_sub(2 * SETTLED).unwrap();
        }
        readings.glance();
        assert_eq!(readings.opened, 3, "it was last read before it had settled");
        readings.glance();
        assert_eq!(readings.opened, 0);
    }
}
