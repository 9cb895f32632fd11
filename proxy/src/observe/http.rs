//! The small HTTP/1 server behind health and admin.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::listener::{Backoff, is_of_the_peer};
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

const HEAD: Duration = Duration::from_secs(5);
/// Connections open at a time: many times what probes and scrapers need.
const ROOM: usize = 64;
/// While memory or descriptors run out. Not none: a sidecar that fell silent now would be killed by its probe, with
/// every call it carries, and nobody would see why.
const ROOM_UNDER_PRESSURE: usize = 4;

/// One of the small doors.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Its name in the log and among the limits.
    pub name: &'static str,
    /// The whole life of a connection: asking takes milliseconds, who stays longer wants something else.
    pub whole: Duration,
}

/// Accepts for ever, and answers on every connection with `handler`. For a new connection beyond the limit the oldest
/// is cut, because a limit that made new ones wait would let idle ones lock everybody out.
pub async fn listen<A, Accepting, I, H, F>(sidecar: Arc<Sidecar>, door: Door, accept: A, handler: H)
where
    A: Fn() -> Accepting + Send,
    Accepting: Future<Output = io::Result<I>> + Send,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut guests = Guests::default();
    let mut backoff = Backoff::default();
    loop {
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) if is_of_the_peer(&error) => continue,
            Err(error) => {
                let pause = backoff.pause();
                tracing::warn!(%error, door = door.name, ?pause, "accept failed");
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        backoff = Backoff::default();
        let room = if sidecar.pressure.allows_connections(&sidecar.snapshots.load().limits) {
            ROOM
        } else {
            ROOM_UNDER_PRESSURE
        };
        if guests.make_room(room) > 0 {
            sidecar.metrics.limit(door.name);
        }
        guests.0.push_back(spawn(serve(stream, door.whole, handler.clone())));
    }
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Guests(VecDeque<JoinHandle<()>>);

impl Guests {
    /// Leaves fewer than `room`; how many had to be cut.
    fn make_room(&mut self, room: usize) -> usize {
        self.0.retain(|guest| !guest.is_finished());
        let cut = (self.0.len() + 1).saturating_sub(room);
        for guest in self.0.drain(..cut) {
            guest.abort();
        }
        cut
    }
}

/// Serves one connection for at most `whole`.
async fn serve<I, H, F>(io: I, whole: Duration, handler: H)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F + Send,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let service = service_fn(|request| {
        let response = handler(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(16 << 10)
        .serve_connection(TokioIo::new(io), service);
    let _ = timeout(whole, connection).await;
}

/// Plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.into())
}

/// JSON.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut text = value.to_string();
    text.push('\n');
    respond(status, "application/json", text.into())
}

/// An answer of the given type.
pub fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_make_room() {
        let mut guests = Guests::default();
        for _ in 0..200 {
            guests.make_room(ROOM);
            guests.0.push_back(spawn(std::future::pending()));
            assert!(guests.0.len() <= ROOM);
        }
        assert_eq!(guests.make_room(ROOM_UNDER_PRESSURE), ROOM + 1 - ROOM_UNDER_PRESSURE);
        assert_eq!(guests.0.len(), ROOM_UNDER_PRESSURE - 1);
    }

    #[tokio::test]
    async fn whoever_has_gone_is_not_counted() {
        let mut guests = Guests::default();
        for _ in 0..ROOM {
            guests.0.push_back(spawn(async {}));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(guests.make_room(ROOM), 0);
        assert!(guests.0.is_empty());
    }
}
