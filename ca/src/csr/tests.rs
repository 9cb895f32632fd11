use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SanType,
    SigningKey,
};

use super::*;

const ID: &str = "spiffe://demo.postern/ns/shop/sa/orders";

fn id() -> SpiffeId {
    SpiffeId::parse(ID).unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ ..=0x7f => out.push(n as u8),
        n @ ..=0xff => out.extend([0x81, n as u8]),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

const ALGORITHM: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A request put together part by part and signed, so that nothing but the part in question is wrong.
struct Parts {
    key: KeyPair,
    version: Vec<u8>,
    subject: Vec<u8>,
    spki: Vec<u8>,
    attributes: Vec<u8>,
    algorithm: Vec<u8>,
    /// After the info within the outer sequence.
    inner_tail: Vec<u8>,
    unused_bits: u8,
}

impl Parts {
    fn new() -> Self {
        let key = key();
        Self {
            version: vec![0x02, 0x01, 0x00],
            subject: vec![0x30, 0x00],
            spki: key.subject_public_key_info(),
            attributes: vec![0xa0, 0x00],
            algorithm: ALGORITHM.to_vec(),
            inner_tail: Vec::new(),
            unused_bits: 0,
            key,
        }
    }

    fn build(&self) -> Vec<u8> {
        let info = seq(&[&self.version, &self.subject, &self.spki, &self.attributes]);
        let signature = [vec![self.unused_bits], self.key.sign(&info).unwrap()].concat();
        seq(&[&info, &self.algorithm, &tlv(BIT_STRING, &signature), &self.inner_tail])
    }

    fn extensions(extensions: &[&[u8]]) -> Vec<u8> {
        tlv(CONTEXT_0, &attribute(EXTENSION_REQUEST, &[&seq(extensions)]))
    }
}

fn attribute(oid: &[u8], values: &[&[u8]]) -> Vec<u8> {
    seq(&[&tlv(OID, oid), &tlv(SET, &values.concat())])
}

fn extension(oid: &[u8], critical: &[u8], value: &[u8]) -> Vec<u8> {
    seq(&[&tlv(OID, oid), critical, &tlv(OCTET_STRING, value)])
}

fn san(name: &[u8]) -> Vec<u8> {
    extension(SUBJECT_ALT_NAME, &[], name)
}

#[test]
fn every_allowed_kind_of_key() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        let plain = params.serialize_request(&key).unwrap();
        let verified = verify(plain.der(), &id()).unwrap();
        assert_eq!(verified.spki(), key.subject_public_key_info());
        assert_eq!(verified.der_bytes(), key.public_key_raw());

        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
        let named = params.serialize_request(&key).unwrap();
        assert_eq!(verify(named.der(), &id()).unwrap().spki(), key.subject_public_key_info());
    }
}

#[test]
fn parts_are_right_when_nothing_is_wrong() {
    let mut parts = Parts::new();
    assert_eq!(verify(&parts.build(), &id()).unwrap().spki(), parts.spki);
    for critical in [&[][..], &[0x01, 0x01, 0xff]] {
        parts.attributes = Parts::extensions(&[&extension(SUBJECT_ALT_NAME, critical, &der::uri_san(ID))]);
        assert_eq!(verify(&parts.build(), &id()).unwrap().spki(), parts.spki);
    }
    // An empty list asks for nothing.
    parts.attributes = Parts::extensions(&[]);
    assert!(verify(&parts.build(), &id()).is_ok());
}

/// One thing wrong at a time; the signature is right each time.
#[test]
fn hostile_requests() {
    let good = der::uri_san(ID);
    let other = der::uri_san("spiffe://demo.postern/ns/shop/sa/store");
    let two = seq(&[&tlv(0x86, ID.as_bytes()), &tlv(0x86, b"spiffe://demo.postern/admin")]);
    let dns = seq(&[&tlv(0x82, b"bank.example.com")]);
    let uri_and_dns = seq(&[&tlv(0x86, ID.as_bytes()), &tlv(0x82, b"bank.example.com")]);
    let long_form = [&[0x30, 0x81, good.len() as u8 - 2][..], &good[2..]].concat();
    let prefix = der::uri_san(&ID[..ID.len() - 1]);
    let cased = der::uri_san(&ID.replace("orders", "Orders"));
    let nul = der::uri_san(&format!("{ID}\0"));
    let ca_true = extension(&[0x55, 0x1d, 0x13], &[0x01, 0x01, 0xff], &[0x30, 0x03, 0x01, 0x01, 0xff]);
    let not_ca = extension(&[0x55, 0x1d, 0x13], &[], &[0x30, 0x00]);
    let cert_sign = extension(&[0x55, 0x1d, 0x0f], &[0x01, 0x01, 0xff], &[0x03, 0x02, 0x02, 0x04]);
    let any_usage = extension(&[0x55, 0x1d, 0x25], &[], &seq(&[&tlv(OID, &[0x55, 0x1d, 0x25, 0x00])]));
    let unknown = extension(&[0x2a, 0x03, 0x04], &[0x01, 0x01, 0xff], &[0x05, 0x00]);
    let false_critical = extension(SUBJECT_ALT_NAME, &[0x01, 0x01, 0x00], &good);
    let odd_critical = extension(SUBJECT_ALT_NAME, &[0x01, 0x01, 0x01], &good);
    let one = |e: &[u8]| Parts::extensions(&[e]);
    let request = |e: &[u8]| attribute(EXTENSION_REQUEST, &[&seq(&[e])]);
    let challenge =
        attribute(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07], &[&tlv(0x0c, b"secret")]);

    let attributes: Vec<(&str, Vec<u8>, CsrError)> = vec![
        ("another id", one(&san(&other)), CsrError::Name),
        ("two ids", one(&san(&two)), CsrError::Name),
        ("a DNS name", one(&san(&dns)), CsrError::Name),
        ("id and DNS name", one(&san(&uri_and_dns)), CsrError::Name),
        ("an id in another encoding", one(&san(&long_form)), CsrError::Name),
        ("a prefix of the id", one(&san(&prefix)), CsrError::Name),
        ("another case", one(&san(&cased)), CsrError::Name),
        ("a NUL after the id", one(&san(&nul)), CsrError::Name),
        ("an empty name", one(&san(&[0x30, 0x00])), CsrError::Name),
        ("bytes after the name", one(&san(&[&good[..], b"x"].concat())), CsrError::Name),
        ("CA:TRUE", one(&ca_true), CsrError::Extension),
        ("CA:FALSE", one(&not_ca), CsrError::Extension),
        ("keyCertSign", one(&cert_sign), CsrError::Extension),
        ("any purpose", one(&any_usage), CsrError::Extension),
        ("an unknown critical extension", one(&unknown), CsrError::Extension),
        ("CA:TRUE behind the right name", Parts::extensions(&[&san(&good), &ca_true]), CsrError::Extension),
        ("the name twice", Parts::extensions(&[&san(&good), &san(&good)]), CsrError::Extension),
        ("critical FALSE spelt out", one(&false_critical), CsrError::Malformed),
        ("critical neither TRUE nor FALSE", one(&odd_critical), CsrError::Malformed),
        ("a challenge password", tlv(CONTEXT_0, &challenge), CsrError::Attribute),
        (
            "a second extensionRequest",
            tlv(CONTEXT_0, &[request(&san(&good)), request(&ca_true)].concat()),
            CsrError::Attribute,
        ),
        (
            "a second value in one extensionRequest",
            tlv(CONTEXT_0, &attribute(EXTENSION_REQUEST, &[&seq(&[&san(&good)]), &seq(&[&ca_true])])),
            CsrError::Attribute,
        ),
        (
            "an extensionRequest without value",
            tlv(CONTEXT_0, &attribute(EXTENSION_REQUEST, &[])),
            CsrError::Malformed,
        ),
        ("no attributes field", Vec::new(), CsrError::Malformed),
        ("attributes under another tag", vec![0xa1, 0x00], CsrError::Malformed),
        ("two attributes fields", vec![0xa0, 0x00, 0xa0, 0x00], CsrError::Malformed),
    ];
    assert!(attributes.len() > 20);
    for (what, attributes, error) in attributes {
        let parts = Parts { attributes, ..Parts::new() };
        assert_eq!(verify(&parts.build(), &id()).err(), Some(error), "{what}");
    }

    let parts: Vec<(&str, Parts, CsrError)> = vec![
        ("version 1", Parts { version: vec![2, 1, 1], ..Parts::new() }, CsrError::Version),
        ("version 0 in two octets", Parts { version: vec![2, 2, 0, 0], ..Parts::new() }, CsrError::Version),
        ("no version", Parts { version: Vec::new(), ..Parts::new() }, CsrError::Malformed),
        ("a subject that is none", Parts { subject: vec![0x05, 0x00], ..Parts::new() }, CsrError::Malformed),
        ("bytes within", Parts { inner_tail: vec![0x05, 0x00], ..Parts::new() }, CsrError::Malformed),
        ("unused bits", Parts { unused_bits: 1, ..Parts::new() }, CsrError::Malformed),
        (
            "signed with SHA-1, by its own account",
            Parts {
                algorithm: seq(&[&tlv(OID, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01])]),
                ..Parts::new()
            },
            CsrError::SignatureAlgorithm,
        ),
        (
            "parameters where none may be",
            Parts { algorithm: seq(&[&ALGORITHM[2..], &[0x05, 0x00]]), ..Parts::new() },
            CsrError::SignatureAlgorithm,
        ),
        (
            "SHA-384 with a P-256 key",
            Parts { algorithm: [&ALGORITHM[..11], &[0x03]].concat(), ..Parts::new() },
            CsrError::SignatureAlgorithm,
        ),
    ];
    for (what, parts, error) in parts {
        assert_eq!(verify(&parts.build(), &id()).err(), Some(error), "{what}");
    }
}

#[test]
fn keys_that_are_refused() {
    let own = key().subject_public_key_info();
    let mut hybrid = own.clone();
    hybrid[26] = 0x06;
    // The same point, compressed.
    let compressed = seq(&[&own[2..23], &tlv(BIT_STRING, &[&[0, 2], &own[27..59]].concat())]);
    let mut long_form = own.clone();
    long_form.splice(1..2, [0x81, 0x59]);
    let mut p521 = own.clone();
    p521[22] = 0x08;
    let rsa = seq(&[
        &seq(&[&tlv(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]), &[0x05, 0x00]]),
        &tlv(BIT_STRING, &[0; 140]),
    ]);
    for (what, spki) in [
        ("hybrid point", hybrid),
        ("compressed point", compressed),
        ("key info in another encoding", long_form),
        ("another curve", p521),
        ("RSA", rsa),
        ("longer than its curve", [&own[..], &[0]].concat()),
    ] {
        let built = Parts { spki, ..Parts::new() }.build();
        let error = verify(&built, &id()).err().unwrap();
        assert!(matches!(error, CsrError::KeyAlgorithm | CsrError::Malformed), "{what}: {error:?}");
    }
    // The signature is by another key than the one in the request.
    let stolen = Parts { spki: own, ..Parts::new() }.build();
    assert_eq!(verify(&stolen, &id()).err(), Some(CsrError::Possession));
    // Not a point of the curve.
    let mut off = key().subject_public_key_info();
    off[60] ^= 1;
    assert_eq!(verify(&Parts { spki: off, ..Parts::new() }.build(), &id()).err(), Some(CsrError::Possession));
}

#[test]
fn what_a_certificate_library_writes_when_told_to_cheat() {
    let key = key();
    let mut params = CertificateParams::new(vec!["bank.example.com".to_owned()]).unwrap();
    assert_eq!(verify(params.serialize_request(&key).unwrap().der(), &id()).err(), Some(CsrError::Name));
    params.subject_alt_names.clear();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(verify(params.serialize_request(&key).unwrap().der(), &id()).err(), Some(CsrError::Extension));
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    assert_eq!(verify(params.serialize_request(&key).unwrap().der(), &id()).err(), Some(CsrError::Extension));
    params.key_usages.clear();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    assert_eq!(verify(params.serialize_request(&key).unwrap().der(), &id()).err(), Some(CsrError::Extension));
    params.extended_key_usages.clear();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0])];
    assert_eq!(verify(params.serialize_request(&key).unwrap().der(), &id()).err(), Some(CsrError::Extension));
}

#[test]
fn sizes() {
    let good = Parts::new().build();
    assert_eq!(verify(&[&good[..], b"garbage"].concat(), &id()).err(), Some(CsrError::Trailing));
    assert_eq!(verify(&[&good[..], &good].concat(), &id()).err(), Some(CsrError::Trailing));
    assert_eq!(verify(&[], &id()).err(), Some(CsrError::Malformed));
    let subject = tlv(SEQUENCE, &vec![0; MAX_CSR]);
    let huge = Parts { subject, ..Parts::new() }.build();
    assert_eq!(verify(&huge, &id()).err(), Some(CsrError::TooLong(huge.len())));
    // The longest id fits.
    let long = SpiffeId::parse(&format!("spiffe://td/{}", "a".repeat(2_036))).unwrap();
    let attributes = Parts::extensions(&[&san(&der::uri_san(long.as_str()))]);
    let parts = Parts { attributes, ..Parts::new() };
    assert_eq!(verify(&parts.build(), &long).unwrap().spki(), parts.spki);
    for end in 0..good.len() {
        assert!(verify(&good[..end], &id()).is_err(), "cut at {end}");
    }
}

/// Whichever bit is turned, the request is refused: nothing in it goes unsigned.
#[test]
fn every_bit_counts() {
    let attributes = Parts::extensions(&[&san(&der::uri_san(ID))]);
    let good = Parts { attributes, ..Parts::new() }.build();
    assert!(verify(&good, &id()).is_ok());
    for at in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(verify(&bad, &id()).is_err(), "bit {at}");
    }
}
