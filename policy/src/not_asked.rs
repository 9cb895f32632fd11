//! What a sidecar answers before any rule is asked.
//!
//! The sidecar asks these functions, and so does whoever tells what it would answer: a second opinion would differ one day.

use std::fmt;

use crate::norm::NormError;
use crate::services::Protocol;
use crate::tokens::BadToken;
use crate::upgrade::{Upgrade, UpgradeName};

/// Why a sidecar refuses a stream before any rule is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotAsked {
    /// Method, target or host has no canonical form, or one that is not taken here.
    BadRequest(NormError),
    /// No Service document names the destination of a call out.
    UnknownService,
    /// A tunnel to a port that speaks HTTP.
    ConnectToHttp,
    /// A request to a port of opaque bytes.
    HttpToTcp,
    /// Nobody declares the port, and no Allow names it.
    PortNotDeclared,
    /// An upgrade that the port does not list, or with a method with which none is carried.
    UpgradeRefused,
    /// A token that is none, or does not hold.
    TokenInvalid(BadToken),
}

impl NotAsked {
    /// Those that a test can expect: which other ports a workload declares, documents do not say.
    pub(crate) const LABELS: [&str; 6] = [
        "bad_request",
        "unknown_service",
        "connect_to_http",
        "http_to_tcp",
        "upgrade_refused",
        "token_invalid",
    ];

    /// The reason that the sidecar gives.
    pub fn label(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::UnknownService => "unknown_service",
            Self::ConnectToHttp => "connect_to_http",
            Self::HttpToTcp => "http_to_tcp",
            Self::PortNotDeclared => "port_not_declared",
            Self::UpgradeRefused => "upgrade_refused",
            Self::TokenInvalid(_) => "token_invalid",
        }
    }

    /// The HTTP status that the sidecar answers.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::TokenInvalid(_) => 401,
            Self::UnknownService | Self::ConnectToHttp | Self::HttpToTcp | Self::UpgradeRefused => 403,
            Self::PortNotDeclared => 421,
        }
    }
}

impl fmt::Display for NotAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest(error) => return error.fmt(f),
            Self::UnknownService => {
                "no Service has this host and port, and what no Service names is not called: write one, with \
                 `external: true` and `hosts` for what is outside of the mesh"
            }
            Self::ConnectToHttp => "the port speaks HTTP, and is sent requests: ask for http://",
            Self::HttpToTcp => "the port carries opaque bytes, through a tunnel: ask for https:// or tcp://",
            Self::PortNotDeclared => "nobody declares the port",
            Self::UpgradeRefused => "the port lists no such upgrade",
            Self::TokenInvalid(bad) => return write!(f, "a token does not hold: {}", bad.as_str()),
        })
    }
}

impl Protocol {
    /// Whether a port that speaks this carries a tunnel of opaque bytes, or else a request.
    pub fn carries(self, is_tunnel: bool) -> Result<(), NotAsked> {
        match (is_tunnel, self.is_http()) {
            (true, true) => Err(NotAsked::ConnectToHttp),
            (false, false) => Err(NotAsked::HttpToTcp),
            (true, false) | (false, true) => Ok(()),
        }
    }
}

impl Upgrade {
    /// What a request that asks for `asked` turns into at an HTTP port that lists these names: a WebSocket anywhere,
    /// anything else only by its name.
    pub fn at_port(asked: &[u8], listed: &[UpgradeName]) -> Result<Self, NotAsked> {
        if asked.eq_ignore_ascii_case(Self::WebSocket.as_str().as_bytes()) {
            return Ok(Self::WebSocket);
        }
        let name = listed.iter().find(|name| name.is(asked)).ok_or(NotAsked::UpgradeRefused)?;
        Ok(Self::Named(name.clone()))
    }

    /// The method that the workload sees, and that is judged, of a request that says `method`: a WebSocket's is GET,
    /// whichever way it came; other upgrades are carried with GET and POST.
    pub fn method(&self, method: &[u8]) -> Result<&'static str, NotAsked> {
        match (self, method) {
            (Self::WebSocket, _) | (Self::Named(_), b"GET") => Ok("GET"),
            (Self::Named(_), b"POST") => Ok("POST"),
            (Self::Named(_), _) => Err(NotAsked::UpgradeRefused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_carry_what_they_declare() {
        for (protocol, tunnel, request) in [
            (Protocol::Http, Err(NotAsked::ConnectToHttp), Ok(())),
            (Protocol::Http2, Err(NotAsked::ConnectToHttp), Ok(())),
            (Protocol::Grpc, Err(NotAsked::ConnectToHttp), Ok(())),
            (Protocol::Tcp, Ok(()), Err(NotAsked::HttpToTcp)),
            (Protocol::Tls, Ok(()), Err(NotAsked::HttpToTcp)),
        ] {
            assert_eq!((protocol.carries(true), protocol.carries(false)), (tunnel, request), "{protocol}");
        }
    }

    #[test]
    fn upgrades_and_their_methods() {
        let listed = [UpgradeName::parse("tcp").unwrap()];
        let tcp = Upgrade::at_port(b"TCP", &listed).unwrap();
        assert_eq!(tcp.as_str(), "tcp");
        assert_eq!(Upgrade::at_port(b"WebSocket", &[]), Ok(Upgrade::WebSocket));
        for refused in [&b"spdy/3.1"[..], b"tcp, x", b"", b"h2c"] {
            assert_eq!(Upgrade::at_port(refused, &listed), Err(NotAsked::UpgradeRefused));
        }
        assert_eq!((tcp.method(b"GET"), tcp.method(b"POST")), (Ok("GET"), Ok("POST")));
        assert_eq!(Upgrade::WebSocket.method(b"POST"), Ok("GET"));
        for refused in [&b"PUT"[..], b"post", b"", b"CONNECT"] {
            assert_eq!(tcp.method(refused), Err(NotAsked::UpgradeRefused));
        }
    }
}
