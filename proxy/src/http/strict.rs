//! What a request may not be, whoever it is for: ambiguous, or too large.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap};
use http::{Method, Request, Uri, Version};

use super::headers;
use crate::error::{Error, Reason, Side};
use crate::limits::Limits;

/// Refuses an HTTP/1 request that two readers could read differently. `framing` has seen to its bytes before.
pub fn check_h1<B>(request: &Request<B>) -> Result<(), Error> {
    let bad = |text: &str| Err(Error::new(Side::Peer, Reason::BadRequest, text));
    let hosts = request.headers().get_all(HOST).iter().count();
    // RFC 9112, 3.2: in absolute-form too.
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return bad("not exactly one Host");
    }
    let uri = request.uri();
    let is_connect = *request.method() == Method::CONNECT;
    if !is_connect && uri.scheme().is_none() && uri.authority().is_some() {
        return bad("a target without a slash");
    }
    if uri.path() == "*" && *request.method() != Method::OPTIONS {
        return bad("only OPTIONS is for *");
    }
    if !names_own_hop(request.headers()) {
        return bad("Connection names what is not of this hop");
    }
    Ok(())
}

/// Whether `Connection` names nothing but what every hop says to its next. It could name any field, and a proxy that obeys
/// takes away what another hop has added or judged by.
fn names_own_hop(fields: &HeaderMap) -> bool {
    const OF_A_HOP: [&[u8]; 5] = [b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"];
    let lines = fields.get_all(CONNECTION).iter();
    let mut names =
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    names.all(|name| name.is_empty() || OF_A_HOP.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Refuses a head that says twice how long its body is. Over HTTP/2 that is heard of once and checked; what becomes HTTP/1 of it
/// would be read in two ways (RFC 9112, 6.3).
pub fn check_length(fields: &HeaderMap) -> Result<(), Error> {
    if fields.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Error::new(Side::Peer, Reason::BadRequest, "two lengths"));
    }
    Ok(())
}

/// Refuses a head that is too large in any way. On the mesh leg it carries a few fields `more`, and bytes: our own.
pub fn check_size(
    limits: &Limits,
    uri: &Uri,
    fields: &HeaderMap,
    (more_fields, more_bytes): (usize, usize),
) -> Result<(), Error> {
    let refused = |reason, text: String| Err(Error::new(Side::Peer, reason, text));
    let target = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if target > limits.uri_bytes {
        return refused(Reason::UriTooLong, format!("a target of {target} bytes"));
    }
    let (count, bytes) = headers::size(fields);
    if count > limits.head_fields + more_fields || bytes + target > limits.head_bytes + more_bytes {
        return refused(Reason::HeadTooLarge, format!("{count} fields, {bytes} bytes"));
    }
    if let Some((name, value)) = fields.iter().find(|(_, value)| value.len() > limits.field_bytes) {
        return refused(Reason::HeadTooLarge, format!("{name} has {} bytes", value.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_requests() {
        let ok = |builder: http::request::Builder| check_h1(&builder.body(()).unwrap()).is_ok();
        let get = |target: &str| Request::get(target);
        assert!(ok(get("/").header("host", "a")));
        assert!(ok(get("/").version(Version::HTTP_10)));
        assert!(ok(get("http://a").header("host", "a").header("connection", "Close, TE")));
        assert!(ok(get("/").header("host", "a").header("connection", "Upgrade,, HTTP2-Settings,keep-alive")));
        assert!(ok(Request::options("*").header("host", "a")));
        assert!(ok(Request::connect("a:1").header("host", "a:1")));
        assert!(!ok(get("/")));
        assert!(!ok(get("http://a/")));
        assert!(!ok(get("/").header("host", "a").header("host", "a")));
        assert!(!ok(get("a").header("host", "a")));
        assert!(!ok(get("*").header("host", "a")));
        for named in ["x-mine", "close, host", "keep-alive;x", "content-length", "\u{e9}"] {
            assert!(!ok(get("/").header("host", "a").header("connection", named)), "{named}");
        }
        assert!(!ok(get("/").header("host", "a").header("connection", "close").header("connection", "x-a")));
    }

    #[test]
    fn a_length_is_said_once() {
        let mut fields = HeaderMap::new();
        assert!(check_length(&fields).is_ok());
        fields.append(CONTENT_LENGTH, "0".parse().unwrap());
        assert!(check_length(&fields).is_ok());
        fields.append(CONTENT_LENGTH, "0".parse().unwrap());
        assert!(check_length(&fields).is_err());
    }

    #[test]
    fn sizes() {
        let mut limits = Limits::default();
        for (name, value) in
            [("uriBytes", "10"), ("fieldBytes", "8"), ("headBytes", "64"), ("headFields", "3")]
        {
            limits.set(name, value).unwrap();
        }
        let reason = |target: &str, fields: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(*name, value.parse().unwrap());
            }
            check_size(&limits, &target.parse().unwrap(), &map, (0, 0)).err().map(|error| error.reason)
        };
        assert_eq!(reason("/234567890", &[("a", "12345678"), ("b", ""), ("c", "")]), None);
        assert_eq!(reason("/?34567890x", &[]), Some(Reason::UriTooLong));
        assert_eq!(reason("/", &[("a", "123456789")]), Some(Reason::HeadTooLarge));
        assert_eq!(reason("/", &[("a", ""), ("b", ""), ("c", ""), ("d", "")]), Some(Reason::HeadTooLarge));
        let wide = [("aaaaaaaaaa", "12345678"), ("bbbbbbbbbb", "12345678"), ("cccc", "1234")];
        assert_eq!(reason("/", &wide), None);
        assert_eq!(reason("/234567890", &wide), Some(Reason::HeadTooLarge));
    }
}
