//! The socket types of this crate, named in one place.
//!
//! The feature `sim` swaps them for turmoil's, so that the real code runs on a simulated network.

#[cfg(not(feature = "sim"))]
pub use real::Bound;
#[cfg(feature = "sim")]
pub use simulated::Bound;
#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "sim")]
pub use turmoil::net::{TcpListener, TcpStream};

use std::io;
use std::net::{IpAddr, SocketAddr};

/// Connects and turns off Nagle's delay.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The addresses of a name, by the system's resolver.
pub async fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    #[cfg(not(feature = "sim"))]
    let found = tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect();
    #[cfg(feature = "sim")]
    let found = vec![turmoil::lookup(name)];
    Ok(found)
}

/// Waits for the first byte and leaves it unread; 0 if the peer closes instead.
pub async fn first_byte(stream: &mut TcpStream) -> io::Result<usize> {
    stream.peek(&mut [0]).await
}

/// Makes the next close of `stream` a reset, so that its peer cannot take a cut stream for a complete one.
pub fn reset_on_close(stream: &TcpStream) {
    #[cfg(not(feature = "sim"))]
    let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
    #[cfg(feature = "sim")]
    let _ = stream;
}

#[cfg(not(feature = "sim"))]
mod real {
    use std::io;
    use std::net::SocketAddr;

    use super::TcpListener;

    /// Connections that may wait to be accepted. tokio's own default of 128 drops SYNs under a burst.
    const BACKLOG: i32 = 4_096;

    /// A bound and listening socket, not yet owned by a worker's reactor.
    ///
    /// Every listener is bound before anything is served, so that a clash ends the start and not the run.
    #[derive(Debug)]
    pub struct Bound(std::net::TcpListener);

    impl Bound {
        /// Binds and listens.
        pub fn new(address: SocketAddr) -> io::Result<Self> {
            let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Self(socket.into()))
        }

        /// Something that no reactor takes: a file.
        #[cfg(test)]
        pub fn broken() -> Self {
            use std::os::fd::OwnedFd;
            use std::os::unix::fs::OpenOptionsExt as _;
            const O_NONBLOCK: i32 = 0o4000;
            let mut options = std::fs::OpenOptions::new();
            let file =
                options.read(true).custom_flags(O_NONBLOCK).open("/proc/self/limits").expect("this is Linux");
            Self(std::net::TcpListener::from(OwnedFd::from(file)))
        }

        /// The same socket for another thread; all workers accept from the same queue.
        pub fn duplicate(&self) -> io::Result<Self> {
            self.0.try_clone().map(Self)
        }

        /// A listener for the calling worker.
        pub async fn listener(self) -> io::Result<TcpListener> {
            TcpListener::from_std(self.0)
        }
    }
}

#[cfg(feature = "sim")]
mod simulated {
    use std::io;
    use std::net::SocketAddr;

    use super::TcpListener;

    /// An address to be bound: a simulated host binds only on its own runtime.
    #[derive(Debug)]
    pub struct Bound(SocketAddr);

    impl Bound {
        /// Notes the address.
        pub fn new(address: SocketAddr) -> io::Result<Self> {
            Ok(Self(address))
        }

        /// The same address again; only one worker can bind it.
        pub fn duplicate(&self) -> io::Result<Self> {
            Ok(Self(self.0))
        }

        /// Binds.
        pub async fn listener(self) -> io::Result<TcpListener> {
            TcpListener::bind(self.0).await
        }
    }
}
