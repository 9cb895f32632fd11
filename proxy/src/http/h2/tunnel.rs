//! A CONNECT stream as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason as Code, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::InFlight;

/// Both halves of a stream that was opened with CONNECT. Its end of stream is a half-close, its reset a reset: the far
/// end never takes a cut stream for a complete one.
#[derive(Debug)]
pub struct TunnelIo {
    recv: RecvStream,
    send: SendStream<Bytes>,
    unread: Bytes,
    write_ended: bool,
    _in_flight: Option<InFlight>,
}

impl TunnelIo {
    pub(super) fn new(recv: RecvStream, send: SendStream<Bytes>, in_flight: Option<InFlight>) -> Self {
        Self { recv, send, unread: Bytes::new(), write_ended: false, _in_flight: in_flight }
    }

    /// Resets the stream.
    pub fn reset(&mut self) {
        self.send.send_reset(Code::CANCEL);
        self.write_ended = true;
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        let _ = self.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if let Poll::Ready(reset) = self.send.poll_reset(cx) {
            let error = reset.map_or_else(io_error, |code| {
                io::Error::new(io::ErrorKind::ConnectionReset, format!("the stream was reset: {code}"))
            });
            return Poll::Ready(Err(error));
        }
        self.send.reserve_capacity(buf.len());
        let mut room = self.send.capacity();
        if room == 0 {
            room = match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = room.min(buf.len());
        self.send.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(io_error)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task writes what is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_ended {
            self.write_ended = true;
            self.send.send_data(Bytes::new(), true).map_err(io_error)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}
