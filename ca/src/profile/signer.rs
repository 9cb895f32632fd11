//! A CA that can sign, put together from its certificate and its key: what it signs must name its issuer byte for byte as the
//! certificate above does, which may not be one of our own making.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, Issuer, KeyIdMethod, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PublicKeyData as _, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Oid, Tag, oid};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use super::{CA_USAGES, ProfileError};
use crate::keys::Key;

/// A CA that can sign: its name, key identifier and key.
pub struct Signer {
    pub(super) issuer: Issuer<'static, Key>,
    key_id: Vec<u8>,
}

impl Signer {
    /// The CA of `certificate`, whose key is `key`.
    pub fn new(certificate: &CertificateDer<'_>, key: impl Into<Key>) -> Result<Self, ProfileError> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| ProfileError::Issuer("it is not an X.509 certificate"))?;
        let key_id = subject_key_id(&parsed).ok_or(ProfileError::Issuer("it has no subject key id"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(parsed.subject()).map_err(ProfileError::Issuer)?;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.clone());
        params.key_usages = CA_USAGES.to_vec();
        Ok(Self { issuer: Issuer::new(params, key.into()), key_id })
    }

    /// The subject key identifier of its certificate.
    pub fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Its public key as SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        self.issuer.key().subject_public_key_info()
    }
}

/// The algorithm of a CA's key; `None` for one that we do not sign with.
pub(crate) fn algorithm(spki: &SubjectPublicKeyInfo<'_>) -> Option<&'static SignatureAlgorithm> {
    const EC: Oid<'static> = oid!(1.2.840.10045.2.1);
    const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
    const P384: Oid<'static> = oid!(1.3.132.0.34);
    if spki.algorithm.algorithm != EC {
        return None;
    }
    match spki.algorithm.parameters.as_ref()?.as_oid().ok()? {
        curve if curve == P256 => Some(&PKCS_ECDSA_P256_SHA256),
        curve if curve == P384 => Some(&PKCS_ECDSA_P384_SHA384),
        _ => None,
    }
}

/// The subject key id.
pub(crate) fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if !id.0.is_empty() => Some(id.0.to_vec()),
        _ => None,
    })
}

/// A name in the form that goes into certificates below it. What would come out differently is refused: the library keeps one
/// value for each type of attribute, and a chain whose names differ in a byte is none.
fn name(name: &X509Name<'_>) -> Result<DistinguishedName, &'static str> {
    let mut copy = DistinguishedName::new();
    for part in name.iter() {
        let mut attributes = part.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err("its subject has a part that is not exactly one attribute");
        };
        let oid = attribute.attr_type().iter().ok_or("its subject has an attribute of an unreadable type")?;
        let kind = DnType::from_oid(&oid.collect::<Vec<_>>());
        if copy.get(&kind).is_some() {
            return Err("its subject has two attributes of one type, such as two OU");
        }
        const UNREADABLE: &str = "its subject has an attribute that is not the text that it claims to be";
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| UNREADABLE)?;
        let value = match value.header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| UNREADABLE)?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| UNREADABLE)?),
            _ => {
                return Err(
                    "its subject has an attribute that is no UTF8String, PrintableString or IA5String",
                );
            }
        };
        copy.push(kind, value);
    }
    Ok(copy)
}
