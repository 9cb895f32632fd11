//! What a request can turn into, and which names of it a port may list.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::norm::is_token;

/// Names that one port may list. An API that upgrades has one or two.
pub const MAX_UPGRADES: usize = 16;
/// The longest registered name has 11 bytes; the rest is room for private ones.
const MAX_NAME: usize = 64;
const WEBSOCKET: &str = "websocket";
/// Protocols under which every byte that follows would be another request, or hide one: no rule would be asked about it.
const NEVER: [&str; 6] = ["h2", "h2c", "h3", "http", "https", "tls"];

/// Protocols that a request can turn into.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Upgrade {
    /// RFC 6455 or RFC 8441.
    WebSocket,
    /// One that the port lists.
    Named(UpgradeName),
}

/// Upgrades that a rule speaks of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Upgrades {
    /// `"*"`.
    Any,
    Only(Vec<Upgrade>),
}

impl Upgrades {
    /// Whether a request that wants to turn into `asked`, or into nothing, is one of them.
    pub(crate) fn cover(&self, asked: Option<&Upgrade>) -> bool {
        match (self, asked) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Only(named), Some(asked)) => named.contains(asked),
        }
    }
}

impl fmt::Display for Upgrades {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Only(named) = self else { return f.write_str("an upgrade") };
        let named: Vec<&str> = named.iter().map(Upgrade::as_str).collect();
        f.write_str(&named.join(", "))
    }
}

impl Upgrade {
    /// Takes what a rule or a question calls it: `websocket`, or a name that a port can list.
    pub fn parse(text: &str) -> Result<Self, BadUpgrade> {
        match UpgradeName::parse(text) {
            Ok(name) => Ok(Self::Named(name)),
            Err(BadUpgrade::WebSocket) if text == WEBSOCKET => Ok(Self::WebSocket),
            // In capitals, or with a version, which it has elsewhere (RFC 6455, 4.1).
            Err(BadUpgrade::WebSocket) => Err(BadUpgrade::UpperCase(WEBSOCKET.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Its name, in lower case.
    pub fn as_str(&self) -> &str {
        match self {
            Self::WebSocket => WEBSOCKET,
            Self::Named(name) => name.as_str(),
        }
    }
}

/// The name of a protocol in `Upgrade` (RFC 9110, 7.8), perhaps with a version: `tcp`, `spdy/3.1`. In lower case, for
/// names are compared without it. Cheap to clone: what a port lists is shared by every request.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct UpgradeName(Arc<str>);

impl UpgradeName {
    /// Takes a name that an operator has written.
    pub fn parse(text: &str) -> Result<Self, BadUpgrade> {
        let (name, version) = match text.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(is_token);
        if text.len() > MAX_NAME || !is_word(name) || !version.is_none_or(is_word) {
            return Err(BadUpgrade::NotAName);
        }
        let lower = text.to_ascii_lowercase();
        let name = &lower[..name.len()];
        // Drafts of HTTP/2 were called `h2c-14`.
        if NEVER.contains(&name.split('-').next().unwrap_or(name)) {
            return Err(BadUpgrade::Never);
        }
        if name == WEBSOCKET {
            return Err(BadUpgrade::WebSocket);
        }
        if lower != text {
            return Err(BadUpgrade::UpperCase(lower));
        }
        Ok(Self(lower.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a field or a pseudo-header means this name.
    pub fn is(&self, value: &[u8]) -> bool {
        self.0.as_bytes().eq_ignore_ascii_case(value)
    }
}

impl fmt::Display for UpgradeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a name cannot be listed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BadUpgrade {
    /// It is none.
    NotAName,
    /// It is not written in lower case; here it is.
    UpperCase(String),
    /// No port can list it.
    Never,
    /// Every HTTP port takes it already.
    WebSocket,
}

impl BadUpgrade {
    /// The way out.
    pub fn help(&self) -> String {
        match self {
            Self::NotAName => {
                format!("write a name such as tcp or spdy/3.1, of at most {MAX_NAME} characters")
            }
            Self::UpperCase(lower) => format!("write {lower}; callers may spell it as they like"),
            Self::Never => {
                "requests that follow such an upgrade could not be judged; declare the port's protocol \
                 as http2, grpc or tls if that is what it speaks"
                    .to_owned()
            }
            Self::WebSocket => "leave it out: WebSocket passes at every HTTP port".to_owned(),
        }
    }
}

impl fmt::Display for BadUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAName => "this is not the name of an upgrade",
            Self::UpperCase(_) => "names of upgrades are written in lower case",
            Self::Never => "this upgrade is never passed on",
            Self::WebSocket => "websocket is not listed",
        })
    }
}

impl std::error::Error for BadUpgrade {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["tcp", "spdy/3.1", "x-own.protocol", "httpx", "h2o"] {
            assert_eq!(UpgradeName::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "/", "a/", "/1", "a/b/c", "a b", "a,b", "tcp ", "t\u{e9}", "a\n", long.as_str()] {
            assert_eq!(UpgradeName::parse(bad), Err(BadUpgrade::NotAName), "{bad:?}");
        }
        for never in ["h2c", "h2", "h2c-14", "http/1.1", "HTTP/2.0", "https", "tls/1.0", "tls", "h3-29"] {
            assert_eq!(UpgradeName::parse(never), Err(BadUpgrade::Never), "{never}");
        }
        assert_eq!(UpgradeName::parse("websocket"), Err(BadUpgrade::WebSocket));
        assert_eq!(UpgradeName::parse("SPDY/3.1"), Err(BadUpgrade::UpperCase("spdy/3.1".to_owned())));
        assert!(UpgradeName::parse("spdy/3.1").unwrap().is(b"SPDY/3.1"));
        assert_eq!(Upgrade::parse("websocket"), Ok(Upgrade::WebSocket));
        assert_eq!(Upgrade::parse("WebSocket"), Err(BadUpgrade::UpperCase("websocket".to_owned())));
        assert_eq!(Upgrade::parse("websocket/13"), Err(BadUpgrade::UpperCase("websocket".to_owned())));
        assert_eq!(Upgrade::parse("spdy/3.1").unwrap().as_str(), "spdy/3.1");
        assert_eq!(Upgrade::parse("h2c"), Err(BadUpgrade::Never));
    }
}
