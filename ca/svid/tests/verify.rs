//! Every way in which a chain can be wrong, one at a time, and the few in which it is right.
#![allow(clippy::unwrap_used, reason = "tests")]

mod pki;

use std::time::Duration;

use pki::*;
use postern_svid::{
    Bundle, BundleError, Bundles, Role, Svid, SvidError, TrustDomain, VerifyError, verify, verify_both,
};
use rcgen::{
    BasicConstraints, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_ID: &[u64] = &[2, 5, 29, 35];

type Case = (&'static str, &'static str, fn(&mut Pki));

fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (name, expected, damage) in cases {
        let mut pki = Pki::new();
        damage(&mut pki);
        let actual = match verify(&pki.chain(), &pki.bundles(), pki.role, pki.now) {
            Ok(peer) => {
                assert_eq!(peer.id().trust_domain_name(), "demo.postern", "{name}");
                "ok".to_owned()
            }
            Err(error) => error.reason().to_owned(),
        };
        if actual != *expected {
            wrong.push(format!("{name}: expected {expected}, got {actual}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn right_chains() {
    check(&[
        ("as issued, client", "ok", |_| {}),
        ("as issued, server", "ok", |pki| pki.role = Role::Server),
        ("P-384 leaf", "ok", |pki| pki.leaf_key = key(&PKCS_ECDSA_P384_SHA384)),
        ("Ed25519 leaf", "ok", |pki| pki.leaf_key = key(&PKCS_ED25519)),
        ("Ed25519 all the way", "ok", |pki| {
            pki.leaf_key = key(&PKCS_ED25519);
            pki.issuing_key = key(&PKCS_ED25519);
            pki.root_key = key(&PKCS_ED25519);
        }),
        ("root sent along", "ok", |pki| pki.send = |chain| chain),
        ("root before issuing CA", "ok", |pki| {
            pki.send = |chain| vec![chain[0].clone(), chain[2].clone(), chain[1].clone()];
        }),
        ("an unrelated certificate in the chain", "ok", |pki| {
            pki.send = |chain| {
                vec![chain[0].clone(), Pki::new().root_der(), Pki::new().issuing_der(), chain[1].clone()]
            };
        }),
        ("no basic constraints in the leaf", "ok", |pki| pki.leaf.is_ca = IsCa::NoCa),
        ("only serverAuth, as server", "ok", |pki| {
            pki.role = Role::Server;
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("a subject beside the id", "ok", |pki| {
            pki.leaf.distinguished_name.push(DnType::CommonName, "orders");
        }),
        ("20 octets of serial", "ok", |pki| {
            pki.leaf.serial_number = Some(SerialNumber::from_slice(&[0x7f; 20]));
        }),
        ("first second", "ok", |pki| pki.now = now() - Duration::from_secs(120)),
        ("last second", "ok", |pki| pki.now = now() + Duration::from_secs(3_600)),
        ("authorities that name no trust domain", "ok", |pki| {
            pki.root.subject_alt_names.clear();
            pki.issuing.subject_alt_names.clear();
        }),
    ]);
}

#[test]
fn wrong_names() {
    check(&[
        ("no SAN", "no_spiffe_id", |pki| pki.leaf.subject_alt_names.clear()),
        ("two ids", "several_ids", |pki| pki.leaf.subject_alt_names.push(uri("spiffe://demo.postern/admin"))),
        ("the same id twice", "several_ids", |pki| pki.leaf.subject_alt_names.push(uri(ID))),
        ("an id and a web address", "several_ids", |pki| pki.leaf.subject_alt_names.push(uri("https://a/"))),
        ("a DNS name only", "no_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![SanType::DnsName("orders.shop".try_into().unwrap())];
        }),
        ("a DNS name beside", "other_name", |pki| {
            pki.leaf.subject_alt_names.push(SanType::DnsName("bank.example".try_into().unwrap()));
        }),
        ("an IP address beside", "other_name", |pki| {
            pki.leaf.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        }),
        ("an e-mail address beside", "other_name", |pki| {
            pki.leaf.subject_alt_names.push(SanType::Rfc822Name("a@b.example".try_into().unwrap()));
        }),
        ("the id in the common name", "no_spiffe_id", |pki| {
            pki.leaf.subject_alt_names.clear();
            pki.leaf.distinguished_name.push(DnType::CommonName, ID);
        }),
        ("a web address", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("https://demo.postern/a")]
        }),
        ("upper-case scheme", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("SPIFFE://demo.postern/a")];
        }),
        ("upper-case trust domain", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("spiffe://Demo.postern/a")];
        }),
        ("a port", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("spiffe://demo.postern:443/a")]
        }),
        ("no path", "bad_spiffe_id", |pki| pki.leaf.subject_alt_names = vec![uri("spiffe://demo.postern")]),
        ("a slash at the end", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("spiffe://demo.postern/a/")];
        }),
        ("percent-encoding", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("spiffe://demo.postern/%61")];
        }),
        ("NUL in the id", "bad_spiffe_id", |pki| {
            pki.leaf.subject_alt_names = vec![uri("spiffe://demo.postern/a\0b")];
        }),
        ("SAN not critical though the subject is empty", "bad_certificate", |pki| {
            pki.leaf.subject_alt_names.clear();
            let mut san =
                vec![0x30, u8::try_from(ID.len() + 2).unwrap(), 0x86, u8::try_from(ID.len()).unwrap()];
            san.extend(ID.as_bytes());
            pki.leaf.custom_extensions = vec![extension(SUBJECT_ALT_NAME, &san, false)];
        }),
    ]);
}

#[test]
fn wrong_leaves() {
    check(&[
        ("a CA as leaf", "ca_as_leaf", |pki| pki.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("keyCertSign", "key_usage", |pki| pki.leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("cRLSign", "key_usage", |pki| pki.leaf.key_usages.push(KeyUsagePurpose::CrlSign)),
        ("no digitalSignature", "key_usage", |pki| {
            pki.leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        }),
        ("no key usage", "key_usage", |pki| pki.leaf.key_usages.clear()),
        ("key usage not critical", "key_usage", |pki| {
            pki.leaf.key_usages.clear();
            pki.leaf.custom_extensions = vec![extension(KEY_USAGE, &[3, 2, 7, 0x80], false)];
        }),
        ("no extended key usage", "key_usage", |pki| pki.leaf.extended_key_usages.clear()),
        ("any purpose", "key_usage", |pki| pki.leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
        ("only serverAuth, as client", "key_usage", |pki| {
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("only clientAuth, as server", "key_usage", |pki| {
            pki.role = Role::Server;
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("only code signing", "key_usage", |pki| {
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        }),
        ("P-521 key", "key_type", |pki| pki.leaf_key = key(&PKCS_ECDSA_P521_SHA512)),
        ("name constraints in the leaf", "name_constraints", |pki| {
            // rcgen writes them for authorities only.
            pki.leaf.custom_extensions =
                vec![extension(&[2, 5, 29, 30], &[0x30, 6, 0xa1, 4, 0x30, 2, 0x82, 0], true)];
        }),
        ("no authority key id", "issuer_profile", |pki| {
            pki.leaf.use_authority_key_identifier_extension = false;
        }),
        ("critical authority key id", "issuer_profile", |pki| {
            pki.leaf.use_authority_key_identifier_extension = false;
            pki.leaf.custom_extensions = vec![extension(AUTHORITY_KEY_ID, &[0x30, 3, 0x80, 1, 7], true)];
        }),
        ("another issuer's key id", "issuer_profile", |pki| {
            let mut other = issuing_params(&td());
            other.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
            pki.leaf_sees = Some(other);
        }),
        ("serial zero", "bad_certificate", |pki| {
            pki.leaf.serial_number = Some(SerialNumber::from_slice(&[0]));
        }),
        ("serial of 21 octets", "bad_certificate", |pki| {
            pki.leaf.serial_number = Some(SerialNumber::from_slice(&[0x7f; 21]));
        }),
        ("negative serial", "bad_certificate", |pki| {
            pki.damage_leaf = |der| replace(der, &[0x02, 0x10, 0x5a], &[0x02, 0x10, 0xda]);
        }),
        ("padded serial", "bad_certificate", |pki| {
            pki.damage_leaf = |der| replace(der, &[0x02, 0x10, 0x5a], &[0x02, 0x10, 0x00]);
        }),
        ("bytes after the certificate", "bad_certificate", |pki| {
            pki.damage_leaf = |mut der| {
                der.push(0);
                der
            };
        }),
        ("not a certificate", "bad_certificate", |pki| pki.damage_leaf = |_| b"hello".to_vec()),
        ("half a certificate", "bad_certificate", |pki| {
            pki.damage_leaf = |der| der[..der.len() / 2].to_vec();
        }),
        ("an unknown critical extension", "bad_certificate", |pki| {
            pki.leaf.custom_extensions = vec![extension(&[1, 3, 6, 1, 4, 1, 99999, 1], &[5, 0], true)];
        }),
        ("an extension twice", "bad_certificate", |pki| {
            pki.leaf.custom_extensions = vec![extension(BASIC_CONSTRAINTS, &[0x30, 0], true)];
        }),
        ("self-signed", "self_signed", |pki| {
            pki.send = |_| {
                let mut leaf = leaf_params(ID);
                leaf.distinguished_name.push(DnType::CommonName, "orders");
                vec![leaf.self_signed(&key(&PKCS_ED25519)).unwrap().der().clone()]
            };
        }),
        ("a byte of the signature changed", "untrusted", |pki| {
            pki.damage_leaf = |mut der| {
                let last = der.len() - 1;
                der[last] ^= 1;
                der
            };
        }),
    ]);
}

#[test]
fn wrong_times() {
    check(&[
        ("leaf expired", "expired", |pki| pki.now = now() + Duration::from_secs(3_601)),
        ("leaf not yet valid", "not_yet_valid", |pki| pki.now = now() - Duration::from_secs(121)),
        ("leaf ends before it begins", "bad_certificate", |pki| {
            std::mem::swap(&mut pki.leaf.not_before, &mut pki.leaf.not_after);
        }),
        ("issuing CA expired", "expired", |pki| pki.issuing.not_after = at(-1)),
        ("issuing CA not yet valid", "not_yet_valid", |pki| pki.issuing.not_before = at(1)),
        ("root expired", "expired", |pki| pki.root.not_after = at(-1)),
        ("root not yet valid", "not_yet_valid", |pki| pki.root.not_before = at(1)),
        ("a clock before 1970", "not_yet_valid", |pki| {
            pki.now = std::time::UNIX_EPOCH - Duration::from_secs(5);
        }),
    ]);
}

#[test]
fn wrong_paths() {
    check(&[
        ("issuing CA missing", "untrusted", |pki| pki.send = |chain| chain[..1].to_vec()),
        ("nothing", "no_certificate", |pki| pki.send = |_| Vec::new()),
        ("nine certificates", "chain_too_long", |pki| {
            pki.send = |chain| [chain.clone(), chain.clone(), chain].concat()
        }),
        ("issued by another root", "untrusted", |pki| {
            pki.send = |_| Pki::new().chain();
        }),
        ("a foreign trust domain's CA makes our ids", "unknown_trust_domain", |pki| {
            pki.bundle_of = TrustDomain::parse("evil.example").unwrap();
            pki.root = root_params(&pki.bundle_of);
            pki.issuing = issuing_params(&pki.bundle_of);
        }),
        ("issuing CA is no CA", "untrusted", |pki| pki.issuing.is_ca = IsCa::ExplicitNoCa),
        ("issuing CA lacks keyCertSign", "issuer_profile", |pki| {
            pki.issuing.key_usages = vec![KeyUsagePurpose::CrlSign];
        }),
        ("issuing CA without key usage", "issuer_profile", |pki| pki.issuing.key_usages.clear()),
        ("issuing CA without authority key id", "issuer_profile", |pki| {
            pki.issuing.use_authority_key_identifier_extension = false;
        }),
        ("issuing CA names another trust domain", "issuer_profile", |pki| {
            pki.issuing.subject_alt_names = vec![uri("spiffe://evil.example")];
        }),
        ("issuing CA names a workload", "issuer_profile", |pki| {
            pki.issuing.subject_alt_names = vec![uri(ID)];
        }),
        ("critical authority key id in the issuing CA", "bad_certificate", |pki| {
            let id = pki.root.key_identifier(&pki.root_key);
            let mut value =
                vec![0x30, u8::try_from(id.len() + 2).unwrap(), 0x80, u8::try_from(id.len()).unwrap()];
            value.extend(id);
            pki.issuing.use_authority_key_identifier_extension = false;
            pki.issuing.custom_extensions = vec![extension(AUTHORITY_KEY_ID, &value, true)];
        }),
        ("issuing CA names another root's key id", "issuer_profile", |pki| {
            let mut other = root_params(&td());
            other.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
            pki.issuing_sees = Some(other);
        }),
        ("P-521 issuing CA", "untrusted", |pki| pki.issuing_key = key(&PKCS_ECDSA_P521_SHA512)),
        ("a leaf issued by a leaf", "untrusted", |pki| {
            let mut issuer = leaf_params("spiffe://demo.postern/other");
            issuer.distinguished_name.push(DnType::CommonName, "other");
            pki.issuing = issuer;
        }),
        ("root allows no issuing CA below", "issuer_profile", |pki| {
            pki.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        }),
    ]);
}

/// The issuing CA's path length is 0: what it makes of a stolen key is leaves, not authorities.
/// A purpose that is missing anywhere on the way is missed, though one path is built for both roles.
#[test]
fn both_roles_at_once() {
    const BOTH: [ExtendedKeyUsagePurpose; 2] =
        [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let places: [fn(&mut Pki) -> &mut Vec<ExtendedKeyUsagePurpose>; 3] = [
        |pki| &mut pki.leaf.extended_key_usages,
        |pki| &mut pki.issuing.extended_key_usages,
        |pki| &mut pki.root.extended_key_usages,
    ];
    for (at, place) in places.into_iter().enumerate() {
        for purposes in [&BOTH[..], &BOTH[..1], &BOTH[1..]] {
            let mut pki = Pki::new();
            *place(&mut pki) = purposes.to_vec();
            let (chain, bundles) = (pki.chain(), pki.bundles());
            let each =
                [Role::Server, Role::Client].map(|role| verify(&chain, &bundles, role, pki.now).is_ok());
            let both = verify_both(&chain, &bundles, pki.now).is_ok();
            assert_eq!(both, each == [true; 2], "place {at}, {purposes:?}: {each:?}");
            assert_eq!(both, purposes.len() == 2, "place {at}, {purposes:?}");
        }
    }
}

#[test]
fn no_authority_below_the_issuing_ca() {
    let pki = Pki::new();
    let issuing = rcgen::Issuer::from_params(&pki.issuing, &pki.issuing_key);
    let mut params = issuing_params(&td());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "lower");
    let lower_key = key(&PKCS_ED25519);
    let lower = params.signed_by(&lower_key, &issuing).unwrap().der().clone();
    let leaf = pki.leaf.signed_by(&pki.leaf_key, &rcgen::Issuer::from_params(&params, &lower_key)).unwrap();
    let chain = [leaf.der().clone(), lower, pki.issuing_der()];
    let mut open = Pki { root_key: pki.root_key, issuing_key: pki.issuing_key, ..Pki::new() };
    let error = verify(&chain, &open.bundles(), Role::Client, now()).unwrap_err();
    assert_eq!(error, VerifyError::Untrusted("it is longer than an issuing CA on it allows".to_owned()));
    // The same chain with room for it: nothing else is wrong with it.
    open.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(2));
    open.issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let chain = [chain[0].clone(), chain[1].clone(), open.issuing_der()];
    verify(&chain, &open.bundles(), Role::Client, now()).unwrap();
}

/// Both trust domains are known, and each has a CA that would like to make the other's identities.
#[test]
fn a_trust_domain_vouches_only_for_itself() {
    let ours = Pki::new();
    let evil = TrustDomain::parse("evil.example").unwrap();
    let mut theirs = Pki::new();
    theirs.bundle_of = evil.clone();
    theirs.root = root_params(&evil);
    theirs.issuing = issuing_params(&evil);
    let both = ours.bundles().with(theirs.bundles().iter().next().unwrap().clone());
    let error = verify(&theirs.chain(), &both, Role::Client, now()).unwrap_err();
    assert_eq!(error.reason(), "untrusted", "{error}");
    theirs.leaf = leaf_params("spiffe://evil.example/ns/shop/sa/orders");
    let peer = verify(&theirs.chain(), &both, Role::Client, now()).unwrap();
    assert_eq!(peer.id().as_str(), "spiffe://evil.example/ns/shop/sa/orders");
}

#[test]
fn what_is_told_of_a_peer() {
    let mut pki = Pki::new();
    pki.leaf.serial_number = Some(SerialNumber::from_slice(&[0, 0x9a, 1]));
    let peer = verify(&pki.chain(), &pki.bundles(), Role::Client, now()).unwrap();
    assert_eq!(peer.id().as_str(), ID);
    assert_eq!(peer.serial(), [0x9a, 1]);
    assert_eq!(peer.not_before(), now() - Duration::from_secs(120));
    assert_eq!(peer.not_after(), now() + Duration::from_secs(3_600));
    assert_eq!(peer.issuer_key_id(), pki.issuing.key_identifier(&pki.issuing_key));
}

/// A root renewed with its old key and name: chains lead to both, the expired one must not spoil the valid one.
#[test]
fn an_expired_twin_of_a_root_does_no_harm() {
    let pki = Pki::new();
    let mut old = root_params(&td());
    old.not_after = at(-10);
    old.serial_number = Some(SerialNumber::from_slice(&[9]));
    let old = old.self_signed(&pki.root_key).unwrap().der().clone();
    let bundle = Bundle::new(td(), 2, vec![old.clone(), pki.root_der()]).unwrap();
    verify(&pki.chain(), &Bundles::of(bundle), Role::Client, now()).unwrap();
    let only_old = Bundles::of(Bundle::new(td(), 2, vec![old]).unwrap());
    let error = verify(&pki.chain(), &only_old, Role::Client, now()).unwrap_err();
    assert_eq!(error.reason(), "expired");
}

#[test]
fn bundles() {
    let pki = Pki::new();
    let other = Pki::new().root_der();
    let root = pki.root_der();
    let bundle = Bundle::new(td(), 7, vec![root.clone(), other.clone(), root.clone()]).unwrap();
    assert_eq!((bundle.sequence(), bundle.roots().len()), (7, 2));
    let turned = Bundle::new(td(), 8, vec![other.clone(), root.clone()]).unwrap();
    assert_eq!(bundle.digest(), turned.digest());
    assert_ne!(bundle.digest(), Bundle::new(td(), 7, vec![root.clone()]).unwrap().digest());
    let read = Bundle::from_pem(td(), 7, format!("a comment\n{}", bundle.to_pem()).as_bytes()).unwrap();
    assert_eq!(read.roots(), bundle.roots());

    let refused = |roots: Vec<CertificateDer<'static>>| Bundle::new(td(), 1, roots).unwrap_err();
    assert_eq!(refused(Vec::new()), BundleError::Empty);
    let many: Vec<_> = (0..9).map(|_| Pki::new().root_der()).collect();
    assert_eq!(refused(many), BundleError::TooManyRoots(9));
    let damaged = |damage: fn(&mut Pki)| {
        let mut pki = Pki::new();
        damage(&mut pki);
        match refused(vec![pki.root_der()]) {
            BundleError::Root { error, .. } => error,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(damaged(|pki| pki.root.is_ca = IsCa::ExplicitNoCa), VerifyError::IssuerProfile(_)));
    assert!(matches!(
        damaged(|pki| pki.root.key_usages = vec![KeyUsagePurpose::CrlSign]),
        VerifyError::IssuerProfile(_)
    ));
    assert!(matches!(
        damaged(|pki| pki.root.subject_alt_names = vec![uri("spiffe://evil.example")]),
        VerifyError::OtherTrustDomain { .. }
    ));
    assert_eq!(damaged(|pki| pki.root_key = key(&PKCS_ECDSA_P521_SHA512)), VerifyError::KeyType);
    assert!(matches!(Bundle::from_pem(td(), 1, b"nothing here"), Err(BundleError::Empty)));
    let with_key = format!("{}{}", bundle.to_pem(), pki.root_key.serialize_pem());
    assert!(matches!(Bundle::from_pem(td(), 1, with_key.as_bytes()), Err(BundleError::Pem(_))));
}

#[test]
fn own_svids() {
    let pki = Pki::new();
    let svid = Svid::from_pkcs8(pki.chain(), pki.leaf_key.serialized_der()).unwrap();
    assert_eq!((svid.id().as_str(), svid.serial()), (ID, &[0x5a; 16][..]));
    svid.verify_against(&pki.bundles(), now()).unwrap();
    assert_eq!(
        svid.verify_against(&pki.bundles(), now() + Duration::from_secs(4_000)).unwrap_err().reason(),
        "expired"
    );
    assert!(svid.verify_against(&Bundles::default(), now()).is_err());
    let other = key(&PKCS_ED25519);
    assert_eq!(Svid::from_pkcs8(pki.chain(), other.serialized_der()).unwrap_err(), SvidError::Mismatch);
    assert_eq!(Svid::from_pkcs8(pki.chain(), b"no key").unwrap_err(), SvidError::Key);
    assert!(matches!(
        Svid::from_pkcs8(Vec::new(), pki.leaf_key.serialized_der()),
        Err(SvidError::Certificate(VerifyError::NoCertificate))
    ));
}

/// One's own SVID meets no path building at first: our rules alone must find what is wrong.
#[test]
fn own_svids_that_are_none() {
    let cases: [Case; 8] = [
        ("a CA", "ca_as_leaf", |pki| pki.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("only serverAuth", "key_usage", |pki| {
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("only clientAuth", "key_usage", |pki| {
            pki.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("bytes after the certificate", "bad_certificate", |pki| {
            pki.damage_leaf = |mut der| {
                der.push(0);
                der
            };
        }),
        ("an unknown critical extension", "bad_certificate", |pki| {
            pki.leaf.custom_extensions = vec![extension(&[1, 3, 6, 1, 4, 1, 99999, 1], &[5, 0], true)];
        }),
        ("an extension twice", "bad_certificate", |pki| {
            pki.leaf.custom_extensions = vec![extension(BASIC_CONSTRAINTS, &[0x30, 0], true)];
        }),
        ("no id", "no_spiffe_id", |pki| pki.leaf.subject_alt_names.clear()),
        ("P-521 key", "key_type", |pki| pki.leaf_key = key(&PKCS_ECDSA_P521_SHA512)),
    ];
    for (name, expected, damage) in cases {
        let mut pki = Pki::new();
        damage(&mut pki);
        match Svid::from_pkcs8(pki.chain(), pki.leaf_key.serialized_der()) {
            Err(SvidError::Certificate(error)) => assert_eq!(error.reason(), expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn replace(der: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = der.windows(from.len()).position(|window| window == from).unwrap();
    [&der[..at], to, &der[at + from.len()..]].concat()
}
