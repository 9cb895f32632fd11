//! A socket that nobody else can put in our place, and that takes nobody else's.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

/// Callers that wait to be accepted.
const BACKLOG: i32 = 128;

/// The listener, and its file, which goes with it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode: what has our name by now may be somebody else's.
    file: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path` with `mode`.
pub(super) fn bind(path: &Path, mode: u32) -> Result<Bound, SocketError> {
    let problem = |problem| SocketError { path: path.to_owned(), problem };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    prepare(directory.ok_or_else(|| problem(Problem::NoDirectory))?)?;
    make_way(path).map_err(problem)?;
    // Under another name until it is as it shall be: what has the final name has the final mode.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let bound = || -> io::Result<Bound> {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&fresh)?)?;
        fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
        let meta = fs::symlink_metadata(&fresh)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        fs::rename(&fresh, path)?;
        Ok(Bound { listener: socket.into(), path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    };
    bound().map_err(|error| problem(Problem::Io(error)))
}

/// The directory must be ours alone: whoever may write there could put a socket of his own under our name, and hand workloads
/// identities and roots of his own.
fn prepare(directory: &Path) -> Result<(), SocketError> {
    let problem = |problem| SocketError { path: directory.to_owned(), problem };
    let io = |error| problem(Problem::Io(error));
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(io)?;
        }
        Err(error) => return Err(io(error)),
        Ok(_) => {}
    }
    let meta = fs::symlink_metadata(directory).map_err(io)?;
    if !meta.is_dir() {
        return Err(problem(Problem::NotADirectory));
    }
    if meta.uid() != geteuid().as_raw() {
        return Err(problem(Problem::Owner(meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(problem(Problem::Mode(meta.mode() & 0o7777)));
    }
    Ok(())
}

/// What has the name must be a socket that nobody listens at, or nothing.
fn make_way(path: &Path) -> Result<(), Problem> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Problem::Io(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(Problem::NotASocket),
        Ok(_) => {}
    }
    let asked = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        // A full queue must not hold us up: somebody stands behind it.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(()) => Err(Problem::InUse),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Problem::InUse),
        Err(error) => Err(Problem::Io(error)),
    }
}

/// Why there is no socket for workloads.
#[derive(Debug)]
pub struct SocketError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    NoDirectory,
    NotADirectory,
    Owner(u32),
    Mode(u32),
    NotASocket,
    InUse,
    Io(io::Error),
}

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.problem {
            Problem::NoDirectory => {
                f.write_str("the socket needs a directory of its own; write a whole path")
            }
            Problem::NotADirectory => f.write_str("is no directory (symbolic links are not followed)"),
            Problem::Owner(uid) => {
                write!(
                    f,
                    "belongs to uid {uid}; the socket's directory must belong to the user that the sidecar runs as"
                )
            }
            Problem::Mode(mode) => write!(
                f,
                "mode {mode:04o} lets others put a socket of theirs there; make it 0755, or choose a directory of its own for the socket"
            ),
            Problem::NotASocket => f.write_str(
                "something else than a socket is there, and is left alone; remove it or choose another path",
            ),
            Problem::InUse => {
                f.write_str("somebody answers there already; each sidecar needs a socket of its own")
            }
            Problem::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SocketError {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workload/api.sock");
        (directory, path)
    }

    fn refused(path: &Path) -> String {
        bind(path, 0o600).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_stale_socket_gives_way_and_a_live_one_does_not() {
        let (_directory, path) = place();
        let first = bind(&path, 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(UnixStream::connect(&path).is_ok());
        assert!(refused(&path).contains("somebody answers there already"));
        // As a crash leaves it: nobody listens, the file stays.
        drop(std::os::unix::net::UnixListener::bind(path.with_extension("stale")).unwrap());
        fs::rename(path.with_extension("stale"), &path).unwrap();
        let second = bind(&path, 0o600).unwrap();
        // The first has lost its name and leaves the second's alone.
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_full_queue_is_an_answer() {
        let (_directory, path) = place();
        fs::create_dir(path.parent().unwrap()).unwrap();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(refused(&path).contains("somebody answers there already"));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let (directory, path) = place();
        let own = path.parent().unwrap();
        fs::create_dir(own).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(refused(&path).contains("something else than a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");

        // Neither where a link of the name leads, nor through a link as the directory.
        let elsewhere = directory.path().join("elsewhere");
        let _listener = std::os::unix::net::UnixListener::bind(&elsewhere).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(refused(&path).contains("something else than a socket"));
        symlink(own, directory.path().join("link")).unwrap();
        let error = refused(&directory.path().join("link/other.sock"));
        assert!(error.contains("is no directory (symbolic links are not followed)"), "{error}");
        assert!(!own.join("other.sock").exists());

        fs::set_permissions(own, Permissions::from_mode(0o775)).unwrap();
        let error = refused(&own.join("other.sock"));
        assert!(error.contains("mode 0775 lets others put a socket of theirs there"), "{error}");
        assert!(refused(Path::new("api.sock")).contains("a directory of its own"));
    }
}
