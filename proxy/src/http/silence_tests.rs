//! What is silent for an hour lives: a model that thinks, a watch on which nothing happens. The whole way of an exchange with
//! the deadlines as they are by default, in paused time: caller, HTTP/1, mesh connection, HTTP/1, workload.

use std::sync::Arc;

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::body::Body;
use super::h2::{self, Connection, Settings};
use super::server;
use super::stall::StallClock;
use crate::connections::Direction;
use crate::error::Side;
use crate::limits::Limits;
use crate::observe::metrics::Metrics;
use crate::tcp::{self, Duplex};

const HOUR: Duration = Duration::from_secs(3_600);

impl Duplex for DuplexStream {
    fn reset(&mut self) {}
}

/// The caller's end, and the workload's.
async fn way() -> (DuplexStream, DuplexStream) {
    let limits = Limits::default();
    let metrics = Arc::new(Metrics::default());
    let (caller, edge) = duplex(1 << 16);
    let (near, far) = duplex(1 << 16);
    let (last, workload) = duplex(1 << 16);

    // The workload's sidecar: its listener, and its connection to the workload.
    let io = TokioIo::new(StallClock::new(last, limits.stall));
    let (to_workload, connection) = http1::handshake(io).await.expect("the pipe is open");
    tokio::spawn(connection);
    let to_workload = Arc::new(tokio::sync::Mutex::new(to_workload));
    let handler = move |mut request: Request<Body>, _| {
        let to_workload = Arc::clone(&to_workload);
        async move {
            *request.version_mut() = http::Version::HTTP_11;
            let mut response =
                to_workload.lock().await.send_request(request).await.expect("the workload answers");
            response.headers_mut().remove(http::header::TRANSFER_ENCODING);
            response.map(|incoming| Body::h1(incoming, Side::Workload))
        }
    };
    let (settings, counts) = (Settings::mesh(&limits), metrics.server(Direction::Inbound));
    tokio::spawn(async move {
        let served = h2::serve(far, settings, &counts, handler, std::future::pending()).await;
        panic!("the mesh connection ended: {served:?}");
    });

    // The caller's.
    let hits = metrics.limits.clone();
    let mesh = Connection::handshake(near, Settings::mesh(&limits), Side::Remote, &hits).await;
    let mesh = mesh.expect("the pipe is open");
    let handler = move |request: Request<Body>, _| {
        let mesh = mesh.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            parts.uri = format!("http://orders.shop{}", parts.uri.path()).parse().expect("a path");
            parts.headers.clear();
            let opened = mesh.open(Request::from_parts(parts, ()), false).await.expect("a stream is free");
            opened.exchange(body, None).await.expect("the workload answers")
        }
    };
    let counts = metrics.server(Direction::Outbound);
    tokio::spawn(async move {
        server::serve_h1(edge, &limits, &counts, handler, std::future::pending::<()>()).await;
    });
    (caller, workload)
}

/// Reads until what came ends with `end`.
async fn expect(io: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        match timeout(HOUR / 2, io.read_u8()).await {
            Ok(Ok(byte)) => text.push(char::from(byte)),
            ended => panic!("{ended:?} after {text:?}, before {end:?}"),
        }
    }
    text
}

async fn write(io: &mut DuplexStream, text: &str) {
    io.write_all(text.as_bytes()).await.expect("it is read");
}

#[tokio::test(start_paused = true)]
async fn a_response() {
    let (mut caller, mut workload) = way().await;
    let begun = Instant::now();
    write(&mut caller, "GET /stream HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
    expect(&mut workload, "\r\n\r\n").await;
    // An hour until the head, one until the first event, one until the last.
    sleep(HOUR).await;
    write(&mut workload, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let head = expect(&mut caller, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for _ in 0..2 {
        sleep(HOUR).await;
        write(&mut workload, "6\r\nevent\n\r\n").await;
        expect(&mut caller, "6\r\nevent\n\r\n").await;
    }
    write(&mut workload, "0\r\n\r\n").await;
    expect(&mut caller, "0\r\n\r\n").await;
    assert!(begun.elapsed() >= HOUR * 3, "time was not paused");
}

#[tokio::test(start_paused = true)]
async fn a_request() {
    let (mut caller, mut workload) = way().await;
    write(
        &mut caller,
        "POST / HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
    )
    .await;
    expect(&mut workload, "3\r\none\r\n").await;
    sleep(HOUR).await;
    write(&mut caller, "3\r\ntwo\r\n0\r\n\r\n").await;
    let rest = expect(&mut workload, "0\r\n\r\n").await;
    assert!(rest.contains("two"), "{rest}");
    write(&mut workload, "HTTP/1.1 204 No Content\r\n\r\n").await;
    expect(&mut caller, "\r\n\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_relay() {
    let (mut left, mut a) = duplex(64);
    let (mut right, mut b) = duplex(64);
    let stall = Limits::default().stall;
    let relayed = tokio::spawn(async move { tcp::relay(&mut a, &mut b, stall).await });
    for word in ["one", "two"] {
        write(&mut left, word).await;
        expect(&mut right, word).await;
        sleep(HOUR).await;
        write(&mut right, word).await;
        expect(&mut left, word).await;
    }
    drop(left);
    drop(right);
    assert!(relayed.await.expect("it ends").cut.is_none());
}
