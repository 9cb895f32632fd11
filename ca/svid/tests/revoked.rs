//! Taint and deny lists: what they take, what they leave, and what is said of it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod pki;

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use pki::*;
use postern_svid::{
    Bundle, Bundles, Culprit, Revocations, RevocationsError, Revoked, Role, SpiffeId, TrustDomain,
    VerifyError, verify, verify_again,
};
use rcgen::{Issuer, PublicKeyData as _, SerialNumber};
use rustls_pki_types::CertificateDer;

fn bundles(roots: Vec<CertificateDer<'static>>, revoked: Vec<Revoked>) -> Bundles {
    let revocations = Revocations::new(revoked).unwrap();
    Bundles::of(Bundle::new(td(), 1, roots).unwrap().with_revocations(revocations))
}

fn after(pki: &Pki, revoked: Revoked) -> Result<(), VerifyError> {
    verify(&pki.chain(), &bundles(vec![pki.root_der()], vec![revoked]), Role::Client, now()).map(drop)
}

fn key_of(key: &rcgen::KeyPair) -> [u8; 32] {
    digest(&SHA256, &key.subject_public_key_info()).as_ref().try_into().unwrap()
}

#[test]
fn what_a_leaf_is_denied_by() {
    let pki = Pki::new();
    let id = |text: &str| Revoked::Id(SpiffeId::parse(text).unwrap());
    for entry in [id(ID), Revoked::Serial(vec![0x5a; 16]), Revoked::Key(key_of(&pki.leaf_key))] {
        assert_eq!(after(&pki, entry.clone()), Err(VerifyError::Denied(entry)));
    }
    // A leading zero is how DER writes it, not another number.
    let padded = [&[0][..], &[0x5a; 16]].concat();
    assert_eq!(after(&pki, Revoked::Serial(padded)).unwrap_err().reason(), "denied");
    for other in [
        id("spiffe://demo.postern/ns/shop/sa/order"),
        id("spiffe://demo.postern/ns/shop/sa/orders/a"),
        Revoked::Serial(vec![0x5a; 15]),
        Revoked::Key([0; 32]),
        // An authority's serial number is another namespace: its taint goes by key.
        Revoked::Serial(vec![0x11; 16]),
    ] {
        assert_eq!(after(&pki, other.clone()), Ok(()), "{other}");
    }
}

#[test]
fn what_an_authority_is_tainted_by() {
    let pki = Pki::new();
    let root = pki.root.key_identifier(&pki.root_key);
    let issuing = pki.issuing.key_identifier(&pki.issuing_key);
    for (entry, culprit) in [
        (Revoked::Authority(root.clone()), Culprit::Root(root.clone())),
        (Revoked::Key(key_of(&pki.root_key)), Culprit::Root(root)),
        (Revoked::Authority(issuing.clone()), Culprit::IssuingCa(issuing.clone())),
        (Revoked::Key(key_of(&pki.issuing_key)), Culprit::IssuingCa(issuing)),
    ] {
        let error = Box::new(VerifyError::Tainted);
        assert_eq!(after(&pki, entry), Err(VerifyError::Authority { culprit, error }));
    }
    // A leaf's key id is not an authority's.
    let leaf = pki.leaf.key_identifier(&pki.leaf_key);
    assert_eq!(after(&pki, Revoked::Authority(leaf)), Ok(()));
}

/// The old root is tainted while the new one, under which the same issuing CA was certified too, stays.
#[test]
fn a_leaf_with_another_path_keeps_it() {
    let pki = Pki::new();
    let mut new = Pki::new();
    new.root.serial_number = Some(SerialNumber::from_slice(&[0x12; 16]));
    new.root.distinguished_name.push(rcgen::DnType::CommonName, "root 2");
    let crossed = pki.issuing.signed_by(&pki.issuing_key, &Issuer::from_params(&new.root, &new.root_key));
    let crossed = crossed.unwrap().der().clone();
    let mut chain = pki.chain();
    chain.push(crossed);
    let roots = || vec![pki.root_der(), new.root_der()];
    let old = Revoked::Authority(pki.root.key_identifier(&pki.root_key));
    let both = [old.clone(), Revoked::Authority(new.root.key_identifier(&new.root_key))];
    verify(&chain, &bundles(roots(), vec![old.clone()]), Role::Client, now()).unwrap();
    let error = verify(&chain[..2], &bundles(roots(), vec![old]), Role::Client, now()).unwrap_err();
    assert_eq!(error.reason(), "tainted");
    let error = verify(&chain, &bundles(roots(), both.to_vec()), Role::Client, now()).unwrap_err();
    assert_eq!(error.reason(), "tainted");
}

#[test]
fn a_trust_domain_revokes_its_own_only() {
    let pki = Pki::new();
    let evil = TrustDomain::parse("evil.example").unwrap();
    let mut theirs = Pki::new();
    theirs.root = root_params(&evil);
    let revoked = [
        Revoked::Id(SpiffeId::parse(ID).unwrap()),
        Revoked::Serial(vec![0x5a; 16]),
        Revoked::Authority(pki.root.key_identifier(&pki.root_key)),
    ];
    let theirs = Bundle::new(evil, 1, vec![theirs.root_der()]).unwrap();
    let theirs = theirs.with_revocations(Revocations::new(revoked).unwrap());
    let both = pki.bundles().with(std::sync::Arc::new(theirs));
    verify(&pki.chain(), &both, Role::Client, now()).unwrap();
}

/// What is open is held against the lists too.
#[test]
fn a_chain_that_verified_once_is_revoked_later() {
    let pki = Pki::new();
    let root = pki.root_der();
    let older = bundles(vec![root.clone()], Vec::new());
    for entry in [Revoked::Serial(vec![0x5a; 16]), Revoked::Key(key_of(&pki.issuing_key))] {
        let newer = bundles(vec![root.clone()], vec![entry]);
        assert!(!newer.keep_all_of(&older) && older.keep_all_of(&newer) && newer.keep_all_of(&newer));
        let later = now() + Duration::from_secs(7_200);
        verify_again(&pki.chain(), &older, Role::Client, now(), later).unwrap();
        assert!(verify_again(&pki.chain(), &newer, Role::Client, now(), later).is_err());
    }
}

/// One sequence stands for one content, and the lists belong to it.
#[test]
fn the_digest_covers_the_lists() {
    // Signed once: each signature is another, and so is each certificate.
    let root = Pki::new().root_der();
    let plain = Bundle::new(td(), 1, vec![root]).unwrap();
    let with = |revoked: Vec<Revoked>| plain.clone().with_revocations(Revocations::new(revoked).unwrap());
    assert_eq!(plain.digest(), with(Vec::new()).digest());
    let serial = Revoked::Serial(vec![0x41; 20]);
    let lists = [
        Vec::new(),
        vec![serial.clone()],
        // The same bytes under another name.
        vec![Revoked::Authority(vec![0x41; 20])],
        vec![serial.clone(), Revoked::Key([1; 32])],
        vec![serial.clone(), Revoked::Id(SpiffeId::parse(ID).unwrap())],
    ];
    let digests: std::collections::BTreeSet<_> =
        lists.iter().map(|list| *with(list.clone()).digest()).collect();
    assert_eq!(digests.len(), lists.len());
    let (one, other) = (vec![serial.clone(), Revoked::Key([1; 32])], vec![Revoked::Key([1; 32]), serial]);
    assert_eq!(with(one.clone()).digest(), with(other).digest(), "the order has no meaning");
    assert_eq!(with(one).roots_digest(), plain.roots_digest());
}

#[test]
fn lists_that_cannot_be() {
    let refused = |entry| Revocations::new([entry]).unwrap_err();
    assert_eq!(refused(Revoked::Authority(Vec::new())), RevocationsError::KeyId(0));
    assert_eq!(refused(Revoked::Authority(vec![1; 65])), RevocationsError::KeyId(65));
    assert_eq!(refused(Revoked::Serial(vec![0, 0])), RevocationsError::Serial(0));
    assert_eq!(refused(Revoked::Serial(vec![1; 21])), RevocationsError::Serial(21));
    let many = |count: u32| {
        Revocations::new(
            (0..count).map(|n| Revoked::Serial(vec![1, (n >> 16) as u8, (n >> 8) as u8, n as u8])),
        )
    };
    assert_eq!(many(4_097).unwrap_err(), RevocationsError::TooMany);
    assert_eq!(many(4_096).unwrap().iter().count(), 4_096);
}

/// Which rule, which certificate, what to do: each of them.
#[test]
fn errors_say_where_and_what_next() {
    let pki = Pki::new();
    let mut no_sign = Pki::new();
    no_sign.issuing.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let issuing = |pki: &Pki| {
        let id = pki.issuing.key_identifier(&pki.issuing_key);
        id.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut ended = Pki::new();
    ended.issuing.not_after = at(-7);
    let said = |pki: &Pki| verify(&pki.chain(), &pki.bundles(), Role::Client, now()).unwrap_err().to_string();
    for (actual, expected) in [
        (
            after(&pki, Revoked::Serial(vec![0x5a; 16])).unwrap_err().to_string(),
            format!(
                "the leaf is on the deny list of its trust domain, by the serial number {} (give the workload another \
                 certificate, or take the entry off the deny list)",
                "5a".repeat(16)
            ),
        ),
        (
            after(&pki, Revoked::Key(key_of(&pki.issuing_key))).unwrap_err().to_string(),
            format!(
                "the issuing CA with the key id {}: it is on the taint list of its trust domain (renew the leaf: its CA has \
                 another authority by now)",
                issuing(&pki)
            ),
        ),
        (
            said(&no_sign),
            format!(
                "the issuing CA with the key id {}: an issuing certificate is unfit: its key usage lacks keyCertSign (issue \
                 the authority's certificate anew, as docs/identity.md has it)",
                issuing(&no_sign)
            ),
        ),
        (
            said(&ended),
            format!(
                "the issuing CA with the key id {} expired 7 s ago (our clock says 1800000000 s since 1970) (renew it, after \
                 comparing both clocks)",
                issuing(&ended)
            ),
        ),
    ] {
        assert_eq!(actual, expected);
    }
}

/// Bundles come from elsewhere, and what is said of them goes into logs.
#[test]
fn what_is_said_of_a_text_that_is_no_pem_is_short() {
    let long = "A".repeat(5_000);
    for (text, says) in [
        (format!("-----BEGIN CERTIFICATE{long}\n"), "begins a section"),
        (format!("-----BEGIN CERTIFICATE-----\n{long}\n"), "is missing"),
        (format!("-----BEGIN CERTIFICATE-----\n{long}!\n-----END CERTIFICATE-----\n"), "base64"),
    ] {
        let error = Bundle::from_pem(td(), 1, text.as_bytes()).err().unwrap().to_string();
        assert!(error.contains(says) && error.len() < 120, "{error}");
    }
}
