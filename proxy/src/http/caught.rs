//! A defect in the handling of one request costs that request, and none of those beside it.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use http::Response;

use super::body::Body;
use super::respond;
use crate::error::{Error, Reason, Side};
use crate::observe::metrics::ServerCounts;

/// The answer of a handler, or 500 should it panic. What a request holds is its own, and was let go of by then; what it
/// shares with others is changed in steps that are whole (counters, tables behind locks that know no poison).
pub(super) async fn caught<F>(counts: &ServerCounts, is_grpc: bool, handling: F) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            counts.internal();
            // Where and why is in the log already: the standard library's own words on standard error.
            tracing::error!("a defect: the handling of a request panicked, and it is answered with 500");
            respond::error(&Error::new(Side::Us, Reason::Internal, "the handling panicked"), None, is_grpc)
        }
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests {
    use bytes::Bytes;
    use http::{Request, StatusCode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::connections::Direction;
    use crate::http::upgrade::Pending;
    use crate::http::{h2 as own, server};
    use crate::limits::Limits;
    use crate::observe::metrics::Metrics;

    async fn handle(request: Request<Body>, _: Option<Pending>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        // Beside each other: the one is under way while the other panics.
        tokio::time::sleep(std::time::Duration::from_millis(if path == "/defect" { 5 } else { 20 })).await;
        assert!(path != "/defect", "as a defect would");
        respond::empty(StatusCode::OK)
    }

    fn internal(metrics: &Metrics) -> String {
        let name = "postern_failures_total{direction=\"inbound\",reason=\"internal\"} ";
        let page = metrics.render();
        page.lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("it is written from the start")
            .to_owned()
    }

    #[tokio::test]
    async fn a_defect_costs_one_stream_and_none_beside_it() {
        let metrics = Metrics::default();
        let counts = metrics.server(Direction::Inbound);
        let (near, far) = tokio::io::duplex(1 << 20);
        let served = tokio::spawn(async move {
            let settings = own::Settings::edge(&Limits::default());
            own::serve(far, settings, &counts, handle, std::future::pending()).await
        });
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        let driven = tokio::spawn(connection);
        let ask = async |path: &'static str| {
            let request = Request::get(format!("http://orders.shop{path}")).body(()).unwrap();
            let mut send: h2::client::SendRequest<Bytes> = send.clone().ready().await.unwrap();
            send.send_request(request, true).unwrap().0.await.map(|response| response.status().as_u16())
        };
        let (before, defect, after) = tokio::join!(ask("/before"), ask("/defect"), ask("/after"));
        assert_eq!((before.unwrap(), defect.unwrap(), after.unwrap()), (200, 500, 200));
        assert_eq!(ask("/later").await.unwrap(), 200, "on the same connection");
        assert_eq!(internal(&metrics), "1");
        drop((served, driven));
    }

    #[tokio::test]
    async fn a_defect_costs_one_request_on_its_line() {
        let metrics = Metrics::default();
        let counts = metrics.server(Direction::Inbound);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let io = crate::detect::Rewound::new(Bytes::new(), far);
        let served = tokio::spawn(async move {
            server::serve_h1(io, &Limits::default(), &counts, handle, std::future::pending()).await;
        });
        let mut answer = String::new();
        for (path, end) in [("/defect", "The sidecar failed.\n"), ("/later", "\r\n\r\n")] {
            caller.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
            while !answer.ends_with(end) {
                let mut piece = [0; 1_024];
                let count = caller.read(&mut piece).await.unwrap();
                assert!(count > 0, "{path}: the line is kept: {answer}");
                answer.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
        }
        drop((caller, served));
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("HTTP/1.1 200 "), "{answer}");
        assert_eq!(internal(&metrics), "1");
    }
}
