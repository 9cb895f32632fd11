//! An upgrade, outbound: what the workload may ask for, and how it crosses the mesh.

use std::future::poll_fn;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use http_body::Body as _;
use postern_policy::{Transport, Upgrade};

use super::{Opened, Target, ask, mesh_connection, mesh_head};
use crate::connections::{Operation, Stream};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::upgrade::{Handshake, Pending};
use crate::http::{headers, respond, websocket};
use crate::pool::Kind;
use crate::worker::Worker;

fn refused(text: &str) -> Error {
    Error::new(Side::Peer, Reason::UpgradeRefused, text.to_owned())
}

/// Whether the workload asks for a WebSocket, by HTTP/1 or by extended CONNECT.
pub(super) fn asks_for_websocket(request: &Request<Body>) -> Result<bool, Error> {
    match request.extensions().get::<::h2::ext::Protocol>() {
        Some(protocol) if protocol.as_str().eq_ignore_ascii_case("websocket") => Ok(true),
        // It has no method that could be judged and replayed.
        Some(_) => Err(refused("only websocket may follow extended CONNECT")),
        None => Ok(headers::asks_for_websocket(request.headers())),
    }
}

impl Target {
    /// The upgrade that an HTTP/1.1 request asks for, if the port lists it. Any other, or one of several, belongs to the
    /// hop and goes with it: the request is a plain one (RFC 9110, 7.8).
    pub(super) fn upgrade(&self, request: &Request<Body>) -> Option<Upgrade> {
        if request.version() != Version::HTTP_11 {
            return None;
        }
        let asked = headers::asked_upgrade(request.headers())?;
        let upgrade = Upgrade::at_port(asked, &self.port.upgrades).ok()?;
        upgrade.method(request.method().as_str().as_bytes()).is_ok().then_some(upgrade)
    }
}

/// Carries an upgrade over the mesh.
pub(super) async fn open(
    worker: &Arc<Worker>,
    target: &Target,
    request: Request<Body>,
    pending: Option<Pending>,
    stream: &Stream,
) -> Result<Opened, Error> {
    let Operation::Http { method, path, upgrade: Some(upgrade), .. } = &stream.entry().facts.operation else {
        return Err(Error::new(Side::Us, Reason::Internal, "what is no upgrade came to be sent as one"));
    };
    if target.port.external {
        return Err(refused("upgrades do not leave the mesh"));
    }
    let (mut parts, body) = request.into_parts();
    if !body.is_end_stream() {
        // Where the body ends and the byte stream begins could not be told on the mesh.
        return Err(refused("a request with a body cannot become a byte stream"));
    }
    let pending = pending.ok_or_else(|| refused("an upgrade that cannot become a byte stream"))?;
    // Over HTTP/2 (RFC 8441) there is no key, and success is 200.
    let theirs = match upgrade {
        Upgrade::WebSocket if parts.method == Method::CONNECT => None,
        Upgrade::WebSocket => {
            let key = websocket::take_key(&mut parts.headers);
            Some(Handshake::WebSocket(key.ok_or_else(|| refused("no valid Sec-WebSocket-Key"))?))
        }
        Upgrade::Named(name) => Some(Handshake::Named(name.clone())),
    };
    let (connection, endpoint) = mesh_connection(worker, target, Kind::Tunnel).await?;
    ask(&worker.sidecar, stream, &endpoint)?;
    let mut head = mesh_head(target, &endpoint, &parts, path)?;
    *head.method_mut() = Method::CONNECT;
    // HTTP/2 would hold the byte stream to it.
    head.headers_mut().remove(CONTENT_LENGTH);
    let protocol = match upgrade {
        Upgrade::WebSocket => ::h2::ext::Protocol::from_static("websocket"),
        Upgrade::Named(name) => {
            if endpoint.transport != Transport::Postern {
                return Err(refused("only a sidecar of ours can be told the method of an upgrade"));
            }
            let method = HeaderValue::from_str(method.as_str())
                .map_err(|error| Error::new(Side::Us, Reason::Internal, error.to_string()))?;
            head.headers_mut().insert(headers::POSTERN_METHOD, method);
            ::h2::ext::Protocol::from(name.as_str())
        }
    };
    head.extensions_mut().insert(protocol);
    let opened = crate::runtime::select! {
        opened = connection.tunnel(head) => opened?,
        () = poll_fn(|cx| stream.poll_revoked(cx)) => {
            return Err(Error::new(Side::Us, Reason::Revoked, "the policy changed"));
        }
    };
    match opened {
        Err(response) => Ok(Opened::Response(response)),
        Ok(opened) => {
            let (far_parts, far) = opened.into_parts();
            let mut answer = respond::empty(StatusCode::OK);
            *answer.headers_mut() = far_parts.headers;
            headers::strip_hop_by_hop(answer.headers_mut());
            answer.headers_mut().remove(CONTENT_LENGTH);
            if let Some(handshake) = theirs {
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                handshake.agree(answer.headers_mut());
            }
            Ok(Opened::Bytes { answer, pending, far })
        }
    }
}
