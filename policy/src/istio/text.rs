//! Istio's patterns for text: exact, `prefix*`, `*suffix`, and `*` for anything that is there.

use std::fmt;

/// A pattern for text. A star anywhere but at one end is a star.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum TextPattern {
    /// Whatever it is.
    Present,
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

impl TextPattern {
    /// A star in front is looked for before one at the end, as Istio does: `*a*` ends with `a*`.
    pub(crate) fn new(text: &str) -> Self {
        match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
            ("*", _, _) => Self::Present,
            (_, Some(suffix), _) => Self::Suffix(suffix.into()),
            (_, None, Some(prefix)) => Self::Prefix(prefix.into()),
            _ => Self::Exact(text.into()),
        }
    }

    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_bytes()),
        }
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "a", true),
            ("a", "a", true),
            ("a", "A", false),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "ab", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("*a*", "ba*", true),
            ("*a*", "bab", false),
            ("a*b", "a*b", true),
            ("a*b", "axb", false),
        ] {
            let parsed = TextPattern::new(pattern);
            assert_eq!(parsed.matches(text.as_bytes()), expected, "{pattern} {text}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }
}
