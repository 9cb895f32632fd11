//! A connection to the control plane that has proven its id.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use postern_svid::{Svid, tls};
use rustls_pki_types::ServerName;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tracing::debug;

use crate::config::{host_and_port, socket};
use crate::error::AttemptError;
use crate::identity::Live;
use crate::load::Anchor;
use crate::net;
use crate::pace::Pace;
use crate::proto::identity_client::IdentityClient;

/// Larger than any honest answer: the bundles of sixteen other trust domains, of 64 KiB at most each.
const MAX_MESSAGE: usize = 1_280 * 1_024;
/// Enough for what a gRPC answer carries.
const MAX_HEADERS: u32 = 16 * 1024;

/// The generated client over one HTTP/2 connection. Dropping it ends the connection and its tasks.
pub(crate) struct Connection {
    pub(crate) client: IdentityClient<Channel>,
    /// What both ends of it alone can derive.
    pub(crate) channel: postern_svid::Channel,
    /// Which address answered.
    pub(crate) place: usize,
    _tasks: TaskGuard,
}

/// Connects to the replica of the control plane that answered last, or to the next one that does. With `svid` the caller proves
/// its own id as well.
pub(crate) async fn open(live: &Live, svid: Option<&Svid>, pace: Pace) -> Result<Connection, AttemptError> {
    let mut turn = 0;
    loop {
        let place = live.place();
        let tried = open_at(live, place, svid, pace).await;
        turn += 1;
        match tried {
            Err(error) if turn < live.config.places() => {
                debug!("the next replica of the control plane is tried: {error}");
                live.go_elsewhere(place);
            }
            other => {
                if other.is_err() {
                    live.go_elsewhere(place);
                }
                return other;
            }
        }
    }
}

/// Dials, proves the control plane's id in the handshake and speaks HTTP/2. Not one byte of a request is written before
/// the handshake has succeeded.
async fn open_at(
    live: &Live,
    place: usize,
    svid: Option<&Svid>,
    pace: Pace,
) -> Result<Connection, AttemptError> {
    let config = &live.config;
    let address = config.addresses().nth(place).unwrap_or(&config.control_plane);
    // A replica that hangs must leave time for the others.
    let step = pace.step_at(config.places());
    let expected = std::slice::from_ref(&config.control_plane_id);
    let anchor = live.anchor().map_err(|error| AttemptError::Local(error.to_string()))?;
    let tls = match anchor {
        Anchor::Bundles(bundles) => {
            tls::client_config(svid, &bundles, expected, live.clock.clone(), &[b"h2"])
        }
        Anchor::Pinned(pin) => tls::client_config_pinned(pin, expected, live.clock.clone(), &[b"h2"]),
    }
    .map_err(|error| AttemptError::Local(error.to_string()))?;
    let connecting = async {
        match (socket(address), host_and_port(address)) {
            (Some(path), _) => net::connect_unix(path).await,
            (None, Some((host, port))) => net::connect(host, port, config.mark).await,
            (None, None) => Err(io::Error::other("the address is no host:port")),
        }
    };
    let stream = timeout(step, connecting)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
        .map_err(|error| AttemptError::Connect(address.to_owned(), error))?;
    // Neither checked nor sent: the id decides.
    let name = ServerName::try_from("control-plane.invalid")
        .map_err(|_| AttemptError::Local("the placeholder name is no DNS name".to_owned()))?;
    let stream = timeout(step, TlsConnector::from(tls).connect(name, stream))
        .await
        .map_err(|_| AttemptError::Timeout("TLS handshake"))?
        .map_err(|error| {
            let by_roots = matches!(tls::refusal(&error), "untrusted" | "expired");
            let bundle = live.stored_bundle().filter(|_| by_roots);
            AttemptError::Handshake { address: address.to_owned(), error, bundle }
        })?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(AttemptError::Connection("it does not speak HTTP/2".to_owned()));
    }

    let channel = postern_svid::Channel::of(stream.get_ref().1)
        .ok_or_else(|| AttemptError::Connection("its handshake is not over".to_owned()))?;
    let tasks = Tasks::default();
    let guard = TaskGuard(tasks.clone());
    let handshake = Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(pace.ping())
        .keep_alive_timeout(pace.pong())
        .keep_alive_while_idle(true)
        .max_header_list_size(MAX_HEADERS)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = timeout(step, handshake)
        .await
        .map_err(|_| AttemptError::Timeout("HTTP/2 preface"))?
        .map_err(|error| AttemptError::Connection(error.to_string()))?;
    tasks.spawn(async move {
        // Whoever uses the connection learns of its end from the call.
        let _ = connection.await;
    });
    let origin = http::Uri::builder()
        .scheme("https")
        // Of a socket's path no authority can be made, and nobody reads this one.
        .authority(socket(address).map_or(address, |_| "control-plane.invalid"))
        .path_and_query("/")
        .build()
        .map_err(|error| AttemptError::Local(format!("the control plane's address: {error}")))?;
    let client = IdentityClient::with_origin(Channel(sender), origin).max_decoding_message_size(MAX_MESSAGE);
    Ok(Connection { client, channel, place, _tasks: guard })
}

/// hyper's sender in the shape that generated clients call.
#[derive(Clone)]
pub(crate) struct Channel(SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The tasks of one connection: its driver and those that hyper starts for its streams.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().spawn(task);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// The driver holds the set that holds the driver, so dropping handles would end nothing.
struct TaskGuard(Tasks);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.0.lock().abort_all();
    }
}
