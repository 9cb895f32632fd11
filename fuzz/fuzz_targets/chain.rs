//! Bytes of a stranger as a certificate chain: never a panic, and nobody gets in but who was let in by a signature. A fuzzer
//! makes none, so whatever it does to the seeds, an accepted leaf says exactly what the one good leaf says.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use postern_svid::{
    Bundle, Bundles, Revocations, Revoked, Role, SpiffeId, TrustDomain, tls, verify, verify_again,
};
use rustls_pki_types::CertificateDer;

/// As the SPIFFE suite has it: root, issuing CA and leaf of `ca/svid/tests/spiffe`, and its time.
const GOOD: &[u8] = include_bytes!("../seeds/chain/as-issued");
const ROOT: &[u8] = include_bytes!("../seeds/bundle/root");
const ID: &str = "spiffe://demo.postern/ns/shop/sa/orders";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn bundle() -> Bundle {
    let td = TrustDomain::parse("demo.postern").expect("a literal");
    Bundle::from_pem(td, 1, ROOT).expect("the suite's root")
}

static BUNDLES: LazyLock<Bundles> = LazyLock::new(|| Bundles::of(bundle()));
static DENYING: LazyLock<Bundles> = LazyLock::new(|| {
    let id = SpiffeId::parse(ID).expect("a literal");
    Bundles::of(bundle().with_revocations(Revocations::new([Revoked::Id(id)]).expect("one entry")))
});

/// The first DER object, with its header, and what follows.
fn object(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, length) = match *bytes.get(1)? {
        short @ 0..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(*bytes.get(2)?)),
        0x82 => (4, usize::from(*bytes.get(2)?) << 8 | usize::from(*bytes.get(3)?)),
        _ => return None,
    };
    bytes.split_at_checked(header + length)
}

/// What is signed: a signature itself has more than one form.
fn signed(certificate: &[u8]) -> Option<&[u8]> {
    let header = if certificate.get(1)? & 0x80 == 0 { 2 } else { 2 + usize::from(certificate[1] & 0x7f) };
    object(certificate.get(header..)?).map(|(signed, _)| signed)
}

fn chain(mut bytes: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while chain.len() < 10 {
        let Some((certificate, rest)) = object(bytes) else { break };
        chain.push(CertificateDer::from(certificate));
        bytes = rest;
    }
    if !bytes.is_empty() {
        chain.push(CertificateDer::from(bytes));
    }
    chain
}

fuzz_target!(|bytes: &[u8]| {
    let chain = chain(bytes);
    let _ = tls::peer(Some(&chain));
    for role in [Role::Client, Role::Server] {
        let verdict = verify(&chain, &BUNDLES, role, now());
        match &verdict {
            Ok(peer) => {
                assert_eq!(peer.id().as_str(), ID);
                assert_eq!(signed(&chain[0]), signed(GOOD), "a leaf that nobody has signed");
                assert_eq!(tls::peer(Some(&chain)).as_ref(), Ok(peer));
                assert_eq!(verify_again(&chain, &BUNDLES, role, now(), now()).as_ref(), Ok(peer));
            }
            Err(error) => {
                assert!(!error.reason().is_empty());
                let text = error.to_string();
                assert!(
                    !text.contains(|c: char| c.is_control()),
                    "{text:?} would reach the reader's terminal"
                );
                assert!(text.len() < 5_000, "{} bytes of text", text.len());
            }
        }
        assert!(verify(&chain, &DENYING, role, now()).is_err(), "denied");
        assert!(verify(&chain, &Bundles::default(), role, now()).is_err(), "without any root");
        assert!(verify(&chain, &BUNDLES, role, now() + Duration::from_secs(3_601)).is_err(), "after its end");
    }
});
