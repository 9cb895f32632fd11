//! A CONNECT stream as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason as Code, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::InFlight;
use super::server::PeerStream;

/// Both halves of a stream that was opened with CONNECT. Its end of stream is a half-close, its reset a reset: the far
/// end never takes a cut stream for a complete one.
#[derive(Debug)]
pub struct TunnelIo {
    recv: RecvStream,
    send: SendStream<Bytes>,
    unread: Bytes,
    write_ended: bool,
    /// On the client's side: its place in the count.
    _in_flight: Option<InFlight>,
    /// On the server's side: what counts the peer's reset. Taken by our own.
    opened: Option<PeerStream>,
}

impl TunnelIo {
    /// A stream that we opened.
    pub(super) fn opened(recv: RecvStream, send: SendStream<Bytes>, in_flight: InFlight) -> Self {
        let _in_flight = Some(in_flight);
        Self { recv, send, unread: Bytes::new(), write_ended: false, _in_flight, opened: None }
    }

    /// A stream that a peer opened, whose reset by that peer is counted.
    pub(super) fn accepted(recv: RecvStream, send: SendStream<Bytes>, opened: PeerStream) -> Self {
        let opened = Some(opened);
        Self { recv, send, unread: Bytes::new(), write_ended: false, _in_flight: None, opened }
    }

    /// Resets the stream.
    pub fn reset(&mut self) {
        self.count_reset();
        self.opened = None;
        self.send.send_reset(Code::CANCEL);
        self.write_ended = true;
    }

    /// Counts the peer's reset, once, if there was one.
    fn count_reset(&mut self) {
        if self.opened.is_none() {
            return;
        }
        if let Poll::Ready(Ok(_)) = self.send.poll_reset(&mut Context::from_waker(Waker::noop()))
            && let Some(opened) = self.opened.take()
        {
            opened.was_reset();
        }
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        // Whatever the relay was waiting for when the reset came.
        self.count_reset();
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
