use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;
use crate::connections::Direction;
use crate::http::h2::{Settings, serve};
use crate::http::upgrade::Pending;
use crate::limits::Limits;
use crate::observe::metrics::Metrics;

/// What a caller would read of an answer with these bytes, and whether it ends in order.
async fn read(answer: &str) -> (Vec<u8>, bool) {
    let (near, mut far) = duplex(1 << 16);
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("the pipe is open");
    tokio::spawn(connection);
    let answer = answer.to_owned();
    tokio::spawn(async move {
        let mut question = [0; 1_024];
        let _ = far.read(&mut question).await;
        let _ = far.write_all(answer.as_bytes()).await;
    });
    let request = Request::get("/").body(Body::empty()).expect("it is one");
    let response = sender.send_request(request).await.expect("its head is whole");
    let mut body = Body::h1(response.into_body(), Side::Workload);
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => read.extend_from_slice(frame.data_ref().expect("there are no trailers")),
            Err(error) => {
                assert_eq!(error.side, Side::Workload);
                return (read, false);
            }
        }
    }
    (read, true)
}

#[tokio::test]
async fn half_of_an_answer_never_ends_in_order() {
    let head = "HTTP/1.1 200 OK\r\n";
    for (rest, whole) in [
        ("Content-Length: 2\r\n\r\nok", true),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
        ("\r\nok", true),
        ("Content-Length: 4\r\n\r\nok", false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: 1\r\n", false),
    ] {
        assert_eq!(read(&format!("{head}{rest}")).await, (b"ok".to_vec(), whole), "{rest:?}");
    }
}

/// h2 ends a connection after a hundred of them in its life, and many callers share one.
#[tokio::test]
async fn frames_with_nothing_in_them_are_not_passed_on() {
    let (near, far) = duplex(1 << 16);
    let lengths: Arc<Mutex<Vec<usize>>> = Arc::default();
    let noted = Arc::clone(&lengths);
    let handler = move |mut request: Request<Body>, _: Option<Pending>| {
        let noted = Arc::clone(&noted);
        async move {
            while let Some(Ok(frame)) = request.body_mut().frame().await {
                noted.lock().push(frame.data_ref().map_or(0, Bytes::len));
            }
            Response::new(Body::empty())
        }
    };
    let counts = Metrics::default().server(Direction::Inbound);
    tokio::spawn(async move {
        let _ =
            serve(far, Settings::mesh(&Limits::default()), &counts, handler, std::future::pending()).await;
    });
    let (requests, connection) = ::h2::client::handshake(near).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let request = Request::post("http://orders.shop/").body(()).expect("it is one");
    let mut requests = requests.ready().await.expect("it takes streams");
    let (response, mut stream) = requests.send_request(request, false).expect("it is sent");
    for piece in ["", "", "one", "", "more", ""] {
        stream.send_data(Bytes::from_static(piece.as_bytes()), false).expect("it is sent");
    }
    stream.send_data(Bytes::new(), true).expect("it is sent");
    response.await.expect("it is answered");
    assert_eq!(*lengths.lock(), [3, 4]);
}
