//! Responses of the sidecar's own.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, Response, StatusCode};

use super::body::Body;
use super::headers;
use crate::decisions::DecisionId;
use crate::error::{Error, Reason};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What clients of gRPC that may retry wait for (gRFC A6), in milliseconds.
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Answers with an error: a generic sentence and the decision's id, never the rule. gRPC callers get theirs in the
/// shape they read: status 200 and trailers only.
pub fn error(error: &Error, decision: Option<DecisionId>, is_grpc: bool) -> Response<Body> {
    let reason = error.reason;
    let mut text = reason.sentence().to_owned();
    if let Some(id) = decision {
        text.push_str(" Decision ");
        text.push_str(&id.to_string());
        text.push('.');
    }
    let mut response = if is_grpc {
        let mut response = Response::new(Body::empty());
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(reason.grpc())));
        // The sentences hold nothing that gRPC would have percent-encoded (a test in `error` could not see it change:
        // the conversion below refuses control characters, and '%' appears in none).
        if let Ok(message) = HeaderValue::try_from(text) {
            fields.insert(GRPC_MESSAGE, message);
        }
        response
    } else {
        text.push('\n');
        let length = HeaderValue::from(text.len());
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = reason.status();
        response.headers_mut().insert(CONTENT_LENGTH, length);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    headers::add_error(response.headers_mut(), reason);
    if let Some(wait) = error.wait {
        let fields = response.headers_mut();
        // Rounded up: whoever comes a moment too early is refused again.
        fields.insert(RETRY_AFTER, whole(wait, Duration::from_secs(1)));
        if is_grpc {
            fields.insert(GRPC_PUSHBACK, whole(wait, Duration::from_millis(1)));
        }
    }
    if reason == Reason::TokenInvalid {
        // RFC 6750 3: a client that sees this gets itself another token.
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    if let Some(id) = decision {
        headers::add_decision(response.headers_mut(), id);
    }
    response
}

/// A time in whole units.
fn whole(time: Duration, unit: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(time.as_nanos().div_ceil(unit.as_nanos())).unwrap_or(u64::MAX))
}

/// An empty answer.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Side;

    #[test]
    fn grpc_errors_are_trailers_only() {
        let denied = Error::new(Side::Peer, Reason::PolicyDenied, "rule shop/orders/no-writes");
        let response = error(&denied, None, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "7");
        assert!(!response.headers().contains_key("retry-after"));
        let response = error(&denied, None, false);
        assert_eq!(response.status(), 403);
        for value in response.headers().values() {
            assert!(!value.to_str().unwrap().contains("no-writes"), "callers are not told the rule");
        }
    }

    #[test]
    fn who_is_refused_for_now_is_told_until_when() {
        for (micros, seconds, millis) in [(1, "1", "1"), (1_000_000, "1", "1000"), (1_000_001, "2", "1001")] {
            let wait = Some(Duration::from_micros(micros));
            let limited = Error::new(Side::Peer, Reason::RateLimited, "shop/orders/total").until(wait);
            let response = error(&limited, None, false);
            assert_eq!(
                (response.status().as_u16(), &response.headers()["retry-after"]),
                (429, &HeaderValue::from_static(seconds))
            );
            assert!(!response.headers().contains_key("grpc-retry-pushback-ms"));
            let response = error(&limited, None, true);
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (200, &HeaderValue::from_static("8"))
            );
            assert_eq!(response.headers()["retry-after"], seconds);
            assert_eq!(response.headers()["grpc-retry-pushback-ms"], millis);
            assert!(!format!("{:?}", response.headers()).contains("total"), "callers are not told the limit");
        }
        let untold = Error::new(Side::Peer, Reason::RateLimited, "").until(None);
        assert!(!error(&untold, None, false).headers().contains_key("retry-after"));
    }
}
