//! Bytes of a stranger as a trust bundle, PEM or bundle document: never a panic, at most eight roots, and what was read is
//! written again as it was.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use postern_svid::jwt::{JwtKeys, verify};
use postern_svid::{Bundle, Bundles, Document, TrustDomain};
use rustls_pki_types::CertificateDer;

fuzz_target!(|bytes: &[u8]| {
    let td = TrustDomain::parse("demo.postern").expect("a literal");
    let single = Bundle::new(td.clone(), 1, vec![CertificateDer::from(bytes.to_vec())]);
    for bundle in [Bundle::from_pem(td.clone(), 1, bytes), single] {
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() < 5_000, "{} bytes of text", text.len());
                continue;
            }
        };
        assert!((1..=8).contains(&bundle.roots().len()));
        assert!(bundle.roots().is_sorted_by(|a, b| a.as_ref() < b.as_ref()), "sorted, and each once");
        let again = Bundle::from_pem(td.clone(), 1, bundle.to_pem().as_bytes()).expect("its own text");
        assert_eq!((again.roots(), again.digest()), (bundle.roots(), bundle.digest()));
        let (one, two) = (Bundles::of(bundle), Bundles::of(again));
        assert!(one.keep_all_of(&two) && two.keep_all_of(&one));
    }
    match Document::parse(td.clone(), bytes) {
        Ok(read) => {
            let bundle = read.bundle;
            assert!((1..=8).contains(&bundle.roots().len()) && bundle.jwt_keys().iter().len() <= 32);
            let text = Document::of(&bundle, Duration::from_secs(300));
            let again = Document::parse(td, text.as_bytes()).expect("its own text");
            assert!(again.has_sequence && again.bundle.sequence() == bundle.sequence());
            assert_eq!(again.bundle.digest(), bundle.digest());
            assert_eq!(again.bundle.jwt_keys(), bundle.jwt_keys());
            let jwks = bundle.jwt_keys().to_jwks();
            assert_eq!(JwtKeys::from_jwks(jwks.as_bytes()).as_ref(), Ok(bundle.jwt_keys()));
            // The same bytes as a token: nobody holds a key of it.
            if let Ok(token) = std::str::from_utf8(bytes) {
                assert!(verify(token, "anybody", &Bundles::of(bundle), std::time::UNIX_EPOCH).is_err());
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 5_000, "{} bytes of text", text.len());
        }
    }
});
