//! Evil over HTTP/1.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern_tests::{Block, Envoy, foreign, is_long, resident, wait, wire};

use super::{Evil, May, resident_of};

type Answer = fn(&mut TcpStream) -> std::io::Result<()>;

fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())
}

/// Goes on until the other side has had enough of it.
fn for_ever(stream: &mut TcpStream, piece: &str) -> std::io::Result<()> {
    let piece = piece.repeat(1 + 4_096 / piece.len());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        stream.write_all(piece.as_bytes())?;
    }
    Ok(())
}

const CASES: [(&str, Answer, May); 22] = [
    ("a good one", |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), May::Whole("ok")),
    (
        "an informational one first",
        |s| {
            say(
                s,
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            )
        },
        May::Whole("ok"),
    ),
    (
        "endless informational ones",
        |s| for_ever(s, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        May::Error,
    ),
    (
        "a head of a megabyte",
        |s| {
            say(s, &format!("HTTP/1.1 200 OK\r\nX-A: {}\r\nContent-Length: 2\r\n\r\nok", "a".repeat(1 << 20)))
        },
        May::Error,
    ),
    (
        "a head without end",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\n")?;
            for_ever(s, "X-A: aaaaaaaaaaaaaaaaaaaaaaaa\r\n")
        },
        May::Error,
    ),
    (
        "200 fields",
        |s| say(s, &format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", "X-A: 1\r\n".repeat(200))),
        May::Error,
    ),
    (
        "trailers without end",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")?;
            for_ever(s, "X-A: aaaaaaaaaaaaaaaaaaaaaaaa\r\n")
        },
        May::Broken,
    ),
    ("half of what was promised", |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"), May::Broken),
    (
        "more than was promised",
        |s| {
            say(
                s,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            )
        },
        May::Whole("ok"),
    ),
    (
        "two answers",
        |s| {
            say(
                s,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            )
        },
        May::Whole("ok"),
    ),
    (
        "a length and chunks",
        |s| {
            say(
                s,
                "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nevil",
            )
        },
        May::Any("ok"),
    ),
    (
        "two lengths",
        |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nokno"),
        May::Error,
    ),
    ("a length that is none", |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"), May::Error),
    (
        "a chunk's size that is none",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n\r\n"),
        May::Broken,
    ),
    (
        "a chunk's size past 64 bits",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nok"),
        May::Broken,
    ),
    (
        "chunks without the last",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),
        May::Broken,
    ),
    (
        "a split head",
        |s| say(s, "HTTP/1.1 200 OK\r\nX-A: a\r\rX-B: b\r\nContent-Length: 2\r\n\r\nok"),
        May::Error,
    ),
    (
        "a NUL in the head",
        |s| say(s, "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok"),
        May::Error,
    ),
    (
        "101 that nobody asked for",
        |s| say(s, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nevil"),
        May::Error,
    ),
    ("a status that is none", |s| say(s, "HTTP/1.1 42 What\r\nContent-Length: 2\r\n\r\nok"), May::Error),
    ("another protocol", |s| say(s, "220 mail.example.org ESMTP\r\n"), May::Error),
    ("nothing at all", |_| Ok(()), May::Error),
];

/// Answers each request by the number in its path.
fn serve(listener: TcpListener, stopped: Arc<AtomicBool>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        if stopped.load(Ordering::SeqCst) {
            return;
        }
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    _ => return,
                }
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            let number = text.split(['/', ' ']).find_map(|word| word.parse::<usize>().ok());
            if text.starts_with("GET /large") {
                let _ = say(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                let _ = for_ever(&mut stream, &format!("1000\r\n{}\r\n", "x".repeat(4_096)));
            } else if let Some((_, answer, _)) = number.and_then(|number| CASES.get(number)) {
                let _ = answer(&mut stream);
            }
            // What was not read would turn the close into a reset.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
    }
}

struct Got {
    status: u16,
    is_ours: bool,
    body: Vec<u8>,
    whole: bool,
}

/// One answer over HTTP/1, read by the book.
fn get(outbound: SocketAddr, path: &str) -> Got {
    let request = format!("GET {path} HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n");
    let mut stream = wire::connect(outbound);
    let _ = stream.write_all(request.as_bytes());
    let mut flow = Vec::new();
    let clean = stream.read_to_end(&mut flow).is_ok();
    // Informational answers come before the one.
    let mut rest = flow.as_slice();
    loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else { return Got { status: 0, is_ours: false, body: Vec::new(), whole: false } };
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        rest = &rest[end + 4..];
        let status = wire::status(head.to_ascii_uppercase().as_bytes());
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (body, whole) = if field("transfer-encoding:") == Some("chunked") {
            chunks(rest)
        } else if let Some(length) = field("content-length:") {
            (rest.to_vec(), length.parse() == Ok(rest.len()))
        } else {
            (rest.to_vec(), clean)
        };
        return Got { status, is_ours: field("postern-error:").is_some(), body, whole };
    }
}

fn chunks(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return (body, false) };
        let size =
            std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size else { return (body, false) };
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, rest.ends_with(b"\r\n"));
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(rest);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// Whether a caller may get this. Errors have to be the sidecar's own where there is one.
fn is_right(got: &Got, may: &May, is_ours: bool) -> bool {
    let is_error = got.whole && (got.is_ours || !is_ours) && got.status >= 500;
    let is_whole = |body: &str| got.whole && got.status == 200 && got.body == body.as_bytes();
    match may {
        May::Whole(body) => is_whole(body),
        May::Error => is_error,
        May::Broken => is_error || !got.whole,
        May::Any(body) => is_error || !got.whole || is_whole(body),
    }
}

/// What callers of a stock Envoy get, for comparison.
#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (block, directory) = (Block::take(), tempfile::tempdir().expect("a directory can be made"));
    let listener = TcpListener::bind((block.address(1), 8080)).expect("the port is free");
    let to = listener.local_addr().expect("it has one");
    std::thread::spawn(move || serve(listener, Arc::default()));
    let at = SocketAddr::from((block.address(2), 8000));
    let envoy = Envoy::new(at, to).start(directory.path());
    let before = resident(envoy.id());
    let mut wrong = Vec::new();
    for (number, (name, _, may)) in CASES.iter().enumerate() {
        let begun = Instant::now();
        let got = get(at, &format!("/{number}"));
        let took = begun.elapsed();
        if !is_right(&got, may, false) || took > Duration::from_secs(12) {
            wrong.push(format!("{name}: {} whole: {} after {} s", got.status, got.whole, took.as_secs()));
        }
    }
    let grown = resident(envoy.id()).saturating_sub(before);
    println!("| Envoy | {} of {}: {wrong:?}; +{grown} MiB |", wrong.len(), CASES.len());
}

#[test]
fn over_http1_a_part_never_looks_whole() {
    let evil = Evil::new("http", serve);
    let mesh = &evil.mesh;
    let outbound = mesh.sidecar("web").outbound();
    let before = ["web", "orders"].map(|name| resident_of(mesh, name));
    for (number, (name, _, may)) in CASES.iter().enumerate() {
        let begun = Instant::now();
        let got = get(outbound, &format!("/{number}"));
        let text = String::from_utf8_lossy(&got.body[..got.body.len().min(200)]).into_owned();
        let is_right = is_right(&got, may, true);
        assert!(
            is_right,
            "{name}: may be {may:?}, was {} whole: {} ours: {} {text}",
            got.status, got.whole, got.is_ours
        );
        assert!(!text.contains("evil"), "{name}: {text}");
        assert!(begun.elapsed() < Duration::from_secs(12), "{name}: {:?}", begun.elapsed());
        // The next one is not answered by what is left of this one.
        let next = get(outbound, "/0");
        assert!(next.status == 200 && next.whole && next.body == b"ok", "after {name}: {}", next.status);
    }
    println!("| with | 0 of {} |", CASES.len());
    for (name, before) in ["web", "orders"].iter().zip(before) {
        let grown = resident_of(mesh, name).saturating_sub(before);
        assert!(grown < 32, "{name} grew by {grown} MiB");
        assert!(mesh.sidecar(name).is_running());
    }
}

#[test]
fn a_body_without_end_fills_nothing() {
    let evil = Evil::new("http", serve);
    let mesh = &evil.mesh;
    let before = ["web", "orders"].map(|name| resident_of(mesh, name));
    let mut readers: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = wire::connect(mesh.sidecar("web").outbound());
            stream.write_all(b"GET /large HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("it reads");
            assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"));
            stream
        })
        .collect();
    // Reads it as it comes, for a while; then nobody reads.
    let (begun, mut buffer, mut read) = (Instant::now(), vec![0; 1 << 20], 0);
    while begun.elapsed() < Duration::from_secs(2) {
        read += readers[0].read(&mut buffer).expect("it goes on");
    }
    let grown = ["web", "orders"]
        .iter()
        .zip(before)
        .map(|(name, before)| resident_of(mesh, name).saturating_sub(before));
    let grown: Vec<u64> = grown.collect();
    println!("{read} bytes read of one body, seven not read; grown by {grown:?} MiB");
    assert!(read > 1 << 20, "{read}");
    assert!(grown.iter().all(|grown| *grown < 48), "{grown:?} MiB");
    wait::until("who does not read is cut", wait::PATIENCE, || {
        ["web", "orders"].iter().all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
}
