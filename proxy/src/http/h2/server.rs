//! One HTTP/2 connection that a peer opened.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason as Code, RecvStream};
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{RecvBody, Settings, TunnelIo, send};
use crate::http::body::Body;
use crate::http::upgrade::Pending;
use crate::runtime::spawn;

/// What ends a connection from our side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// No new streams; what runs may end within the time given.
    Gracefully(Duration),
    /// At once.
    Now,
}

/// Serves `io` until the peer closes it or `closing` resolves. Each request runs in a task of its own; `handler`
/// always has an answer.
pub async fn serve<I, H, F, C>(io: I, settings: Settings, handler: H, closing: C) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Body>, Option<Pending>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
    C: Future<Output = Closing>,
{
    let handshake = server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.header_list)
        .max_send_buffer_size(settings.send_buffer)
        .max_local_error_reset_streams(Some(settings.local_error_resets))
        .enable_connect_protocol()
        .handshake(io);
    let Ok(connection) = timeout(settings.preface, handshake).await else { return Ok(()) };
    let mut connection = connection?;

    let resets = Arc::new(Resets::default());
    let mut lost = std::pin::pin!(keep_alive(connection.ping_pong(), settings));
    let mut closing = std::pin::pin!(closing);
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    if resets.is_abuse() {
                        tracing::warn!("a peer keeps taking requests back: its connection is closed");
                        connection.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
                        continue;
                    }
                    spawn(stream(request, respond, settings.stall, handler.clone(), Arc::clone(&resets)));
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            why = &mut closing, if deadline.is_none() => match why {
                Closing::Gracefully(within) => {
                    connection.graceful_shutdown();
                    deadline = Some(Instant::now() + within);
                }
                Closing::Now => return Ok(()),
            },
            () = async { tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => {
                return Ok(());
            }
            () = &mut lost => return Ok(()),
        }
    }
}

/// Resets that came before their stream was a second old: the mark of rapid reset (CVE-2023-44487), also when paced
/// below what h2 itself notices.
#[derive(Debug, Default)]
struct Resets {
    streams: AtomicU32,
    premature: AtomicU32,
}

impl Resets {
    const ENOUGH: u32 = 500;
    const YOUNG: Duration = Duration::from_secs(1);

    /// Counts a stream; over every window of 500, more than half taken back young is abuse.
    fn is_abuse(&self) -> bool {
        if self.streams.fetch_add(1, Ordering::Relaxed) + 1 < Self::ENOUGH {
            return false;
        }
        self.streams.store(0, Ordering::Relaxed);
        self.premature.swap(0, Ordering::Relaxed) > Self::ENOUGH / 2
    }

    fn count(&self, since: Instant) {
        if since.elapsed() < Self::YOUNG {
            self.premature.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn stream<H, F>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    stall: Duration,
    handler: H,
    resets: Arc<Resets>,
) where
    H: Fn(Request<Body>, Option<Pending>) -> F,
    F: Future<Output = Response<Body>>,
{
    let since = Instant::now();
    let (parts, recv) = request.into_parts();
    let head_only = parts.method == Method::HEAD;
    let mut tunnel = None;
    let (body, pending) = if parts.method == Method::CONNECT {
        let (give, take) = oneshot::channel();
        tunnel = Some((give, recv));
        (Body::empty(), Some(Pending::H2(take)))
    } else if recv.is_end_stream() {
        (Body::empty(), None)
    } else {
        (Body::h2(RecvBody::request(recv)), None)
    };
    let response = tokio::select! {
        response = handler(Request::from_parts(parts, body), pending) => response,
        // Dropping the handler's future takes the call back upstream as well.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return resets.count(since),
    };
    let (parts, mut body) = response.into_parts();
    if head_only {
        body = Body::empty();
    }
    let is_tunnel = tunnel.is_some() && parts.status.is_success();
    let end = body.is_end_stream() && !is_tunnel;
    let Ok(stream) = respond.send_response(Response::from_parts(parts, ()), end) else { return };
    if let (Some((give, recv)), true) = (tunnel, is_tunnel) {
        let _ = give.send(TunnelIo::new(recv, stream, None));
    } else if !end && send::pump(body, stream, stall).await.is_err() {
        resets.count(since);
    }
}

/// Ends when the peer leaves a PING unanswered.
async fn keep_alive(ping: Option<PingPong>, settings: Settings) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(settings.ping_interval).await;
        if ping.send_ping(Ping::opaque()).is_err() {
            return std::future::pending().await;
        }
        match timeout(settings.ping_timeout, poll_fn(|cx| ping.poll_pong(cx))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
