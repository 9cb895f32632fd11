//! The process at the other end of a Unix socket, as the kernel tells of it.
//!
//! A number names a process only until it ends; then another may get it. What is held here is the process itself: its pidfd, which
//! the kernel made when it connected, and its directory in `/proc`, opened while the pidfd said that it lives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use aws_lc_rs::digest::{Context, SHA256};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};

use super::{Attestation, FactName, Facts, NoProof};
use crate::lineage::Attestor;

/// A program larger than this is not hashed: a stranger chooses which one it is.
const MAX_PROGRAM: u64 = 256 << 20;

/// A process that connected.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    uid: u32,
    gid: u32,
    pidfd: OwnedFd,
    directory: File,
}

impl Process {
    /// The one at the other end of `socket`. Needs Linux 6.5.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let told = getsockopt(socket, PeerCredentials)?;
        let pidfd = getsockopt(socket, PeerPidfd)?;
        let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
        let directory =
            OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/{}", told.pid()))?;
        let process = Self { pid: told.pid(), uid: told.uid(), gid: told.gid(), pidfd, directory };
        // Alive after its directory was opened: the number was still its own.
        if process.is_alive() { Ok(process) } else { Err(io::Error::other("the process has ended")) }
    }

    /// Its user.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let mut asked = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut asked, PollTimeout::ZERO), Ok(0))
    }

    /// Its program: the file's path, and its device and inode.
    fn program(&self) -> io::Result<(PathBuf, u64, u64)> {
        let link = self.link();
        let found = fs::metadata(&link)?;
        Ok((fs::read_link(&link)?, found.dev(), found.ino()))
    }

    fn sha256(&self) -> io::Result<String> {
        let mut file = File::open(self.link())?.take(MAX_PROGRAM + 1);
        let (mut context, mut buffer, mut read) = (Context::new(&SHA256), vec![0; 64 << 10], 0_u64);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(crate::hex(context.finish().as_ref())),
                count => {
                    context.update(&buffer[..count]);
                    read += count as u64;
                }
            }
            if read > MAX_PROGRAM {
                return Err(io::Error::other("the program is larger than 256 MiB"));
            }
        }
    }

    fn link(&self) -> String {
        format!("/proc/self/fd/{}/exe", self.directory.as_raw_fd())
    }
}

impl Attestation {
    /// What the kernel says of the process. Its program is a fact only where this process may see it (root's may).
    pub fn unix(&self, process: &Process) -> Result<Facts, NoProof> {
        let mut facts = Facts::new(Attestor::Unix)
            .with(FactName::UnixUid, process.uid.to_string())
            .with(FactName::UnixGid, process.gid.to_string());
        match process.program() {
            Ok(program) => {
                facts = facts.with(FactName::UnixPath, program.0.to_string_lossy());
                // To hash one is work that its owner orders: only if somebody asks for it.
                if self.registrations.ask_for(&FactName::UnixSha256) {
                    let hash =
                        process.sha256().map_err(|error| format!("the program cannot be read: {error}"))?;
                    facts = facts.with(FactName::UnixSha256, hash);
                }
                if process.program().ok() != Some(program) {
                    return Err("the process runs another program by now".into());
                }
            }
            Err(error) => {
                tracing::debug!(pid = process.pid, %error, "the program of a process cannot be seen")
            }
        }
        if process.is_alive() { Ok(facts) } else { Err("the process has ended".into()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::attest::{Clause, Pattern, Registration, Registrations, Template};

    const SOCKET: &str = "POSTERN_TEST_CONNECT_TO";

    /// Run by the test below as a process of its own: connects, and ends when its input does.
    #[test]
    fn a_caller() {
        let Some(path) = std::env::var_os(SOCKET) else { return };
        let mut socket = UnixStream::connect(path).unwrap();
        socket.write_all(b"x").unwrap();
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    fn asking_for_a_hash() -> Attestation {
        let td = postern_svid::TrustDomain::parse("td").unwrap();
        let any = vec![Pattern::parse("*").unwrap()];
        let clause = Clause { attestor: Attestor::Unix, wants: vec![(FactName::UnixSha256, any)] };
        let id = Template::parse(&td, "spiffe://td/local").unwrap();
        let registration =
            Registration { name: "r".into(), place: String::new(), id, from: vec![clause], ttl: None };
        let registrations = Registrations::new(vec![registration]).into();
        Attestation { registrations, ..Attestation::default() }
    }

    #[test]
    fn the_kernel_says_who_connected_and_whether_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let program = std::env::current_exe().unwrap();
        let mut caller = Command::new(&program)
            .args(["--exact", "attest::unix::tests::a_caller"])
            .env(SOCKET, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0]).unwrap();
        let process = Process::of(&socket).unwrap();
        assert_eq!(process.pid, i32::try_from(caller.id()).unwrap());
        let facts = Attestation::default().unix(&process).unwrap();
        assert_eq!(facts.only(&FactName::UnixUid), Some(&*nix::unistd::geteuid().to_string()));
        assert_eq!(facts.only(&FactName::UnixGid), Some(&*nix::unistd::getegid().to_string()));
        assert_eq!(facts.only(&FactName::UnixPath), program.to_str());
        assert_eq!(facts.only(&FactName::UnixSha256), None, "nobody asks for it");
        let facts = asking_for_a_hash().unix(&process).unwrap();
        let whole = crate::hex(aws_lc_rs::digest::digest(&SHA256, &fs::read(&program).unwrap()).as_ref());
        assert_eq!(facts.only(&FactName::UnixSha256), Some(&*whole));
        // It ends: neither its number nor anybody who gets it next stands for it.
        drop(caller.stdin.take());
        caller.wait().unwrap();
        assert!(!process.is_alive());
        assert!(Attestation::default().unix(&process).is_err());
        assert!(process.program().is_err(), "its directory is not another's");
        // Its end of the socket may live on in another's hands; who connected does not.
        assert!(Process::of(&socket).is_err());
    }
}
