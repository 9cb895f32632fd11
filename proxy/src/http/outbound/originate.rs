//! TLS to what is outside of the mesh, opened here so that the workload need not, and its requests can be read and judged.
//! The mesh's own trust has no part in it: no SVID is shown, and none is believed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use postern_policy::{OriginateTls, Protocol};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Target;
use crate::error::{Error, Reason, Side};
use crate::net::TcpStream;
use crate::roots;
use crate::sidecar::Sidecar;
use crate::tcp::Duplex;

/// A file of authorities is read again after this long: platforms replace theirs.
const FRESH: Duration = Duration::from_secs(60);
/// Files kept; more than documents of one workload name.
const KEPT: usize = 64;

/// Configurations by the file that they trust. TLS 1.2 is among what they speak: the mesh does without, the web cannot yet.
#[derive(Default)]
pub struct Originate {
    known: Mutex<HashMap<Option<Box<str>>, Known>>,
}

struct Known {
    until: Instant,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
}

impl fmt::Debug for Originate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Originate")
    }
}

impl Originate {
    async fn config(&self, ca_file: Option<&str>, is_h2: bool) -> Result<Arc<ClientConfig>, String> {
        let now = Instant::now();
        let key = ca_file.map(Box::from);
        if let Some(known) = self.known.lock().get(&key).filter(|known| known.until > now) {
            return Ok(Arc::clone(if is_h2 { &known.h2 } else { &known.h1 }));
        }
        let roots = Arc::new(roots::read(ca_file).await?);
        let config = |alpn: &[u8]| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(Arc::clone(&roots))
                .with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            Ok::<_, String>(Arc::new(config))
        };
        let (h1, h2) = (config(b"http/1.1")?, config(b"h2")?);
        let found = Arc::clone(if is_h2 { &h2 } else { &h1 });
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, Known { until: now + FRESH, h1, h2 });
        Ok(found)
    }
}

/// Opens TLS to the host that was asked for, or to whom the Service says.
pub(super) async fn open(
    sidecar: &Sidecar,
    target: &Target,
    tls: &OriginateTls,
    stream: Outside,
    within: Duration,
) -> Result<Outside, Error> {
    let Outside::Plain(stream) = stream else { return Ok(stream) };
    // Nothing of the request was sent before TLS stands.
    let untrusted = |detail: String| Error::unsent(Side::Remote, Reason::ExternalUntrusted, detail);
    let name = tls.server_name.as_deref().or_else(|| target.port.host_for(target.host.name()));
    let name = name.ok_or_else(|| untrusted("no host says whom the certificate must be for".to_owned()))?;
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| untrusted(format!("{name} is no name that a certificate could be for")))?;
    let is_h2 = target.port.protocol != Protocol::Http;
    let config = sidecar.originate.config(tls.ca_file.as_deref(), is_h2).await.map_err(untrusted)?;
    let stream = match timeout(within, TlsConnector::from(config).connect(server, stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let is_unproven = matches!(inner, Some(rustls::Error::InvalidCertificate(_)));
            let detail = format!("TLS to {name}: {error}");
            let reason = if is_unproven { Reason::ExternalUntrusted } else { Reason::ExternalReset };
            return Err(Error::unsent(Side::Remote, reason, detail));
        }
        Err(_) => {
            sidecar.metrics.limit("handshake");
            let detail = format!("{name} does not finish the TLS handshake");
            return Err(Error::unsent(Side::Remote, Reason::ExternalUnreachable, detail));
        }
    };
    if is_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        let detail = format!("{name} does not speak HTTP/2 (ALPN): declare the port as http");
        return Err(Error::unsent(Side::Remote, Reason::ExternalReset, detail));
    }
    Ok(Outside::Tls(Box::new(stream)))
}

/// A connection out of the mesh.
pub(super) enum Outside {
    /// As it is.
    Plain(TcpStream),
    /// With TLS of the sidecar's.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Duplex for Outside {
    fn reset(&mut self) {
        match self {
            Self::Plain(stream) => stream.reset(),
            Self::Tls(stream) => stream.get_mut().0.reset(),
        }
    }
}

impl AsyncRead for Outside {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Outside {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
