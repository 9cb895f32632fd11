use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::connections::{Direction, Registered};
use crate::http::{h2, respond};
use crate::observe::metrics::Metrics;

#[tokio::test]
async fn a_workload_that_does_not_answer_connect_is_counted() {
    let metrics = Metrics::default();
    // A listener whose queue is full answers nothing more.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let to = socket.local_addr().unwrap().as_socket().unwrap();
    let pool = WorkloadPool::new(metrics.limits.clone());
    let mut limits = Limits::default();
    limits.set("connectWorkload", "200ms").unwrap();
    let mut queued = Vec::new();
    let error = loop {
        match pool.connect(to, &limits).await {
            Ok(stream) => queued.push(stream),
            Err(error) => break error,
        }
        assert!(queued.len() < 100, "the queue never fills");
    };
    assert_eq!(error.reason, Reason::WorkloadUnreachable);
    assert!(metrics.render().contains("limit=\"connect_workload\"} 1"));
}

fn peer(name: &str) -> Caller {
    Caller::Peer(SpiffeId::parse(&format!("spiffe://demo.postern/ns/shop/sa/{name}")).unwrap())
}

/// A pool, and an address at which nobody listens: whoever finds no kept connection there gets none.
fn lending() -> (Arc<WorkloadPool>, SocketAddr) {
    let pool = Arc::new(WorkloadPool::new(Metrics::default().limits));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (pool, closed)
}

/// Whose a connection is, and who must not get it.
fn callers() -> [(Caller, [Caller; 2]); 2] {
    [
        (peer("web"), [peer("admin"), Caller::Connection(7)]),
        (Caller::Connection(7), [Caller::Connection(8), peer("web")]),
    ]
}

async fn answers(mut io: DuplexStream) {
    let mut question = [0; 1_024];
    while let Ok(1..) = io.read(&mut question).await {
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
}

/// A service may have authenticated the connection, once for all that comes on it.
#[tokio::test]
async fn a_connection_is_lent_to_nobody_but_its_caller() {
    let limits = Limits::default();
    for (own, others) in callers() {
        let (pool, to) = lending();
        let (near, far) = duplex(64 << 10);
        pool.keep_h1(to, own.clone(), near, &limits).await.unwrap();
        tokio::spawn(answers(far));
        let get = || Request::get("/").header("host", "orders.shop").body(Body::empty()).unwrap();
        for other in others {
            let refused = pool.send_h1(to, other.clone(), get(), &limits).await;
            let reason = refused.err().map(|error| error.reason);
            assert_eq!(reason, Some(Reason::WorkloadUnreachable), "{other:?} got that of {own:?}");
        }
        let answer = pool.send_h1(to, own, get(), &limits).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn nor_is_one_of_http2() {
    let limits = Limits::default();
    for (own, others) in callers() {
        let (pool, to) = lending();
        let (near, far) = duplex(64 << 10);
        tokio::spawn(async move {
            let counts = Metrics::default().server(Direction::Inbound);
            let handler = |_, _| async { respond::empty(StatusCode::OK) };
            let settings = Settings::edge(&Limits::default());
            let _ = h2::serve(far, settings, &counts, handler, std::future::pending()).await;
        });
        pool.keep_h2(to, own.clone(), near, &limits).await.unwrap();
        let send = |caller| {
            let head = Request::get("http://orders.shop/").body(()).unwrap();
            pool.send_h2(to, caller, head, Body::empty(), None, &limits)
        };
        for other in others {
            let reason = send(other.clone()).await.err().map(|error| error.reason);
            assert_eq!(reason, Some(Reason::WorkloadUnreachable), "{other:?} got that of {own:?}");
        }
        assert_eq!(send(own).await.unwrap().status(), StatusCode::OK);
    }
}

#[test]
fn who_has_proven_nothing_is_his_connection() {
    let sidecar = crate::testing::sidecar("");
    let connect = || crate::testing::connection(&sidecar, Direction::Inbound);
    let (one, other) = (connect(), connect());
    let of = |registered: &Registered| Caller::of(registered.connection());
    assert_eq!(of(&one), of(&other), "one id");
    let stranger = || {
        let mut peer = one.connection().peer.clone();
        peer.identity = None;
        Registered::open(&sidecar, Direction::Inbound, peer)
    };
    let (one, other) = (stranger(), stranger());
    assert_ne!(of(&one), of(&other), "two strangers");
    assert_eq!(of(&one), of(&one));
}
