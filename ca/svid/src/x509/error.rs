//! Why a certificate is refused.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::revoked::{Hex, Revoked};
use crate::{IdError, SpiffeId, TrustDomain};

/// Which certificate of a chain is to blame.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Culprit {
    /// The first one, which is to be the SVID.
    Leaf,
    /// One between leaf and root, by its subject key id.
    IssuingCa(Vec<u8>),
    /// A root of the bundle, by its subject key id.
    Root(Vec<u8>),
    /// One of them.
    Unknown,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf => f.write_str("the leaf"),
            Self::IssuingCa(id) if id.is_empty() => f.write_str("an issuing CA without a key id"),
            Self::IssuingCa(id) => write!(f, "the issuing CA with the key id {}", Hex(id)),
            Self::Root(id) => write!(f, "the root with the key id {}", Hex(id)),
            Self::Unknown => f.write_str("a certificate of the chain"),
        }
    }
}

/// Why a chain is not a valid X.509-SVID of the peer. [`reason`](Self::reason) is the label for metrics; the text tells
/// the whole story and may quote ids, which are restricted to harmless characters.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum VerifyError {
    /// What is wrong is wrong with a certificate above the leaf.
    Authority {
        /// Which one.
        culprit: Culprit,
        /// What it is.
        error: Box<Self>,
    },
    /// The bytes are no certificate that this project reads; the text says in which way.
    BadEncoding(&'static str),
    /// The URI is no SPIFFE id of a workload.
    BadSpiffeId(IdError),
    /// The leaf is a certificate authority.
    CaAsLeaf,
    /// The chain is longer than any honest one.
    ChainTooLong(usize),
    /// The leaf is on the deny list of its trust domain.
    Denied(Revoked),
    /// A certificate of the path has expired.
    Expired {
        /// Which one.
        culprit: Culprit,
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
        /// Which one.
        culprit: Culprit,
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
    /// An authority on the taint list of its trust domain.
    Tainted,
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
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Authority { error, .. } => error.reason(),
            Self::BadEncoding(_) | Self::UnknownCriticalExtension | Self::Serial(_) => "bad_certificate",
            Self::BadSpiffeId(_) => "bad_spiffe_id",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::ChainTooLong(_) => "chain_too_long",
            Self::Denied(_) => "denied",
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
            Self::Tainted => "tainted",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::Untrusted(_) => "untrusted",
            Self::WrongPeer { .. } => "wrong_peer",
        }
    }
}

impl VerifyError {
    /// As being about an authority; what names its certificate itself stays as it is.
    pub(super) fn of(self, culprit: Culprit) -> Self {
        match self {
            Self::Authority { .. } | Self::Expired { .. } | Self::NotYetValid { .. } | Self::Untrusted(_) => {
                self
            }
            error if culprit == Culprit::Leaf => error,
            error => Self::Authority { culprit, error: Box::new(error) },
        }
    }

    /// What to do about it, for whoever runs the peer or the mesh; none if the text has said so.
    fn way_out(&self) -> Option<&'static str> {
        Some(match self {
            Self::Authority { error, .. } => return error.way_out(),
            Self::BadEncoding(_) | Self::Serial(_) => "issue it anew, by a CA that keeps to DER and RFC 5280",
            Self::CaAsLeaf => "present a certificate that the authority has issued, not its own",
            Self::ChainTooLong(_) => "send the leaf and the issuing CAs of its path only",
            Self::Denied(_) => "give the workload another certificate, or take the entry off the deny list",
            Self::Expired { .. } | Self::NotYetValid { .. } => "renew it, after comparing both clocks",
            Self::IssuerProfile(_) | Self::KeyIds(_) => {
                "issue the authority's certificate anew, as docs/identity.md has it"
            }
            Self::KeyType => "use a key of one of these kinds",
            Self::KeyUsage(_) => "issue the leaf with digitalSignature alone, serverAuth and clientAuth",
            Self::NoCertificate => "the peer must be a sidecar or have an SVID of its own",
            Self::NameConstraints
            | Self::OtherName(_)
            | Self::SelfSigned
            | Self::SeveralIds
            | Self::NoSpiffeId => "issue the leaf by the mesh's CA",
            Self::OtherTrustDomain { .. } => {
                "use the bundle of that trust domain, or have the authority certified anew"
            }
            Self::Tainted => "renew the leaf: its CA has another authority by now",
            Self::UnknownCriticalExtension => "leave the extension out, or do not mark it critical",
            Self::UnknownTrustDomain(_) => {
                "the mesh must hold that trust domain's bundle before it can believe its ids"
            }
            Self::Untrusted(_) => "compare the bundle in force with the roots of the peer's CA",
            Self::BadSpiffeId(_) | Self::WrongPeer { .. } => return None,
        })
    }

    /// Which rule is broken.
    fn rule(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority { culprit, error } => {
                write!(f, "{culprit}: ")?;
                error.rule(f)
            }
            Self::BadEncoding(what) => write!(f, "the certificate is malformed: {what}"),
            Self::BadSpiffeId(error) => {
                write!(f, "the certificate's URI is no SPIFFE id of a workload: {error}")
            }
            Self::CaAsLeaf => f.write_str("the leaf is a certificate authority, not an SVID"),
            Self::ChainTooLong(count) => write!(f, "the chain has {count} certificates, more than eight"),
            Self::Denied(entry) => write!(f, "the leaf is on the deny list of its trust domain, by {entry}"),
            Self::Expired { culprit, not_after, now } => write!(
                f,
                "{culprit} expired {} s ago (our clock says {})",
                apart(*not_after, *now),
                unix(*now)
            ),
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
            Self::NotYetValid { culprit, not_before, now } => write!(
                f,
                "{culprit} becomes valid only in {} s (our clock says {})",
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
            Self::Tainted => f.write_str("it is on the taint list of its trust domain"),
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

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule(f)?;
        match self.way_out() {
            Some(way_out) => write!(f, " ({way_out})"),
            None => Ok(()),
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
