//! Where one HTTP/1 message ends and the next begins, held to the letter before hyper reads it.
//!
//! hyper mends in silence what others read otherwise: it takes a bare LF for a line's end, drops a `Content-Length` beside a
//! `Transfer-Encoding`, takes `chunked` twice, cuts a fragment off the target, and lets a chunk's size begin with any number
//! of zeros. Each of them is one half of a smuggled request (RFC 9112, 11.2), and a parsed request shows none of them. This
//! is no parser: it looks for the ends of lines, at the three fields that say how long a body is or that there is no next
//! message, and at the sizes of chunks. What could be read in two ways is refused, so whoever parses behind it reads it in
//! the same way.

/// Follows one connection's bytes.
#[derive(Debug)]
pub(crate) struct Framing {
    place: Place,
    /// A line that is not whole yet.
    line: Vec<u8>,
    /// Bytes of a head's line past which hyper refuses it in any case.
    longest: usize,
    head: Head,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Head,
    Sized(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Unwatched,
    Broken,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    lines: usize,
    blank: usize,
    is_connect: bool,
    asks_upgrade: bool,
    length: Option<u64>,
    chunked: bool,
}

/// What is no HTTP/1 that everybody reads alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fault {
    /// The byte at which it shows, in what was fed last. None before it ends a head or a chunk.
    pub(crate) at: usize,
    /// It is in a body, whose request is being served.
    pub(crate) in_body: bool,
}

/// A chunk's size and its extensions, which nobody uses.
const LONGEST_CHUNK_LINE: usize = 1_024;
/// Digits of a chunk's size: far more than any chunk has, and no overflow.
const DIGITS: usize = 15;
/// Empty lines before a request (RFC 9112, 2.2, asks for one).
const BLANK: usize = 2;

impl Framing {
    /// At the beginning of a connection whose heads may have so many bytes.
    pub(crate) fn new(head_bytes: usize) -> Self {
        Self { place: Place::Head, line: Vec::new(), longest: head_bytes, head: Head::default() }
    }

    /// Whether a message has come after which nobody knows what comes: it may turn the connection into a byte stream, or
    /// is too large to be followed. If it does not switch, the connection must end with the answer to it.
    pub(crate) fn is_unwatched(&self) -> bool {
        self.place == Place::Unwatched
    }

    /// Whether a fault was found.
    pub(crate) fn is_broken(&self) -> bool {
        self.place == Place::Broken
    }

    /// Follows what came next.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let in_body = self.place != Place::Head;
            match &mut self.place {
                Place::Unwatched => return Ok(()),
                Place::Broken => return Err(Fault { at, in_body: false }),
                Place::Sized(left) | Place::Chunk(left) => {
                    let count = (rest.len() as u64).min(*left);
                    *left -= count;
                    // No more than the slice holds.
                    at += count as usize;
                    match self.place {
                        Place::Sized(0) => self.place = Place::Head,
                        Place::Chunk(0) => self.place = Place::ChunkEnd,
                        _ => {}
                    }
                }
                _ => match rest.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        if !self.take_line(&rest[..end]) {
                            return Err(self.broken(at + end, in_body));
                        }
                        at += end + 1;
                    }
                    None => return self.keep(rest).map_err(|()| self.broken(at, in_body)),
                },
            }
        }
        Ok(())
    }

    fn broken(&mut self, at: usize, in_body: bool) -> Fault {
        self.place = Place::Broken;
        self.line = Vec::new();
        Fault { at, in_body }
    }

    /// The first part of a line.
    fn keep(&mut self, part: &[u8]) -> Result<(), ()> {
        let length = self.line.len() + part.len();
        if matches!(self.place, Place::ChunkSize | Place::ChunkEnd) && length > LONGEST_CHUNK_LINE {
            return Err(());
        }
        if length > self.longest {
            self.place = Place::Unwatched;
            self.line = Vec::new();
            return Ok(());
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    /// A line up to its LF; false if it may not stand there.
    fn take_line(&mut self, end: &[u8]) -> bool {
        if self.line.is_empty() {
            return self.read_line(end);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        self.read_line(&line)
    }

    fn read_line(&mut self, line: &[u8]) -> bool {
        let Some(line) = line.strip_suffix(b"\r") else { return false };
        match self.place {
            Place::Head if self.head.lines == 0 => self.request_line(line),
            Place::Head if line.is_empty() => self.end_of_head(),
            Place::Head => self.head.field(line),
            Place::ChunkSize => self.chunk_size(line),
            Place::ChunkEnd => {
                self.place = Place::ChunkSize;
                line.is_empty()
            }
            Place::Trailers if line.is_empty() => {
                self.place = Place::Head;
                true
            }
            Place::Trailers => name(line).is_some(),
            // Not read by lines.
            Place::Sized(_) | Place::Chunk(_) | Place::Unwatched | Place::Broken => false,
        }
    }

    fn request_line(&mut self, line: &[u8]) -> bool {
        if line.is_empty() {
            self.head.blank += 1;
            return self.head.blank <= BLANK;
        }
        self.head.lines = 1;
        self.head.is_connect = line.starts_with(b"CONNECT ");
        // A fragment is never sent (RFC 9112, 3.2); some servers take it for a part of the path. HTTP/2's preface comes first or
        // never, and hyper ends the connection at it without writing what it has to say.
        !line.contains(&b'#') && !line.starts_with(b"PRI ")
    }

    fn end_of_head(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        let length = head.length.unwrap_or(0);
        self.place = if head.is_connect || head.asks_upgrade {
            Place::Unwatched
        } else if head.chunked {
            Place::ChunkSize
        } else if length > 0 {
            Place::Sized(length)
        } else {
            Place::Head
        };
        // Its body would be the first bytes of the tunnel (RFC 9110, 9.3.6).
        !(head.is_connect && (head.chunked || length > 0))
    }

    fn chunk_size(&mut self, line: &[u8]) -> bool {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let text = std::str::from_utf8(&line[..digits]).ok().filter(|text| text.len() <= DIGITS);
        let Some(size) = text.and_then(|text| u64::from_str_radix(text, 16).ok()) else { return false };
        self.place = if size == 0 { Place::Trailers } else { Place::Chunk(size) };
        let rest = &line[digits..];
        let is_plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        rest.is_empty() || (rest[0] == b';' && rest.len() <= LONGEST_CHUNK_LINE && rest.iter().all(is_plain))
    }
}

impl Head {
    /// A header field; false if it may not stand there.
    fn field(&mut self, line: &[u8]) -> bool {
        self.lines += 1;
        let Some(name) = name(line) else { return false };
        let value = line[name.len() + 1..].trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let is_number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            is_number && !self.chunked && self.length.replace(length.unwrap_or(0)).is_none()
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_first = !std::mem::replace(&mut self.chunked, true);
            is_first && self.length.is_none() && value.eq_ignore_ascii_case(b"chunked")
        } else {
            if name.eq_ignore_ascii_case(b"upgrade") {
                // Which no port may list: it is never answered with a switch, and Java offers it in every request.
                self.asks_upgrade |= !value.eq_ignore_ascii_case(b"h2c");
            }
            true
        }
    }
}

/// A field's name: a token, with the colon right behind it.
fn name(line: &[u8]) -> Option<&[u8]> {
    let name = &line[..line.iter().position(|byte| *byte == b':')?];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (!name.is_empty() && name.iter().all(is_token)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds it whole and in every cut: where it breaks must be the same.
    fn outcome(bytes: &[u8]) -> Option<(usize, bool)> {
        let fed = |cut: usize| {
            let mut framing = Framing::new(4_096);
            let mut at = 0;
            for part in bytes.chunks(cut) {
                if let Err(fault) = framing.feed(part) {
                    assert!(framing.is_broken() && framing.feed(b"x").is_err(), "it stays broken");
                    return Some((at + fault.at, fault.in_body));
                }
                at += part.len();
            }
            None
        };
        let whole = fed(bytes.len());
        for cut in 1..bytes.len() {
            assert_eq!(fed(cut), whole, "in parts of {cut}: {}", String::from_utf8_lossy(bytes));
        }
        whole
    }

    #[test]
    fn what_everybody_reads_alike_passes() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\na\nb#\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length:0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nh\nllo\r\nA\r\n0123456789\r\n0\r\nx: 1\r\n\r\n\
             GET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(outcome(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_does_not() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n");
        for (text, in_body) in [
            ("GET / HTTP/1.1\n".to_owned(), false),
            ("GET / HTTP/1.1\r\nHost: a\n".to_owned(), false),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(), false),
            ("GET /#x HTTP/1.1\r\n".to_owned(), false),
            ("PRI * HTTP/2.0\r\n".to_owned(), false),
            ("\r\n\r\n\r\n".to_owned(), false),
            (head("Content-Length: 1\r\nTransfer-Encoding: chunked"), false),
            (head("Transfer-Encoding: chunked\r\nContent-Length: 1"), false),
            (head("Content-Length: 1\r\nContent-Length: 1"), false),
            (head("Content-Length: +1"), false),
            (head("Content-Length: 1, 1"), false),
            (head("Content-Length:"), false),
            (head("Content-Length: 9999999999999999999"), false),
            (head("Transfer-Encoding: chunked, chunked"), false),
            (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), false),
            (head("Transfer-Encoding: identity"), false),
            (head("Host: a\r\n b"), false),
            (head("Host : a"), false),
            (head(": a"), false),
            (head("no colon"), false),
            ("CONNECT a:1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n".to_owned(), false),
            (head("Transfer-Encoding: chunked") + "5 \r\n", true),
            (head("Transfer-Encoding: chunked") + "0000000000000005\r\n", true),
            (head("Transfer-Encoding: chunked") + "5\n", true),
            (head("Transfer-Encoding: chunked") + "0x5\r\n", true),
            (head("Transfer-Encoding: chunked") + "\r\n", true),
            (head("Transfer-Encoding: chunked") + "1\r\nab\r\n", true),
            (head("Transfer-Encoding: chunked") + "1\r\na\n", true),
            (head("Transfer-Encoding: chunked") + "0\r\nx: 1\n", true),
            (head("Transfer-Encoding: chunked") + "0\r\nx : 1\r\n", true),
        ] {
            let found = outcome(text.as_bytes());
            // The last LF is what makes the line, or the head, wrong: all before it may still be read.
            let last = text.rfind('\n').unwrap_or(0);
            let faulty = if text.ends_with("\r\n\r\n") && found.is_some_and(|(at, _)| at < last) {
                last - 2
            } else {
                last
            };
            let is_there = found.is_some_and(|(at, body)| at <= faulty && body == in_body);
            assert!(is_there, "{text:?}: {found:?}");
        }
        let long = head("Transfer-Encoding: chunked") + "5;" + &"x".repeat(2_000);
        let mut framing = Framing::new(4_096);
        assert!(framing.feed(long.as_bytes()).is_err_and(|fault| fault.in_body), "held no further");
    }

    #[test]
    fn what_may_switch_is_not_followed_any_further() {
        for (text, unwatched) in [
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n\n\n", true),
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\n\n", true),
            ("GET / HTTP/1.1\r\nUpgrade: h2c\r\nupgrade: tcp\r\n\r\n\n", true),
            ("GET / HTTP/1.1\r\nUpgrade: H2C\r\n\r\n", false),
        ] {
            let mut framing = Framing::new(4_096);
            assert_eq!(framing.feed(text.as_bytes()), Ok(()), "{text}");
            assert_eq!(framing.is_unwatched(), unwatched, "{text}");
        }
        let mut framing = Framing::new(4_096);
        assert_eq!(framing.feed(b"GET /"), Ok(()));
        assert_eq!(framing.feed(&[b'x'; 5_000]), Ok(()));
        assert!(framing.is_unwatched() && framing.line.is_empty(), "hyper answers it with 431");
    }
}
