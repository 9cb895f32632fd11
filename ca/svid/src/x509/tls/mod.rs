//! TLS configurations of the mesh.
//!
//! TLS 1.3 only, X25519MLKEM768 and AES-128-GCM first, aws-lc-rs named explicitly and never the process default. No
//! session resumption on either side: rustls takes the peer's chain out of the ticket without verifying it again, so a
//! peer would outlive its certificate, its revocation and a change of roots.

mod refusal;
mod verifier;

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::UNIX_EPOCH;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};

pub use refusal::{explain, refusal};

use super::bundle::Bundles;
use super::cert::Facts;
use super::error::VerifyError;
use super::lint;
use super::svid::Svid;
use super::verify::PeerSvid;
use crate::{Clock, SpiffeId};
use verifier::{ClientVerifier, Roots, ServerVerifier};

/// For a mesh listener: the client must present an SVID that one of `bundles` vouches for.
pub fn server_config(
    svid: &Svid,
    bundles: &Bundles,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, ConfigError> {
    server(svid, ClientVerifier::new(bundles.clone(), true), clock, alpn)
}

/// For the identity API: a client may come without a certificate, because it has none yet, but one that it presents
/// must verify.
pub fn server_config_optional_client(
    svid: &Svid,
    bundles: &Bundles,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, ConfigError> {
    server(svid, ClientVerifier::new(bundles.clone(), false), clock, alpn)
}

/// For an endpoint that anybody may read: no client is asked for a certificate.
pub fn server_config_any_client(
    svid: &Svid,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, ConfigError> {
    let config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::Rustls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key().clone())));
    Ok(without_resumption(config, alpn))
}

/// For a dialer: the server must present the SVID of one of `expected`, and no other. The server name given when
/// connecting is ignored and not sent.
pub fn client_config(
    svid: Option<&Svid>,
    bundles: &Bundles,
    expected: &[SpiffeId],
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, ConfigError> {
    client(svid, Roots::Bundles(bundles.clone()), expected, clock, alpn)
}

/// For a first contact that knows the trust domain's root only by the SHA-256 of its DER: the chain as the server sends
/// it must contain that very certificate, and the path must end in it. `expected` must name one trust domain.
pub fn client_config_pinned(
    root_sha256: [u8; 32],
    expected: &[SpiffeId],
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, ConfigError> {
    client(None, Roots::Pinned(root_sha256), expected, clock, alpn)
}

/// Who the peer of a connection is, from the chain that its handshake has verified
/// (`ServerConnection::peer_certificates` and its like). It does not verify again.
pub fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerSvid, VerifyError> {
    let leaf = certificates.and_then(|chain| chain.first()).ok_or(VerifyError::NoCertificate)?;
    let facts = Facts::parse(leaf)?;
    let id = lint::spiffe_id(&facts)?;
    lint::leaf(&facts, &[])?;
    Ok(PeerSvid::from_leaf(id, facts))
}

/// The one cryptography of the mesh, in the order of our preference.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            signature_verification_algorithms: verifier::HANDSHAKE_SIGNATURES,
            ..default_provider()
        })
    });
    PROVIDER.clone()
}

fn client(
    svid: Option<&Svid>,
    roots: Roots,
    expected: &[SpiffeId],
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, ConfigError> {
    if expected.is_empty() {
        return Err(ConfigError::NobodyExpected);
    }
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::Rustls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(roots, expected.to_vec())));
    let mut config = match svid {
        Some(svid) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key().clone())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

fn server(
    svid: &Svid,
    verifier: ClientVerifier,
    clock: Arc<dyn Clock>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, ConfigError> {
    let config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::Rustls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key().clone())));
    Ok(without_resumption(config, alpn))
}

fn without_resumption(mut config: ServerConfig, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// Why a configuration cannot be made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// A dialer without an expected id would accept anybody.
    NobodyExpected,
    /// rustls refuses.
    Rustls(rustls::Error),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyExpected => f.write_str("no expected SPIFFE id was given for the peer"),
            Self::Rustls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The clock of the mesh as rustls asks for it, so that tests move certificates and handshakes together.
struct WallTime(Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.wall().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallTime")
    }
}
