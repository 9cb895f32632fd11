//! A small HTTP/1 server for the two read-only endpoints: GET only, few connections, short deadlines.

use std::convert::Infallible;
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
use tokio::sync::Semaphore;

use crate::accept::back_off;
use crate::admin::Admin;
use crate::health::Health;
use crate::net::{TcpListener, TcpStream};
use crate::task::Tasks;

/// Bodies here are made whole.
pub(crate) type Body = Full<Bytes>;

/// For a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// For a whole connection: probes open new ones, a scraper may as well.
const LIFE: Duration = Duration::from_secs(300);

/// What is served.
#[derive(Clone)]
pub(crate) enum Site {
    /// `/live`, `/ready`, `/metrics`.
    Health(Arc<Health>),
    /// The mesh admin endpoint.
    Admin(Arc<Admin>),
}

/// Serves until everything stops. Whoever comes beyond `limit` connections waits.
pub(crate) async fn serve(listener: TcpListener, site: Site, limit: usize, tasks: Tasks) {
    let stopped = tasks.stopped();
    tokio::pin!(stopped);
    let places = Arc::new(Semaphore::new(limit));
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let (accepted, place) = tokio::select! {
            () = &mut stopped => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        match accepted {
            Ok((stream, _)) => {
                let (site, one) = (site.clone(), tasks.clone());
                tasks.spawn(async move {
                    connection(stream, site, one).await;
                    drop(place);
                });
            }
            Err(error) => back_off(&error).await,
        }
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
    tokio::select! {
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
    }
}

fn response(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
