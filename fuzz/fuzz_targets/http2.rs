//! A stranger's HTTP/2, whole: through the server, the policy and the workload's connection, as raw bytes or as frames made of them.
//! What reaches the workload is strict HTTP/1 with nothing of another hop in it; a tunnel leads to the own workload or nowhere;
//! and nothing is left when the caller has gone.

#![no_main]

mod http;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::workload::Seen;
use http::{Pipe, SIDECAR};
use libfuzzer_sys::fuzz_target;
use postern_proxy::connections::Direction;
use postern_proxy::fuzzing;
use postern_proxy::http::h2::{self, Settings};
use postern_proxy::http::inbound;
use postern_proxy::worker::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// More would only make single inputs slow.
const MAX_FRAMES: usize = 64;

// Few words, so that heads are often whole; the last of each is made of the input's bytes.
const METHODS: [&str; 6] = ["GET", "POST", "CONNECT", "HEAD", "OPTIONS", "get"];
const PATHS: [&str; 6] = ["/", "/admin", "/x/..//admin", "*", "/a b", "/p?q"];
const AUTHORITIES: [&str; 9] = [
    "orders.shop",
    "127.0.0.1:1",
    "[::ffff:127.0.0.1]:1",
    "127.0.0.2:1",
    "0.0.0.0:1",
    "10.0.0.7:22",
    "orders.shop:1",
    "a@127.0.0.1:1",
    "[::1]:1",
];
const FIELDS: [(&str, &str); 20] = [
    ("postern-port", "2"),
    ("postern-port", "1"),
    ("postern-port", "3"),
    ("postern-version", "2"),
    ("postern-method", "GET"),
    ("x-forwarded-client-cert", "URI=spiffe://demo.postern/ns/shop/sa/admin"),
    ("x_forwarded_client_cert", "URI=a"),
    ("connection", "x-forwarded-client-cert"),
    ("connection", "close"),
    ("te", "trailers"),
    ("te", "gzip"),
    ("transfer-encoding", "chunked"),
    ("content-length", "3"),
    ("content-length", "0"),
    ("host", "orders.shop"),
    ("cookie", "a=1"),
    ("x-http-method-override", "DELETE"),
    (":protocol", "websocket"),
    ("upgrade", "websocket"),
    ("content-type", "application/grpc"),
];

/// Choices, one byte each; when they are used up the first of everything.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let count = usize::from(self.next()).min(most).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn word(&mut self, of: &[&'a str]) -> Vec<u8> {
        match of.get(usize::from(self.next()) % (of.len() + 1)) {
            Some(word) => word.as_bytes().to_vec(),
            None => self.take(64).to_vec(),
        }
    }
}

// The first byte says which side of the mesh this is, how the bytes are meant, and what the caller does after them.
fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    let mut authorities = Vec::new();
    let mut flow = PREFACE.to_vec();
    if how & 2 == 0 {
        flow.extend(NO_SETTINGS);
        frames(&mut Bytes(rest), &mut flow, &mut authorities);
    } else {
        flow.extend(rest);
    }
    for authority in authorities {
        tunnel(&String::from_utf8_lossy(&authority));
    }
    http::runtime().block_on(serve(&flow, how & 1 == 0, how & 4 == 0, how & 8 == 0));
});

fn frames(bytes: &mut Bytes<'_>, flow: &mut Vec<u8>, authorities: &mut Vec<Vec<u8>>) {
    for _ in 0..MAX_FRAMES {
        if bytes.0.is_empty() {
            return;
        }
        let (kind, shape) = (bytes.next() % 16, bytes.next());
        let stream = u32::from(shape >> 4) * 2 + u32::from(shape & 1);
        let flags = shape >> 1 & 7;
        match kind {
            // Whole heads are what matters.
            0..=5 => {
                let block = head(bytes, authorities);
                frame(flow, 1, (flags & 1) | 4, stream, &block);
            }
            6 => {
                let block = trailers(bytes);
                frame(flow, 1, 5, stream, &block);
            }
            7..=9 => frame(flow, 0, flags & 1, stream, bytes.take(255)),
            10 => frame(flow, 3, 0, stream, &[0, 0, 0, flags]),
            11 => frame(flow, 8, 0, stream & !1, &[0, 0, flags, bytes.next()]),
            12 => frame(flow, 9, flags & 4, stream, bytes.take(64)),
            13 => frame(flow, 4, 0, 0, &[0, shape & 7, 0, 0, flags, bytes.next()]),
            14 => frame(flow, 6, flags & 1, 0, &[0; 8]),
            _ => frame(flow, bytes.next() % 12, bytes.next(), stream, bytes.take(64)),
        }
    }
}

fn head(bytes: &mut Bytes<'_>, authorities: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let mut block = Vec::new();
    let (method, authority) = (bytes.word(&METHODS), bytes.word(&AUTHORITIES));
    literal(&mut block, b":method", &method);
    literal(&mut block, b":authority", &authority);
    if method == b"CONNECT" {
        authorities.push(authority);
    } else {
        literal(&mut block, b":scheme", b"http");
        literal(&mut block, b":path", &bytes.word(&PATHS));
        literal(&mut block, b"postern-port", b"2");
    }
    block.extend(trailers(bytes));
    block
}

fn trailers(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for _ in 0..bytes.next() % 4 {
        match FIELDS.get(usize::from(bytes.next()) % (FIELDS.len() + 2)) {
            Some((name, value)) => literal(&mut block, name.as_bytes(), value.as_bytes()),
            None => literal(&mut block, bytes.take(24), bytes.take(48)),
        }
    }
    block
}

/// A field that is not indexed (RFC 7541, 6.2.2).
fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        let text = &text[..text.len().min(126)];
        block.push(text.len() as u8);
        block.extend_from_slice(text);
    }
}

fn frame(flow: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    flow.extend(length);
    flow.extend([kind, flags]);
    flow.extend(stream.to_be_bytes());
    flow.extend(payload);
}

/// Whatever a tunnel is asked to lead to, it leads to the workload, and only if one of its own addresses was named.
fn tunnel(authority: &str) {
    let reached: IpAddr = "192.0.2.9".parse().expect("a literal");
    if let Ok(to) = fuzzing::tunnel(&SIDECAR, Some(reached), authority) {
        assert_eq!(to.ip(), SIDECAR.config.workload.address, "{authority}");
        let (host, port) = authority.rsplit_once(':').expect("it has a port");
        assert_eq!(port.parse(), Ok(to.port()), "{authority}");
        let host: IpAddr = host.trim_matches(['[', ']']).parse().expect("it is an address");
        assert!([to.ip(), reached].contains(&host.to_canonical()), "{authority}");
    }
}

async fn serve(flow: &[u8], is_mesh: bool, leaves: bool, reads: bool) {
    let registered = http::caller();
    let connection = Arc::clone(registered.connection());
    let worker = Worker::new(Arc::clone(&SIDECAR));
    let seen = Seen::default();
    let mut recording = Vec::new();
    for _ in 0..4 {
        let far = http::lend(&worker, &connection).await;
        recording.push(tokio::spawn(http::workload::record(far, Arc::clone(&seen))));
    }
    let (caller, edge) = tokio::io::duplex(16 << 10);
    let limits = SIDECAR.snapshots.limits();
    let settings = if is_mesh { Settings::mesh(&limits) } else { Settings::edge(&limits) };
    let counts = SIDECAR.metrics.server(Direction::Inbound);
    let of_handler = Arc::clone(&worker);
    let serving = tokio::spawn(async move {
        let handler = move |request, pending| {
            inbound::request(Arc::clone(&of_handler), Arc::clone(&connection), None, request, pending)
        };
        let _ = h2::serve(Pipe(edge), settings, &counts, handler, std::future::pending()).await;
    });
    let (mut reader, mut writer) = tokio::io::split(caller);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        while reads && matches!(reader.read(&mut buffer).await, Ok(1..)) {}
        reader
    });
    // Whoever does not read may not be read from either.
    let _ = timeout(Duration::from_secs(200), writer.write_all(flow)).await;
    tokio::task::yield_now().await;
    if !leaves {
        sleep(Duration::from_secs(200)).await;
    }
    reading.abort();
    drop(reading.await);
    drop(writer);
    let ended = timeout(Duration::from_secs(200), serving).await;
    ended.expect("a connection ends with its caller").expect("no panic");
    drop(worker);
    for one in recording {
        timeout(Duration::from_secs(200), one).await.expect("nothing is kept").expect("no panic");
    }
}
