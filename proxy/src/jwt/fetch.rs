//! A set of keys from a file or a server. A server is asked for one small answer, within one deadline, and never sends
//! anywhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HOST, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::jwk::MAX_SET;
use crate::net;
use crate::roots;
use crate::runtime::Owned;

/// For everything: name, connection, handshake, answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a server answered.
pub(super) struct Fetched {
    pub(super) body: Bytes,
    /// `Cache-Control: max-age`, if it says so.
    pub(super) max_age: Option<Duration>,
}

/// Reads a file of keys.
pub(super) async fn file(path: &str) -> Result<Vec<u8>, String> {
    roots::bounded(path, MAX_SET).await.map_err(|error| format!("{path}: {error}"))
}

/// Asks a server.
pub(super) async fn url(url: &str, ca_file: Option<&str>) -> Result<Fetched, String> {
    tokio::time::timeout(DEADLINE, ask(url, ca_file))
        .await
        .map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))?
}

async fn ask(url: &str, ca_file: Option<&str>) -> Result<Fetched, String> {
    let uri: Uri = url.parse().map_err(|error| format!("no URL: {error}"))?;
    let authority = uri.authority().ok_or("the URL has no host")?;
    let is_tls = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let addresses =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut failed = format!("{host} has no address");
    for address in addresses {
        // The document's `http` is for the machine itself; its own name for itself could have been given away.
        if !is_tls && !address.ip().is_loopback() {
            return Err(format!("{host} is {}, which is not this machine: http is not used", address.ip()));
        }
        match connect(address).await {
            Ok(stream) if is_tls => {
                let stream = handshake(stream, host, ca_file).await?;
                return exchange(stream, &uri).await;
            }
            Ok(stream) => return exchange(stream, &uri).await,
            Err(error) => failed = format!("{address}: {error}"),
        }
    }
    Err(failed)
}

/// One of several addresses must not take all the time.
async fn connect(address: SocketAddr) -> std::io::Result<net::TcpStream> {
    tokio::time::timeout(DEADLINE / 4, net::connect(address)).await.map_err(std::io::Error::other)?
}

async fn handshake(
    stream: net::TcpStream,
    host: &str,
    ca_file: Option<&str>,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots::read(ca_file).await?)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name of a server"))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
}

async fn exchange<S>(stream: S, uri: &Uri) -> Result<Fetched, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let _driver = Owned::spawn(async move {
        let _ = connection.await;
    });
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "postern")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response: Response<Incoming> = sender.send_request(request).await.map_err(http)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(format!(
            "the server answers {status}: redirects are not followed, name the place itself"
        ));
    }
    if status != StatusCode::OK {
        return Err(format!("the server answers {status}"));
    }
    let max_age = response.headers().get(CACHE_CONTROL).and_then(|value| max_age(value.as_bytes()));
    let body = Limited::new(response.into_body(), MAX_SET);
    let body = body.collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return format!("the answer is larger than {} KiB", MAX_SET >> 10);
        }
        format!("HTTP: {error}")
    })?;
    Ok(Fetched { body: body.to_bytes(), max_age })
}

/// Seconds for which an answer may be kept; 0 if it may not be.
fn max_age(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.to_ascii_lowercase();
    let mut directives = text.split(',').map(str::trim);
    if directives.clone().any(|directive| directive == "no-store" || directive == "no-cache") {
        return Some(Duration::ZERO);
    }
    let seconds = directives.find_map(|directive| directive.strip_prefix("max-age="))?;
    seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_an_answer_may_be_kept() {
        for (value, seconds) in [
            ("max-age=600", Some(600)),
            ("public, Max-Age=60, must-revalidate", Some(60)),
            ("no-cache, max-age=60", Some(0)),
            ("no-store", Some(0)),
            ("private", None),
            ("max-age=-1", None),
            ("max-age=99999999999999999999999", None),
            ("s-maxage=9", None),
        ] {
            assert_eq!(max_age(value.as_bytes()), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
