//! Probes of an orchestrator's, asked by the sidecar: who asks them proves nothing, and so could not reach the workload's
//! own port. Only what the configuration names is asked for, and nothing but whether it went well is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::health;
use super::http::text;
use crate::config::Probe;
use crate::net;
use crate::runtime::Owned;
use crate::sidecar::Sidecar;

/// Whoever asks has a patience of its own, most often of a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers a request to the health listener.
pub async fn answer<B>(sidecar: Arc<Sidecar>, request: Request<B>) -> Response<Full<Bytes>> {
    let asked = request.uri().path_and_query().map_or("", |path| path.as_str());
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match sidecar.config.probes.iter().find(|probe| is_read && probe.place() == asked) {
        Some(probe) => ask(&sidecar, probe).await,
        None => health::answer(&sidecar, &request),
    }
}

async fn ask(sidecar: &Sidecar, probe: &Probe) -> Response<Full<Bytes>> {
    let Ok(_turn) = probe.turn.try_acquire() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the question before this one is not answered yet\n");
    };
    let to = SocketAddr::new(sidecar.config.forwarded_to(None), probe.port);
    match timeout(PATIENCE, went_well(to, probe)).await {
        Ok(Ok(true)) => text(StatusCode::OK, "ok\n"),
        Ok(Ok(false)) => text(StatusCode::SERVICE_UNAVAILABLE, "the workload says that it is not well\n"),
        Ok(Err(_)) | Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the workload does not answer\n"),
    }
}

/// Whether the workload accepts, and answers with a status from 200 to 399. A redirect is not followed: it could lead
/// anywhere.
async fn went_well(to: SocketAddr, probe: &Probe) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let stream = net::connect(to).await?;
    let Some(path) = &probe.path else {
        return Ok(true);
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = Owned::spawn(async move {
        let _ = connection.await;
    });
    let request = Request::get(path.as_str())
        .header(HOST, to.to_string())
        .header(USER_AGENT, "postern-probe")
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    Ok(status.is_success() || status.is_redirection())
}
