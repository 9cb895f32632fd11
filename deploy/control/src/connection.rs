//! One accepted connection: the finished TLS stream, who is at its other end, and when it has to go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use postern_ca::attest::Process;
use postern_svid::{Channel, Clock, PeerSvid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::limits::Place;
use crate::net::Socket;

/// Whoever has no certificate needs one call of at most five seconds; more time would only serve to hold connections.
const STRANGER_LIFE: Duration = Duration::from_secs(30);
/// Past the end of a peer's certificate, so that its stream can say why before the line is cut. Calls are refused at the end itself.
const GOODBYE: Duration = Duration::from_secs(2);
/// Wall time is read again at least this often: monotonic time stands still while a machine is suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A connection's place among all, and a stranger's among the strangers.
pub(crate) type Places = (OwnedSemaphorePermit, Option<Place>);

/// Who is at the other end.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) source: SocketAddr,
    /// Its certificate, verified by the handshake.
    pub(crate) svid: Option<Arc<PeerSvid>>,
    /// Its process, if it is of this machine.
    pub(crate) process: Option<Arc<Process>>,
    /// What both ends alone can derive.
    pub(crate) channel: Option<Channel>,
}

/// A TLS connection that ends itself when its peer's certificate ends or a stranger has had enough time.
pub(crate) struct Connection {
    io: TlsStream<Socket>,
    peer: Peer,
    clock: Arc<dyn Clock>,
    /// End of the peer's certificate and [`GOODBYE`]; `None` for a stranger.
    ends: Option<SystemTime>,
    look: Pin<Box<Sleep>>,
    _places: Places,
}

impl Connection {
    pub(crate) fn new(io: TlsStream<Socket>, peer: Peer, clock: Arc<dyn Clock>, places: Places) -> Self {
        let ends = peer.svid.as_ref().map(|svid| svid.not_after() + GOODBYE);
        let first = match ends {
            Some(ends) => until(ends, clock.as_ref()),
            None => STRANGER_LIFE,
        };
        Self { io, peer, clock, ends, look: Box::pin(tokio::time::sleep(first)), _places: places }
    }

    /// Whether its time is over; otherwise the task is woken when it may be.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(cx).is_ready() {
            match self.ends {
                Some(ends) if self.clock.wall() <= ends => {
                    let next = until(ends, self.clock.as_ref());
                    self.look.as_mut().reset(Instant::now() + next);
                }
                _ => return true,
            }
        }
        false
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the connection's time is over",
            )));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// How long until it is worth looking whether `ends` is over: a moment past it, and not beyond [`LOOK_AGAIN`].
pub(crate) fn until(ends: SystemTime, clock: &dyn Clock) -> Duration {
    let left = ends.duration_since(clock.wall()).unwrap_or_default();
    (left + Duration::from_millis(50)).min(LOOK_AGAIN)
}
