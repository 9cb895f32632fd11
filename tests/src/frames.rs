//! HTTP/2 frame by frame, for what no library would send: in the clear, or over a mesh connection with a sidecar's own
//! certificate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_svid::{SpiffeId, SystemClock, tls};
use rustls_pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::{ControlPlane, Mesh, TRUST_DOMAIN, identity, peer, wire};

/// Frame types (RFC 9113, 6).
pub mod kind {
    #![expect(missing_docs, reason = "the RFC's names")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of DATA and HEADERS, and of an acknowledgement.
pub mod flag {
    #![expect(missing_docs, reason = "the RFC's names")]
    pub const NONE: u8 = 0;
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
}

/// One frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals that are not indexed (RFC 7541, 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn integer(block: &mut Vec<u8>, mut number: usize) {
    if number < 127 {
        return block.push(number as u8);
    }
    block.push(127);
    number -= 127;
    while number >= 128 {
        block.push((number % 128) as u8 | 128);
        number /= 128;
    }
    block.push(number as u8);
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A connection on which anything may be sent.
pub struct Raw {
    io: Box<dyn Wire>,
    tcp: TcpStream,
    held: Vec<u8>,
    is_over: bool,
    fields: Vec<(String, String)>,
    next: u32,
}

impl Raw {
    /// In the clear.
    pub fn plain(to: SocketAddr, host: &str) -> Self {
        let tcp = wire::connect(to);
        let io = tcp.try_clone().expect("a descriptor can be duplicated");
        Self::new(Box::new(io), tcp, host, &[])
    }

    /// As sidecar `name` to the mesh listener of `callee`, whose workload has its port 8080.
    pub fn mesh(mesh: &Mesh, name: &str, callee: &str) -> Self {
        Self::try_mesh(mesh, name, callee).expect("both sides prove themselves")
    }

    /// The same where the handshake may fail. That it does not, means little: a server refuses after its client is done.
    pub fn try_mesh(mesh: &Mesh, name: &str, callee: &str) -> io::Result<Self> {
        let to = mesh.sidecar(callee).inbound();
        let tcp = wire::connect(to);
        let io = over_tls(peer::config(mesh, name, callee), &tcp, to)?;
        let host = format!("{callee}.shop");
        Ok(Self::new(io, tcp, &host, &[("postern-port", "8080"), ("postern-version", "2")]))
    }

    /// Through a tunnel that the way out at `outbound` opens to `service`.
    pub fn tunnel(outbound: SocketAddr, service: &str, host: &str) -> Self {
        let mut tcp = wire::connect(outbound);
        write!(tcp, "CONNECT {service} HTTP/1.1\r\nHost: {service}\r\n\r\n").expect("it reads");
        assert_eq!(wire::status(wire::read_head(&mut tcp).as_bytes()), 200, "{service}");
        let io = tcp.try_clone().expect("a descriptor can be duplicated");
        Self::new(Box::new(io), tcp, host, &[])
    }

    /// To the identity API of a control plane, as somebody without an identity.
    pub fn control(control: &ControlPlane) -> Self {
        let to = SocketAddr::new(control.address(), 24_150);
        let id = SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/postern/control")).expect("it is an id");
        let bundles = identity::bundles(control);
        let config = tls::client_config(None, &bundles, &[id], Arc::new(SystemClock), &[b"h2"]);
        let tcp = wire::connect(to);
        let io = over_tls(config.expect("TLS 1.3 can be spoken"), &tcp, to);
        let io = io.expect("the server proves itself");
        Self::new(io, tcp, "control.invalid", &[])
    }

    fn new(io: Box<dyn Wire>, tcp: TcpStream, host: &str, more: &[(&str, &str)]) -> Self {
        tcp.set_write_timeout(Some(Duration::from_secs(2))).expect("a positive time is accepted");
        let own = [(":scheme", "http"), (":authority", host)];
        let fields = own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self { io, tcp, held: Vec::new(), is_over: false, fields: fields.collect(), next: 1 }
    }

    /// Sends the preface and SETTINGS, and nothing else.
    pub fn hello(&mut self, settings: &[(u16, u32)]) {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let body: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [id.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat())
            .collect();
        bytes.extend(frame(kind::SETTINGS, flag::NONE, 0, &body));
        let _ = self.send(&bytes);
    }

    /// Sends bytes; an error means that the far side has closed, or does not read.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = self.io.write_all(bytes).and_then(|()| self.io.flush());
        if matches!(&sent, Err(error) if !is_waiting(error)) {
            self.is_over = true;
        }
        sent
    }

    /// The next stream's number.
    pub fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// A request's HEADERS, with more fields after those that every request has.
    pub fn head(&self, stream: u32, flags: u8, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        frame(kind::HEADERS, flags | flag::END_HEADERS, stream, &self.head_block(method, path, more))
    }

    /// The fields of every request here, but for its method and path.
    pub fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    /// The same as a block.
    pub fn head_block(&self, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let mut fields = vec![(":method", method), (":path", path)];
        fields.extend(self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        fields.extend(more);
        block(&fields)
    }

    /// What comes within a time, acknowledging SETTINGS and PINGs as a decent peer does. Ends early with the connection.
    pub fn read(&mut self, within: Duration) -> Vec<Frame> {
        let until = Instant::now() + within;
        let mut frames = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_over {
                return frames;
            }
            self.fill(left);
            while let Some(frame) = self.take() {
                self.answer(&frame);
                frames.push(frame);
            }
        }
    }

    /// Reads until `found` likes a frame; `None` if the connection ends or `within` passes before.
    pub fn wait_for(&mut self, within: Duration, mut found: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        let until = Instant::now() + within;
        loop {
            while let Some(frame) = self.take() {
                self.answer(&frame);
                if found(&frame) {
                    return Some(frame);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_over {
                return None;
            }
            self.fill(left);
        }
    }

    /// Whether the far side has ended the connection, within a time. What it said before is dropped, and not answered.
    pub fn is_cut(&mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while !self.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.fill(left);
            self.held.clear();
        }
        true
    }

    /// Whether the connection has ended, as far as is known without reading.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Closes without a word.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
    }

    fn fill(&mut self, within: Duration) {
        let within = within.clamp(Duration::from_millis(1), Duration::from_millis(100));
        self.tcp.set_read_timeout(Some(within)).expect("a positive time is accepted");
        let mut buffer = [0; 16 << 10];
        match self.io.read(&mut buffer) {
            Ok(0) => self.is_over = true,
            Ok(count) => self.held.extend_from_slice(&buffer[..count]),
            Err(error) if is_waiting(&error) => {}
            Err(_) => self.is_over = true,
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let [a, b, c, kind, flags, s1, s2, s3, s4] = *self.held.first_chunk::<9>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if self.held.len() < 9 + length {
            return None;
        }
        let payload = self.held[9..9 + length].to_vec();
        self.held.drain(..9 + length);
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]) & (u32::MAX >> 1), payload })
    }

    fn answer(&mut self, seen: &Frame) {
        if seen.flags & flag::ACK != 0 {
            return;
        }
        let _ = match seen.kind {
            kind::SETTINGS => self.send(&frame(kind::SETTINGS, flag::ACK, 0, &[])),
            kind::PING => self.send(&frame(kind::PING, flag::ACK, 0, &seen.payload)),
            _ => Ok(()),
        };
    }
}

fn over_tls(config: Arc<ClientConfig>, tcp: &TcpStream, to: SocketAddr) -> io::Result<Box<dyn Wire>> {
    let host = ServerName::IpAddress(to.ip().into());
    let session = ClientConnection::new(config, host).expect("it is a configuration");
    let mut io = StreamOwned::new(session, tcp.try_clone().expect("a descriptor can be duplicated"));
    io.conn.complete_io(&mut io.sock)?;
    Ok(Box::new(io))
}

fn is_waiting(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The status of a response's HEADERS, where its first field is one of the static table or a literal of three digits.
pub fn status(frame: &Frame) -> Option<u16> {
    // RFC 7541, appendix A: 8 to 14.
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match *frame.payload.first()? {
        first @ 0x88..=0x8e => Some(INDEXED[usize::from(first - 0x88)]),
        // `:status` by its index, and a literal or Huffman-coded value.
        0x48 | 0x08 | 0x18 => {
            let length = *frame.payload.get(1)?;
            if length & 0x80 == 0 {
                return std::str::from_utf8(frame.payload.get(2..5)?).ok()?.parse().ok();
            }
            digits(frame.payload.get(2..2 + usize::from(length & 0x7f))?)
        }
        _ => None,
    }
}

/// Three digits in HPACK's Huffman code: 0, 1 and 2 have five bits, the others six.
fn digits(coded: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = coded.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let number = |range: &[u8]| range.iter().fold(0_u16, |number, bit| number << 1 | u16::from(*bit));
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let five = number(bits.get(at..at + 5)?);
        let digit = if five <= 2 {
            at += 5;
            five
        } else {
            let six = number(bits.get(at..at + 6)?);
            at += 6;
            // '3' is 0b011001.
            six.checked_sub(0x19)? + 3
        };
        value = value * 10 + digit;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let of = |payload: &[u8]| status(&Frame { kind: 1, flags: 4, stream: 1, payload: payload.to_vec() });
        assert_eq!(of(&[0x88]), Some(200));
        assert_eq!(of(b"\x48\x03431"), Some(431));
        // As the RFC's own example (C.6.1) codes it.
        assert_eq!(of(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        assert_eq!(of(&[0x48, 0x83, 0x6c, 0x0c, 0xff]), Some(503));
        let mut long = Vec::new();
        integer(&mut long, 1_337 + 96);
        assert_eq!(long, [127, 0x9a, 0x0a]);
    }
}
