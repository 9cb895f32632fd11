//! One HTTP/2 connection that we opened.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason as Code, RecvStream, SendStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::recv::Exchange;
use super::{RecvBody, Settings, TunnelIo, send};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::interim::Interim;
use crate::http::owned;
use crate::observe::metrics::LimitHits;
use crate::runtime::{Owned, spawn};

/// A connection to one peer; requests run on it side by side. It closes when every clone is dropped and the last
/// stream has ended.
#[derive(Clone, Debug)]
pub struct Connection {
    send: SendRequest<Bytes>,
    state: Arc<State>,
    settings: Settings,
    side: Side,
    hits: LimitHits,
}

#[derive(Debug, Default)]
struct State {
    in_flight: AtomicUsize,
    /// No new stream may be opened: GOAWAY, broken, or replaced.
    closed: AtomicBool,
    /// Has a permit once everything on it must end.
    cut: Notify,
}

/// One stream's place in the count.
#[derive(Debug)]
pub(super) struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Starts HTTP/2 on `io`, a connection to `side`.
    pub async fn handshake<I>(io: I, settings: Settings, side: Side, hits: &LimitHits) -> Result<Self, Error>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, mut connection) = client::Builder::new()
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_header_list_size(settings.header_list)
            .max_send_buffer_size(settings.send_buffer)
            .max_local_error_reset_streams(Some(settings.local_error_resets))
            .initial_max_send_streams(settings.first_streams)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(|error| unreachable_error(side, &error))?;
        let state = Arc::new(State::default());
        let ping = connection.ping_pong();
        let (watched, hits, kept) = (Arc::clone(&state), hits.clone(), hits.clone());
        spawn(async move {
            crate::runtime::select! {
                // Ends when the peer closes, or when all handles and streams are gone.
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "an HTTP/2 connection ended");
                },
                () = watched.cut.notified() => {}
                () = keep_alive(ping, &watched, settings) => {
                    hits.hit("ping");
                    tracing::info!("an HTTP/2 peer no longer answers PING: its connection is closed");
                }
            }
            watched.closed.store(true, Ordering::Relaxed);
        });
        Ok(Self { send, state, settings, side, hits: kept })
    }

    /// Ends the connection at once, with every stream on it.
    pub fn cut(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.state.cut.notify_one();
    }

    /// Whether a new stream may be opened here.
    pub fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Relaxed)
    }

    /// Whether the peer allows another stream now.
    pub fn has_room(&self) -> bool {
        self.is_open() && self.in_flight() < self.send.current_max_send_streams()
    }

    /// Waits until the peer has said how many streams it allows. h2 offers no way to wait for SETTINGS; what it starts
    /// with must be nothing: [`Settings::first_streams`].
    pub async fn settled(&self) -> Result<(), Error> {
        while self.send.current_max_send_streams() == 0 {
            if !self.is_open() {
                let detail = "the connection ended before it began";
                return Err(Error::unsent(self.side, reset_reason(self.side), detail));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Streams that run now.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(Ordering::Relaxed)
    }

    /// Opens a stream with a request's head; `end` says that no body follows. As long as this fails nothing was sent,
    /// and the body is still with the caller.
    pub async fn open(&self, head: Request<()>, end: bool) -> Result<Opened, Error> {
        let (response, stream, in_flight) = self.start(head, end).await?;
        Ok(Opened { connection: self.clone(), response, stream: (!end).then_some(stream), in_flight })
    }

    /// Opens a CONNECT stream. On 2xx the stream is a tunnel, returned with its head; any other answer is returned with
    /// its body.
    pub async fn tunnel(
        &self,
        head: Request<()>,
    ) -> Result<Result<Response<TunnelIo>, Response<Body>>, Error> {
        if head.extensions().get::<h2::ext::Protocol>().is_some() {
            self.await_extended_connect().await?;
        }
        let (response, stream, in_flight) = self.start(head, false).await?;
        let response = self.answer(response, None).await?;
        let (parts, recv) = response.into_parts();
        if parts.status.is_success() {
            return Ok(Ok(Response::from_parts(parts, TunnelIo::opened(recv, stream, in_flight))));
        }
        let exchange = Exchange { _pump: None, _in_flight: in_flight };
        let body = Body::h2(RecvBody::response(recv, self.side, exchange));
        Ok(Err(Response::from_parts(parts, body)))
    }

    async fn start(
        &self,
        mut head: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>, InFlight), Error> {
        self.state.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(Arc::clone(&self.state));
        let unsent = |error: h2::Error| {
            self.state.closed.store(true, Ordering::Relaxed);
            Error::unsent(self.side, reset_reason(self.side), error.to_string())
        };
        owned::fields(head.headers_mut());
        let ready = timeout(self.settings.stall, self.send.clone().ready()).await;
        let Ok(ready) = ready else {
            return Err(Error::unsent(self.side, Reason::Stalled, "the peer allows no further stream"));
        };
        let (response, stream) = ready.map_err(unsent)?.send_request(head, end).map_err(unsent)?;
        Ok((response, stream, in_flight))
    }

    /// Waits for the answer, past a few informational ones.
    async fn answer(
        &self,
        mut response: ResponseFuture,
        interim: Option<&Interim>,
    ) -> Result<Response<RecvStream>, Error> {
        let mut informational = 0;
        poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                if let Some(interim) = interim {
                    interim.tell(head.status(), head.headers());
                }
                informational += 1;
                if informational > self.settings.informational {
                    self.hits.hit("informational");
                    let reason = match self.side {
                        Side::Workload => Reason::WorkloadProtocol,
                        _ => Reason::RemoteReset,
                    };
                    let text = "informational answers and none that is asked for";
                    return Poll::Ready(Err(Error::new(self.side, reason, text)));
                }
            }
            let answer = ready!(Pin::new(&mut response).poll(cx));
            Poll::Ready(answer.map_err(|error| self.stream_error(&error)))
        })
        .await
    }

    /// Extended CONNECT may be used once the peer's SETTINGS allow it (RFC 8441, 3). h2 offers no way to wait for
    /// them, and on a fresh connection they may still be under way.
    async fn await_extended_connect(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.send.is_extended_connect_protocol_enabled() {
            if Instant::now() >= deadline || !self.is_open() {
                return Err(Error::unsent(
                    self.side,
                    Reason::UpgradeRefused,
                    "the peer offers no extended CONNECT",
                ));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn stream_error(&self, error: &h2::Error) -> Error {
        if error.is_go_away() {
            self.state.closed.store(true, Ordering::Relaxed);
        }
        // RFC 9113, 8.7: a refused stream was not processed. Nor was one past the last that a GOAWAY names: h2 ends those,
        // and no others, with the GOAWAY itself; what was processed goes on, or breaks with its connection.
        let is_unprocessed = error.is_go_away() || error.reason() == Some(Code::REFUSED_STREAM);
        if error.is_remote() && is_unprocessed {
            return Error::unsent(self.side, reset_reason(self.side), error.to_string());
        }
        Error::new(self.side, reset_reason(self.side), error.to_string())
    }
}

/// A stream whose head is on its way.
#[derive(Debug)]
pub struct Opened {
    connection: Connection,
    response: ResponseFuture,
    /// Where the body goes; none if the head was all.
    stream: Option<SendStream<Bytes>>,
    in_flight: InFlight,
}

impl Opened {
    /// Sends the body, which goes on being sent while the response is read, and waits for the response's head. What comes
    /// before it is told to `interim`.
    pub async fn exchange(self, body: Body, interim: Option<&Interim>) -> Result<Response<Body>, Error> {
        let Self { connection, response, stream, in_flight } = self;
        let stall = connection.settings.stall;
        let pump = stream.map(|stream| {
            // Its failure reaches the caller as the failure of the response.
            Owned::spawn(async move { drop(send::pump(body, stream, stall).await) })
        });
        let response = connection.answer(response, interim).await?;
        let (parts, recv) = response.into_parts();
        let exchange = Exchange { _pump: pump, _in_flight: in_flight };
        // A body that has ended is kept as one too: dropping the exchange now would abort a request body that the peer
        // still reads.
        Ok(Response::from_parts(parts, Body::h2(RecvBody::response(recv, connection.side, exchange))))
    }
}

/// Ends when the peer, while streams run, leaves a PING unanswered.
async fn keep_alive(ping: Option<PingPong>, state: &State, settings: Settings) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(settings.ping_interval).await;
        if state.in_flight.load(Ordering::Relaxed) == 0 {
            continue;
        }
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

fn reset_reason(side: Side) -> Reason {
    if side == Side::Workload { Reason::WorkloadReset } else { Reason::RemoteReset }
}

fn unreachable_error(side: Side, error: &h2::Error) -> Error {
    let reason = if side == Side::Workload { Reason::WorkloadUnreachable } else { Reason::RemoteUnreachable };
    Error::unsent(side, reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::error::Retry;
    use crate::limits::Limits;
    use crate::observe::metrics::Metrics;

    const PREFACE: usize = 24;
    const HEADERS: u8 = 1;
    /// SETTINGS that say nothing, and the answer to the other's.
    const HELLO: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];

    /// A peer that leaves once it has a request, which has the number 1: these are its last words.
    async fn peer(mut io: DuplexStream, last_words: Vec<u8>) -> std::io::Result<()> {
        io.read_exact(&mut [0; PREFACE]).await?;
        io.write_all(&HELLO).await?;
        loop {
            let mut head = [0; 9];
            io.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            io.read_exact(&mut vec![0; length as usize]).await?;
            if head[3] == HEADERS {
                break;
            }
        }
        io.write_all(&last_words).await
    }

    /// What comes of a request to it.
    async fn ask(last_words: Vec<u8>, side: Side) -> (Connection, Result<Response<Body>, Error>, Metrics) {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(peer(far, last_words));
        let (settings, metrics) = (Settings::mesh(&Limits::default()), Metrics::default());
        let connection = Connection::handshake(near, settings, side, &metrics.limits).await.unwrap();
        connection.settled().await.unwrap();
        let head = Request::get("http://orders.shop/").body(()).unwrap();
        let opened = connection.open(head, true).await.unwrap();
        let answer = opened.exchange(Body::empty(), None).await;
        (connection, answer, metrics)
    }

    #[tokio::test]
    async fn a_peer_that_has_had_enough_is_left_and_what_it_did_not_process_goes_elsewhere() {
        for code in [Code::ENHANCE_YOUR_CALM, Code::NO_ERROR, Code::INTERNAL_ERROR] {
            for (last, retry) in [(0, Retry::Unsent), (1, Retry::Never)] {
                // It processed those up to `last`.
                let number = u8::try_from(u32::from(code)).unwrap();
                let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, number];
                let (connection, answer, _) = ask(goaway.to_vec(), Side::Remote).await;
                let error = answer.unwrap_err();
                assert_eq!(
                    (error.reason, error.retry),
                    (Reason::RemoteReset, retry),
                    "{code} {last}: {error}"
                );
                while connection.is_open() {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    #[tokio::test]
    async fn who_sends_informational_answers_without_end_is_not_waited_for() {
        // 103 by a literal, and 200 by its index, which ends the stream.
        let (hints, ok) = (b"\0\0\x05\x01\x04\0\0\0\x01\x08\x03103", b"\0\0\x01\x01\x05\0\0\0\x01\x88");
        let most = Limits::default().informational;
        for (side, reason) in
            [(Side::Workload, Reason::WorkloadProtocol), (Side::Remote, Reason::RemoteReset)]
        {
            let (_, answer, metrics) = ask([&hints.repeat(most)[..], ok].concat(), side).await;
            assert_eq!(answer.unwrap().status(), 200, "{most} are enough for anybody");
            assert!(metrics.render().contains("limit=\"informational\"} 0"));
            let (_, answer, metrics) = ask([&hints.repeat(most + 1)[..], ok].concat(), side).await;
            let error = answer.unwrap_err();
            assert_eq!((error.reason, error.retry), (reason, Retry::Never), "{error}");
            assert!(metrics.render().contains("limit=\"informational\"} 1"));
        }
    }
}
