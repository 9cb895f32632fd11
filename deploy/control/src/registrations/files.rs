//! A directory of registrations, within bounds.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use postern_policy::{Diagnostic, Diagnostics, SourceFile};

/// More files, or more bytes, are no set of registrations but an accident.
const MAX_FILES: usize = 1_024;
const MAX_BYTES: u64 = 8 << 20;

/// Every `*.yaml` and `*.yml` directly in `directory`, by name, symbolic links followed, hidden entries left out (editors' and
/// Kubernetes' own).
pub fn read_directory(directory: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    read(directory)
        .map_err(|message| Diagnostics::from(Diagnostic::whole(&directory.display().to_string(), message)))
}

fn read(directory: &Path) -> Result<Vec<SourceFile>, String> {
    let unread = |error: io::Error| format!("the registrations cannot be read: {error}");
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            return Err(format!("more than {MAX_FILES} files: this is no directory of registrations"));
        }
    }
    paths.sort();
    let mut left = MAX_BYTES;
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let name = path.display().to_string();
        let text = read_bounded(&path, left).map_err(|error| format!("{name}: {error}"))?;
        left -= text.len() as u64;
        files.push(SourceFile { name, text });
    }
    Ok(files)
}

/// A regular file of at most so many bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Opening a pipe waits for a writer otherwise, for ever.
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("longer than the {most} bytes that are read")));
    }
    Ok(text)
}
