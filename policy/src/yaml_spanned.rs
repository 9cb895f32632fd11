//! A value with its place.
//!
//! The reader has a type of this name as well. It can also be filled by a format that knows no places, and for that it has
//! each type within it read in a dozen ways: with some two hundred fields that have a place, a tenth of the sidecar. This one is
//! filled by the reader alone, and in one way; and its places are what findings need, a quarter of the reader's.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// What the reader is asked for: not the next value itself but a map of entries in this order, a mark, the value, the place
/// where it is used, and the place where it is written, which differs if it is used by `*name`.
pub(crate) const WITH_PLACE: &str = "__yaml_spanned";
/// The first entry's key.
const MARK: &str = "__serde_saphyr_private_spanned";

/// A place in a document. Lines and columns begin with 1, and columns and lengths count characters.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Location {
    line: u32,
    column: u32,
    len: u32,
}

impl Location {
    /// No place in particular: the document as a whole.
    pub const UNKNOWN: Self = Self { line: 0, column: 0, len: u32::MAX };

    /// Its line; 0 if it is not known.
    pub fn line(self) -> usize {
        index(self.line)
    }

    /// Its column.
    pub fn column(self) -> usize {
        index(self.column)
    }

    /// How many characters stand there; more than any text has if that is not known.
    pub fn len(self) -> usize {
        index(self.len)
    }

    /// Whether nothing stands there.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// All of it, to pass where only plain values pass.
    pub(crate) fn bits(self) -> u128 {
        u128::from(self.line) << 64 | u128::from(self.column) << 32 | u128::from(self.len)
    }

    /// The other way.
    fn from_bits(bits: u128) -> Self {
        let part = |shift: u32| u32::try_from(bits >> shift & u128::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { line: part(64), column: part(32), len: part(0) }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl From<serde_saphyr::Location> for Location {
    fn from(location: serde_saphyr::Location) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: narrow(location.line()),
            column: narrow(location.column()),
            len: narrow(location.span().len()),
        }
    }
}

/// A value that was read, and where it stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is used: the place of `*name`, if it is one.
    pub referenced: Location,
}

impl<T> Spanned<T> {
    /// A value at a place.
    pub const fn new(value: T, referenced: Location) -> Self {
        Self { value, referenced }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(WITH_PLACE, WithPlace(PhantomData))
    }
}

/// Takes the value and then the place's bits.
struct WithPlace<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for WithPlace<T> {
    type Value = Spanned<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Spanned<T>, A::Error> {
        let value = parts.next_element()?.ok_or_else(lost)?;
        let bits = parts.next_element()?.ok_or_else(lost)?;
        Ok(Spanned { value, referenced: Location::from_bits(bits) })
    }

    /// What serde has put by, for `untagged` and `flatten`, comes in this way.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<Spanned<T>, D::Error> {
        Err(lost())
    }
}

#[cold]
fn lost<E: Error>() -> E {
    E::custom("a value came without its place")
}

/// Has the reader fill a seed with its next value, and gives the value's place.
pub(crate) struct Placing<S>(pub(crate) S);

impl<'de, S: DeserializeSeed<'de, Value = ()>> Visitor<'de> for Placing<S> {
    type Value = Location;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Location, D::Error> {
        inner.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Location, A::Error> {
        key(&mut entries, MARK)?;
        entries.next_value::<IgnoredAny>()?;
        key(&mut entries, "value")?;
        entries.next_value_seed(self.0)?;
        key(&mut entries, "referenced")?;
        // The entry that is left, of four, is of no use to anybody.
        entries.next_value_seed(Reading::Place)
    }
}

/// What is read of a place, and of the span within it: the rest of both is left.
enum Reading {
    Place,
    Length,
}

impl<'de> DeserializeSeed<'de> for Reading {
    type Value = Location;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Location, D::Error> {
        deserializer.deserialize_struct("Location", &[], self)
    }
}

impl<'de> Visitor<'de> for Reading {
    type Value = Location;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a place")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Location, A::Error> {
        let mut location = Location::UNKNOWN;
        match self {
            Self::Place => {
                key(&mut entries, "line")?;
                location.line = entries.next_value()?;
                key(&mut entries, "column")?;
                location.column = entries.next_value()?;
                key(&mut entries, "span")?;
                location.len = entries.next_value_seed(Self::Length)?.len;
            }
            Self::Length => {
                key(&mut entries, "offset")?;
                entries.next_value::<IgnoredAny>()?;
                key(&mut entries, "len")?;
                location.len = u32::try_from(entries.next_value::<u64>()?).unwrap_or(u32::MAX);
            }
        }
        Ok(location)
    }
}

/// The next entry must be this one.
fn key<'de, A: MapAccess<'de>>(entries: &mut A, name: &'static str) -> Result<(), A::Error> {
    match entries.next_key_seed(Is(name))? {
        Some(true) => Ok(()),
        Some(false) | None => Err(lost()),
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
