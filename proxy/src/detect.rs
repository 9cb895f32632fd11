//! Which protocol a connection speaks, from its first bytes.
//!
//! [`classify`] is pure and answers the same however the bytes were cut: a client that sends one byte at a time is
//! recognised like any other. What cannot be told yet is [`Protocol::Unknown`], never "opaque": guessing from a single
//! read would let a request line split over two packets slip past every layer-7 rule.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

mod hello;

pub use hello::{Hello, ServerName, read_server_name};

/// What the first bytes say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS record that holds a handshake.
    Tls,
    /// Nothing this mesh reads.
    Opaque,
    /// More bytes are needed; `http` says that all so far may begin an HTTP request.
    Unknown {
        /// Every byte so far fits a method or the HTTP/2 preface.
        http: bool,
    },
}

/// The client's connection preface (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Methods that are recognised by themselves. Others need a whole request line.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
/// Longer than any method in use (RFC 9110 sets no limit).
const MAX_METHOD: usize = 32;
/// Longest request line that is looked through for its version.
const MAX_LINE: usize = 8 << 10;

/// Judges the first bytes of a connection.
pub fn classify(bytes: &[u8]) -> Protocol {
    if bytes.is_empty() {
        return Protocol::Unknown { http: false };
    }
    if bytes[0] == 0x16 {
        // ContentType handshake, legacy version 3.x (RFC 8446, 5.1).
        return match bytes.get(1) {
            None => Protocol::Unknown { http: false },
            Some(3) => Protocol::Tls,
            Some(_) => Protocol::Opaque,
        };
    }
    if bytes.starts_with(PREFACE) {
        return Protocol::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Protocol::Unknown { http: true };
    }
    let token = bytes.iter().take_while(|byte| is_token(**byte)).count();
    if token == 0 || token > MAX_METHOD {
        return Protocol::Opaque;
    }
    if token == bytes.len() {
        return Protocol::Unknown { http: METHODS.iter().any(|method| method.starts_with(bytes)) };
    }
    if bytes[token] != b' ' {
        return Protocol::Opaque;
    }
    if METHODS.contains(&&bytes[..token]) {
        return Protocol::Http1;
    }
    // An extension method: only its version tells it from a text protocol ("EHLO example.org").
    let line = &bytes[..bytes.len().min(MAX_LINE)];
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) if has_version(&line[..end]) => Protocol::Http1,
        None if bytes.len() < MAX_LINE => Protocol::Unknown { http: false },
        _ => Protocol::Opaque,
    }
}

/// The first bytes of a connection.
#[derive(Debug)]
pub struct Prefix {
    /// What they say.
    pub protocol: Protocol,
    /// The bytes themselves.
    pub bytes: Bytes,
    /// Time was up before they said more.
    pub expired: bool,
}

/// Reads until `classify` is sure, or until time is up: `silent` for what may be a server-first protocol, `head` for
/// what began like HTTP. What was read is not lost.
pub async fn read_prefix<I>(io: &mut I, silent: Duration, head: Duration) -> io::Result<Prefix>
where
    I: AsyncRead + Unpin,
{
    read_on(io, &mut BytesMut::with_capacity(512), Instant::now(), silent, head).await
}

/// The same on top of the `bytes` that have come since `started`. They are all still there if this is given up.
pub async fn read_on<I>(
    io: &mut I,
    bytes: &mut BytesMut,
    started: Instant,
    silent: Duration,
    head: Duration,
) -> io::Result<Prefix>
where
    I: AsyncRead + Unpin,
{
    loop {
        let seen = classify(bytes);
        let deadline = match seen {
            Protocol::Unknown { http: true } => started + head,
            Protocol::Unknown { http: false } => started + silent,
            sure => return Ok(Prefix { protocol: sure, bytes: bytes.split().freeze(), expired: false }),
        };
        match timeout_at(deadline, io.read_buf(bytes)).await {
            Ok(Ok(0)) => return Ok(Prefix { protocol: seen, bytes: bytes.split().freeze(), expired: false }),
            Err(_) => return Ok(Prefix { protocol: seen, bytes: bytes.split().freeze(), expired: true }),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// Whether a server that speaks first begins as one of HTTP/2 does, with SETTINGS (RFC 9113, 3.4). None if it has not
/// said enough.
pub fn is_http2_server(said: &[u8]) -> Option<bool> {
    // After the length: the type, no flags, stream 0.
    const SETTINGS: [u8; 6] = [4, 0, 0, 0, 0, 0];
    let rest = said.get(3..).unwrap_or_default();
    let count = rest.len().min(SETTINGS.len());
    if rest[..count] != SETTINGS[..count] || said.first().is_some_and(|length| *length != 0) {
        return Some(false);
    }
    (count == SETTINGS.len()).then_some(true)
}

/// A stream with bytes put back in front of it.
#[derive(Debug)]
pub struct Rewound<I> {
    prefix: Bytes,
    io: I,
}

impl<I> Rewound<I> {
    /// Puts `prefix` back.
    pub fn new(prefix: Bytes, io: I) -> Self {
        Self { prefix, io }
    }

    /// The same stream with more bytes in front of those already put back.
    #[must_use]
    pub fn preceded_by(self, bytes: Bytes) -> Self {
        if self.prefix.is_empty() {
            return Self { prefix: bytes, io: self.io };
        }
        let mut prefix = BytesMut::from(bytes);
        prefix.extend_from_slice(&self.prefix);
        Self { prefix: prefix.freeze(), io: self.io }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Rewound<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Rewound<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<I: crate::tcp::Duplex> crate::tcp::Duplex for Rewound<I> {
    fn reset(&mut self) {
        self.io.reset();
    }

    fn reset_at_death(&mut self, is_so: bool) {
        self.io.reset_at_death(is_so);
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn has_version(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    matches!(line.len().checked_sub(9).map(|at| &line[at..]), Some(b" HTTP/1.0" | b" HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let unknown = Protocol::Unknown { http: false };
        let maybe = Protocol::Unknown { http: true };
        for (bytes, expected) in [
            (&b""[..], unknown),
            (b"G", maybe),
            (b"GET", maybe),
            (b"GET ", Protocol::Http1),
            (b"GET /", Protocol::Http1),
            (b"CONNECT", maybe),
            (b"P", maybe),
            (b"PRI * HTTP/2.0\r\n", maybe),
            (PREFACE, Protocol::Http2),
            (b"PRI * HTTP/3", unknown),
            (b"PROPFIND /x HTTP/1.1\r\n", Protocol::Http1),
            (b"PROPFIND /x HT", unknown),
            (b"EHLO example.org\r\n", Protocol::Opaque),
            (b"\x16", unknown),
            (b"\x16\x03\x01", Protocol::Tls),
            (b"\x16\x05", Protocol::Opaque),
            (b"\0\0\0\x08\x04\xd2\x16/", Protocol::Opaque),
            (b"*1\r\n", Protocol::Opaque),
            (b" GET /", Protocol::Opaque),
            (&[b'A'; 33], Protocol::Opaque),
        ] {
            assert_eq!(classify(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn cutting_changes_nothing() {
        for whole in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            PREFACE,
            b"\x16\x03\x01\x02",
            b"EHLO a\r\n",
            b"M-SEARCH * HTTP/1.1\r\n",
        ] {
            let last = classify(whole);
            for cut in 0..whole.len() {
                let seen = classify(&whole[..cut]);
                assert!(seen == last || matches!(seen, Protocol::Unknown { .. }), "{cut} bytes: {seen:?}");
            }
        }
    }

    #[test]
    fn a_server_of_http2_is_known_by_its_settings() {
        let settings = b"\0\0\x12\x04\0\0\0\0\0\0\x03";
        for cut in 0..9 {
            assert_eq!(is_http2_server(&settings[..cut]), None, "{cut} bytes");
        }
        assert_eq!(is_http2_server(settings), Some(true));
        // A mail server, MariaDB's packet, SETTINGS that are an answer.
        for other in [&b"220 "[..], b"J\0\0\0\x0a5.5.5", b"\0\0\0\x04\x01\0\0\0\0", b"\0\0\x12\x06"] {
            assert_eq!(is_http2_server(other), Some(false), "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_half_a_method_have_their_own_deadlines() {
        let (silent, head) = (Duration::from_secs(1), Duration::from_secs(10));
        let (_client, mut server) = tokio::io::duplex(64);
        let started = Instant::now();
        let seen = read_prefix(&mut server, silent, head).await.unwrap();
        assert!(seen.expired);
        assert_eq!((seen.protocol, started.elapsed().as_secs()), (Protocol::Unknown { http: false }, 1));

        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"PO").await.unwrap();
        let started = Instant::now();
        let seen = read_prefix(&mut server, silent, head).await.unwrap();
        assert!(seen.expired);
        assert_eq!((seen.protocol, started.elapsed().as_secs()), (Protocol::Unknown { http: true }, 10));
        assert_eq!(&seen.bytes[..], b"PO");
        drop(client);
        let seen = read_prefix(&mut server, silent, head).await.unwrap();
        assert!(!seen.expired, "who leaves has not run out of time");
    }
}
