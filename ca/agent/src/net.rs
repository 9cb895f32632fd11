//! The socket type of this crate. With the feature `sim` it is the simulator's, so that the same code runs on a network
//! that loses, delays and partitions as a seed says.

use std::io;

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::net::TcpStream;
#[cfg(feature = "sim")]
pub(crate) use turmoil::net::TcpStream;

/// Resolves and connects. The caller holds the deadline.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
