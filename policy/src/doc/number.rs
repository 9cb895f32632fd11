//! Numbers as the JSON Schema of documents takes them: in digits, without quotes. A reader that also took `"8080"` or
//! `1_000` would take what editors and pipelines refuse.

use std::fmt;
use std::marker::PhantomData;

use crate::yaml::Spanned;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use super::{List, Sp};

/// A number that a field may hold.
pub(crate) trait Field: TryFrom<u64> {
    /// What is said where another thing stands.
    const EXPECTED: &str;
}

/// A port.
struct Port(u16);

impl TryFrom<u64> for Port {
    type Error = std::num::TryFromIntError;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        u16::try_from(value).map(Self)
    }
}

impl Field for Port {
    const EXPECTED: &str = "a port is a number from 1 to 65535";
}

impl Field for u16 {
    const EXPECTED: &str = WHOLE;
}

impl Field for u64 {
    const EXPECTED: &str = WHOLE;
}

const WHOLE: &str = "a whole number is expected here";

/// Reads one.
struct Number<T>(T);

impl<'de, T: Field> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What it is, the document says: a deserializer that is asked for a number makes one of quoted digits too.
        deserializer.deserialize_any(Whole(PhantomData))
    }
}

struct Whole<T>(PhantomData<T>);

impl<T: Field> Whole<T> {
    fn other<E: Error>() -> Result<Number<T>, E> {
        Err(E::custom(T::EXPECTED))
    }
}

impl<T: Field> Visitor<'_> for Whole<T> {
    type Value = Number<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        T::try_from(value).map(Number).or_else(|_| Self::other())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Self::other(),
        }
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Self::other()
    }
}

fn bare<T, U>(read: Spanned<Number<T>>, bare: impl Fn(T) -> U) -> Sp<U> {
    let Spanned { value: Number(value), referenced } = read;
    Spanned { value: bare(value), referenced }
}

/// A field that must be there.
pub(crate) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sp<u16>, D::Error> {
    Spanned::deserialize(deserializer).map(|read| bare(read, |Port(port)| port))
}

/// A field that must have a value if it is written.
pub(crate) fn some_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sp<u16>>, D::Error> {
    port(deserializer).map(Some)
}

/// A list that is written.
pub(crate) fn some_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<List<u16>>, D::Error> {
    let Spanned { value, referenced } = Spanned::<Vec<Spanned<Number<Port>>>>::deserialize(deserializer)?;
    let value = value.into_iter().map(|read| bare(read, |Port(port)| port)).collect();
    Ok(Some(Spanned { value, referenced }))
}

/// Another number, that must have a value if it is written.
pub(crate) fn some_number<'de, D: Deserializer<'de>, T: Field>(
    deserializer: D,
) -> Result<Option<Sp<T>>, D::Error> {
    Spanned::deserialize(deserializer).map(|read| Some(bare(read, |number| number)))
}
