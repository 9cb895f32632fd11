//! The admin socket: everything about this sidecar, as JSON, for whoever may open a file of mode 0600.
//!
//! `docs/admin.md` is the schema. Fields are added, never renamed or removed, within `/v1`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixListener;

use super::http::{Door, json as answer_json, listen};
use super::{health, log};
use crate::sidecar::Sidecar;

mod asked;
mod explain;
mod live;
mod pages;
mod steer;

/// Longest question that `POST` and `PUT` take.
const MAX_QUESTION: usize = 64 << 10;
const DOOR: Door = Door { name: "admin", whole: Duration::from_secs(60) };

/// Binds the socket, mode 0600, replacing one that a dead sidecar left behind but never a live one's.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another sidecar answers there"));
    }
    // Made under another name and moved: between bind and chmod the final name must not exist.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves the socket.
pub async fn run(sidecar: Arc<Sidecar>, listener: UnixListener) {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = Arc::clone(&listener);
        async move { listener.accept().await.map(|(stream, _)| stream) }
    };
    let handler = {
        let sidecar = Arc::clone(&sidecar);
        move |request| {
            let sidecar = Arc::clone(&sidecar);
            async move { answer(&sidecar, request).await }
        }
    };
    listen(sidecar, DOOR, accept, handler).await;
}

async fn answer(sidecar: &Arc<Sidecar>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::PUT, "/v1/log") => put_log(request).await,
        (&Method::POST, "/v1/policy/explain") => explain::explain(sidecar, request).await,
        (&Method::POST, "/v1/policy/rollback") => steer::roll_back(sidecar, request).await,
        (&Method::POST, "/v1/policy/resume") => steer::resume(sidecar).await,
        (&Method::POST, "/v1/policy/open") => steer::open(sidecar, request).await,
        (&Method::POST, "/v1/policy/close") => steer::close(sidecar, request).await,
        // Not on the port: the workload need not read what is written about others.
        (&Method::GET, "/v1/policy/documents") => asked::documents(sidecar, &request).await,
        (&Method::POST, "/v1/drain") => {
            let first = sidecar.drain.begin();
            ok(&json!({ "draining": true, "begun": first }))
        }
        (&Method::GET, _) => show(sidecar, &request).await,
        (_, known) if PATHS.contains(&known) => other_method(),
        _ => unknown_path(),
    }
}

/// Answers a question that changes nothing. What is shown here the workload may see: no key, no token, nothing of other
/// workloads' calls.
pub(super) async fn show<B: Sync>(sidecar: &Arc<Sidecar>, request: &Request<B>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/live" | "/ready" | "/metrics" => health::answer(sidecar, request),
        "/v1/version" => ok(&pages::version()),
        "/v1/config" => ok(&pages::config(sidecar)),
        "/v1/identity" => ok(&pages::identity(sidecar)),
        "/v1/policy" => heavy(sidecar, pages::policy).await,
        "/v1/services" => heavy(sidecar, pages::services).await,
        "/v1/jwt" => ok(&pages::jwt(sidecar)),
        "/v1/connections" => heavy(sidecar, live::connections).await,
        "/v1/limits" => heavy(sidecar, live::limits).await,
        "/v1/decisions" => heavy(sidecar, pages::decisions).await,
        "/v1/log" => ok(&json!({ "level": log::level() })),
        known if PATHS.contains(&known) => other_method(),
        path => match path.strip_prefix("/v1/decisions/") {
            Some(id) => asked::decision(sidecar, id).await,
            None => unknown_path(),
        },
    }
}

/// A page that may be long: made beside this thread, which renews the certificate and follows the documents, and one at a
/// time, whoever asks.
async fn heavy(sidecar: &Arc<Sidecar>, page: fn(&Sidecar) -> Value) -> Response<Full<Bytes>> {
    let failure = |error: String| failed(StatusCode::INTERNAL_SERVER_ERROR, &error);
    let turn = match Arc::clone(&sidecar.heavy_page).acquire_owned().await {
        Ok(turn) => turn,
        Err(error) => return failure(error.to_string()),
    };
    let sidecar = Arc::clone(sidecar);
    let made = crate::runtime::blocking(move || {
        let answer = ok(&page(&sidecar));
        // Whoever asked may be gone, and this not yet.
        drop(turn);
        answer
    });
    made.await.unwrap_or_else(|error| failure(error.to_string()))
}

const PATHS: [&str; 17] = [
    "/v1/version",
    "/v1/config",
    "/v1/identity",
    "/v1/policy",
    "/v1/policy/explain",
    "/v1/policy/rollback",
    "/v1/policy/resume",
    "/v1/policy/open",
    "/v1/policy/close",
    "/v1/policy/documents",
    "/v1/services",
    "/v1/jwt",
    "/v1/connections",
    "/v1/decisions",
    "/v1/limits",
    "/v1/log",
    "/v1/drain",
];

fn ok(value: &Value) -> Response<Full<Bytes>> {
    answer_json(StatusCode::OK, value)
}

fn other_method() -> Response<Full<Bytes>> {
    failed(StatusCode::METHOD_NOT_ALLOWED, "this path has another method")
}

fn unknown_path() -> Response<Full<Bytes>> {
    failed(StatusCode::NOT_FOUND, &format!("there is {}", PATHS.join(" ")))
}

/// An error in JSON.
pub(super) fn failed(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    answer_json(status, &json!({ "error": error }))
}

/// 0 stands for none yet.
fn status(answered: u16) -> Option<u16> {
    Some(answered).filter(|status| *status != 0)
}

async fn question<T: for<'de> Deserialize<'de>>(
    request: Request<Incoming>,
) -> Result<T, Box<Response<Full<Bytes>>>> {
    let bad = |text: String| Box::new(failed(StatusCode::BAD_REQUEST, &text));
    let body = Limited::new(request.into_body(), MAX_QUESTION)
        .collect()
        .await
        .map_err(|error| bad(format!("the question cannot be read: {error}")))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|error| bad(format!("the question is no such JSON: {error}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuestion {
    level: String,
}

async fn put_log(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let wanted: LogQuestion = match question(request).await {
        Ok(wanted) => wanted,
        Err(refusal) => return *refusal,
    };
    match log::set_level(&wanted.level) {
        Ok(()) => ok(&json!({ "level": log::level() })),
        Err(error) => failed(StatusCode::BAD_REQUEST, &error),
    }
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
