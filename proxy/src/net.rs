//! The socket types of this crate, named in one place.
//!
//! The feature `sim` swaps them for turmoil's, so that the real code runs on a simulated network.

#[cfg(not(feature = "sim"))]
pub use real::{Bound, mark_all, original_destination, unmarked};
#[cfg(feature = "sim")]
pub use simulated::{Bound, mark_all, original_destination, unmarked};
#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "sim")]
pub use turmoil::net::{TcpListener, TcpStream};

use std::io;
use std::net::{IpAddr, SocketAddr};

/// Connects and turns off Nagle's delay.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    #[cfg(not(feature = "sim"))]
    let stream = real::connect_as(address, real::MARK.get().copied()).await?;
    #[cfg(feature = "sim")]
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An address as it is compared and judged: a socket of both families shows IPv4 in the clothes of IPv6.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
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

/// Takes that back: the next close of `stream` is an end again.
pub fn end_on_close(stream: &TcpStream) {
    #[cfg(not(feature = "sim"))]
    let _ = socket2::SockRef::from(stream).set_linger(None);
    #[cfg(feature = "sim")]
    let _ = stream;
}

#[cfg(not(feature = "sim"))]
mod real {
    use std::io;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::sync::OnceLock;

    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    use tokio::net::TcpSocket;

    use super::{TcpListener, TcpStream};

    /// What every connection of this process bears, so that the rules of redirection let it pass.
    pub(super) static MARK: OnceLock<u32> = OnceLock::new();

    /// Marks every connection from here on. An error if this process may not: then none would be made.
    pub fn mark_all(mark: u32) -> io::Result<()> {
        setsockopt(&TcpSocket::new_v4()?, sockopt::Mark, &mark)?;
        MARK.set(mark).map_err(|_| io::Error::other("connections are marked already"))
    }

    /// Connects with a mark, or as anybody would.
    pub(super) async fn connect_as(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        socket.connect(address).await
    }

    /// Connects as the workload would, to be redirected.
    pub async fn unmarked(address: SocketAddr) -> io::Result<TcpStream> {
        connect_as(address, None).await
    }

    /// Where the peer connected to, before the kernel redirected it; the own end if it did not. An error if the kernel
    /// does not follow this connection.
    pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
        // A socket of both families tells of IPv4 at IPv4's own level only.
        Ok(match stream.local_addr()?.ip().to_canonical() {
            IpAddr::V4(_) => {
                let asked = getsockopt(stream, sockopt::OriginalDst)?;
                let ip = Ipv4Addr::from(u32::from_be(asked.sin_addr.s_addr));
                (ip, u16::from_be(asked.sin_port)).into()
            }
            IpAddr::V6(_) => {
                let asked = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
                let ip = Ipv6Addr::from(asked.sin6_addr.s6_addr);
                (ip, u16::from_be(asked.sin6_port)).into()
            }
        })
    }

    /// Connections that may wait to be accepted. tokio's own default of 128 drops SYNs under a burst.
    const BACKLOG: i32 = 4_096;

    #[derive(Clone, Copy, Eq, PartialEq)]
    enum Families {
        AsUsual,
        Both,
    }

    /// A bound and listening socket, not yet owned by a worker's reactor.
    ///
    /// Every listener is bound before anything is served, so that a clash ends the start and not the run.
    #[derive(Debug)]
    pub struct Bound(std::net::TcpListener);

    impl Bound {
        /// Binds and listens.
        pub fn new(address: SocketAddr) -> io::Result<Self> {
            Self::open(address, Families::AsUsual)
        }

        /// The same for IPv4 as well if `address` is `[::]`, whatever the machine's habit is.
        pub fn of_both_families(address: SocketAddr) -> io::Result<Self> {
            Self::open(address, Families::Both)
        }

        fn open(address: SocketAddr, families: Families) -> io::Result<Self> {
            let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if families == Families::Both && address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
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

    use super::{TcpListener, TcpStream};

    /// Nothing redirects there.
    pub fn mark_all(_mark: u32) -> io::Result<()> {
        Ok(())
    }

    /// Connects.
    pub async fn unmarked(address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }

    /// The own end: nothing redirects there.
    pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
        stream.local_addr()
    }

    /// An address to be bound: a simulated host binds only on its own runtime.
    #[derive(Debug)]
    pub struct Bound(SocketAddr);

    impl Bound {
        /// Notes the address.
        pub fn new(address: SocketAddr) -> io::Result<Self> {
            Ok(Self(address))
        }

        /// Notes the address.
        pub fn of_both_families(address: SocketAddr) -> io::Result<Self> {
            Self::new(address)
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
