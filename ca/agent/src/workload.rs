//! What the workload beside the sidecar, or an Envoy there, gets from us: its SVID with the key, JWT-SVIDs, and the trust bundles, over
//! a Unix socket, and every renewal of them.
//!
//! The kernel says who asks (`SO_PEERCRED`), and only users and groups that the operator named are answered. Nobody can make
//! us hold much: connections and streams are counted, and each stream holds two messages at most, the one under way and the
//! next, so that whoever reads slowly skips what was current in between.

mod authority;
mod connection;
mod counts;
mod jwt;
mod lines;
mod secrets;
mod socket;
mod x509;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::warn;

pub use counts::Counts;
pub use socket::SocketError;

use crate::identity::Observer;
use counts::{CONNECT, Streams};
use lines::Lines;

/// Connections of those who may ask, all at once. A workload needs one, an Envoy one or two.
const CONNECTIONS: usize = 64;
/// Connections of those who may not, which live only to be told so.
const STRANGERS: usize = 4;
/// Streams of all connections: each may hold a message of some kilobytes.
const STREAMS: usize = 256;
/// Between two attempts to accept, after one has failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the socket is, and who may ask there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The socket. Its directory is made if it is missing.
    pub socket: PathBuf,
    /// The socket's mode.
    pub mode: u32,
    /// Users that are answered. Root has to be named like everybody else.
    pub uids: BTreeSet<u32>,
    /// Groups that are answered: the group that a process runs as, not its further ones.
    pub gids: BTreeSet<u32>,
}

impl Endpoint {
    fn admits(&self, caller: &UCred) -> bool {
        self.uids.contains(&caller.uid()) || self.gids.contains(&caller.gid())
    }
}

/// The socket, bound. Whoever connects waits until [`serve`](Self::serve) runs.
#[derive(Debug)]
pub struct Door {
    endpoint: Endpoint,
    socket: socket::Bound,
    counts: Arc<Counts>,
    lines: Arc<Lines>,
}

impl Door {
    /// Binds the socket, in the place of one that nobody answers at.
    pub fn bind(endpoint: Endpoint, counts: Arc<Counts>) -> Result<Self, SocketError> {
        let socket = socket::bind(&endpoint.socket, endpoint.mode)?;
        Ok(Self { endpoint, socket, counts, lines: Arc::default() })
    }

    /// Serves until `stop` becomes true or its sender is gone; all that it started ends with it.
    pub async fn serve(self, observer: Observer, mut stop: Receiver<bool>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.socket.listener.try_clone()?)?;
        let shared = Arc::new(Shared {
            observer,
            counts: self.counts.clone(),
            lines: self.lines.clone(),
            streams: Streams::new(STREAMS, self.counts.clone()),
        });
        let (known, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(STRANGERS)));
        let mut connections = JoinSet::new();
        loop {
            let accepted = crate::runtime::select! {
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("the workload API cannot accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(caller) = self.identify(&stream) else { continue };
            let room = if caller.is_admitted { &known } else { &strangers };
            let Ok(place) = room.clone().try_acquire_owned() else {
                self.counts.count(CONNECT, tonic::Code::ResourceExhausted);
                if let Some(left_out) = self.lines.next() {
                    warn!(%caller, left_out, "the workload API has too many connections: this one is closed");
                }
                continue;
            };
            connections.spawn(converse(stream, caller, place, shared.clone()));
        }
    }

    fn identify(&self, stream: &UnixStream) -> Option<Caller> {
        match stream.peer_cred() {
            Ok(credentials) => {
                let is_admitted = self.endpoint.admits(&credentials);
                let caller = Caller { credentials, is_admitted };
                if !is_admitted && let Some(left_out) = self.lines.next() {
                    warn!(
                        %caller,
                        left_out,
                        "not answered at the workload API: workloadApi.allow names neither this user nor this group"
                    );
                }
                Some(caller)
            }
            Err(error) => {
                self.counts.count(CONNECT, tonic::Code::PermissionDenied);
                if let Some(left_out) = self.lines.next() {
                    warn!(
                        left_out,
                        "closed a connection to the workload API: the kernel does not say whose it is: {error}"
                    );
                }
                None
            }
        }
    }
}

async fn converse(stream: UnixStream, caller: Caller, _place: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let _connected = shared.counts.connected();
    connection::serve(stream, caller, shared).await;
}

/// What all connections share.
struct Shared {
    observer: Observer,
    counts: Arc<Counts>,
    lines: Arc<Lines>,
    streams: Streams,
}

/// Who is at the other end, as the kernel noted when they connected.
#[derive(Clone, Copy, Debug)]
struct Caller {
    credentials: UCred,
    is_admitted: bool,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid {} gid {}", self.credentials.uid(), self.credentials.gid())?;
        self.credentials.pid().map_or(Ok(()), |pid| write!(f, " pid {pid}"))
    }
}
