//! A connection that has to come redirected: that the kernel holds rules does not mean that it can act on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use crate::Failure;
use crate::config::Config;
use crate::rules::REDIRECT_OUT;

const PATIENCE: Duration = Duration::from_secs(2);

/// Connects on both families to what only redirection leads to a listener of ours.
pub(crate) fn both_families(config: &Config) -> Result<String, Failure> {
    let mut said = String::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let wrong =
            |error: io::Error| Failure::Run(format!("no connection comes redirected on {family}: {error}"));
        let listener = match TcpListener::bind((ip, config.outbound_port)) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                said.push_str(&format!("{family}: the sidecar runs already, and asks itself (/ready)\n"));
                continue;
            }
            // Without IPv6 there is nothing to redirect.
            Err(error) if ip.is_ipv6() && is_without_ipv6(&error) => {
                said.push_str("IPv6: there is none here\n");
                continue;
            }
            Err(error) => return Err(wrong(error)),
        };
        let to = SocketAddr::new(ip, REDIRECT_OUT);
        let _call = TcpStream::connect_timeout(&to, PATIENCE).map_err(wrong)?;
        // Connected, so it waits in a queue: in ours, or in that of somebody who listens there.
        listener.set_nonblocking(true).map_err(wrong)?;
        let (taken, _) = listener.accept().map_err(wrong)?;
        let asked = asked(&taken, ip).map_err(|error| wrong(error.into()))?;
        if asked != to.port() {
            return Err(wrong(io::Error::other(format!("it was made to port {asked}"))));
        }
        said.push_str(&format!("{family}: a connection came redirected\n"));
    }
    Ok(said)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn asked(stream: &TcpStream, ip: IpAddr) -> nix::Result<u16> {
    Ok(u16::from_be(match ip {
        IpAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst)?.sin_port,
        IpAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst)?.sin6_port,
    }))
}
