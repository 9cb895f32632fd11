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
use postern_agent::{Attestation, Trust};
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{
    Effect, HeaderFields, HeaderLines, Operation, RuleId, Source, TokenSet, Upgrade, UpgradeName,
};
use postern_svid::SpiffeId;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixListener;

use super::http::{Door, json as answer_json, listen};
use super::{health, log};
use crate::config::LogFormat;
use crate::decisions::Decision;
use crate::sidecar::Sidecar;

mod asked;
mod live;
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
        (&Method::POST, "/v1/policy/explain") => explain(sidecar, request).await,
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
        "/v1/version" => ok(&version()),
        "/v1/config" => ok(&config(sidecar)),
        "/v1/identity" => ok(&identity(sidecar)),
        "/v1/policy" => heavy(sidecar, policy).await,
        "/v1/services" => heavy(sidecar, services).await,
        "/v1/jwt" => ok(&jwt(sidecar)),
        "/v1/connections" => heavy(sidecar, live::connections).await,
        "/v1/limits" => heavy(sidecar, live::limits).await,
        "/v1/decisions" => heavy(sidecar, decisions).await,
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
    let made = tokio::task::spawn_blocking(move || {
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

fn version() -> Value {
    json!({ "name": "postern-proxy", "version": env!("CARGO_PKG_VERSION"), "transport": "postern/1" })
}

fn config(sidecar: &Sidecar) -> Value {
    let config = &sidecar.config;
    let ports: Vec<Value> = config
        .workload
        .ports
        .iter()
        .map(|(port, protocol)| {
            let upgrades = config.workload.upgrades.get(port).into_iter().flatten();
            let upgrades: Vec<&str> = upgrades.map(UpgradeName::as_str).collect();
            json!({ "port": port, "protocol": protocol.as_str(), "upgrades": upgrades })
        })
        .collect();
    let trust = match &config.trust {
        Trust::Bundle(path) => json!({ "trustBundle": path }),
        Trust::RootSha256(digest) => json!({ "rootSha256": hex(digest) }),
    };
    // Where the token is, never what it says.
    let join_token = match &config.attestation {
        Attestation::JoinToken(path) => json!(path),
        Attestation::JoinTokenDescriptor(descriptor) => json!({ "descriptor": descriptor }),
    };
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    json!({
        "identity": config.identity.as_str(),
        "stateDir": config.state_dir,
        "controlPlane": {
            "address": config.control_plane,
            "spiffeId": config.control_plane_id.as_str(),
            "trust": trust,
            "joinToken": join_token,
        },
        "workload": { "address": config.workload.address, "ports": ports, "labels": config.workload.labels },
        "inbound": { "address": config.inbound },
        "outbound": { "address": config.outbound },
        "health": { "address": config.health },
        "admin": { "socket": config.admin_socket, "address": config.admin_port },
        "documents": config.documents,
        "rootNamespace": config.root_namespace,
        "workers": config.workers,
        "test": config.test,
        "log": { "level": config.log.level, "format": format },
        "decisionLog": config.decision_log.as_ref().map(|log| {
            json!({
                "path": log.path, "stdout": log.path.is_none(),
                "sample": { "allow": log.allow, "deny": log.deny },
                "maxBytesPerSecond": log.max_bytes_per_second,
                "rotate": { "bytes": log.rotate_bytes, "keep": log.rotate_keep },
                "showHeaders": log.show_headers,
            })
        }),
        "limits": config.limits.shown(),
    })
}

fn identity(sidecar: &Sidecar) -> Value {
    let agent = sidecar.agent.lock().as_ref().map(postern_agent::Observer::status);
    let control_plane = agent.map_or(Value::Null, |status| {
        json!({
            "connected": status.connected,
            "lastError": status.last_error.or(status.last_stream_error),
            "nextRenewal": status.next_renewal.map(rfc3339),
            "lastSuccess": status.last_success.map(rfc3339),
            "issued": status.issued,
            "failures": status.failures,
            "clockSkewMs": status.clock_skew_ms,
        })
    });
    let snapshot = sidecar.snapshots.load();
    let Some(own) = &snapshot.identity else {
        return json!({ "id": sidecar.config.identity.as_str(), "serial": null, "controlPlane": control_plane });
    };
    let svid = &own.identity.svid;
    let trust_domain = svid.id().trust_domain();
    let bundle = own.identity.bundles.of_trust_domain(&trust_domain).map(|bundle| {
        json!({ "trustDomain": trust_domain.as_str(), "sequence": bundle.sequence(), "roots": bundle.roots().len() })
    });
    json!({
        "id": svid.id().as_str(),
        "serial": hex(svid.serial()),
        "issuerKeyId": hex(svid.issuer_key_id()),
        "notBefore": rfc3339(svid.not_before()),
        "notAfter": rfc3339(svid.not_after()),
        "generation": own.identity.generation,
        "bundle": bundle,
        "controlPlane": control_plane,
    })
}

fn policy(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let history = sidecar.history.lock();
    let refused = history.refused.as_ref().map(|refused| {
        json!({
            "at": rfc3339(refused.at),
            "digest": refused.digest,
            "text": refused.diagnostics.to_string(),
            "diagnostics": refused.diagnostics.iter().collect::<Vec<_>>(),
        })
    });
    let remembered: Vec<Value> = history
        .remembered()
        .map(|one| {
            let (digest, loaded_at) = (&one.digest, rfc3339(one.loaded_at));
            json!({ "generation": one.number, "digest": digest, "loadedAt": loaded_at, "source": one.origin.label() })
        })
        .collect();
    let newest = history.remembered().next();
    json!({
        "generation": snapshot.policy.as_ref().map(|generation| generation.number()),
        "digest": newest.map(|one| one.digest.as_str()),
        "loadedAt": newest.map(|one| rfc3339(one.loaded_at)),
        "documents": snapshot.policy.as_ref().map(|generation| generation.documents()),
        "warnings": snapshot.policy.as_ref().map(|generation| generation.warnings().iter().collect::<Vec<_>>()),
        "source": history.origin.map(crate::documents::Origin::label),
        "storedDigest": history.stored,
        "unstored": history.unstored,
        "storeError": history.store_error,
        "lastError": refused,
        "pinned": history.pinned.as_ref().map(|pin| {
            json!({ "to": pin.to, "since": rfc3339(pin.since), "waitingDigest": pin.waiting })
        }),
        "stale": snapshot.is_stale,
        "confirmedAt": history.confirmed.map(|confirmed| rfc3339(confirmed.wall)),
        "open": sidecar.glass.open(),
        "opened": history.opened,
        "kept": history.kept().collect::<Vec<_>>(),
        "history": remembered,
    })
}

fn services(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let services: Vec<Value> = snapshot
        .policy
        .iter()
        .flat_map(|generation| generation.services().iter())
        .filter_map(|service| serde_json::to_value(service).ok())
        .collect();
    json!({ "services": services })
}

fn decisions(sidecar: &Sidecar) -> Value {
    let decisions: Vec<Value> = sidecar.decisions.recent().iter().map(|one| decision(sidecar, one)).collect();
    json!({ "decisions": decisions })
}

fn decision(sidecar: &Sidecar, decision: &Decision) -> Value {
    let subject = &decision.subject;
    let (method, path) = subject.method_and_path();
    // A rule's name is looked up in its own generation: numbers mean nothing in another.
    let name = |rule: Option<RuleId>| {
        let history = sidecar.history.lock();
        Some(history.generation(decision.id.generation)?.rule(rule?).to_string())
    };
    let verdict = decision.verdict;
    let rule = decision.rule.clone().or_else(|| name(verdict?.rule));
    let shadow = verdict.and_then(|verdict| verdict.shadow).map(|would| {
        let effect = if would.effect == Effect::Allow { "allow" } else { "deny" };
        json!({ "effect": effect, "rule": name(would.rule) })
    });
    let audit = name(verdict.and_then(|verdict| verdict.audit));
    json!({
        "id": decision.id.to_string(),
        "at": rfc3339(decision.at),
        "effect": if decision.is_allowed() { "allow" } else { "deny" },
        "reason": decision.reason(),
        "tokenError": decision.without.and_then(|without| without.token),
        "rule": rule,
        "limit": decision.limit,
        "shadow": shadow,
        "audit": audit,
        "generation": decision.id.generation,
        "direction": subject.direction.label(),
        "peer": subject.peer.as_ref().map(SpiffeId::as_str),
        "address": subject.address,
        "destination": subject.destination,
        "host": subject.host,
        "port": subject.port,
        "method": method,
        "path": path,
        "status": status(subject.status()),
    })
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

/// `method` and `path` for a request, neither for opaque TCP.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuestion {
    from: Option<String>,
    address: Option<std::net::IpAddr>,
    port: u16,
    method: Option<String>,
    path: Option<String>,
    /// Not known if it is not given; so are the fields.
    host: Option<String>,
    headers: Option<Vec<(String, String)>>,
    /// Claims of a token, or the word `unverified`; without it there is none.
    claims: Option<serde_json::Value>,
    #[serde(default)]
    websocket: bool,
    /// Another upgrade than `websocket`.
    upgrade: Option<String>,
    /// Without a method: TLS with this server name; empty for none.
    sni: Option<String>,
}

async fn explain(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let asked: ExplainQuestion = match question(request).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let Some(generation) = sidecar.snapshots.load().policy.clone() else {
        let reason = sidecar.snapshots.load().without_policy().label();
        let text = format!("no policy is in force ({reason}): everything is denied");
        return failed(StatusCode::CONFLICT, &text);
    };
    let bad = |text: String| failed(StatusCode::BAD_REQUEST, &text);
    let identity = match asked.from.as_deref().map(SpiffeId::parse).transpose() {
        Ok(identity) => identity,
        Err(error) => return bad(format!("from: {error}")),
    };
    let address = asked.address.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    let source = Source { identity: identity.as_ref(), address };
    let explanation = match (&asked.method, &asked.path) {
        (None, None) => {
            let sni = asked.sni.as_deref().map(|name| (!name.is_empty()).then(|| CanonHost::parse(name)));
            match sni.map(Option::transpose).transpose() {
                Ok(None) => generation.explain(source, asked.port, Operation::Tcp),
                Ok(Some(sni)) => generation.explain(source, asked.port, Operation::Tls { sni: sni.as_ref() }),
                Err(error) => return bad(format!("sni: {error}")),
            }
        }
        (Some(method), Some(path)) => {
            let method = match CanonMethod::parse(method) {
                Ok(method) => method,
                Err(error) => return bad(format!("method: {error}")),
            };
            let options = sidecar.config.workload.path_options(asked.port, generation.defaults().path);
            let path = CanonPath::parse_for(&method, path, &options)
                .and_then(|path| generation.check_path(asked.port, &path).map(|()| path));
            let path = match path {
                Ok(path) => path,
                Err(error) => return bad(format!("path: {error}")),
            };
            let upgrade = match asked.upgrade.as_deref().map(Upgrade::parse).transpose() {
                Ok(upgrade) => upgrade.or_else(|| asked.websocket.then_some(Upgrade::WebSocket)),
                Err(error) => return bad(format!("upgrade: {error}")),
            };
            let parse = if options.preserve_raw { CanonHost::parse_raw } else { CanonHost::parse };
            let host = match asked.host.as_deref().map(parse).transpose() {
                Ok(host) => host,
                Err(error) => return bad(format!("host: {error}")),
            };
            let mut fields = HeaderFields::new();
            for (name, value) in asked.headers.iter().flatten() {
                if let Err(error) = fields.push(name, value) {
                    return bad(format!("headers: {name:?}: {error}"));
                }
            }
            let tokens = match asked.claims.map(TokenSet::of_question).transpose() {
                Ok(tokens) => tokens.unwrap_or_default(),
                Err(error) => return bad(format!("claims: {error}")),
            };
            let operation = Operation::Http {
                method: &method,
                path: &path,
                host: host.as_ref(),
                headers: asked.headers.as_ref().map(|_| &fields as &dyn HeaderLines),
                upgrade: upgrade.as_ref(),
                tokens: tokens.at(sidecar.clock.wall()),
            };
            generation.explain(source, asked.port, operation)
        }
        _ => return bad("give method and path for a request, or neither for opaque TCP".to_owned()),
    };
    ok(&json!({ "explanation": explanation, "text": explanation.to_string() }))
}

/// Who issues tokens, and what is known of their keys. No token and no claim is here.
fn jwt(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let generation = snapshot.policy.as_deref();
    let issuers = generation.map(|generation| &*generation.defaults().jwt.issuers).unwrap_or_default();
    let issuers: Vec<Value> = issuers
        .iter()
        .map(|issuer| {
            json!({
                "issuer": issuer.name,
                "audiences": issuer.audiences,
                "algorithms": issuer.algorithms,
                "header": issuer.header.name,
                "forward": issuer.forward,
                "keys": sidecar.keyrings.state(&issuer.keys, sidecar.clock.wall()),
            })
        })
        .collect();
    let asked = generation.is_some_and(postern_policy::Generation::asks_tokens);
    json!({ "asked": asked, "issuers": issuers })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
