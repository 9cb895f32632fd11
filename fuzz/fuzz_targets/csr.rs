//! Bytes of a stranger as a certificate request: never a panic, and never a key that is not the request's own.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_ca::csr::{self, Request};
use postern_svid::SpiffeId;

fuzz_target!(|bytes: &[u8]| {
    let id = SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/orders").expect("a constant that parses");
    let parsed = Request::parse(bytes);
    if let Ok(request) = &parsed {
        let spki = request.spki();
        assert!(bytes.windows(spki.len()).any(|window| window == spki), "the key stands in the request");
        // A fuzzer makes no signatures; those of the corpus are right until it changes something.
        if let Ok(key) = request.verify() {
            assert_eq!(key.spki(), spki);
        }
    }
    if let Ok(key) = csr::verify(bytes, &id) {
        let request = parsed.expect("what verifies parses");
        assert_eq!(key.spki(), request.spki());
    }
});
