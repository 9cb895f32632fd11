//! Paths in rules: exact, template, segment prefix.

use std::fmt;

use crate::norm::{CanonPath, EscapedSlashes, NormError, PathOptions};

/// Longer ones are no rule a person wrote, and each request pays for the longest.
pub(crate) const MAX_PATTERN: usize = 1024;
/// Segments in a rule's path. The engine's list of matched prefixes is this long.
pub(crate) const MAX_SEGMENTS: usize = 48;

/// A path of a rule, known to be canonical.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum PathPattern {
    /// This path and no other.
    Exact(Box<str>),
    /// This path and everything below it; without a slash at the end, except for `/` itself.
    Prefix(Box<str>),
    /// Segments with wildcards.
    Template(Template),
    /// Methods of a gRPC service whose name begins so: `/{service}/{prefix}*`.
    Methods {
        /// With a slash on either side.
        service: Box<str>,
        prefix: Box<str>,
    },
    /// Whatever begins with these bytes, in the middle of a segment too (`/public*` of Istio).
    Beginning(Box<str>),
    /// Whatever ends with these bytes (`*.html` of Istio).
    Ending(Box<str>),
}

impl PathPattern {
    /// Gives back room that nothing will take any more.
    pub(crate) fn shrink(&mut self) {
        if let Self::Template(template) = self {
            template.segments.shrink_to_fit();
        }
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => match path.strip_prefix(&**prefix) {
                Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
                None => false,
            },
            Self::Template(template) => template.matches(path),
            Self::Methods { service, prefix } => path
                .strip_prefix(&**service)
                .is_some_and(|method| method.starts_with(&**prefix) && !method.contains('/')),
            Self::Beginning(text) => path.starts_with(&**text),
            Self::Ending(text) => path.ends_with(&**text),
        }
    }

    /// Parses an item of Istio's `paths`: `*`, `text*`, `*text`, a template, or one path. A star anywhere else is a star.
    pub(crate) fn parse_istio(text: &str, slashes: EscapedSlashes) -> Result<Self, PatternError> {
        if text.contains("{*}") || text.contains("{**}") {
            let template = Self::parse(text, slashes)?;
            // Envoy refuses such a template, so there is nothing that it could mean.
            return match text.rsplit_once("{**}") {
                Some((_, behind)) if behind.contains("{*}") => Err(PatternError::OneBehindMany),
                _ => Ok(template),
            };
        }
        if text.contains(['{', '}']) {
            return Err(PatternError::Wildcard);
        }
        if let Some(end) = text.strip_prefix('*') {
            if !end.is_empty() {
                check_part(&format!("/x{end}"), slashes).map_err(|error| match error {
                    PatternError::NotCanonical(canonical) => {
                        PatternError::NotCanonical(format!("*{}", canonical.trim_start_matches("/x")))
                    }
                    other => other,
                })?;
            }
            return Ok(if end.is_empty() { Self::Beginning("".into()) } else { Self::Ending(end.into()) });
        }
        if let Some(start) = text.strip_suffix('*') {
            check_part(start, slashes).map_err(|error| match error {
                PatternError::NotCanonical(canonical) => PatternError::NotCanonical(canonical + "*"),
                other => other,
            })?;
            return Ok(Self::Beginning(start.into()));
        }
        check(text, slashes)?;
        Ok(Self::Exact(text.into()))
    }

    /// A prefix in whole segments that covers whatever this one matches, for the index.
    pub(crate) fn parent(&self) -> Option<Self> {
        match self {
            Self::Beginning(text) => match text.rsplit_once('/') {
                Some(("", _)) | None => None,
                Some((parent, _)) => Some(Self::Prefix(parent.into())),
            },
            _ => None,
        }
    }

    /// Parses an item of `grpc`: `package.Service/Method`, `package.Service/*` or `package.Service/Get*`.
    pub(crate) fn parse_grpc(text: &str) -> Result<Self, PatternError> {
        let name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
        };
        let (service, method) = text.split_once('/').ok_or(PatternError::Grpc)?;
        let literal = method.strip_suffix('*');
        if text.len() > MAX_PATTERN
            || !name(service)
            || !literal.unwrap_or(method).split('/').all(|part| part.is_empty() || name(part))
            || method.is_empty()
            || method.contains('/')
        {
            return Err(PatternError::Grpc);
        }
        Ok(match literal {
            None => Self::Exact(format!("/{text}").into()),
            Some("") => {
                Self::Template(Template { segments: vec![Segment::Literal(service.into()), Segment::One] })
            }
            Some(prefix) => Self::Methods { service: format!("/{service}/").into(), prefix: prefix.into() },
        })
    }

    /// A template that matches whatever this one does and finds a place in an index where this one cannot.
    pub(crate) fn wider(&self) -> Option<Template> {
        match self {
            Self::Methods { service, .. } => {
                let service = Segment::Literal(service.trim_matches('/').into());
                Some(Template { segments: vec![service, Segment::One] })
            }
            Self::Exact(_) | Self::Prefix(_) | Self::Template(_) | Self::Beginning(_) | Self::Ending(_) => {
                None
            }
        }
    }

    /// Parses an item of `paths`.
    pub(crate) fn parse(text: &str, slashes: EscapedSlashes) -> Result<Self, PatternError> {
        if text.replace("{*}", "").replace("{**}", "").contains('*') {
            return Err(PatternError::Star);
        }
        if !text.contains(['{', '}']) {
            check(text, slashes)?;
            return Ok(Self::Exact(text.into()));
        }
        let mut segments = Vec::new();
        for segment in text.strip_prefix('/').ok_or(PatternError::Start)?.split('/') {
            segments.push(match segment {
                "{*}" => Segment::One,
                "{**}" => Segment::Many,
                literal if literal.contains(['{', '}']) => return Err(PatternError::Wildcard),
                literal => Segment::Literal(literal.into()),
            });
        }
        // Braces are no path characters; a bare star is one, and stands for the wildcard while the rest is checked.
        let plain = text.replace("{*}", "*").replace("{**}", "**");
        check(&plain, slashes).map_err(|error| match error {
            PatternError::NotCanonical(canonical) => PatternError::NotCanonical(with_wildcards(&canonical)),
            other => other,
        })?;
        if segments.iter().filter(|segment| **segment == Segment::Many).count() > 1 {
            return Err(PatternError::TwoMany);
        }
        Ok(Self::Template(Template { segments }))
    }

    /// Parses an item of `pathPrefix`.
    pub(crate) fn parse_prefix(text: &str, slashes: EscapedSlashes) -> Result<Self, PatternError> {
        if text.contains(['{', '}']) {
            return Err(PatternError::WildcardInPrefix);
        }
        if text.contains('*') {
            return Err(PatternError::StarInPrefix);
        }
        check(text, slashes)?;
        match text.strip_suffix('/') {
            Some("") | None => Ok(Self::Prefix(text.into())),
            Some(shorter) => Err(PatternError::PrefixSlash(shorter.to_owned())),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path} and below"),
            Self::Template(template) => template.fmt(f),
            Self::Methods { service, prefix } => write!(f, "{service}{prefix}*"),
            Self::Beginning(text) => write!(f, "{text}*"),
            Self::Ending(text) => write!(f, "*{text}"),
        }
    }
}

/// A path with wildcards for whole segments.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Segment>,
}

/// One segment of a template.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `{*}`: exactly one segment, not empty.
    One,
    /// `{**}`: one or more segments; the last may be empty (a slash at the end). So `/a/{**}` does not match `/a`.
    Many,
}

impl Template {
    /// Matches without allocating: the head from the left, the tail from the right, `{**}` takes what is between.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let (head, tail) = self.head_and_tail();
        let mut parts = path.split('/');
        if !head.iter().all(|segment| parts.next().is_some_and(|part| segment.takes(part))) {
            return false;
        }
        match tail {
            None => parts.next().is_none(),
            Some(tail) => {
                tail.iter().rev().all(|segment| parts.next_back().is_some_and(|part| segment.takes(part)))
                    && parts.next().is_some()
            }
        }
    }

    /// The segments before `{**}` and, if there is one, those after it.
    pub(crate) fn head_and_tail(&self) -> (&[Segment], Option<&[Segment]>) {
        match self.segments.iter().position(|segment| *segment == Segment::Many) {
            Some(at) => (&self.segments[..at], Some(&self.segments[at + 1..])),
            None => (&self.segments, None),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::One => f.write_str("/{*}")?,
                Segment::Many => f.write_str("/{**}")?,
            }
        }
        Ok(())
    }
}

impl Segment {
    fn takes(&self, part: &str) -> bool {
        match self {
            Self::Literal(text) => **text == *part,
            Self::One => !part.is_empty(),
            Self::Many => false,
        }
    }
}

/// Why a rule's path is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PatternError {
    Grpc,
    Never(NormError),
    NotCanonical(String),
    OneBehindMany,
    PrefixSlash(String),
    Query,
    Star,
    StarInPrefix,
    Start,
    TooLong,
    TwoMany,
    Wildcard,
    WildcardInPrefix,
}

impl PatternError {
    /// What is wrong, and the way out.
    pub(crate) fn text(&self) -> (String, Option<String>) {
        match self {
            Self::Grpc => (
                "this names no gRPC method".to_owned(),
                Some(
                    "write `package.Service/Method`, `package.Service/*` or `package.Service/Get*`"
                        .to_owned(),
                ),
            ),
            Self::Never(why) => (
                format!("no request can have this path: {why}"),
                Some(
                    match why {
                        NormError::PathSlash => {
                            "a Service's port with `escapedSlashes: Keep` has such paths (`Decode`: with `/` there)"
                        }
                        NormError::PathByte => "escape it as clients do: a space is %20, é is %C3%A9",
                        _ => "write the path as it is judged (docs/paths.md)",
                    }
                    .to_owned(),
                ),
            ),
            Self::NotCanonical(canonical) => (
                "this path is not in the form in which requests are judged".to_owned(),
                Some(format!("write `{canonical}`")),
            ),
            Self::OneBehindMany => (
                "`{*}` cannot stand behind `{**}`".to_owned(),
                Some("put `{**}` last".to_owned()),
            ),
            Self::PrefixSlash(shorter) => (
                "a prefix is written without the slash at its end".to_owned(),
                Some(format!("write `{shorter}`: it covers {shorter} and everything below")),
            ),
            Self::Query => {
                ("a rule's path holds no query".to_owned(), Some("leave out `?` and what follows".to_owned()))
            }
            Self::Star => (
                "`*` is no wildcard in a path".to_owned(),
                Some("write `{*}` for one segment, `{**}` for any number of them; or use `pathPrefix`".to_owned()),
            ),
            Self::StarInPrefix => (
                "`*` is no wildcard in a path".to_owned(),
                Some("a prefix covers everything below it by itself: leave the star out".to_owned()),
            ),
            Self::Start => ("a path begins with '/'".to_owned(), Some("put one in front".to_owned())),
            Self::TooLong => {
                let most = format!("a rule's path has at most {MAX_PATTERN} bytes and {MAX_SEGMENTS} segments");
                (most, Some("cut it short with `pathPrefix`".to_owned()))
            }
            Self::TwoMany => (
                "`{**}` may stand only once in a path".to_owned(),
                Some("write `{*}` for single segments, or two paths".to_owned()),
            ),
            Self::Wildcard => (
                "braces stand only around a whole segment: `{*}` (one) or `{**}` (one or more)".to_owned(),
                Some("wildcards have no names: write `{*}` in place of `{id}`".to_owned()),
            ),
            Self::WildcardInPrefix => (
                "a prefix holds no wildcard".to_owned(),
                Some("write it under `paths`, with `{**}` at the end".to_owned()),
            ),
        }
    }
}

fn with_wildcards(plain: &str) -> String {
    let segments: Vec<&str> = plain
        .split('/')
        .map(|segment| match segment {
            "*" => "{*}",
            "**" => "{**}",
            literal => literal,
        })
        .collect();
    segments.join("/")
}

fn check(text: &str, slashes: EscapedSlashes) -> Result<(), PatternError> {
    if text.len() > MAX_PATTERN || text.split('/').count() > MAX_SEGMENTS {
        return Err(PatternError::TooLong);
    }
    if !text.starts_with('/') {
        return Err(PatternError::Start);
    }
    if text.contains('?') {
        return Err(PatternError::Query);
    }
    let options = PathOptions { escaped_slashes: slashes, ..PathOptions::default() };
    let canonical = CanonPath::parse(text, &options).map_err(PatternError::Never)?;
    if canonical.path() == text {
        Ok(())
    } else {
        Err(PatternError::NotCanonical(canonical.path().to_owned()))
    }
}

/// A part of a path, which may be cut in the middle of a segment but nowhere else.
fn check_part(text: &str, slashes: EscapedSlashes) -> Result<(), PatternError> {
    match check(text, slashes) {
        // `/a/.` and `/a/..` can go on as `/a/.x`.
        Err(PatternError::NotCanonical(_))
            if text.rsplit('/').next().is_some_and(|end| end == "." || end == "..") =>
        {
            check(&format!("{text}x"), slashes)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PathPattern {
        PathPattern::parse(text, EscapedSlashes::Reject).unwrap()
    }

    #[test]
    fn templates() {
        for (pattern, path, expected) in [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a", false),
            ("/a/{*}", "/a/b/", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{**}", "/a", false),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a/b/c/", true),
            ("/{**}", "/", true),
            ("/{*}", "/", false),
            ("/store/{**}/cart", "/store/cart", false),
            ("/store/{**}/cart", "/store/x/cart", true),
            ("/store/{**}/cart", "/store/x/y/cart", true),
            ("/store/{**}/cart", "/store/x/cart/", false),
            ("/{*}/x/{**}/{*}", "/a/x/b/c", true),
            ("/{*}/x/{**}/{*}", "/a/x/c", false),
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/{**}", "*", false),
        ] {
            assert_eq!(parse(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn prefixes() {
        let prefix = |text: &str| PathPattern::parse_prefix(text, EscapedSlashes::Reject).unwrap();
        for (pattern, path, expected) in [
            ("/admin", "/admin", true),
            ("/admin", "/admin/", true),
            ("/admin", "/admin/x", true),
            ("/admin", "/administrator", false),
            ("/admin", "/Admin", false),
            ("/", "/", true),
            ("/", "/x/y", true),
            ("/", "*", false),
        ] {
            assert_eq!(prefix(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn refused() {
        let deep = "/a".repeat(MAX_SEGMENTS);
        for (text, error) in [
            ("a", PatternError::Start),
            ("/%61", PatternError::NotCanonical("/a".into())),
            ("/a//b", PatternError::NotCanonical("/a/b".into())),
            ("/a/../b", PatternError::NotCanonical("/b".into())),
            ("/a/{*}/../b", PatternError::NotCanonical("/a/b".into())),
            ("/%61//{*}/{**}", PatternError::NotCanonical("/a/{*}/{**}".into())),
            ("/a%2fb", PatternError::Never(NormError::PathSlash)),
            ("/a?b", PatternError::Query),
            ("/a/*", PatternError::Star),
            ("/a/**", PatternError::Star),
            ("/a*/{*}", PatternError::Star),
            ("/{id}", PatternError::Wildcard),
            ("/x{*}", PatternError::Wildcard),
            ("/{**}/a/{**}", PatternError::TwoMany),
            (&deep, PatternError::TooLong),
        ] {
            assert_eq!(PathPattern::parse(text, EscapedSlashes::Reject), Err(error), "{text}");
        }
        assert_eq!(
            PathPattern::parse_prefix("/a/", EscapedSlashes::Reject),
            Err(PatternError::PrefixSlash("/a".into()))
        );
        assert_eq!(
            PathPattern::parse_prefix("/a/*", EscapedSlashes::Reject),
            Err(PatternError::StarInPrefix)
        );
        assert_eq!(
            PathPattern::parse_prefix("/{*}", EscapedSlashes::Reject),
            Err(PatternError::WildcardInPrefix)
        );
    }
}
