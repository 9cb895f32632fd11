//! One small HTTP/1.1 client for the whole demo: services calling through their sidecar, the checks, the admin sockets.
//!
//! It does what an ordinary client with `http_proxy` set does and nothing more. It never repeats a request that may
//! have been sent: a hidden retry would hide exactly the failures the demo is there to see.

use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::demo_probe as probe;

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
    /// The host that the request names: nothing stands between that this client knows of.
    Named(Vec<Host>),
    /// Whatever a process elsewhere makes of it: the words that start `postern demo-probe call` there.
    Probe(Vec<String>),
}

/// A name and its address, for one who asks no name server: `orders.shop=10.96.0.12:80`.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, address) = text.split_once('=').ok_or("write NAME=ADDRESS:PORT")?;
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { name: name.to_owned(), address })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
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
    #[error("{0}")]
    Probe(String),
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
        if let Peer::Probe(words) = &self.peer {
            return probe::call(words, &request).await;
        }
        timeout(CALL_DEADLINE, self.exchange(request)).await.map_err(|_elapsed| CallError::Deadline)?
    }

    /// `GET uri` with the given extra header fields.
    pub(crate) async fn get(&self, uri: &str, fields: &[(&str, &str)]) -> Result<Reply, CallError> {
        self.call(request(Method::GET, uri, fields)?).await
    }

    /// Sends a request on a connection of its own and hands the answer back at its head; the body is the caller's.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        let exchange = async {
            let mut sender = self.connect(request.uri()).await?;
            sender.send_request(request).await.map_err(CallError::Exchange)
        };
        timeout(CALL_DEADLINE, exchange).await.map_err(|_elapsed| CallError::Deadline)?
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        let named = matches!(self.peer, Peer::Named(_));
        let (sender, response) = loop {
            let pooled = self.idle.lock().pop();
            let reused = pooled.is_some();
            let mut sender = match pooled {
                Some(sender) => sender,
                None => self.connect(request.uri()).await?,
            };
            if named {
                let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
                *request.uri_mut() = path.parse().map_err(hyper::http::Error::from)?;
            }
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
        if !named && !sender.is_closed() && idle.len() < IDLE_LIMIT {
            idle.push(sender);
        }
        Ok(reply)
    }

    async fn connect(&self, uri: &Uri) -> Result<SendRequest<Full<Bytes>>, CallError> {
        match &self.peer {
            Peer::Tcp(address) => tcp(*address).await,
            Peer::Named(hosts) => tcp(find(hosts, uri)?).await,
            Peer::Probe(_) => Err(CallError::Probe("a probe has no connection to keep".to_owned())),
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

async fn tcp(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, CallError> {
    let stream = TcpStream::connect(address).await.map_err(CallError::Connect)?;
    stream.set_nodelay(true).map_err(CallError::Connect)?;
    handshake(stream).await
}

/// Where a URI leads: a name that is known, or an address.
fn find(hosts: &[Host], uri: &Uri) -> Result<SocketAddr, CallError> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let known = hosts.iter().find(|host| host.name == authority).map(|host| host.address);
    let unknown = || CallError::Probe(format!("`{authority}` is no name that is known, and no ADDRESS:PORT"));
    known.or_else(|| authority.parse().ok()).ok_or_else(unknown)
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
