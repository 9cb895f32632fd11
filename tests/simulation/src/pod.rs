//! A pod: the real sidecar, the workload behind it, and whoever calls through it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use postern_policy::SourceFile;
use postern_proxy::config::Config;
use postern_proxy::sidecar::Sidecar;
use postern_svid::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;
use turmoil::net::{TcpListener, TcpStream};

use crate::book::{Book, Order, Outcome};
use crate::policy::{NAMES, PATHS};
use crate::seed::HostClock;

/// Where the workload listens, and where it calls.
const SERVES: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const CALLS: ([u8; 4], u16) = ([127, 0, 0, 1], 24_140);
/// Tells a request apart wherever it is.
const NUMBER: &str = "x-sim-number";
/// Tells the workload how long to think.
const THINKS: &str = "x-sim-thinks";
/// A part of a body.
const PART: [u8; 64] = [b'.'; 64];
/// Between two parts.
const PAUSE: Duration = Duration::from_millis(250);

/// What a pod is made from, as often as it starts.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) index: usize,
    pub(crate) yaml: String,
    pub(crate) bundle: PathBuf,
    pub(crate) clock: HostClock,
    pub(crate) book: Arc<Mutex<Book>>,
}

/// Everything on the host, until it crashes.
pub(crate) async fn run(spec: Spec) -> turmoil::Result {
    // As with any mesh: the bundle is handed out before a sidecar starts.
    while !spec.bundle.exists() {
        sleep(Duration::from_millis(50)).await;
    }
    let name = format!("{}.yaml", NAMES[spec.index]);
    let config = Config::parse(&SourceFile { name, text: spec.yaml.clone().into() });
    let config = config.map_err(|wrong| wrong.to_string())?;
    let instance = u32::try_from(spec.index)?;
    let clock: Arc<dyn Clock> = Arc::new(spec.clock.clone());
    let sidecar = Arc::new(Sidecar::new(config, clock, instance));
    spec.book.lock().pods[spec.index].sidecar = Arc::downgrade(&sidecar);
    let listener = TcpListener::bind(std::net::SocketAddr::from(SERVES)).await?;
    tokio::spawn(serve(listener, spec.index, Arc::clone(&spec.book)));
    tokio::spawn(obey(spec.index, Arc::clone(&spec.book)));
    postern_proxy::app::simulate(sidecar).await.map_err(|error| error.to_string())?;
    Ok(())
}

async fn serve(listener: TcpListener, index: usize, book: Arc<Mutex<Book>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let book = Arc::clone(&book);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, index, &book));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The workload: writes down what it is given, thinks, and says `ok`.
async fn answer(
    request: Request<Incoming>,
    index: usize,
    book: &Mutex<Book>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let number = field(NUMBER).and_then(|number| number.parse().ok()).unwrap_or(u32::MAX);
    let told = field("x-forwarded-client-cert").and_then(|told| told.strip_prefix("URI="));
    let seen = (head.method.as_str(), head.uri.path());
    book.lock().arrived(index, number, told, seen, 0);
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(bytes) = frame.data_ref().filter(|bytes| !bytes.is_empty()) {
            book.lock().arrived(index, number, told, seen, bytes.len());
        }
    }
    let thinks = field(THINKS).and_then(|ms| ms.parse().ok()).unwrap_or(0);
    sleep(Duration::from_millis(thinks)).await;
    Ok(Response::new(Full::from("ok")))
}

/// Makes the calls that the driver orders.
async fn obey(index: usize, book: Arc<Mutex<Book>>) {
    let came = Arc::clone(&book.lock().pods[index].came);
    loop {
        let orders = std::mem::take(&mut book.lock().pods[index].orders);
        for order in orders {
            let book = Arc::clone(&book);
            tokio::spawn(async move {
                let outcome = call(order).await;
                book.lock().ended(order.number, outcome);
            });
        }
        came.notified().await;
    }
}

async fn call(order: Order) -> Outcome {
    let Ok(stream) = TcpStream::connect(std::net::SocketAddr::from(CALLS)).await else {
        return Outcome::Refused;
    };
    let (mut from, mut to) = stream.into_split();
    let (method, path) = (order.call.method(), PATHS[order.call.path]);
    let length = if order.call.post { PART.len() as u64 * u64::from(order.parts) } else { 0 };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}.shop\r\n{NUMBER}: {}\r\n{THINKS}: {}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n",
        NAMES[order.call.to], order.number, order.thinks_ms
    );
    let send = async {
        let mut sent = to.write_all(head.as_bytes()).await;
        for _ in 0..if order.call.post { order.parts } else { 0 } {
            sleep(PAUSE).await;
            if sent.is_ok() {
                sent = to.write_all(&PART).await;
            }
        }
        // How it ends is told by the answer.
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        biased;
        _ = from.read_to_end(&mut answer) => {}
        () = send => {}
    }
    outcome(&answer)
}

/// Exactly one whole answer, or how it is not.
fn outcome(answer: &[u8]) -> Outcome {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if answer.is_empty() || answer.starts_with(b"HTTP/1.1 ") {
            Outcome::Cut
        } else {
            Outcome::Odd
        };
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let body = answer.len() - end - 4;
    match (status, length) {
        (Some(status), Some(length)) if body == length => Outcome::Status(status),
        (Some(_), Some(length)) if body < length => Outcome::Cut,
        _ => Outcome::Odd,
    }
}
