//! Makes HTTP/2 requests readable whose `:authority` is no authority.
//!
//! gRPC's C core, and so every client in Python, C++ or Ruby, names a Unix socket by its path, `run%2Fpostern%2Fapi.sock`.
//! RFC 3986 knows `%` in an authority only as part of a registered name that the library below does not read: it resets such
//! streams (`PROTOCOL_ERROR`). Nobody here asks what the authority is. So each `%` in it becomes a `-` before the library
//! reads it: one byte for another, in the one place where it stands, and whatever this does not understand goes on as it came.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const AUTHORITY: &[u8] = b":authority";
/// Of `:authority` in HPACK's static table.
const AUTHORITY_INDEX: usize = 1;
/// Longer than any field that the library takes.
const LONGEST: usize = 1 << 20;

/// A connection whose requests have readable authorities.
#[derive(Debug)]
pub(super) struct Readable {
    inner: UnixStream,
    frames: Frames,
}

impl Readable {
    pub(super) fn new(inner: UnixStream) -> Self {
        Self { inner, frames: Frames::default() }
    }
}

impl AsyncRead for Readable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.frames.pass(&mut buf.filled_mut()[before..]);
        read
    }
}

impl AsyncWrite for Readable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Where in the frames of a connection we are (RFC 9113, 4.1 and 6.2).
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the preface that have passed.
    preface: usize,
    head: [u8; HEAD],
    /// Bytes of the head that have passed; the payload follows the last.
    headed: usize,
    length: usize,
    passed: usize,
    padding: usize,
    fields: Fields,
}

impl Frames {
    fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.preface < PREFACE {
                self.preface += 1;
            } else if self.headed < HEAD {
                self.head[self.headed] = *byte;
                self.headed += 1;
                if self.headed == HEAD {
                    self.begin();
                }
            } else {
                self.payload(byte);
                self.passed += 1;
                if self.passed == self.length {
                    self.headed = 0;
                }
            }
        }
    }

    fn begin(&mut self) {
        let [one, two, three, kind, ..] = self.head;
        self.length = usize::from(one) << 16 | usize::from(two) << 8 | usize::from(three);
        (self.passed, self.padding) = (0, 0);
        if kind == HEADERS {
            self.fields = Fields::default();
        }
        if self.length == 0 {
            self.headed = 0;
        }
    }

    fn payload(&mut self, byte: &mut u8) {
        let [_, _, _, kind, flags, ..] = self.head;
        let flag = |flag: u8| usize::from(kind == HEADERS && flags & flag != 0);
        let front = flag(PADDED) + 5 * flag(PRIORITY);
        if self.passed < front {
            if self.passed == 0 && flag(PADDED) == 1 {
                self.padding = usize::from(*byte);
            }
        } else if (kind == HEADERS || kind == CONTINUATION) && self.passed + self.padding < self.length {
            self.fields.pass(byte);
        }
    }
}

/// Where in a block of header fields we are (RFC 7541, 6).
#[derive(Debug, Default)]
struct Fields {
    step: Step,
    /// Whether the field under way is the authority, as far as it is known.
    is_authority: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    /// The next byte begins a field.
    #[default]
    Start,
    /// An integer goes on.
    Integer { of: Of, value: usize, shift: u32 },
    /// The next byte begins a string.
    Length(Part),
    /// A string goes on.
    Text { part: Part, plain: bool, at: usize, length: usize },
    /// What came is not understood: nothing is touched up to the next block.
    Lost,
}

/// What an integer is.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// Nothing that matters here.
    Other,
    NameIndex,
    Text {
        part: Part,
        plain: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Name,
    Value,
}

impl Fields {
    fn pass(&mut self, byte: &mut u8) {
        self.step = match self.step {
            Step::Start if *byte & 0x80 != 0 => self.integer(*byte, 7, Of::Other),
            Step::Start if *byte & 0x40 != 0 => self.integer(*byte, 6, Of::NameIndex),
            Step::Start if *byte & 0x20 != 0 => self.integer(*byte, 5, Of::Other),
            Step::Start => self.integer(*byte, 4, Of::NameIndex),
            Step::Integer { of, value, shift } => {
                let value = value + (usize::from(*byte & 0x7f) << shift);
                if value > LONGEST || shift > 14 {
                    Step::Lost
                } else if *byte & 0x80 != 0 {
                    Step::Integer { of, value, shift: shift + 7 }
                } else {
                    self.known(of, value)
                }
            }
            Step::Length(part) => self.integer(*byte, 7, Of::Text { part, plain: *byte & 0x80 == 0 }),
            Step::Text { part, plain, at, length } => {
                match part {
                    Part::Name => self.is_authority &= plain && AUTHORITY.get(at) == Some(byte),
                    Part::Value if self.is_authority && plain && *byte == b'%' => *byte = b'-',
                    Part::Value => {}
                }
                if at + 1 < length {
                    Step::Text { part, plain, at: at + 1, length }
                } else {
                    self.after(part)
                }
            }
            Step::Lost => Step::Lost,
        };
    }

    fn integer(&mut self, byte: u8, bits: u32, of: Of) -> Step {
        let most = (1_usize << bits) - 1;
        let value = usize::from(byte) & most;
        if value < most { self.known(of, value) } else { Step::Integer { of, value, shift: 0 } }
    }

    fn known(&mut self, of: Of, value: usize) -> Step {
        match of {
            Of::Other => Step::Start,
            Of::NameIndex if value == 0 => {
                self.is_authority = true;
                Step::Length(Part::Name)
            }
            Of::NameIndex => {
                self.is_authority = value == AUTHORITY_INDEX;
                Step::Length(Part::Value)
            }
            Of::Text { part, plain } => {
                if part == Part::Name {
                    self.is_authority = value == AUTHORITY.len();
                }
                if value == 0 { self.after(part) } else { Step::Text { part, plain, at: 0, length: value } }
            }
        }
    }

    const fn after(&self, part: Part) -> Step {
        match part {
            Part::Name => Step::Length(Part::Value),
            Part::Value => Step::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &[u8] = b"tmp%2Fw%2Fapi.sock";
    const READABLE: &[u8] = b"tmp-2Fw-2Fapi.sock";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut field = vec![first];
        if first & if first & 0x40 == 0 { 0x0f } else { 0x3f } == 0 {
            field.push(u8::try_from(name.len()).unwrap());
            field.extend_from_slice(name);
        }
        field.push(u8::try_from(value.len()).unwrap());
        field.extend_from_slice(value);
        field
    }

    fn conversation(value: &[u8]) -> Vec<u8> {
        let path = literal(0x40, b":path", b"/%41/b");
        let own = literal(0x40, b":authority", value);
        let by_index = literal(0x41, b"", value);
        let other = literal(0x00, b"x-authority", PATH);
        let last = literal(0x10, b":authorit", PATH);
        let block = [&path[..], &own, &[0x82, 0x3f, 0xe1, 0x1f], &by_index, &other, &last].concat();
        let padded = [&[4, 0, 0, 0, 0, 16][..], &own, b"%%%%"].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[]),
            frame(HEADERS, 0, &block[..15]),
            frame(CONTINUATION, 4, &block[15..]),
            // A message that happens to hold the same bytes.
            frame(0, 0, &literal(0x40, b":authority", PATH)),
            frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
        ]
        .concat()
    }

    #[test]
    fn nothing_but_authorities_changes_however_the_bytes_come() {
        for step in [1, 2, 7, 64, 4_096] {
            let mut frames = Frames::default();
            let mut bytes = conversation(PATH);
            for piece in bytes.chunks_mut(step) {
                frames.pass(piece);
            }
            assert_eq!(bytes, conversation(READABLE), "{step} at a time");
        }
    }

    #[test]
    fn what_is_not_understood_goes_on_as_it_came() {
        // An integer without an end, and a name coded as Huffman's: both may be followed by anything.
        for first in [&[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff][..], &[0x40, 0x8a]] {
            let block = [first, &literal(0x41, b"", PATH)[..]].concat();
            let mut frames = Frames { preface: PREFACE, ..Frames::default() };
            let mut bytes =
                [frame(HEADERS, 4, &block), frame(HEADERS, 4, &literal(0x41, b"", PATH))].concat();
            frames.pass(&mut bytes);
            let expected =
                [frame(HEADERS, 4, &block), frame(HEADERS, 4, &literal(0x41, b"", READABLE))].concat();
            assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn anything_passes() {
        let mut random = 1_u64;
        let mut frames = Frames { preface: PREFACE, ..Frames::default() };
        for _ in 0..2_000 {
            let mut bytes = [0; 64];
            for byte in &mut bytes {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (random >> 56) as u8;
            }
            // Short frames, most of them header blocks.
            let kind = if bytes[9] < 200 { HEADERS } else { CONTINUATION };
            bytes[..4].copy_from_slice(&[0, 0, 55, kind]);
            let before = bytes;
            frames.pass(&mut bytes);
            let changed = before.iter().zip(&bytes).filter(|(before, after)| before != after);
            assert!(changed.into_iter().all(|(before, after)| (*before, *after) == (b'%', b'-')));
        }
    }
}
