//! One copy of the YAML reader for all types that are read with it.
//!
//! serde makes a copy of a deserializer's methods for each type that it fills. The reader's are large and the types of
//! documents many: the copies were a third of the sidecar. Here all of them pass one narrow place. A type sees [`Thin`], whose
//! methods are a few instructions long, and behind it the reader is a trait object, made once.
//!
//! Errors pass it unharmed. What the reader finds wrong waits in the [`Held`] that it came from, and only [`Fault::Below`] goes
//! up through the type's code; what a type finds wrong goes down as a [`Fault`] and becomes the reader's own error where it
//! reaches it, so that it gets its place there.

mod access;
mod fault;
mod visitor;

use serde::Deserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Visitor};

use crate::yaml_spanned::{Location, Placing, WITH_PLACE};

use access::{AnySeed, Placed, SeedSlot, ViaSeed};
use fault::Fault;
use visitor::{AnyVisitor, Slot, Via};

/// Reads one document.
pub(crate) fn from_str<T: DeserializeOwned>(
    text: &str,
    options: serde_saphyr::Options,
) -> Result<T, serde_saphyr::Error> {
    let mut slot = SeedSlot::new(std::marker::PhantomData::<T>);
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        ViaSeed(&mut slot).deserialize(reader)
    })?;
    slot.value.ok_or_else(|| Fault::Lost.raise(None))
}

/// What a type asks of the reader.
enum Ask {
    Any,
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Str,
    String,
    Bytes,
    ByteBuf,
    Option,
    Unit,
    UnitStruct(&'static str),
    NewtypeStruct(&'static str),
    Seq,
    Tuple(usize),
    TupleStruct(&'static str, usize),
    Map,
    Struct(&'static str, &'static [&'static str]),
    Enum(&'static str, &'static [&'static str]),
    Identifier,
    Ignored,
}

/// A deserializer without its type.
trait AnyDeserializer<'de> {
    fn ask(&mut self, ask: Ask, visitor: &mut dyn AnyVisitor<'de>) -> Result<(), Fault>;
    /// Fills a seed, and gives the place of what it was filled with. Places are many, and each holds as much as ten values: they
    /// are read on the reader's side.
    fn placed(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<Location, Fault>;
}

/// A deserializer, or a part of one, and the error that came out of it.
struct Held<T, E> {
    inner: Option<T>,
    error: Option<E>,
}

impl<T, E> Held<T, E> {
    fn new(inner: T) -> Self {
        Self { inner: Some(inner), error: None }
    }

    fn take(&mut self) -> Result<T, Fault> {
        self.inner.take().ok_or(Fault::Lost)
    }

    fn keep<V>(&mut self, result: Result<V, E>) -> Result<V, Fault> {
        result.map_err(|error| {
            self.error = Some(error);
            Fault::Below
        })
    }
}

impl<'de, D: Deserializer<'de>> AnyDeserializer<'de> for Held<D, D::Error> {
    fn ask(&mut self, ask: Ask, visitor: &mut dyn AnyVisitor<'de>) -> Result<(), Fault> {
        let (inner, via) = (self.take()?, Via(visitor));
        let answer = match ask {
            Ask::Any => inner.deserialize_any(via),
            Ask::Bool => inner.deserialize_bool(via),
            Ask::I8 => inner.deserialize_i8(via),
            Ask::I16 => inner.deserialize_i16(via),
            Ask::I32 => inner.deserialize_i32(via),
            Ask::I64 => inner.deserialize_i64(via),
            Ask::I128 => inner.deserialize_i128(via),
            Ask::U8 => inner.deserialize_u8(via),
            Ask::U16 => inner.deserialize_u16(via),
            Ask::U32 => inner.deserialize_u32(via),
            Ask::U64 => inner.deserialize_u64(via),
            Ask::U128 => inner.deserialize_u128(via),
            Ask::F32 => inner.deserialize_f32(via),
            Ask::F64 => inner.deserialize_f64(via),
            Ask::Char => inner.deserialize_char(via),
            Ask::Str => inner.deserialize_str(via),
            Ask::String => inner.deserialize_string(via),
            Ask::Bytes => inner.deserialize_bytes(via),
            Ask::ByteBuf => inner.deserialize_byte_buf(via),
            Ask::Option => inner.deserialize_option(via),
            Ask::Unit => inner.deserialize_unit(via),
            Ask::UnitStruct(name) => inner.deserialize_unit_struct(name, via),
            Ask::NewtypeStruct(name) => inner.deserialize_newtype_struct(name, via),
            Ask::Seq => inner.deserialize_seq(via),
            Ask::Tuple(len) => inner.deserialize_tuple(len, via),
            Ask::TupleStruct(name, len) => inner.deserialize_tuple_struct(name, len, via),
            Ask::Map => inner.deserialize_map(via),
            Ask::Struct(name, fields) => inner.deserialize_struct(name, fields, via),
            Ask::Enum(name, variants) => inner.deserialize_enum(name, variants, via),
            Ask::Identifier => inner.deserialize_identifier(via),
            Ask::Ignored => inner.deserialize_ignored_any(via),
        };
        self.keep(answer)
    }

    fn placed(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<Location, Fault> {
        let answer = self.take()?.deserialize_newtype_struct(WITH_PLACE, Placing(ViaSeed(seed)));
        self.keep(answer)
    }
}

/// The deserializer that types see.
struct Thin<'a, 'de>(&'a mut dyn AnyDeserializer<'de>);

impl<'de> Thin<'_, 'de> {
    fn ask<V: Visitor<'de>>(self, ask: Ask, visitor: V) -> Result<V::Value, Fault> {
        let mut slot = Slot::new(visitor);
        self.0.ask(ask, &mut slot)?;
        slot.value.ok_or(Fault::Lost)
    }
}

/// The methods without further arguments.
macro_rules! asks {
    ($($method:ident $ask:ident,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.ask(Ask::$ask, visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Thin<'_, 'de> {
    type Error = Fault;

    asks! {
        deserialize_any Any,
        deserialize_bool Bool,
        deserialize_i8 I8,
        deserialize_i16 I16,
        deserialize_i32 I32,
        deserialize_i64 I64,
        deserialize_i128 I128,
        deserialize_u8 U8,
        deserialize_u16 U16,
        deserialize_u32 U32,
        deserialize_u64 U64,
        deserialize_u128 U128,
        deserialize_f32 F32,
        deserialize_f64 F64,
        deserialize_char Char,
        deserialize_str Str,
        deserialize_string String,
        deserialize_bytes Bytes,
        deserialize_byte_buf ByteBuf,
        deserialize_option Option,
        deserialize_unit Unit,
        deserialize_seq Seq,
        deserialize_map Map,
        deserialize_identifier Identifier,
        deserialize_ignored_any Ignored,
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, v: V) -> Result<V::Value, Fault> {
        self.ask(Ask::UnitStruct(name), v)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        v: V,
    ) -> Result<V::Value, Fault> {
        if name == WITH_PLACE {
            return v.visit_seq(Placed { from: self.0, place: None });
        }
        self.ask(Ask::NewtypeStruct(name), v)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, v: V) -> Result<V::Value, Fault> {
        self.ask(Ask::Tuple(len), v)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        v: V,
    ) -> Result<V::Value, Fault> {
        self.ask(Ask::TupleStruct(name, len), v)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Fault> {
        self.ask(Ask::Struct(name, fields), v)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Fault> {
        self.ask(Ask::Enum(name, variants), v)
    }
}

#[cfg(test)]
mod tests;
