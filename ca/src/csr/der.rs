//! A strict reader for the little DER that a request holds: definite, shortest lengths; nothing left over.

/// Reads one value after the other from a byte slice.
pub(super) struct Reader<'a>(&'a [u8]);

/// The bytes are no DER of the shape that was expected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

/// One value: its whole encoding and its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
}

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]`, constructed.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// `[6]`, primitive: the URI among general names.
const URI: u8 = 0x86;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the next value has this tag.
    pub(super) fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The next value, which must have this tag.
    pub(super) fn value(&mut self, tag: u8) -> Result<Value<'a>, Malformed> {
        let bytes = self.0;
        let (&found, rest) = bytes.split_first().ok_or(Malformed)?;
        if found != tag {
            return Err(Malformed);
        }
        let (length, rest) = length(rest)?;
        let content = rest.get(..length).ok_or(Malformed)?;
        let (whole, after) = bytes.split_at(bytes.len() - (rest.len() - length));
        self.0 = after;
        Ok(Value { whole, content })
    }

    /// Proves that nothing is left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

fn length(bytes: &[u8]) -> Result<(usize, &[u8]), Malformed> {
    match bytes {
        [short @ ..=0x7f, rest @ ..] => Ok((usize::from(*short), rest)),
        [0x81, length @ 0x80..=0xff, rest @ ..] => Ok((usize::from(*length), rest)),
        // Everything read here is at most 4 KiB: two octets of length suffice.
        [0x82, high @ 1..=0xff, low, rest @ ..] => Ok((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        _ => Err(Malformed),
    }
}

/// The one encoding of `SubjectAltName` with one URI and nothing else.
pub(super) fn uri_san(uri: &str) -> Vec<u8> {
    tlv(SEQUENCE, &tlv(URI, uri.as_bytes()))
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u16::try_from(content.len()) {
        Ok(length @ ..=0x7f) => out.push(length.to_be_bytes()[1]),
        Ok(length @ ..=0xff) => out.extend([0x81, length.to_be_bytes()[1]]),
        Ok(length) => {
            out.push(0x82);
            out.extend(length.to_be_bytes());
        }
        // An id has at most 2,048 bytes; whatever is longer compares unequal to every request.
        Err(_) => {}
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_length_is_read() {
        let long = [&[0x30, 0x82, 0x01, 0x00][..], &[0; 256]].concat();
        assert_eq!(Reader::new(&long).value(SEQUENCE).map(|v| v.content.len()), Ok(256));
        for bad in [
            &[0x30][..],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x81, 0x01, 0],
            &[0x30, 0x82, 0x00, 0x80],
            &[0x30, 0x83, 0, 0, 1, 0],
            &[0x30, 0x84, 0, 0, 0, 1, 0],
            &[0x30, 0xff],
            &[0x30, 0x02, 0],
            &[0x31, 0x00],
        ] {
            assert!(Reader::new(bad).value(SEQUENCE).is_err(), "{bad:02x?}");
        }
    }

    #[test]
    fn san_lengths() {
        for length in [1, 0x7d, 0x7e, 0x7f, 0x80, 0xff, 0x100, 2048] {
            let san = uri_san(&"a".repeat(length));
            let mut reader = Reader::new(&san);
            let outer = reader.value(SEQUENCE).unwrap();
            assert_eq!(reader.end(), Ok(()));
            assert_eq!(Reader::new(outer.content).value(URI).map(|v| v.content.len()), Ok(length));
        }
    }
}
