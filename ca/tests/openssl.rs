//! A foreign judge: OpenSSL verifies every kind of certificate that the CA makes, with its strictest rules.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use postern_ca::authority::{Authority, Lives};
use postern_ca::issue::{Issuer, LeafPolicy, Proof, Reply, Request};
use postern_ca::keys::KeyFiles;
use postern_ca::metrics::Metrics;
use postern_ca::store::{Sqlite, Store};
use postern_ca::token::{Token, TokenRecord};
use postern_svid::{Clock, Role, SpiffeId, SystemClock, TrustDomain, VerifyError, verify};
use prometheus_client::registry::Registry;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

const ID: &str = "spiffe://demo.postern/ns/shop/sa/orders";

struct Ca {
    dir: tempfile::TempDir,
    store: Arc<Sqlite>,
    authority: Arc<Authority>,
    issuer: Issuer,
}

impl Ca {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let td = TrustDomain::parse("demo.postern").unwrap();
        let store = Arc::new(Sqlite::open(&state, &td).unwrap());
        let clock = Arc::new(SystemClock);
        let ttl = Duration::from_secs(3_600);
        let keys = Arc::new(KeyFiles::new(&state));
        let authority =
            Authority::open(td, store.clone(), keys, clock.clone(), Lives::with_leaf(ttl)).unwrap();
        let authority = Arc::new(authority);
        let metrics = Metrics::new(&mut Registry::default());
        let policy = LeafPolicy { ttl, test: false };
        let issuer = Issuer::new(authority.clone(), store.clone(), clock, policy, metrics).unwrap();
        Self { dir, store, authority, issuer }
    }

    fn issue(&self, csr: &[u8]) -> Reply {
        let token = Token::random().unwrap();
        let now = SystemClock.wall();
        let expires = now + Duration::from_secs(60);
        let id = SpiffeId::parse(ID).unwrap();
        self.store
            .add_token(TokenRecord { hash: token.hash(), id, created: now, expires, bound: None })
            .unwrap();
        let proof = Proof::JoinToken(token.reveal());
        self.issuer.issue(Request { csr, id: ID, ttl_seconds: 0, predecessor: &[], proof }).unwrap()
    }

    fn file(&self, name: &str, der: &CertificateDer<'_>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, der).unwrap();
        let pem = path.with_extension("pem");
        run(&["x509", "-inform", "DER", "-in", path.to_str().unwrap(), "-out", pem.to_str().unwrap()]);
        pem
    }

    fn verify(&self, leaf: Option<&Path>, purpose: &str) -> Output {
        let root = self.file("root.der", &self.authority.root());
        let issuing = self.file("issuing.der", self.authority.active().certificate());
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, "-CAfile"]).arg(root);
        match leaf {
            Some(leaf) => command.arg("-untrusted").arg(issuing).arg(leaf),
            None => command.arg(issuing),
        };
        command.output().unwrap()
    }
}

fn run(args: &[&str]) -> Output {
    let out = Command::new("openssl").args(args).output().unwrap();
    assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

fn is_missing() -> bool {
    let missing = Command::new("openssl").arg("version").output().is_err();
    if missing {
        eprintln!(
            "\n*** SKIPPED: no openssl on this machine, so no foreign judge has seen these certificates ***\n"
        );
    }
    missing
}

fn ok(out: &Output) {
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.trim_end().ends_with(": OK"), "{text}");
}

#[test]
fn root_issuing_and_leaves_pass() {
    if is_missing() {
        return;
    }
    let ca = Ca::new();
    let root = ca.file("root.der", &ca.authority.root());
    let self_signed = Command::new("openssl")
        .args(["verify", "-x509_strict", "-check_ss_sig", "-CAfile"])
        .arg(&root)
        .arg(&root)
        .output()
        .unwrap();
    ok(&self_signed);
    ok(&ca.verify(None, "any"));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let reply = ca.issue(CertificateParams::default().serialize_request(&key).unwrap().der());
        let leaf = ca.file("leaf.der", &reply.chain[0]);
        for purpose in ["sslserver", "sslclient"] {
            ok(&ca.verify(Some(&leaf), purpose));
        }
        let smime = ca.verify(Some(&leaf), "smimesign");
        assert!(!smime.status.success(), "this verification can fail");
    }
}

#[test]
fn a_request_made_by_openssl() {
    if is_missing() {
        return;
    }
    let ca = Ca::new();
    for (algorithm, curve) in [("EC", "P-256"), ("EC", "P-384"), ("ED25519", "")] {
        let path = |name: &str| ca.dir.path().join(name).to_str().unwrap().to_owned();
        let (key, csr) = (path("key.pem"), path("csr.der"));
        let mut generate = vec!["genpkey", "-algorithm", algorithm, "-out", &key];
        let option = format!("ec_paramgen_curve:{curve}");
        if !curve.is_empty() {
            generate.extend(["-pkeyopt", &option]);
        }
        run(&generate);
        let digest = if curve == "P-384" { "-sha384" } else { "-sha256" };
        let san = format!("subjectAltName=critical,URI:{ID}");
        // An ugly subject does not matter.
        let ask = ["req", "-new", "-key", &key, digest, "-subj", "/CN=bank.example.com/O=Evil"];
        run(&[&ask[..], &["-addext", &san, "-outform", "DER", "-out", &csr]].concat());
        let reply = ca.issue(&fs::read(&csr).unwrap());
        let leaf = ca.file("leaf.der", &reply.chain[0]);
        ok(&ca.verify(Some(&leaf), "sslclient"));
        let public = run(&["pkey", "-in", &key, "-pubout", "-outform", "DER"]).stdout;
        let (_, certificate) = X509Certificate::from_der(&reply.chain[0]).unwrap();
        assert_eq!(certificate.public_key().raw, public);
    }
}

/// What a thief could do with the issuing CA's key: not a certificate for a host name.
#[test]
fn a_stolen_issuing_key_is_worthless_for_host_names() {
    let ca = Ca::new();
    let state = ca.dir.path().join("state");
    let rows = ca.store.authorities().unwrap();
    let row = rows.iter().find(|row| row.label.starts_with("issuing-")).unwrap();
    let stolen = KeyPair::try_from(fs::read(state.join(format!("{}.key", row.label))).unwrap()).unwrap();
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = DistinguishedName::new();
    issuer.distinguished_name.push(rcgen::DnType::OrganizationName, "demo.postern");
    let label = rcgen::DnValue::PrintableString(row.label.as_str().try_into().unwrap());
    issuer.distinguished_name.push(rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]), label);
    issuer.key_identifier_method = KeyIdMethod::PreSpecified(row.key_id.clone());
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = Signer::new(issuer, stolen);

    let forge = |names: Vec<SanType>| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = time::OffsetDateTime::from(SystemClock.wall() - Duration::from_secs(60));
        params.not_after = time::OffsetDateTime::from(SystemClock.wall() + Duration::from_secs(600));
        params.serial_number = Some(vec![0x41; 16].into());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        params.signed_by(&key, &issuer).unwrap().der().clone()
    };
    let uri = SanType::URI(ID.try_into().unwrap());
    let dns = SanType::DnsName("bank.example.com".try_into().unwrap());
    let ip = SanType::IpAddress("192.0.2.1".parse().unwrap());
    let ours = |leaf: &CertificateDer<'static>| {
        let chain = [leaf.clone(), ca.authority.active().certificate().clone()];
        verify(&chain, &ca.authority.bundles(), Role::Server, SystemClock.wall()).map(drop)
    };
    // The forgery is good enough to be accepted where the constraints allow it: what follows is their doing.
    let plain = forge(vec![uri.clone()]);
    assert_eq!(ours(&plain), Ok(()));
    for names in [vec![dns.clone()], vec![ip.clone()], vec![uri.clone(), dns], vec![uri, ip]] {
        let leaf = forge(names);
        assert!(matches!(ours(&leaf), Err(VerifyError::OtherName(_) | VerifyError::NoSpiffeId)));
        if !is_missing() {
            ok(&ca.verify(Some(&ca.file("plain.der", &plain)), "sslserver"));
            let out = ca.verify(Some(&ca.file("forged.der", &leaf)), "sslserver");
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(!out.status.success() && text.contains("excluded subtree violation"), "{text}");
        }
    }
}
