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
    /// What was an HTTP/1 exchange inside a tunnel.
    H1(TokioIo<Upgraded>),
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

    /// Takes the socket back out of hyper: behind its `Upgraded` a connection could be closed, but not reset.
    fn from_hyper(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<TokioIo<HeadClock<StallClock<Rewound<TcpStream>>>>>() {
            Ok(caller) => {
                let stream = caller.io.into_inner().into_inner().into_inner();
                return Self::Tcp(stream.preceded_by(caller.read_buf));
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
            // Dropped without a shutdown, it resets the tunnel that it lives in.
            Self::H1(_) => {}
            Self::H2(tunnel) => tunnel.reset(),
            Self::Tcp(stream) => stream.reset(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_read(cx, buf),
            Self::H2(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_write(cx, buf),
            Self::H2(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_flush(cx),
            Self::H2(io) => Pin::new(io).poll_flush(cx),
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1(io) => Pin::new(io).poll_shutdown(cx),
            Self::H2(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
