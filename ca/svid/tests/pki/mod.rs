//! A small CA for tests: the profiles of the real one, each field open to damage.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_svid::{Bundle, Bundles, Role, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;

pub(crate) const ID: &str = "spiffe://demo.postern/ns/shop/sa/orders";

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn at(offset: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(1_800_000_000 + offset).unwrap()
}

pub(crate) fn td() -> TrustDomain {
    TrustDomain::parse("demo.postern").unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

pub(crate) fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// Everything that a chain of three is made of, right until a case damages it.
pub(crate) struct Pki {
    pub(crate) root: CertificateParams,
    pub(crate) root_key: KeyPair,
    pub(crate) issuing: CertificateParams,
    pub(crate) issuing_key: KeyPair,
    pub(crate) leaf: CertificateParams,
    pub(crate) leaf_key: KeyPair,
    /// What the leaf says of its issuer, if not the truth.
    pub(crate) leaf_sees: Option<CertificateParams>,
    /// The same for the issuing CA.
    pub(crate) issuing_sees: Option<CertificateParams>,
    pub(crate) damage_leaf: fn(Vec<u8>) -> Vec<u8>,
    /// From `[leaf, issuing, root]` to what is sent.
    pub(crate) send: fn(Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>>,
    pub(crate) role: Role,
    pub(crate) now: SystemTime,
    pub(crate) bundle_of: TrustDomain,
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self {
            root: root_params(&td()),
            root_key: key(&PKCS_ECDSA_P384_SHA384),
            issuing: issuing_params(&td()),
            issuing_key: key(&PKCS_ECDSA_P256_SHA256),
            leaf: leaf_params(ID),
            leaf_key: key(&PKCS_ECDSA_P256_SHA256),
            leaf_sees: None,
            issuing_sees: None,
            damage_leaf: |der| der,
            send: |chain| chain[..2].to_vec(),
            role: Role::Client,
            now: now(),
            bundle_of: td(),
        }
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.self_signed(&self.root_key).unwrap().der().clone()
    }

    pub(crate) fn issuing_der(&self) -> CertificateDer<'static> {
        let root = Issuer::from_params(self.issuing_sees.as_ref().unwrap_or(&self.root), &self.root_key);
        self.issuing.signed_by(&self.issuing_key, &root).unwrap().der().clone()
    }

    pub(crate) fn leaf_der(&self) -> CertificateDer<'static> {
        let issuing =
            Issuer::from_params(self.leaf_sees.as_ref().unwrap_or(&self.issuing), &self.issuing_key);
        let leaf = self.leaf.signed_by(&self.leaf_key, &issuing).unwrap();
        CertificateDer::from((self.damage_leaf)(leaf.der().to_vec()))
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        (self.send)(vec![self.leaf_der(), self.issuing_der(), self.root_der()])
    }

    pub(crate) fn bundles(&self) -> Bundles {
        Bundles::of(Bundle::new(self.bundle_of.clone(), 1, vec![self.root_der()]).unwrap())
    }
}

pub(crate) fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

pub(crate) fn root_params(td: &TrustDomain) -> CertificateParams {
    let mut params = authority(td, "root", BasicConstraints::Constrained(1));
    params.not_before = at(-86_400);
    params.not_after = at(86_400 * 365);
    params
}

pub(crate) fn issuing_params(td: &TrustDomain) -> CertificateParams {
    let mut params = authority(td, "issuing", BasicConstraints::Constrained(0));
    params.not_before = at(-3_600);
    params.not_after = at(86_400 * 7);
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![GeneralSubtree::DnsName(String::new())],
    });
    params
}

pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&[0x5a; 16]));
    params.use_authority_key_identifier_extension = true;
    params.not_before = at(-120);
    params.not_after = at(3_600);
    params
}

fn authority(td: &TrustDomain, kind: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, td.as_str());
    params.distinguished_name.push(DnType::CommonName, kind);
    params.subject_alt_names = vec![uri(&td.id())];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&[0x11; 16]));
    params
}
