//! A peer at a mesh listener that is proven and may still say anything.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use postern_svid::{Bundle, Bundles, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::{Mesh, TRUST_DOMAIN, wait};

/// One mesh connection, with the certificate of a sidecar.
pub struct Peer {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
}

impl Peer {
    /// Connects as sidecar `name` to the mesh listener of sidecar `callee` at `to`.
    pub fn connect(mesh: &Mesh, name: &str, callee: &str, to: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let connector = connector(mesh, name, callee);
        let requests = runtime.block_on(async {
            let stream = TcpStream::connect(to).await.expect("the mesh listener accepts");
            let host = ServerName::IpAddress(to.ip().into());
            let stream = connector.connect(host, stream).await.expect("both sides prove themselves");
            let (requests, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            let requests = requests.ready().await.expect("it takes streams");
            // Extended CONNECT may be used once the settings have come.
            while !requests.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            requests
        });
        Self { runtime, requests }
    }

    /// Opens a stream with this head and waits for the answer's. Only a CONNECT goes on: everything else ends with its
    /// head, since a workload may wait for a body that is announced.
    pub fn open(&self, head: Request<()>) -> (Response<RecvStream>, SendStream<Bytes>) {
        let is_whole = head.method() != Method::CONNECT;
        let what = format!("{} {}", head.method(), head.uri());
        self.runtime.block_on(async {
            let requests = self.requests.clone().ready().await.expect("it takes streams");
            let (response, stream) = { requests }.send_request(head, is_whole).expect("the head is HTTP/2's");
            let answer = tokio::time::timeout(wait::PATIENCE, response).await;
            let answer = answer.unwrap_or_else(|_| panic!("{what}: no answer in {:?}", wait::PATIENCE));
            (answer.unwrap_or_else(|error| panic!("{what}: {error}")), stream)
        })
    }

    /// The next bytes of a stream.
    pub fn read(&self, stream: &mut RecvStream) -> Bytes {
        let next = async { tokio::time::timeout(wait::PATIENCE, stream.data()).await };
        let next = self.runtime.block_on(next).expect("bytes come in time");
        next.expect("the stream goes on").expect("the stream is not reset")
    }
}

fn connector(mesh: &Mesh, name: &str, callee: &str) -> TlsConnector {
    TlsConnector::from(config(mesh, name, callee))
}

/// TLS as sidecar `name` to sidecar `callee`.
pub(crate) fn config(mesh: &Mesh, name: &str, callee: &str) -> Arc<ClientConfig> {
    let state = mesh.sidecar(name).state();
    let pem = std::fs::read(state.join("svid.pem")).expect("the sidecar has a certificate");
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("it is a chain");
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).expect("the key is with it");
    let svid = Svid::from_pkcs8(chain, key.secret_pkcs8_der()).expect("they belong together");
    let domain = TrustDomain::parse(TRUST_DOMAIN).expect("it is a name");
    let bundle = std::fs::read(state.join("bundle.pem")).expect("the sidecar has a bundle");
    let bundle = Bundle::from_pem(domain, 1, &bundle).expect("it is one");
    let expected = [SpiffeId::parse(&mesh.sidecar(callee).id()).expect("it has an id")];
    let alpn: [&[u8]; 2] = [b"postern/1", b"h2"];
    let config =
        tls::client_config(Some(&svid), &Bundles::of(bundle), &expected, Arc::new(SystemClock), &alpn);
    config.expect("TLS 1.3 can be spoken")
}
