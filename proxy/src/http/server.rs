//! HTTP/1 towards callers, with hyper, and the deadlines that hyper alone cannot keep apart.
//!
//! hyper's one timer runs from the moment it waits for a head, so it is the idle time of a kept-alive connection. A
//! head that trickles in byte by byte needs a clock of its own, started by its first byte: `HeadClock`. A caller
//! that stops reading meets `StallClock`; and while it does not read, hyper does not ask for the response's body, which
//! would tell that permission was withdrawn: so `HeadClock` watches for that too. It also sees every byte before hyper
//! does, so `framing` refuses there what hyper would mend.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Sleep;

use super::body::Body;
use super::caught::caught;
use super::framing::Framing;
use super::interim::{self, Interim};
use super::stall::StallClock;
use super::upgrade::Pending;
use super::{headers, respond, strict};
use crate::connections::Entry;
use crate::error::{Error, Reason, Side};
use crate::limits::Limits;
use crate::observe::metrics::{LimitHits, ServerCounts};
use crate::tcp::Duplex;

/// Serves HTTP/1 on `io` until it ends, or until `closing` resolves and the request that runs has ended.
pub async fn serve_h1<I, H, F>(
    io: I,
    limits: &Limits,
    counts: &ServerCounts,
    handler: H,
    closing: impl Future<Output = ()>,
) where
    I: Duplex + Send + 'static,
    H: Fn(Request<Body>, Option<Pending>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send,
{
    let state = Arc::new(HeadState::default());
    let io = StallClock::new(io, limits.stall);
    let io = HeadClock {
        io: Some(io),
        state: Arc::clone(&state),
        framing: Framing::new(limits.head_bytes),
        limit: limits.head,
        clock: None,
        hits: counts.limits.clone(),
    };
    let at_end = Arc::clone(&state);
    let malformed = counts.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let serving = Arc::new(Serving::begin(&state));
        let may_switch = request.method() == Method::CONNECT
            || headers::asks_for_websocket(request.headers())
            || headers::asked_upgrade(request.headers()).is_some();
        let asks = may_switch || request.headers().contains_key(UPGRADE);
        let upgrade = asks.then(|| hyper::upgrade::on(&mut request));
        let pending = upgrade.clone().filter(|_| may_switch).map(Pending::H1);
        let is_connect = request.method() == Method::CONNECT;
        let told = interim::expects_continue(request.headers()).then(|| {
            let (interim, told) = Interim::new();
            request.extensions_mut().insert(interim);
            told
        });
        let body = |incoming| {
            let body = Body::h1(incoming, Side::Peer).held(Arc::clone(&serving));
            match told {
                Some(told) => body.expecting(told),
                None => body,
            }
        };
        let is_grpc = headers::is_grpc(request.headers());
        let response = match strict::check_h1(&request) {
            Ok(()) => Ok(handler(request.map(body), pending)),
            Err(error) => Err(error),
        };
        let (state, malformed) = (Arc::clone(&state), malformed.clone());
        async move {
            let response = match response {
                Ok(response) => caught(&malformed, is_grpc, response).await,
                Err(error) => refuse(&malformed, &error),
            };
            let mut response = match state.is_malformed() {
                // Its body broke, whatever came of what was sent of it.
                true => refuse(&malformed, &Error::new(Side::Peer, Reason::BadRequest, "the body's framing")),
                false => response,
            };
            let status = response.status();
            let switches = status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && status.is_success());
            if state.is_unwatched() && !switches {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if !switches && upgrade.is_some() {
                *state.unswitched.lock() = upgrade;
            }
            serving.answers(response.body().entry());
            Ok::<_, Infallible>(response.map(|body| body.answering(serving)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(limits.head_fields)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.head_bytes.max(64 << 10))
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = crate::runtime::select! {
        ended = &mut connection => ended,
        () = closing => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let unswitched = at_end.unswitched.lock().take();
    if let (Ok(()), Some(upgrade)) = (&ended, unswitched) {
        // hyper hands such a connection over at its end, whatever the answer was, and does not close it: dropped as it is, a
        // tunnel's stream would be reset, and its last answer lost.
        if let Ok(mut io) = upgrade.await.map(TokioIo::new) {
            let _ = io.shutdown().await;
        }
    }
    if let Err(error) = ended {
        if error.is_parse_too_large() {
            counts.head_too_large();
        } else if error.is_timeout() {
            counts.limits.hit(if at_end.is(HeadState::READING) { "head" } else { "idle" });
        } else if error.is_parse() {
            counts.malformed();
        }
        tracing::debug!(%error, "an HTTP/1 connection ended");
    }
}

/// Answers what cannot be one request and nothing else; what comes behind it is not looked at.
fn refuse(counts: &ServerCounts, error: &Error) -> Response<Body> {
    counts.malformed();
    tracing::debug!(%error, "an HTTP/1 request was refused");
    let mut response = respond::error(error, None, false);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Where a connection stands between two heads.
#[derive(Debug, Default)]
struct HeadState {
    stage: AtomicU8,
    /// What `framing` found: nobody knows what comes next; the body of the request that is served is no body.
    unwatched: AtomicBool,
    malformed: AtomicBool,
    /// An answer ended before its end.
    broken: AtomicBool,
    /// An upgrade that was asked for and did not come.
    unswitched: Mutex<Option<OnUpgrade>>,
    running: Mutex<Running>,
}

/// The exchange that began last.
#[derive(Debug, Default)]
struct Running {
    number: u64,
    /// The stream whose response is being written.
    entry: Option<Arc<Entry>>,
}

impl HeadState {
    /// Nothing of a head has come: hyper's idle time runs.
    const IDLE: u8 = 0;
    /// A head is coming in.
    const READING: u8 = 1;
    /// A request is being served: what is read is its body, or the next head, early.
    const SERVING: u8 = 2;

    fn set(&self, state: u8) {
        self.stage.store(state, Ordering::Relaxed);
    }

    fn is(&self, state: u8) -> bool {
        self.stage.load(Ordering::Relaxed) == state
    }

    fn is_unwatched(&self) -> bool {
        self.unwatched.load(Ordering::Relaxed)
    }

    fn is_malformed(&self) -> bool {
        self.malformed.load(Ordering::Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.running.lock().entry {
            Some(entry) => entry.poll_revoked(cx),
            None => Poll::Pending,
        }
    }
}

/// One exchange. Held by both bodies: the next head is waited for once both have ended, not when the response begins,
/// or a long upload beside it would be taken for a slow head. A body that someone still holds after its end may outlive
/// the exchange: what it says then is not about the next one.
#[derive(Debug)]
pub struct Serving {
    state: Arc<HeadState>,
    number: u64,
}

impl Serving {
    fn begin(state: &Arc<HeadState>) -> Self {
        let mut running = state.running.lock();
        let number = running.number + 1;
        *running = Running { number, entry: None };
        state.set(HeadState::SERVING);
        Self { state: Arc::clone(state), number }
    }

    /// The answer will never be whole.
    pub(super) fn breaks(&self) {
        self.state.broken.store(true, Ordering::Relaxed);
    }

    fn answers(&self, entry: Option<&Arc<Entry>>) {
        let mut running = self.state.running.lock();
        if running.number == self.number {
            running.entry = entry.cloned();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut running = self.state.running.lock();
        if running.number == self.number {
            running.entry = None;
            self.state.set(HeadState::IDLE);
        }
    }
}

/// Fails reads once a head has taken longer than it may, and everything once permission is withdrawn.
#[derive(Debug)]
pub(super) struct HeadClock<I: Duplex> {
    /// Taken by whoever goes on with it.
    io: Option<I>,
    state: Arc<HeadState>,
    framing: Framing,
    limit: Duration,
    clock: Option<Pin<Box<Sleep>>>,
    hits: LimitHits,
}

impl<I: Duplex> HeadClock<I> {
    /// What is underneath.
    pub(super) fn into_inner(mut self) -> I {
        self.io.take().expect("only this takes it, and it takes all of us")
    }

    fn io(&mut self) -> &mut I {
        self.io.as_mut().expect("whoever took it took all of us")
    }
}

impl<I: Duplex> Drop for HeadClock<I> {
    fn drop(&mut self) {
        if let (Some(io), true) = (&mut self.io, self.state.is_broken()) {
            // hyper closes a connection whose answer broke. To HTTP/1.0 the end of a connection may be the end of a body.
            io.reset();
        }
    }
}

impl<I: Duplex> AsyncRead for HeadClock<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper asks for more to read before it asks a body for more to write: that body would fail, and the connection
        // would be closed instead of reset.
        if self.state.poll_revoked(cx).is_ready() {
            return Poll::Ready(self.revoked());
        }
        if self.framing.is_broken() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no HTTP/1 that everybody reads alike",
            )));
        }
        let before = buf.filled().len();
        let read = Pin::new(self.io()).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read {
            self.watch(buf, before);
        }
        if self.state.is(HeadState::SERVING) {
            self.clock = None;
            return read;
        }
        match read {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                if self.state.is(HeadState::IDLE) {
                    self.clock = None;
                    self.state.set(HeadState::READING);
                }
                read
            }
            Poll::Pending if self.state.is(HeadState::READING) => {
                let limit = self.limit;
                let clock = self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                match clock.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        self.hits.hit("head");
                        Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the request head does not end",
                        )))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
            read => read,
        }
    }
}

impl<I: Duplex> HeadClock<I> {
    /// Follows what was read. At a fault hyper gets a NUL in place of the line's end, and nothing more: it refuses the head
    /// with 400 when that head's turn comes, and a body ends broken.
    fn watch(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if let Err(fault) = self.framing.feed(&buf.filled()[before..]) {
            let at = before + fault.at;
            buf.filled_mut()[at] = 0;
            buf.set_filled(at + 1);
            self.state.malformed.store(fault.in_body, Ordering::Relaxed);
        }
        self.state.unwatched.store(self.framing.is_unwatched(), Ordering::Relaxed);
    }

    /// Fails a write that has to wait once permission is withdrawn. The bytes that wait in between belong to a response
    /// that must not be completed: the connection is reset, or its caller could take what came for the whole.
    fn permitted<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = write(Pin::new(self.io()), cx) {
            return Poll::Ready(done);
        }
        ready!(self.state.poll_revoked(cx));
        Poll::Ready(self.revoked())
    }

    fn revoked<T>(&mut self) -> io::Result<T> {
        self.io().reset();
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "permission was withdrawn"))
    }
}

impl<I: Duplex> AsyncWrite for HeadClock<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.permitted(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.permitted(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.permitted(cx, |io, cx| io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.permitted(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::{Direction, Facts, Operation, Stream};
    use crate::testing;

    #[test]
    fn an_exchange_that_ends_late_says_nothing_about_the_next_one() {
        let sidecar = testing::sidecar("");
        let registered = testing::connection(&sidecar, Direction::Inbound);
        let facts = Facts { port: 8080, operation: Operation::Tcp, destination: None, asked: None };
        let stream = Stream::open(&sidecar, registered.connection(), facts);
        let state = Arc::new(HeadState::default());
        let first = Serving::begin(&state);
        let second = Serving::begin(&state);
        second.answers(Some(stream.entry()));
        first.answers(None);
        drop(first);
        assert!(state.is(HeadState::SERVING), "the second is being served");
        let is_running = || state.running.lock().entry.is_some();
        assert!(is_running(), "its permission is still watched");
        drop(second);
        assert!(state.is(HeadState::IDLE) && !is_running());
    }

    /// What a connection with these bytes on it is answered, and how many requests were served.
    async fn answered(bytes: &[u8]) -> (String, usize) {
        use tokio::io::AsyncReadExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let handler = move |_: Request<Body>, _: Option<Pending>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Response::new(Body::full("served")) }
        };
        let counts = crate::observe::metrics::Metrics::default().server(Direction::Inbound);
        let io = crate::detect::Rewound::new(bytes::Bytes::new(), far);
        caller.write_all(bytes).await.unwrap();
        caller.shutdown().await.unwrap();
        serve_h1(io, &Limits::default(), &counts, handler, std::future::pending()).await;
        let mut answer = Vec::new();
        let _ = caller.read_to_end(&mut answer).await;
        (String::from_utf8_lossy(&answer).into_owned(), served.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_hyper_would_mend_is_refused() {
        let (answer, served) = answered(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && served == 1, "{answer}");
        for bytes in [
            &b"GET /a HTTP/1.1\nHost: a\n\n"[..],
            b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let (answer, served) = answered(bytes).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && served == 0, "{answer}");
        }
    }

    #[tokio::test]
    async fn what_comes_behind_a_switch_that_does_not_happen_is_no_request() {
        let switch = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n";
        let (answer, served) = answered(&[&switch[..], b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"].concat()).await;
        assert_eq!(served, 1, "{answer}");
        assert!(answer.contains("connection: close") && answer.ends_with("served"), "{answer}");
    }
}
