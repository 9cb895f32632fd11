//! How a call would be answered by the generation in force.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use postern_policy::norm::CanonHost;
use postern_policy::{
    Answer, Declared, Generation, HeaderFields, NotAsked, Question, Refusal, Source, Told, ToldToken, Upgrade,
};
use postern_svid::SpiffeId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{failed, ok, question};
use crate::config::Config;
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
    /// Claims of a token, as an object or as JSON text, or the word `unverified`; without it there is none.
    claims: Option<Value>,
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
    let sni = match asked.sni.as_deref().map(|name| (!name.is_empty()).then(|| CanonHost::parse(name))) {
        None => None,
        Some(None) => Some(None),
        Some(Some(Ok(name))) => Some(Some(name)),
        Some(Some(Err(error))) => return bad(format!("sni: {error}")),
    };
    let upgrade = match asked.upgrade.as_deref().map(Upgrade::parse).transpose() {
        Ok(upgrade) => upgrade.or_else(|| asked.websocket.then_some(Upgrade::WebSocket)),
        Err(error) => return bad(format!("upgrade: {error}")),
    };
    let mut fields = HeaderFields::new();
    for (name, value) in asked.headers.iter().flatten() {
        if let Err(error) = fields.push(name, value) {
            return bad(format!("headers: {name:?}: {error}"));
        }
    }
    let token = match &asked.claims {
        None | Some(Value::Null) => ToldToken::Absent,
        Some(Value::String(text)) => ToldToken::parse(text),
        Some(claims) => ToldToken::Payload(claims.to_string().into_bytes()),
    };
    let told = match (&asked.method, &asked.path, &sni) {
        (None, None, None) => Told::Tcp,
        (None, None, Some(sni)) => Told::Tls { sni: sni.as_ref() },
        (Some(method), Some(target), _) => Told::Http {
            method,
            target,
            host: asked.host.as_deref(),
            fields: asked.headers.as_ref().map(|_| &fields),
            upgrade: upgrade.as_ref(),
            token: &token,
        },
        _ => return bad("give method and path for a request, or neither for opaque TCP".to_owned()),
    };
    let answer = answer(&sidecar.config, &generation, asked.port, source, told, sidecar.clock.wall());
    ok(&json!({ "explanation": answer, "text": answer.to_string() }))
}

/// What this sidecar would answer: its own configuration says what its workload's ports carry.
pub(super) fn answer(
    config: &Config,
    generation: &Generation,
    port: u16,
    source: Source<'_>,
    told: Told<'_>,
    now: std::time::SystemTime,
) -> Answer {
    if !config.reaches(Some(generation), port) {
        return Answer::Refused(Box::new(Refusal {
            why: NotAsked::PortNotDeclared,
            text: format!(
                "nobody reaches port {port}: `workload.ports` do not declare it, and no Allow names it"
            ),
            place: None,
            help: Some("declare it in `workload.ports` of the sidecar".to_owned()),
        }));
    }
    let workload = &config.workload;
    let declared = workload.ports.get(&port).map(|protocol| Declared {
        protocol: *protocol,
        upgrades: workload.upgrades.get(&port).map_or(&[][..], Vec::as_slice),
        paths: workload.paths.get(&port).copied().unwrap_or_default(),
        by: None,
    });
    generation.answer(&Question { source, port, declared, told, at: Some(now) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const POLICY: &str = "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: shop}\n\
         spec: {action: Allow, rules: [{name: all}]}\n";

    #[test]
    fn what_a_port_does_not_carry_is_refused_whatever_the_rules_say() {
        let sidecar = testing::sidecar("");
        let generation = testing::generation(&sidecar, 1, POLICY);
        let id = SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/web").unwrap();
        let source = Source { identity: Some(&id), address: [127, 0, 0, 1].into() };
        let now = std::time::SystemTime::UNIX_EPOCH;
        let http = |upgrade| Told::Http {
            method: "GET",
            target: "/a#b",
            host: None,
            fields: None,
            upgrade,
            token: &ToldToken::Absent,
        };
        let tcp = Upgrade::parse("tcp").unwrap();
        for (port, told, expected) in [
            (8080, http(None), None),
            (8080, http(Some(&Upgrade::WebSocket)), None),
            (8080, http(Some(&tcp)), Some("upgrade_refused")),
            (8080, Told::Tcp, Some("connect_to_http")),
            (9000, Told::Tcp, None),
            (9000, Told::Tls { sni: None }, None),
            (9000, http(None), Some("http_to_tcp")),
            (9001, Told::Tcp, Some("port_not_declared")),
            // One of the sidecar's own.
            (24_143, Told::Tcp, Some("port_not_declared")),
        ] {
            let answer = answer(&sidecar.config, &generation, port, source, told, now);
            let shown = serde_json::to_value(&answer).unwrap();
            assert_eq!(shown["verdict"]["reason"].as_str(), expected, "{port} {told:?}: {shown}");
            assert_eq!(answer.is_allowed(), expected.is_none());
        }
    }
}
