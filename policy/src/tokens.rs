//! What is known of the tokens (JWTs, RFC 7519) that a request carries.
//!
//! Whoever verified a token makes [`Claims`] of its payload; this crate believes them and verifies nothing. A request
//! whose tokens could not be verified, because a key is not at hand, is another thing than a request without any: its
//! claims are *unknown*, so a Deny that asks for them fires and an Allow does not.

mod check;
mod json;

pub use check::{BadToken, Payload};

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// A request may carry this many tokens at most, of as many issuers.
pub const MAX_TOKENS: usize = 4;
/// The payload of a token may be this large at most.
pub const MAX_PAYLOAD: usize = 8 * 1024;
/// Names in a path of a claim.
const MAX_STEPS: usize = 8;
/// Bytes of a path of a claim.
const MAX_PATH: usize = 512;

/// What is known of a request's tokens at one moment.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// There is none, or none that still holds.
    Absent,
    /// Something that calls itself a token is there, and whether it holds will not be known.
    Unknown,
    /// The claims of each token, verified and not expired; at least one.
    Verified(&'a [Arc<Claims>]),
}

impl<'a> Tokens<'a> {
    /// The verified claims of an issuer's tokens.
    pub fn of(self, issuer: &str) -> impl Iterator<Item = &'a Claims> + use<'a, '_> {
        let all = match self {
            Self::Verified(all) => all,
            Self::Absent | Self::Unknown => &[],
        };
        all.iter().map(|claims| &**claims).filter(move |claims| claims.issuer() == issuer)
    }
}

/// A request's tokens, held for as long as the request lives.
#[derive(Clone, Debug, Default)]
pub struct TokenSet {
    is_unknown: bool,
    /// Latest end first: those that still hold at some moment are a prefix.
    claims: Box<[Arc<Claims>]>,
}

impl TokenSet {
    /// There is no token.
    pub fn absent() -> Self {
        Self::default()
    }

    /// There is something that could not be verified.
    pub fn unknown() -> Self {
        Self { is_unknown: true, claims: Box::default() }
    }

    /// All tokens were verified. More than [`MAX_TOKENS`] of them are unknown.
    pub fn verified(mut claims: Vec<Arc<Claims>>) -> Self {
        if claims.len() > MAX_TOKENS {
            return Self::unknown();
        }
        claims.sort_by_key(|claims| std::cmp::Reverse(claims.ends));
        Self { is_unknown: false, claims: claims.into() }
    }

    /// How many there are; none if they are unknown.
    pub fn count(&self) -> usize {
        self.claims.len()
    }

    /// What holds at `now`: an expired token counts as absent.
    pub fn at(&self, now: SystemTime) -> Tokens<'_> {
        if self.is_unknown {
            return Tokens::Unknown;
        }
        let now = seconds(now);
        match self.claims.partition_point(|claims| claims.ends > now) {
            0 => Tokens::Absent,
            count => Tokens::Verified(&self.claims[..count]),
        }
    }

    /// Whether a token ended in the time after `from` up to `to`, so that what was answered at `from` may not hold.
    pub fn has_ended_between(&self, from: SystemTime, to: SystemTime) -> bool {
        let (from, to) = (seconds(from), seconds(to));
        self.claims.iter().any(|claims| from < claims.ends && claims.ends <= to)
    }
}

/// A JSON object of at most [`MAX_PAYLOAD`] bytes in which no name stands twice, as a token's parts have to be: two
/// readers of any other could see two tokens.
pub fn strict_object(text: &[u8]) -> Result<Map<String, Value>, BadClaims> {
    if text.len() > MAX_PAYLOAD {
        return Err(BadClaims::TooLarge);
    }
    json::object(text)
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// The verified claims of one token.
#[derive(Clone, Eq, PartialEq)]
pub struct Claims {
    issuer: Box<str>,
    subject: Option<Box<str>>,
    audiences: Box<[Box<str>]>,
    expires: i64,
    ends: i64,
    not_before: Option<i64>,
    issued_at: Option<i64>,
    object: Map<String, Value>,
}

impl Claims {
    /// From a token's payload, which must be a JSON object of at most [`MAX_PAYLOAD`] bytes without duplicate names, with
    /// `iss` and `exp`, and with `sub`, `aud`, `nbf` and `iat` of the right types where they are there (RFC 7519 4.1).
    /// That the payload is what an issuer signed is the caller's to know.
    pub fn from_json(payload: &[u8]) -> Result<Self, BadClaims> {
        Self::from_object(strict_object(payload)?)
    }

    /// From a JSON object that a person wrote, for questions and tests.
    pub fn from_object(object: Map<String, Value>) -> Result<Self, BadClaims> {
        let text = |name: &'static str| match object.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str().into())),
            Some(_) => Err(BadClaims::Type(name)),
        };
        let date = |name: &'static str| object.get(name).map(|value| numeric_date(name, value)).transpose();
        let audiences: Box<[Box<str>]> = match object.get("aud") {
            None => Box::default(),
            Some(Value::String(one)) => Box::new([one.as_str().into()]),
            Some(Value::Array(list)) => list
                .iter()
                .map(|item| item.as_str().map(Box::from).ok_or(BadClaims::Type("aud")))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(BadClaims::Type("aud")),
        };
        let expires = date("exp")?.ok_or(BadClaims::Missing("exp"))?;
        Ok(Self {
            issuer: text("iss")?.ok_or(BadClaims::Missing("iss"))?,
            subject: text("sub")?,
            audiences,
            expires,
            ends: expires,
            not_before: date("nbf")?,
            issued_at: date("iat")?,
            object,
        })
    }

    /// The same claims, counted as valid for `skew` longer than they say: clocks differ.
    #[must_use]
    pub fn with_skew(mut self, skew: Duration) -> Self {
        self.ends = self.expires.saturating_add(i64::try_from(skew.as_secs()).unwrap_or(i64::MAX));
        self
    }

    /// `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// `aud`, as a list.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.audiences.iter().map(|audience| &**audience)
    }

    /// `exp`, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.expires
    }

    /// When they end, skew included, in seconds since 1970.
    pub fn ends(&self) -> i64 {
        self.ends
    }

    /// `nbf`, in seconds since 1970.
    pub fn not_before(&self) -> Option<i64> {
        self.not_before
    }

    /// `iat`, in seconds since 1970.
    pub fn issued_at(&self) -> Option<i64> {
        self.issued_at
    }

    /// All claims.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// One claim. Allocates nothing.
    pub fn get(&self, path: &ClaimPath) -> Option<&Value> {
        let (first, rest) = path.steps.split_first()?;
        rest.iter().try_fold(self.object.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }
}

/// Claims are somebody's data: they go into no log.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A NumericDate (RFC 7519 2): seconds since 1970, possibly with a fraction.
fn numeric_date(name: &'static str, value: &Value) -> Result<i64, BadClaims> {
    // A number beyond this is no time, and would overflow when a skew is added to it.
    const LATEST: f64 = 253_402_300_800.0;
    match value.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "within bounds")]
        Some(seconds) if (0.0..LATEST).contains(&seconds) => Ok(seconds.floor() as i64),
        _ => Err(BadClaims::Type(name)),
    }
}

/// Which claim: `scope`; `realm_access.roles` for one within another. A name that begins with `https://` or `http://` is
/// one name (RFC 7519 4.2 advises such names), and `/kubernetes.io/namespace` is a JSON Pointer (RFC 6901), for names
/// with dots.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ClaimPath {
    text: Box<str>,
    steps: Box<[Box<str>]>,
}

impl ClaimPath {
    /// Parses it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_PATH {
            return Err("the name of a claim has at most 512 bytes");
        }
        let steps: Box<[Box<str>]> = if let Some(pointer) = text.strip_prefix('/') {
            pointer.split('/').map(unescaped).collect::<Result<_, _>>()?
        } else if text.starts_with("https://") || text.starts_with("http://") {
            Box::new([text.into()])
        } else {
            text.split('.').map(Box::from).collect()
        };
        if steps.iter().any(|step| step.is_empty()) {
            return Err("the name of a claim is empty: claims within others are written `outer.inner`");
        }
        if steps.len() > MAX_STEPS {
            return Err("claims are nested at most 8 deep");
        }
        Ok(Self { text: text.into(), steps })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A step of a JSON Pointer: `~1` stands for `/`, `~0` for `~`.
fn unescaped(step: &str) -> Result<Box<str>, &'static str> {
    let mut out = String::with_capacity(step.len());
    let mut rest = step.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '~' => match rest.next() {
                Some('0') => '~',
                Some('1') => '/',
                _ => return Err("in a JSON Pointer `~` is written `~0`, and `/` within a name `~1`"),
            },
            c => c,
        });
    }
    Ok(out.into())
}

/// Why a token's payload is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadClaims {
    /// No JSON object.
    NotJson,
    /// A name stands twice in an object: readers would disagree about its value.
    Duplicate,
    /// More than the bounds allow.
    TooLarge,
    /// A registered claim is not there.
    Missing(&'static str),
    /// A registered claim is of a wrong type.
    Type(&'static str),
}

impl fmt::Display for BadClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson => f.write_str("the claims are no JSON object"),
            Self::Duplicate => f.write_str("a claim stands there twice"),
            Self::TooLarge => f.write_str("the claims are too large, or nested too deeply"),
            Self::Missing(name) => write!(f, "the claim `{name}` is missing"),
            Self::Type(name) => write!(f, "the claim `{name}` is of a wrong type"),
        }
    }
}

impl std::error::Error for BadClaims {}

#[cfg(test)]
#[path = "tokens/tests.rs"]
mod tests;
