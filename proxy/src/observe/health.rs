//! `/live`, `/ready` and `/metrics`: reads only, reason codes without details.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::http::{Door, respond, text};
use crate::documents::Origin;
use crate::drain::Phase;
use crate::sidecar::Sidecar;

/// Anybody may knock here, so nobody stays.
pub const DOOR: Door = Door { name: "health", whole: Duration::from_secs(10) };

/// Why the sidecar is not ready, as stable codes; empty when it is.
pub fn unready(sidecar: &Sidecar) -> Vec<&'static str> {
    let snapshot = sidecar.snapshots.load();
    let mut codes = Vec::new();
    match &snapshot.identity {
        None => codes.push("no_identity"),
        Some(own) if own.identity.svid.not_after() <= sidecar.clock.wall() => codes.push("identity_expired"),
        Some(_) => {}
    }
    if snapshot.policy.is_none() {
        codes.push(snapshot.without_policy().label());
    }
    if sidecar.has_lost_worker() {
        codes.push("worker_lost");
    }
    if sidecar.config.capture.is_some() {
        codes.extend(sidecar.capture.unready());
    }
    if sidecar.drain.phase() != Phase::Serving {
        codes.push("draining");
    }
    codes
}

/// What a person should know although the sidecar is ready.
pub fn notes(sidecar: &Sidecar) -> Vec<&'static str> {
    let mut codes = Vec::new();
    {
        let history = sidecar.history.lock();
        if history.refused.is_some() {
            codes.push("documents_refused");
        }
        if history.origin == Some(Origin::Store) {
            codes.push("documents_from_store");
        }
        if history.unstored.is_some() {
            codes.push("documents_unstored");
        }
        if history.pinned.is_some() {
            codes.push("policy_pinned");
        }
    }
    if sidecar.glass.is_broken() {
        codes.push("policy_open");
    }
    if sidecar.agent.lock().as_ref().is_some_and(|agent| !agent.status().connected) {
        codes.push("control_plane_unreachable");
    }
    if sidecar.config.test {
        codes.push("test_mode");
    }
    codes
}

/// Answers a request to the health listener.
pub fn answer<B>(sidecar: &Arc<Sidecar>, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" => {
            let codes = unready(sidecar);
            let (status, mut answer) = if codes.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", codes.join(" ")))
            };
            for note in notes(sidecar) {
                answer.push_str("note: ");
                answer.push_str(note);
                answer.push('\n');
            }
            text(status, answer)
        }
        "/metrics" => respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            sidecar.metrics.render().into(),
        ),
        _ => text(StatusCode::NOT_FOUND, "/live /ready /metrics\n"),
    }
}
