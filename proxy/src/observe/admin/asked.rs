//! One decision by its id, with what the same caller would be answered; and the documents as they were read.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use postern_policy::norm::{CanonPath, PathOptions};
use postern_policy::{Explanation, Generation, Operation, Source};
use serde_json::{Value, json};

use super::{failed, ok, pages};
use crate::connections::Direction;
use crate::decisions::{Decision, Found, Subject};
use crate::sidecar::Sidecar;

/// `GET /v1/decisions/ID`.
pub(super) async fn decision(sidecar: &Arc<Sidecar>, id: &str) -> Response<Full<Bytes>> {
    let lost = |status: StatusCode, code: &str, text: String| {
        super::answer_json(status, &json!({ "error": text, "code": code }))
    };
    let decision = match sidecar.decisions.find(id) {
        Found::Kept(decision) => *decision,
        Found::NotAnId => {
            let text = format!("{id:?} is no decision id: they look like 12-00a1b2-3f");
            return lost(StatusCode::BAD_REQUEST, "not_an_id", text);
        }
        Found::OtherRun => {
            let text = "this decision is of another sidecar, or of this one before it started anew: ask the one whose log has it";
            return lost(StatusCode::NOT_FOUND, "other_run", text.to_owned());
        }
        Found::NotYet => {
            let text = "this sidecar has not made that decision".to_owned();
            return lost(StatusCode::NOT_FOUND, "never_made", text);
        }
        Found::Forgotten => {
            let text = "this decision is forgotten: the last 1024 denials and the last 1024 allowances are kept; the decision log has more";
            return lost(StatusCode::GONE, "forgotten", text.to_owned());
        }
    };
    let sidecar = Arc::clone(sidecar);
    let made = crate::runtime::blocking(move || ok(&page(&sidecar, &decision))).await;
    made.unwrap_or_else(|error| failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

fn page(sidecar: &Sidecar, decision: &Decision) -> Value {
    let generation = sidecar.history.lock().generation(decision.id.generation).cloned();
    let mut page = json!({ "decision": pages::decision(sidecar, decision) });
    let rule = decision.verdict.and_then(|verdict| verdict.rule);
    page["rule"] = match (&generation, rule) {
        (Some(generation), Some(rule)) => json!(generation.rule(rule)),
        _ => Value::Null,
    };
    if let Some(why) = decision.without.and_then(|without| without.token) {
        page["note"] = format!(
            "no rule was asked, because a token of the request does not hold: {why}; nothing of it is kept"
        )
        .into();
        return page;
    }
    match generation.as_deref().map(|generation| explain(sidecar, generation, &decision.subject)) {
        Some(Ok(explanation)) => {
            page["text"] = explanation.to_string().into();
            page["explanation"] = json!(explanation);
            page["note"] = "as the rules of that generation answer this caller; host, header fields and server names are not kept, and hours are those of now".into();
        }
        Some(Err(why)) => page["note"] = why.into(),
        None => {
            page["note"] = format!("generation {} is not kept any more", decision.id.generation).into();
        }
    }
    page
}

/// What `generation` answers the subject, as far as it is remembered.
fn explain(
    sidecar: &Sidecar,
    generation: &Generation,
    subject: &Subject,
) -> Result<Explanation, &'static str> {
    if subject.direction == Direction::Outbound {
        return Err("calls of the workload itself are not explained");
    }
    let source = Source { identity: subject.peer.as_ref(), address: subject.address.ip() };
    let Some((method, path)) = subject.request() else {
        return Ok(generation.explain(source, subject.port, Operation::Tcp));
    };
    let path = path.ok_or("the path was too long to be kept whole")?;
    let defaults: PathOptions = generation.defaults().path;
    let options = sidecar.config.workload.path_options(subject.port, defaults);
    let path = CanonPath::parse_for(method, path, &options).map_err(|_| "the path cannot be read again")?;
    Ok(generation.explain(source, subject.port, Operation::http(method, &path)))
}

/// `GET /v1/policy/documents`, with `?generation=N` of that one: file by file as they were read.
pub(super) async fn documents<B>(sidecar: &Arc<Sidecar>, request: &Request<B>) -> Response<Full<Bytes>> {
    let wanted = match request.uri().query().map(|query| query.strip_prefix("generation=").map(str::parse)) {
        None => None,
        Some(Some(Ok(number))) => Some(number),
        Some(_) => return failed(StatusCode::BAD_REQUEST, "the only parameter is generation=NUMBER"),
    };
    let found = {
        let history = sidecar.history.lock();
        let number = wanted.or_else(|| history.newest().map(|newest| newest.number()));
        number.and_then(|number| Some((number, Arc::clone(history.set(number)?))))
    };
    let Some((number, set)) = found else {
        return failed(StatusCode::NOT_FOUND, "no documents of such a generation are kept");
    };
    let config = &sidecar.config;
    let workload = json!({
        "namespace": config.namespace, "serviceAccount": config.service_account, "labels": config.workload.labels,
    });
    let head = json!({
        "generation": number,
        "digest": set.digest,
        "trustDomain": config.identity.trust_domain().as_str(),
        "rootNamespace": config.root_namespace,
        "workload": workload,
    });
    let made = crate::runtime::blocking(move || {
        let mut page = head;
        let file = |file: &Arc<postern_policy::SourceFile>| json!({ "name": file.name, "text": String::from_utf8_lossy(&file.text) });
        page["files"] = set.files.iter().map(file).collect();
        ok(&page)
    });
    made.await.unwrap_or_else(|error| failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}
