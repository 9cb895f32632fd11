//! Header fields in memory of their own.
//!
//! What came in one read is one buffer, and each field of it a view of that buffer. HTTP/2 keeps fields that it has sent in the
//! connection's table (RFC 7541, 2.3.2), for as long as the connection lives: a field of thirty bytes would keep the eight kilobytes
//! that it came in, a table of a hundred fields almost a megabyte.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

/// Values up to this size share one piece of memory with the others of their message: one allocation instead of one each.
const SMALL: usize = 128;
/// The size of that piece at most, all of which one value may keep.
const SHARED: usize = 1_024;

/// Moves the values of `headers`. What else a head has, h2 copies by itself.
pub(super) fn fields(headers: &mut HeaderMap) {
    let small: usize = headers.values().map(HeaderValue::len).filter(|length| *length <= SMALL).sum();
    let mut shared = BytesMut::with_capacity(small.min(SHARED));
    for value in headers.values_mut() {
        let bytes = value.as_bytes();
        let own = if bytes.len() <= SMALL && bytes.len() <= shared.capacity() {
            shared.extend_from_slice(bytes);
            shared.split().freeze()
        } else {
            Bytes::copy_from_slice(bytes)
        };
        // They were a value's before, and are one again.
        if let Ok(mut own) = HeaderValue::from_maybe_shared(own) {
            own.set_sensitive(value.is_sensitive());
            *value = own;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 8 << 10;

    /// Fields as a server gets them: views of one buffer.
    fn read(values: &[String]) -> (HeaderMap, std::ops::Range<usize>) {
        let mut buffer = BytesMut::with_capacity(READ);
        let begin = buffer.as_ptr() as usize;
        let mut headers = HeaderMap::new();
        for (number, value) in values.iter().enumerate() {
            buffer.extend_from_slice(value.as_bytes());
            let value = HeaderValue::from_maybe_shared(buffer.split().freeze()).unwrap();
            headers.append(if number % 2 == 0 { "x-even" } else { "x-odd" }, value);
        }
        (headers, begin..begin + READ)
    }

    #[test]
    fn nothing_stays_in_the_buffer_that_was_read() {
        for (many, length) in [(0, 0), (1, 0), (1, SMALL), (1, SMALL + 1), (2, 3_000), (100, 5), (60, 60)] {
            let values: Vec<String> = (0..many).map(|number| format!("{number:length$}")).collect();
            let (mut headers, buffer) = read(&values);
            let before = headers.clone();
            for value in before.values().filter(|value| !value.is_empty()) {
                assert!(buffer.contains(&(value.as_bytes().as_ptr() as usize)), "the test is none");
            }
            fields(&mut headers);
            assert_eq!(headers, before, "{many} of {length}");
            for value in headers.values().filter(|value| !value.is_empty()) {
                assert!(!buffer.contains(&(value.as_bytes().as_ptr() as usize)), "{many} of {length}");
            }
        }
    }

    #[test]
    fn what_must_not_be_indexed_is_still_marked() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("secret");
        secret.set_sensitive(true);
        headers.insert("authorization", secret);
        headers.insert("accept", HeaderValue::from_static("*/*"));
        fields(&mut headers);
        assert!(headers["authorization"].is_sensitive() && !headers["accept"].is_sensitive());
    }
}
