//! One small HTTP/1.1 client for the whole demo: services calling through their sidecar, the checks, the admin sockets.
//!
//! It does what an ordinary client with `http_proxy` set does and nothing more. It never repeats a request that may
//! have been sent: a hidden retry would hide exactly the failures the demo is there to see.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Every call of the demo is answered in milliseconds; what takes longer has failed.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A tenth of it would do; an admin answer with a full ring of decisions is the largest thing read.
const BODY_LIMIT: usize = 4 << 20;
/// As many as the load has workers.
const IDLE_LIMIT: usize = 16;

/// Where a client's connections go, whatever the request's URI says.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// A service, or the outbound listener of a sidecar.
    Tcp(SocketAddr),
    /// An admin socket.
    Unix(PathBuf),
}

/// A client of one peer, keeping idle connections.
#[derive(Debug)]
pub(crate) struct Client {
    peer: Peer,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("cannot build the request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("no whole answer: {}", chain(.0))]
    Exchange(#[source] hyper::Error),
    #[error("the answer's body broke off: {0}")]
    Body(String),
    #[error("no answer within {} s", CALL_DEADLINE.as_secs())]
    Deadline,
}

impl Client {
    /// A client of `peer`; nothing is dialled yet.
    pub(crate) fn new(peer: Peer) -> Self {
        Self { peer, idle: Mutex::default() }
    }

    /// A client of a TCP listener.
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self::new(Peer::Tcp(address))
    }

    /// Sends a request and reads the whole answer, within one deadline.
    pub(crate) async fn call(&self, request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        timeout(CALL_DEADLINE, self.exchange(request)).await.map_err(|_elapsed| CallError::Deadline)?
    }

    /// `GET uri` with the given extra header fields.
    pub(crate) async fn get(&self, uri: &str, fields: &[(&str, &str)]) -> Result<Reply, CallError> {
        self.call(request(Method::GET, uri, fields)?).await
    }

    /// Sends a request on a connection of its own and hands the answer back at its head; the body is the caller's.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        let exchange = async {
            let mut sender = self.connect().await?;
            sender.send_request(request).await.map_err(CallError::Exchange)
        };
        timeout(CALL_DEADLINE, exchange).await.map_err(|_elapsed| CallError::Deadline)?
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        let (sender, response) = loop {
            let pooled = self.idle.lock().pop();
            let reused = pooled.is_some();
            let mut sender = match pooled {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => break (sender, response),
                Err(mut failed) => match failed.take_message() {
                    // The peer closed an idle connection and not one byte of the request was written.
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(CallError::Exchange(failed.into_error())),
                },
            }
        };
        let reply = Reply::read(response).await?;
        let mut idle = self.idle.lock();
        if !sender.is_closed() && idle.len() < IDLE_LIMIT {
            idle.push(sender);
        }
        Ok(reply)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        match &self.peer {
            Peer::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(CallError::Connect)?;
                stream.set_nodelay(true).map_err(CallError::Connect)?;
                handshake(stream).await
            }
            Peer::Unix(path) => handshake(UnixStream::connect(path).await.map_err(CallError::Connect)?).await,
        }
    }
}

impl Reply {
    /// Reads an answer to its end.
    pub(crate) async fn read(response: Response<Incoming>) -> Result<Self, CallError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await;
        let body = body.map_err(|error| CallError::Body(chain(&*error)))?.to_bytes();
        Ok(Self { status: head.status, headers: head.headers, body })
    }

    /// A header's value, if it is there once and is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }

    /// The body as JSON; `Null` when it is not, so that every look-up in it finds nothing.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The start of the body, for a message to a person.
    pub(crate) fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect()
    }
}

/// A request without a body. `uri` in absolute form goes out in absolute form, as a proxy expects it.
pub(crate) fn request(
    method: Method,
    uri: &str,
    fields: &[(&str, &str)],
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let uri: Uri = uri.parse()?;
    let host = uri.authority().map_or("localhost", |authority| authority.as_str());
    let mut request = Request::builder().method(method).header(HOST, HeaderValue::from_str(host)?);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.uri(uri).body(Full::default())
}

/// An error with everything that caused it, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, CallError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(CallError::Exchange)?;
    // Ends with the connection; what goes wrong on it is told to whoever waits for an answer.
    tokio::spawn(connection);
    Ok(sender)
}
