//! Reading a set: a directory's files as one, twice alike, within bounds.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use nix::fcntl::OFlag;
use postern_policy::{Diagnostic, Diagnostics, SourceFile};

use crate::listener::is_exhaustion;

/// More files, or more bytes, are no set of documents but an accident (a home directory, a log).
pub(super) const MAX_FILES: usize = 10_000;
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Reads until two readings agree: a file that is being written is not a document yet. `None` if no descriptor is left
/// to read with: that says nothing about the documents, and the next poll tries again.
pub(super) fn read_stable(directory: &Path) -> Option<Result<Vec<SourceFile>, Diagnostics>> {
    const TRIES: usize = 50;
    let mut exhausted = false;
    let mut last = read(directory, &mut exhausted);
    for _ in 0..TRIES {
        #[expect(clippy::disallowed_methods, reason = "a blocking thread, between two readings")]
        std::thread::sleep(Duration::from_millis(10));
        let next = read(directory, &mut exhausted);
        if exhausted {
            return None;
        }
        if digest(&last) == digest(&next) {
            return Some(next);
        }
        last = next;
    }
    Some(last)
}

/// Every `*.yaml` and `*.yml` directly in `directory`, by name, symbolic links followed, hidden entries left out
/// (editors' and Kubernetes' own).
pub fn read_directory(directory: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    read(directory, &mut false)
}

/// `exhausted` is set if it fails because no descriptor is left.
fn read(directory: &Path, exhausted: &mut bool) -> Result<Vec<SourceFile>, Diagnostics> {
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
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| whole(format!("the documents cannot be listed: {error}")))?.path();
        if is_document(&path) {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            return Err(whole(format!("more than {MAX_FILES} files: this is no directory of documents")));
        }
    }
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    let mut bytes = 0;
    for path in paths {
        let file = path.display().to_string();
        let text = match read_bounded(&path, MAX_BYTES - bytes) {
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

fn is_document(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_bounded(path: &Path, left: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    // Opening a pipe waits for a writer otherwise, for ever.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(left + 1).read_to_end(&mut text)?;
    if text.len() as u64 > left {
        return Err(std::io::Error::other(format!("the documents hold more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

/// A set's digest; for one that cannot be read, over the text of its error.
pub(super) fn digest(set: &Result<Vec<SourceFile>, Diagnostics>) -> String {
    match set {
        Ok(files) => digest_of(files),
        Err(diagnostics) => sha256([diagnostics.to_string().as_bytes()]),
    }
}

/// SHA-256 over names and contents, each with its length.
pub(super) fn digest_of(files: &[SourceFile]) -> String {
    let mut context = Context::new(&SHA256);
    for file in files {
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
}
