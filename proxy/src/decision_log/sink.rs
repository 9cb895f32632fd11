//! Where lines go: a file that is put aside when it is full, or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::config::DecisionLogConfig;

/// How long after a failure the file is opened anew.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Sink {
    path: Option<PathBuf>,
    most: u64,
    keep: u32,
    file: Option<(File, u64)>,
    failed: Option<Instant>,
    told: bool,
}

impl Sink {
    pub(super) fn new(config: &DecisionLogConfig) -> Self {
        let DecisionLogConfig { path, rotate_bytes, rotate_keep, .. } = config;
        Self {
            path: path.clone(),
            most: *rotate_bytes,
            keep: *rotate_keep,
            file: None,
            failed: None,
            told: false,
        }
    }

    /// Writes a whole line, or nothing that counts.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.failed.is_some_and(|failed| failed.elapsed() < RETRY) {
            return Err(io::Error::other("it failed a moment ago"));
        }
        let written = self.try_write(line);
        match &written {
            Ok(()) => {
                self.failed = None;
                self.told = false;
            }
            Err(error) => {
                // What is half written is ended by the next line's beginning, in a file opened anew.
                self.file = None;
                self.failed = Some(Instant::now());
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!(%error, path = ?self.path, "the decision log cannot be written: lines are lost until it can");
                }
            }
        }
        written
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(path) = self.path.clone() else {
            let mut out = io::stdout().lock();
            out.write_all(line)?;
            return out.flush();
        };
        if self.file.as_ref().is_some_and(|(_, size)| *size > 0 && size + line.len() as u64 > self.most) {
            self.file = None;
            put_aside(&path, self.keep)?;
        }
        let (file, size) = match &mut self.file {
            Some(open) => open,
            None => {
                let opened = open(&path)?;
                if opened.1 > 0 && opened.1 + line.len() as u64 > self.most {
                    put_aside(&path, self.keep)?;
                    self.file.insert(open(&path)?)
                } else {
                    self.file.insert(opened)
                }
            }
        };
        file.write_all(line)?;
        *size += line.len() as u64;
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        if let Some((file, _)) = &mut self.file {
            let _ = file.flush();
        }
    }
}

/// Opens for appending; a line that was cut off by a full disk or a crash is ended.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file =
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut size = meta.len();
    if size > 0 {
        use std::io::{Read as _, Seek as _};
        file.seek(io::SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

/// `file` becomes `file.1`, that `file.2`, and the oldest goes.
fn put_aside(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    if keep == 0 {
        return fs::remove_file(path);
    }
    for n in (1..keep).rev() {
        match fs::rename(numbered(n), numbered(n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(1))
}
