//! Mesh connections that do nothing, or do not read: real handshakes with a real certificate, HTTP/2 settings exchanged,
//! then silence.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{Request, Response};
use postern_svid::{Bundle, Bundles, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use postern_tests::TRUST_DOMAIN;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::Failure;
use crate::certificates::spiffe_id;
use crate::contenders::{CALLEE, HOST, LARGE, LARGE_PATH, PATH};

/// Connections that stay open until this is dropped. Its threads keep answering PINGs, unless they are to be deaf.
pub(super) struct Held {
    runtime: Runtime,
    open: Vec<SendRequest<Bytes>>,
    /// True: no connection reads from its socket any more.
    deaf: watch::Sender<bool>,
}

type Problem = Box<dyn std::error::Error + Send + Sync>;

impl Held {
    /// Opens `count` connections to a sidecar's mesh listener with the certificate in the state directory of another.
    pub(super) fn open(state: &Path, to: SocketAddr, count: usize, window: Window) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let connector = connector(state).map_err(|error| format!("{}: {error}", state.display()))?;
        let deaf = watch::Sender::new(false);
        let open = runtime.block_on(async {
            let mut open = Vec::with_capacity(count);
            for number in 1..=count {
                let connection = connect(&connector, to, window, deaf.subscribe()).await;
                open.push(
                    connection.map_err(|error| format!("mesh connection {number} of {count}: {error}"))?,
                );
            }
            Ok::<_, Failure>(open)
        })?;
        Ok(Self { runtime, open, deaf })
    }

    /// One request on each connection, which must be answered by the workload.
    pub(super) fn ask_on_each(&self) -> Result<(), Failure> {
        self.runtime
            .block_on(async {
                for connection in &self.open {
                    read(ask(connection.clone(), PATH).await?).await?;
                }
                Ok(())
            })
            .map_err(|error: Problem| format!("a request on a mesh connection: {error}"))
    }

    /// Asks for a large answer on each connection, and reads no more than the window holds.
    pub(super) fn ask_and_do_not_read(&self) -> Result<Unread, Failure> {
        let answers: Result<Vec<_>, Problem> = self.runtime.block_on(async {
            let mut answers = Vec::with_capacity(self.open.len());
            for connection in &self.open {
                answers.push(ask(connection.clone(), LARGE_PATH).await?);
            }
            Ok(answers)
        });
        let answers = answers.map_err(|error| format!("a request on a mesh connection: {error}"))?;
        Ok(Unread { answers, since: Instant::now() })
    }

    /// From here on no connection reads from its socket.
    pub(super) fn deafen(&self) {
        self.deaf.send_replace(true);
    }

    /// Until the sidecar has taken every answer away.
    pub(super) fn until_cut(&self, unread: Unread, at_most: Duration) -> Result<Duration, Failure> {
        let Unread { answers, since } = unread;
        let count = answers.len();
        self.runtime.block_on(async {
            let mut all = JoinSet::new();
            for answer in answers {
                all.spawn(drained(answer));
            }
            let mut cut = 0;
            let deadline = tokio::time::Instant::from_std(since + at_most);
            while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, all.join_next()).await {
                match ended {
                    Ok(length) if length < LARGE => cut += 1,
                    other => return Err(format!("an answer that nobody read came whole: {other:?}")),
                }
            }
            if cut < count {
                return Err(format!("{cut} of {count} answers were cut within {at_most:?}"));
            }
            Ok(since.elapsed())
        })
    }
}

/// What a connection's peer may send before it is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Window {
    /// HTTP/2's own, 64 KiB.
    Standard,
    /// Whole answers, into a socket that takes little: TCP holds the sender back.
    Socket,
}

/// Answers that nobody reads.
pub(super) struct Unread {
    answers: Vec<Response<RecvStream>>,
    since: Instant,
}

/// How much of an answer comes before it breaks, when nothing is ever said to have been read.
async fn drained(mut answer: Response<RecvStream>) -> usize {
    let mut length = 0;
    while let Some(Ok(data)) = answer.body_mut().data().await {
        length += data.len();
    }
    length
}

fn connector(state: &Path) -> Result<TlsConnector, Problem> {
    let pem = std::fs::read(state.join("svid.pem"))?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
    let svid = Svid::from_pkcs8(chain, PrivatePkcs8KeyDer::from_pem_slice(&pem)?.secret_pkcs8_der())?;
    let bundle =
        Bundle::from_pem(TrustDomain::parse(TRUST_DOMAIN)?, 1, &std::fs::read(state.join("bundle.pem"))?)?;
    let expected = [SpiffeId::parse(&spiffe_id(CALLEE))?];
    let alpn: [&[u8]; 2] = [b"postern/1", b"h2"];
    let config =
        tls::client_config(Some(&svid), &Bundles::of(bundle), &expected, Arc::new(SystemClock), &alpn)?;
    Ok(TlsConnector::from(config))
}

async fn connect(
    connector: &TlsConnector,
    to: SocketAddr,
    window: Window,
    mut deaf: watch::Receiver<bool>,
) -> Result<SendRequest<Bytes>, Problem> {
    let stream = match window {
        Window::Standard => TcpStream::connect(to).await?,
        Window::Socket => {
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(4 << 10)?;
            socket.connect(to).await?
        }
    };
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::IpAddress(to.ip().into()), stream).await?;
    let mut builder = h2::client::Builder::new();
    if window == Window::Socket {
        builder.initial_window_size(2 << 20).initial_connection_window_size(2 << 20);
    }
    let (requests, mut connection) = builder.handshake(stream).await?;
    tokio::spawn(async move {
        tokio::select! {
            _ = &mut connection => return,
            _ = deaf.wait_for(|deaf| *deaf) => {}
        }
        // Open, and never polled again, until the runtime ends.
        std::future::pending::<()>().await;
        drop(connection);
    });
    // Ready once the server's settings have come: the handshake is whole on both sides.
    Ok(requests.ready().await?)
}

async fn ask(requests: SendRequest<Bytes>, path: &str) -> Result<Response<RecvStream>, Problem> {
    let request = Request::get(format!("http://{HOST}{path}"))
        .header("postern-port", "8080")
        .header("postern-version", "1.1")
        .body(())?;
    let (response, _) = requests.ready().await?.send_request(request, true)?;
    let response = response.await?;
    if response.status() != 200 {
        return Err(format!("answered with {}", response.status()).into());
    }
    Ok(response)
}

async fn read(mut response: Response<RecvStream>) -> Result<(), Problem> {
    while let Some(data) = response.body_mut().data().await {
        let length = data?.len();
        response.body_mut().flow_control().release_capacity(length)?;
    }
    Ok(())
}
