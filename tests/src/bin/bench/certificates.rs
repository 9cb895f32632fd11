//! Certificates for the proxies that have no CA of their own: as ours, ECDSA P-256, root and leaf.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::Failure;

/// Files in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    pub(crate) root: PathBuf,
    directory: PathBuf,
}

impl Certificates {
    /// Makes a root and a leaf with the SPIFFE id and the common name of each of `names`.
    pub(crate) fn make(directory: &Path, names: &[&str]) -> Result<Self, Failure> {
        make(directory, names).map_err(|error| format!("certificates for the bench: {error}"))
    }

    /// A leaf's certificate.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.crt"))
    }

    /// A leaf's key.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// Both in one file.
    pub(crate) fn both(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }
}

/// The SPIFFE id that a name gets.
pub(crate) fn spiffe_id(name: &str) -> String {
    format!("spiffe://{}/ns/shop/sa/{name}", postern_tests::TRUST_DOMAIN)
}

fn make(directory: &Path, names: &[&str]) -> Result<Certificates, Box<dyn std::error::Error>> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::from_params(&root, &root_key);

    let certificates = Certificates { root: directory.join("root.crt"), directory: directory.to_owned() };
    fs::write(&certificates.root, root_certificate.pem())?;
    for name in names {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, *name);
        leaf.subject_alt_names = vec![SanType::URI(spiffe_id(name).as_str().try_into()?)];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = leaf.signed_by(&key, &issuer)?;
        fs::write(certificates.certificate(name), leaf.pem())?;
        fs::write(certificates.key(name), key.serialize_pem())?;
        fs::write(certificates.both(name), leaf.pem() + &key.serialize_pem())?;
    }
    Ok(certificates)
}
