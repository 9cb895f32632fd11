//! WebSocket handshakes on either side of an extended CONNECT (RFC 6455, RFC 8441).
//!
//! The key never crosses the mesh: each HTTP/1 leg has its own, so an answer proves that this very request was
//! understood as a WebSocket handshake.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Takes the client's key out of a handshake, checked: base64 of 16 bytes, and version 13.
pub fn take_key(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let version = headers.get(SEC_WEBSOCKET_VERSION)?;
    if version != "13" {
        return None;
    }
    let key = headers.remove(SEC_WEBSOCKET_KEY)?;
    let bytes = BASE64.decode(key.as_bytes()).ok()?;
    (bytes.len() == 16).then_some(key)
}

/// What the server must answer to `key`.
pub fn accept(key: &HeaderValue) -> HeaderValue {
    let mut text = key.as_bytes().to_vec();
    text.extend_from_slice(GUID.as_bytes());
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::try_from(BASE64.encode(hash.as_ref())).expect("base64 is ASCII without control characters")
}

/// A key of our own.
pub fn fresh_key() -> Option<HeaderValue> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    HeaderValue::try_from(BASE64.encode(bytes)).ok()
}

/// Adds the fields of an HTTP/1 handshake.
pub fn ask(headers: &mut HeaderMap, key: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, key.clone());
}

/// Adds the fields of the HTTP/1 answer.
pub fn agree(headers: &mut HeaderMap, key: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
}

/// Whether an HTTP/1 answer is the one to `key`.
pub fn is_answer(headers: &HeaderMap, key: &HeaderValue) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.get(SEC_WEBSOCKET_ACCEPT) == Some(&accept(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut headers = HeaderMap::new();
        ask(&mut headers, &key);
        assert_eq!(take_key(&mut headers), Some(key));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dG9vIHNob3J0"));
        assert_eq!(take_key(&mut headers), None);
    }
}
