//! What an operator changes by hand: earlier documents back in force, glass broken and mended.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::{failed, ok, question, rfc3339};
use crate::documents::opening::Opening;
use crate::documents::{Command, Done, Refusal};
use crate::sidecar::Sidecar;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackQuestion {
    to: Option<u64>,
}

pub(super) async fn roll_back(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match question::<RollbackQuestion>(request).await {
        Ok(asked) => command(sidecar, Command::Rollback(asked.to)).await,
        Err(refusal) => *refusal,
    }
}

pub(super) async fn resume(sidecar: &Sidecar) -> Response<Full<Bytes>> {
    command(sidecar, Command::Resume).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenQuestion {
    namespace: String,
    #[serde(default)]
    from: Vec<String>,
    reason: String,
    by: Option<String>,
    seconds: u64,
}

pub(super) async fn open(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let OpenQuestion { namespace, from, reason, by, seconds } = match question(request).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match Opening::new(&namespace, &from, &reason, by.as_deref(), Duration::from_secs(seconds)) {
        Ok(opening) => command(sidecar, Command::Open(opening)).await,
        Err(text) => failed(StatusCode::BAD_REQUEST, &text),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseQuestion {
    /// All, if it is not given.
    name: Option<String>,
}

pub(super) async fn close(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match question::<CloseQuestion>(request).await {
        Ok(asked) => command(sidecar, Command::Close(asked.name)).await,
        Err(refusal) => *refusal,
    }
}

async fn command(sidecar: &Sidecar, command: Command) -> Response<Full<Bytes>> {
    match sidecar.steering.ask(command).await {
        Ok(Done::RolledBack { generation, to }) => ok(&json!({ "generation": generation, "to": to })),
        Ok(Done::Resumed { generation, is_followed }) => {
            ok(&json!({ "generation": generation, "followed": is_followed }))
        }
        Ok(Done::Opened { name, until, generation }) => {
            ok(&json!({ "name": name, "until": rfc3339(until), "generation": generation }))
        }
        Ok(Done::Closed { generation }) => ok(&json!({ "generation": generation })),
        Err(Refusal::Bad(text)) => failed(StatusCode::BAD_REQUEST, &text),
        Err(Refusal::Unknown(text)) => failed(StatusCode::NOT_FOUND, &text),
        Err(Refusal::Conflict(text)) => failed(StatusCode::CONFLICT, &text),
    }
}
