//! What a type finds wrong with what it is given, until it reaches the reader.

use std::fmt;

use serde::de::{Error, Expected, Unexpected};

/// A mistake, kept apart by kind: the reader's errors are, and what is told of them rests on it.
#[derive(Debug)]
pub(super) enum Fault {
    /// The reader's own; it waits where it came from.
    Below,
    /// Something was asked for twice, or not at all: no type does.
    Lost,
    Custom(String),
    InvalidType(Found, String),
    InvalidValue(Found, String),
    InvalidLength(usize, String),
    UnknownVariant(String, &'static [&'static str]),
    UnknownField(String, &'static [&'static str]),
    MissingField(&'static str),
    DuplicateField(&'static str),
}

/// [`Unexpected`], owned.
#[derive(Debug)]
pub(super) enum Found {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Char(char),
    Str(String),
    Bytes(Vec<u8>),
    Unit,
    Option,
    NewtypeStruct,
    Seq,
    Map,
    Enum,
    UnitVariant,
    NewtypeVariant,
    TupleVariant,
    StructVariant,
    Other(String),
}

impl Fault {
    /// As an error of the reader; `below` is what waits there.
    pub(super) fn raise<E: Error>(self, below: Option<E>) -> E {
        match self {
            Self::Below => below.unwrap_or_else(|| E::custom("the reader failed without a reason")),
            Self::Lost => E::custom("a value was read twice, or not at all"),
            Self::Custom(text) => E::custom(text),
            Self::InvalidType(found, wanted) => E::invalid_type(found.borrow(), &wanted.as_str()),
            Self::InvalidValue(found, wanted) => E::invalid_value(found.borrow(), &wanted.as_str()),
            Self::InvalidLength(length, wanted) => E::invalid_length(length, &wanted.as_str()),
            Self::UnknownVariant(variant, known) => E::unknown_variant(&variant, known),
            Self::UnknownField(field, known) => E::unknown_field(&field, known),
            Self::MissingField(field) => E::missing_field(field),
            Self::DuplicateField(field) => E::duplicate_field(field),
        }
    }
}

impl Error for Fault {
    #[cold]
    #[inline(never)]
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Custom(message.to_string())
    }

    #[cold]
    #[inline(never)]
    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::InvalidType(found.into(), wanted.to_string())
    }

    #[cold]
    #[inline(never)]
    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::InvalidValue(found.into(), wanted.to_string())
    }

    #[cold]
    #[inline(never)]
    fn invalid_length(length: usize, wanted: &dyn Expected) -> Self {
        Self::InvalidLength(length, wanted.to_string())
    }

    #[cold]
    #[inline(never)]
    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownVariant(variant.to_owned(), known)
    }

    #[cold]
    #[inline(never)]
    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownField(field.to_owned(), known)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::DuplicateField(field)
    }
}

/// Nobody reads it: a fault becomes the reader's error first.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Fault {}

impl From<Unexpected<'_>> for Found {
    fn from(found: Unexpected<'_>) -> Self {
        match found {
            Unexpected::Bool(value) => Self::Bool(value),
            Unexpected::Unsigned(value) => Self::Unsigned(value),
            Unexpected::Signed(value) => Self::Signed(value),
            Unexpected::Float(value) => Self::Float(value),
            Unexpected::Char(value) => Self::Char(value),
            Unexpected::Str(value) => Self::Str(value.to_owned()),
            Unexpected::Bytes(value) => Self::Bytes(value.to_owned()),
            Unexpected::Unit => Self::Unit,
            Unexpected::Option => Self::Option,
            Unexpected::NewtypeStruct => Self::NewtypeStruct,
            Unexpected::Seq => Self::Seq,
            Unexpected::Map => Self::Map,
            Unexpected::Enum => Self::Enum,
            Unexpected::UnitVariant => Self::UnitVariant,
            Unexpected::NewtypeVariant => Self::NewtypeVariant,
            Unexpected::TupleVariant => Self::TupleVariant,
            Unexpected::StructVariant => Self::StructVariant,
            Unexpected::Other(value) => Self::Other(value.to_owned()),
        }
    }
}

impl Found {
    fn borrow(&self) -> Unexpected<'_> {
        match self {
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Unsigned(value) => Unexpected::Unsigned(*value),
            Self::Signed(value) => Unexpected::Signed(*value),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Char(value) => Unexpected::Char(*value),
            Self::Str(value) => Unexpected::Str(value),
            Self::Bytes(value) => Unexpected::Bytes(value),
            Self::Unit => Unexpected::Unit,
            Self::Option => Unexpected::Option,
            Self::NewtypeStruct => Unexpected::NewtypeStruct,
            Self::Seq => Unexpected::Seq,
            Self::Map => Unexpected::Map,
            Self::Enum => Unexpected::Enum,
            Self::UnitVariant => Unexpected::UnitVariant,
            Self::NewtypeVariant => Unexpected::NewtypeVariant,
            Self::TupleVariant => Unexpected::TupleVariant,
            Self::StructVariant => Unexpected::StructVariant,
            Self::Other(value) => Unexpected::Other(value),
        }
    }
}
