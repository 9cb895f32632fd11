//! What a rule asks of a request's tokens, in canonical form, and the engine's check of it. It allocates nothing.

use std::fmt;

use serde_json::{Number, Value};

use crate::tokens::{ClaimPath, Claims, Tokens};

/// A token that a rule means: every field that is given must hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JwtMatch {
    pub(crate) issuer: Box<str>,
    /// One of them is in `aud`.
    pub(crate) audiences: Option<Vec<Box<str>>>,
    /// One of them is `sub`.
    pub(crate) subjects: Option<Vec<Box<str>>>,
    /// All of them hold.
    pub(crate) claims: Vec<ClaimMatch>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClaimMatch {
    pub(crate) path: ClaimPath,
    pub(crate) test: ClaimTest,
}

/// What a claim must be. `null` counts as absent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ClaimTest {
    Present,
    Absent,
    /// It is one value, one of these. In a rule that is no Allow one element of a list will do.
    Is(Vec<ClaimValue>),
    /// It is one of these values, or a list with one of them in it.
    Any(Vec<ClaimValue>),
    /// It has all of these words: elements of a list, or words between spaces (RFC 8693 4.2 writes `scope` so).
    Has(Vec<Box<str>>),
    /// It is none of these values, nor has one of them in it.
    Not(Vec<ClaimValue>),
    /// It has none of these words.
    Lacks(Vec<Box<str>>),
}

/// A value of a claim. A boolean is the word `true` or `false`, a whole number its digits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ClaimValue {
    Exact { text: Box<str>, number: Option<Number> },
    Prefix(Box<str>),
}

impl ClaimValue {
    pub(crate) fn exact(text: &str) -> Self {
        let number = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
        // `007` is a text, and no way to write 7.
        let number = number.ok().filter(|number| number.to_string() == text);
        Self::Exact { text: text.into(), number }
    }

    pub(crate) fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Exact { text, .. }, Value::String(value)) => **text == **value,
            (Self::Exact { text, .. }, Value::Bool(value)) => {
                **text == *(if *value { "true" } else { "false" })
            }
            (Self::Exact { number, .. }, Value::Number(value)) => number.as_ref() == Some(value),
            (Self::Prefix(prefix), Value::String(value)) => value.starts_with(&**prefix),
            _ => false,
        }
    }
}

impl fmt::Display for ClaimValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact { text, .. } => write!(f, "{text:?}"),
            Self::Prefix(text) => write!(f, "{text:?} and what begins so"),
        }
    }
}

/// Whether a `from` with these demands on tokens admits, for a rule that is `wide` or not.
pub(crate) fn admits(jwt: Option<&JwtMatch>, not: Option<&JwtMatch>, tokens: Tokens<'_>, wide: bool) -> bool {
    if let Tokens::Unknown = tokens {
        return wide || (jwt.is_none() && not.is_none());
    }
    jwt.is_none_or(|jwt| tokens.of(&jwt.issuer).any(|claims| jwt.matches(claims, wide)))
        && not.is_none_or(|not| {
            let mut is_there = wide;
            // What is excluded is read the other way round.
            let excluded = tokens.of(&not.issuer).any(|claims| {
                is_there = true;
                not.matches(claims, !wide)
            });
            !excluded && is_there
        })
}

impl JwtMatch {
    fn matches(&self, claims: &Claims, wide: bool) -> bool {
        let Self { issuer: _, audiences, subjects, claims: tests } = self;
        audiences.as_ref().is_none_or(|list| {
            claims.audiences().any(|audience| list.iter().any(|known| **known == *audience))
        }) && subjects.as_ref().is_none_or(|list| {
            claims.subject().is_some_and(|subject| list.iter().any(|known| **known == *subject))
        }) && tests.iter().all(|entry| entry.test.holds(claims.get(&entry.path), wide))
    }
}

impl ClaimTest {
    fn holds(&self, value: Option<&Value>, wide: bool) -> bool {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return match self {
                Self::Present | Self::Is(_) | Self::Any(_) | Self::Has(_) => false,
                Self::Absent => true,
                Self::Not(_) | Self::Lacks(_) => wide,
            };
        };
        let is = |values: &[ClaimValue]| values.iter().any(|known| known.matches(value));
        let list = value.as_array();
        let within = |values: &[ClaimValue]| {
            list.is_some_and(|list| list.iter().any(|item| values.iter().any(|known| known.matches(item))))
        };
        match self {
            Self::Present => true,
            Self::Absent => false,
            Self::Is(values) => is(values) || (wide && within(values)),
            Self::Any(values) => is(values) || within(values),
            Self::Has(words) => words.iter().all(|word| has_word(value, word)),
            Self::Not(values) if wide => !is(values),
            Self::Not(values) => !value.is_object() && !is(values) && !within(values),
            Self::Lacks(words) => {
                (wide || value.is_string() || list.is_some())
                    && !words.iter().any(|word| has_word(value, word))
            }
        }
    }
}

fn has_word(value: &Value, word: &str) -> bool {
    match value {
        Value::String(text) => text.split(' ').any(|known| known == word),
        Value::Array(list) => list.iter().any(|item| item.as_str() == Some(word)),
        _ => false,
    }
}
