//! Header fields: how rules ask for them, and how lines become values.

use std::fmt;

/// Header fields of a request, as rules ask for them.
pub trait HeaderLines: fmt::Debug + Send + Sync {
    /// Calls `visit` with the value of each line of the field `name`, which is in lower case. False: the field is not
    /// known and never will be, which is not the same as absent.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) -> bool;
}

/// Header fields, held by value: of a question asked by a person, or kept of a request that lives on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderFields {
    lines: Vec<(Box<str>, Box<[u8]>)>,
    /// Fields outside this list are not known. `None`: all are.
    known: Option<Vec<Box<str>>>,
}

impl HeaderFields {
    /// No fields, and all of that known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The fields of `names` among `all`; others will not be known.
    pub fn keep(all: &dyn HeaderLines, names: &[Box<str>]) -> Self {
        let mut kept = Self { lines: Vec::new(), known: Some(Vec::with_capacity(names.len())) };
        for name in names {
            let lines = &mut kept.lines;
            if all.each(name, &mut |value| lines.push((name.clone(), value.into()))) {
                kept.known.get_or_insert_default().push(name.clone());
            }
        }
        kept
    }

    /// The bytes of all lines.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Adds a line.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let name = name.to_ascii_lowercase();
        check_name(&name)?;
        let value = value.as_ref();
        if value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
            return Err(FieldError::Value);
        }
        self.lines.push((name.into(), value.into()));
        Ok(())
    }
}

impl HeaderLines for HeaderFields {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) -> bool {
        if self.known.as_ref().is_some_and(|known| !known.iter().any(|known| **known == *name)) {
            return false;
        }
        for (_, value) in self.lines.iter().filter(|(known, _)| **known == *name) {
            visit(value);
        }
        true
    }
}

/// Why a header field is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldError {
    /// The name is no token of RFC 9110 5.6.2, or is longer than 128 bytes.
    Name,
    /// `_` in the name: applications that read fields as variables fold it into `-`, so such fields are stripped.
    Underscore,
    /// A control character in the value.
    Value,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "not the name of a header field",
            Self::Underscore => "fields with `_` in their name never reach a workload",
            Self::Value => "the value holds a control character",
        })
    }
}

impl std::error::Error for FieldError {}

/// Whether `name` can be the lower-case name of a field that reaches rules.
pub(crate) fn check_name(name: &str) -> Result<(), FieldError> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&byte);
    if name.contains('_') {
        return Err(FieldError::Underscore);
    }
    if name.is_empty() || name.len() > 128 || !name.bytes().all(token) {
        return Err(FieldError::Name);
    }
    Ok(())
}

/// The elements of a line: between commas, without the space around them. Servers that join lines and servers that take
/// the first one apart see the same elements.
pub(crate) fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(fields: &dyn HeaderLines, name: &str) -> Option<Vec<String>> {
        let mut out = Vec::new();
        let known = fields.each(name, &mut |line| out.push(String::from_utf8_lossy(line).into_owned()));
        known.then_some(out)
    }

    #[test]
    fn what_was_not_kept_is_unknown_and_not_absent() {
        let mut fields = HeaderFields::new();
        fields.push("X-Role", "a, b").unwrap();
        fields.push("x-role", "c").unwrap();
        fields.push("x-other", "d").unwrap();
        assert_eq!(lines(&fields, "x-role"), Some(vec!["a, b".into(), "c".into()]));
        assert_eq!(lines(&fields, "x-none"), Some(vec![]));
        let kept = HeaderFields::keep(&fields, &["x-role".into(), "x-none".into()]);
        assert_eq!(lines(&kept, "x-role"), Some(vec!["a, b".into(), "c".into()]));
        assert_eq!(lines(&kept, "x-none"), Some(vec![]));
        assert_eq!(lines(&kept, "x-other"), None);
        // Keeping of what was not kept does not make it known.
        let again = HeaderFields::keep(&kept, &["x-other".into()]);
        assert_eq!(lines(&again, "x-other"), None);
    }

    #[test]
    fn refused() {
        let mut fields = HeaderFields::new();
        assert_eq!(fields.push("x_role", "a"), Err(FieldError::Underscore));
        assert_eq!(fields.push("x role", "a"), Err(FieldError::Name));
        assert_eq!(fields.push("", "a"), Err(FieldError::Name));
        assert_eq!(fields.push("x", "a\r\nb"), Err(FieldError::Value));
    }

    #[test]
    fn elements_are_what_stands_between_commas() {
        let of = |line: &'static str| elements(line.as_bytes()).collect::<Vec<_>>();
        assert_eq!(of("a, b ,\tc"), [b"a", b"b", b"c"]);
        assert_eq!(of(""), [b""]);
        assert_eq!(of("a,,"), [&b"a"[..], b"", b""]);
    }
}
