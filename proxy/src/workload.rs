//! Connections to the own workload, and to nothing else.
//!
//! A connection is kept for one peer identity only: services that authenticate a connection once (NTLM, some database
//! gateways) must not lend one caller's login to the next.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use postern_svid::SpiffeId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::connections::Connection;
use crate::error::{Error, Reason, Side};
use crate::http::body::{Body, ReturnTo};
use crate::http::h2::{Connection as H2Connection, Settings};
use crate::http::interim::Interim;
use crate::http::stall::StallClock;
use crate::limits::Limits;
use crate::net::{self, TcpStream};
use crate::observe::metrics::LimitHits;
use crate::runtime::{Hashing, spawn};
use crate::tcp::Duplex;

/// Whom a connection to the workload is for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Caller {
    /// A peer that has proven this id, whichever connection it comes on.
    Peer(SpiffeId),
    /// Somebody who has proven nothing: another connection may be anybody's.
    Connection(u64),
}

impl Caller {
    /// Who is at the other end of `connection`.
    pub fn of(connection: &Connection) -> Self {
        let identity = connection.peer.identity.clone();
        identity.map_or(Self::Connection(connection.id), Self::Peer)
    }
}

type Key = (SocketAddr, Caller);

/// Idle connections kept for one key.
const IDLE: usize = 128;

/// One worker's connections to its workload.
#[derive(Debug)]
pub struct WorkloadPool {
    idle: Mutex<HashMap<Key, Vec<Idle>, Hashing>>,
    h2: Mutex<HashMap<Key, Arc<Shared>, Hashing>>,
    hits: LimitHits,
}

/// The HTTP/2 connections of one key: as many as its streams need, for the workload says how many each may carry.
#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Vec<Kept>>,
    /// Held while dialling: a hundred callers open one connection. Counts failures, so that whoever waited through one
    /// shares its error instead of repeating it.
    dialing: tokio::sync::Mutex<()>,
    failures: Mutex<(u64, Option<(Reason, String)>)>,
}

#[derive(Debug)]
struct Kept {
    connection: H2Connection,
    /// When a sweep first found nothing running.
    idle_since: Option<Instant>,
}

impl Shared {
    /// The first with room, not the emptiest: what a burst opened falls idle after it.
    fn find(&self) -> Option<H2Connection> {
        let mut open = self.open.lock();
        let kept = open.iter_mut().find(|kept| kept.connection.has_room())?;
        kept.idle_since = None;
        Some(kept.connection.clone())
    }

    /// Closes what has been idle for `age`; false if nothing is left.
    fn sweep(&self, age: Duration) -> bool {
        let mut open = self.open.lock();
        open.retain_mut(|kept| {
            if kept.connection.in_flight() > 0 {
                kept.idle_since = None;
                return true;
            }
            kept.connection.is_open() && kept.idle_since.get_or_insert_with(Instant::now).elapsed() < age
        });
        !open.is_empty()
    }
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// A place in the pool for a connection whose exchange is still running.
#[derive(Debug)]
pub struct Back {
    pool: Arc<WorkloadPool>,
    key: Key,
    sender: SendRequest<Body>,
}

impl ReturnTo for Back {
    fn give_back(self: Box<Self>) {
        let Self { pool, key, sender } = *self;
        if sender.is_closed() {
            return;
        }
        let mut idle = pool.idle.lock();
        let kept = idle.entry(key).or_default();
        if kept.len() < IDLE {
            kept.push(Idle { sender, since: Instant::now() });
        }
    }
}

impl WorkloadPool {
    /// A pool without connections.
    pub fn new(hits: LimitHits) -> Self {
        Self { idle: Mutex::default(), h2: Mutex::default(), hits }
    }

    /// A fresh connection, for tunnels.
    pub async fn connect(&self, address: SocketAddr, limits: &Limits) -> Result<TcpStream, Error> {
        let unreachable = |detail: String| {
            Error::unsent(Side::Workload, Reason::WorkloadUnreachable, format!("{address}: {detail}"))
        };
        match timeout(limits.connect_workload, net::connect(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => {
                self.hits.hit("connect_workload");
                Err(unreachable("no answer to connect".to_owned()))
            }
        }
    }

    /// Sends a request over HTTP/1.1. The connection comes back when the response's body has ended.
    pub async fn send_h1(
        self: &Arc<Self>,
        to: SocketAddr,
        caller: Caller,
        request: Request<Body>,
        limits: &Limits,
    ) -> Result<Response<Body>, Error> {
        let key = (to, caller);
        let (sender, response) = self.exchange(&key, request, limits).await?;
        let back = Box::new(Back { pool: Arc::clone(self), key, sender });
        Ok(response.map(|incoming| Body::h1_returning(incoming, Side::Workload, back)))
    }

    /// Sends a request that may become a byte stream; its connection does not come back.
    pub async fn send_upgrade(
        self: &Arc<Self>,
        to: SocketAddr,
        mut request: Request<Body>,
        limits: &Limits,
    ) -> Result<Response<Incoming>, Error> {
        let mut sender = self.open(to, limits).await?;
        let enough = count_informational(&mut request, limits.informational);
        crate::runtime::select! {
            sent = sender.send_request(request) => sent.map_err(|error| broken(&error)),
            () = enough.notified() => Err(self.never_answers()),
        }
    }

    /// Sends a request over HTTP/2 with prior knowledge.
    pub async fn send_h2(
        &self,
        to: SocketAddr,
        caller: Caller,
        head: Request<()>,
        body: Body,
        interim: Option<&Interim>,
        limits: &Limits,
    ) -> Result<Response<Body>, Error> {
        let key = (to, caller);
        let shared = Arc::clone(self.h2.lock().entry(key).or_default());
        let connection = match shared.find() {
            Some(connection) => connection,
            None => timeout(limits.stall, self.dial(&shared, to, limits)).await.unwrap_or_else(|_| {
                Err(Error::unsent(Side::Workload, Reason::Stalled, "the workload allows no further stream"))
            })?,
        };
        let end = body.is_end_stream();
        connection.open(head, end).await?.exchange(body, interim).await
    }

    /// Another HTTP/2 connection, unless somebody else has opened one meanwhile, or failed to.
    async fn dial(&self, shared: &Shared, to: SocketAddr, limits: &Limits) -> Result<H2Connection, Error> {
        let failures = shared.failures.lock().0;
        let _dialing = shared.dialing.lock().await;
        if let Some(connection) = shared.find() {
            return Ok(connection);
        }
        if let (count, Some((reason, detail))) = &*shared.failures.lock()
            && *count > failures
        {
            return Err(Error::unsent(Side::Workload, *reason, detail.clone()));
        }
        match self.open_h2(to, limits).await {
            Ok(connection) => {
                shared.open.lock().push(Kept { connection: connection.clone(), idle_since: None });
                Ok(connection)
            }
            Err(error) => {
                let mut failures = shared.failures.lock();
                *failures = (failures.0 + 1, Some((error.reason, error.detail.clone())));
                Err(error)
            }
        }
    }

    async fn open_h2(&self, to: SocketAddr, limits: &Limits) -> Result<H2Connection, Error> {
        self.begin_h2(self.connect(to, limits).await?, limits).await
    }

    async fn begin_h2<I>(&self, io: I, limits: &Limits) -> Result<H2Connection, Error>
    where
        I: Duplex + Send + 'static,
    {
        let connection =
            H2Connection::handshake(io, Settings::workload(limits), Side::Workload, &self.hits).await?;
        connection.settled().await?;
        Ok(connection)
    }

    /// Lets go of connections that have been idle for `age`.
    pub fn sweep(&self, age: Duration) {
        let mut dropped = Vec::new();
        self.idle.lock().retain(|_, kept| {
            let (old, fresh): (Vec<Idle>, _) =
                std::mem::take(kept).into_iter().partition(|idle| idle.since.elapsed() >= age);
            *kept = fresh;
            for _ in &old {
                self.hits.hit("workload_idle");
            }
            dropped.push(old);
            !kept.is_empty()
        });
        // One that a caller holds is about to be used.
        self.h2.lock().retain(|_, shared| shared.sweep(age) || Arc::strong_count(shared) > 1);
    }

    async fn exchange(
        &self,
        key: &Key,
        mut request: Request<Body>,
        limits: &Limits,
    ) -> Result<(SendRequest<Body>, Response<Incoming>), Error> {
        loop {
            let reused = self.checkout(key, limits.workload_idle).await;
            let is_reused = reused.is_some();
            let mut sender = match reused {
                Some(sender) => sender,
                None => self.open(key.0, limits).await?,
            };
            let spare = if is_reused { repeatable(&request) } else { None };
            let enough = count_informational(&mut request, limits.informational);
            let sent = crate::runtime::select! {
                sent = sender.try_send_request(request) => sent,
                () = enough.notified() => return Err(self.never_answers()),
            };
            match sent {
                Ok(response) => return Ok((sender, response)),
                Err(mut error) => match (error.take_message(), spare) {
                    // Never written: it may be sent on another connection.
                    (Some(unsent), _) if is_reused => request = unsent,
                    // The keep-alive race: the workload closed as we wrote. Only what may be done twice is.
                    (None, Some(spare))
                        if error.error().is_incomplete_message() || error.error().is_canceled() =>
                    {
                        request = spare;
                    }
                    _ => return Err(broken(error.error())),
                },
            }
        }
    }

    fn never_answers(&self) -> Error {
        self.hits.hit("informational");
        let text = "informational answers and none that is asked for";
        Error::new(Side::Workload, Reason::WorkloadProtocol, text)
    }

    async fn checkout(&self, key: &Key, age: Duration) -> Option<SendRequest<Body>> {
        loop {
            let idle = self.idle.lock().get_mut(key)?.pop()?;
            if idle.since.elapsed() >= age || idle.sender.is_closed() {
                continue;
            }
            let mut sender = idle.sender;
            if sender.is_ready() {
                return Some(sender);
            }
            // Its last body has just been read; the connection's task needs a turn to notice.
            if let Ok(Ok(())) = timeout(Duration::from_millis(10), sender.ready()).await {
                return Some(sender);
            }
        }
    }

    async fn open(&self, to: SocketAddr, limits: &Limits) -> Result<SendRequest<Body>, Error> {
        begin_h1(self.connect(to, limits).await?, limits).await
    }

    /// Takes `io` for an idle connection to the workload at `to`.
    pub(crate) async fn keep_h1<I>(
        &self,
        to: SocketAddr,
        caller: Caller,
        io: I,
        limits: &Limits,
    ) -> Result<(), Error>
    where
        I: Duplex + Send + 'static,
    {
        let sender = begin_h1(io, limits).await?;
        self.idle.lock().entry((to, caller)).or_default().push(Idle { sender, since: Instant::now() });
        Ok(())
    }

    /// The same for one that speaks HTTP/2.
    pub(crate) async fn keep_h2<I>(
        &self,
        to: SocketAddr,
        caller: Caller,
        io: I,
        limits: &Limits,
    ) -> Result<(), Error>
    where
        I: Duplex + Send + 'static,
    {
        let connection = self.begin_h2(io, limits).await?;
        let shared = Arc::clone(self.h2.lock().entry((to, caller)).or_default());
        shared.open.lock().push(Kept { connection, idle_since: None });
        Ok(())
    }
}

/// Speaks HTTP/1 on `io`.
async fn begin_h1<I>(io: I, limits: &Limits) -> Result<SendRequest<Body>, Error>
where
    I: Duplex + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(limits.head_fields + 16)
        .max_header_size(limits.head_bytes)
        .handshake(TokioIo::new(StallClock::new(io, limits.stall)))
        .await
        .map_err(|error| Error::unsent(Side::Workload, Reason::WorkloadUnreachable, error.to_string()))?;
    spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the workload ended");
        }
    });
    Ok(sender)
}

/// A copy of a request that may be done twice and has no body (RFC 9110, 9.2.2).
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Passes informational answers on to whoever asked, and tells of the one that is too many.
pub(crate) fn count_informational(request: &mut Request<Body>, most: usize) -> Arc<Notify> {
    let (enough, count) = (Arc::new(Notify::new()), AtomicUsize::new(0));
    let told = Arc::clone(&enough);
    let interim = request.extensions_mut().remove::<Interim>();
    hyper::ext::on_informational(request, move |head| {
        if let Some(interim) = &interim {
            interim.tell(head.status(), head.headers());
        }
        if count.fetch_add(1, Ordering::Relaxed) == most {
            told.notify_one();
        }
    });
    enough
}

fn broken(error: &hyper::Error) -> Error {
    let reason = if error.is_parse() {
        Reason::WorkloadProtocol
    } else if is_stall(error) {
        Reason::Stalled
    } else {
        Reason::WorkloadReset
    };
    Error::new(Side::Workload, reason, error.to_string())
}

/// Whether the workload stopped reading: the stall clock's own error, inside hyper's.
fn is_stall(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|source| source.kind() == std::io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
