//! What a rule asks of a request's tokens, in canonical form, and the engine's check of it. It allocates nothing.

use std::fmt::{self, Write as _};

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
    /// It is one value, one of these. In a rule that is no Allow one that may be it will do, such as an element of a list.
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

/// A value of a claim. A boolean is the word `true` or `false`, a number its digits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ClaimValue {
    Exact {
        text: Box<str>,
        /// The number that it can be read as (RFC 8259, 6).
        number: Option<Number>,
        /// Whether the text is the way to write that number: `1e3` and `7.50` are texts first.
        is_plain: bool,
    },
    Prefix(Box<str>),
}

/// From here on not every whole number is a double, so two equal doubles may have been written as two numbers.
const INEXACT: f64 = 9_007_199_254_740_992.0;

impl ClaimValue {
    pub(crate) fn exact(text: &str) -> Self {
        // `007` is a text, and no way to write 7; nor is a number with blanks around it.
        let number = serde_json::from_str::<Number>(text).ok().filter(|_| text.trim() == text);
        let is_plain = number.as_ref().is_some_and(|number| number.to_string() == text);
        Self::Exact { text: text.into(), number, is_plain }
    }

    /// Whether a value is certainly this one, or if `wide`, whether it may be.
    pub(crate) fn matches(&self, value: &Value, wide: bool) -> bool {
        match (self, value) {
            (Self::Exact { text, .. }, Value::String(value)) => **text == **value,
            (Self::Exact { text, .. }, Value::Bool(value)) => **text == *word(*value),
            (Self::Exact { number: Some(known), is_plain, .. }, Value::Number(value)) => {
                (wide || *is_plain) && is_same(known, value, wide)
            }
            (Self::Prefix(prefix), Value::String(value)) => value.starts_with(&**prefix),
            (Self::Prefix(prefix), Value::Bool(value)) => wide && word(*value).starts_with(&**prefix),
            (Self::Prefix(prefix), Value::Number(value)) => wide && Compared::with(prefix, value).is_some(),
            _ => false,
        }
    }
}

fn word(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// Numbers are what they are worth, however they are written: `7.0` is 7.
fn is_same(a: &Number, b: &Number, wide: bool) -> bool {
    if !a.is_f64() && !b.is_f64() {
        return a == b;
    }
    let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else { return false };
    if wide {
        // Digits are lost where a number is read: its neighbours may be what was written.
        return a == b || a.to_bits().abs_diff(b.to_bits()) <= 2;
    }
    a == b && a.abs() < INEXACT
}

/// A text that is compared with a number as it is being written, so that nothing is allocated.
struct Compared<'a> {
    rest: &'a [u8],
    /// Whether the number goes on behind the text.
    goes_on: bool,
}

impl<'a> Compared<'a> {
    /// `None`: the number does not begin with the text.
    fn with(text: &'a str, number: &Number) -> Option<Self> {
        let mut compared = Self { rest: text.as_bytes(), goes_on: false };
        write!(compared, "{number}").ok()?;
        compared.rest.is_empty().then_some(compared)
    }
}

impl fmt::Write for Compared<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        let (now, behind) = written.as_bytes().split_at(written.len().min(self.rest.len()));
        self.goes_on |= !behind.is_empty();
        self.rest = self.rest.strip_prefix(now).ok_or(fmt::Error)?;
        Ok(())
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
        let is =
            |values: &[ClaimValue], value: &Value| values.iter().any(|known| known.matches(value, false));
        let may_be = |values: &[ClaimValue]| {
            may_be(value, &|value| values.iter().any(|known| known.matches(value, true)))
        };
        let list = value.as_array();
        match self {
            Self::Present => true,
            Self::Absent => false,
            Self::Is(values) | Self::Any(values) if wide => may_be(values),
            Self::Is(values) => is(values, value),
            Self::Any(values) => {
                is(values, value) || list.is_some_and(|list| list.iter().any(|item| is(values, item)))
            }
            Self::Has(words) => words.iter().all(|word| has_word(value, word, wide)),
            // What is excluded is read the other way round.
            Self::Not(values) if wide => !is(values, value),
            Self::Not(values) => !may_be(values),
            Self::Lacks(words) => {
                (wide || value.is_string() || list.is_some())
                    && !words.iter().any(|word| has_word(value, word, !wide))
            }
        }
    }
}

/// The wide reading: any value in lists, however deep, may be meant; and an object may stand for anything.
fn may_be(value: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => list.iter().any(|item| may_be(item, test)),
        Value::Object(_) => true,
        one => test(one),
    }
}

fn has_word(value: &Value, word: &str, wide: bool) -> bool {
    let has = |text: &str| text.split(' ').any(|known| known == word);
    match value {
        value if wide => may_be(value, &|value| match value {
            Value::String(text) => has(text),
            Value::Bool(value) => self::word(*value) == word,
            Value::Number(number) => Compared::with(word, number).is_some_and(|compared| !compared.goes_on),
            _ => false,
        }),
        Value::String(text) => has(text),
        Value::Array(list) => list.iter().any(|item| item.as_str() == Some(word)),
        _ => false,
    }
}
