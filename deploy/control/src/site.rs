//! A small HTTP/1 server for the two read-only endpoints: GET only, few connections, short deadlines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::accept::back_off;
use crate::admin::Admin;
use crate::federation::BundlePage;
use crate::health::Health;
use crate::limits::Share;
use crate::net::{TcpListener, TcpStream};
use crate::task::Tasks;

/// Bodies here are made whole.
pub(crate) type Body = Full<Bytes>;

/// From a connection's begin, or from the last answer, to the end of a request's head: a probe sends its one packet at once.
const HEAD: Duration = Duration::from_secs(2);
/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For a whole connection: probes open new ones, a scraper may as well.
const LIFE: Duration = Duration::from_secs(300);

/// What is served.
#[derive(Clone)]
pub(crate) enum Site {
    /// `/live`, `/ready`, `/metrics`.
    Health(Arc<Health>),
    /// The mesh admin endpoint.
    Admin(Arc<Admin>),
    /// The bundle endpoint, over TLS.
    Bundle(Arc<BundlePage>),
}

impl Site {
    /// Its name among the reasons for refusing a connection.
    const fn name(&self) -> &'static str {
        match self {
            Self::Health(_) => "health",
            Self::Admin(_) => "mesh_admin",
            Self::Bundle(_) => "bundle_endpoint",
        }
    }
}

/// Serves until everything stops. For a new connection beyond `room` an old one is cut: a limit that made new ones wait would
/// let silent ones keep a probe out, and its supervisor would restart a control plane that is well.
pub(crate) async fn serve(listener: TcpListener, site: Site, room: Share, health: Arc<Health>, tasks: Tasks) {
    let stopped = tasks.stopped();
    tokio::pin!(stopped);
    let mut guests = Guests::default();
    loop {
        let accepted = crate::task::select! {
            () = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, source)) => {
                if guests.make_room(source.ip(), room) {
                    health.refused(site.name());
                }
                let task = tasks.spawn(connection(stream, site.clone(), tasks.clone()));
                guests.0.push_back((source.ip(), task));
            }
            Err(error) => back_off(&error).await,
        }
    }
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Guests(VecDeque<(IpAddr, AbortHandle)>);

impl Guests {
    /// Leaves a place for one more from `source`. Whether one had to be cut for it: the oldest from there if that address has
    /// its share, else the oldest of all.
    fn make_room(&mut self, source: IpAddr, room: Share) -> bool {
        self.0.retain(|(_, guest)| !guest.is_finished());
        let theirs = self.0.iter().filter(|(address, _)| *address == source).count();
        let oldest = if theirs >= room.per_source {
            self.0.iter().position(|(address, _)| *address == source)
        } else {
            (self.0.len() >= room.all).then_some(0)
        };
        let Some((_, guest)) = oldest.and_then(|oldest| self.0.remove(oldest)) else { return false };
        guest.abort();
        true
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(body) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            response(status, "application/json", bytes)
        }
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
    }
}

/// An answer that says what was wrong.
pub(crate) fn error(status: StatusCode, text: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": text }))
}

/// Metrics in OpenMetrics' text format.
pub(crate) fn metrics(text: String) -> Response<Body> {
    response(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text.into_bytes())
}

async fn connection(stream: TcpStream, site: Site, tasks: Tasks) {
    let Site::Bundle(page) = &site else { return converse(stream, site, tasks).await };
    let shaking = TlsAcceptor::from(page.tls.load_full()).accept(stream);
    crate::task::select! {
        () = tasks.stopped() => {}
        shaken = tokio::time::timeout(HANDSHAKE, shaking) => {
            // Who fails here, or is late, is not told apart from who never came.
            if let Ok(Ok(stream)) = shaken {
                converse(stream, site, tasks.clone()).await;
            }
        }
    }
}

async fn converse<S>(stream: S, site: Site, tasks: Tasks)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(respond(&site, &request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    crate::task::select! {
        // A peer's bad request or broken line concerns nobody else.
        _ = served.as_mut() => return,
        () = tasks.stopped() => {}
        () = tokio::time::sleep(LIFE) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(HEAD, served).await;
}

async fn respond(site: &Site, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET {
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    match site {
        Site::Health(health) => health.respond(request.uri().path()),
        Site::Admin(admin) => admin.respond(request).await,
        Site::Bundle(page) => page.respond(request.uri().path()),
    }
}

/// An answer of these bytes.
pub(crate) fn response(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_make_room_first_of_all_those_from_the_same_address() {
        let room = Share { all: 6, per_source: 4 };
        let [one, other, third] = [1, 2, 3].map(|n| IpAddr::from([192, 0, 2, n]));
        let tasks = Tasks::new();
        let mut guests = Guests::default();
        let mut come = |source| {
            let cut = guests.make_room(source, room);
            guests.0.push_back((source, tasks.spawn(std::future::pending())));
            let counts = [one, other, third].map(|s| guests.0.iter().filter(|(a, _)| *a == s).count());
            (cut, counts)
        };
        assert_eq!(come(other), (false, [0, 1, 0]));
        for n in 1..=4 {
            assert_eq!(come(one), (false, [n, 1, 0]));
        }
        for _ in 0..100 {
            assert_eq!(come(one), (true, [4, 1, 0]), "a flood cuts only its own");
        }
        assert_eq!(come(third), (false, [4, 1, 1]));
        assert_eq!(come(third), (true, [4, 0, 2]), "all are taken: the oldest of all");
    }

    #[tokio::test]
    async fn whoever_has_gone_is_not_counted() {
        let room = Share { all: 2, per_source: 1 };
        let source = IpAddr::from([192, 0, 2, 1]);
        let tasks = Tasks::new();
        let mut guests = Guests::default();
        let gone = tasks.spawn(async {});
        while !gone.is_finished() {
            tokio::task::yield_now().await;
        }
        guests.0.push_back((source, gone));
        assert!(!guests.make_room(source, room));
        assert!(guests.0.is_empty());
    }
}
