//! A client of the identity API: joins, and renews as often as it likes.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use postern_ca::proto::{IssueRequest, IssueResponse, issue_request};
use postern_svid::{Bundle, Bundles, SpiffeId, Svid, SystemClock, TrustDomain, tls};
use postern_tests::{ControlPlane, TRUST_DOMAIN};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long a call may take.
const CALL: Duration = Duration::from_secs(20);

/// One connection, without an identity or with one.
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    pub(crate) async fn connect(control: &ControlPlane, svid: Option<&Svid>) -> Option<Self> {
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
        let pem = std::fs::read(control.state().join("bundle.pem")).expect("it has started once");
        let bundles = Bundles::of(Bundle::from_pem(trust_domain.clone(), 0, &pem).expect("it is a bundle"));
        let expected = [trust_domain.control_plane()];
        let tls = tls::client_config(svid, &bundles, &expected, Arc::new(SystemClock), &[b"h2"])
            .expect("it is an SVID of this mesh");
        let address = (control.address(), 24_150);
        let dial = tonic_dial(move || {
            let connector = TlsConnector::from(tls.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("control.invalid").map_err(std::io::Error::other)?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://control.invalid").timeout(CALL);
        endpoint.connect_with_connector(dial).await.ok().map(|channel| Self(Grpc::new(channel)))
    }

    /// The first certificate by a token, or the next of `svid`; `None` if it did not come.
    pub(crate) async fn issue(
        &mut self,
        id: &SpiffeId,
        token: Option<&str>,
        svid: Option<&Svid>,
    ) -> Option<Svid> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("keys can be made");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("requests can be made");
        let request = IssueRequest {
            csr_der: csr.der().to_vec(),
            spiffe_id: id.as_str().to_owned(),
            predecessor_serial: svid.map(|svid| svid.serial().to_vec()).unwrap_or_default(),
            proof: token.map(|token| issue_request::Proof::JoinToken(token.to_owned())),
            ..IssueRequest::default()
        };
        self.0.ready().await.ok()?;
        let path = "/postern.identity.v1.Identity/Issue".parse().expect("a constant");
        let codec: ProstCodec<IssueRequest, IssueResponse> = ProstCodec::default();
        let answer = self.0.unary(tonic::Request::new(request), path, codec).await.ok()?.into_inner();
        let chain = answer.chain_der.into_iter().map(CertificateDer::from).collect();
        Some(Svid::from_pkcs8(chain, key.serialized_der()).expect("an answer is an SVID"))
    }
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
