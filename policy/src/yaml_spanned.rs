//! A value with its place.
//!
//! The reader has a type of this name as well. It can also be filled by a format that knows no places, and for that it has
//! each type within it read in a dozen ways: with some two hundred fields that have a place, a tenth of the sidecar. This one is
//! filled by the reader alone, and in one way.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::Location;

/// What the reader is asked for: not the next value itself but a map of four entries in this order, a mark, the value, and
/// two places.
const WITH_PLACE: &str = "__yaml_spanned";
/// The first entry's key.
const MARK: &str = "__serde_saphyr_private_spanned";

/// A value that was read, and where it stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is used: the place of `*name`, if it is one.
    pub referenced: Location,
    /// Where it is written: behind `&name`, if it is used by `*name`.
    pub defined: Location,
}

impl<T> Spanned<T> {
    /// A value at a place.
    pub const fn new(value: T, referenced: Location, defined: Location) -> Self {
        Self { value, referenced, defined }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(WITH_PLACE, WithPlace(PhantomData))
    }
}

struct WithPlace<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for WithPlace<T> {
    type Value = Spanned<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Spanned<T>, D::Error> {
        inner.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Spanned<T>, A::Error> {
        key(&mut entries, MARK)?;
        entries.next_value::<IgnoredAny>()?;
        key(&mut entries, "value")?;
        let value = entries.next_value()?;
        key(&mut entries, "referenced")?;
        let referenced = entries.next_value()?;
        key(&mut entries, "defined")?;
        let defined = entries.next_value()?;
        Ok(Spanned { value, referenced, defined })
    }
}

/// The next entry must be this one: what serde has put by, for `untagged` and `flatten`, comes without.
fn key<'de, A: MapAccess<'de>>(entries: &mut A, name: &'static str) -> Result<(), A::Error> {
    match entries.next_key_seed(Is(name))? {
        Some(true) => Ok(()),
        Some(false) | None => Err(A::Error::custom("a value came without its place")),
    }
}

struct Is(&'static str);

impl<'de> DeserializeSeed<'de> for Is {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Is {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
