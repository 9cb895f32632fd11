//! JSON objects read strictly: no name twice, not deep, not many.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::BadClaims;

/// Objects and lists within each other.
const MAX_DEPTH: usize = 16;
/// Values in all.
const MAX_VALUES: usize = 1_024;

/// The object that `text` is.
pub(super) fn object(text: &[u8]) -> Result<Map<String, Value>, BadClaims> {
    let found = Cell::new(None);
    let left = Cell::new(MAX_VALUES);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: 0, left: &left, found: &found }.deserialize(&mut reader);
    match (value, reader.end()) {
        (Ok(Value::Object(object)), Ok(())) => Ok(object),
        _ => Err(found.get().unwrap_or(BadClaims::NotJson)),
    }
}

/// One value; what is wrong with it beside its syntax is left in `found`.
struct Strict<'a> {
    depth: usize,
    left: &'a Cell<usize>,
    found: &'a Cell<Option<BadClaims>>,
}

impl Strict<'_> {
    fn wrong<E: Error>(&self, what: BadClaims) -> E {
        self.found.set(Some(what));
        E::custom(what)
    }

    fn inner<E: Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(self.wrong(BadClaims::TooLarge));
        }
        Ok(Self { depth: self.depth + 1, left: self.left, found: self.found })
    }

    fn count<E: Error>(&self) -> Result<(), E> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(self.wrong(BadClaims::TooLarge)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = list.next_element_seed(self.inner()?)? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(self.inner()?)?;
            if out.insert(name, value).is_some() {
                return Err(self.wrong(BadClaims::Duplicate));
            }
        }
        Ok(Value::Object(out))
    }
}
