//! Paths.
//!
//! One order of steps, from what CVEs taught (CVE-2019-9901, -2021-29492, -2021-31920, -2021-32779, -2026-73511): refuse
//! what cannot be meant, decode unreserved characters once, then slashes, parameters, dot segments and double slashes.
//! The result is what is decided on and what is forwarded, byte for byte.
//!
//! Where servers read the same bytes differently (`;parameters`, doubly escaped characters, kept slashes, an
//! escaped `?`), the path carries those readings, and a request is allowed only if every reading is.

use std::fmt;

use serde::Serialize;

use super::{CanonMethod, NormError};

/// Longer request targets are refused: 8 KiB is what common servers take.
pub const MAX_PATH: usize = 8 * 1024;
/// Readings besides the canonical one. More than this is an attack, not a path.
pub const MAX_READINGS: usize = 4;

/// What happens to `%2F`, `%5C` and `\`. A path that a rule can name under one of them, it can name under the later ones.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum EscapedSlashes {
    /// They are refused: 400.
    #[default]
    Reject,
    /// They become `/`, before dot segments are removed.
    Decode,
    /// They stay escaped; the reading with slashes is judged as well.
    Keep,
}

impl EscapedSlashes {
    /// The words of documents and configurations.
    pub const WORDS: [(&str, Self); 3] =
        [("Reject", Self::Reject), ("Decode", Self::Decode), ("Keep", Self::Keep)];

    /// What a word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
    }
}

/// How paths are read at a port.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PathOptions {
    /// What happens to `%2F`, `%5C` and `\`.
    pub escaped_slashes: EscapedSlashes,
    /// What came is forwarded, not its canonical form. Every request still needs one.
    pub preserve_raw: bool,
}

/// A request target in canonical form: a path, perhaps a query, and the readings that a decision must survive.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CanonPath {
    text: Box<str>,
    path_len: usize,
    changed: bool,
    /// What came, if it is not canonical and is forwarded all the same.
    raw: Option<Box<str>>,
    readings: Box<[Box<str>]>,
}

impl CanonPath {
    /// Parses the path and query of a request line or of `:path`.
    ///
    /// The query is checked for forbidden bytes and otherwise left alone: it takes no part in path matching.
    pub fn parse(raw: impl AsRef<[u8]>, options: &PathOptions) -> Result<Self, NormError> {
        let raw = check_bytes(raw.as_ref())?;
        let (raw_path, query) = match raw.find('?') {
            Some(at) => raw.split_at(at),
            None => (raw, ""),
        };
        let mut path = canonical(raw_path, options.escaped_slashes)?;
        let changed = path != raw_path;
        let readings = readings(&path)?;
        let path_len = path.len();
        path.push_str(query);
        // Escaping can make it three times as long, and the next sidecar takes no longer one either.
        if path.len() > MAX_PATH {
            return Err(NormError::PathTooLong);
        }
        let raw = (changed && options.preserve_raw).then(|| raw.into());
        Ok(Self { text: path.into(), path_len, changed, raw, readings })
    }

    /// A canonical path as one reading of it is judged, for proofs that take readings one by one.
    pub(crate) fn of_one_reading(path: &str) -> Self {
        Self { text: path.into(), path_len: path.len(), changed: false, raw: None, readings: Box::default() }
    }

    /// Parses the target of a request with `method`: `*` is a target of OPTIONS only (RFC 9112 3.2.4).
    pub fn parse_for(
        method: &CanonMethod,
        raw: impl AsRef<[u8]>,
        options: &PathOptions,
    ) -> Result<Self, NormError> {
        if raw.as_ref() == b"*" && method.as_str() == "OPTIONS" {
            let (text, readings) = ("*".into(), Box::default());
            return Ok(Self { text, path_len: 1, changed: false, raw: None, readings });
        }
        Self::parse(raw, options)
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.text[..self.path_len]
    }

    /// The query without its `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.text[self.path_len..].strip_prefix('?')
    }

    /// Path and query as they are forwarded.
    pub fn path_and_query(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.text)
    }

    /// Whether another spelling than the judged one is forwarded: only at a port that preserves raw paths, and only where
    /// no rule speaks of paths ([`Generation::check_path`](crate::Generation::check_path)).
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// Whether the canonical form differs from what came in.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The canonical path first, then how else a server may read it.
    pub fn views(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.path()).chain(self.readings.iter().map(AsRef::as_ref))
    }

    /// Whether there is more than one view.
    pub fn is_ambiguous(&self) -> bool {
        !self.readings.is_empty()
    }
}

impl fmt::Display for CanonPath {
    /// The path without its query, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// Checks a gRPC call's target: POST, exactly `/{service}/{method}`, sent in canonical spelling, without `;` and `%`.
/// A call without the leading slash has passed servers' deny rules (CVE-2026-33186).
pub fn check_grpc(method: &CanonMethod, path: &CanonPath) -> Result<(), NormError> {
    let mut segments = path.path().split('/').skip(1);
    let shape = (segments.next(), segments.next(), segments.next());
    let plain = |segment: &str| !segment.is_empty() && !segment.contains(['%', ';']);
    match shape {
        (Some(service), Some(name), None)
            if method.as_str() == "POST"
                && !path.is_changed()
                && path.query().is_none()
                && plain(service)
                && plain(name) =>
        {
            Ok(())
        }
        _ => Err(NormError::Grpc),
    }
}

/// What a sidecar gets to see of a request target: all that stands before the first `#`.
///
/// A fragment is no part of a request target (RFC 9110, 4.2.5; RFC 9112, 3.2). Over HTTP/1 the sidecar refuses it; over HTTP/2 the
/// library drops it before anything is judged. So it is neither judged nor forwarded, and hides nothing from a rule
/// (CVE-2021-32779 was a proxy that judged it in front of servers that did not). [`CanonPath`] takes none: who asks about
/// a target as it is sent cuts it off first.
pub fn without_fragment(target: &str) -> &str {
    target.split_once('#').map_or(target, |(before, _)| before)
}

/// Steps 1 and 2: size, first byte, bytes that never stand in a target.
fn check_bytes(raw: &[u8]) -> Result<&str, NormError> {
    if raw.len() > MAX_PATH {
        return Err(NormError::PathTooLong);
    }
    if raw.first() != Some(&b'/') {
        return Err(NormError::PathStart);
    }
    if raw.iter().any(|byte| *byte <= 0x20 || *byte >= 0x7f || *byte == b'#') {
        return Err(NormError::PathByte);
    }
    // Only ASCII is left.
    std::str::from_utf8(raw).map_err(|_| NormError::PathByte)
}

/// Steps 3 to 8 on a path that passed [`check_bytes`].
fn canonical(raw: &str, slashes: EscapedSlashes) -> Result<String, NormError> {
    let decoded = decode(raw, slashes)?;
    let mut segments: Vec<&str> = Vec::new();
    // Whether the path ends at a directory: `/a/`, `/a/.` and `/a/b/..` all do.
    let mut directory = false;
    for segment in decoded.split('/').skip(1) {
        let base = without_params(segment);
        if matches!(base, "." | "..") && base.len() != segment.len() {
            return Err(NormError::PathDotParams);
        }
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or(NormError::PathDots)?;
            }
            _ => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if directory || segments.is_empty() {
        out.push('/');
    }
    Ok(out)
}

/// Steps 3 to 5: decodes unreserved characters once, spells other escapes in upper case, treats slashes as told.
fn decode(raw: &str, slashes: EscapedSlashes) -> Result<String, NormError> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let (value, escaped) = match byte {
            b'%' => (hex_pair(bytes, at + 1).ok_or(NormError::PathEscape)?, true),
            _ => (byte, false),
        };
        at += if escaped { 3 } else { 1 };
        if escaped && (value < 0x20 || value == 0x7f) {
            return Err(NormError::PathControl);
        }
        if value == b'\\' || (escaped && value == b'/') {
            match slashes {
                EscapedSlashes::Reject => return Err(NormError::PathSlash),
                EscapedSlashes::Decode => out.push('/'),
                EscapedSlashes::Keep => push_escape(&mut out, value),
            }
        } else if is_unreserved(value) || (!escaped && is_path_byte(value)) {
            out.push(char::from(value));
        } else {
            push_escape(&mut out, value);
        }
    }
    Ok(out)
}

/// How else servers read a canonical path, each reading canonical itself.
fn readings(path: &str) -> Result<Box<[Box<str>]>, NormError> {
    // Nothing but these bytes gives rise to a reading, and normal traffic has none of them.
    if !path.bytes().any(|byte| matches!(byte, b';' | b'%')) {
        return Ok(Box::default());
    }
    let mut found: Vec<Box<str>> = Vec::new();
    let mut next = 0;
    loop {
        let from = match next {
            0 => path,
            n => &found[n - 1],
        };
        let more = [
            read_without_params(from)?,
            read_decoded_again(from)?,
            read_slashes(from)?,
            read_delimiters(from)?,
            read_until(from, "%3F")?,
            read_until(from, "%23")?,
        ];
        for reading in more.into_iter().flatten() {
            if reading == path || found.iter().any(|known| **known == *reading) {
                continue;
            }
            if found.len() == MAX_READINGS {
                return Err(NormError::PathReadings);
            }
            found.push(reading.into());
        }
        next += 1;
        if next > found.len() {
            return Ok(found.into());
        }
    }
}

/// Servlet containers drop `;name=value` from each segment before they route.
fn read_without_params(path: &str) -> Result<Option<String>, NormError> {
    if path.split('/').all(|segment| without_params(segment).len() == segment.len()) {
        return Ok(None);
    }
    let stripped: Vec<&str> = path.split('/').map(without_params).collect();
    canonical(&stripped.join("/"), EscapedSlashes::Keep).map(Some)
}

/// A proxy and a framework in a row decode twice: `%2561` is `%61` to one and `a` to the other.
fn read_decoded_again(path: &str) -> Result<Option<String>, NormError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut from = 0;
    for (at, _) in path.match_indices("%25") {
        if hex_pair(bytes, at + 3).is_some() {
            out.push_str(&path[from..=at]);
            from = at + 3;
        }
    }
    if from == 0 {
        return Ok(None);
    }
    out.push_str(&path[from..]);
    canonical(&out, EscapedSlashes::Decode).map(Some)
}

/// With kept slashes, a server that decodes before it routes sees more segments.
fn read_slashes(path: &str) -> Result<Option<String>, NormError> {
    if !path.contains("%2F") && !path.contains("%5C") {
        return Ok(None);
    }
    canonical(path, EscapedSlashes::Decode).map(Some)
}

/// `%40` is `@` to a server that decodes before it routes.
fn read_delimiters(path: &str) -> Result<Option<String>, NormError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut from = 0;
    for (at, _) in path.match_indices('%') {
        if let Some(value) = hex_pair(bytes, at + 1).filter(|value| is_delimiter(*value)) {
            out.push_str(&path[from..at]);
            out.push(char::from(value));
            from = at + 3;
        }
    }
    if from == 0 {
        return Ok(None);
    }
    out.push_str(&path[from..]);
    canonical(&out, EscapedSlashes::Keep).map(Some)
}

/// A server that decodes before it cuts off the query (CVE-2024-38474), or the fragment, ends the path there.
fn read_until(path: &str, end: &str) -> Result<Option<String>, NormError> {
    match path.find(end) {
        Some(at) => canonical(&path[..at], EscapedSlashes::Keep).map(Some),
        None => Ok(None),
    }
}

/// What stands before the first `;` or `%3B`.
fn without_params(segment: &str) -> &str {
    let end = match (segment.find(';'), segment.find("%3B")) {
        (Some(a), Some(b)) => a.min(b),
        (Some(at), None) | (None, Some(at)) => at,
        (None, None) => segment.len(),
    };
    &segment[..end]
}

/// What RFC 3986 lets stand raw in a path, besides unreserved characters and `%`. The others (`"<>[]^`{|}`) come raw from
/// careless clients and mean the same as their escapes, so they get one spelling.
fn is_path_byte(byte: u8) -> bool {
    byte == b'/' || is_delimiter(byte)
}

/// Sub-delimiters, `:` and `@`: raw and escaped they are different to RFC 3986 and the same to most servers.
fn is_delimiter(byte: u8) -> bool {
    b"!$&'()*+,;=:@".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex_pair(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let value = digit(at)? * 16 + digit(at + 1)?;
    u8::try_from(value).ok()
}

fn push_escape(out: &mut String, value: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.push(DIGITS[usize::from(value >> 4)]);
    out.push(DIGITS[usize::from(value & 15)]);
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
