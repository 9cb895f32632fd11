//! Mesh connections that do nothing: real handshakes with a real certificate, HTTP/2 settings exchanged, then silence.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use postern_svid::{Bundle, Bundles, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use postern_tests::TRUST_DOMAIN;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::Failure;
use crate::certificates::spiffe_id;
use crate::contenders::{CALLEE, HOST, PATH};

/// Connections that stay open until this is dropped. Its threads keep answering PINGs.
pub(super) struct Held {
    runtime: Runtime,
    open: Vec<SendRequest<Bytes>>,
}

type Problem = Box<dyn std::error::Error + Send + Sync>;

impl Held {
    /// Opens `count` connections to a sidecar's mesh listener with the certificate in the state directory of another.
    pub(super) fn open(state: &Path, to: SocketAddr, count: usize) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let connector = connector(state).map_err(|error| format!("{}: {error}", state.display()))?;
        let open = runtime.block_on(async {
            let mut open = Vec::with_capacity(count);
            for number in 1..=count {
                let connection = connect(&connector, to).await;
                open.push(
                    connection.map_err(|error| format!("mesh connection {number} of {count}: {error}"))?,
                );
            }
            Ok::<_, Failure>(open)
        })?;
        Ok(Self { runtime, open })
    }

    /// One request on each connection, which must be answered by the workload.
    pub(super) fn ask_on_each(&self) -> Result<(), Failure> {
        self.runtime.block_on(async {
            for connection in &self.open {
                ask(connection.clone())
                    .await
                    .map_err(|error| format!("a request on a mesh connection: {error}"))?;
            }
            Ok(())
        })
    }
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

async fn connect(connector: &TlsConnector, to: SocketAddr) -> Result<SendRequest<Bytes>, Problem> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::IpAddress(to.ip().into()), stream).await?;
    let (requests, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    // Ready once the server's settings have come: the handshake is whole on both sides.
    Ok(requests.ready().await?)
}

async fn ask(requests: SendRequest<Bytes>) -> Result<(), Problem> {
    let request = Request::get(format!("http://{HOST}{PATH}"))
        .header("postern-port", "8080")
        .header("postern-version", "1.1")
        .body(())?;
    let (response, _) = requests.ready().await?.send_request(request, true)?;
    let mut response = response.await?;
    while let Some(data) = response.body_mut().data().await {
        let length = data?.len();
        response.body_mut().flow_control().release_capacity(length)?;
    }
    if response.status() != 200 {
        return Err(format!("answered with {}", response.status()).into());
    }
    Ok(())
}
