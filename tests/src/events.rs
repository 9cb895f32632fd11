//! Streams of server-sent events: a service in Node that knows nothing of a mesh, its clients, and how late each event came.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::wire;

/// The service's program.
pub fn server() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/sse_server.js"))
}

/// The clock that all processes of a machine share, in nanoseconds: the server writes it into its events.
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("this is Linux");
    Duration::from(now).as_nanos() as u64
}

/// Open streams.
#[derive(Debug)]
pub struct Streams {
    runtime: Runtime,
    readers: Vec<JoinHandle<Reader>>,
    stop: tokio::sync::watch::Sender<bool>,
}

/// When the events of several streams come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// One stream after the other, evenly over the time between two events: conversations that have nothing to do with each other.
    Even,
    /// All at once, as from a model server that computes the next token of all of them in one batch.
    Together,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// From the server's `write` to the client's `read`, for each event.
    pub delays: Vec<Duration>,
    /// Events whose number no clock of this machine can have shown: cut or garbled.
    pub garbled: usize,
    /// Lines that begin with `:`.
    pub comments: usize,
    /// Streams that ended by themselves.
    pub ended: usize,
    /// Just before the first one was left.
    pub left: u64,
    /// Their names.
    pub names: Vec<String>,
}

#[derive(Debug)]
struct Reader {
    name: String,
    delays: Vec<Duration>,
    garbled: usize,
    comments: usize,
    has_ended: bool,
}

impl Streams {
    /// Opens `count` streams, an event every `every` on each, by HTTP/1.1: each client tells the service from others by
    /// `host`. Names begin with `name`.
    pub fn open(
        to: SocketAddr,
        host: &str,
        path: &str,
        name: &str,
        (count, every): (usize, Duration),
        pace: Pace,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let (stop, _) = tokio::sync::watch::channel(false);
        let mut readers = Vec::new();
        for at in 0..count {
            let name = format!("{name}-{at}");
            let phase = match pace {
                Pace::Even => every.as_secs_f64() * 1e3 * at as f64 / count as f64,
                Pace::Together => 0.0,
            };
            let request = format!(
                "GET {path}?every={}&at={phase}&name={name} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n",
                every.as_millis()
            );
            let mut stopped = stop.subscribe();
            readers.push(runtime.spawn(async move {
                let mut reader =
                    Reader { name, delays: Vec::new(), garbled: 0, comments: 0, has_ended: false };
                tokio::select! {
                    () = reader.read(to, &request) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
                reader
            }));
        }
        Self { runtime, readers, stop }
    }

    /// Reads on for a while.
    pub fn watch(&self, length: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(length).await });
    }

    /// Leaves all of them at once.
    pub fn leave(self) -> Seen {
        let mut seen = Seen { left: clock(), ..Seen::default() };
        self.stop.send_replace(true);
        for reader in self.readers {
            let reader = self.runtime.block_on(reader).expect("a reader does not panic");
            seen.delays.extend(reader.delays);
            seen.garbled += reader.garbled;
            seen.comments += reader.comments;
            seen.ended += usize::from(reader.has_ended);
            seen.names.push(reader.name);
        }
        seen
    }
}

impl Reader {
    async fn read(&mut self, to: SocketAddr, request: &str) {
        let mut stream = TcpStream::connect(to).await.expect("the listener accepts");
        stream.set_nodelay(true).expect("TCP knows nodelay");
        stream.write_all(request.as_bytes()).await.expect("the request goes out");
        let mut line = Vec::new();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => count,
                Ok(_) | Err(_) => {
                    self.has_ended = true;
                    return;
                }
            };
            let now = clock();
            for byte in &buffer[..count] {
                if *byte == b'\n' {
                    self.line(&line, now);
                    line.clear();
                } else {
                    line.push(*byte);
                }
            }
        }
    }

    fn line(&mut self, line: &[u8], now: u64) {
        if line.starts_with(b": ") {
            self.comments += 1;
        }
        let Some(number) = line.strip_prefix(b"data: ") else { return };
        let sent: Option<u64> = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        match sent.and_then(|sent| now.checked_sub(sent)) {
            Some(delay) if delay < 60_000_000_000 => self.delays.push(Duration::from_nanos(delay)),
            _ => self.garbled += 1,
        }
    }
}

impl Seen {
    /// How long after its client had left the service at `address` learned of it, for each stream that it knows to be left.
    pub fn told(&self, address: (IpAddr, u16), path: &str) -> Vec<Duration> {
        let (status, text) = wire::page(address, path).expect("the server answers");
        assert_eq!(status, 200, "{text}");
        let all: serde_json::Value = serde_json::from_str(&text).expect("the server answers in JSON");
        let all = all.as_array().expect("a list");
        let of_mine = all.iter().filter(|one| self.names.iter().any(|name| one["name"] == **name));
        let at = |one: &serde_json::Value| -> Option<u64> { one["at"].as_str()?.parse().ok() };
        of_mine.filter_map(at).map(|at| Duration::from_nanos(at.saturating_sub(self.left))).collect()
    }
}
