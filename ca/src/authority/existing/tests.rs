use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;

use postern_svid::Clock as _;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, SanType,
};
use time::OffsetDateTime;

use super::*;
use crate::keys::KeyFiles;
use crate::testing::{HOUR, Home, id, start, td};

const DAY: Duration = Duration::from_secs(86_400);

/// As an operator would make it: a name of two attributes, no path length, a URI or none.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "CH");
    params.distinguished_name.push(DnType::CommonName, "The Company's Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(start() - 400 * DAY);
    params.not_after = OffsetDateTime::from(start() + 3_000 * DAY);
    params
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(certificate: &str, key: &str) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(files.path("root.pem"), certificate).unwrap();
        keys::write_private(&files.path("root.key"), key.as_bytes()).unwrap();
        files
    }

    fn of(params: CertificateParams, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        Self::new(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self) -> Result<ExistingRoot, RootError> {
        ExistingRoot::read(&td(), &self.path("root.pem"), &self.path("root.key"), start())
    }

    fn refused(&self) -> String {
        self.read().err().expect("refused").to_string()
    }
}

#[test]
fn an_existing_root_carries_a_mesh_and_is_installed_once() {
    for (params, algorithm) in [
        (params(), &PKCS_ECDSA_P384_SHA384),
        (params(), &PKCS_ECDSA_P256_SHA256),
        (
            {
                let mut params = params();
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
                params.subject_alt_names = vec![SanType::URI(td().id().try_into().unwrap())];
                params
            },
            &PKCS_ECDSA_P384_SHA384,
        ),
    ] {
        let files = Files::of(params, algorithm);
        let home = Home::new();
        let store = home.store();
        let keys = KeyFiles::new(&home.path());
        let root = files.read().unwrap();
        root.install(store.as_ref(), &keys, home.clock.wall()).unwrap();
        let ca = home.ca_on(store);
        assert_eq!(ca.authority.root(), *root.certificate());
        ca.joined(&id("orders"));
        // The issuing CA turns under it, too.
        home.clock.advance(4 * DAY);
        ca.authority.maintain().unwrap();
        home.clock.advance(DAY);
        ca.authority.maintain().unwrap();
        ca.joined(&id("store"));
        let (first, _) = (ca.authority.active(), drop(ca));
        let ca = home.ca();
        assert_eq!(ca.authority.active().key_id(), first.key_id());
        assert!(first.not_after() > home.clock.wall() + HOUR);
    }
}

#[test]
fn an_install_that_broke_off_is_taken_up() {
    let files = Files::of(params(), &PKCS_ECDSA_P384_SHA384);
    let root = files.read().unwrap();
    let home = Home::new();
    let (store, keys) = (home.store(), KeyFiles::new(&home.path()));
    let label = format!("root-{}", &crate::hex(&csr::fingerprint(root.certificate()))[..16]);
    keys.import(&label, &root.pkcs8, root.algorithm).unwrap();
    root.install(store.as_ref(), &keys, start()).unwrap();
    assert_eq!(keys.names().unwrap(), std::slice::from_ref(&label));
    assert_eq!(store.authorities().unwrap()[0].label, label);

    // Another key by its name is not taken for it.
    let home = Home::new();
    let (store, keys) = (home.store(), KeyFiles::new(&home.path()));
    keys.create(&label, &PKCS_ECDSA_P384_SHA384).unwrap();
    let refused = root.install(store.as_ref(), &keys, start());
    assert!(matches!(refused, Err(AuthorityError::KeyMismatch(_))));
    assert!(store.authorities().unwrap().is_empty());
}

#[test]
fn each_refusal_says_what_is_wrong_with_the_certificate() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, &str); 15] = [
        ("a leaf", |p| p.is_ca = IsCa::ExplicitNoCa, "no certificate authority"),
        ("no CA flag at all", |p| p.is_ca = IsCa::NoCa, "no certificate authority"),
        ("path length 0", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "path length is 0"),
        ("no keyCertSign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "lacks keyCertSign"),
        ("expired", |p| p.not_after = OffsetDateTime::from(start() - DAY), "it ends at"),
        ("ends next week", |p| p.not_after = OffsetDateTime::from(start() + 7 * DAY), "at least 30 days"),
        ("not yet valid", |p| p.not_before = OffsetDateTime::from(start() + DAY), "is the clock right"),
        (
            "another trust domain",
            |p| p.subject_alt_names = vec![SanType::URI("spiffe://other.example".try_into().unwrap())],
            "other.example",
        ),
        (
            "name constraints",
            |p| {
                let everything =
                    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::from([0; 4]), 0));
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: Vec::new(),
                    excluded_subtrees: vec![everything],
                });
            },
            "name constraints",
        ),
        (
            "for code only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            "extended key usage",
        ),
        (
            "for servers and clients",
            |p| {
                p.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            },
            "extended key usage",
        ),
        (
            "a DNS name",
            |p| p.subject_alt_names = vec![SanType::DnsName("ca.example".try_into().unwrap())],
            "(ca.example): a root has none",
        ),
        (
            "an address beside the trust domain",
            |p| {
                p.subject_alt_names = vec![
                    SanType::URI(td().id().try_into().unwrap()),
                    SanType::IpAddress(IpAddr::from([10, 0, 0, 1])),
                ];
            },
            "spiffe://demo.postern alone",
        ),
        (
            "the trust domain twice",
            |p| p.subject_alt_names = vec![SanType::URI(td().id().try_into().unwrap()); 2],
            "spiffe://demo.postern alone",
        ),
        ("no name", |p| p.distinguished_name = rcgen::DistinguishedName::new(), "subject is empty"),
    ];
    for (what, change, says) in cases {
        let mut params = params();
        change(&mut params);
        let files = Files::of(params, &PKCS_ECDSA_P384_SHA384);
        let text = files.refused();
        assert!(text.contains(says) && text.contains("root.pem"), "{what}: {text}");
    }
    for other in [&PKCS_ED25519, &PKCS_ECDSA_P521_SHA512] {
        let text = Files::of(params(), other).refused();
        assert!(text.contains("on P-384 or P-256") && !text.contains("Ed25519"), "{text}");
    }
}

#[test]
fn a_certificate_of_another_ca_and_a_changed_one_are_no_root() {
    let (upper, key) =
        (KeyPair::generate_for(ISSUING_KEY).unwrap(), KeyPair::generate_for(ISSUING_KEY).unwrap());
    let issuer = Issuer::new(params(), upper);
    let mut below = params();
    below.distinguished_name.push(DnType::CommonName, "Below");
    let certificate = below.signed_by(&key, &issuer).unwrap();
    let text = Files::new(&certificate.pem(), &key.serialize_pem()).refused();
    assert!(text.contains("signed by another CA"), "{text}");
    // The same name, another key: not its own signature.
    let impostor = params().signed_by(&key, &issuer).unwrap();
    let text = Files::new(&impostor.pem(), &key.serialize_pem()).refused();
    assert!(text.contains("its signature is not its own key's"), "{text}");
}

#[test]
fn names_that_would_come_out_differently_are_refused_and_no_input_panics() {
    // Two OU: the certificate library keeps one, and the chain would name another issuer.
    let key = KeyPair::generate_for(ISSUING_KEY).unwrap();
    let der = params().self_signed(&key).unwrap().der().to_vec();
    let common_name = [0x06, 0x03, 0x55, 0x04, 0x03];
    let country = [0x06, 0x03, 0x55, 0x04, 0x06];
    let mut twice = der.clone();
    for at in 0..twice.len() - 5 {
        if twice[at..at + 5] == country {
            twice[at..at + 5].copy_from_slice(&common_name);
        }
    }
    let parsed = CertificateDer::from(twice);
    let error = Signer::new(&parsed, key).err().unwrap().to_string();
    assert!(error.contains("two attributes of one type"), "{error}");
    // Every byte of it changed, cut off, and doubled.
    for at in 0..der.len() {
        for value in [0, der[at] ^ 1, 0xff] {
            let mut changed = der.clone();
            changed[at] = value;
            let _ = Signer::new(&CertificateDer::from(changed.clone()), KeyPair::generate().unwrap());
            let _ = Fit::of(&td(), &CertificateDer::from(changed), 1, start());
        }
        let _ = Fit::of(&td(), &CertificateDer::from(der[..at].to_vec()), 1, start());
    }
}

#[test]
fn each_refusal_says_what_is_wrong_with_the_files() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = params().self_signed(&key).unwrap().pem();
    let pem = key.serialize_pem();
    let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let curve = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    let encrypted = pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (what, certificate, key, says) in [
        ("no PEM", "hello", pem.as_str(), "no certificate in PEM"),
        ("a key for a certificate", &pem, &pem, "no certificate in PEM"),
        ("two certificates", &format!("{certificate}{certificate}"), &pem, "several certificates"),
        ("no key", &certificate, "hello", "no private key in PEM"),
        ("encrypted", &certificate, &encrypted, "encrypted with a passphrase: openssl pkey"),
        ("another key", &certificate, &other, "key of another certificate"),
        ("another curve", &certificate, &curve, "not a private key on the curve"),
        ("long", &certificate.repeat(200), &pem, "longer than 65536"),
    ] {
        let text = Files::new(certificate, key).refused();
        assert!(text.contains(says), "{what}: {text}");
    }
    let files = Files::new(&certificate, &pem);
    fs::set_permissions(files.path("root.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(files.refused().contains("chmod 600"), "{}", files.refused());
    fs::remove_file(files.path("root.pem")).unwrap();
    assert!(files.refused().contains("root.pem"));
    // A pipe that nobody writes to is no file, and is not waited for.
    nix::unistd::mkfifo(&files.path("root.pem"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(files.refused().contains("not a regular file"), "{}", files.refused());
    // Comments and texts around the sections are fine.
    let files = Files::new(&format!("subject=…\n{certificate}"), &format!("Bag Attributes\n{pem}"));
    files.read().unwrap();
}
