//! Certificate requests (PKCS#10): from bytes of a stranger to a public key whose possession is proven.
//!
//! A request is read by comparing, not by interpreting: the key's and the signature's algorithm identifiers must be one of three
//! known byte strings, a name may stand in it only as the very encoding of the granted id. What cannot be written
//! differently cannot be understood differently by two parsers. Nothing but the key leaves this module.

mod der;

use aws_lc_rs::digest;
use der::{BIT_STRING, BOOLEAN, CONTEXT_0, Malformed, OCTET_STRING, OID, Reader, SEQUENCE, SET};
use postern_svid::{SpiffeId, TrustDomain};
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

/// The longest request that is looked at. A P-384 request with an id of 2,048 bytes takes 2.5 KiB.
pub const MAX_CSR: usize = 4_096;

/// A public key whose holder signed the request it came in.
#[derive(Clone)]
pub struct VerifiedKey {
    spki: Vec<u8>,
    algorithm: &'static Algorithm,
}

impl VerifiedKey {
    /// The key as SubjectPublicKeyInfo, byte for byte as it stood in the request.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 over [`Self::spki`], by which keys are told apart in the store.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.spki)
    }
}

impl rcgen::PublicKeyData for VerifiedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.spki[self.algorithm.key_at..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm.build
    }
}

/// Checks a request for a certificate of `granted` and gives its key: shape, algorithms and asked-for extensions first, because they cost
/// nothing, the signature last.
pub fn verify(csr: &[u8], granted: &SpiffeId) -> Result<VerifiedKey, CsrError> {
    let request = Request::parse(csr)?;
    if let Some(name) = request.name
        && name != der::uri_san(granted.as_str())
    {
        return Err(CsrError::Name);
    }
    request.verify()
}

/// Checks a request for a tier of `td` and gives its key and the label that its name asks for. Its name is compared with what the
/// certificate says by whoever signs it.
pub fn tier(csr: &[u8], td: &TrustDomain) -> Result<(VerifiedKey, String), CsrError> {
    let request = Request::parse(csr)?;
    if request.name != Some(der::uri_san(&td.id()).as_slice()) {
        return Err(CsrError::TrustDomain);
    }
    let label = label(request.subject).ok_or(CsrError::Subject)?;
    Ok((request.verify()?, label))
}

/// The unique part of a tier's name.
fn label(subject: &[u8]) -> Option<String> {
    const SERIAL_NUMBER: Oid<'static> = oid!(2.5.4.5);
    let (_, name) = X509Name::from_der(subject).ok()?;
    let label = name.iter_by_oid(&SERIAL_NUMBER).next()?.as_str().ok()?;
    let unique = label.strip_prefix("tier-")?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (unique.len() == 16 && unique.bytes().all(is_hex)).then(|| label.to_owned())
}

/// A request for a key of our own.
pub fn own(key: &rcgen::KeyPair) -> Result<Vec<u8>, crate::profile::ProfileError> {
    Ok(rcgen::CertificateParams::default().serialize_request(key)?.der().to_vec())
}

/// SHA-256 over a SubjectPublicKeyInfo.
pub fn fingerprint(spki: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
    out
}

/// A request of the right shape; nothing is proven yet.
#[derive(Clone)]
pub struct Request<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    spki: &'a [u8],
    algorithm: &'static Algorithm,
    name: Option<&'a [u8]>,
    subject: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads a request without checking its signature.
    pub fn parse(csr: &'a [u8]) -> Result<Self, CsrError> {
        if csr.len() > MAX_CSR {
            return Err(CsrError::TooLong(csr.len()));
        }
        let mut outside = Reader::new(csr);
        let request = outside.value(SEQUENCE)?;
        outside.end().map_err(|Malformed| CsrError::Trailing)?;

        let mut request = Reader::new(request.content);
        let info = request.value(SEQUENCE)?;
        let signature_algorithm = request.value(SEQUENCE)?;
        let signature = bits(request.value(BIT_STRING)?.content)?;
        request.end()?;

        let signed = info.whole;
        let mut info = Reader::new(info.content);
        if info.value(INTEGER)?.content != [0] {
            return Err(CsrError::Version);
        }
        // A leaf's subject says nothing here, whatever it says.
        let subject = info.value(SEQUENCE)?.whole;
        let spki = info.value(SEQUENCE)?.whole;
        let attributes = info.value(CONTEXT_0)?.content;
        info.end()?;

        let algorithm = ALGORITHMS
            .iter()
            .find(|a| spki.len() == a.spki_length && spki.starts_with(a.spki_prefix))
            .ok_or(CsrError::KeyAlgorithm)?;
        // Before any signature is computed: RSA-1024 with SHA-1 would verify as well.
        if signature_algorithm.whole != algorithm.signature {
            return Err(CsrError::SignatureAlgorithm);
        }
        Ok(Self { signed, signature, spki, algorithm, name: requested_name(attributes)?, subject })
    }

    /// The name in it, encoded.
    pub fn subject(&self) -> &'a [u8] {
        self.subject
    }

    /// The key in question, as SubjectPublicKeyInfo.
    pub fn spki(&self) -> &'a [u8] {
        self.spki
    }

    /// Checks the signature: whoever made the request holds the private key.
    pub fn verify(&self) -> Result<VerifiedKey, CsrError> {
        let spki = SubjectPublicKeyInfoDer::from(self.spki);
        webpki::RawPublicKeyEntity::try_from(&spki)
            .and_then(|key| key.verify_signature(self.algorithm.verify, self.signed, self.signature))
            .map_err(|_| CsrError::Possession)?;
        let key = VerifiedKey { spki: self.spki.to_vec(), algorithm: self.algorithm };
        // What goes into the certificate must be these very bytes; an encoder that knows the curve by another name
        // would put a key there that nobody can load.
        if rcgen::PublicKeyData::subject_public_key_info(&key) != self.spki {
            return Err(CsrError::KeyAlgorithm);
        }
        Ok(key)
    }
}

/// Why a request is refused. The texts go to the caller: they tell nothing that the caller did not send.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// An attribute other than extensionRequest, or the same twice.
    #[error("the request holds an attribute other than one extensionRequest; only a name may be asked for")]
    Attribute,
    /// An extension other than subjectAltName: a CA flag, key usages, or the same twice.
    #[error(
        "the request asks for an extension other than subjectAltName; a CA flag, key usages and constraints are the CA's to set"
    )]
    Extension,
    /// The key is none of the allowed kinds.
    #[error(
        "the key is neither P-256, P-384 (named curve, uncompressed point) nor Ed25519; make a P-256 key"
    )]
    KeyAlgorithm,
    /// Not DER, or not of PKCS#10's shape.
    #[error("the request is not one PKCS#10 object in DER")]
    Malformed,
    /// The asked-for name is not exactly the granted id.
    #[error(
        "the subjectAltName asked for is not exactly one URI, the id of this request; leave it out or make it equal"
    )]
    Name,
    /// The signature is not by the key in the request.
    #[error("the request's signature does not prove possession of its key")]
    Possession,
    /// The signature's algorithm does not belong to the key.
    #[error(
        "the request is not signed as its key demands: P-256 with SHA-256, P-384 with SHA-384, or Ed25519"
    )]
    SignatureAlgorithm,
    /// No name that a tier has.
    #[error(
        "its subject is not one of a tier, O=<trust domain>, serialNumber=tier-…; make it with postern ca tier csr"
    )]
    Subject,
    /// Longer than [`MAX_CSR`].
    #[error("the request takes {0} bytes; at most {MAX_CSR} are read")]
    TooLong(usize),
    /// A tier of another trust domain.
    #[error("its subjectAltName is not the id of this root's trust domain")]
    TrustDomain,
    /// Bytes follow the request.
    #[error("bytes follow the request; send exactly one DER object")]
    Trailing,
    /// Not version 0.
    #[error("the request's version is not 0 (v1)")]
    Version,
}

impl From<Malformed> for CsrError {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

const INTEGER: u8 = 0x02;
/// 1.2.840.113549.1.9.14
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// One allowed kind of key with the one signature algorithm that goes with it.
struct Algorithm {
    /// The constant beginning of the SubjectPublicKeyInfo. With curves it takes in the point's first octet, 4: a
    /// "hybrid" point (6 or 7) has the same length.
    spki_prefix: &'static [u8],
    spki_length: usize,
    /// Where the key begins within it.
    key_at: usize,
    /// The whole AlgorithmIdentifier of the signature.
    signature: &'static [u8],
    verify: &'static dyn SignatureVerificationAlgorithm,
    build: &'static rcgen::SignatureAlgorithm,
}

/// RFC 5480 (named curves, uncompressed points), RFC 5758, RFC 8410.
static ALGORITHMS: [Algorithm; 3] = [
    Algorithm {
        spki_prefix: P256,
        spki_length: P256.len() + 64,
        key_at: P256.len() - 1,
        signature: &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        verify: webpki::aws_lc_rs::ECDSA_P256_SHA256,
        build: &rcgen::PKCS_ECDSA_P256_SHA256,
    },
    Algorithm {
        spki_prefix: P384,
        spki_length: P384.len() + 96,
        key_at: P384.len() - 1,
        signature: &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        verify: webpki::aws_lc_rs::ECDSA_P384_SHA384,
        build: &rcgen::PKCS_ECDSA_P384_SHA384,
    },
    Algorithm {
        spki_prefix: ED25519,
        spki_length: ED25519.len() + 32,
        key_at: ED25519.len(),
        signature: &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70],
        verify: webpki::aws_lc_rs::ED25519,
        build: &rcgen::PKCS_ED25519,
    },
];

const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
    0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
];
const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The content of a bit string of whole octets.
fn bits(content: &[u8]) -> Result<&[u8], Malformed> {
    match content {
        [0, bits @ ..] => Ok(bits),
        _ => Err(Malformed),
    }
}

/// The encoded subjectAltName that the attributes ask for, if any; anything else asked for is an error.
fn requested_name(attributes: &[u8]) -> Result<Option<&[u8]>, CsrError> {
    let mut attributes = Reader::new(attributes);
    if attributes.is_empty() {
        return Ok(None);
    }
    let attribute = attributes.value(SEQUENCE)?;
    // A second extensionRequest is what lenient parsers skip.
    attributes.end().map_err(|Malformed| CsrError::Attribute)?;
    let mut attribute = Reader::new(attribute.content);
    if attribute.value(OID)?.content != EXTENSION_REQUEST {
        return Err(CsrError::Attribute);
    }
    let values = attribute.value(SET)?;
    attribute.end()?;
    let mut values = Reader::new(values.content);
    let extensions = values.value(SEQUENCE)?;
    values.end().map_err(|Malformed| CsrError::Attribute)?;

    let mut extensions = Reader::new(extensions.content);
    if extensions.is_empty() {
        return Ok(None);
    }
    let extension = extensions.value(SEQUENCE)?;
    extensions.end().map_err(|Malformed| CsrError::Extension)?;
    let mut extension = Reader::new(extension.content);
    if extension.value(OID)?.content != SUBJECT_ALT_NAME {
        return Err(CsrError::Extension);
    }
    // The name is critical in requests whose subject is empty (RFC 5280, 4.2.1.6); either is fine.
    if extension.next_is(BOOLEAN) && extension.value(BOOLEAN)?.content != [0xff] {
        return Err(CsrError::Malformed);
    }
    let name = extension.value(OCTET_STRING)?.content;
    extension.end()?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests;
