//! The bundle endpoint: one document, for anybody, over TLS (SPIFFE Federation, 4).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use postern_ca::bundle::REFRESH_HINT;
use postern_ca::keys::{self, KeyError};
use postern_svid::{Bundle, Document, tls};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::site::{self, Body};
use crate::task::{self, Tasks};

/// Where the document is.
const PATH: &str = "/bundle.json";
/// A chain and a key together are far smaller.
const MAX_FILE: u64 = 256 * 1_024;
/// How often the certificate's files are looked at: whoever renews them does not tell us.
const RELOAD: Duration = Duration::from_secs(30);
const RELOAD_IN_TESTS: Duration = Duration::from_secs(1);

/// What the endpoint serves, and with which certificate.
pub(crate) struct BundlePage {
    pub(crate) bundle: watch::Receiver<Arc<Bundle>>,
    /// For new connections; open ones keep theirs.
    pub(crate) tls: Arc<ArcSwap<ServerConfig>>,
}

impl BundlePage {
    pub(crate) fn respond(&self, path: &str) -> Response<Body> {
        if path != PATH {
            return site::error(StatusCode::NOT_FOUND, "known here: /bundle.json");
        }
        let document = Document::of(&self.bundle.borrow(), REFRESH_HINT);
        site::response(StatusCode::OK, "application/json", document.into_bytes())
    }
}

/// The certificate of a public authority, read again when its files change.
pub(crate) struct WebCertificate {
    certificate: PathBuf,
    key: PathBuf,
    /// What was read last.
    read: Mutex<Vec<u8>>,
    tls: Arc<ArcSwap<ServerConfig>>,
}

impl WebCertificate {
    pub(crate) fn open(certificate: &Path, key: &Path) -> Result<Self, EndpointError> {
        let (config, read) = load(certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            read: Mutex::new(read),
            tls: Arc::new(ArcSwap::new(config)),
        })
    }

    pub(crate) fn tls(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.tls.clone()
    }

    /// Looks at the files again and again until everything stops.
    pub(crate) async fn keep(self: Arc<Self>, test: bool, tasks: Tasks) {
        let stopped = tasks.stopped();
        tokio::pin!(stopped);
        let pause = if test { RELOAD_IN_TESTS } else { RELOAD };
        loop {
            crate::task::select! {
                () = &mut stopped => return,
                () = tokio::time::sleep(pause) => {}
            }
            let this = self.clone();
            let _ = task::blocking(move || this.reload()).await;
        }
    }

    /// Takes up changed files. What cannot be used leaves the old ones in force: two files do not change in one moment.
    fn reload(&self) {
        match load(&self.certificate, &self.key) {
            Ok((config, now)) => {
                let mut read = self.read.lock();
                if *read != now {
                    *read = now;
                    self.tls.store(config);
                    tracing::info!(certificate = %self.certificate.display(), "the bundle endpoint has a new certificate");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the bundle endpoint goes on with the certificate that it has");
            }
        }
    }
}

fn load(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Vec<u8>), EndpointError> {
    let unfit = |path: &Path, why: String| EndpointError(format!("{}: {why}", path.display()));
    let found = std::fs::metadata(certificate).map_err(|error| unfit(certificate, error.to_string()))?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(unfit(certificate, "not a file of at most 256 KiB".to_owned()));
    }
    let pem = std::fs::read(certificate).map_err(|error| unfit(certificate, error.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unfit(certificate, format!("not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(unfit(certificate, "it holds no certificate (PEM)".to_owned()));
    }
    let secret =
        keys::read_given(key, MAX_FILE).map_err(|error: KeyError| EndpointError(error.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|error| unfit(key, format!("it holds no private key (PEM): {error}")))?;
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| EndpointError(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| {
            unfit(certificate, format!("it does not go with the key {}: {error}", key.display()))
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Of the key its digest: it is compared, not kept.
    let digest = postern_ca::csr::fingerprint(&secret);
    Ok((Arc::new(config), [&pem[..], &digest].concat()))
}

/// Why the endpoint has no certificate.
#[derive(Debug, thiserror::Error)]
#[error("federation: the bundle endpoint's certificate: {0}")]
pub struct EndpointError(String);
