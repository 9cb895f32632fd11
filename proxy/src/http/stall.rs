//! The stall clock of HTTP/1, which has no windows to tell a receiver that stopped reading from one that is slow.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::time::Sleep;

use crate::tcp::Duplex;

/// What is read at once: with its head one DATA frame, and one record of TLS. hyper doubles its buffers for as long as they
/// come back full, and keeps two of them for each answer that its caller does not take.
const AT_ONCE: u64 = (16 << 10) - 9;

/// Fails writes once the receiver has taken nothing for longer than it may. hyper itself would wait for ever, and with
/// it the connection's permit and the request's place. And reads in pieces that bound what lies there.
#[derive(Debug)]
pub(crate) struct StallClock<I> {
    io: Take<I>,
    limit: Duration,
    clock: Option<Pin<Box<Sleep>>>,
}

impl<I: AsyncRead> StallClock<I> {
    /// Lets a write to `io` go `limit` without progress.
    pub(crate) fn new(io: I, limit: Duration) -> Self {
        Self { io: io.take(AT_ONCE), limit, clock: None }
    }

    /// What is underneath.
    pub(crate) fn into_inner(self) -> I {
        self.io.into_inner()
    }
}

impl<I: Duplex> StallClock<I> {
    /// Runs a write-side poll with the clock: started when it has to wait, stopped by progress.
    fn waited<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = write(Pin::new(self.io.get_mut()), cx) {
            self.clock = None;
            return Poll::Ready(done);
        }
        let limit = self.limit;
        let clock = self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(clock.as_mut().poll(cx));
        // A body that ends with its connection would otherwise look complete, and the kernel would keep the rest.
        self.io.get_mut().reset();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver does not read")))
    }
}

impl<I: Duplex> Duplex for StallClock<I> {
    fn reset(&mut self) {
        self.io.get_mut().reset();
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for StallClock<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.set_limit(AT_ONCE);
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: Duplex> AsyncWrite for StallClock<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.waited(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waited(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waited(cx, |io, cx| io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.waited(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }
}
