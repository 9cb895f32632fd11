//! One HTTP/2 connection that a peer opened.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, Connection, SendResponse};
use h2::{Ping, PingPong, Reason as Code, RecvStream};
use http::{Method, Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::watch::Watched;
use super::{ClientResets, RecvBody, Settings, TunnelIo, send};
use crate::drain::ON_ITS_WAY;
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::caught::caught;
use crate::http::headers;
use crate::http::interim::Interim;
use crate::http::owned;
use crate::http::upgrade::Pending;
use crate::observe::metrics::ServerCounts;
use crate::runtime::spawn;

/// How long the streams of a connection may go on whose peer has us keep much, once memory is tight.
const AS_BURDEN: Duration = Duration::from_secs(1);

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
pub async fn serve<I, H, F, C>(
    io: I,
    settings: Settings,
    counts: &ServerCounts,
    handler: H,
    closing: C,
) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Body>, Option<Pending>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
    C: Future<Output = Closing>,
{
    let (io, unseen) = Watched::new(io, counts.clone());
    let mut closing = std::pin::pin!(closing);
    // Boxed, both: a connection is kilobytes, and each step that it goes through here would keep room for it.
    let begun = Box::pin(begin(io, settings, counts, closing.as_mut())).await?;
    let Some((mut connection, within)) = begun else { return Ok(()) };

    let resets = Arc::new(Resets::new(settings.client_resets));
    let shared = Arc::new(counts.clone());
    let is_burden = || counts.is_memory_tight() && unseen.lock().keeps_much();
    let mut lost = std::pin::pin!(keep_alive(connection.ping_pong(), settings, &is_burden));
    let mut deadline = within.map(|within| Instant::now() + within);
    if deadline.is_some() {
        connection.graceful_shutdown();
    }
    let mut is_told = false;
    // Streams that came after the peer was found to abuse resets.
    let mut since_abuse: Option<u32> = None;
    loop {
        crate::runtime::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    unseen.lock().accepted(respond.stream_id().as_u32());
                    if since_abuse.is_none() && resets.opened() {
                        tracing::warn!("a peer keeps taking requests back: its connection is closed");
                        counts.limits.hit("client_resets");
                        since_abuse = Some(0);
                        if settings.is_shared {
                            // One of its callers did it. What the others have under way ends in order, and what they ask
                            // next comes on a fresh connection.
                            connection.graceful_shutdown();
                        } else {
                            connection.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
                        }
                    }
                    if let Some(since) = &mut since_abuse {
                        *since += 1;
                        if !settings.is_shared {
                            // Came before our GOAWAY was on the wire.
                            continue;
                        }
                        if *since > settings.max_streams {
                            // That is no sidecar, which would have stopped at it.
                            connection.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
                            continue;
                        }
                    }
                    if is_burden() && !is_told {
                        is_told = true;
                        counts.limits.hit("large_heads");
                        connection.graceful_shutdown();
                        deadline = Some(Instant::now() + AS_BURDEN);
                    }
                    let (resets, counts) = (Arc::clone(&resets), Arc::clone(&shared));
                    spawn(stream(request, respond, settings.stall, handler.clone(), resets, counts));
                }
                // Our own GOAWAY.
                Some(Err(_)) if since_abuse.is_some() => return Ok(()),
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
            limit = &mut lost => {
                counts.limits.hit(limit);
                return Ok(());
            }
        }
    }
}

/// A connection, and how long it may still take if it has been told to close already.
type Begun<I> = (Box<Connection<I, Bytes>>, Option<Duration>);

/// The preface and the settings, within their time. None if it closes before.
async fn begin<I, C>(
    io: I,
    settings: Settings,
    counts: &ServerCounts,
    mut closing: Pin<&mut C>,
) -> Result<Option<Begun<I>>, h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    C: Future<Output = Closing>,
{
    let handshake = server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.header_list)
        .max_send_buffer_size(settings.send_buffer)
        .max_local_error_reset_streams(Some(settings.local_error_resets))
        .max_pending_accept_reset_streams(settings.unseen_resets)
        .enable_connect_protocol()
        .handshake(io);
    let mut handshake = std::pin::pin!(timeout(settings.preface, handshake));
    let mut within = None;
    let connection = crate::runtime::select! {
        connection = &mut handshake => connection,
        why = &mut closing => {
            let Closing::Gracefully(given) = why else { return Ok(None) };
            within = Some(given);
            match timeout(ON_ITS_WAY.min(given), handshake).await {
                Ok(connection) => connection,
                Err(_) => return Ok(None),
            }
        }
    };
    let Ok(connection) = connection else {
        counts.limits.hit("head");
        return Ok(None);
    };
    Ok(Some((Box::new(connection?), within)))
}

/// The resets of one connection's peer: the mark of rapid reset (CVE-2023-44487), also when paced below what h2 itself
/// notices.
#[derive(Debug)]
struct Resets(Mutex<Counts>);

impl Resets {
    fn new(rules: ClientResets) -> Self {
        Self(Mutex::new(Counts::new(rules)))
    }

    /// Counts a new stream; true if the peer's resets have become abuse.
    fn opened(&self) -> bool {
        self.0.lock().opened(Instant::now())
    }

    /// Counts a stream of age `since` that the peer reset.
    fn count(&self, since: Instant) {
        let now = Instant::now();
        self.0.lock().reset(now.duration_since(since), now);
    }
}

/// One stream of a peer, whose reset by that peer counts.
#[derive(Debug)]
pub(super) struct PeerStream {
    resets: Arc<Resets>,
    since: Instant,
}

impl PeerStream {
    /// The peer reset it.
    pub(super) fn was_reset(self) {
        self.resets.count(self.since);
    }
}

#[derive(Debug)]
struct Counts {
    rules: ClientResets,
    /// When counting began, the streams since, and those of them that were taken back young.
    window: Option<Instant>,
    streams: usize,
    premature: usize,
    /// When the running second began, and the resets in it.
    second: Option<Instant>,
    resets: usize,
    /// Whole seconds in a row that were over the limit.
    busy: usize,
}

impl Counts {
    const fn new(rules: ClientResets) -> Self {
        Self { rules, window: None, streams: 0, premature: 0, second: None, resets: 0, busy: 0 }
    }

    fn opened(&mut self, now: Instant) -> bool {
        self.turn(now);
        if self.busy >= self.rules.seconds {
            return true;
        }
        let begun = *self.window.get_or_insert(now);
        if now.duration_since(begun) > self.rules.window {
            self.window = Some(now);
            (self.streams, self.premature) = (0, 0);
        }
        self.streams += 1;
        if self.streams < self.rules.streams {
            return false;
        }
        self.window = None;
        self.streams = 0;
        std::mem::take(&mut self.premature) * 100 > self.rules.streams * self.rules.percent
    }

    fn reset(&mut self, age: Duration, now: Instant) {
        if age < self.rules.age {
            self.premature += 1;
        }
        self.turn(now);
        self.resets += 1;
    }

    /// Closes the running second if it is over. Abuse stays abuse: the peer learns of it with its next stream, however
    /// late that comes.
    fn turn(&mut self, now: Instant) {
        let second = *self.second.get_or_insert(now);
        let past = now.duration_since(second);
        if past < Duration::from_secs(1) || self.busy >= self.rules.seconds {
            return;
        }
        let over = std::mem::take(&mut self.resets) > self.rules.per_second;
        self.busy = if over { self.busy + 1 } else { 0 };
        if past < Duration::from_secs(2) {
            self.second = Some(second + Duration::from_secs(1));
        } else {
            // At least one second without any lies between.
            self.second = Some(now);
            self.busy = if self.busy < self.rules.seconds { 0 } else { self.busy };
        }
    }
}

async fn stream<H, F>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    stall: Duration,
    handler: H,
    resets: Arc<Resets>,
    counts: Arc<ServerCounts>,
) where
    H: Fn(Request<Body>, Option<Pending>) -> F,
    F: Future<Output = Response<Body>>,
{
    let opened = PeerStream { resets, since: Instant::now() };
    let (mut parts, recv) = request.into_parts();
    let (interim, told) = Interim::new();
    parts.extensions.insert(interim);
    let head_only = parts.method == Method::HEAD;
    let is_grpc = headers::is_grpc(&parts.headers);
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
    let handling = handler(Request::from_parts(parts, body), pending);
    let mut handling = std::pin::pin!(caught(&counts, is_grpc, handling));
    let response = loop {
        crate::runtime::select! {
            // First, or a handler that fails because its request's body was taken back would hide the reset.
            biased;
            // Dropping the handler's future takes the call back upstream as well.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return opened.was_reset(),
            Some(head) = poll_fn(|cx| told.poll(cx)) => {
                // A caller that takes none still gets its answer.
                let _ = respond.send_informational(head);
            }
            response = &mut handling => break response,
        }
    };
    // It may have been told of and answered in one go.
    while let Some(head) = told.waiting() {
        let _ = respond.send_informational(head);
    }
    let (mut parts, mut body) = response.into_parts();
    owned::fields(&mut parts.headers);
    if head_only {
        body = Body::empty();
    }
    let is_tunnel = tunnel.is_some() && parts.status.is_success();
    let end = body.is_end_stream() && !is_tunnel;
    let Ok(stream) = respond.send_response(Response::from_parts(parts, ()), end) else { return };
    if let (Some((give, recv)), true) = (tunnel, is_tunnel) {
        let _ = give.send(TunnelIo::accepted(recv, stream, opened));
    } else if !end
        && let Err(error) = send::pump(body, stream, stall).await
        && is_peers(&error)
    {
        opened.was_reset();
    }
}

/// Whether a response ended because the peer reset its stream. A body that broke on the workload's side, or was
/// revoked, is no fault of the peer's.
fn is_peers(error: &Error) -> bool {
    error.side == Side::Peer && error.reason == Reason::Canceled
}

/// Ends when the peer leaves a PING unanswered, or has become a burden that cannot be borne. Says which limit that is.
async fn keep_alive(
    ping: Option<PingPong>,
    settings: Settings,
    is_burden: &impl Fn() -> bool,
) -> &'static str {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(settings.ping_interval).await;
        if is_burden() {
            return "large_heads";
        }
        if ping.send_ping(Ping::opaque()).is_err() {
            return std::future::pending().await;
        }
        match timeout(settings.ping_timeout, poll_fn(|cx| ping.poll_pong(cx))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return "ping",
        }
    }
}

#[cfg(test)]
mod bites;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    const LATE: Duration = Duration::from_secs(10);

    fn counts() -> Counts {
        Counts::new(Settings::mesh(&Limits::default()).client_resets)
    }

    /// `resets` of that age within each of `seconds`, among as many streams that end well.
    fn run(counts: &mut Counts, mut now: Instant, seconds: u32, resets: u32, age: Duration) -> bool {
        let mut abuse = false;
        for _ in 0..seconds {
            for n in 0..resets {
                let at = now + Duration::from_secs(1) * n / resets;
                abuse |= counts.opened(at) | counts.opened(at);
                counts.reset(age, at);
            }
            now += Duration::from_secs(1);
        }
        abuse | counts.opened(now)
    }

    #[test]
    fn more_than_half_taken_back_young_is_abuse() {
        for (young, abuse) in [(250, false), (251, true)] {
            let (mut counts, now) = (counts(), Instant::now());
            for _ in 0..young {
                assert!(!counts.opened(now));
                counts.reset(Duration::ZERO, now);
            }
            let found = (young..500).any(|_| counts.opened(now));
            assert_eq!(found, abuse, "{young} of 500");
        }
    }

    #[test]
    fn a_prober_that_resets_every_second_never_adds_up() {
        let (mut counts, start) = (counts(), Instant::now());
        // An hour of it, and what others do on the same connection.
        for second in 0..3_600 {
            let now = start + Duration::from_secs(second);
            assert!(!counts.opened(now) && !counts.opened(now), "second {second}");
            counts.reset(Duration::ZERO, now);
            counts.reset(Duration::ZERO, now);
        }
    }

    #[test]
    fn what_came_slowly_hides_a_burst_for_one_window_at_most() {
        let (mut counts, start) = (counts(), Instant::now());
        for second in 0..400 {
            assert!(!counts.opened(start + Duration::from_secs(second)), "second {second}");
        }
        // 60 a second: below what a second may have, and paced below what h2 notices.
        let burst = start + Duration::from_secs(400);
        let found = (0..1_000_u32).find(|n| {
            let now = burst + Duration::from_secs(1) * *n / 60;
            let is_abuse = counts.opened(now);
            counts.reset(Duration::ZERO, now);
            is_abuse
        });
        assert!(found.is_some(), "not within 1,000");
    }

    #[test]
    fn more_than_a_hundred_a_second_for_two_seconds_is_abuse() {
        let run = |seconds, resets| run(&mut counts(), Instant::now(), seconds, resets, LATE);
        assert!(!run(10, 100), "as many as are allowed, for long");
        assert!(!run(1, 200), "one second is a burst");
        assert!(run(2, 101));
    }

    #[test]
    fn bursts_with_a_rest_between_them_are_none() {
        let (mut counts, start) = (counts(), Instant::now());
        for n in 0..5 {
            assert!(!run(&mut counts, start + LATE * n, 1, 150, LATE), "burst {n}");
        }
    }

    #[test]
    fn only_what_the_peer_took_back_counts() {
        let failed = |side, reason| Error::new(side, reason, "");
        assert!(is_peers(&failed(Side::Peer, Reason::Canceled)));
        for (side, reason) in [
            (Side::Workload, Reason::WorkloadReset),
            (Side::Remote, Reason::RemoteReset),
            (Side::Us, Reason::Revoked),
            (Side::Peer, Reason::Stalled),
        ] {
            assert!(!is_peers(&failed(side, reason)), "{reason:?}");
        }
    }
}
