//! A control plane on loopback and a client for it, written by hand over tonic's generic client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use postern_ca::proto::{Directive, IssueRequest, IssueResponse, Report, issue_request};
use postern_ca::store::Sqlite;
use postern_ca::token::Token;
use postern_control::{Config, Running};
use postern_svid::{Bundle, Bundles, Clock, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("demo.postern").unwrap()
}

pub(crate) fn id(name: &str) -> SpiffeId {
    SpiffeId::service_account(&trust_domain(), "shop", name).unwrap()
}

pub(crate) fn config(state_dir: &Path, ttl: Duration) -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut config = Config::new(trust_domain(), state_dir.to_owned(), any);
    config.health = any;
    config.mesh_admin = any;
    config.ttl = ttl;
    config.test = true;
    config
}

pub(crate) async fn start(state_dir: &Path, ttl: Duration) -> Running {
    postern_control::start(config(state_dir, ttl)).await.unwrap()
}

/// Makes a token as `postern ca token create` does.
pub(crate) fn token(state_dir: &Path, id: &SpiffeId) -> String {
    let out = state_dir.join(format!("token-{}", rand()));
    let store = Sqlite::open(state_dir, &trust_domain()).unwrap();
    let now = SystemClock.wall();
    Token::create(&store, &trust_domain(), id, Duration::from_secs(600), now, &out).unwrap();
    std::fs::read_to_string(out).unwrap()
}

fn rand() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

pub(crate) fn bundles(running: &Running) -> Bundles {
    let pem = std::fs::read(running.bundle_path()).unwrap();
    Bundles::of(Bundle::from_pem(trust_domain(), 0, &pem).unwrap())
}

/// A key and a request for it.
pub(crate) fn key_and_csr() -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

#[derive(Clone)]
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    /// Connects; the server must be the control plane of the trust domain.
    pub(crate) async fn connect(
        running: &Running,
        svid: Option<&Svid>,
    ) -> Result<Self, tonic::transport::Error> {
        let expected = [trust_domain().control_plane()];
        let tls =
            tls::client_config(svid, &bundles(running), &expected, Arc::new(SystemClock), &[b"h2"]).unwrap();
        let address = running.identity_address();
        let dial = tower_fn(move |_: Uri| {
            let connector = TlsConnector::from(tls.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("control.invalid").unwrap();
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://control.invalid").connect_with_connector(dial).await?;
        Ok(Self(Grpc::new(channel).max_decoding_message_size(1 << 20)))
    }

    pub(crate) async fn issue(&mut self, request: IssueRequest) -> Result<IssueResponse, Status> {
        self.0.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = "/postern.identity.v1.Identity/Issue".parse().unwrap();
        self.0.unary(Request::new(request), path, ProstCodec::default()).await.map(Response::into_inner)
    }

    pub(crate) async fn watch(
        &mut self,
        reports: impl tokio_stream::Stream<Item = Report> + Send + 'static,
    ) -> Result<Streaming<Directive>, Status> {
        self.0.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = "/postern.identity.v1.Identity/Watch".parse().unwrap();
        self.0.streaming(Request::new(reports), path, ProstCodec::default()).await.map(Response::into_inner)
    }
}

pub(crate) fn with_token(id: &SpiffeId, csr: Vec<u8>, token: &str) -> IssueRequest {
    IssueRequest {
        csr_der: csr,
        spiffe_id: id.as_str().to_owned(),
        proof: Some(issue_request::Proof::JoinToken(token.to_owned())),
        ..IssueRequest::default()
    }
}

pub(crate) fn renewal(svid: &Svid, csr: Vec<u8>) -> IssueRequest {
    IssueRequest {
        csr_der: csr,
        spiffe_id: svid.id().as_str().to_owned(),
        predecessor_serial: svid.serial().to_vec(),
        ..IssueRequest::default()
    }
}

pub(crate) fn svid(response: &IssueResponse, key: &rcgen::KeyPair) -> Svid {
    let chain = response.chain_der.iter().map(|der| CertificateDer::from(der.clone())).collect();
    Svid::from_pkcs8(chain, key.serialized_der()).unwrap()
}

/// First certificate of `name`.
pub(crate) async fn join(running: &Running, state_dir: &Path, name: &str) -> Svid {
    let id = id(name);
    let token = token(state_dir, &id);
    let (key, csr) = key_and_csr();
    let mut client = Client::connect(running, None).await.unwrap();
    let response = client.issue(with_token(&id, csr, &token)).await.unwrap();
    let svid = svid(&response, &key);
    svid.verify_against(&bundles(running), SystemClock.wall()).unwrap();
    svid
}

/// One GET over HTTP/1.1 with this Host; status and body.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str, host: &str) -> (u16, String) {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

pub(crate) async fn raw(address: std::net::SocketAddr, request: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

pub(crate) fn state(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("state")
}

/// Polls until `done` says so, at most ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

type Tls = TokioIo<TlsStream<TcpStream>>;

fn tower_fn<F, Fut>(
    dial: F,
) -> impl Service<Uri, Response = Tls, Error = std::io::Error, Future: Send> + Send + 'static
where
    F: Fn(Uri) -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<Tls>> + Send + 'static,
{
    struct Dial<F>(F);
    impl<F, Fut> Service<Uri> for Dial<F>
    where
        F: Fn(Uri) -> Fut,
        Fut: Future<Output = std::io::Result<Tls>> + Send + 'static,
    {
        type Response = Tls;
        type Error = std::io::Error;
        type Future = Fut;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), std::io::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, uri: Uri) -> Fut {
            (self.0)(uri)
        }
    }
    Dial(dial)
}

/// The chain that the identity API presents.
pub(crate) async fn served_chain(running: &Running) -> Vec<CertificateDer<'static>> {
    let expected = [trust_domain().control_plane()];
    let config =
        tls::client_config(None, &bundles(running), &expected, Arc::new(SystemClock), &[b"h2"]).unwrap();
    let tcp = TcpStream::connect(running.identity_address()).await.unwrap();
    let name = ServerName::try_from("control.invalid").unwrap();
    let stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap().iter().map(|c| c.clone().into_owned()).collect()
}
