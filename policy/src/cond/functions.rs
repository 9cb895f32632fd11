//! Operators and functions (CEL specification, "List of Standard Definitions").

use std::cmp::Ordering;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};

use super::ast::Function;
use super::eval::{Evaluated, Steps};
use super::time;
use super::value::{Entries, Fail, List, Shared, Value, numbers};

pub(super) fn one<'a>(function: Function, a: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    let no = || Err(Fail::Overload(function.written()));
    match (function, a) {
        (Function::Not, Value::Bool(value)) => Ok(Value::Bool(!value)),
        (Function::Negate, Value::Int(value)) => value.checked_neg().map(Value::Int).ok_or(Fail::Overflow),
        (Function::Negate, Value::Double(value)) => Ok(Value::Double(-value)),
        (Function::Negate, Value::Duration(value)) => {
            value.checked_neg().map(Value::Duration).ok_or(Fail::Overflow)
        }
        (Function::Size, value) => {
            let len = match &value {
                Value::Text(text) => {
                    steps.spend_bytes(text.len())?;
                    text.chars().count()
                }
                Value::Bytes(bytes) => bytes.len(),
                Value::List(list) => list.len(),
                Value::Map(entries) => entries.len(),
                _ => return no(),
            };
            i64::try_from(len).map(Value::Int).map_err(|_| Fail::Overflow)
        }
        (Function::LowerAscii, Value::Text(text)) => {
            steps.spend_bytes(text.len())?;
            Ok(Value::Text(Shared::Made(text.to_ascii_lowercase().into())))
        }
        (Function::UpperAscii, Value::Text(text)) => {
            steps.spend_bytes(text.len())?;
            Ok(Value::Text(Shared::Made(text.to_ascii_uppercase().into())))
        }
        (Function::TypeOf, value) => Ok(Value::Type(value.type_name())),
        (Function::ToDyn, value) => Ok(value),
        (Function::Get(part), Value::Timestamp(at)) => time::part_of(at, part, None).map(Value::Int),
        (Function::Get(part), Value::Duration(length)) => match time::part_of_length(length, part) {
            Some(value) => Ok(Value::Int(value)),
            None => no(),
        },
        (_, value) => convert(function, value, steps),
    }
}

fn convert<'a>(function: Function, a: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    let range = || Fail::Range(function.written());
    match (function, a) {
        (Function::ToInt, Value::Int(value)) => Ok(Value::Int(value)),
        (Function::ToInt, Value::Uint(value)) => i64::try_from(value).map(Value::Int).map_err(|_| range()),
        (Function::ToInt, Value::Double(value)) => whole(value).map(Value::Int).ok_or_else(range),
        (Function::ToInt, Value::Text(text)) => text.parse().map(Value::Int).map_err(|_| range()),
        (Function::ToInt, Value::Timestamp(at)) => Ok(Value::Int(at.as_second())),
        (Function::ToUint, Value::Uint(value)) => Ok(Value::Uint(value)),
        (Function::ToUint, Value::Int(value)) => u64::try_from(value).map(Value::Uint).map_err(|_| range()),
        (Function::ToUint, Value::Double(value)) => unsigned(value).map(Value::Uint).ok_or_else(range),
        (Function::ToUint, Value::Text(text)) => text.parse().map(Value::Uint).map_err(|_| range()),
        #[expect(clippy::cast_precision_loss, reason = "as the specification has it: to the nearest double")]
        (Function::ToDouble, Value::Int(value)) => Ok(Value::Double(value as f64)),
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        (Function::ToDouble, Value::Uint(value)) => Ok(Value::Double(value as f64)),
        (Function::ToDouble, Value::Double(value)) => Ok(Value::Double(value)),
        (Function::ToDouble, Value::Text(text)) => text.parse().map(Value::Double).map_err(|_| range()),
        (Function::ToBool, Value::Bool(value)) => Ok(Value::Bool(value)),
        (Function::ToBool, Value::Text(text)) => match &*text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            _ => Err(range()),
        },
        (Function::ToBytes, Value::Bytes(bytes)) => Ok(Value::Bytes(bytes)),
        (Function::ToBytes, Value::Text(text)) => Ok(Value::Bytes(match text {
            Shared::Given(text) => Shared::Given(text.as_bytes()),
            Shared::Made(text) => {
                steps.spend_bytes(text.len())?;
                Shared::Made(text.as_bytes().into())
            }
        })),
        (Function::ToText, value) => text(value, steps),
        (Function::ToTimestamp, Value::Timestamp(at)) => Ok(Value::Timestamp(at)),
        (Function::ToTimestamp, Value::Text(text)) => {
            time::timestamp(&text).map(Value::Timestamp).ok_or_else(range)
        }
        (Function::ToTimestamp, Value::Int(seconds)) => {
            let at = Timestamp::from_second(seconds).ok().and_then(time::in_years);
            at.map(Value::Timestamp).ok_or_else(range)
        }
        (Function::ToDuration, Value::Duration(length)) => Ok(Value::Duration(length)),
        (Function::ToDuration, Value::Text(text)) => {
            time::duration(&text).map(Value::Duration).ok_or_else(range)
        }
        _ => Err(Fail::Overload(function.written())),
    }
}

fn text<'a>(value: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    let text = match value {
        Value::Text(text) => return Ok(Value::Text(text)),
        Value::Bytes(Shared::Given(bytes)) => {
            steps.spend_bytes(bytes.len())?;
            let text = std::str::from_utf8(bytes).map_err(|_| Fail::Range("string"))?;
            return Ok(Value::Text(Shared::Given(text)));
        }
        Value::Bytes(Shared::Made(bytes)) => {
            steps.spend_bytes(bytes.len())?;
            std::str::from_utf8(&bytes).map_err(|_| Fail::Range("string"))?.to_owned()
        }
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => double(value),
        Value::Timestamp(at) => at.to_string(),
        Value::Duration(length) => time::written(length),
        _ => return Err(Fail::Overload("string")),
    };
    Ok(Value::Text(Shared::Made(text.into())))
}

fn double(value: f64) -> String {
    const LARGE: f64 = 1e21;
    const SMALL: f64 = 1e-6;
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(SMALL..LARGE).contains(&size) {
        // An exponent has two digits at least.
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    value.to_string()
}

#[expect(clippy::cast_possible_truncation, reason = "within bounds")]
fn whole(value: f64) -> Option<i64> {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    (value > -BEYOND && value < BEYOND).then_some(value as i64)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
fn unsigned(value: f64) -> Option<u64> {
    const BEYOND: f64 = 18_446_744_073_709_551_616.0;
    (0.0..BEYOND).contains(&value).then_some(value as u64)
}

pub(super) fn two<'a>(function: Function, a: Value<'a>, b: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    let no = || Err(Fail::Overload(function.written()));
    match function {
        Function::Equal => is_equal(&a, &b, steps).map(Value::Bool),
        Function::Unequal => is_equal(&a, &b, steps).map(|equal| Value::Bool(!equal)),
        Function::Less | Function::LessOrEqual | Function::Greater | Function::GreaterOrEqual => {
            let Some(order) = order(&a, &b, steps)? else { return no() };
            Ok(Value::Bool(match function {
                Function::Less => order == Some(Ordering::Less),
                Function::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                Function::Greater => order == Some(Ordering::Greater),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            }))
        }
        Function::In => match b {
            Value::List(list) => {
                for at in 0..list.len() {
                    steps.spend(1)?;
                    if let Some(element) = list.at(at)
                        && is_equal(&a, &element, steps)?
                    {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(entries) => {
                steps.spend(if matches!(entries, Entries::Items(_)) { entries.len() / 8 } else { 0 })?;
                Ok(Value::Bool(entries.get(&a).is_some()))
            }
            _ => no(),
        },
        Function::Index => index(a, b, steps),
        Function::Contains | Function::StartsWith | Function::EndsWith => match (a, b) {
            (Value::Text(a), Value::Text(b)) => {
                steps.spend_bytes(a.len() + b.len())?;
                Ok(Value::Bool(match function {
                    Function::Contains => a.contains(&*b),
                    Function::StartsWith => a.starts_with(&*b),
                    _ => a.ends_with(&*b),
                }))
            }
            _ => no(),
        },
        Function::Get(part) => match (a, b) {
            (Value::Timestamp(at), Value::Text(zone)) => {
                // A zone is looked up in the database.
                steps.spend(16)?;
                time::part_of(at, part, Some(&zone)).map(Value::Int)
            }
            _ => no(),
        },
        Function::Add => add(a, b, steps),
        Function::Subtract => match (a, b) {
            (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(b))),
            (Value::Timestamp(at), Value::Duration(by)) => moved(at, by.checked_neg().ok_or(Fail::Overflow)?),
            (Value::Duration(a), Value::Duration(b)) => {
                a.checked_sub(b).and_then(time::in_range).map(Value::Duration).ok_or(Fail::Overflow)
            }
            (a, b) => arithmetic(function, &a, &b),
        },
        Function::Multiply | Function::Divide | Function::Remainder => arithmetic(function, &a, &b),
        _ => no(),
    }
}

fn index<'a>(a: Value<'a>, b: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    match a {
        Value::List(list) => {
            let at = match b {
                Value::Int(at) => usize::try_from(at).map_err(|_| Fail::Index)?,
                Value::Uint(at) => usize::try_from(at).map_err(|_| Fail::Index)?,
                Value::Double(at) if at.fract() == 0.0 => {
                    whole(at).and_then(|at| usize::try_from(at).ok()).ok_or(Fail::Index)?
                }
                _ => return Err(Fail::Overload("[]")),
            };
            list.at(at).ok_or(Fail::Index)
        }
        Value::Map(entries) => {
            if let Entries::Items(items) = &entries {
                steps.spend(items.len() / 8)?;
            }
            entries.get(&b).ok_or_else(|| {
                Fail::NoKey(match b {
                    Value::Text(key) => format!("`{}`", crate::yaml::printable(&key)),
                    _ => "of this value".to_owned(),
                })
            })
        }
        _ => Err(Fail::Overload("[]")),
    }
}

fn add<'a>(a: Value<'a>, b: Value<'a>, steps: &Steps) -> Evaluated<'a> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            steps.spend_bytes(a.len() + b.len())?;
            Ok(Value::Text(Shared::Made([&*a, &*b].concat().into())))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            steps.spend_bytes(a.len() + b.len())?;
            Ok(Value::Bytes(Shared::Made([&*a, &*b].concat().into())))
        }
        (Value::List(a), Value::List(b)) => {
            steps.spend(a.len() + b.len())?;
            let both = (0..a.len()).filter_map(|at| a.at(at)).chain((0..b.len()).filter_map(|at| b.at(at)));
            Ok(Value::List(List::Items(both.collect::<Rc<[_]>>())))
        }
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            moved(at, by)
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(b).and_then(time::in_range).map(Value::Duration).ok_or(Fail::Overflow)
        }
        (a, b) => arithmetic(Function::Add, &a, &b),
    }
}

fn moved<'a>(at: Timestamp, by: SignedDuration) -> Evaluated<'a> {
    at.checked_add(by).ok().and_then(time::in_years).map(Value::Timestamp).ok_or(Fail::Overflow)
}

fn arithmetic<'a>(function: Function, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    let is_division = matches!(function, Function::Divide | Function::Remainder);
    match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if is_division => {
            Err(Fail::DivideByZero)
        }
        (Value::Int(a), Value::Int(b)) => match function {
            Function::Add => a.checked_add(*b),
            Function::Subtract => a.checked_sub(*b),
            Function::Multiply => a.checked_mul(*b),
            Function::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or(Fail::Overflow),
        (Value::Uint(a), Value::Uint(b)) => match function {
            Function::Add => a.checked_add(*b),
            Function::Subtract => a.checked_sub(*b),
            Function::Multiply => a.checked_mul(*b),
            Function::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or(Fail::Overflow),
        (Value::Double(a), Value::Double(b)) => match function {
            Function::Add => Ok(Value::Double(a + b)),
            Function::Subtract => Ok(Value::Double(a - b)),
            Function::Multiply => Ok(Value::Double(a * b)),
            Function::Divide => Ok(Value::Double(a / b)),
            _ => Err(Fail::Overload(function.written())),
        },
        _ => Err(Fail::Overload(function.written())),
    }
}

/// Values of different types are not equal, numbers excepted. Values nest no deeper than expressions and tokens do.
fn is_equal(a: &Value<'_>, b: &Value<'_>, steps: &Steps) -> Result<bool, Fail> {
    steps.spend(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => {
            steps.spend_bytes(a.len().min(b.len()))?;
            a == b
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            steps.spend_bytes(a.len().min(b.len()))?;
            a == b
        }
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for at in 0..a.len() {
                if let (Some(a), Some(b)) = (a.at(at), b.at(at))
                    && !is_equal(&a, &b, steps)?
                {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(a), Value::Map(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            steps.spend(a.len())?;
            for key in a.keys() {
                steps.spend(b.len() / 8)?;
                let (Some(a), Some(b)) = (a.get(&key), b.get(&key)) else { return Ok(false) };
                if !is_equal(&a, &b, steps)? {
                    return Ok(false);
                }
            }
            true
        }
        (a, b) => numbers(a, b) == Some(Some(Ordering::Equal)),
    })
}

/// The outer `None`: they have no order; the inner: NaN has none.
fn order(a: &Value<'_>, b: &Value<'_>, steps: &Steps) -> Result<Option<Option<Ordering>>, Fail> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(Some(a.cmp(b))),
        (Value::Text(a), Value::Text(b)) => {
            steps.spend_bytes(a.len().min(b.len()))?;
            // By code points, which is by bytes in UTF-8.
            Some(Some(a.cmp(b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            steps.spend_bytes(a.len().min(b.len()))?;
            Some(Some(a.cmp(b)))
        }
        (Value::Duration(a), Value::Duration(b)) => Some(Some(a.cmp(b))),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(Some(a.cmp(b))),
        (a, b) => numbers(a, b),
    })
}
