//! Certificates of every wrong kind, made with the mesh's own CA keys where that makes them harder to refuse.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_svid::{Clock as _, SystemClock};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType,
};
use rusqlite::OpenFlags;
use time::{Duration, OffsetDateTime};

use crate::foreign::{self, Run};
use crate::mesh::Mesh;
use crate::plan::TRUST_DOMAIN;
use crate::wait;

/// A certificate chain and its key, as files.
#[derive(Clone, Debug)]
pub struct Papers {
    /// The chain, PEM.
    pub chain: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// Signs whatever is asked for.
pub struct Forge {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    issuing_pem: String,
}

impl Forge {
    /// With the mesh's own issuing CA, its keys taken from the control plane's state directory: what it signs differs
    /// from a real SVID only in what the test changed.
    pub fn stolen(mesh: &Mesh) -> Self {
        let (label, key_id, certificate) = active_issuing(mesh.control.state());
        let key = fs::read(mesh.control.state().join(format!("{label}.key"))).expect("the CA's key is there");
        let key = KeyPair::try_from(key.as_slice()).expect("the CA's key is PKCS#8");
        let mut params = CertificateParams::default();
        params.distinguished_name = name(TRUST_DOMAIN, &label);
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self::new(mesh, Issuer::new(params, key), pem(&certificate))
    }

    /// With a root of its own, which says that it belongs to `trust_domain`.
    pub fn foreign(mesh: &Mesh, trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(trust_domain, "root-of-our-own");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let key = KeyPair::generate().expect("keys can be made");
        let root = params.self_signed(&key).expect("the parameters are whole").pem();
        Self::new(mesh, Issuer::new(params, key), root)
    }

    /// The certificate that everything here is signed with, PEM.
    pub fn issuing_pem(&self) -> &str {
        &self.issuing_pem
    }

    fn new(mesh: &Mesh, issuer: Issuer<'static, KeyPair>, issuing_pem: String) -> Self {
        let directory = mesh.directory().join("forged");
        fs::create_dir_all(&directory).expect("the mesh's directory can be written to");
        Self { directory, issuer, issuing_pem }
    }

    /// A leaf as the CA makes them, for `id`, after `change`.
    pub fn leaf(&self, file: &str, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Papers {
        let mut params = leaf(id);
        change(&mut params);
        let key = KeyPair::generate().expect("keys can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("the parameters are whole");
        self.write(file, &(certificate.pem() + &self.issuing_pem), &key)
    }

    /// The same, signed by nobody but itself.
    pub fn self_signed(&self, file: &str, id: &str) -> Papers {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = leaf(id);
        params.distinguished_name = name(TRUST_DOMAIN, "nobody");
        let certificate = params.self_signed(&key).expect("the parameters are whole");
        self.write(file, &certificate.pem(), &key)
    }

    fn write(&self, file: &str, chain: &str, key: &KeyPair) -> Papers {
        let papers = Papers {
            chain: self.directory.join(format!("{file}.pem")),
            key: self.directory.join(format!("{file}.key")),
        };
        fs::write(&papers.chain, chain).expect("the directory can be written to");
        fs::write(&papers.key, key.serialize_pem()).expect("the directory can be written to");
        papers
    }
}

impl Papers {
    /// A sidecar's real ones, out of its state directory.
    pub fn of_sidecar(mesh: &Mesh, name: &str) -> Self {
        let path = mesh.sidecar(name).state().join("svid.pem");
        Self { chain: path.clone(), key: path }
    }
}

/// `from` to `to` seconds from now.
pub(crate) fn life(params: &mut CertificateParams, from: i64, to: i64) {
    let now = OffsetDateTime::from(SystemClock.wall());
    params.not_before = now + Duration::seconds(from);
    params.not_after = now + Duration::seconds(to);
}

impl Forge {
    /// Sets a validity of `from` to `to` seconds from now.
    pub fn life(params: &mut CertificateParams, from: i64, to: i64) {
        life(params, from, to);
    }

    /// A URI as a subject alternative name.
    pub fn uri(text: &str) -> SanType {
        uri(text)
    }
}

/// Runs `openssl` with `input` on its standard input.
pub fn openssl(arguments: &[&str], input: &[u8]) -> Run {
    foreign::run_with_input(Command::new("openssl").args(arguments), input, wait::PATIENCE)
}

/// DER as PEM.
pub fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    life(&mut params, -60, 600);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn name(organization: &str, label: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, DnValue::Utf8String(organization.to_owned()));
    let label = label.try_into().expect("labels are printable");
    name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), DnValue::PrintableString(label));
    name
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("URIs of tests are ASCII"))
}

fn active_issuing(state: &Path) -> (String, Vec<u8>, Vec<u8>) {
    database(state)
        .query_row(
            "SELECT label, key_id, certificate FROM authority WHERE kind = 'issuing' AND state = 'active'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .expect("a running CA has an active issuing CA")
}

pub(crate) fn database(state: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open_with_flags(state.join("ca.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the CA's database can be read beside it")
}
