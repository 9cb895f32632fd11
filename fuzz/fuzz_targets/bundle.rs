//! Bytes of a stranger as a trust bundle: never a panic, at most eight roots, and what was read is written again as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_svid::{Bundle, Bundles, TrustDomain};
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
});
