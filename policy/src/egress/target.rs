//! What a call out asks for, as people write it: a URL.

use std::fmt;

use crate::generation::Generation;
use crate::norm::CanonHost;
use crate::services::ServicePort;

/// What a workload asks its sidecar for: `http://host[:port]/path` is a request, `https://host[:port]` and
/// `tcp://host:port` are tunnels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallTarget {
    /// The host.
    pub host: CanonHost,
    /// The port.
    pub port: u16,
    /// The path and query of a request, as it is sent; `None` for a tunnel.
    pub path: Option<Box<str>>,
}

impl CallTarget {
    /// Parses a URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        let form = "write http://host/path, https://host or tcp://host:port";
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("this is no URL: {form}"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = CanonHost::parse(authority).map_err(|error| format!("host: {error}"))?;
        let (default, is_request) = match scheme {
            "http" => (Some(80), true),
            "https" => (Some(443), false),
            "tcp" => (None, false),
            _ => return Err(format!("unknown scheme: {form}")),
        };
        if !is_request && path.len() > 1 {
            return Err("nothing of a path is known of what goes through a tunnel".to_owned());
        }
        let port = host.port().or(default).ok_or_else(|| "tcp:// needs a port".to_owned())?;
        let path = is_request.then(|| if path.is_empty() { "/".into() } else { path.into() });
        Ok(Self { host, port, path })
    }
}

/// Why a sidecar refuses a call out before any rule is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotAsked {
    /// No Service document names the destination.
    UnknownService,
    /// A tunnel to a port that speaks HTTP.
    ConnectToHttp,
    /// A request to a port of opaque bytes.
    HttpToTcp,
}

impl NotAsked {
    /// The reason that the sidecar gives.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownService => "unknown_service",
            Self::ConnectToHttp => "connect_to_http",
            Self::HttpToTcp => "http_to_tcp",
        }
    }
}

impl fmt::Display for NotAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownService => {
                "no Service has this host and port, and what no Service names is not called: write one, with \
                 `external: true` and `hosts` for what is outside of the mesh"
            }
            Self::ConnectToHttp => "the port speaks HTTP, and is sent requests: ask for http://",
            Self::HttpToTcp => "the port carries opaque bytes, through a tunnel: ask for https:// or tcp://",
        })
    }
}

impl Generation {
    /// The port of a service that a workload of `namespace` reaches by `target`.
    pub fn called(&self, target: &CallTarget, namespace: &str) -> Result<&ServicePort, NotAsked> {
        let found = self.services().find(&target.host, target.port, namespace);
        let port = found.ok_or(NotAsked::UnknownService)?;
        match (target.path.is_some(), port.protocol.is_http()) {
            (true, false) => Err(NotAsked::HttpToTcp),
            (false, true) => Err(NotAsked::ConnectToHttp),
            _ => Ok(port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parsed = |url: &str| {
            let target = CallTarget::parse(url).ok()?;
            Some((target.host.name().to_owned(), target.port, target.path.map(String::from)))
        };
        let path = |text: &str| Some(text.to_owned());
        for (url, host, port, expected) in [
            ("http://orders.shop", "orders.shop", 80, path("/")),
            ("http://orders.shop:8080/a?b=c", "orders.shop", 8080, path("/a?b=c")),
            ("https://API.example.com", "api.example.com", 443, None),
            ("https://api.example.com:8443/", "api.example.com", 8443, None),
            ("tcp://db.shop:5432", "db.shop", 5432, None),
        ] {
            assert_eq!(parsed(url), Some((host.to_owned(), port, expected)), "{url}");
        }
        for bad in [
            "orders.shop",
            "ftp://a",
            "tcp://db.shop",
            "https://a/b",
            "http://",
            "http://u@h/",
            "https://a:0",
        ] {
            assert!(CallTarget::parse(bad).is_err(), "{bad}");
        }
    }
}
