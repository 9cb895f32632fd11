//! From an HTTP exchange to a byte stream, whichever protocol carried the exchange.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use postern_policy::UpgradeName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::h2::TunnelIo;
use super::server::HeadClock;
use super::stall::StallClock;
use super::{headers, websocket};
use crate::detect::Rewound;
use crate::net::TcpStream;
use crate::tcp::Duplex;

/// A handshake on an HTTP/1 leg: what one side asks, and what proves that the other's answer is one to it.
#[derive(Clone, Debug)]
pub enum Handshake {
    /// A WebSocket's, with its key.
    WebSocket(HeaderValue),
    /// Any other's: the name is all there is.
    Named(UpgradeName),
}

impl Handshake {
    /// Adds the fields of the question.
    pub fn ask(&self, headers: &mut HeaderMap) {
        match self {
            Self::WebSocket(key) => websocket::ask(headers, key),
            Self::Named(name) => Self::name(headers, name),
        }
    }

    /// Adds the fields of the answer.
    pub fn agree(&self, headers: &mut HeaderMap) {
        match self {
            Self::WebSocket(key) => websocket::agree(headers, key),
            Self::Named(name) => Self::name(headers, name),
        }
    }

    /// Whether a 101 with these fields answers it.
    pub fn is_answer(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::WebSocket(key) => websocket::is_answer(headers, key),
            Self::Named(name) => headers::asked_upgrade(headers).is_some_and(|answer| name.is(answer)),
        }
    }

    fn name(headers: &mut HeaderMap, name: &UpgradeName) {
        if let Ok(name) = HeaderValue::from_str(name.as_str()) {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, name);
        }
    }
}

/// An exchange that becomes a byte stream once its 101 or 200 is on the wire.
#[derive(Debug)]
pub enum Pending {
    /// On HTTP/1 the whole connection.
    H1(OnUpgrade),
    /// On HTTP/2 one stream.
    H2(oneshot::Receiver<TunnelIo>),
}

impl Pending {
    /// Waits for the switch.
    pub async fn io(self) -> io::Result<Io> {
        match self {
            Self::H1(upgrade) => match upgrade.await {
                Ok(upgraded) => Ok(Io::from_hyper(upgraded)),
                Err(error) => Err(io::Error::other(error)),
            },
            Self::H2(take) => take.await.map(Io::H2).map_err(|_| io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// One end of a relay.
#[derive(Debug)]
pub enum Io {
    /// What hyper keeps to itself.
    H1(TokioIo<Upgraded>),
    /// What was an HTTP/1 exchange inside a tunnel.
    Tunnel(Box<Rewound<Self>>),
    /// An HTTP/2 stream.
    H2(TunnelIo),
    /// A connection of our own, perhaps with bytes that hyper had already read.
    Tcp(Rewound<TcpStream>),
}

impl Io {
    /// A connection without a past.
    pub fn tcp(stream: TcpStream) -> Self {
        Self::Tcp(Rewound::new(Bytes::new(), stream))
    }

    /// Takes the stream back out of hyper: behind its `Upgraded` it could be closed, but not reset, and the deadlines of
    /// request heads would go on for bytes that are none.
    fn from_hyper(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<TokioIo<HeadClock<StallClock<Rewound<TcpStream>>>>>() {
            Ok(caller) => {
                let stream = caller.io.into_inner().into_inner().into_inner();
                return Self::Tcp(stream.preceded_by(caller.read_buf));
            }
            Err(upgraded) => upgraded,
        };
        let upgraded = match upgraded.downcast::<TokioIo<HeadClock<StallClock<Rewound<Self>>>>>() {
            Ok(caller) => {
                let stream = caller.io.into_inner().into_inner().into_inner();
                return Self::Tunnel(Box::new(stream.preceded_by(caller.read_buf)));
            }
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<TokioIo<StallClock<TcpStream>>>() {
            Ok(workload) => Self::Tcp(Rewound::new(workload.read_buf, workload.io.into_inner().into_inner())),
            Err(upgraded) => Self::H1(TokioIo::new(upgraded)),
        }
    }
}

impl Duplex for Io {
    fn reset(&mut self) {
        match self {
            // Dropped without a shutdown, it resets what it lives in.
            Self::H1(_) => {}
            Self::Tunnel(stream) => stream.reset(),
            Self::H2(tunnel) => tunnel.reset(),
            Self::Tcp(stream) => stream.reset(),
        }
    }

    fn reset_at_death(&mut self, is_so: bool) {
        match self {
            // What they live in is another's.
            Self::H1(_) | Self::Tunnel(_) | Self::H2(_) => {}
            Self::Tcp(stream) => stream.reset_at_death(is_so),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
            Self::H2(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
            Self::H2(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_flush(cx),
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Self::H2(io) => Pin::new(io).poll_flush(cx),
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Self::H2(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Request, Response, StatusCode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::connections::Direction;
    use crate::http::body::Body;
    use crate::http::server::serve_h1;
    use crate::limits::Limits;
    use crate::observe::metrics::Metrics;
    use crate::runtime::spawn;

    /// Switches protocols and echoes, on a stream that an HTTP/1 connection inside a tunnel becomes.
    async fn switched() -> (TcpStream, tokio::sync::oneshot::Receiver<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (give, take) = tokio::sync::oneshot::channel();
        let give = std::sync::Arc::new(parking_lot::Mutex::new(Some(give)));
        let handler = move |_: Request<Body>, pending: Option<Pending>| {
            let give = give.lock().take().expect("one request is made");
            async move {
                spawn(async move {
                    let mut io = pending.expect("it may switch").io().await.unwrap();
                    let _ = give.send(matches!(io, Io::Tunnel(_)));
                    let mut said = [0; 1];
                    while io.read_exact(&mut said).await.is_ok() && said != *b"!" {
                        io.write_all(&said).await.unwrap();
                    }
                    io.reset();
                });
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                Handshake::name(response.headers_mut(), &UpgradeName::parse("tcp").unwrap());
                response
            }
        };
        spawn(async move {
            let mut limits = Limits::default();
            limits.set("head", "100ms").unwrap();
            let counts = Metrics::default().server(Direction::Inbound);
            let io = Rewound::new(Bytes::from_static(b"GET / HTTP/1.1\r\n"), Io::tcp(far));
            serve_h1(io, &limits, &counts, handler, std::future::pending()).await;
        });
        // The first byte of the stream comes with the head.
        caller.write_all(b"Host: a\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n1").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(caller.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        (caller, take)
    }

    #[tokio::test]
    async fn a_stream_inside_a_tunnel_outlives_the_deadline_of_a_head() {
        let (mut caller, is_tunnel) = switched().await;
        assert_eq!(caller.read_u8().await.unwrap(), b'1', "what came with the head is not lost");
        for byte in [b'2', b'3'] {
            caller.write_all(&[byte]).await.unwrap();
            assert_eq!(caller.read_u8().await.unwrap(), byte);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        caller.write_all(b"4").await.unwrap();
        assert_eq!(caller.read_u8().await.unwrap(), b'4', "it was idle for longer than a head may take");
        assert!(is_tunnel.await.unwrap());
    }

    #[tokio::test]
    async fn a_stream_inside_a_tunnel_can_be_reset() {
        let (mut caller, _) = switched().await;
        assert_eq!(caller.read_u8().await.unwrap(), b'1');
        caller.write_all(b"!").await.unwrap();
        let ended = caller.read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
    }
}
