//! The first bytes of a connection: whoever cuts them into pieces as he likes changes nothing of what they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proxy::detect::{Protocol, classify};

/// Longer than anything that `classify` looks at: with that much it must have made up its mind.
const ENOUGH: usize = 8 << 10;

fuzz_target!(|data: &[u8]| {
    // A reader asks again after each byte at worst. Once sure, never otherwise: else a second packet would turn "opaque",
    // which no layer-7 rule sees, into HTTP, or back.
    let mut sure = None;
    for end in 0..=data.len().min(ENOUGH + 64) {
        let seen = classify(&data[..end]);
        match (sure, seen) {
            (Some(before), now) => assert_eq!(before, now, "another verdict after {end} bytes"),
            (None, Protocol::Unknown { .. }) => {
                assert!(end < ENOUGH, "undecided after {end} bytes");
                continue;
            }
            (None, now) => sure = Some(now),
        }
        honest(seen, &data[..end]);
    }
    assert_eq!(sure.unwrap_or(classify(data)), classify(data));
});

/// What each verdict promises, told another way than `classify` finds it.
fn honest(seen: Protocol, bytes: &[u8]) {
    match seen {
        Protocol::Http2 => assert!(bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Protocol::Tls => assert!(bytes.starts_with(&[22, 3])),
        Protocol::Http1 => {
            let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
            assert!(
                !method.is_empty() && method.len() < bytes.len() && method.iter().all(u8::is_ascii_graphic)
            );
        }
        // The methods of RFC 9110 and PATCH, each with its space, are HTTP whatever follows.
        Protocol::Opaque => {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"] {
                assert!(!bytes.starts_with(format!("{method} ").as_bytes()));
            }
        }
        Protocol::Unknown { .. } => {}
    }
}
