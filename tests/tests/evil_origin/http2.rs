//! Evil over HTTP/2.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern_tests::frames::{Raw, flag, frame, kind};

use super::{Evil, May, resident_of};

/// Over HTTP/2: what comes after a request is chosen by its method. Each connection takes one request.
fn serve_h2(listener: TcpListener, stopped: Arc<AtomicBool>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        if stopped.load(Ordering::SeqCst) {
            return;
        }
        std::thread::spawn(move || {
            let mut greeting = frame(kind::SETTINGS, 0, 0, &[]);
            greeting.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
            let _ = stream.write_all(&greeting);
            let mut seen = Vec::new();
            let mut buffer = [0; 4_096];
            loop {
                let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
                seen.extend_from_slice(&buffer[..count]);
                // A method of its own is sent as it is, or in Huffman's code.
                let case = H2_CASES.iter().position(|(method, ..)| has_method(&seen, method));
                if let Some(case) = case {
                    for bytes in (H2_CASES[case].1)() {
                        if stream.write_all(&bytes).is_err() {
                            break;
                        }
                    }
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    return;
                }
            }
        });
    }
}

/// Whether a client's bytes hold a request of this method, as HPACK codes it without Huffman or with.
fn has_method(bytes: &[u8], method: &str) -> bool {
    let coded = huffman(method);
    [method.as_bytes(), &coded].iter().any(|code| bytes.windows(code.len()).any(|part| part == *code))
}

/// Capital letters in HPACK's Huffman code (RFC 7541, appendix B), which has seven bits for those used here.
fn huffman(text: &str) -> Vec<u8> {
    let code = |letter: u8| match letter {
        b'A' => (0x21_u32, 6),
        b'B'..=b'L' => (u32::from(letter - b'B') + 0x5d, 7),
        b'M'..=b'W' => (u32::from(letter - b'M') + 0x68, 7),
        b'Y' => (0x73, 7),
        _ => panic!("no code for {letter}"),
    };
    let bits: Vec<u8> = text
        .bytes()
        .flat_map(|letter| {
            let (code, length) = code(letter);
            (0..length).rev().map(move |at| (code >> at & 1) as u8)
        })
        .collect();
    let byte = |bits: &[u8]| (0..8).fold(0_u8, |byte, at| byte << 1 | bits.get(at).copied().unwrap_or(1));
    bits.chunks(8).map(byte).collect()
}

type Frames = fn() -> Vec<Vec<u8>>;

const OK: u8 = 0x88;

fn head(flags: u8, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags | flag::END_HEADERS, 1, block)
}

fn data(flags: u8, text: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, 1, text)
}

fn goaway(last: u32) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

const H2_CASES: [(&str, Frames, May); 10] = [
    ("GOOD", || vec![head(0, &[OK]), data(flag::END_STREAM, b"ok")], May::Whole("ok")),
    // 8 informational ones are enough for anybody.
    (
        "INFOS",
        || vec![head(0, b"\x08\x03103").repeat(10_000), head(0, &[OK]), data(flag::END_STREAM, b"ok")],
        May::Error,
    ),
    (
        "BOMB",
        || vec![head(0, &[&[OK][..], b"\x40\x01x\x7f\xa1\x1e", &[b'a'; 4_000], &[0xbe; 300]].concat())],
        May::Error,
    ),
    (
        "CONTINUED",
        || {
            let start = frame(kind::HEADERS, 0, 1, &[OK]);
            vec![start, frame(kind::CONTINUATION, 0, 1, &[]).repeat(10_000)]
        },
        May::Error,
    ),
    ("PUSHED", || vec![frame(5, flag::END_HEADERS, 1, &[0, 0, 0, 2, 0x82, 0x86, 0x84])], May::Error),
    (
        "GOAWAYS",
        || vec![goaway(1).repeat(10_000), head(0, &[OK]), data(flag::END_STREAM, b"ok")],
        May::Any("ok"),
    ),
    ("LIED", || vec![head(0, b"\x88\x0f\x0d\x019"), data(flag::END_STREAM, b"ok")], May::Broken),
    ("CUT", || vec![head(0, &[OK]), data(0, b"ok")], May::Broken),
    (
        "EMPTIES",
        || vec![head(0, &[OK]), data(0, b"").repeat(10_000), data(flag::END_STREAM, b"ok")],
        May::Broken,
    ),
    ("WINDOW", || vec![head(0, &[OK]), data(0, &[b'x'; 16_384]).repeat(200)], May::Broken),
];

#[test]
fn over_http2_a_part_never_looks_whole() {
    let evil = Evil::new("http2", serve_h2);
    let mesh = &evil.mesh;
    let before = ["web", "orders"].map(|name| resident_of(mesh, name));
    for (method, _, may) in &H2_CASES {
        let begun = Instant::now();
        let mut raw = Raw::plain(mesh.sidecar("web").outbound(), "orders.shop");
        raw.hello(&[]);
        let head = raw.head(1, flag::END_STREAM, method, "/", &[]);
        raw.send(&head).expect("it reads");
        let (mut status, mut body, mut end) = (None, Vec::new(), None);
        raw.wait_for(Duration::from_secs(12), |one| {
            if one.stream == 1 {
                match one.kind {
                    kind::HEADERS if status.is_none_or(|status| status < 200) => {
                        status = postern_tests::frames::status(one)
                    }
                    kind::DATA => body.extend_from_slice(&one.payload),
                    _ => {}
                }
                if one.kind == kind::RST_STREAM {
                    end = Some(false);
                } else if one.flags & flag::END_STREAM != 0 {
                    end = Some(true);
                }
            }
            end.is_some()
        });
        let status = status.unwrap_or(0);
        let is_whole = |wanted: &str| end == Some(true) && status == 200 && body == wanted.as_bytes();
        let is_error = end == Some(true) && status >= 500;
        let is_broken = end == Some(false);
        let is_right = match may {
            May::Whole(body) => is_whole(body),
            May::Error => is_error,
            May::Broken => is_error || is_broken,
            May::Any(body) => is_error || is_broken || is_whole(body),
        };
        assert!(is_right, "{method}: may be {may:?}, was {status}, end {end:?}, {} bytes", body.len());
        assert!(begun.elapsed() < Duration::from_secs(12), "{method}: {:?}", begun.elapsed());
    }
    for (name, before) in ["web", "orders"].iter().zip(before) {
        let grown = resident_of(mesh, name).saturating_sub(before);
        assert!(grown < 32, "{name} grew by {grown} MiB");
        assert!(mesh.sidecar(name).is_running());
    }
}
