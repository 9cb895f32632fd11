//! The admin port: what the admin socket shows, for tools that know no Unix sockets. Opt-in, on loopback, and reads only,
//! for the workload shares this loopback.
//!
//! Two things keep web pages out, whose scripts a browser on this machine would run: the request must name this port as
//! its host (a page whose name was made to resolve to 127.0.0.1 carries its own name), and it must carry a header that a
//! page may send to a foreign origin only after asking first, which is never answered with leave.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use postern_policy::norm::CanonHost;

use super::admin;
use super::http::{Door, listen};
use crate::net::TcpListener;
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

/// What a request must carry, with any value.
pub const HEADER: HeaderName = HeaderName::from_static("x-postern-admin");
/// As the health listener: whoever shares the loopback may knock.
const DOOR: Door = Door { name: "admin_port", whole: Duration::from_secs(10) };

/// Serves the port at `address`, until the sidecar ends.
pub fn serve(sidecar: &Arc<Sidecar>, listener: TcpListener, address: SocketAddr) {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = Arc::clone(&listener);
        async move { listener.accept().await.map(|(stream, _)| stream) }
    };
    let handler = {
        let sidecar = Arc::clone(sidecar);
        move |request: Request<_>| {
            let sidecar = Arc::clone(&sidecar);
            async move {
                match refusal(address, request.method(), request.uri(), request.headers()) {
                    Some(refusal) => refusal,
                    None => admin::show(&sidecar, &request).await,
                }
            }
        }
    };
    spawn(listen(Arc::clone(sidecar), DOOR, accept, handler));
}

/// Why a request is not answered, if it is not.
fn refusal(
    address: SocketAddr,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<Response<Full<Bytes>>> {
    if !names_us(address, uri, headers) {
        let text = format!("the Host header must be {address} or localhost:{}", address.port());
        return Some(admin::failed(StatusCode::MISDIRECTED_REQUEST, &text));
    }
    if method != Method::GET && method != Method::HEAD {
        let text = "this port only reads: use the admin socket for everything else";
        let mut response = admin::failed(StatusCode::METHOD_NOT_ALLOWED, text);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    if !headers.contains_key(HEADER) {
        let text = "add the header X-Postern-Admin: 1 (no web page can)";
        return Some(admin::failed(StatusCode::FORBIDDEN, text));
    }
    None
}

/// Exactly one Host, and it is ours, port and all; the same goes for the target, if it names a host.
fn names_us(address: SocketAddr, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(HOST).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let is_ours = |text: &str| {
        CanonHost::parse(text).is_ok_and(|host| {
            let is_named = match host.address() {
                Some(ip) => ip == IpAddr::to_canonical(&address.ip()),
                None => host.name() == "localhost",
            };
            is_named && host.port() == Some(address.port())
        })
    };
    line.to_str().is_ok_and(is_ours) && uri.authority().is_none_or(|authority| is_ours(authority.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, target: &str, fields: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let address = "127.0.0.1:24190".parse().unwrap();
        let refused = refusal(address, request.method(), request.uri(), request.headers());
        if let Some(refused) = &refused {
            let names = refused.headers().keys();
            assert_eq!(names.filter(|name| name.as_str().starts_with("access-control")).count(), 0);
        }
        refused.map(|refused| refused.status().as_u16())
    }

    #[test]
    fn only_a_request_that_no_page_can_make_is_answered() {
        let ours = ("host", "127.0.0.1:24190");
        let header = ("x-postern-admin", "1");
        assert_eq!(status("GET", "/v1/config", &[ours, header]), None);
        assert_eq!(status("HEAD", "/v1/config", &[ours, ("x-postern-admin", "")]), None);
        assert_eq!(status("GET", "/v1/config", &[("host", "LOCALHOST:24190"), header]), None);
        assert_eq!(status("GET", "http://localhost:24190/v1/config", &[ours, header]), None);
        assert_eq!(status("GET", "/v1/config", &[ours]), Some(403));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE"] {
            assert_eq!(status(method, "/v1/log", &[ours, header]), Some(405), "{method}");
        }
        for host in [
            "rebound.example:24190",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.2:24190",
            "localhost",
            "localhost.evil.example:24190",
            "x@127.0.0.1:24190",
            "[::1]:24190",
            "127.1:24190",
            "",
        ] {
            assert_eq!(status("GET", "/v1/config", &[("host", host), header]), Some(421), "{host}");
        }
        assert_eq!(status("GET", "/v1/config", &[header]), Some(421));
        assert_eq!(status("GET", "/v1/config", &[ours, ours, header]), Some(421));
        assert_eq!(status("GET", "http://evil.example/v1/config", &[ours, header]), Some(421));
    }
}
