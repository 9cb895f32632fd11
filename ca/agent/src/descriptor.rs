//! A secret that whoever starts the process hands over as an open descriptor: a pipe, a memfd, a file.
//!
//! Safe code cannot take a descriptor by its number, so it is opened anew by its name in `/dev/fd`, which for a pipe gives
//! the same pipe. Only standard input needs no name.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

/// More than any token.
const MAX: usize = 8 * 1_024;
/// For whoever writes the other end of a pipe: a start must not hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads `descriptor` to its end, or to the end of its first line. The error says what is wrong with it.
pub(crate) fn read(descriptor: u32) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = open(descriptor)?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    check(&meta)?;
    read_line(file)
}

fn open(descriptor: u32) -> Result<File, String> {
    if descriptor == 0 {
        let own = io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        return Ok(File::from(own));
    }
    let path = format!("/dev/fd/{descriptor}");
    // Before opening: to open a device may do things.
    let meta = fs::metadata(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "it is not open".to_owned(),
        _ => error.to_string(),
    })?;
    check(&meta)?;
    // Not to wait for a writer either.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    opened.map_err(|error| error.to_string())
}

/// What has a name, others may have opened by it; then its mode counts. A memfd has none.
fn check(meta: &Metadata) -> Result<(), String> {
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        return Err("it is neither a pipe nor a file".to_owned());
    }
    if kind.is_file() && meta.nlink() == 0 {
        return Ok(());
    }
    if meta.uid() != geteuid().as_raw() && meta.uid() != 0 {
        let owner = meta.uid();
        return Err(format!("it belongs to uid {owner}, neither to this process's user nor to root"));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("mode {mode:04o} lets others in; make it 0600"));
    }
    Ok(())
}

fn read_line(mut file: File) -> Result<Zeroizing<Vec<u8>>, String> {
    let deadline = Instant::now() + PATIENCE;
    // Room for all of it at once: growing would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(vec![0; MAX]);
    let mut filled = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waiting = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Ok(0) => return Err(format!("nobody has written a whole line within {} s", PATIENCE.as_secs())),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.to_string()),
        }
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.to_string()),
        }
        if bytes[..filled].contains(&b'\n') {
            break;
        }
        if filled == MAX {
            return Err(format!("it holds more than {} KiB", MAX / 1_024));
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn number(of: &impl AsRawFd) -> u32 {
        u32::try_from(of.as_raw_fd()).unwrap()
    }

    #[test]
    fn a_pipe_gives_its_line_and_only_once() {
        let (reader, mut writer) = io::pipe().unwrap();
        // In pieces, and left open: the end of the line is enough.
        let piecemeal = std::thread::spawn(move || {
            for piece in ["to", "ken", "\n"] {
                writer.write_all(piece.as_bytes()).unwrap();
                writer.flush().unwrap();
                std::thread::yield_now();
            }
            writer
        });
        assert_eq!(*read(number(&reader)).unwrap(), *b"token\n");
        drop(piecemeal.join().unwrap());
        assert_eq!(*read(number(&reader)).unwrap(), *b"");

        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"to the end").unwrap();
        drop(writer);
        assert_eq!(*read(number(&reader)).unwrap(), *b"to the end");
    }

    #[test]
    fn neither_endless_nor_silent_writers_are_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[b'x'; 20_000]).unwrap();
        assert!(read(number(&reader)).unwrap_err().contains("more than 8 KiB"));
        let (reader, _writer) = io::pipe().unwrap();
        let start = Instant::now();
        assert!(read(number(&reader)).unwrap_err().contains("within 5 s"));
        assert!(start.elapsed() < PATIENCE * 2);
    }

    #[test]
    fn files_must_be_ours_alone_and_those_without_a_name_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "token").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = File::open(&path).unwrap();
        mode(0o640);
        assert!(read(number(&file)).unwrap_err().contains("mode 0640 lets others in"));
        mode(0o600);
        assert_eq!(*read(number(&file)).unwrap(), *b"token");
        // As a memfd: a file without a name, whose mode says nothing.
        mode(0o644);
        fs::remove_file(&path).unwrap();
        assert_eq!(*read(number(&file)).unwrap(), *b"token");
    }

    #[test]
    fn what_is_no_pipe_and_no_file_is_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for other in [number(&socket), number(&null)] {
            assert!(read(other).unwrap_err().contains("neither a pipe nor a file"));
        }
        assert!(read(99_999).unwrap_err().contains("not open"));
    }
}
