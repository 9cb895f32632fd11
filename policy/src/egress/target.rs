//! What a call out asks for, as people write it: a URL.

use crate::generation::Generation;
use crate::norm::{self, CanonHost, CanonMethod, CanonPath};
use crate::not_asked::NotAsked;
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

impl Generation {
    /// The port of a service that a workload of `namespace` reaches by `target`.
    pub fn called(&self, target: &CallTarget, namespace: &str) -> Result<&ServicePort, NotAsked> {
        let found = self.services().find(&target.host, target.port, namespace);
        let port = found.ok_or(NotAsked::UnknownService)?;
        port.protocol.carries(target.path.is_none())?;
        Ok(port)
    }

    /// Method and path of a call to `port` as they are judged on the way out; `None` for a tunnel.
    pub fn call_request(
        &self,
        port: &ServicePort,
        target: &CallTarget,
        method: &str,
    ) -> Result<Option<(CanonMethod, CanonPath)>, NotAsked> {
        let Some(path) = target.path.as_deref() else { return Ok(None) };
        let options = port.paths.options(self.defaults().path);
        let request = CanonMethod::parse(method).and_then(|method| {
            let path = CanonPath::parse_for(&method, norm::without_fragment(path), &options)?;
            self.check_path_out(&path)?;
            Ok((method, path))
        });
        request.map(Some).map_err(NotAsked::BadRequest)
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
