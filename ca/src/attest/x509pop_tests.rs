use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};

use super::*;
use crate::testing::start;

const ID: &str = "spiffe://td/vm/db-1";
const CSR: &[u8] = b"a request";

/// A CA of machines.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
}

impl Ca {
    fn new(name: &str, ends: Duration) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (start() - Duration::from_secs(60)).into();
        params.not_after = (start() + ends).into();
        Self { params, key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.signed_by(key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().to_vec()
    }
}

fn machine() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["db-1.example".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "db-1");
    params.not_before = (start() - Duration::from_secs(60)).into();
    params.not_after = (start() + Duration::from_secs(3_600)).into();
    params
}

fn believing(ca: &Ca) -> Attestation {
    let machines = Machines { name: "hall".to_owned(), roots: Roots::parse(ca.pem().as_bytes()).unwrap() };
    Attestation { x509pop: vec![machines], ..Attestation::default() }
}

fn ecdsa(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.serialized_der()).unwrap();
    key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

#[test]
fn who_holds_the_key_is_believed() {
    let ca = Ca::new("hall", Duration::from_secs(86_400));
    let attestation = believing(&ca);
    let channel = Channel::from([7; 32]);
    let message = channel.message(CSR, ID);
    let show = |chain: &[Vec<u8>], scheme, signature: &[u8]| {
        attestation.x509pop(Possession { chain, scheme, signature, channel: &channel }, CSR, ID, start())
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let chain = [ca.sign(&machine(), &key)];
    let facts = show(&chain, 0x0403, &ecdsa(&key, &message)).unwrap();
    for (name, value) in [
        (FactName::X509Ca, "hall"),
        (FactName::X509CommonName, "db-1"),
        (FactName::X509Subject, "CN=db-1"),
        (FactName::X509Dns, "db-1.example"),
        (FactName::X509Fingerprint, &crate::hex(&crate::csr::fingerprint(&chain[0]))),
    ] {
        assert_eq!(facts.only(&name), Some(value), "{facts}");
    }

    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let chain = [ca.sign(&machine(), &rsa)];
    let pair = RsaKeyPair::from_pkcs8(rsa.serialized_der()).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), &message, &mut signature).unwrap();
    show(&chain, 0x0804, &signature).unwrap();
    for scheme in [0, 0x0403, 0x0401, 0x0807, u32::MAX] {
        assert!(show(&chain, scheme, &signature).is_err(), "{scheme:#x}");
    }
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &message, &mut signature).unwrap();
    assert!(show(&chain, 0x0804, &signature).is_err());
}

#[test]
fn a_signature_is_for_one_connection_one_key_and_one_id() {
    let ca = Ca::new("hall", Duration::from_secs(86_400));
    let attestation = believing(&ca);
    let channel = Channel::from([7; 32]);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let chain = [ca.sign(&machine(), &key)];
    let signature = ecdsa(&key, &channel.message(CSR, ID));
    let other = Channel::from([8; 32]);
    let show = |channel, csr, id| {
        let possession = Possession { chain: &chain, scheme: 0x0403, signature: &signature, channel };
        attestation.x509pop(possession, csr, id, start()).is_ok()
    };
    assert!(show(&channel, CSR, ID));
    assert!(!show(&other, CSR, ID), "replayed on another connection");
    assert!(!show(&channel, b"another key", ID));
    assert!(!show(&channel, CSR, "spiffe://td/vm/db-2"));
}

#[test]
fn no_other_certificate_will_do() {
    let (ca, stranger) =
        (Ca::new("hall", Duration::from_secs(86_400)), Ca::new("hall", Duration::from_secs(86_400)));
    let attestation = believing(&ca);
    let channel = Channel::from([7; 32]);
    let (key, second) = (
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    let show = |attestation: &Attestation, chain: &[Vec<u8>], key: &KeyPair, after: Duration| {
        let signature = ecdsa(key, &channel.message(CSR, ID));
        let possession = Possession { chain, scheme: 0x0403, signature: &signature, channel: &channel };
        attestation.x509pop(possession, CSR, ID, start() + after).map(drop).map_err(|why| why.to_string())
    };
    let now = Duration::ZERO;
    let good = [ca.sign(&machine(), &key)];
    assert_eq!(show(&attestation, &good, &key, now), Ok(()));
    assert!(show(&attestation, &good, &second, now).unwrap_err().contains("signature"));
    let ended = show(&attestation, &good, &key, Duration::from_secs(3_700)).unwrap_err();
    assert_eq!(ended, "the certificate does not verify by hall: it, or one above it, has expired");
    assert!(show(&attestation, &[], &key, now).is_err());
    assert!(show(&attestation, &[b"junk".to_vec()], &key, now).is_err());
    assert!(show(&attestation, &vec![good[0].clone(); 7], &key, now).unwrap_err().contains("7 certificates"));
    assert!(
        show(&attestation, &[stranger.sign(&machine(), &key)], &key, now).is_err(),
        "another CA of this name"
    );
    let itself = [machine().self_signed(&key).unwrap().der().to_vec()];
    assert!(show(&attestation, &itself, &key, now).is_err());
    let root = [ca.params.self_signed(&ca.key).unwrap().der().to_vec()];
    assert!(show(&attestation, &root, &ca.key, now).is_err(), "a CA is no machine");
    let mut server = machine();
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let narrow = show(&attestation, &[ca.sign(&server, &key)], &key, now).unwrap_err();
    assert!(narrow.ends_with("its extended key usage has no client authentication"), "{narrow}");
    assert!(show(&Attestation::default(), &good, &key, now).unwrap_err().contains("no root"));
    // A root past its dates vouches for nobody.
    let old = Ca::new("old", Duration::from_secs(60));
    let old_leaf = [old.sign(&machine(), &key)];
    assert_eq!(show(&believing(&old), &old_leaf, &key, now), Ok(()));
    assert!(show(&believing(&old), &old_leaf, &key, Duration::from_secs(61)).is_err());
    // A CA between them.
    let between = Ca::new("between", Duration::from_secs(86_400));
    let mut params = between.params.clone();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let chain = [between.sign(&machine(), &key), ca.sign(&params, &between.key)];
    assert_eq!(show(&attestation, &chain, &key, now), Ok(()));
    assert!(show(&attestation, &chain[..1], &key, now).is_err());
}

#[test]
fn what_is_no_bundle() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let leaf = machine().self_signed(&key).unwrap().pem();
    for (text, says) in [
        ("", "no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "root 1"),
        (&leaf, "no CA's"),
    ] {
        let said = Roots::parse(text.as_bytes()).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
    let root = Ca::new("hall", Duration::from_secs(60)).pem();
    assert!(Roots::parse(root.repeat(65).as_bytes()).unwrap_err().contains("64"));
}
