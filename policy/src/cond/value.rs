//! Values, and what goes wrong on the way to one.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json};

use super::ast::Literal;

/// A value of an expression.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Shared<'a, str>),
    Bytes(Shared<'a, [u8]>),
    List(List<'a>),
    Map(Entries<'a>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    Type(&'static str),
}

/// Of the rule or the request; or made by the expression, once, and held by whatever it is part of. What is made is paid
/// for when it is made: to hold it once more must cost nothing, or a list that doubles would fill the memory.
pub(super) enum Shared<'a, T: ?Sized> {
    Given(&'a T),
    Made(Rc<T>),
}

impl<T: ?Sized> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        match self {
            Self::Given(given) => Self::Given(given),
            Self::Made(made) => Self::Made(Rc::clone(made)),
        }
    }
}

impl<T: ?Sized> Deref for Shared<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Given(given) => given,
            Self::Made(made) => made,
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + PartialEq> PartialEq for Shared<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[derive(Clone, Debug)]
pub(super) enum List<'a> {
    Items(Rc<[Value<'a>]>),
    Json(&'a [Json]),
}

#[derive(Clone, Debug)]
pub(super) enum Entries<'a> {
    Items(Rc<[(Value<'a>, Value<'a>)]>),
    Json(&'a Map<String, Json>),
}

/// Why there is no value: the condition is unknown then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fail {
    /// A fact that is not known, or that this request does not have.
    Unknown(&'static str),
    Header(Box<str>, &'static str),
    NoKey(String),
    Overload(&'static str),
    NotBool,
    DivideByZero,
    Overflow,
    Range(&'static str),
    DuplicateKey,
    Index,
    /// The names of a variable nobody declared.
    Undeclared,
    /// It takes more steps than a condition may.
    TooMuch,
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(what) => f.write_str(what),
            Self::Header(name, what) => write!(f, "the header field `{name}` {what}"),
            Self::NoKey(key) => write!(f, "there is no key {key}"),
            Self::Overload(function) => write!(f, "`{function}` does not take values of these types"),
            Self::NotBool => f.write_str("a value that is neither true nor false decides"),
            Self::DivideByZero => f.write_str("a number is divided by zero"),
            Self::Overflow => f.write_str("a number is too large"),
            Self::Range(function) => write!(f, "`{function}` has no value for this one"),
            Self::DuplicateKey => f.write_str("a map has a key twice"),
            Self::Index => f.write_str("a list has no element at this place"),
            Self::Undeclared => f.write_str("a name is not known"),
            Self::TooMuch => f.write_str("it takes more steps than a condition may"),
        }
    }
}

impl<'a> From<&'a Literal> for Value<'a> {
    fn from(literal: &'a Literal) -> Self {
        match literal {
            Literal::Null => Self::Null,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Int(value) => Self::Int(*value),
            Literal::Uint(value) => Self::Uint(*value),
            Literal::Double(value) => Self::Double(*value),
            Literal::Text(text) => Self::Text(Shared::Given(text)),
            Literal::Bytes(bytes) => Self::Bytes(Shared::Given(bytes)),
            Literal::Type(name) => Self::Type(name),
        }
    }
}

impl<'a> From<&'a Json> for Value<'a> {
    /// Whole numbers are ints: JSON does not tell them from others, and `level + 1` should mean what it says.
    fn from(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(int), ..) => Self::Int(int),
                (None, Some(uint), _) => Self::Uint(uint),
                (None, None, double) => Self::Double(double.unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(Shared::Given(text)),
            Json::Array(items) => Self::List(List::Json(items)),
            Json::Object(entries) => Self::Map(Entries::Json(entries)),
        }
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Items(items) => items.len(),
            Self::Json(items) => items.len(),
        }
    }

    pub(super) fn at(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Items(items) => items.get(index).cloned(),
            Self::Json(items) => items.get(index).map(Value::from),
        }
    }
}

impl<'a> Entries<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Items(items) => items.len(),
            Self::Json(entries) => entries.len(),
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Items(items) => items
                .iter()
                .find(|(key, _)| matches!(key, Value::Text(text) if **text == *name))
                .map(|(_, value)| value.clone()),
            Self::Json(entries) => entries.get(name).map(Value::from),
        }
    }

    pub(super) fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match (self, key) {
            (_, Value::Text(name)) => self.field(name),
            (Self::Items(items), key) => {
                items.iter().find(|(found, _)| is_same_key(found, key)).map(|(_, value)| value.clone())
            }
            (Self::Json(_), _) => None,
        }
    }

    pub(super) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Items(items) => items.iter().map(|(key, _)| key.clone()).collect(),
            Self::Json(entries) => entries.keys().map(|key| Value::Text(Shared::Given(key))).collect(),
        }
    }
}

/// Keys are ints, uints, bools and strings; a number of another type finds the equal one.
pub(super) fn is_same_key(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (a, b) => numbers(a, b) == Some(Some(Ordering::Equal)),
    }
}

/// How two numbers compare, of whatever types; the inner `None` is for NaN, the outer for what is no number.
pub(super) fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Option<Ordering>> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Int(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Uint(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Double(a), Value::Int(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
        (Value::Double(a), Value::Uint(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
        _ => return None,
    })
}

/// Exactly: 64 bits do not fit into a double.
#[expect(clippy::cast_possible_truncation, reason = "beyond the bounds the cast is not reached")]
fn whole_and_double(a: i128, b: f64) -> Option<Ordering> {
    const BEYOND: f64 = 1e30;
    if b.is_nan() {
        return None;
    }
    if b.abs() > BEYOND {
        return Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let floor = b.floor();
    Some(match a.cmp(&(floor as i128)) {
        Ordering::Equal if b > floor => Ordering::Less,
        order => order,
    })
}

impl Value<'_> {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
        }
    }
}
