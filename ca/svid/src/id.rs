//! SPIFFE ids, parsed once at the edge.
//!
//! The grammar is the SPIFFE-ID specification's, section 2: `spiffe://` trust domain, then path segments of
//! `[a-zA-Z0-9._-]`, none empty, `.` or `..`; no query, fragment, port, user information or percent-encoding; at most
//! 2,048 bytes, of which the trust domain takes at most 255. A URL library would accept and rewrite too much, so the
//! bytes are checked by hand and kept whole: two ids are equal when their bytes are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2_048;
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a trust domain: lower-case letters, digits, `.`, `-` and `_`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name (`prod.example`), not an id.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the control plane of this trust domain: `spiffe://<td>/postern/control`.
    pub fn control_plane(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{}/postern/control", self.0).into(), trust_domain: self.0.len() }
    }

    /// The id of the trust domain itself (`spiffe://<td>`, no path), as it stands in the certificates of its CAs.
    pub fn id(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

/// The id of a workload: a trust domain and a non-empty path. Cloning shares the text.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Length of the trust domain's name within `text`.
    trust_domain: usize,
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>/<path>`. An id without a path names a trust domain, not a workload, and is
    /// refused with [`IdError::NoPath`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() > MAX_ID {
            return Err(IdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        check_path(path)?;
        Ok(Self { text: text.into(), trust_domain: trust_domain.len() })
    }

    /// The id of a Kubernetes-style service account: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    pub fn service_account(
        td: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdError> {
        Self::parse(&format!("{SCHEME}{td}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain_name(&self) -> &str {
        &self.text[SCHEME.len()..SCHEME.len() + self.trust_domain]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain..]
    }

    /// Namespace and service account, if the path is exactly `/ns/<namespace>/sa/<service account>`.
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }

    /// Whether the path lies under `/postern/`, which is reserved for the mesh itself and never granted to a workload.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/postern" || self.path().starts_with("/postern/")
    }

    /// Whether this id belongs to `td`.
    pub fn is_member_of(&self, td: &TrustDomain) -> bool {
        self.trust_domain_name() == td.as_str()
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

/// Why a text is no SPIFFE id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum IdError {
    /// A path segment is empty, `.` or `..`, or the path ends with a slash.
    EmptyOrDotSegment,
    /// The trust domain's name is empty.
    EmptyTrustDomain,
    /// The path is missing: the id names a trust domain, not a workload.
    NoPath,
    /// A character that paths may not hold.
    PathCharacter(char),
    /// It does not begin with `spiffe://` in lower case.
    Scheme,
    /// Longer than 2,048 bytes.
    TooLong,
    /// A character that trust domains may not hold (upper case included).
    TrustDomainCharacter(char),
    /// The trust domain's name is longer than 255 bytes.
    TrustDomainTooLong,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyOrDotSegment => {
                f.write_str("a path segment is empty, '.' or '..' (write spiffe://<trust domain>/<a>/<b>, no slash at the end)")
            }
            Self::EmptyTrustDomain => f.write_str("the trust domain is empty (write spiffe://<trust domain>/<path>)"),
            Self::NoPath => f.write_str("the path is missing (a workload's id is spiffe://<trust domain>/<path>)"),
            Self::PathCharacter(c) => {
                write!(f, "{c:?} may not stand in a path (letters, digits, '.', '-' and '_' may)")
            }
            Self::Scheme => f.write_str("it must begin with spiffe://"),
            Self::TooLong => write!(f, "longer than {MAX_ID} bytes"),
            Self::TrustDomainCharacter(c) => {
                write!(f, "{c:?} may not stand in a trust domain (lower-case letters, digits, '.', '-' and '_' may)")
            }
            Self::TrustDomainTooLong => write!(f, "the trust domain is longer than {MAX_TRUST_DOMAIN} bytes"),
        }
    }
}

impl std::error::Error for IdError {}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::EmptyTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err(IdError::TrustDomainTooLong);
    }
    match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        Some(c) => Err(IdError::TrustDomainCharacter(c)),
        None => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), IdError> {
    let Some(segments) = path.strip_prefix('/') else { return Err(IdError::NoPath) };
    for segment in segments.split('/') {
        if let Some(c) =
            segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        {
            return Err(IdError::PathCharacter(c));
        }
        if matches!(segment, "" | "." | "..") {
            return Err(IdError::EmptyOrDotSegment);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let id = SpiffeId::parse("spiffe://prod.example/ns/shop/sa/orders").unwrap();
        assert_eq!(id.trust_domain_name(), "prod.example");
        assert_eq!(id.path(), "/ns/shop/sa/orders");
        assert_eq!(id.namespace_and_account(), Some(("shop", "orders")));
        assert!(!id.is_reserved());
        let control = id.trust_domain().control_plane();
        assert_eq!(SpiffeId::parse(control.as_str()).as_ref(), Ok(&control));
        assert!(control.is_reserved());
        assert_eq!(control.namespace_and_account(), None);
    }

    #[test]
    fn refused() {
        let long = format!("spiffe://td/{}", "a".repeat(MAX_ID));
        let long_td = format!("spiffe://{}/a", "a".repeat(256));
        for (text, error) in [
            ("", IdError::Scheme),
            ("SPIFFE://td/a", IdError::Scheme),
            ("https://td/a", IdError::Scheme),
            ("spiffe:///a", IdError::EmptyTrustDomain),
            ("spiffe://td", IdError::NoPath),
            ("spiffe://td/", IdError::EmptyOrDotSegment),
            ("spiffe://td/a/", IdError::EmptyOrDotSegment),
            ("spiffe://td//a", IdError::EmptyOrDotSegment),
            ("spiffe://td/./a", IdError::EmptyOrDotSegment),
            ("spiffe://td/a/..", IdError::EmptyOrDotSegment),
            ("spiffe://Td/a", IdError::TrustDomainCharacter('T')),
            ("spiffe://td:80/a", IdError::TrustDomainCharacter(':')),
            ("spiffe://u@td/a", IdError::TrustDomainCharacter('@')),
            ("spiffe://td?x", IdError::TrustDomainCharacter('?')),
            ("spiffe://td/a?x", IdError::PathCharacter('?')),
            ("spiffe://td/a#x", IdError::PathCharacter('#')),
            ("spiffe://td/%61", IdError::PathCharacter('%')),
            ("spiffe://td/a\0", IdError::PathCharacter('\0')),
            ("spiffe://td/ä", IdError::PathCharacter('ä')),
            (&long, IdError::TooLong),
            (&long_td, IdError::TrustDomainTooLong),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
    }
}
