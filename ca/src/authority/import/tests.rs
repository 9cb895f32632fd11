use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use postern_svid::Clock as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384, PublicKeyData, SanType,
    SignatureAlgorithm,
};
use time::OffsetDateTime;

use super::*;
use crate::offline::pem;
use crate::testing::{Home, id, start, td};

const DAY: Duration = Duration::from_secs(86_400);

/// A company's CA, not of our making.
struct Company {
    dir: tempfile::TempDir,
    root: Issuer<'static, KeyPair>,
}

struct Spki(Vec<u8>);

impl PublicKeyData for Spki {
    fn der_bytes(&self) -> &[u8] {
        &self.0[self.0.len() - 97..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P384_SHA384
    }
}

fn ca(name: &str, length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(start() - DAY);
    params.not_after = OffsetDateTime::from(start() + 3_000 * DAY);
    params.use_authority_key_identifier_extension = true;
    params
}

impl Company {
    fn new(length: Option<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let params = ca("The Company's Root", length);
        fs::write(dir.path().join("root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, root: Issuer::new(params, key) }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// What openssl x509 -req makes of the documented extensions.
    fn tier(&self, request: &TierRequest) -> CertificateParams {
        let mut params = ca("", Some(1));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "demo.postern");
        let serial_number = DnType::CustomDnType(vec![2, 5, 4, 5]);
        let label = rcgen::DnValue::PrintableString(request.label.as_str().try_into().unwrap());
        params.distinguished_name.push(serial_number, label);
        params.not_after = OffsetDateTime::from(start() + 365 * DAY);
        params.subject_alt_names = vec![SanType::URI(td().id().try_into().unwrap())];
        params
    }

    fn file(&self, certificates: &[&[u8]]) -> PathBuf {
        let path = self.dir.path().join("tier.pem");
        let text: Vec<_> = certificates.iter().map(|der| pem("CERTIFICATE", der)).collect();
        fs::write(&path, text.concat()).unwrap();
        path
    }

    fn sign(&self, request: &TierRequest, params: &CertificateParams) -> PathBuf {
        let key = Spki(csr::Request::parse(&request.csr).unwrap().spki().to_vec());
        self.file(&[params.signed_by(&key, &self.root).unwrap().der()])
    }
}

fn home(company: &Company) -> Home {
    let home = Home::new();
    import_root(&td(), home.store().as_ref(), &company.root(), start()).unwrap();
    home
}

#[test]
fn a_companys_root_signs_a_tier() {
    for length in [None, Some(2), Some(5)] {
        let company = Company::new(length);
        let home = home(&company);
        let request = home.request_tier(false);
        let params = company.tier(&request);
        home.import_tier(&company.sign(&request, &params), false).unwrap();
        let ca = home.ca();
        let reply = ca.join(&id("orders"), &ca.token(&id("orders")), &crate::testing::key()).unwrap();
        assert_eq!(reply.chain.len(), 3);
    }
}

#[test]
fn a_companys_intermediate_signs_a_tier_and_comes_along_in_every_chain() {
    let company = Company::new(None);
    let home = home(&company);
    let request = home.request_tier(false);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let between = ca("The Company's Intermediate", Some(2));
    let intermediate = between.signed_by(&key, &company.root).unwrap();
    let issuer = Issuer::new(between, key);
    let spki = Spki(csr::Request::parse(&request.csr).unwrap().spki().to_vec());
    let tier = company.tier(&request).signed_by(&spki, &issuer).unwrap();
    let alone = home.import_tier(&company.file(&[tier.der()]), false).unwrap_err().to_string();
    assert!(alone.contains("put that one's certificate behind it"), "{alone}");
    let root = certificate_of(&company.root()).unwrap();
    home.import_tier(&company.file(&[tier.der(), intermediate.der(), &root]), false).unwrap();
    let ca = home.ca();
    let reply = ca.join(&id("orders"), &ca.token(&id("orders")), &crate::testing::key()).unwrap();
    assert_eq!(reply.chain.len(), 4);
    assert_eq!(reply.chain[3], *intermediate.der());
    let rows = home.store().authorities().unwrap();
    assert_eq!(super::super::parent(&rows[1]), Some(rows[0].key_id.clone()));
    // And over a restart.
    drop(ca);
    home.ca().issuer.self_test().unwrap();
}

#[test]
fn each_refusal_says_what_is_wrong_with_the_certificate() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, &str); 15] = [
        ("path length 0", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "path length is 0"),
        ("path length 2", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(2)), "path length is 2"),
        ("no path length", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "path length is none"),
        ("a leaf", |p| p.is_ca = IsCa::ExplicitNoCa, "path length is none"),
        ("no basic constraints", |p| p.is_ca = IsCa::NoCa, "no certificate authority"),
        ("no keyCertSign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "lacks keyCertSign"),
        ("expired", |p| p.not_after = OffsetDateTime::from(start() - DAY), "it ends at"),
        ("ends next week", |p| p.not_after = OffsetDateTime::from(start() + 7 * DAY), "at least 30 days"),
        ("not yet valid", |p| p.not_before = OffsetDateTime::from(start() + DAY), "is a clock wrong"),
        (
            "outlives its root",
            |p| p.not_after = OffsetDateTime::from(start() + 3_001 * DAY),
            "after its root",
        ),
        (
            "another name",
            |p| p.distinguished_name.push(DnType::OrganizationName, "Other"),
            "its subject is not",
        ),
        (
            "another trust domain",
            |p| p.subject_alt_names = vec![SanType::URI("spiffe://other.example".try_into().unwrap())],
            "not spiffe://demo.postern alone",
        ),
        (
            "a host name beside it",
            |p| p.subject_alt_names.push(SanType::DnsName("ca.example".try_into().unwrap())),
            "not spiffe://demo.postern alone",
        ),
        (
            "host names only",
            |p| {
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("example".to_owned())],
                    excluded_subtrees: Vec::new(),
                });
            },
            "name constraints",
        ),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "extended key usage",
        ),
    ];
    let company = Company::new(None);
    let home = home(&company);
    let request = home.request_tier(false);
    let before = home.store().authorities().unwrap().len();
    for (what, change, says) in cases {
        let mut params = company.tier(&request);
        change(&mut params);
        let text = home.import_tier(&company.sign(&request, &params), false).unwrap_err().to_string();
        assert!(text.contains(says) && text.contains("tier.pem"), "{what}: {text}");
    }
    // Excluded host names and addresses are our own profile's.
    let mut params = company.tier(&request);
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![GeneralSubtree::DnsName(String::new())],
    });
    let refused = |file: &Path| home.import_tier(file, false).unwrap_err().to_string();
    let other = TierRequest { csr: request_of_another(), ..request.clone() };
    let text = refused(&company.sign(&other, &params));
    assert!(text.contains("its key is not that of a request") && text.contains(&request.label), "{text}");
    let stranger = Company::new(None);
    let text = refused(&stranger.sign(&request, &params));
    assert!(text.contains("no offline root that signs here"), "{text}");
    let text = refused(&company.root());
    assert!(text.contains("the root itself"), "{text}");
    let text = refused(&stranger.root());
    assert!(text.contains("signed by itself"), "{text}");
    let good = company.sign(&request, &params);
    let mut many = fs::read(&good).unwrap();
    for _ in 0..3 {
        many.extend(fs::read(Company::new(None).root()).unwrap());
    }
    fs::write(company.dir.path().join("many.pem"), many).unwrap();
    let text = refused(&company.dir.path().join("many.pem"));
    assert!(text.contains("more than 2 CAs"), "{text}");
    assert_eq!(home.store().authorities().unwrap().len(), before, "nothing was stored");

    let good = company.sign(&request, &params);
    let mut der = certificate_of(&good).unwrap().to_vec();
    // Another signature algorithm, and a wrong signature.
    let text = refused(&company.file(&[&sha512(&der)]));
    assert!(text.contains("its signature algorithm is 1.2.840.10045.4.3.4"), "{text}");
    *der.last_mut().unwrap() ^= 1;
    let text = refused(&company.file(&[&der]));
    assert!(text.contains("a chain made below it is refused"), "{text}");
    // No input panics.
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 0xff;
        let _ = Tier::of(&td(), &CertificateDer::from(changed), start());
        let _ = Tier::of(&td(), &CertificateDer::from(der[..at].to_vec()), start());
    }
    home.import_tier(&company.sign(&request, &params), false).unwrap();
}

fn request_of_another() -> Vec<u8> {
    let key = KeyPair::generate_for(TIER_KEY).unwrap();
    profile::tier_request(&td(), "tier-0123456789abcdef", &key).unwrap()
}

/// The same certificate, naming ECDSA with SHA-512.
fn sha512(der: &[u8]) -> Vec<u8> {
    let (sha384, mut changed) = ([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], der.to_vec());
    for at in 0..changed.len() - sha384.len() {
        if changed[at..at + sha384.len()] == sha384 {
            changed[at + sha384.len() - 1] = 4;
        }
    }
    changed
}

#[test]
fn a_root_that_leaves_no_room_for_a_tier_is_refused() {
    let home = Home::new();
    let store = home.store();
    for (length, says) in
        [(Some(0), "path length is 0"), (Some(1), "a tier that signs issuing CAs: 2 or more")]
    {
        let company = Company::new(length);
        let text = import_root(&td(), store.as_ref(), &company.root(), start()).unwrap_err().to_string();
        assert!(text.contains(says) && text.contains("root.pem"), "{text}");
    }
    assert!(store.authorities().unwrap().is_empty());
    // A root whose key is here is not taken for one that is offline.
    drop(store);
    let ca = home.ca();
    let file = home.dir.path().join("own.pem");
    fs::write(&file, pem("CERTIFICATE", &ca.authority.root())).unwrap();
    let text = import_root(&td(), ca.store.as_ref(), &file, home.clock.wall()).unwrap_err().to_string();
    assert!(text.contains("already, with its key"), "{text}");
}
