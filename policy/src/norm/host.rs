//! Hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::NormError;

/// DNS: a name has at most 253 bytes, a label at most 63.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A host with an optional port: lower case, without the root's dot, addresses in their one canonical spelling.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CanonHost {
    name: Box<str>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl CanonHost {
    /// Parses a `Host` field or an authority: `name`, `name:port`, `1.2.3.4`, `[::1]:port`.
    ///
    /// What different programs would read differently is refused rather than guessed: user information, lists,
    /// escapes, zone ids, an empty port, and numbers that some resolvers take for addresses (`0x7f.1`, `127.1`).
    pub fn parse(text: &str) -> Result<Self, NormError> {
        if text.is_empty() {
            return Err(NormError::HostEmpty);
        }
        // User information, whose colon is no port's.
        if text.contains('@') {
            return Err(NormError::HostCharacter);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or(NormError::HostAddress)?;
            let address: Ipv6Addr = inside.parse().map_err(|_| NormError::HostAddress)?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(parse_port(port)?),
                None if after.is_empty() => None,
                None => return Err(NormError::HostCharacter),
            };
            return Ok(Self::from_address(IpAddr::V6(address), port));
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(parse_port(port)?)),
            None => (text, None),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        check_name(name)?;
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::from_address(IpAddr::V4(address), port));
        }
        if looks_numeric(name) {
            return Err(NormError::HostAddress);
        }
        Ok(Self { name: name.to_ascii_lowercase().into(), address: None, port })
    }

    /// An address as a host.
    pub fn from_address(address: IpAddr, port: Option<u16>) -> Self {
        let address = address.to_canonical();
        Self { name: address.to_string().into(), address: Some(address), port }
    }

    /// Parses a host that is forwarded as it came: only a canonical one is judged and forwarded in one spelling.
    pub fn parse_raw(text: &str) -> Result<Self, NormError> {
        Self::parse(text)
            .and_then(|host| if host.to_string() == text { Ok(host) } else { Err(NormError::HostRaw) })
    }

    /// The name or the address, without brackets and port.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The port, if one was given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for CanonHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            _ => f.write_str(&self.name)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn parse_port(text: &str) -> Result<u16, NormError> {
    // `u16::from_str` takes a leading '+'.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NormError::HostPort);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(NormError::HostPort),
        Ok(port) => Ok(port),
    }
}

fn check_name(name: &str) -> Result<(), NormError> {
    if name.is_empty() {
        return Err(NormError::HostEmpty);
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(NormError::HostCharacter);
    }
    if name.len() > MAX_NAME || name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        return Err(NormError::HostLabel);
    }
    Ok(())
}

/// The last label alone decides whether a resolver takes a name for a number (WHATWG URL, "ends in a number").
fn looks_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical() {
        for (text, canonical, name, port) in [
            ("EX.com.:8080", "ex.com:8080", "ex.com", Some(8080)),
            ("ex.com", "ex.com", "ex.com", None),
            ("a_b.c-d", "a_b.c-d", "a_b.c-d", None),
            ("10.1.2.3:1", "10.1.2.3:1", "10.1.2.3", Some(1)),
            ("[::ffff:10.1.2.3]", "10.1.2.3", "10.1.2.3", None),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("1e100.net", "1e100.net", "1e100.net", None),
        ] {
            let host = CanonHost::parse(text).unwrap();
            assert_eq!(
                (host.to_string().as_str(), host.name(), host.port()),
                (canonical, name, port),
                "{text}"
            );
            assert_eq!(CanonHost::parse(canonical).as_ref(), Ok(&host));
            assert_eq!(CanonHost::parse_raw(canonical).as_ref(), Ok(&host));
            assert_eq!(CanonHost::parse_raw(text).is_ok(), text == canonical, "{text}");
        }
    }

    #[test]
    fn refused() {
        let long = format!("{}.example", "a".repeat(64));
        for (text, error) in [
            ("", NormError::HostEmpty),
            (":80", NormError::HostEmpty),
            (".", NormError::HostEmpty),
            ("ex.com..", NormError::HostLabel),
            ("a..b", NormError::HostLabel),
            (&long, NormError::HostLabel),
            ("u@ex.com", NormError::HostCharacter),
            ("u:p@ex.com", NormError::HostCharacter),
            ("ex.com, b", NormError::HostCharacter),
            ("ex com", NormError::HostCharacter),
            ("ex%2ecom", NormError::HostCharacter),
            ("é.com", NormError::HostCharacter),
            ("ex.com:", NormError::HostPort),
            ("ex.com:0", NormError::HostPort),
            ("ex.com:+80", NormError::HostPort),
            ("ex.com:65536", NormError::HostPort),
            ("ex.com:80:80", NormError::HostPort),
            ("::1", NormError::HostPort),
            ("[::1", NormError::HostAddress),
            ("[fe80::1%eth0]", NormError::HostAddress),
            ("[::1]x", NormError::HostCharacter),
            ("127.1", NormError::HostAddress),
            ("010.0.0.1", NormError::HostAddress),
            ("0x7f000001", NormError::HostAddress),
            ("2130706433", NormError::HostAddress),
            ("a.0x1", NormError::HostAddress),
        ] {
            assert_eq!(CanonHost::parse(text), Err(error), "{text:?}");
        }
    }
}
