//! One look at a foreign bundle endpoint: one small answer, within one deadline, and never sent anywhere else.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_svid::{Bundle, Bundles, Clock, Document, tls};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::config::{ClientProfile, Foreign};
use crate::net::TcpStream;
use crate::task::{self, Owned};

/// For everything: name, connection, handshake, answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A file of certificates larger than this is none.
const MAX_ROOTS: u64 = 2 * 1024 * 1024;
/// Where platforms keep the certificates of public authorities.
const PLATFORM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The document of `foreign`, from whoever has proven to be its endpoint; `held` is the bundle that an SVID is held against.
pub(super) async fn document(
    foreign: &Foreign,
    held: Option<&Arc<Bundle>>,
    clock: &Arc<dyn Clock>,
) -> Result<(Document, Bytes), String> {
    let asked = tokio::time::timeout(DEADLINE, ask(foreign, held, clock)).await;
    let text = asked.map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))??;
    let document = Document::parse(foreign.name.clone(), &text).map_err(|error| error.to_string())?;
    Ok((document, text))
}

async fn ask(foreign: &Foreign, held: Option<&Arc<Bundle>>, clock: &Arc<dyn Clock>) -> Result<Bytes, String> {
    let authority = foreign.url.authority().ok_or("the URL has no host")?;
    let port = authority.port_u16().unwrap_or(443);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let config = match &foreign.profile {
        ClientProfile::Web(ca_file) => web(ca_file.as_deref()).await?,
        ClientProfile::Spiffe(id) => {
            let held = held.ok_or("there is no bundle to hold its SVID against: name a bootstrapBundle")?;
            let bundles = Bundles::default().with(held.clone());
            tls::client_config(None, &bundles, std::slice::from_ref(id), clock.clone(), &[b"http/1.1"])
                .map_err(|error| error.to_string())?
        }
    };
    let addresses =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut failed = format!("{host} has no address");
    for address in addresses {
        match connect(address).await {
            Ok(stream) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| format!("{host} is no name of a server"))?;
                let stream = TlsConnector::from(config).connect(name, stream).await;
                let stream = stream.map_err(|error| format!("TLS: {}", tls::explain(&error)))?;
                return exchange(TokioIo::new(stream), &foreign.url).await;
            }
            Err(error) => failed = format!("{address}: {error}"),
        }
    }
    Err(failed)
}

/// One of several addresses must not take all the time.
async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let connected = tokio::time::timeout(DEADLINE / 4, TcpStream::connect(address)).await;
    connected.map_err(std::io::Error::other)?
}

async fn web(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let file = ca_file.map(Path::to_owned);
    let roots = task::blocking(move || roots(file.as_deref())).await;
    let roots = roots.map_err(|_| "reading the authorities was cut short".to_owned())??;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let bounded = |path: &Path| {
        let found = std::fs::metadata(path)?;
        if !found.is_file() || found.len() > MAX_ROOTS {
            return Err(std::io::Error::other("not a file of at most 2 MiB"));
        }
        std::fs::read(path)
    };
    let (path, text) = match ca_file {
        Some(path) => (path, bounded(path).map_err(|error| format!("caFile {}: {error}", path.display()))?),
        None => PLATFORM
            .iter()
            .map(Path::new)
            .find_map(|path| bounded(path).ok().map(|text| (path, text)))
            .ok_or("this machine has no file of public authorities: name one with `caFile`")?,
    };
    let mut store = RootCertStore::empty();
    // Platforms keep certificates that are of no use to anyone beside good ones.
    for certificate in CertificateDer::pem_slice_iter(&text).flatten() {
        let _ = store.add(certificate);
    }
    if store.is_empty() {
        return Err(format!("{} holds no certificates (PEM)", path.display()));
    }
    Ok(store)
}

async fn exchange<S>(stream: TokioIo<S>, url: &Uri) -> Result<Bytes, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let http = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(64 * 1024).handshake(stream).await.map_err(http)?;
    let _driver = Owned::spawn(async move {
        let _ = connection.await;
    });
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "postern")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(http)?;
    let status = response.status();
    // Whoever may send us elsewhere may choose our roots (SPIFFE Federation, 7.5.1).
    if status.is_redirection() {
        return Err(format!(
            "the endpoint answers {status}: redirects are not followed, name the place itself"
        ));
    }
    if status != StatusCode::OK {
        return Err(format!("the endpoint answers {status}"));
    }
    let body = Limited::new(response.into_body(), Document::MAX).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return format!("the answer is larger than {} KiB", Document::MAX / 1_024);
        }
        format!("HTTP: {error}")
    })?;
    Ok(body.to_bytes())
}
