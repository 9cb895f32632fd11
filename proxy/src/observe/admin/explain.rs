//! How a call would be answered by the generation in force.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{HeaderFields, HeaderLines, Operation, Source, TokenSet, Upgrade};
use postern_svid::SpiffeId;
use serde::Deserialize;
use serde_json::json;

use super::{failed, ok, question};
use crate::sidecar::Sidecar;

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

pub(super) async fn explain(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
