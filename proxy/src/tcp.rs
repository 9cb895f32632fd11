//! Relays bytes between two streams, faithfully: a half-close stays a half-close, and a cut never looks like an end.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::{self, TcpStream};

/// A byte stream that can be ended rudely.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {
    /// Makes the peer see a reset instead of an end.
    fn reset(&mut self);

    /// Whether the kernel makes it a reset should this process die from now on.
    fn reset_at_death(&mut self, _is_so: bool) {}
}

impl Duplex for TcpStream {
    fn reset(&mut self) {
        net::reset_on_close(self);
    }

    fn reset_at_death(&mut self, is_so: bool) {
        if is_so { net::reset_on_close(self) } else { net::end_on_close(self) }
    }
}

/// What a relay carried and how it ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from `a` to `b`.
    pub forth: u64,
    /// Bytes from `b` to `a`.
    pub back: u64,
    /// `None` if both sides closed in order.
    pub cut: Option<io::Error>,
}

/// Relays until both directions have ended, one fails, or neither side takes what waits for it for `stall`. After a
/// failure both sides are reset: TLS without `close_notify`, RST and `RST_STREAM` must not become a clean FIN. Nor must the
/// end of a process that is killed meanwhile, whose sockets the kernel would close in order.
pub async fn relay<A: Duplex, B: Duplex>(a: &mut A, b: &mut B, stall: Duration) -> Relayed {
    a.reset_at_death(true);
    b.reset_at_death(true);
    let mut forth = Direction::new(stall);
    let mut back = Direction::new(stall);
    let result = poll_fn(|cx| {
        let first = forth.poll(cx, a, b)?;
        let second = back.poll(cx, b, a)?;
        if first.is_ready() && second.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    if result.is_err() {
        a.reset();
        b.reset();
    } else {
        a.reset_at_death(false);
        b.reset_at_death(false);
    }
    Relayed { forth: forth.total, back: back.total, cut: result.err() }
}

/// Enough for requests and replies; idle tunnels are many.
const SMALL: usize = 4 << 10;
/// One TLS record less its overhead.
const FULL: usize = (16 << 10) - 64;

struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    total: u64,
    read_ended: bool,
    done: bool,
    unflushed: bool,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Direction {
    fn new(stall: Duration) -> Self {
        Self {
            buffer: vec![0; SMALL],
            start: 0,
            end: 0,
            total: 0,
            read_ended: false,
            done: false,
            unflushed: false,
            stall,
            stalled: None,
        }
    }

    fn poll<R: Duplex, W: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while !self.done {
            if self.start == self.end && !self.read_ended {
                match self.fill(cx, from) {
                    Poll::Ready(filled) => filled?,
                    Poll::Pending => {
                        // tokio-rustls answers a write before the record is on the wire. Without a flush here the
                        // last bytes of an exchange would wait for the next ones.
                        if self.unflushed {
                            ready!(self.waited(cx, |cx| Pin::new(&mut *to).poll_flush(cx)))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
            while self.start < self.end {
                let (start, end) = (self.start, self.end);
                let buffer = std::mem::take(&mut self.buffer);
                let written = self.waited(cx, |cx| Pin::new(&mut *to).poll_write(cx, &buffer[start..end]));
                self.buffer = buffer;
                let count = ready!(written)?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += count;
                self.total += count as u64;
                self.unflushed = true;
            }
            if self.read_ended {
                ready!(self.waited(cx, |cx| Pin::new(&mut *to).poll_shutdown(cx)))?;
                self.done = true;
                self.buffer = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn fill<R: Duplex>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let count = buf.filled().len();
        self.start = 0;
        self.end = count;
        self.read_ended = count == 0;
        if count == self.buffer.len() && count < FULL {
            // A reader that fills the buffer has more: next time, a whole record at once.
            self.buffer.resize(FULL, 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Runs a write-side poll with the stall clock: started when it has to wait, stopped by progress.
    fn waited<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = write(cx) {
            self.stalled = None;
            return Poll::Ready(done);
        }
        let stall = self.stall;
        let clock =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + stall)));
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver does not read")))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    struct Side {
        io: DuplexStream,
        fail_reads: bool,
        was_reset: bool,
    }

    impl Side {
        fn new(io: DuplexStream) -> Self {
            Self { io, fail_reads: false, was_reset: false }
        }
    }

    impl Duplex for Side {
        fn reset(&mut self) {
            self.was_reset = true;
        }
    }

    impl AsyncRead for Side {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.fail_reads {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Side {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.io).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_half_close_stays_one() {
        let (mut left, a) = duplex(64);
        let (mut right, b) = duplex(64);
        let (mut a, mut b) = (Side::new(a), Side::new(b));
        let relayed = tokio::spawn(async move { relay(&mut a, &mut b, Duration::from_secs(5)).await });
        left.write_all(b"request").await.unwrap();
        left.shutdown().await.unwrap();
        let mut request = Vec::new();
        right.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        // The other direction is still open.
        let reply = vec![7_u8; 100_000];
        let writer = tokio::spawn(async move {
            right.write_all(&reply).await.unwrap();
            right.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        left.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got.len(), 100_000);
        let relayed = relayed.await.unwrap();
        assert!(relayed.cut.is_none());
        assert_eq!((relayed.forth, relayed.back), (7, 100_000));
    }

    #[tokio::test]
    async fn a_cut_resets_both_sides() {
        let (_left, a) = duplex(64);
        let (_right, b) = duplex(64);
        let (mut a, mut b) = (Side::new(a), Side::new(b));
        a.fail_reads = true;
        let relayed = relay(&mut a, &mut b, Duration::from_secs(5)).await;
        assert!(relayed.cut.is_some());
        assert!(a.was_reset && b.was_reset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_never_reads_is_cut() {
        let (mut left, a) = duplex(1 << 20);
        let (_right, b) = duplex(64);
        let (mut a, mut b) = (Side::new(a), Side::new(b));
        left.write_all(&[0; 4_096]).await.unwrap();
        let relayed = relay(&mut a, &mut b, Duration::from_secs(30)).await;
        assert_eq!(relayed.cut.unwrap().kind(), io::ErrorKind::TimedOut);
        assert!(b.was_reset);
    }
}
