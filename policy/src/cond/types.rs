//! Types, as far as they are known before there are values.

use std::fmt;

use super::ast::{Function, Part};

/// A type; `Dyn` is any, to be seen when there is a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    Kind,
    List(Box<Self>),
    Map(Box<Self>, Box<Self>),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::Kind => "type",
            Self::List(of) => return write!(f, "list({of})"),
            Self::Map(key, value) => return write!(f, "map({key}, {value})"),
        })
    }
}

impl Type {
    pub(super) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    /// Whether a value can be of both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a), Self::List(b)) => a.meets(b),
            (Self::Map(a, x), Self::Map(b, y)) => a.meets(b) && x.meets(y),
            (a, b) => a == b,
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Dyn | Self::Int | Self::Uint | Self::Double)
    }

    /// The type of what can be either.
    pub(super) fn join(self, other: &Self) -> Self {
        if self == *other { self } else { Self::Dyn }
    }
}

/// What a function makes of values of these types; `None`: it does not take them.
pub(super) fn result(function: Function, of: &[Type]) -> Option<Type> {
    let is = |n: usize, types: &[Type]| of.get(n).is_some_and(|found| types.iter().any(|t| t.meets(found)));
    let (list, map) = (Type::list(Type::Dyn), Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn)));
    let one = |types: &[Type], out: Type| (of.len() == 1 && is(0, types)).then_some(out);
    let time = [Type::Timestamp, Type::Duration];
    match (function, of) {
        (Function::Not, [_]) => one(&[Type::Bool], Type::Bool),
        (Function::Negate, [a]) => one(&[Type::Int, Type::Double, Type::Duration], a.clone()),
        (
            Function::Add | Function::Subtract | Function::Multiply | Function::Divide | Function::Remainder,
            [a, b],
        ) => arithmetic(function, a, b),
        (Function::Equal | Function::Unequal, [a, b]) => {
            (a.meets(b) || (a.is_number() && b.is_number()) || *a == Type::Null || *b == Type::Null)
                .then_some(Type::Bool)
        }
        (Function::Less | Function::LessOrEqual | Function::Greater | Function::GreaterOrEqual, [a, b]) => {
            let ordered = [Type::Bool, Type::Text, Type::Bytes, Type::Duration, Type::Timestamp];
            let same = a.meets(b) && is(0, &ordered) && is(1, &ordered);
            (same || (a.is_number() && b.is_number())).then_some(Type::Bool)
        }
        (Function::In, [a, b]) => match b {
            Type::Dyn => Some(Type::Bool),
            Type::List(of) | Type::Map(of, _) => {
                (a.meets(of) || (a.is_number() && of.is_number())).then_some(Type::Bool)
            }
            _ => None,
        },
        (Function::Index, [a, b]) => match a {
            Type::Dyn => Some(Type::Dyn),
            Type::List(of) => b.is_number().then(|| (**of).clone()),
            Type::Map(key, value) => {
                (key.meets(b) || (key.is_number() && b.is_number())).then(|| (**value).clone())
            }
            _ => None,
        },
        (Function::Size, [_]) => one(&[Type::Text, Type::Bytes, list, map], Type::Int),
        (Function::Contains | Function::StartsWith | Function::EndsWith | Function::Matches, [_, _]) => {
            (is(0, &[Type::Text]) && is(1, &[Type::Text])).then_some(Type::Bool)
        }
        (Function::LowerAscii | Function::UpperAscii, [_]) => one(&[Type::Text], Type::Text),
        (Function::ToInt, [_]) => {
            one(&[Type::Int, Type::Uint, Type::Double, Type::Text, Type::Timestamp], Type::Int)
        }
        (Function::ToUint, [_]) => one(&[Type::Int, Type::Uint, Type::Double, Type::Text], Type::Uint),
        (Function::ToDouble, [_]) => one(&[Type::Int, Type::Uint, Type::Double, Type::Text], Type::Double),
        (Function::ToText, [_]) => {
            let more = [Type::Bool, Type::Bytes, Type::Timestamp, Type::Duration];
            let numbers = [Type::Int, Type::Uint, Type::Double, Type::Text];
            (is(0, &more) || is(0, &numbers)).then_some(Type::Text)
        }
        (Function::ToBytes, [_]) => one(&[Type::Bytes, Type::Text], Type::Bytes),
        (Function::ToBool, [_]) => one(&[Type::Bool, Type::Text], Type::Bool),
        (Function::ToDyn, [_]) => Some(Type::Dyn),
        (Function::TypeOf, [_]) => Some(Type::Kind),
        (Function::ToTimestamp, [_]) => one(&[Type::Timestamp, Type::Text, Type::Int], Type::Timestamp),
        (Function::ToDuration, [_]) => one(&[Type::Duration, Type::Text], Type::Duration),
        (Function::Get(part), [_]) => {
            let of_length = matches!(part, Part::Hours | Part::Minutes | Part::Seconds | Part::Milliseconds);
            one(if of_length { &time } else { &time[..1] }, Type::Int)
        }
        (Function::Get(_), [_, _]) => (is(0, &time[..1]) && is(1, &[Type::Text])).then_some(Type::Int),
        _ => None,
    }
}

fn arithmetic(function: Function, a: &Type, b: &Type) -> Option<Type> {
    let numbers = [Type::Int, Type::Uint, Type::Double];
    let same = |types: &[Type]| types.iter().find(|t| t.meets(a) && t.meets(b)).cloned();
    let known = |found: Type| if *a == Type::Dyn || *b == Type::Dyn { Type::Dyn } else { found };
    let found = match function {
        Function::Remainder => same(&numbers[..2]),
        Function::Add => match (a, b) {
            (Type::List(x), Type::List(y)) => return Some(Type::list((**x).clone().join(y))),
            (Type::Timestamp, Type::Duration) | (Type::Duration, Type::Timestamp) => Some(Type::Timestamp),
            (Type::List(_), Type::Dyn) | (Type::Dyn, Type::List(_)) => Some(Type::list(Type::Dyn)),
            (Type::Timestamp, Type::Dyn) | (Type::Dyn, Type::Timestamp) => Some(Type::Timestamp),
            _ => same(&numbers).or_else(|| same(&[Type::Text, Type::Bytes, Type::Duration])),
        },
        Function::Subtract => match (a, b) {
            (Type::Timestamp, Type::Timestamp) => Some(Type::Duration),
            (Type::Timestamp, Type::Duration) => Some(Type::Timestamp),
            (Type::Timestamp, Type::Dyn) | (Type::Dyn, Type::Timestamp) => Some(Type::Dyn),
            _ => same(&numbers).or_else(|| same(&[Type::Duration])),
        },
        _ => same(&numbers),
    };
    found.map(known)
}
