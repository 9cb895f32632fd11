//! Each limit of a connection that a peer opened says when it bit, whether h2 enforces it or we do.

use std::sync::atomic::{AtomicUsize, Ordering};

use h2::client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::connections::Direction;
use crate::http::respond;
use crate::limits::Limits;
use crate::observe::metrics::Metrics;

/// Serves the far end of a pipe with `limits` changed as given; every request is answered with 200.
fn serving(changes: &[(&str, &str)]) -> (DuplexStream, Arc<Metrics>, tokio::task::JoinHandle<()>) {
    let mut limits = Limits::default();
    for (name, value) in changes {
        limits.set(name, value).unwrap();
    }
    let metrics = Arc::new(Metrics::default());
    let (near, far) = tokio::io::duplex(1 << 20);
    let counts = metrics.server(Direction::Inbound);
    let served = tokio::spawn(async move {
        let handler = |_, _| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            respond::empty(http::StatusCode::OK)
        };
        let _ = serve(far, Settings::edge(&limits), &counts, handler, std::future::pending()).await;
    });
    (near, metrics, served)
}

fn hits(metrics: &Metrics, limit: &str) -> u64 {
    let name = format!("postern_limit_hits_total{{limit=\"{limit}\"}} ");
    let page = metrics.render();
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{limit} is written from the start")).parse().unwrap()
}

/// What a client says first: preface and empty SETTINGS.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(start_paused = true)]
async fn a_head_that_h2_answers_with_431_is_counted() {
    let (near, metrics, _served) = serving(&[("headBytes", "1024"), ("headFields", "10")]);
    let (mut send, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let get = |more: usize| {
        let request = Request::get("http://orders.shop/").header("x-much", "a".repeat(more));
        request.body(()).unwrap()
    };
    let (large, _) = send.send_request(get(4_000), true).unwrap();
    let (small, _) = send.send_request(get(10), true).unwrap();
    assert_eq!(large.await.unwrap().status(), 431);
    assert_eq!(small.await.unwrap().status(), 200);
    assert_eq!(hits(&metrics, "head_size"), 1);
    let page = metrics.render();
    assert!(page.contains("{direction=\"inbound\",reason=\"head_too_large\"} 1"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn streams_past_the_limit_are_counted() {
    let (mut near, metrics, _served) = serving(&[("streams", "2")]);
    near.write_all(HELLO).await.unwrap();
    for stream in (1_u32..=9).step_by(2) {
        // GET http://a/, whole.
        near.write_all(b"\0\0\x06\x01\x05").await.unwrap();
        near.write_all(&stream.to_be_bytes()).await.unwrap();
        near.write_all(b"\x82\x86\x84\x41\x01a").await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(hits(&metrics, "streams"), 3);
    assert_eq!(hits(&metrics, "head_size"), 0, "the two that were answered were ours");
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_is_not_answered_is_counted() {
    let (mut near, metrics, served) = serving(&[("pingInterval", "3s"), ("pingTimeout", "4s")]);
    near.write_all(HELLO).await.unwrap();
    let begun = Instant::now();
    served.await.unwrap();
    assert_eq!((begun.elapsed().as_secs(), hits(&metrics, "ping")), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_does_not_come_is_a_head_that_does_not_end() {
    let (_near, metrics, served) = serving(&[("head", "2s")]);
    served.await.unwrap();
    assert_eq!(hits(&metrics, "head"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peers_mistakes_are_counted_when_they_close_its_connection() {
    let (mut near, metrics, served) = serving(&[("localErrorResets", "3")]);
    near.write_all(HELLO).await.unwrap();
    for stream in (1_u32..=9).step_by(2) {
        // HEADERS that end the stream and hold `:path` alone.
        near.write_all(b"\0\0\x01\x01\x05").await.unwrap();
        near.write_all(&stream.to_be_bytes()).await.unwrap();
        near.write_all(b"\x84").await.unwrap();
    }
    served.await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(hits(&metrics, "local_error_resets"), 1);
    assert_eq!(hits(&metrics, "streams"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_continuations_is_a_head_too_large() {
    let (mut near, metrics, served) = serving(&[("headBytes", "1024"), ("headFields", "10")]);
    near.write_all(HELLO).await.unwrap();
    near.write_all(b"\0\0\x01\x01\x01\0\0\0\x01\x82").await.unwrap();
    for _ in 0..1_000 {
        if near.write_all(b"\0\0\0\x09\0\0\0\0\x01").await.is_err() {
            break;
        }
    }
    served.await.unwrap();
    assert_eq!(hits(&metrics, "head_size"), 1);
}

/// `clientResetStreams`, where nobody says otherwise.
const WINDOW: usize = 500;

/// Opens tunnels on a connection that `serve` serves, a `pause` between two, and ends each by `end`: whether that was
/// too much, and after how many.
async fn tunnels(pause: Duration, end: impl Fn(&mut h2::SendStream<Bytes>, h2::RecvStream)) -> (u64, usize) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let handler = |_: Request<Body>, pending: Option<Pending>| async move {
        spawn(async move {
            let mut io = pending.expect("it is a CONNECT").io().await?;
            tokio::io::copy(&mut io, &mut tokio::io::sink()).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut io).await
        });
        Response::new(Body::empty())
    };
    let metrics = Arc::new(Metrics::default());
    let counts = metrics.server(Direction::Inbound);
    let served = tokio::spawn(async move {
        serve(far, Settings::mesh(&Limits::default()), &counts, handler, std::future::pending()).await
    });
    let (send, connection) = client::handshake(near).await.unwrap();
    spawn(async move { drop(connection.await) });
    let mut opened = 0;
    for _ in 0..2 * WINDOW {
        let Ok(mut ready) = send.clone().ready().await else { break };
        let request = Request::connect("10.0.0.1:9000").body(()).unwrap();
        let Ok((response, mut stream)) = ready.send_request(request, false) else { break };
        let Ok(response) = response.await else { break };
        opened += 1;
        end(&mut stream, response.into_body());
        // The far end learns of it before the next one is opened.
        if pause.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
    drop(send);
    // Which end closes the pipe first is a race; what was counted is not.
    let _ = served.await.unwrap();
    (hits(&metrics, "client_resets"), opened)
}

#[tokio::test(start_paused = true)]
async fn tunnels_that_are_reset_count_like_requests() {
    let (resets, opened) = tunnels(Duration::ZERO, |stream, _| stream.send_reset(Code::CANCEL)).await;
    assert_eq!(resets, 1);
    // What was on its way when the connection began to end is served still.
    assert!((WINDOW / 2..=WINDOW + 20).contains(&opened), "{opened}");
}

#[tokio::test(start_paused = true)]
async fn tunnels_that_end_in_order_do_not() {
    let (resets, opened) = tunnels(Duration::ZERO, |stream, mut back| {
        stream.send_data(Bytes::new(), true).unwrap();
        spawn(async move { while back.data().await.is_some() {} });
    })
    .await;
    assert_eq!((resets, opened), (0, 2 * WINDOW));
}

/// What a health check through a mesh connection looks like, which carries everybody else's tunnels too.
#[tokio::test(start_paused = true)]
async fn one_that_is_reset_every_second_costs_nobody_the_connection() {
    let (resets, opened) = tunnels(Duration::from_secs(1), |stream, _| stream.send_reset(Code::CANCEL)).await;
    assert_eq!((resets, opened), (0, 2 * WINDOW));
}

/// Serves a connection whose sidecar leaves at once; when it has ended.
fn leaving() -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let begun = Instant::now();
    let served = tokio::spawn(async move {
        let counts = Metrics::default().server(Direction::Inbound);
        let handler = |_, _| async { respond::empty(http::StatusCode::OK) };
        let closing = async { Closing::Gracefully(Duration::from_secs(25)) };
        let _ = serve(far, Settings::edge(&Limits::default()), &counts, handler, closing).await;
        begun.elapsed()
    });
    (near, served)
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_does_not_hold_up_the_end() {
    for said in [&b""[..], b"PRI * HT"] {
        let (mut near, served) = leaving();
        near.write_all(said).await.unwrap();
        assert_eq!(served.await.unwrap().as_secs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_on_its_way_is_answered() {
    let (mut near, served) = leaving();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // GET http://a/, whole, as callers send it: behind the preface, without waiting for anything.
    let request = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a";
    near.write_all(&[HELLO, request].concat()).await.unwrap();
    served.await.unwrap();
    let mut told = Vec::new();
    near.read_to_end(&mut told).await.unwrap();
    // HEADERS of stream 1, its last frame: status 200.
    let answer = b"\x01\x05\0\0\0\x01\x88";
    assert!(told.windows(answer.len()).any(|part| part == answer), "{told:?}");
}

/// What h2 counts by itself: requests that were taken back before anybody had looked at them.
#[tokio::test(start_paused = true)]
async fn a_burst_that_is_taken_back_unseen_ends_the_connection() {
    let (mut near, metrics, served) = serving(&[]);
    let mut flow = HELLO.to_vec();
    for stream in (1_u32..=99).step_by(2) {
        for part in [&b"\0\0\x06\x01\x05"[..], &stream.to_be_bytes(), b"\x82\x86\x84\x41\x01a"] {
            flow.extend_from_slice(part);
        }
        for part in [&b"\0\0\x04\x03\0"[..], &stream.to_be_bytes(), &[0, 0, 0, 8]] {
            flow.extend_from_slice(part);
        }
    }
    near.write_all(&flow).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), served).await.expect("it ends").unwrap();
    assert_eq!(hits(&metrics, "client_resets"), 1);
}

/// Between sidecars many callers share a connection: one of them takes back far more than anybody may.
#[tokio::test(start_paused = true)]
async fn what_one_caller_takes_back_does_not_end_anothers_request() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let metrics = Arc::new(Metrics::default());
    let counts = metrics.server(Direction::Inbound);
    let served = tokio::spawn(async move {
        let handler = |request: Request<Body>, _| async move {
            let long = if request.uri().path() == "/long" { 10 } else { 1 };
            tokio::time::sleep(Duration::from_secs(long)).await;
            respond::empty(http::StatusCode::OK)
        };
        serve(far, Settings::mesh(&Limits::default()), &counts, handler, std::future::pending()).await
    });
    let (mut send, connection) = client::handshake(near).await.unwrap();
    spawn(async move { drop(connection.await) });
    let get = |path: &str| Request::get(format!("http://orders.shop{path}")).body(()).unwrap();
    let (innocent, _) = send.send_request(get("/long"), true).unwrap();
    let mut opened = 0;
    while let Ok(mut ready) = send.clone().ready().await {
        let Ok((response, mut stream)) = ready.send_request(get("/"), true) else { break };
        tokio::time::sleep(Duration::from_millis(2)).await;
        stream.send_reset(Code::CANCEL);
        drop(response);
        opened += 1;
        assert!(opened < 2 * WINDOW, "nobody stops it");
    }
    assert_eq!(innocent.await.expect("it is not cut").status(), 200);
    assert_eq!(hits(&metrics, "client_resets"), 1);
    drop(send);
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("it ends").unwrap().unwrap();
}

/// Who goes on behind a GOAWAY, with one request open so that the connection does not end by itself, and answers nothing that is
/// asked of it.
#[tokio::test(start_paused = true)]
async fn who_goes_on_taking_back_is_cut_all_the_same() {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let counts = Arc::new(Metrics::default()).server(Direction::Inbound);
    let served = tokio::spawn(async move {
        let handler = |_: Request<Body>, _| async {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            respond::empty(http::StatusCode::OK)
        };
        let settings =
            Settings { ping_interval: Duration::from_secs(7_200), ..Settings::mesh(&Limits::default()) };
        serve(far, settings, &counts, handler, std::future::pending()).await
    });
    near.write_all(HELLO).await.unwrap();
    let open =
        |stream: u32| [&b"\0\0\x06\x01\x05"[..], &stream.to_be_bytes(), b"\x82\x86\x84\x41\x01a"].concat();
    near.write_all(&open(1)).await.unwrap();
    let mut sent = 0;
    for stream in (3_u32..).step_by(2).take(4 * WINDOW) {
        if near.write_all(&open(stream)).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        let reset = [&b"\0\0\x04\x03\0"[..], &stream.to_be_bytes(), &[0, 0, 0, 8]].concat();
        if near.write_all(&reset).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!((WINDOW..2 * WINDOW).contains(&sent), "{sent}");
    tokio::time::timeout(Duration::from_secs(5), served).await.expect("it has ended").unwrap().unwrap();
}

/// What is 60 kB, in two fields, and 37 as it is coded.
fn large_head() -> Request<()> {
    let half = "a".repeat(30_000);
    Request::get("http://orders.shop/").header("x-one", &half).header("x-other", half).body(()).unwrap()
}

/// A connection on which so many large heads were answered.
async fn with_heads(count: usize) -> (client::SendRequest<Bytes>, Arc<Metrics>, tokio::task::JoinHandle<()>) {
    let (near, metrics, served) = serving(&[]);
    let (mut send, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..count {
        let (answer, _) = send.send_request(large_head(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        send = send.ready().await.unwrap();
    }
    (send, metrics, served)
}

#[tokio::test(start_paused = true)]
async fn who_has_much_kept_must_go_once_memory_is_tight() {
    for (heads, is_tight, goes) in [(45, false, false), (10, true, false), (45, true, true)] {
        // The next stream is its last; and who opens none is told with the next PING.
        for asks in [true, false] {
            let (mut send, metrics, served) = with_heads(heads).await;
            metrics.memory_tight.set(is_tight.into());
            let answer = asks.then(|| send.send_request(large_head(), true).unwrap().0);
            let within =
                if asks { AS_BURDEN * 2 } else { Settings::edge(&Limits::default()).ping_interval * 2 };
            let ended = timeout(within, served).await;
            assert_eq!(ended.is_ok(), goes, "{heads} heads, tight {is_tight}, asks {asks}");
            assert_eq!(hits(&metrics, "large_heads"), u64::from(goes), "{heads} heads, tight {is_tight}");
            drop(answer);
        }
    }
}

/// A peer that grants 16 MiB and reads nothing: what is written for it waits where it comes from.
#[tokio::test(start_paused = true)]
async fn what_a_peer_does_not_read_is_not_kept_for_it() {
    const PIPE: usize = 4_096;
    let (mut near, far) = tokio::io::duplex(PIPE);
    let written = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&written);
    let handler = move |_: Request<Body>, pending: Option<Pending>| {
        let counting = Arc::clone(&counting);
        async move {
            spawn(async move {
                let Ok(mut io) = pending.expect("it is a CONNECT").io().await else { return };
                while let Ok(count) = io.write(&[b'x'; 1_024]).await {
                    counting.fetch_add(count, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            });
            Response::new(Body::empty())
        }
    };
    let counts = Metrics::default().server(Direction::Inbound);
    let served = tokio::spawn(async move {
        serve(far, Settings::mesh(&Limits::default()), &counts, handler, std::future::pending()).await
    });
    // SETTINGS with a window for each stream, and one for the connection; CONNECT to a:1.
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\x01\0\0\0").await.unwrap();
    near.write_all(b"\0\0\x04\x08\0\0\0\0\0\x01\0\0\0").await.unwrap();
    near.write_all(b"\0\0\x0e\x01\x04\0\0\0\x01\x02\x07CONNECT\x41\x03a:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let written = written.load(Ordering::Relaxed);
    let most = PIPE + Limits::default().send_buffer + (32 << 10);
    assert!((1_024..=most).contains(&written), "{written}");
    served.abort();
}

/// A window that is never opened holds an answer no longer than `stall`.
#[tokio::test(start_paused = true)]
async fn an_answer_that_may_not_be_sent_is_given_up() {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let counts = Metrics::default().server(Direction::Inbound);
    let mut limits = Limits::default();
    limits.set("stall", "3s").unwrap();
    tokio::spawn(async move {
        let handler = |_, _| async { Response::new(Body::full("an answer")) };
        serve(far, Settings::edge(&limits), &counts, handler, std::future::pending()).await
    });
    // SETTINGS with a window of 0, and GET http://a/, whole.
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0").await.unwrap();
    near.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a").await.unwrap();
    // RST_STREAM of stream 1: CANCEL.
    let reset = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08";
    let mut told = Vec::new();
    for (within, is_told) in [(2, false), (2, true)] {
        let _ = timeout(Duration::from_secs(within), near.read_to_end(&mut told)).await;
        assert_eq!(told.windows(reset.len()).any(|part| part == reset), is_told, "{told:?}");
    }
}
