//! A connection to one member of the cluster: TCP, TLS, HTTP/2, and a token for the user if there is one.

use std::error::Error as _;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_ca::keys;
use postern_ca::store::shared::SharedError;
use rustls::{CertificateError, ClientConfig, Error as TlsError, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::config::{Config, Endpoint, Tls, User};
use crate::proto;
use crate::proto::auth_client::AuthClient;
use crate::proto::kv_client::KvClient;
use crate::proto::lease_client::LeaseClient;
use crate::proto::watch_client::WatchClient;
use crate::refusal::{refused, unavailable};

/// All values together are a mebibyte at most, and changes come in pieces of two.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// More than etcd ever sends.
const MAX_HEADERS: u32 = 16 * 1024;
/// PING interval and answer, while something is asked: etcd closes on whoever sends them more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// A chain and a key, or authorities, or a password, are smaller.
const MAX_FILE: u64 = 256 * 1_024;

/// A connection that somebody has answered on. Dropping the last of its clones ends it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) endpoint: Endpoint,
    sender: Channel,
    origin: http::Uri,
    token: Option<MetadataValue<Ascii>>,
    driver: Arc<Driver>,
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Dials and authenticates. The caller holds the deadline.
    pub(crate) async fn open(config: &Config, endpoint: &Endpoint) -> Result<Self, SharedError> {
        let tls = if endpoint.is_tls() { Some(connector(config.tls.as_ref(), endpoint)?) } else { None };
        let down = |error: std::io::Error| unavailable(endpoint, &error.to_string());
        let socket = TcpStream::connect((endpoint.host(), endpoint.port())).await.map_err(down)?;
        socket.set_nodelay(true).map_err(down)?;
        let (sender, driver) = match tls {
            None => speak(socket, endpoint).await?,
            Some((connector, name)) => {
                let stream = connector.connect(name, socket).await;
                speak(stream.map_err(|error| handshake(&error, config, endpoint))?, endpoint).await?
            }
        };
        let origin = endpoint.to_string().parse().map_err(|_| refused(format!("{endpoint} is no URL")))?;
        let mut connection = Self {
            endpoint: endpoint.clone(),
            sender: Channel(sender),
            origin,
            token: None,
            driver: Arc::new(driver),
        };
        if let Some(user) = &config.user {
            connection.token = Some(connection.authenticate(user, config).await?);
        }
        Ok(connection)
    }

    /// Whether both are one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.0.is_closed()
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::with_origin(self.sender.clone(), self.origin.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::with_origin(self.sender.clone(), self.origin.clone())
    }

    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::with_origin(self.sender.clone(), self.origin.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    /// A request with what goes along with each.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A member that has lost the others says so instead of waiting for them.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    async fn authenticate(&self, user: &User, config: &Config) -> Result<MetadataValue<Ascii>, SharedError> {
        let path = &user.password;
        let bytes =
            keys::read_private(path, MAX_FILE).map_err(|error| refused(format!("passwordFile: {error}")))?;
        let password = std::str::from_utf8(&bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']));
        let password = password.filter(|text| !text.is_empty() && !text.contains(['\r', '\n']));
        let password = password
            .ok_or_else(|| refused(format!("passwordFile: {}: a password is one line", path.display())))?;
        let mut client = AuthClient::with_origin(self.sender.clone(), self.origin.clone());
        let asked = proto::AuthenticateRequest { name: user.name.clone(), password: password.to_owned() };
        let answer = client.authenticate(Request::new(asked)).await.map_err(|status| {
            let Self { endpoint, .. } = self;
            match status.message() {
                text if text.contains("authentication failed") => refused(format!(
                    "{endpoint}: it knows no user {:?} with the password in {}; etcdctl user list, etcdctl user passwd",
                    user.name,
                    path.display()
                )),
                text if text.contains("authentication is not enabled") => refused(format!(
                    "{endpoint}: it asks nobody who they are, so anybody may write there: etcdctl auth enable, or leave `user` out if client certificates keep others away"
                )),
                _ => crate::refusal::of(&status, self, config),
            }
        })?;
        let token = answer.into_inner().token;
        token.parse().map_err(|_| refused(format!("{}: its token is no text", self.endpoint)))
    }

    /// What a broken connection has to say: of a refused client certificate TLS 1.3 tells after the handshake, and HTTP/2 passes on the
    /// text alone.
    pub(crate) fn broken(&self, status: &Status, config: &Config) -> SharedError {
        let mut last = status.message().to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            last = error.to_string();
            source = error.source();
        }
        match (status.code(), last.split_once("received fatal alert: ")) {
            (_, Some((_, alert))) => refused(refused_in_handshake(alert, config, &self.endpoint)),
            (Code::OutOfRange, None) => refused(format!("{}: {}", self.endpoint, status.message())),
            _ => unavailable(&self.endpoint, &last),
        }
    }
}

async fn speak<S>(stream: S, endpoint: &Endpoint) -> Result<(SendRequest<Body>, Driver), SharedError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_header_list_size(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unavailable(endpoint, &error.to_string()))?;
    let driver = tokio::spawn(async move {
        // Whoever asks something learns of its end from the answer.
        let _ = connection.await;
    });
    Ok((sender, Driver(driver.abort_handle())))
}

fn connector(
    tls: Option<&Tls>,
    endpoint: &Endpoint,
) -> Result<(TlsConnector, ServerName<'static>), SharedError> {
    let tls = tls.ok_or_else(|| {
        refused(format!("{endpoint}: `tls.ca` is missing: by whom are its members' certificates signed?"))
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.ca", &tls.ca)? {
        roots.add(certificate).map_err(|error| refused(format!("tls.ca: {}: {error}", tls.ca.display())))?;
    }
    // The library's own algorithms, not the mesh's: an etcd's certificates are mostly RSA.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let secret =
                keys::read_private(key, MAX_FILE).map_err(|error| refused(format!("tls.key: {error}")))?;
            let private = PrivateKeyDer::from_pem_slice(&secret).map_err(|error| {
                refused(format!("tls.key: {}: no private key in PEM: {error}", key.display()))
            })?;
            builder.with_client_auth_cert(certificates("tls.cert", certificate)?, private).map_err(
                |error| {
                    refused(format!(
                        "tls.cert: {} does not go with {}: {error}",
                        certificate.display(),
                        key.display()
                    ))
                },
            )?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from(endpoint.host().to_owned())
        .map_err(|_| refused(format!("{endpoint}: {:?} is no name of a server", endpoint.host())))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SharedError> {
    let unfit = |why: String| refused(format!("{field}: {}: {why}", path.display()));
    let found = std::fs::metadata(path).map_err(|error| unfit(error.to_string()))?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(unfit("not a file of at most 256 KiB".to_owned()));
    }
    let pem = std::fs::read(path).map_err(|error| unfit(error.to_string()))?;
    let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| unfit(format!("not PEM: {error}")))?;
    if all.is_empty() { Err(unfit("it holds no certificate (PEM)".to_owned())) } else { Ok(all) }
}

fn handshake(error: &std::io::Error, config: &Config, endpoint: &Endpoint) -> SharedError {
    match error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) {
        Some(error) => tls_refusal(error, config, endpoint),
        None => {
            unavailable(endpoint, &format!("it ends the TLS handshake: {error}; does it speak TLS there?"))
        }
    }
}

fn tls_refusal(error: &TlsError, config: &Config, endpoint: &Endpoint) -> SharedError {
    let ca = config.tls.as_ref().map(|tls| tls.ca.display().to_string()).unwrap_or_default();
    refused(match error {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!(
                "{endpoint}: its certificate is not signed by tls.ca ({ca}); name the authority of etcd's members"
            )
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("{endpoint}: its certificate is for other names ({error}); ask it by one of those")
        }
        TlsError::AlertReceived(alert) => refused_in_handshake(&format!("{alert:?}"), config, endpoint),
        TlsError::InvalidMessage(_) => {
            format!("{endpoint}: what answers there does not speak TLS; is it the port for clients?")
        }
        _ => format!("{endpoint}: TLS: {error}"),
    })
}

fn refused_in_handshake(alert: &str, config: &Config, endpoint: &Endpoint) -> String {
    let why = match config.tls.as_ref().and_then(|tls| tls.own.as_ref()) {
        None => "it wants a client certificate: name tls.cert and tls.key".to_owned(),
        Some((certificate, _)) => format!(
            "is tls.cert ({}) signed by its trusted authority (--trusted-ca-file), for client authentication, and not ended?",
            certificate.display()
        ),
    };
    format!("{endpoint}: it refuses us in the TLS handshake ({alert}): {why}")
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
