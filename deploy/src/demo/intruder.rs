//! Clients that stand outside the mesh's rules: plaintext, TLS without a certificate, TLS with somebody else's.
//!
//! None of this trusts anything: the server's certificate is looked at, never verified. It exists to be refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::demo::admin::serial;
use crate::demo::credential::Credential;
use crate::demo::failure::{Explain, Failure};
use crate::demo::http::{Reply, chain};
use crate::demo::plan::SERVICE_PORT;

/// Longer than a sidecar gives a connection to start TLS (5 s): one that is merely left alone has not been refused.
const PATIENCE: Duration = Duration::from_secs(8);

/// What came of an intruder's request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// No answer, and the connection is gone; how it went.
    Refused(String),
    /// An HTTP answer: the listener let it in.
    Answered(Reply),
}

/// Sends bytes in plaintext and gives everything that comes back until the connection closes.
pub(crate) async fn plaintext(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.explain("cannot connect")?;
        // Both may fail once the listener has closed: that is a refusal.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok(answer)
    };
    timeout(PATIENCE, exchange).await.explain("the listener neither answers nor closes the connection")?
}

/// A mesh request over TLS with the given credential or none, and these header fields.
pub(crate) async fn tls_request(
    address: SocketAddr,
    credential: Option<&Credential>,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<Outcome, Failure> {
    let exchange = async {
        let alert = alert(address, credential).await?;
        Ok(match request(address, credential, path, fields).await? {
            Outcome::Refused(how) => Outcome::Refused(alert.unwrap_or(how)),
            answered @ Outcome::Answered(_) => answered,
        })
    };
    timeout(PATIENCE, exchange).await.explain("the listener neither answers nor closes the connection")?
}

/// Asks a mesh listener for a tunnel to `authority`; the status of the answer.
pub(crate) async fn tunnel(
    address: SocketAddr,
    credential: &Credential,
    authority: SocketAddr,
) -> Result<StatusCode, Failure> {
    let exchange = async {
        let stream = connect(address, Some(credential)).await?;
        let stream = stream.map_err(|refusal| Failure::new(format!("the handshake fails: {refusal}")))?;
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.explain("cannot speak HTTP/2")?;
        tokio::spawn(connection);
        let request = Request::connect(authority.to_string()).body(Full::<Bytes>::default());
        let request = request.explain("cannot build the request")?;
        Ok(sender.send_request(request).await.explain("there is no answer")?.status())
    };
    timeout(PATIENCE, exchange).await.explain("the listener does not answer")?
}

/// Serial number of the certificate that a mesh listener presents now.
pub(crate) async fn served_serial(address: SocketAddr) -> Result<String, Failure> {
    let stream = timeout(PATIENCE, connect(address, None)).await.explain("the handshake does not end")?;
    let stream =
        stream?.map_err(|refusal| Failure::new(format!("{address} presents no certificate: {refusal}")))?;
    let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let leaf = presented.explain(format!("{address} presents no certificate"))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(leaf).explain("cannot read the listener's certificate")?;
    Ok(serial(&parsed.raw_serial_as_string()))
}

/// How the listener refuses, from a connection that says nothing: one that does may see its write fail before the alert.
async fn alert(address: SocketAddr, credential: Option<&Credential>) -> Result<Option<String>, Failure> {
    let mut stream = match connect(address, credential).await? {
        Ok(stream) => stream,
        Err(refusal) => return Ok(Some(refusal)),
    };
    Ok(match timeout(Duration::from_secs(1), stream.read_u8()).await {
        Ok(Err(error)) => Some(error.to_string()),
        // It talks to us, or waits for us to talk: no refusal yet.
        Ok(Ok(_)) | Err(_) => None,
    })
}

async fn request(
    address: SocketAddr,
    credential: Option<&Credential>,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<Outcome, Failure> {
    let stream = match connect(address, credential).await? {
        Ok(stream) => stream,
        Err(refusal) => return Ok(Outcome::Refused(refusal)),
    };
    let uri = format!("http://{}:{SERVICE_PORT}{path}", address.ip());
    let mut request = Request::get(uri).header("postern-port", SERVICE_PORT).header("postern-version", "1.1");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).explain("cannot build the request")?;
    let (mut sender, connection) = match http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await {
        Ok(ready) => ready,
        Err(error) => return Ok(Outcome::Refused(chain(&error))),
    };
    tokio::spawn(connection);
    Ok(match sender.send_request(request).await {
        Ok(response) => Outcome::Answered(Reply::read(response).await.explain("reading the answer")?),
        Err(error) => Outcome::Refused(chain(&error)),
    })
}

/// The client's half of the handshake; the inner Err tells how it was refused. Where nobody listens nothing is refused:
/// that is a failure, or an intruder's line would hold without a listener.
async fn connect(
    address: SocketAddr,
    credential: Option<&Credential>,
) -> Result<Result<TlsStream<TcpStream>, String>, Failure> {
    let config = config(credential).explain("the credential cannot be used")?;
    let stream = TcpStream::connect(address).await.explain(format!("cannot connect to {address}"))?;
    let name = ServerName::from(address.ip());
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(shaken.map_err(|error| error.to_string()))
}

fn config(credential: Option<&Credential>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match credential {
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"postern/1".to_vec(), b"h2".to_vec()];
    Ok(config)
}

/// An intruder does not care whom it talks to.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_nobody_listens_nothing_is_refused() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = taken.local_addr().expect("a listener has an address");
        drop(taken);
        let outcome = tls_request(address, None, "/", &[]).await;
        let failure = outcome.expect_err("there is no listener").to_string();
        assert!(failure.contains("cannot connect"), "{failure}");
    }
}
