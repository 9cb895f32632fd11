//! What h2 does by itself, seen on the wire: it answers a head past its limit (431), refuses a stream past the peer's share
//! (`REFUSED_STREAM`) and closes a connection that went too far (`GOAWAY`). It tells nobody which limit that was, and those
//! limits must be counted like any other.
//!
//! And what nothing limits: a field that the peer lets h2 keep in its table (RFC 7541, 2.3.2) keeps all of the head that it came
//! in, for as long as the connection lives. A hundred heads of 64 KiB are six megabytes then.
//!
//! Only frame headers, resets and GOAWAYs are looked at. A stream that the peer opened and that was never handed to us cannot have been
//! answered by us.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::observe::metrics::ServerCounts;

/// Streams that the peer has opened and h2 has not handed over, and how large the peer's heads were.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    streams: BTreeSet<u32>,
    last: u32,
    /// Bytes of the head that came last.
    head: usize,
    /// Bytes of all heads, past what each may have.
    large: usize,
}

impl Unseen {
    /// Far more than h2 lets wait; what it dropped in silence must not add up.
    const MOST: usize = 4_096;

    /// Bytes of a head that do not count: as much as is read at once anyway.
    const PLAIN: usize = 8 << 10;
    /// Bytes past that, over all heads of a connection, that are much to keep.
    const LARGE: usize = 1 << 20;

    /// Bytes of a head have come, the first of it or more.
    fn head(&mut self, is_first: bool, bytes: usize) {
        let before = if is_first { 0 } else { self.head };
        self.head = before.saturating_add(bytes);
        let past = self.head.max(Self::PLAIN) - before.max(Self::PLAIN);
        self.large = self.large.saturating_add(past);
    }

    /// Whether the peer may be having us keep many large heads.
    pub(super) fn keeps_much(&self) -> bool {
        self.large > Self::LARGE
    }

    /// The stream has been handed to us: its answer is ours.
    pub(super) fn accepted(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    fn opened(&mut self, stream: u32) {
        // A second HEADERS of a stream are its trailers.
        if stream > self.last {
            self.last = stream;
            self.streams.insert(stream);
            if self.streams.len() > Self::MOST {
                self.streams.pop_first();
            }
        }
    }
}

/// A connection whose frames are watched.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    read: Frames,
    written: Frames,
    unseen: Arc<Mutex<Unseen>>,
    counts: ServerCounts,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, counts: ServerCounts) -> (Self, Arc<Mutex<Unseen>>) {
        let unseen = Arc::default();
        // What is read begins with the preface (RFC 9113, 3.4), which is no frame.
        let read = Frames { skip: 24, ..Frames::default() };
        let written = Frames::default();
        (Self { io, read, written, unseen: Arc::clone(&unseen), counts }, unseen)
    }

    fn saw_written(&mut self, bytes: &[u8]) {
        let (unseen, counts) = (&self.unseen, &self.counts);
        self.written.feed(bytes, |frame| {
            let is_of_h2 = || unseen.lock().streams.remove(&frame.stream);
            match frame.kind {
                HEADERS if is_of_h2() => counts.head_too_large(),
                RST_STREAM if is_of_h2() && frame.payload == REFUSED_STREAM => counts.limits.hit("streams"),
                GOAWAY => match limit_behind(frame.payload) {
                    Some("head_size") => counts.head_too_large(),
                    Some(limit) => counts.limits.hit(limit),
                    None => {}
                },
                _ => {}
            }
        });
    }
}

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: &[u8] = &[0, 0, 0, 7];

/// The limit for which h2 closes a connection, by the debug data of its GOAWAY. It names it nowhere else (tests see to it
/// that it goes on doing so).
fn limit_behind(payload: &[u8]) -> Option<&'static str> {
    // After the last stream and the code.
    match payload.get(8..)? {
        b"too_many_internal_resets" => Some("local_error_resets"),
        b"too_many_resets" => Some("client_resets"),
        b"too_many_continuations" | b"header_list_way_too_large" => Some("head_size"),
        _ => None,
    }
}

struct Frame<'a> {
    kind: u8,
    stream: u32,
    length: usize,
    /// The beginning of it, for resets and GOAWAYs.
    payload: &'a [u8],
}

/// Finds frames in a flow of bytes, however it is cut.
#[derive(Debug)]
struct Frames {
    /// Bytes that are of no interest.
    skip: usize,
    /// A frame's header, and the payload behind it as far as it is looked at.
    head: [u8; Self::HEADER + Self::PAYLOAD],
    filled: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { skip: 0, head: [0; Self::HEADER + Self::PAYLOAD], filled: 0 }
    }
}

impl Frames {
    const HEADER: usize = 9;
    /// A GOAWAY's two numbers and any name of a limit.
    const PAYLOAD: usize = 8 + 32;

    fn feed(&mut self, mut bytes: &[u8], mut saw: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = &bytes[count..];
                continue;
            }
            let count = (self.wanted() - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled == self.wanted() {
                let [_, _, _, kind, _, a, b, c, d, ..] = self.head;
                let stream = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
                saw(Frame {
                    kind,
                    stream,
                    length: self.length(),
                    payload: &self.head[Self::HEADER..self.filled],
                });
                self.skip = self.length() - (self.filled - Self::HEADER);
                self.filled = 0;
            }
        }
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    fn wanted(&self) -> usize {
        let is_read = self.filled >= Self::HEADER && matches!(self.head[3], RST_STREAM | GOAWAY);
        Self::HEADER + if is_read { self.length().min(Self::PAYLOAD) } else { 0 }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let Self { read, unseen, .. } = &mut *self;
        read.feed(&buf.filled()[before..], |frame| {
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                let mut unseen = unseen.lock();
                unseen.head(frame.kind == HEADERS, frame.length);
                if frame.kind == HEADERS {
                    unseen.opened(frame.stream);
                }
            }
        });
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.saw_written(&buf[..count]);
        Poll::Ready(Ok(count))
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
        let count = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let part = left.min(buf.len());
            self.saw_written(&buf[..part]);
            left -= part;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut flow = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        flow.extend_from_slice(b"\0\0\0\x04\0\0\0\0\0");
        flow.extend_from_slice(b"\0\0\x02\x01\x05\0\0\0\x03ab");
        flow.extend_from_slice(b"\0\0\x04\x03\0\x80\0\0\x05\0\0\0\x07");
        flow.extend_from_slice(b"\0\0\x01\0\0\0\0\0\x03x");
        flow.extend_from_slice(b"\0\0\x30\x07\0\0\0\0\0");
        flow.extend_from_slice(&[b'g'; 48]);
        flow.extend_from_slice(b"\0\0\0\x01\0\0\0\0\x07");
        let expected = [
            (4, 0, &b""[..]),
            (1, 3, b""),
            (3, 5, REFUSED_STREAM),
            (0, 3, b""),
            (7, 0, &[b'g'; 40]),
            (1, 7, b""),
        ]
        .map(|(kind, stream, payload)| (kind, stream, payload.to_vec()));
        for cut in 1..=flow.len() {
            let mut frames = Frames { skip: 24, ..Frames::default() };
            let mut seen = Vec::new();
            for part in flow.chunks(cut) {
                frames.feed(part, |frame| seen.push((frame.kind, frame.stream, frame.payload.to_vec())));
            }
            assert_eq!(seen, expected, "{cut}");
        }
    }

    #[test]
    fn heads_count_past_what_is_plain() {
        let mut unseen = Unseen::default();
        (0..100_000).for_each(|_| unseen.head(true, Unseen::PLAIN));
        for _ in 0..100_000 {
            unseen.head(true, Unseen::PLAIN / 2);
            unseen.head(false, Unseen::PLAIN / 2);
        }
        assert_eq!(unseen.large, 0);
        unseen.head(false, 1);
        unseen.head(true, Unseen::PLAIN + 2);
        unseen.head(false, 3);
        assert_eq!(unseen.large, 6);
        assert!(!unseen.keeps_much());
        unseen.head(false, Unseen::LARGE);
        assert!(unseen.keeps_much());
    }

    #[test]
    fn what_h2_drops_in_silence_does_not_add_up() {
        let mut unseen = Unseen::default();
        (0..100_000).for_each(|n| unseen.opened(2 * n + 1));
        assert_eq!(unseen.streams.len(), Unseen::MOST);
        unseen.opened(1);
        assert!(!unseen.streams.contains(&1), "a stream is opened once");
    }
}
