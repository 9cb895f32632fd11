//! The recording origin: the only workload written here, because it must tell exactly what reached it.
//!
//! What it answers is chosen by the path:
//!
//! | path | answer |
//! |---|---|
//! | `/status/<code>` | that status, no body |
//! | `/bytes/<n>`, `/chunked/<n>` | n bytes, with a length or in chunks |
//! | `/trailers` | chunks and the trailer `x-checksum: 42` |
//! | `/gzip` | fixed bytes under `content-encoding: gzip` |
//! | `/duplex` | every piece of the request's body, at once, as it comes |
//! | `/endless` | a piece every 20 ms until the caller goes |
//! | `/hold` | nothing, until the caller goes |
//! | `/forged` | fields that only sidecars may set |
//! | `/cut` | half of the promised body, then a reset |
//! | `/half` | half of the promised body, then nothing until the caller goes |
//! | anything else | JSON: method, target, version, headers, bytes of the body, their sum |

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use crate::wait;

/// A fixed gzip stream of "postern\n".
const GZIP: &[u8] = &[
    0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0x02, 0x03, 0x2b, 0xc8, 0x2f, 0x2e, 0x49, 0x2d, 0xca, 0xe3, 0x02, 0,
    0xad, 0x5f, 0x4e, 0x75, 0x08, 0, 0, 0,
];

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its target, byte for byte.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// Its fields, names as they came.
    pub headers: Vec<(String, String)>,
    /// Bytes of its body.
    pub body: u64,
    /// How the exchange ended, and when.
    pub ended: Option<(Ended, Instant)>,
    /// The caller's address.
    pub from: SocketAddr,
}

/// How an exchange ended, seen from the origin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The whole response was written.
    Complete,
    /// The caller went away.
    Gone,
}

impl Seen {
    /// All values of a field, in whatever case its name came.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let of_name = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        of_name.map(|(_, value)| value.as_str()).collect()
    }
}

/// A workload that remembers everything that reached it.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    bytes: AtomicU64,
    open: Mutex<Vec<(usize, TcpStream)>>,
    stopped: AtomicBool,
}

type Serve = fn(TcpStream, &State) -> io::Result<()>;

impl Origin {
    /// An HTTP/1 origin.
    pub fn http(address: (IpAddr, u16)) -> Self {
        Self::start(address.into(), serve_http)
    }

    /// A TCP origin: sends every byte back, and its end after its caller's end.
    pub fn echo(address: (IpAddr, u16)) -> Self {
        Self::start(address.into(), serve_echo)
    }

    /// A TCP origin that takes connections and bytes and says nothing.
    pub fn silent(address: (IpAddr, u16)) -> Self {
        Self::start(address.into(), |stream, state| count(&stream, state))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that arrived, in their order.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.requests.lock().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.state.requests.lock().last().cloned().expect("a request has arrived")
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state.requests.lock().clear();
    }

    /// Connections accepted since its start.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Bytes received since its start.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::SeqCst)
    }

    /// Breaks every connection that is open, with resets.
    pub fn reset_all(&self) {
        for (_, stream) in self.state.open.lock().drain(..) {
            reset(&stream);
        }
    }

    fn start(address: SocketAddr, serve: Serve) -> Self {
        let listener = TcpListener::bind(address)
            .unwrap_or_else(|error| panic!("the origin cannot listen on {address}: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let id = shared.connections.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                if let Ok(copy) = stream.try_clone() {
                    shared.open.lock().push((id, copy));
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // A caller that goes away is what some tests are about.
                    let _ = serve(stream, &state);
                    state.open.lock().retain(|(own, _)| *own != id);
                });
            }
        });
        Self { address, state }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for (_, stream) in self.state.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    // Closing is up to the last owner; this wakes it.
    let _ = stream.shutdown(Shutdown::Read);
}

fn serve_echo(mut stream: TcpStream, state: &State) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        state.bytes.fetch_add(count as u64, Ordering::SeqCst);
        stream.write_all(&buffer[..count])?;
    }
}

fn count(mut stream: &TcpStream, state: &State) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        state.bytes.fetch_add(count as u64, Ordering::SeqCst);
    }
}

fn serve_http(stream: TcpStream, state: &State) -> io::Result<()> {
    let from = stream.peer_addr()?;
    let mut reader = BufReader::new(Counted { stream: stream.try_clone()?, bytes: &state.bytes });
    let mut writer = stream;
    loop {
        let Some(seen) = read_head(&mut reader, from)? else { return Ok(()) };
        let at = {
            let mut requests = state.requests.lock();
            requests.push(seen.clone());
            requests.len() - 1
        };
        let mut exchange = Exchange { state, at, seen, reader: &mut reader, writer: &mut writer };
        let answered = exchange.answer();
        let ended = if answered.is_ok() { Ended::Complete } else { Ended::Gone };
        exchange.note(|seen| seen.ended = Some((ended, Instant::now())));
        answered?;
        if exchange.seen.version == "HTTP/1.0"
            || exchange.seen.header("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
        {
            return Ok(());
        }
    }
}

struct Counted<'a> {
    stream: TcpStream,
    bytes: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buf)?;
        self.bytes.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

fn read_head(reader: &mut impl BufRead, from: SocketAddr) -> io::Result<Option<Seen>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
    let mut words = line.splitn(3, ' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    let (method, target, version) = (word(), word(), word());
    let mut headers = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(Some(Seen { method, target, version, headers, body: 0, ended: None, from })),
        }
    }
}

struct Exchange<'a, 'b> {
    state: &'a State,
    at: usize,
    seen: Seen,
    reader: &'a mut BufReader<Counted<'b>>,
    writer: &'a mut TcpStream,
}

impl Exchange<'_, '_> {
    fn answer(&mut self) -> io::Result<()> {
        let path = self.seen.target.split('?').next().unwrap_or_default().to_owned();
        let words: Vec<&str> = path.split('/').skip(1).collect();
        if let ["duplex"] = words.as_slice() {
            return self.duplex();
        }
        let sum = self.read_body(|_| Ok(()))?;
        match words.as_slice() {
            ["status", code] => self.head(code, &[("etag", "\"one\""), ("content-length", "0")]),
            ["bytes", count] => {
                let count: usize = count.parse().unwrap_or(0);
                self.head("200", &[("content-length", &count.to_string())])?;
                self.pieces(count, false)
            }
            ["chunked", count] => {
                self.head("200", &[("transfer-encoding", "chunked")])?;
                self.pieces(count.parse().unwrap_or(0), true)?;
                self.write(b"0\r\n\r\n")
            }
            ["trailers"] => {
                self.head("200", &[("transfer-encoding", "chunked"), ("trailer", "x-checksum")])?;
                self.write(b"5\r\nhello\r\n0\r\nx-checksum: 42\r\n\r\n")
            }
            ["gzip"] => {
                let length = GZIP.len().to_string();
                self.head(
                    "200",
                    &[("content-encoding", "gzip"), ("content-length", &length), ("etag", "\"z\"")],
                )?;
                self.write(GZIP)
            }
            ["endless"] => {
                self.head("200", &[("transfer-encoding", "chunked")])?;
                loop {
                    self.write(b"5\r\nalive\r\n")?;
                    self.fail_if_gone(Duration::from_millis(20))?;
                }
            }
            ["hold"] => loop {
                self.fail_if_gone(Duration::from_millis(20))?;
            },
            ["forged"] => self.head(
                "200",
                &[
                    ("content-length", "0"),
                    ("postern-decision", "9-bad-9"),
                    ("postern-error", "policy_denied"),
                    ("postern-other", "1"),
                ],
            ),
            ["half"] => {
                self.head("200", &[("content-length", "1000")])?;
                self.write(&[b'x'; 500])?;
                loop {
                    self.fail_if_gone(Duration::from_millis(20))?;
                }
            }
            ["cut"] => {
                self.head("200", &[("content-length", "1000")])?;
                self.write(&[b'x'; 500])?;
                // Let the half arrive: a reset takes back what the receiver has not read.
                wait::pause(Duration::from_millis(200));
                reset(self.writer);
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ => self.describe(sum),
        }
    }

    fn describe(&mut self, sum: u64) -> io::Result<()> {
        let seen = &self.seen;
        let text = json!({
            "method": seen.method, "target": seen.target, "version": seen.version, "headers": seen.headers,
            "body": seen.body, "sum": sum,
        })
        .to_string();
        let length = text.len().to_string();
        self.head("200", &[("content-type", "application/json"), ("content-length", &length)])?;
        self.write(text.as_bytes())
    }

    /// Every piece goes back as it comes: a proxy that waits for the whole request never sees an answer.
    fn duplex(&mut self) -> io::Result<()> {
        self.head("200", &[("transfer-encoding", "chunked")])?;
        let mut writer = self.writer.try_clone()?;
        self.read_body(|piece| {
            write!(writer, "{:x}\r\n", piece.len())?;
            writer.write_all(piece)?;
            writer.write_all(b"\r\n")
        })?;
        self.write(b"0\r\n\r\n")
    }

    fn head(&mut self, code: &str, fields: &[(&str, &str)]) -> io::Result<()> {
        let without_length = ["204", "304"].contains(&code);
        let mut head = format!("HTTP/1.1 {code} Said\r\nx-origin: postern-tests\r\n");
        for (name, value) in fields {
            if !(without_length && *name == "content-length") {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str("\r\n");
        self.writer.write_all(head.as_bytes())
    }

    fn pieces(&mut self, mut count: usize, chunked: bool) -> io::Result<()> {
        let piece = vec![b'x'; 16 << 10];
        while count > 0 {
            let now = count.min(piece.len());
            if chunked {
                self.write(format!("{now:x}\r\n").as_bytes())?;
            }
            self.write(&piece[..now])?;
            if chunked {
                self.write(b"\r\n")?;
            }
            count -= now;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.seen.method == "HEAD" { Ok(()) } else { self.writer.write_all(bytes) }
    }

    /// Reads the body in whatever framing it has; returns the sum of its bytes.
    fn read_body(&mut self, mut piece: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        let chunked = self.seen.header("transfer-encoding").iter().any(|value| value.ends_with("chunked"));
        let length: u64 =
            self.seen.header("content-length").first().and_then(|value| value.parse().ok()).unwrap_or(0);
        let mut sum = 0;
        if !chunked {
            self.read_piece(length, &mut sum, &mut piece)?;
            return Ok(sum);
        }
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            self.read_piece(size, &mut sum, &mut piece)?;
            self.reader.read_line(&mut String::new())?;
        }
        // Trailers become fields of the record.
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(sum) };
            let field = (name.to_owned(), value.trim().to_owned());
            self.note(|seen| seen.headers.push(field));
        }
    }

    fn read_piece(
        &mut self,
        mut left: u64,
        sum: &mut u64,
        piece: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while left > 0 {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            *sum += available[..count].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            piece(&available[..count])?;
            self.reader.consume(count);
            left -= count as u64;
            self.note(|seen| seen.body += count as u64);
        }
        Ok(())
    }

    /// Listens for a while whether the caller has gone.
    fn fail_if_gone(&mut self, time: Duration) -> io::Result<()> {
        self.writer.set_read_timeout(Some(time))?;
        match self.writer.peek(&mut [0]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn note(&mut self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen);
        // Forgotten meanwhile: then nobody wants to know.
        if let Some(kept) = self.state.requests.lock().get_mut(self.at) {
            *kept = self.seen.clone();
        }
    }
}
