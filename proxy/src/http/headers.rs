//! Header hygiene: what belongs to one hop, what nobody but a sidecar may say, and what a sidecar adds.
//!
//! Strip first, insert after: a peer that nominates our identity header in `Connection` would otherwise have it removed.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http_body::Body;
use postern_policy::HeaderLines;
use postern_svid::SpiffeId;

use crate::decisions::DecisionId;
use crate::error::Reason;

/// The workload's port that a mesh request is for.
pub const POSTERN_PORT: HeaderName = HeaderName::from_static("postern-port");
/// The HTTP version that the caller spoke.
pub const POSTERN_VERSION: HeaderName = HeaderName::from_static("postern-version");
/// The method of a request that crosses the mesh as extended CONNECT, where it has no other place.
pub const POSTERN_METHOD: HeaderName = HeaderName::from_static("postern-method");
/// The id of the verdict.
pub const POSTERN_DECISION: HeaderName = HeaderName::from_static("postern-decision");
/// Why a sidecar answered instead of the workload.
pub const POSTERN_ERROR: HeaderName = HeaderName::from_static("postern-error");
/// Who calls, for the workload.
pub const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const PREFIX: &str = "postern-";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// What Rails, Express, Spring, Django and Symfony (or their usual middleware) take for a method.
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-http-method"),
];
/// What IIS's rewrite module, Symfony and Zend take for the path, whatever the request line says.
const PATH_OVERRIDES: [HeaderName; 2] =
    [HeaderName::from_static("x-original-url"), HeaderName::from_static("x-rewrite-url")];
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what belongs to one hop (RFC 9110, 7.6.1): the names of **every** `Connection` line, the known ones, and
/// anything that could ask for another protocol. `TE: trailers` stays, gRPC needs it.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = named_by_connection(headers).collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if headers.contains_key(TE) {
        let trailers = headers
            .get_all(TE)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// The fields that `Connection` lines name.
fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let lines = headers.get_all(CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Removing these would change the message, not the hop.
        .filter(|name| ![HOST, CONTENT_LENGTH, CONTENT_TYPE, TE].contains(name))
}

/// Fields as the workload will see them: what a `Connection` line names stops here, so to rules it is not there.
#[derive(Debug)]
pub struct EndToEnd<'a>(pub &'a HeaderMap);

impl HeaderLines for EndToEnd<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) -> bool {
        let Self(headers) = self;
        let mut lines = headers.get_all(name).iter().peekable();
        if lines.peek().is_some() && !named_by_connection(headers).any(|named| named.as_str() == name) {
            lines.for_each(|line| visit(line.as_bytes()));
        }
        true
    }
}

/// Removes every `postern-*` field: only sidecars speak these, and each sets its own.
pub fn strip_postern(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        let named: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }
}

/// Removes whatever claims an identity, and every name with an underscore: CGI and WSGI fold `_` and `-` together, so
/// `x_forwarded_client_cert` would reach the workload as the real thing.
pub fn strip_forged_identity(headers: &mut HeaderMap) {
    headers.remove(FORWARDED_CLIENT_CERT);
    if headers.keys().any(|name| name.as_str().contains('_')) {
        let named: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }
}

/// Removes from a trailer section what may only stand in a head (RFC 9110, 6.5.1): many servers merge the two, and the
/// head was cleaned. `_` counts as `-`, as it does for those servers; else it stays, gRPC's metadata may hold it.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    let named: Vec<HeaderName> =
        trailers.keys().filter(|name| is_for_heads_only(&name.as_str().replace('_', "-"))).cloned().collect();
    for name in named {
        trailers.remove(name);
    }
}

fn is_for_heads_only(name: &str) -> bool {
    const HEADS_ONLY: [HeaderName; 9] = [
        HOST,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        CONNECTION,
        TE,
        TRANSFER_ENCODING,
        AUTHORIZATION,
        COOKIE,
        FORWARDED_CLIENT_CERT,
    ];
    name.starts_with(PREFIX)
        || HEADS_ONLY.iter().any(|forbidden| forbidden.as_str() == name)
        || METHOD_OVERRIDES.iter().chain(&PATH_OVERRIDES).any(|forbidden| forbidden.as_str() == name)
}

/// Removes what asks a workload's framework to act on another method or path than the one that was judged: a POST with
/// `X-HTTP-Method-Override: DELETE` would pass a rule about DELETE, a GET of `/` with `X-Original-URL: /admin` one about
/// `/admin`.
pub fn strip_overrides(headers: &mut HeaderMap) {
    for name in METHOD_OVERRIDES.into_iter().chain(PATH_OVERRIDES) {
        headers.remove(name);
    }
}

/// Makes one `Cookie` line of all of them, as HTTP/1 demands (RFC 9113, 8.2.3): HTTP/2 callers send crumbs, and a
/// workload that reads the first line only would lose a session.
pub fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    if let Ok(line) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, line);
    }
}

/// Says in the head of HTTP/1 that a body of unknown length follows: hyper would leave out such a body of a GET or HEAD.
pub fn announce_body(headers: &mut HeaderMap, body: &impl Body) {
    let is_unknown = !body.is_end_stream() && body.size_hint().exact().is_none();
    if is_unknown && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Tells the workload who calls.
pub fn add_identity(headers: &mut HeaderMap, identity: Option<&SpiffeId>) {
    let Some(identity) = identity else { return };
    if let Ok(value) = HeaderValue::try_from(format!("URI={identity}")) {
        headers.insert(FORWARDED_CLIENT_CERT, value);
    }
}

/// Names the verdict on a response.
pub fn add_decision(headers: &mut HeaderMap, id: DecisionId) {
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(POSTERN_DECISION, value);
    }
}

/// Says on a response why a sidecar made it.
pub fn add_error(headers: &mut HeaderMap, reason: Reason) {
    headers.insert(POSTERN_ERROR, HeaderValue::from_static(reason.label()));
}

/// Fields and bytes of a head, for the limits. HTTP/2's own limit counts bytes only: 490 tiny fields fit in 16 KiB.
pub fn size(headers: &HeaderMap) -> (usize, usize) {
    headers.iter().fold((0, 0), |(fields, bytes), (name, value)| {
        (fields + 1, bytes + name.as_str().len() + value.len() + 4)
    })
}

/// Whether this is gRPC, whose errors travel in trailers of a 200.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the request asks to become a WebSocket (RFC 6455, 4.2.1).
pub fn asks_for_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && nominates_upgrade(headers)
}

/// The one protocol that a message names in `Upgrade` (RFC 9110, 7.8). None if it names several, for then it is the far
/// side's to choose, or if `Connection` does not say so too.
pub fn asked_upgrade(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(UPGRADE).iter();
    let line = lines.next()?.as_bytes().trim_ascii();
    let is_one = lines.next().is_none() && !line.is_empty() && !line.contains(&b',');
    (is_one && nominates_upgrade(headers)).then_some(line)
}

fn nominates_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn every_connection_line_counts() {
        let mut headers = map(&[
            ("connection", "close, x-one"),
            ("connection", "X-Two ,keep-alive"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("transfer-encoding", "chunked"),
        ]);
        strip_hop_by_hop(&mut headers);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-three"], "3");
    }

    #[test]
    fn identity_cannot_be_forged_nor_deleted() {
        let mut headers = map(&[
            ("connection", "x-forwarded-client-cert, host, content-length"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-forwarded-client-cert", "URI=spiffe://td/ns/a/sa/admin"),
            ("x_forwarded_client_cert", "URI=spiffe://td/ns/a/sa/admin"),
            ("postern-port", "22"),
            ("postern-decision", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        strip_postern(&mut headers);
        strip_forged_identity(&mut headers);
        let id = SpiffeId::parse("spiffe://td/ns/a/sa/web").unwrap();
        add_identity(&mut headers, Some(&id));
        assert_eq!(
            headers.get_all(FORWARDED_CLIENT_CERT).iter().collect::<Vec<_>>(),
            ["URI=spiffe://td/ns/a/sa/web"]
        );
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn trailers_bring_nothing_that_a_head_could_not() {
        let mut trailers = map(&[
            ("x-forwarded-client-cert", "URI=spiffe://td/ns/a/sa/admin"),
            ("x_forwarded_client_cert", "URI=spiffe://td/ns/a/sa/admin"),
            ("postern-decision", "9"),
            ("postern_port", "22"),
            ("host", "evil"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x_rewrite_url", "/admin"),
            ("grpc-status", "0"),
            ("request_cost", "3"),
            ("x-checksum", "ab"),
        ]);
        strip_trailers(&mut trailers);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "request_cost", "x-checksum"]);
    }

    #[test]
    fn nothing_asks_for_another_method_or_path_than_the_judged_one() {
        let mut head = map(&[
            ("x-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("x-rewrite-url", "/admin/2"),
            ("x-forwarded-for", "192.0.2.1"),
        ]);
        strip_overrides(&mut head);
        let left: Vec<&str> = head.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-forwarded-for"]);
    }

    #[test]
    fn cookies_become_one_line_in_their_order() {
        let mut crumbs =
            map(&[("cookie", "a=1"), ("x-other", "1"), ("cookie", "b=2; c=3"), ("cookie", "d=\u{e9}")]);
        join_cookies(&mut crumbs);
        let lines: Vec<&[u8]> = crumbs.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(lines, ["a=1; b=2; c=3; d=\u{e9}".as_bytes()]);
        for fields in [&[("cookie", "a=1; b=2")][..], &[("x-other", "1")]] {
            let mut same = map(fields);
            join_cookies(&mut same);
            assert_eq!(same, map(fields));
        }
    }

    #[test]
    fn websocket() {
        assert!(asks_for_websocket(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!asks_for_websocket(&map(&[("upgrade", "websocket")])));
        assert!(!asks_for_websocket(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])));
    }

    #[test]
    fn one_upgrade_is_asked_for_or_none() {
        let asked = |fields: &[(&str, &str)]| asked_upgrade(&map(fields)).map(<[u8]>::to_vec);
        let named = ("connection", "keep-alive, Upgrade");
        assert_eq!(asked(&[named, ("upgrade", " SPDY/3.1 ")]).as_deref(), Some(&b"SPDY/3.1"[..]));
        for fields in [
            &[("upgrade", "tcp")][..],
            &[named],
            &[named, ("upgrade", "")],
            &[named, ("upgrade", "tcp, h2c")],
            &[named, ("upgrade", "tcp"), ("upgrade", "tcp")],
        ] {
            assert_eq!(asked(fields), None, "{fields:?}");
        }
    }
}
