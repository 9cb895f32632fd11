//! The Unix socket of the identity API. Whoever can open it may connect: who that is the kernel says, and that this is the
//! control plane its certificate proves. So nothing rests on the file's place but that it is found.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::net::UnixListener;

/// Binds `path`, in a directory that is made if it is missing. A socket that nobody listens at makes way; nothing else does.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.map(prepare).transpose()?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something that is no socket has this name"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("another process listens there")),
        },
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Whoever may write there could take the socket away, or put his own under its name: sidecars would refuse it, and be cut off.
fn prepare(directory: &Path) -> io::Result<()> {
    let wrong = |what: String| io::Error::other(format!("its directory {}: {what}", directory.display()));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| wrong(format!("it cannot be made: {error}")))?;
    let found = fs::metadata(directory)?;
    let (owner, user) = (found.uid(), nix::unistd::geteuid().as_raw());
    if owner != user && owner != 0 {
        return Err(wrong(format!("it belongs to uid {owner}, neither to this process's user nor to root")));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        return Err(wrong(format!(
            "mode {mode:04o} lets others put a socket of their own there; chmod go-w it, or name a directory of the control plane's own"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_socket_makes_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.sock");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert!(bind(&path).unwrap_err().to_string().contains("another process"));
        drop(first);
        drop(bind(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn its_directory_is_made_and_nobody_elses() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("run/control");
        let path = directory.join("identity.sock");
        drop(bind(&path).unwrap());
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o022, 0);
        for open in [0o777, 0o775, 0o1777] {
            fs::set_permissions(&directory, Permissions::from_mode(open)).unwrap();
            let refused = bind(&path).unwrap_err().to_string();
            assert!(refused.contains("run/control") && refused.contains("lets others"), "{refused}");
        }
        fs::write(place.path().join("file"), "").unwrap();
        let refused = bind(&place.path().join("file/identity.sock")).unwrap_err().to_string();
        assert!(refused.contains("its directory") && refused.contains("cannot be made"), "{refused}");
    }
}
