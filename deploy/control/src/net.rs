//! The socket types of this crate, in one place: the feature `sim` puts simulated ones in theirs.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use postern_ca::attest::Process;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "sim")]
pub(crate) use turmoil::net::{TcpListener, TcpStream};

/// A listener of the identity API.
pub(crate) enum Listener {
    /// For the mesh.
    Tcp(TcpListener),
    /// For processes of this machine.
    Unix(UnixListener),
}

/// A connection to it.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a connection comes from.
#[derive(Clone)]
pub(crate) struct Source {
    /// Its address, by which strangers are counted. Users of this machine have one each, of the prefix that no packet has
    /// (RFC 6666).
    pub(crate) address: SocketAddr,
    /// The process, if it is of this machine.
    pub(crate) process: Option<Arc<Process>>,
}

impl Listener {
    /// The next connection; `None` for one whose process cannot be told.
    pub(crate) async fn accept(&self) -> io::Result<Option<(Socket, Source)>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Small answers go out at once.
                let prepared = stream.set_nodelay(true).is_ok();
                Ok(prepared.then_some((Socket::Tcp(stream), Source { address, process: None })))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let process = match Process::of(&stream) {
                    Ok(process) => Arc::new(process),
                    Err(error) => {
                        tracing::debug!(%error, "a process cannot be told (that needs Linux 6.5)");
                        return Ok(None);
                    }
                };
                let [high, low] = [(process.uid() >> 16) as u16, (process.uid() & 0xffff) as u16];
                let address = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, high, low);
                let source = Source { address: SocketAddr::from((address, 0)), process: Some(process) };
                Ok(Some((Socket::Unix(stream), source)))
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
