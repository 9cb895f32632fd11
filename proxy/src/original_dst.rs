//! Where a connection was made to before it was redirected here, if it was. What a connection is told by this alone: mesh
//! transport is spoken only by one that was made to the mesh listener itself.

use std::io;
use std::net::SocketAddr;

use crate::connections::Direction;
use crate::net::{self, TcpStream};
use crate::observe::log;
use crate::sidecar::Sidecar;

/// Where a connection was made to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// The listener that accepted it.
    Listener,
    /// This place, in canonical form.
    Elsewhere(SocketAddr),
}

/// Asks the kernel, where connections may come redirected. An error if it does not know, because the rules are gone or
/// something else keeps it from following connections: then nobody can tell one kind from the other.
pub fn of(stream: &TcpStream, sidecar: &Sidecar) -> io::Result<Destination> {
    if sidecar.config.capture.is_none() {
        return Ok(Destination::Listener);
    }
    Ok(told(net::original_destination(stream)?, stream.local_addr()?))
}

fn told(asked: SocketAddr, own: SocketAddr) -> Destination {
    let (asked, own) = (net::canonical(asked), net::canonical(own));
    if asked == own { Destination::Listener } else { Destination::Elsewhere(asked) }
}

/// Ends a connection of which nobody knows where it was made to.
pub fn refuse(
    sidecar: &Sidecar,
    direction: Direction,
    stream: &TcpStream,
    address: SocketAddr,
    error: &io::Error,
) {
    sidecar.metrics.capture.lost[direction as usize].inc();
    if log::FAILURES.admits("original_destination") {
        tracing::warn!(
            peer = %address,
            direction = direction.label(),
            %error,
            "the kernel does not say where a connection was made to: it is refused (`postern-init check` tells whether the rules are there)"
        );
    }
    net::reset_on_close(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_own_end_is_the_listener() {
        for (asked, own, elsewhere) in [
            ("10.0.0.5:24143", "10.0.0.5:24143", None),
            ("10.0.0.5:24143", "[::ffff:10.0.0.5]:24143", None),
            ("[fd00::5]:24143", "[fd00::5]:24143", None),
            ("10.0.0.5:8080", "[::ffff:10.0.0.5]:24143", Some("10.0.0.5:8080")),
            ("[::ffff:10.0.0.5]:8080", "10.0.0.5:24143", Some("10.0.0.5:8080")),
            ("10.0.0.6:24143", "10.0.0.5:24143", Some("10.0.0.6:24143")),
            ("[fd00::5]:80", "[fd00::5]:24143", Some("[fd00::5]:80")),
        ] {
            let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
            let expected =
                elsewhere.map_or(Destination::Listener, |place| Destination::Elsewhere(parse(place)));
            assert_eq!(told(parse(asked), parse(own)), expected, "{asked} at {own}");
        }
    }
}
