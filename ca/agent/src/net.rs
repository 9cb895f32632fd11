//! The socket type of this crate. With the feature `sim` it is the simulator's, so that the same code runs on a network
//! that loses, delays and partitions as a seed says.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::net::TcpStream;
#[cfg(feature = "sim")]
pub(crate) use turmoil::net::TcpStream;

/// A connection of either kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects to a Unix socket. The caller holds the deadline.
pub(crate) async fn connect_unix(path: &Path) -> io::Result<Box<dyn Io>> {
    Ok(Box::new(tokio::net::UnixStream::connect(path).await?))
}

/// Resolves and connects, with a mark if the rules of this machine ask for one. The caller holds the deadline.
pub(crate) async fn connect(host: &str, port: u16, mark: Option<u32>) -> io::Result<Box<dyn Io>> {
    let stream = match mark {
        None => TcpStream::connect((host, port)).await?,
        #[cfg(not(feature = "sim"))]
        Some(mark) => connect_marked(host, port, mark).await?,
        #[cfg(feature = "sim")]
        Some(_) => return Err(io::Error::other("a simulated network has no marks")),
    };
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

#[cfg(not(feature = "sim"))]
async fn connect_marked(host: &str, port: u16, mark: u32) -> io::Result<TcpStream> {
    use nix::sys::socket::{setsockopt, sockopt};
    use tokio::net::TcpSocket;

    let mut last = io::Error::other("the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        setsockopt(&socket, sockopt::Mark, &mark)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
