//! An upgrade, inbound: what may be asked for, and the handshake with the workload.

use std::net::SocketAddr;

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use postern_policy::Upgrade;

use super::uri;
use crate::connections::{Operation, Stream};
use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::upgrade::{Handshake, Pending};
use crate::http::{headers, respond, websocket};
use crate::limits::Limits;
use crate::sidecar::Sidecar;
use crate::worker::Worker;

/// What the workload made of a request.
pub(super) enum Delivered {
    Response(Response<Body>),
    /// An upgrade: the answer, and the two ends that become byte streams.
    Bytes {
        answer: Response<Body>,
        caller: Caller,
        workload: hyper::upgrade::OnUpgrade,
    },
}

/// The caller's end of an upgrade. Inside a tunnel it speaks HTTP/1 itself and waits for the answer to its own handshake.
pub(super) struct Caller {
    pub(super) pending: Pending,
    pub(super) handshake: Option<Handshake>,
}

fn refused(text: impl Into<String>) -> Error {
    Error::new(Side::Peer, Reason::UpgradeRefused, text)
}

/// What a request asks to become: a WebSocket, or, by extended CONNECT, what the workload's port lists.
pub(super) fn asked(
    sidecar: &Sidecar,
    port: u16,
    parts: &http::request::Parts,
    has_body: bool,
) -> Result<Option<Upgrade>, Error> {
    let Some(protocol) = parts.extensions.get::<::h2::ext::Protocol>() else {
        let is_websocket = parts.version <= Version::HTTP_11 && headers::asks_for_websocket(&parts.headers);
        if is_websocket && has_body {
            return Err(refused("a request with a body cannot become a byte stream"));
        }
        return Ok(is_websocket.then_some(Upgrade::WebSocket));
    };
    let listed = sidecar.config.workload.upgrades.get(&port).map_or(&[][..], Vec::as_slice);
    let upgrade = Upgrade::at_port(protocol.as_str().as_bytes(), listed);
    upgrade.map(Some).map_err(|why| Error::not_asked(why, format!("port {port} lists no such upgrade")))
}

/// The method that the workload will see, which is the one to be judged.
pub(super) fn method<'a>(
    upgrade: Option<&Upgrade>,
    parts: &'a http::request::Parts,
) -> Result<&'a str, Error> {
    let Some(upgrade) = upgrade else { return Ok(parts.method.as_str()) };
    let mut lines = parts.headers.get_all(headers::POSTERN_METHOD).iter();
    let said = match (lines.next(), lines.next()) {
        (Some(line), None) => line.as_bytes(),
        // None that is carried.
        _ => b"",
    };
    let refused = |why| Error::not_asked(why, "an upgrade needs exactly one postern-method, GET or POST");
    upgrade.method(said).map_err(refused)
}

/// Asks the workload by HTTP/1, and checks that its answer is one to what was asked.
pub(super) async fn shake_hands(
    worker: &Worker,
    to: SocketAddr,
    host: HeaderValue,
    mut parts: http::request::Parts,
    stream: &Stream,
    pending: Option<Pending>,
    limits: &Limits,
) -> Result<Delivered, Error> {
    let Operation::Http { method, path, upgrade: Some(upgrade), .. } = &stream.entry().facts.operation else {
        return Err(Error::new(Side::Us, Reason::Internal, "what is no upgrade came to be sent as one"));
    };
    let pending = pending.ok_or_else(|| refused("an upgrade that cannot become a byte stream"))?;
    // Over extended CONNECT the caller waits for a 2xx and nothing else.
    let theirs = if parts.method == Method::CONNECT {
        None
    } else {
        let key = websocket::take_key(&mut parts.headers);
        Some(Handshake::WebSocket(key.ok_or_else(|| refused("no valid Sec-WebSocket-Key"))?))
    };
    let ours = match upgrade {
        Upgrade::Named(name) => Handshake::Named(name.clone()),
        Upgrade::WebSocket => Handshake::WebSocket(
            websocket::fresh_key().ok_or_else(|| Error::new(Side::Us, Reason::Internal, "no randomness"))?,
        ),
    };
    ours.ask(&mut parts.headers);
    headers::join_cookies(&mut parts.headers);
    parts.headers.insert(HOST, host);
    parts.headers.remove(CONTENT_LENGTH);
    parts.method = Method::from_bytes(method.as_str().as_bytes())
        .map_err(|error| Error::new(Side::Us, Reason::Internal, error.to_string()))?;
    if parts.method == Method::POST {
        // RFC 9110, 8.6: servers may insist on it.
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    parts.uri = uri(None, path)?;

    let request = Request::from_parts(parts, Body::empty());
    let mut response = worker.workload.send_upgrade(to, request, limits).await?;
    let against = |detail: &str| Error::new(Side::Workload, Reason::WorkloadProtocol, detail.to_owned());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        if response.status().is_success() {
            // On the mesh a 2xx would open the tunnel.
            return Err(against("the workload answered success to an upgrade, but did not switch"));
        }
        return Ok(Delivered::Response(response.map(|incoming| Body::h1(incoming, Side::Workload))));
    }
    if !ours.is_answer(response.headers()) {
        return Err(against("the workload's answer does not fit the upgrade that it was asked for"));
    }
    let workload = hyper::upgrade::on(&mut response);
    let status = if theirs.is_some() { StatusCode::SWITCHING_PROTOCOLS } else { StatusCode::OK };
    let mut answer = respond::empty(status);
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    strip_answer(answer.headers_mut());
    Ok(Delivered::Bytes { answer, caller: Caller { pending, handshake: theirs }, workload })
}

/// Removes what answers our own handshake, and a length, which nothing that switches has (RFC 9110, 8.6): HTTP/2 would
/// hold the byte stream to it.
fn strip_answer(fields: &mut HeaderMap) {
    fields.remove(http::header::SEC_WEBSOCKET_ACCEPT);
    fields.remove(CONTENT_LENGTH);
}

#[cfg(test)]
mod tests {
    use postern_policy::UpgradeName;

    use super::*;

    #[test]
    fn the_method_of_an_upgrade_is_one_of_two_and_said_once() {
        let tcp = Upgrade::Named(UpgradeName::parse("tcp").unwrap());
        let of = |upgrade: Option<&Upgrade>, said: &[&str]| {
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            for value in said {
                request.headers_mut().append(headers::POSTERN_METHOD, HeaderValue::from_str(value).unwrap());
            }
            let (parts, ()) = request.into_parts();
            method(upgrade, &parts).map(str::to_owned).map_err(|error| error.reason)
        };
        assert_eq!(of(Some(&tcp), &["POST"]).unwrap(), "POST");
        assert_eq!(of(Some(&tcp), &["GET"]).unwrap(), "GET");
        for bad in [&[][..], &["DELETE"], &["post"], &[""], &["POST", "POST"], &["GET, POST"], &["CONNECT"]] {
            assert_eq!(of(Some(&tcp), bad), Err(Reason::UpgradeRefused), "{bad:?}");
        }
        // Nobody else has a say.
        assert_eq!(of(Some(&Upgrade::WebSocket), &["POST"]).unwrap(), "GET");
        assert_eq!(of(None, &["POST"]).unwrap(), "CONNECT");
    }
}
