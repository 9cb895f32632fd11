//! Why a certificate is refused.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{IdError, SpiffeId, TrustDomain};

/// Why a chain is not a valid X.509-SVID of the peer. [`reason`](Self::reason) is the label for metrics; the text tells
/// the whole story and may quote ids, which are restricted to harmless characters.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum VerifyError {
    /// The bytes are no certificate that this project reads; the text says in which way.
    BadEncoding(&'static str),
    /// The URI is no SPIFFE id of a workload.
    BadSpiffeId(IdError),
    /// The leaf is a certificate authority.
    CaAsLeaf,
    /// The chain is longer than any honest one.
    ChainTooLong(usize),
    /// A certificate of the path has expired.
    Expired {
        /// When it did.
        not_after: SystemTime,
        /// The time of the check.
        now: SystemTime,
    },
    /// An issuing CA or root lacks what makes it one.
    IssuerProfile(&'static str),
    /// Subject or authority key identifiers are missing, critical or do not link the path.
    KeyIds(&'static str),
    /// The public key is not P-256, P-384 or Ed25519.
    KeyType,
    /// Key usage or extended key usage do not allow this use.
    KeyUsage(&'static str),
    /// A leaf with name constraints.
    NameConstraints,
    /// The peer sent no certificate.
    NoCertificate,
    /// No URI in the subject alternative name.
    NoSpiffeId,
    /// A certificate of the path is not valid yet.
    NotYetValid {
        /// When it will be.
        not_before: SystemTime,
        /// The time of the check.
        now: SystemTime,
    },
    /// A root or issuing CA that names another trust domain than the one it is to vouch for.
    OtherTrustDomain {
        /// Whose it is; none if what it names is no trust domain.
        named: Option<TrustDomain>,
        /// Whose it should be.
        expected: TrustDomain,
    },
    /// The subject alternative name holds another type of name beside or instead of the URI.
    OtherName(&'static str),
    /// The leaf names itself as its issuer.
    SelfSigned,
    /// The serial number breaks RFC 5280.
    Serial(&'static str),
    /// More than one URI in the subject alternative name.
    SeveralIds,
    /// A critical extension that nobody here understands.
    UnknownCriticalExtension,
    /// No bundle for the trust domain of the leaf.
    UnknownTrustDomain(String),
    /// No path from the leaf to a root of its trust domain.
    Untrusted(String),
    /// A valid SVID, but of somebody else.
    WrongPeer {
        /// Who it is.
        actual: SpiffeId,
        /// Who was to be reached.
        expected: Vec<SpiffeId>,
    },
}

impl VerifyError {
    /// A short constant, fit for a metric label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::BadEncoding(_) | Self::UnknownCriticalExtension | Self::Serial(_) => "bad_certificate",
            Self::BadSpiffeId(_) => "bad_spiffe_id",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::ChainTooLong(_) => "chain_too_long",
            Self::Expired { .. } => "expired",
            Self::IssuerProfile(_) | Self::KeyIds(_) | Self::OtherTrustDomain { .. } => "issuer_profile",
            Self::KeyType => "key_type",
            Self::KeyUsage(_) => "key_usage",
            Self::NameConstraints => "name_constraints",
            Self::NoCertificate => "no_certificate",
            Self::NoSpiffeId => "no_spiffe_id",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::OtherName(_) => "other_name",
            Self::SelfSigned => "self_signed",
            Self::SeveralIds => "several_ids",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::Untrusted(_) => "untrusted",
            Self::WrongPeer { .. } => "wrong_peer",
        }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadEncoding(what) => write!(f, "the certificate is malformed: {what}"),
            Self::BadSpiffeId(error) => {
                write!(f, "the certificate's URI is no SPIFFE id of a workload: {error}")
            }
            Self::CaAsLeaf => f.write_str("the leaf is a certificate authority, not an SVID"),
            Self::ChainTooLong(count) => write!(f, "the chain has {count} certificates"),
            Self::Expired { not_after, now } => {
                write!(
                    f,
                    "a certificate of the chain expired {} s ago (our clock says {})",
                    apart(*not_after, *now),
                    unix(*now)
                )
            }
            Self::IssuerProfile(what) => write!(f, "an issuing certificate is unfit: {what}"),
            Self::OtherTrustDomain { named: Some(named), expected } => {
                write!(f, "an issuing certificate is of the trust domain {named}, not of {expected}")
            }
            Self::OtherTrustDomain { named: None, expected } => {
                write!(f, "an issuing certificate names something else than its trust domain, {expected}")
            }
            Self::KeyIds(what) => write!(f, "key identifiers: {what}"),
            Self::KeyType => f.write_str("the public key is not P-256, P-384 or Ed25519"),
            Self::KeyUsage(what) => write!(f, "key usage: {what}"),
            Self::NameConstraints => {
                f.write_str("the leaf has name constraints, which only an issuing CA may have")
            }
            Self::NoCertificate => f.write_str("no certificate was presented"),
            Self::NoSpiffeId => {
                f.write_str("the certificate has no URI in its subject alternative name, so no SPIFFE id")
            }
            Self::NotYetValid { not_before, now } => write!(
                f,
                "a certificate of the chain becomes valid only in {} s (our clock says {}; compare both clocks)",
                apart(*now, *not_before),
                unix(*now)
            ),
            Self::OtherName(kind) => {
                write!(
                    f,
                    "the subject alternative name holds a name of type {kind}; an SVID here has one URI and nothing else"
                )
            }
            Self::SelfSigned => f.write_str("the certificate is self-signed"),
            Self::Serial(what) => write!(f, "the serial number is {what}"),
            Self::SeveralIds => {
                f.write_str("the certificate has more than one URI in its subject alternative name")
            }
            Self::UnknownCriticalExtension => f.write_str("a critical extension is not understood"),
            Self::UnknownTrustDomain(name) => {
                write!(f, "there is no trust bundle for the trust domain {name}")
            }
            Self::Untrusted(detail) => write!(f, "no path to a root of the leaf's trust domain: {detail}"),
            Self::WrongPeer { actual, expected } => {
                write!(f, "the peer is {actual}, expected ")?;
                for (at, id) in expected.iter().enumerate() {
                    write!(f, "{}{id}", if at == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for VerifyError {}

fn apart(earlier: SystemTime, later: SystemTime) -> u64 {
    later.duration_since(earlier).map_or(0, |apart| apart.as_secs())
}

fn unix(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{seconds} s since 1970")
}
