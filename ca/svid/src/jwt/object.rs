//! JSON objects in which no name stands twice: of two `aud`, one reader takes the first and another the last.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The one object that `text` is. Nesting is bounded by the library (128).
pub(crate) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let object = reader.deserialize_map(Names).ok()?;
    reader.end().ok()?;
    Some(object)
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::object;

    #[test]
    fn one_object_each_name_once() {
        assert_eq!(object(br#"{"a": 1, "b": {"a": 2}}"#).map(|found| found.len()), Some(2));
        for bad in [&b""[..], b"[]", b"1", br#"{"a":1,"a":1}"#, br#"{"a":1} "#, br#"{"a":1}{}"#, br#"{"a":1"#]
        {
            let is_padded = bad == br#"{"a":1} "#;
            assert_eq!(object(bad).is_some(), is_padded, "{bad:?}");
        }
        assert!(
            object(format!("{{\"a\":{}", "[".repeat(10_000)).as_bytes()).is_none(),
            "no overflow of the stack"
        );
    }
}
