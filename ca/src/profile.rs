//! The only place that builds certificates.
//!
//! Four shapes, and no way to ask for a fifth: root, tier, issuing CA, leaf. Nothing of a requester's goes in but a public
//! key that [`crate::csr`] has verified; every other field is decided here. The CA library is never shown a request:
//! it copies whatever a request asks for, a CA flag, DNS names and a validity of two thousand years included.

mod signer;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use postern_svid::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
    SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::csr::VerifiedKey;

pub use signer::Signer;
pub(crate) use signer::{algorithm, subject_key_id};

/// Clocks of a mesh differ; a certificate is valid a little before its time. Never more than a tenth of its life, or a
/// short-lived one would be renewed in a loop by whoever counts half its life from notBefore.
const MAX_BACKDATE: Duration = Duration::from_secs(120);

/// The algorithm of root keys.
pub static ROOT_KEY: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P384_SHA384;
/// The algorithm of tiers' keys, which sign as rarely as a root's.
pub static TIER_KEY: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P384_SHA384;
/// The algorithm of issuing CAs' keys.
pub static ISSUING_KEY: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

/// From when until when, in whole seconds as X.509 counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// Backdated by min(120 s, a tenth of the life).
    pub not_before: SystemTime,
    /// The last second.
    pub not_after: SystemTime,
}

impl Validity {
    /// A life of `ttl` from `now`.
    pub fn from_now(now: SystemTime, ttl: Duration) -> Self {
        let now = whole_seconds(now);
        let not_before = now.checked_sub(MAX_BACKDATE.min(ttl / 10)).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { not_before: whole_seconds(not_before), not_after: now + Duration::from_secs(ttl.as_secs()) }
    }

    /// The same, ending no later than `end`.
    #[must_use]
    pub fn ending_by(self, end: SystemTime) -> Self {
        Self { not_after: self.not_after.min(whole_seconds(end)), ..self }
    }
}

/// 16 bytes: the first is 0x40 to 0x7f, so the number is positive, never zero and always encoded in 16 octets; the other 126 bits
/// come from the system's random source. Counting up, or hashing the key, would give one number to two certificates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A fresh one.
    pub fn random() -> Result<Self, ProfileError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| ProfileError::Random)?;
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Ok(Self(bytes))
    }

    /// One whose content tells something; as unlike any other as its random part is.
    pub(crate) fn of(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Big-endian, as it stands in the certificate.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

const CA_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

/// A fresh unique part for a CA's name. Two CAs of one name would make path building try the wrong key and report the
/// wrong cause.
pub fn ca_label() -> Result<String, ProfileError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| ProfileError::Random)?;
    Ok(crate::hex(&bytes))
}

/// The key identifier that certificates of `key` carry.
pub fn key_id(key: &impl PublicKeyData) -> Vec<u8> {
    CertificateParams::default().key_identifier(key)
}

/// A self-signed root: path length 1, so that it can only sign issuing CAs that sign leaves.
pub fn root(
    td: &TrustDomain,
    label: &str,
    key: &impl SigningKey,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    self_signed(td, label, 1, key, validity)
}

/// A self-signed root whose key is kept offline: path length 2, for the tier between it and the issuing CAs.
pub fn offline_root(
    td: &TrustDomain,
    label: &str,
    key: &impl SigningKey,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    self_signed(td, label, 2, key, validity)
}

fn self_signed(
    td: &TrustDomain,
    label: &str,
    path_length: u8,
    key: &impl SigningKey,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    let mut params = ca_params(td, label, path_length, validity)?;
    // Some verifiers demand it on roots too; it names the root itself.
    params.use_authority_key_identifier_extension = true;
    Ok(params.self_signed(key)?.der().clone())
}

/// A tier under `root`, which is offline: path length 1, so that it can only sign issuing CAs that sign leaves, and no DNS name
/// and no IP address below it, as with an issuing CA.
pub fn tier(
    td: &TrustDomain,
    label: &str,
    key: &impl PublicKeyData,
    root: &Signer,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    below(td, label, 1, key, root, validity)
}

/// A request for a tier, with the name and the URI that its certificate is to have, and nothing else.
pub fn tier_request(td: &TrustDomain, label: &str, key: &impl SigningKey) -> Result<Vec<u8>, ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(td, label)?;
    params.subject_alt_names = vec![uri(&td.id())?];
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// An issuing CA under `parent`, a root or a tier: path length 0, and no DNS name and no IP address may stand below it. A stolen mesh CA is
/// worthless for host names that way. URI constraints would be the natural ones; the verifier under rustls refuses every
/// chain that holds one.
pub fn issuing(
    td: &TrustDomain,
    label: &str,
    key: &impl PublicKeyData,
    parent: &Signer,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    below(td, label, 0, key, parent, validity)
}

fn below(
    td: &TrustDomain,
    label: &str,
    path_length: u8,
    key: &impl PublicKeyData,
    parent: &Signer,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    let mut params = ca_params(td, label, path_length, validity)?;
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(String::new()),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::from([0; 4]), 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::from([0; 16]), 0)),
        ],
    });
    Ok(params.signed_by(key, &parent.issuer)?.der().clone())
}

/// An X.509-SVID: exactly one name, the URI of `id`; empty subject, so that the name is critical; for both ends of TLS.
pub fn leaf(
    id: &SpiffeId,
    key: &VerifiedKey,
    issuing: &Signer,
    validity: Validity,
    serial: Serial,
) -> Result<CertificateDer<'static>, ProfileError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, validity);
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id.as_str())?];
    // Without basicConstraints some SPIFFE libraries refuse a leaf.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, &issuing.issuer)?.der().clone())
}

/// Why a certificate could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The certificate library refused.
    #[error("building the certificate failed: {0}")]
    Build(#[from] rcgen::Error),
    /// A certificate of a CA that nothing can be signed under.
    #[error("nothing can be signed under this certificate: {0}")]
    Issuer(&'static str),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
}

fn ca_params(
    td: &TrustDomain,
    label: &str,
    path_length: u8,
    validity: Validity,
) -> Result<CertificateParams, ProfileError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, validity);
    params.serial_number = Some(SerialNumber::from_slice(Serial::random()?.as_bytes()));
    params.distinguished_name = ca_name(td, label)?;
    params.subject_alt_names = vec![uri(&td.id())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = CA_USAGES.to_vec();
    Ok(params)
}

fn ca_name(td: &TrustDomain, label: &str) -> Result<DistinguishedName, ProfileError> {
    let mut name = DistinguishedName::new();
    // X.520 bounds an organization's name at 64; the whole trust domain stands in the URI anyway.
    let organization = td.as_str().get(..64).unwrap_or(td.as_str());
    name.push(DnType::OrganizationName, DnValue::Utf8String(organization.to_owned()));
    let serial_number = DnType::CustomDnType(vec![2, 5, 4, 5]);
    name.push(serial_number, DnValue::PrintableString(label.try_into()?));
    Ok(name)
}

fn uri(text: &str) -> Result<SanType, ProfileError> {
    Ok(SanType::URI(text.try_into()?))
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    params.not_before = OffsetDateTime::from(validity.not_before);
    params.not_after = OffsetDateTime::from(validity.not_after);
}

pub(crate) fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
