//! Verification of a peer's chain.
//!
//! The id in the leaf comes first: its trust domain selects the one bundle whose roots may vouch for it. Then the lint,
//! which is cheap, then webpki's path building, which checks signatures, dates, path lengths and name constraints, with
//! our rules for authorities applied to each candidate path: a path that breaks them is skipped, not the whole chain.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::Role;
use super::bundle::{Bundle, Bundles};
use super::cert::{Facts, Read};
use super::error::{Culprit, VerifyError};
use super::lint;
use super::signatures::SIGNATURES;
use crate::SpiffeId;

/// Leaf, six issuing CAs (webpki's own limit) and the root, which some peers send along.
const MAX_CHAIN: usize = 8;

/// A verified peer.
#[derive(Clone, Eq, PartialEq)]
pub struct PeerSvid {
    id: SpiffeId,
    serial: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
    issuer_key_id: Vec<u8>,
    key: [u8; 32],
}

impl PeerSvid {
    /// The id.
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's serial number, big-endian, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// When the leaf begins to be valid.
    pub const fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second in which the leaf is valid.
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The key identifier of the issuing CA.
    pub fn issuer_key_id(&self) -> &[u8] {
        &self.issuer_key_id
    }

    /// SHA-256 over the leaf's public key (SubjectPublicKeyInfo).
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// From a leaf that has passed the lint, which demands the authority key id.
    pub(super) fn from_leaf(id: SpiffeId, facts: Facts) -> Self {
        let key = facts.key_digest();
        Self {
            id,
            key,
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
            issuer_key_id: facts.authority_key_id.map(|(id, _)| id).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for PeerSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSvid")
            .field("id", &self.id)
            .field("serial", &hex(&self.serial))
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("issuer_key_id", &hex(&self.issuer_key_id))
            .finish()
    }
}

/// Verifies `chain`, leaf first, as presented by a peer in `role` at `now`. Certificates after the leaf are only
/// candidates for the path: their order does not matter and superfluous ones do no harm.
pub fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    role: Role,
    now: SystemTime,
) -> Result<PeerSvid, VerifyError> {
    verify_for(chain, bundles, &[role], now)
}

/// As [`verify`] in both roles, at the price of one: the signatures of a path are the same in each.
pub fn verify_both(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    now: SystemTime,
) -> Result<PeerSvid, VerifyError> {
    verify_for(chain, bundles, &[Role::Server, Role::Client], now)
}

fn verify_for(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    roles: &[Role],
    now: SystemTime,
) -> Result<PeerSvid, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::ChainTooLong(chain.len()));
    }
    let facts = Facts::parse(leaf)?;
    if facts.is_self_issued() {
        return Err(VerifyError::SelfSigned);
    }
    let id = lint::spiffe_id(&facts)?;
    let td = id.trust_domain();
    let bundle = bundles
        .of_trust_domain(&td)
        .ok_or_else(|| VerifyError::UnknownTrustDomain(td.as_str().to_owned()))?;
    lint::leaf(&facts, roles)?;
    bundle.revocations().check_leaf(&facts, &id)?;
    path(Facts::parse, chain, &facts, bundle, roles, now)?;
    Ok(PeerSvid::from_leaf(id, facts))
}

/// Looks for a path from the leaf, the first of `chain`, to a root of `bundle` that keeps all rules for those above it.
pub(super) fn path(
    read: Read,
    chain: &[CertificateDer<'_>],
    facts: &Facts,
    bundle: &Bundle,
    roles: &[Role],
    now: SystemTime,
) -> Result<(), VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    let refused = RefCell::new(None);
    let check = |path: &VerifiedPath<'_>| {
        check_path(read, path, facts, bundle, roles, now).map_err(|error| {
            *refused.borrow_mut() = Some(error);
            webpki::Error::UnknownIssuer
        })
    };
    let anchors: Vec<TrustAnchor<'_>> = bundle.anchors().iter().map(|root| root.anchor.clone()).collect();
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| from_webpki(error, chain, now))?;
    // webpki asks for one purpose; `check_path` asks for the rest.
    let usage = match roles.first() {
        Some(Role::Client) => KeyUsage::client_auth(),
        Some(Role::Server) | None => KeyUsage::server_auth(),
    };
    match leaf.verify_for_usage(SIGNATURES, &anchors, intermediates, unix(now), usage, None, Some(&check)) {
        Ok(_) => Ok(()),
        Err(error) => Err(refused.take().unwrap_or_else(|| from_webpki(error, chain, now))),
    }
}

/// Verifies once more a `chain` that has verified at `then`, after `bundles` have changed: only trust is asked about, not
/// time. What the passing of time does to a connection is its owner's business, and a leaf or an issuing CA that has ended
/// since must not look like a root that was taken away. So the chain is good if it verifies now, or at its end, or as of
/// `then`.
pub fn verify_again(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    role: Role,
    then: SystemTime,
    now: SystemTime,
) -> Result<PeerSvid, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    let end = Facts::parse(leaf)?.not_after;
    // A root that was renewed under its old key may have begun after `then`.
    verify(chain, bundles, role, now.min(end)).or_else(|_| verify(chain, bundles, role, then))
}

/// Our rules for everything above the leaf.
fn check_path(
    read: Read,
    path: &VerifiedPath<'_>,
    leaf: &Facts,
    bundle: &Bundle,
    roles: &[Role],
    now: SystemTime,
) -> Result<(), VerifyError> {
    let mut authorities = Vec::new();
    for authority in path.intermediate_certificates() {
        let facts = read(&authority.der()).map_err(|error| error.of(Culprit::IssuingCa(Vec::new())))?;
        lint::issuing_ca(&facts, bundle.trust_domain())
            .and_then(|()| bundle.revocations().check_authority(&facts))
            .and_then(|()| {
                roles.iter().skip(1).try_for_each(|role| lint::purposes_of_authority(&facts, *role))
            })
            .map_err(|error| error.of(Culprit::IssuingCa(facts.own_key_id())))?;
        authorities.push(facts);
    }
    let (mut child, mut culprit) = (leaf, Culprit::Leaf);
    for authority in &authorities {
        lint::linked(child, authority).map_err(|error| error.of(culprit))?;
        (child, culprit) = (authority, Culprit::IssuingCa(authority.own_key_id()));
    }
    // Two roots may share name and key: a renewed one and its expired predecessor. One that is valid will do.
    let mut error = VerifyError::Untrusted("the root of the path is not in the bundle".to_owned());
    for root in bundle.anchors().iter().filter(|root| root.anchor == *path.anchor()) {
        let checked = check_root(&root.facts, authorities.len(), roles, now)
            .and_then(|()| bundle.revocations().check_authority(&root.facts))
            .map_err(|error| error.of(Culprit::Root(root.facts.own_key_id())))
            .and_then(|()| lint::linked(child, &root.facts).map_err(|error| error.of(culprit.clone())));
        match checked {
            Ok(()) => return Ok(()),
            Err(found) => error = found,
        }
    }
    Err(error)
}

/// webpki takes an anchor for a name and a key: its dates, its path length and its purposes are ours to check.
fn check_root(root: &Facts, below: usize, roles: &[Role], now: SystemTime) -> Result<(), VerifyError> {
    let culprit = || Culprit::Root(root.own_key_id());
    if now < root.not_before {
        return Err(VerifyError::NotYetValid { culprit: culprit(), not_before: root.not_before, now });
    }
    if now >= root.not_after + Duration::from_secs(1) {
        return Err(VerifyError::Expired { culprit: culprit(), not_after: root.not_after, now });
    }
    let limit = root.basic_constraints.and_then(|(value, _)| value.path_length);
    if limit.is_some_and(|limit| below > usize::try_from(limit).unwrap_or(usize::MAX)) {
        return Err(VerifyError::IssuerProfile("the path is longer than its root allows"));
    }
    roles.iter().try_for_each(|role| lint::purposes_of_authority(root, *role))
}

fn from_webpki(error: webpki::Error, chain: &[CertificateDer<'_>], now: SystemTime) -> VerifyError {
    use webpki::Error as E;
    let time = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    let untrusted = |what: &str| VerifyError::Untrusted(what.to_owned());
    match error {
        E::CertExpired { not_after, .. } => {
            let not_after = time(not_after);
            let culprit = culprit(chain, |facts| facts.not_after == not_after);
            VerifyError::Expired { culprit, not_after, now }
        }
        E::CertNotValidYet { not_before, .. } => {
            let not_before = time(not_before);
            let culprit = culprit(chain, |facts| facts.not_before == not_before);
            VerifyError::NotYetValid { culprit, not_before, now }
        }
        E::BadDer
        | E::BadDerTime
        | E::TrailingData(_)
        | E::MalformedExtensions
        | E::ExtensionValueInvalid => VerifyError::BadEncoding("it breaks DER"),
        E::InvalidCertValidity => VerifyError::BadEncoding("it ends before it begins"),
        E::InvalidSerialNumber => VerifyError::Serial("no positive number of at most 20 octets"),
        E::UnsupportedCertVersion => VerifyError::BadEncoding("not an X.509 version 3 certificate"),
        E::SignatureAlgorithmMismatch => VerifyError::BadEncoding("it names two signature algorithms"),
        E::UnsupportedCriticalExtension => VerifyError::UnknownCriticalExtension,
        E::CaUsedAsEndEntity => VerifyError::CaAsLeaf,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            VerifyError::KeyUsage("a certificate of the path is not for this purpose")
        }
        E::UnknownIssuer => untrusted("no root of the bundle issued it"),
        E::InvalidSignatureForPublicKey => untrusted("a signature is wrong"),
        E::EndEntityUsedAsCa => untrusted("what issued it is no authority"),
        E::PathLenConstraintViolated => untrusted("it is longer than an issuing CA on it allows"),
        E::NameConstraintViolation => untrusted("an authority on it excludes the leaf's name"),
        E::UnsupportedNameType | E::MalformedNameConstraint => {
            untrusted("an authority on it constrains names in a way that nobody here understands")
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            untrusted("a signature on it is neither ECDSA with P-256 or P-384 nor Ed25519")
        }
        E::MaximumPathDepthExceeded => untrusted("more than six issuing CAs"),
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded => untrusted("looking for it takes too long"),
        other => VerifyError::Untrusted(format!("{other:?}")),
    }
}

/// The certificate that webpki means by a date.
fn culprit(chain: &[CertificateDer<'_>], is: impl Fn(&Facts) -> bool) -> Culprit {
    for (at, certificate) in chain.iter().enumerate() {
        match Facts::parse(certificate) {
            Ok(facts) if is(&facts) && at == 0 => return Culprit::Leaf,
            Ok(facts) if is(&facts) => return Culprit::IssuingCa(facts.own_key_id()),
            _ => {}
        }
    }
    Culprit::Unknown
}

/// A clock before 1970 makes every certificate not valid yet.
fn unix(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
