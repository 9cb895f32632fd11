//! Files that verbs are given: bounded, and nothing that never ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use postern_policy::{Diagnostic, Diagnostics, SourceFile};

use super::Failure;

/// As the library bounds a file; one byte more is read so that it can say so.
pub(super) const MAX_FILE: u64 = postern_policy::yaml::MAX_FILE as u64;
/// As a sidecar bounds a directory.
const MAX_BYTES: usize = 64 << 20;
/// Far more than fits into a request.
const MAX_CLAIMS: u64 = 1 << 20;

/// All files of several paths; the inner error is a directory without any.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Result<Vec<SourceFile>, Diagnostics>, Failure> {
    let mut files: Vec<SourceFile> = Vec::new();
    let mut bytes = 0;
    for path in paths {
        let name = path.display().to_string();
        let found = read(path)?;
        if found.is_empty() {
            // Beside others too: whoever names a directory means what is in it.
            let nothing = Diagnostic::whole(&name, "the directory holds no documents")
                .with_help("documents are files whose names end in .yaml or .yml");
            return Ok(Err(nothing.into()));
        }
        bytes += found.iter().map(|file| file.text.len()).sum::<usize>();
        if bytes > MAX_BYTES {
            let message = format!("with this, the documents hold more than {} MiB", MAX_BYTES >> 20);
            return Err(Diagnostics::from(Diagnostic::whole(&name, message)).into());
        }
        files.extend(found);
    }
    Ok(Ok(files))
}

/// The files of one path.
pub(super) fn read(path: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    // A directory is read by the sidecar's own code.
    if path.is_dir() {
        return postern_proxy::documents::read_directory(path);
    }
    let name = path.display().to_string();
    match bounded(path, MAX_FILE + 1) {
        Ok(text) => Ok(vec![SourceFile { name, text }]),
        Err(error) => Err(Diagnostic::whole(&name, error.to_string()).into()),
    }
}

/// The text of a small file of JSON.
pub(super) fn claims(path: &Path) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = bounded(path, MAX_CLAIMS + 1).map_err(|error| failed(&error))?;
    if text.len() as u64 > MAX_CLAIMS {
        return Err(failed(&format_args!("this is larger than {} MiB: no token is", MAX_CLAIMS >> 20)));
    }
    String::from_utf8(text).map_err(|error| failed(&format_args!("this is not UTF-8: {error}")))
}

/// What is read of a file that ends: at most so many bytes. Devices may never end, and a pipe that nobody writes to is
/// never opened; only one that the shell hands over (`<(…)`, standard input) has its writer already.
fn bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open(path)?.take(most).read_to_end(&mut text)?;
    Ok(text)
}

fn open(path: &Path) -> io::Result<File> {
    let is_handed_over = path == Path::new("/dev/stdin") || path.starts_with("/dev/fd");
    let flags = if is_handed_over { 0 } else { O_NONBLOCK };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_fifo() && is_handed_over {
        return Ok(file);
    }
    Err(io::Error::other(if kind.is_dir() {
        "this is a directory, where a file is expected"
    } else {
        "this is neither a file nor a directory: write what it holds to a file"
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// None of these may be waited for, or read to its end.
    #[test]
    fn what_does_not_end_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.yaml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let link = directory.path().join("link.yaml");
        symlink("/dev/zero", &link).unwrap();
        for path in [pipe.as_path(), &link, Path::new("/dev/zero"), directory.path()] {
            assert!(bounded(path, 10).is_err(), "{}", path.display());
            assert!(claims(path).is_err(), "{}", path.display());
        }
        assert!(matches!(read_all(&[pipe]), Err(Failure::Documents(_))));
        assert!(matches!(read_all(&[link]), Err(Failure::Documents(_))));
    }

    #[test]
    fn what_is_large_is_cut_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let large = directory.path().join("large.yaml");
        File::create(&large).unwrap().set_len(2 << 30).unwrap();
        assert!(claims(&large).unwrap_err().contains("larger than 1 MiB"));
        let Ok(Ok(files)) = read_all(std::slice::from_ref(&large)) else { panic!("it is read") };
        // The library says that it is too large.
        assert_eq!(files[0].text.len() as u64, MAX_FILE + 1);
        let many = vec![large; 10];
        let Err(Failure::Documents(errors)) = read_all(&many) else { panic!("it is refused") };
        assert!(errors.to_string().contains("more than 64 MiB"), "{errors}");
    }
}
