//! One certificate, parsed once into the facts that the checks speak about.
//!
//! webpki does the path building and the signatures. It keeps most extensions to itself and is lenient with several, so
//! everything else is read here, from the same bytes, with a second parser that must agree that they are a certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, EcdsaVerificationAlgorithm, ParsedPublicKey,
};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, Oid, Tag, oid};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use super::error::VerifyError;

/// Largest certificate that is looked at. An SVID takes about 500 bytes; post-quantum ones will take about 6 KiB.
const MAX_CERTIFICATE: usize = 16 * 1024;
/// Our own profiles have at most seven; the bound keeps the search for duplicates small.
const MAX_EXTENSIONS: usize = 32;
/// RFC 5280, 4.1.2.2.
const MAX_SERIAL: usize = 20;

/// What the rules look at. Absent extensions are `None`; `(value, critical)` where being critical is part of a rule.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) serial: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(super) spki: Vec<u8>,
    pub(super) key: Option<KeyType>,
    pub(super) basic_constraints: Option<(BasicConstraints, bool)>,
    pub(super) key_usage: Option<(KeyUsage, bool)>,
    pub(super) purposes: Option<Purposes>,
    pub(super) names: Option<(Vec<Name>, bool)>,
    pub(super) subject_key_id: Option<(Vec<u8>, bool)>,
    pub(super) authority_key_id: Option<(Vec<u8>, bool)>,
    pub(super) has_name_constraints: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum KeyType {
    P256,
    P384,
    Ed25519,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BasicConstraints {
    pub(super) ca: bool,
    pub(super) path_length: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Purposes {
    pub(super) any: bool,
    pub(super) server: bool,
    pub(super) client: bool,
}

/// One entry of the subject alternative name.
#[derive(Debug)]
pub(super) enum Name {
    Uri(String),
    /// The type of any other name.
    Other(&'static str),
}

/// How certificates are read: by [`Facts::parse`], save where a test sets one rule aside to see the others at work.
pub(super) type Read = fn(&CertificateDer<'_>) -> Result<Facts, VerifyError>;

impl Facts {
    pub(super) fn parse(der: &CertificateDer<'_>) -> Result<Self, VerifyError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(VerifyError::BadEncoding("a certificate is longer than 16 KiB"));
        }
        let (rest, cert) = X509Certificate::from_der(der)
            .map_err(|_| VerifyError::BadEncoding("not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(VerifyError::BadEncoding("bytes follow the certificate"));
        }
        let tbs = &cert.tbs_certificate;
        if tbs.version() != X509Version::V3 {
            return Err(VerifyError::BadEncoding("not an X.509 version 3 certificate"));
        }
        if tbs.issuer_uid.is_some() || tbs.subject_uid.is_some() {
            return Err(VerifyError::BadEncoding("a unique identifier, which RFC 5280 forbids"));
        }
        canonical_times(tbs.as_ref())?;
        let mut facts = Self {
            serial: serial(tbs.raw_serial())?,
            not_before: time(tbs.validity().not_before.timestamp())?,
            not_after: time(tbs.validity().not_after.timestamp())?,
            subject: tbs.subject().as_raw().to_vec(),
            issuer: tbs.issuer().as_raw().to_vec(),
            spki: tbs.public_key().raw.to_vec(),
            key: key_type(tbs.public_key()),
            basic_constraints: None,
            key_usage: None,
            purposes: None,
            names: None,
            subject_key_id: None,
            authority_key_id: None,
            has_name_constraints: false,
        };
        facts.read_extensions(&cert)?;
        Ok(facts)
    }

    /// Whether the subject is the empty sequence.
    pub(super) fn subject_is_empty(&self) -> bool {
        self.subject == [0x30, 0x00]
    }

    /// Whether the certificate names itself as its issuer, which no SVID does.
    pub(super) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer && !self.subject_is_empty()
    }

    /// SHA-256 of the public key: the key by a name that its holder cannot choose.
    pub(super) fn key_digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.spki).as_ref());
        digest
    }

    /// The subject key id; empty if there is none.
    pub(super) fn own_key_id(&self) -> Vec<u8> {
        self.subject_key_id.as_ref().map(|(id, _)| id.clone()).unwrap_or_default()
    }

    fn read_extensions(&mut self, cert: &X509Certificate<'_>) -> Result<(), VerifyError> {
        let extensions = cert.extensions();
        if extensions.len() > MAX_EXTENSIONS {
            return Err(VerifyError::BadEncoding("more than 32 extensions"));
        }
        for (at, extension) in extensions.iter().enumerate() {
            // Two parsers that pick different ones of two copies would check one certificate and use another.
            if extensions[..at].iter().any(|earlier| earlier.oid == extension.oid) {
                return Err(VerifyError::BadEncoding("an extension stands twice"));
            }
            let critical = extension.critical;
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(value) => {
                    let value = BasicConstraints { ca: value.ca, path_length: value.path_len_constraint };
                    self.basic_constraints = Some((value, critical));
                }
                ParsedExtension::KeyUsage(value) => self.key_usage = Some((*value, critical)),
                ParsedExtension::ExtendedKeyUsage(value) => self.purposes = Some(purposes(value)),
                ParsedExtension::SubjectAlternativeName(value) => {
                    self.names = Some((value.general_names.iter().map(name).collect(), critical));
                }
                ParsedExtension::SubjectKeyIdentifier(value) => {
                    self.subject_key_id = Some((value.0.to_vec(), critical));
                }
                ParsedExtension::AuthorityKeyIdentifier(value) => {
                    // Without the key identifier it says nothing that we use.
                    self.authority_key_id = value.key_identifier.as_ref().map(|id| (id.0.to_vec(), critical));
                }
                ParsedExtension::NameConstraints(value) => {
                    let trees = [&value.permitted_subtrees, &value.excluded_subtrees];
                    if trees.into_iter().flatten().all(Vec::is_empty) {
                        return Err(VerifyError::BadEncoding("name constraints that constrain nothing"));
                    }
                    self.has_name_constraints = true;
                }
                ParsedExtension::ParseError { .. } => {
                    return Err(VerifyError::BadEncoding("an extension cannot be parsed"));
                }
                _ if critical => return Err(VerifyError::UnknownCriticalExtension),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The magnitude of the serial number, big-endian, without leading zeros: the form in which serials are compared,
/// shown and reported.
fn serial(raw: &[u8]) -> Result<Vec<u8>, VerifyError> {
    match raw {
        [] | [0] => Err(VerifyError::Serial("zero")),
        [0x80..=0xff, ..] => Err(VerifyError::Serial("negative")),
        [0, 0..=0x7f, ..] => Err(VerifyError::Serial("not in its shortest encoding")),
        _ if raw.len() > MAX_SERIAL => Err(VerifyError::Serial("longer than 20 octets")),
        [0, rest @ ..] => Ok(rest.to_vec()),
        _ => Ok(raw.to_vec()),
    }
}

fn time(seconds: i64) -> Result<SystemTime, VerifyError> {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or(VerifyError::BadEncoding("a date before 1970"))
}

/// RFC 5280, 4.1.2.5: years from 1950 to 2049 have two digits, in UTCTime, all others four. Neither parser minds.
fn canonical_times(tbs: &[u8]) -> Result<(), VerifyError> {
    const BAD: VerifyError = VerifyError::BadEncoding("a date that cannot be read");
    let (_, tbs) = Any::from_der(tbs).map_err(|_| BAD)?;
    let mut rest = tbs.data;
    // Version, serial number, algorithm and issuer stand before the dates.
    for _ in 0..4 {
        (rest, _) = Any::from_der(rest).map_err(|_| BAD)?;
    }
    let (_, validity) = Any::from_der(rest).map_err(|_| BAD)?;
    let mut rest = validity.data;
    while !rest.is_empty() {
        let (after, date) = Any::from_der(rest).map_err(|_| BAD)?;
        let early = date.data.get(..4).is_some_and(|year| (&b"1950"[..]..=&b"2049"[..]).contains(&year));
        if date.tag() != Tag::UtcTime && early {
            return Err(VerifyError::BadEncoding(
                "a date before 2050 is written with four digits of the year",
            ));
        }
        rest = after;
    }
    Ok(())
}

fn key_type(spki: &SubjectPublicKeyInfo<'_>) -> Option<KeyType> {
    const EC: Oid<'static> = oid!(1.2.840.10045.2.1);
    const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
    const P384: Oid<'static> = oid!(1.3.132.0.34);
    const ED25519: Oid<'static> = oid!(1.3.101.112);
    let key = spki.subject_public_key.data.as_ref();
    let parameters = spki.algorithm.parameters.as_ref();
    if spki.algorithm.algorithm == ED25519 {
        return (parameters.is_none() && key.len() == 32).then_some(KeyType::Ed25519);
    }
    if spki.algorithm.algorithm != EC {
        return None;
    }
    let curve = parameters?.as_oid().ok()?;
    // Uncompressed points only: whatever reads the key later must not need a choice. And on their curve: nothing that
    // verifies a leaf's chain ever computes with its key.
    let (algorithm, found): (&'static EcdsaVerificationAlgorithm, _) = match (key.first(), key.len()) {
        (Some(4), 65) if curve == P256 => (&ECDSA_P256_SHA256_ASN1, KeyType::P256),
        (Some(4), 97) if curve == P384 => (&ECDSA_P384_SHA384_ASN1, KeyType::P384),
        _ => return None,
    };
    ParsedPublicKey::new(algorithm, key).ok().map(|_| found)
}

const fn purposes(value: &ExtendedKeyUsage<'_>) -> Purposes {
    Purposes { any: value.any, server: value.server_auth, client: value.client_auth }
}

fn name(value: &GeneralName<'_>) -> Name {
    match value {
        GeneralName::URI(uri) => Name::Uri((*uri).to_owned()),
        GeneralName::DNSName(_) => Name::Other("DNS"),
        GeneralName::IPAddress(_) => Name::Other("IP address"),
        GeneralName::RFC822Name(_) => Name::Other("e-mail"),
        GeneralName::DirectoryName(_) => Name::Other("directory"),
        GeneralName::OtherName(..) => Name::Other("otherName"),
        GeneralName::RegisteredID(_) => Name::Other("registered id"),
        GeneralName::X400Address(_) | GeneralName::EDIPartyName(_) | GeneralName::Invalid(..) => {
            Name::Other("undecodable")
        }
    }
}
