//! Which etcd, and who we are there.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use postern_ca::store::shared;
use postern_svid::TrustDomain;

/// Where replicas share what they share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Members of one etcd cluster; the next is asked when one does not answer.
    pub endpoints: Vec<Endpoint>,
    /// What every key of ours begins with; another trust domain's control plane has another one.
    pub prefix: Prefix,
    /// How members prove who they are, and we to them; none on loopback without TLS.
    pub tls: Option<Tls>,
    /// Who we are by name, beside or instead of a client certificate.
    pub user: Option<User>,
}

/// At most so many members: a cluster of etcd has seven at most, as it says itself.
pub const MAX_ENDPOINTS: usize = 9;

/// A member of the cluster: `https://host:port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

/// The files of TLS. They are read again for each connection: whoever renews them does not tell us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tls {
    /// PEM of the authority that the members' certificates are signed by.
    pub ca: PathBuf,
    /// Our own certificate and its key (mode 0600), both PEM.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd's own authentication.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// The file (mode 0600) whose one line is its password.
    pub password: PathBuf,
}

/// What keys of ours begin with, without a `/` at its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prefix(String);

impl Endpoint {
    /// Parses `https://host:port`, or `http://` at a loopback address.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: http::Uri = text.parse().map_err(|_| "not a URL such as https://etcd-1:2379")?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("not a URL such as https://etcd-1:2379");
        };
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err("etcd is asked over https (http at a loopback address)"),
        };
        if authority.as_str().contains('@') {
            return Err("a URL is no place for a password: name `user` and `passwordFile`");
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("a URL with nothing after the port: what keys begin with is `prefix`");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().ok_or("name the port; etcd's own is 2379")?;
        if host.is_empty() || port == 0 {
            return Err("not a URL such as https://etcd-1:2379");
        }
        let here = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.to_canonical().is_loopback());
        if !tls && !here {
            return Err(
                "http shows passwords and what replicas share to whoever is on the way; only a loopback address is asked without TLS",
            );
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }

    /// A name or an address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is asked over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

impl Prefix {
    /// `/postern/<trust domain>`.
    pub fn of(td: &TrustDomain) -> Self {
        Self(format!("/postern/{td}"))
    }

    /// Parses a prefix: parts of lower-case letters, digits and `-._`, each after a `/`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix('/') {
            Some(rest) if shared::is_key(rest) => Ok(Self(text.to_owned())),
            _ => Err(
                "write parts of lower-case letters, digits and -._ after a / each, such as /postern/prod.example",
            ),
        }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key that says whose the prefix is.
    pub(crate) fn mark(&self) -> Vec<u8> {
        format!("{}/trust-domain", self.0).into_bytes()
    }

    /// The key of an entry, or what those of several begin with.
    pub(crate) fn entry(&self, key: &str) -> Vec<u8> {
        format!("{}/data/{key}", self.0).into_bytes()
    }

    /// The key of a lease.
    pub(crate) fn lease(&self, name: &str) -> Vec<u8> {
        format!("{}/lease/{name}", self.0).into_bytes()
    }

    /// The entry's name in one of etcd's keys.
    pub(crate) fn name_of<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let rest = key.strip_prefix(self.0.as_bytes())?.strip_prefix(b"/data/")?;
        std::str::from_utf8(rest).ok().filter(|name| shared::is_key(name))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key after all those that begin with `prefix`.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // Prefixes are ASCII, so the last byte can always be raised.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for text in
            ["https://etcd-1:2379", "https://[2001:db8::1]:2379", "http://127.0.0.1:2379", "http://[::1]:1"]
        {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        assert!(Endpoint::parse("http://localhost:2379").is_ok());
        let v6 = Endpoint::parse("https://[2001:db8::1]:2379/").unwrap();
        assert_eq!((v6.host(), v6.port(), v6.is_tls()), ("2001:db8::1", 2379, true));
        for (bad, says) in [
            ("etcd-1:2379", "https://etcd-1:2379"),
            ("", "not a URL"),
            ("ftp://etcd-1:2379", "over https"),
            ("https://etcd-1", "the port"),
            ("https://etcd-1:0", "not a URL"),
            ("https://root:pw@etcd-1:2379", "passwordFile"),
            ("https://etcd-1:2379/postern", "prefix"),
            ("https://etcd-1:2379?a", "prefix"),
            ("http://etcd-1:2379", "without TLS"),
            ("http://10.0.0.1:2379", "without TLS"),
            ("https://:2379", "not a URL"),
        ] {
            let why = Endpoint::parse(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
    }

    #[test]
    fn keys_under_a_prefix() {
        let prefix = Prefix::parse("/postern/a").unwrap();
        assert_eq!(prefix.name_of(&prefix.entry("trust/state")), Some("trust/state"));
        for strange in [
            &b"/postern/a/data/"[..],
            b"/postern/a/data/A",
            b"/postern/ab/data/x",
            b"/postern/a/lease/x",
            b"\xff",
        ] {
            assert_eq!(prefix.name_of(strange), None);
        }
        // Neither the mark nor a lease is an entry.
        let entries = (prefix.entry(""), after(&prefix.entry("")));
        let is_entry = |key: &[u8]| *key >= *entries.0 && *key < *entries.1;
        assert!(
            is_entry(&prefix.entry("zz/zz"))
                && !is_entry(&prefix.mark())
                && !is_entry(&prefix.lease("leader"))
        );
        for bad in ["", "/", "postern", "/Postern", "/a//b", "/a/", "/a b", "/../a"] {
            assert!(Prefix::parse(bad).is_err(), "{bad:?}");
        }
    }
}
