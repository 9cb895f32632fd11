//! Lineages: the chain of certificates that began with one attestation, so that a copied key shows itself.
//!
//! A renewal names its predecessor, which must be the newest certificate of its lineage. The one before is accepted too, because a
//! reply can get lost; the newest is then abandoned, and whoever presents it later proves that two parties hold keys of one
//! lineage. Nobody can tell which of them is the right one, so the whole lineage renews no more and an operator is called.

use std::fmt;
use std::time::{Duration, SystemTime};

use postern_svid::SpiffeId;

/// How long an SVID alone may go on renewing after the attestation it stems from.
pub const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Names a lineage.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LineageId(pub(crate) [u8; 16]);

impl LineageId {
    /// A fresh one.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl LineageId {
    /// One that was printed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Debug for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex(&self.0))
    }
}

/// How a lineage began.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Attestor {
    /// With a join token, which cannot be presented again: its identities renew by their SVID.
    JoinToken,
    /// Within the control plane itself, for its own certificate.
    Own,
    /// With a cluster's service account token.
    Kubernetes,
    /// With an OIDC provider's token.
    Oidc,
    /// With the key of a certificate that somebody else gave.
    X509Pop,
    /// As a process of this machine, of which the kernel tells.
    Unix,
}

impl Attestor {
    /// As it stands in the store and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join_token",
            Self::Own => "own",
            Self::Kubernetes => "kubernetes",
            Self::Oidc => "oidc",
            Self::X509Pop => "x509pop",
            Self::Unix => "unix",
        }
    }

    /// As it stands in selectors and templates of ids.
    pub fn selector(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s",
            other => other.as_str(),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.as_str() == text)
    }

    /// As it stands in serial numbers.
    pub(crate) fn number(self) -> u8 {
        Self::ALL.iter().zip(0..).find(|(one, _)| **one == self).map_or(0, |(_, number)| number)
    }

    pub(crate) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// A later one comes last: serial numbers have the numbers.
    pub(crate) const ALL: [Self; 6] =
        [Self::JoinToken, Self::Own, Self::Kubernetes, Self::Oidc, Self::X509Pop, Self::Unix];
}

/// A lineage as the store holds it.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Its name.
    pub id: LineageId,
    /// The identity of all its certificates.
    pub spiffe_id: SpiffeId,
    /// How it began.
    pub attestor: Attestor,
    /// When it began.
    pub attested: SystemTime,
    /// The newest certificate.
    pub newest: Vec<u8>,
    /// The one that the newest was renewed from.
    pub parent: Option<Vec<u8>>,
    /// When a fork was found.
    pub forked: Option<SystemTime>,
}

/// What a lineage says to a renewal by one of its certificates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// The predecessor is the newest: the usual way.
    Next,
    /// The predecessor is the newest's parent: the reply with the newest got lost.
    Again,
}

/// Why a lineage renews no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    /// A certificate was presented that two others have followed, or that was abandoned: two parties hold keys.
    Fork,
    /// A fork was found earlier.
    Forked,
    /// It did not begin with a join token: the attestation has to be repeated.
    Attestor,
    /// The attestation is too old.
    TooOld,
}

impl Lineage {
    /// Judges a renewal by the certificate `predecessor` of this lineage, with or without the attestation `repeated`.
    pub fn judge(&self, predecessor: &[u8], repeated: bool, now: SystemTime) -> Result<Step, Refusal> {
        if self.forked.is_some() {
            return Err(Refusal::Forked);
        }
        if !repeated && self.attestor != Attestor::JoinToken {
            return Err(Refusal::Attestor);
        }
        // A clock that went back makes an attestation of the future, not an old one.
        if !repeated && now.duration_since(self.attested).unwrap_or_default() > MAX_AGE {
            return Err(Refusal::TooOld);
        }
        if predecessor == self.newest {
            Ok(Step::Next)
        } else if self.parent.as_deref() == Some(predecessor) {
            Ok(Step::Again)
        } else {
            Err(Refusal::Fork)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_or_its_parent() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let mut lineage = Lineage {
            id: LineageId([1; 16]),
            spiffe_id: SpiffeId::parse("spiffe://td/a").unwrap(),
            attestor: Attestor::JoinToken,
            attested: start,
            newest: vec![3],
            parent: Some(vec![2]),
            forked: None,
        };
        assert_eq!(lineage.judge(&[3], false, start), Ok(Step::Next));
        assert_eq!(lineage.judge(&[2], false, start), Ok(Step::Again));
        assert_eq!(lineage.judge(&[1], false, start), Err(Refusal::Fork));
        assert_eq!(lineage.judge(&[3], false, start + MAX_AGE), Ok(Step::Next));
        assert_eq!(
            lineage.judge(&[3], false, start + MAX_AGE + Duration::from_secs(1)),
            Err(Refusal::TooOld)
        );
        assert_eq!(lineage.judge(&[3], false, start - MAX_AGE * 2), Ok(Step::Next));
        lineage.attestor = Attestor::Kubernetes;
        assert_eq!(lineage.judge(&[3], false, start), Err(Refusal::Attestor));
        assert_eq!(lineage.judge(&[3], true, start + MAX_AGE * 2), Ok(Step::Next));
        assert_eq!(lineage.judge(&[1], true, start), Err(Refusal::Fork));
        lineage.attestor = Attestor::JoinToken;
        lineage.forked = Some(start);
        assert_eq!(lineage.judge(&[3], false, start), Err(Refusal::Forked));
        assert_eq!(lineage.judge(&[3], true, start), Err(Refusal::Forked));
    }
}
