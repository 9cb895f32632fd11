//! A client of the identity API: joins, and renews as often as it likes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use postern_ca::proto::{IssueRequest, IssueResponse, issue_request};
use postern_svid::{Bundle, Bundles, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::mesh::ControlPlane;
use crate::plan::TRUST_DOMAIN;

/// How long a call may take.
const CALL: Duration = Duration::from_secs(20);

/// One connection, without an identity or with one.
#[derive(Clone, Debug)]
pub struct Client(Grpc<Channel>);

impl Client {
    /// Connects to a control plane that has started once; `None` if that fails.
    pub async fn connect(control: &ControlPlane, svid: Option<&Svid>) -> Option<Self> {
        Self::connect_from(None, control, svid).await
    }

    /// The same from an address of loopback that is not everybody's.
    pub async fn connect_from(
        source: Option<IpAddr>,
        control: &ControlPlane,
        svid: Option<&Svid>,
    ) -> Option<Self> {
        let expected = [trust_domain().control_plane()];
        let tls = tls::client_config(svid, &bundles(control), &expected, Arc::new(SystemClock), &[b"h2"])
            .expect("it is an SVID of this mesh");
        let address = SocketAddr::new(control.address(), 24_150);
        let dial = tonic_dial(move || {
            let connector = TlsConnector::from(tls.clone());
            async move {
                let socket = TcpSocket::new_v4()?;
                if let Some(source) = source {
                    socket.bind((source, 0).into())?;
                }
                let tcp = socket.connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from("control.invalid").map_err(std::io::Error::other)?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://control.invalid").timeout(CALL);
        endpoint.connect_with_connector(dial).await.ok().map(|channel| Self(Grpc::new(channel)))
    }

    /// The first certificate by a token, or the next of `svid`; `None` if it did not come.
    pub async fn issue(&mut self, id: &SpiffeId, token: Option<&str>, svid: Option<&Svid>) -> Option<Svid> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("keys can be made");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("requests can be made");
        let answer = self.ask(request(csr.der().to_vec(), id, token, svid)).await.ok()?;
        let chain = answer.chain_der.into_iter().map(CertificateDer::from).collect();
        Some(Svid::from_pkcs8(chain, key.serialized_der()).expect("an answer is an SVID"))
    }

    /// Any request.
    pub async fn ask(&mut self, request: IssueRequest) -> Result<IssueResponse, Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = "/postern.identity.v1.Identity/Issue".parse().expect("a constant");
        let codec: ProstCodec<IssueRequest, IssueResponse> = ProstCodec::default();
        Ok(self.0.unary(tonic::Request::new(request), path, codec).await?.into_inner())
    }
}

/// A request by a token or by the certificate of the connection.
pub fn request(csr: Vec<u8>, id: &SpiffeId, token: Option<&str>, svid: Option<&Svid>) -> IssueRequest {
    IssueRequest {
        csr_der: csr,
        spiffe_id: id.as_str().to_owned(),
        predecessor_serial: svid.map(|svid| svid.serial().to_vec()).unwrap_or_default(),
        proof: token.map(|token| issue_request::Proof::JoinToken(token.to_owned())),
        ..IssueRequest::default()
    }
}

/// The trust bundle that a control plane has written for its sidecars.
pub fn bundles(control: &ControlPlane) -> Bundles {
    let pem = std::fs::read(control.state().join("bundle.pem")).expect("it has started once");
    Bundles::of(Bundle::from_pem(trust_domain(), 0, &pem).expect("it is a bundle"))
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse(TRUST_DOMAIN).expect("a constant")
}

fn tonic_dial<F, Fut, T>(
    dial: F,
) -> impl tonic::codegen::Service<http::Uri, Response = T, Error = std::io::Error, Future: Send> + Send + 'static
where
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<T>> + Send + 'static,
{
    struct Dial<F>(F);
    impl<F, Fut, T> tonic::codegen::Service<http::Uri> for Dial<F>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = std::io::Result<T>> + Send + 'static,
    {
        type Response = T;
        type Error = std::io::Error;
        type Future = Fut;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), std::io::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Uri) -> Fut {
            (self.0)()
        }
    }
    Dial(dial)
}
