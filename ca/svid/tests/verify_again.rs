//! A chain that verified once, held against another bundle later.
#![allow(clippy::unwrap_used, reason = "tests")]

mod pki;

use std::time::{Duration, SystemTime};

use pki::*;
use postern_svid::{Bundle, Bundles, Role, VerifyError, verify_again};
use rustls_pki_types::CertificateDer;

const HOUR: Duration = Duration::from_secs(3_600);
const YEAR: Duration = Duration::from_secs(366 * 86_400);

fn bundles(roots: Vec<CertificateDer<'static>>) -> Bundles {
    Bundles::of(Bundle::new(td(), 2, roots).unwrap())
}

fn again(pki: &Pki, roots: Vec<CertificateDer<'static>>, at: SystemTime) -> Result<(), VerifyError> {
    verify_again(&pki.chain(), &bundles(roots), Role::Client, now(), at).map(drop)
}

#[test]
fn a_root_that_went_takes_its_chains_with_it() {
    let (pki, other) = (Pki::new(), Pki::new());
    assert_eq!(again(&pki, vec![pki.root_der(), other.root_der()], now()), Ok(()));
    for at in [now(), now() + 2 * HOUR, now() + YEAR, now() - HOUR] {
        let gone = again(&pki, vec![other.root_der()], at).unwrap_err();
        assert_eq!(gone.reason(), "untrusted", "{at:?}: {gone}");
    }
    // What has ended hides nothing: an expired certificate of the right name beside the chain.
    let mut cover = Pki::new();
    cover.issuing_key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    cover.issuing.not_after = at(-60);
    let mut chain = pki.chain();
    chain.push(cover.issuing_der());
    let roots = bundles(vec![other.root_der()]);
    assert!(verify_again(&chain, &roots, Role::Client, now(), now() + 2 * HOUR).is_err());
}

#[test]
fn what_has_merely_ended_is_still_vouched_for() {
    let pki = Pki::new();
    for (what, at) in [
        ("the leaf", now() + 2 * HOUR),
        ("the issuing CA", now() + Duration::from_secs(8 * 86_400)),
        ("the root", now() + YEAR),
        ("a clock that went back", now() - 2 * HOUR),
    ] {
        assert_eq!(again(&pki, vec![pki.root_der()], at), Ok(()), "{what}");
    }
}

#[test]
fn a_root_renewed_under_its_own_key_vouches_on() {
    let mut pki = Pki::new();
    let chain = pki.chain();
    pki.root.not_before = at(600);
    let renewed = bundles(vec![pki.root_der()]);
    let later = now() + Duration::from_secs(900);
    verify_again(&chain, &renewed, Role::Client, now(), later).unwrap();
}

#[test]
fn roots_that_stay_and_roots_that_go() {
    let (one, two) = (Pki::new().root_der(), Pki::new().root_der());
    let both = bundles(vec![one.clone(), two.clone()]);
    let (one, two) = (bundles(vec![one]), bundles(vec![two]));
    assert!(both.keep_all_of(&one) && both.keep_all_of(&both) && one.keep_all_of(&Bundles::default()));
    assert!(!one.keep_all_of(&both) && !one.keep_all_of(&two) && !Bundles::default().keep_all_of(&one));
}
