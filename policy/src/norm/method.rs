//! Methods.

use std::borrow::Cow;
use std::fmt;

use super::NormError;

/// Registered methods are shorter than 20 bytes; the rest is room for private ones.
const MAX_METHOD: usize = 64;
const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

/// A method: a token, in the case in which it came (methods are case-sensitive, RFC 9110 9.1). None is one of the common
/// ones in other letters: Werkzeug and others take `delete` for DELETE, and a rule about DELETE would not.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CanonMethod(Cow<'static, str>);

impl CanonMethod {
    /// Parses a token of RFC 9110 5.6.2. Registered methods do not allocate.
    pub fn parse(text: &str) -> Result<Self, NormError> {
        if let Some(known) = KNOWN.iter().find(|known| **known == text) {
            return Ok(Self(Cow::Borrowed(known)));
        }
        if text.is_empty() || text.len() > MAX_METHOD || !text.bytes().all(is_token) {
            return Err(NormError::Method);
        }
        if Self::is_misspelled(text) {
            return Err(NormError::MethodCase);
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }

    /// GET.
    pub const fn get() -> Self {
        Self(Cow::Borrowed("GET"))
    }

    /// Whether `text` is one of the common methods.
    pub(crate) fn is_registered(text: &str) -> bool {
        KNOWN.contains(&text)
    }

    /// Whether `text` is one of the common methods but for its letters' case.
    pub(crate) fn is_misspelled(text: &str) -> bool {
        !Self::is_registered(text) && KNOWN.iter().any(|known| known.eq_ignore_ascii_case(text))
    }

    /// A bit for each of the common methods.
    pub(crate) fn bit(&self) -> Option<u32> {
        KNOWN.iter().position(|known| **known == *self.0).map(|at| 1 << at)
    }

    /// The common method that `text` nearly is, if it is none itself.
    pub(crate) fn nearly(text: &str) -> Option<&'static str> {
        if Self::is_registered(text) {
            return None;
        }
        crate::yaml::closest(text, &KNOWN)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// TRACE echoes a caller's credentials and CONNECT opens a tunnel: an Allow rule covers them only by name.
    pub fn must_be_named(&self) -> bool {
        matches!(&*self.0, "TRACE" | "CONNECT")
    }
}

impl fmt::Display for CanonMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        for text in ["GET", "purge", "M-SEARCH", "X_Y.z!"] {
            assert_eq!(CanonMethod::parse(text).unwrap().as_str(), text);
        }
        assert_ne!(CanonMethod::parse("purge").unwrap(), CanonMethod::parse("PURGE").unwrap());
        for text in ["get", "Delete", "tRACE", "connect"] {
            assert_eq!(CanonMethod::parse(text), Err(NormError::MethodCase), "{text:?}");
        }
        let long = "A".repeat(65);
        for text in ["", "GE T", "GET/", "GET\n", "GET,POST", "GÉT", "a:b", long.as_str()] {
            assert_eq!(CanonMethod::parse(text), Err(NormError::Method), "{text:?}");
        }
        assert!(CanonMethod::parse("TRACE").unwrap().must_be_named());
        assert!(CanonMethod::parse("CONNECT").unwrap().must_be_named());
        assert!(!CanonMethod::get().must_be_named());
    }
}
