//! The socket types of this crate, in one place: the feature `sim` puts simulated ones in theirs.

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "sim")]
pub(crate) use turmoil::net::{TcpListener, TcpStream};
