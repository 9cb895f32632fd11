//! What the reader gives back to the type that asked.

use std::fmt;

use serde::de::{Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};

use super::access::{AnyEnum, AnyMap, AnySeq, HeldEnum, Parts, ThinEnum, ThinMap, ThinSeq};
use super::fault::Fault;
use super::{AnyDeserializer, Held, Thin};

/// A visitor without its type. It keeps its value itself.
pub(super) trait AnyVisitor<'de> {
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
    fn plain(&mut self, value: Plain<'_, 'de>) -> Result<(), Fault>;
    fn some(&mut self, inner: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault>;
    fn newtype(&mut self, inner: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault>;
    fn seq(&mut self, items: &mut dyn AnySeq<'de>) -> Result<(), Fault>;
    fn map(&mut self, entries: &mut dyn AnyMap<'de>) -> Result<(), Fault>;
    fn choice(&mut self, choice: &mut dyn AnyEnum<'de>) -> Result<(), Fault>;
}

/// What holds nothing else. Narrower numbers travel as the widest of their sort: visitors take either.
pub(super) enum Plain<'a, 'de> {
    Bool(bool),
    Signed(i64),
    Signed128(i128),
    Unsigned(u64),
    Unsigned128(u128),
    Float(f64),
    Char(char),
    Str(&'a str),
    BorrowedStr(&'de str),
    String(String),
    Bytes(&'a [u8]),
    BorrowedBytes(&'de [u8]),
    ByteBuf(Vec<u8>),
    None,
    Unit,
}

/// A visitor, and then its value.
pub(super) struct Slot<'de, V: Visitor<'de>> {
    visitor: Option<V>,
    pub(super) value: Option<V::Value>,
}

impl<'de, V: Visitor<'de>> Slot<'de, V> {
    pub(super) fn new(visitor: V) -> Self {
        Self { visitor: Some(visitor), value: None }
    }

    fn visit(&mut self, visit: impl FnOnce(V) -> Result<V::Value, Fault>) -> Result<(), Fault> {
        let visitor = self.visitor.take().ok_or(Fault::Lost)?;
        self.value = Some(visit(visitor)?);
        Ok(())
    }
}

impl<'de, V: Visitor<'de>> AnyVisitor<'de> for Slot<'de, V> {
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.as_ref().map_or(Ok(()), |visitor| visitor.expecting(f))
    }

    fn plain(&mut self, value: Plain<'_, 'de>) -> Result<(), Fault> {
        self.visit(|visitor| match value {
            Plain::Bool(value) => visitor.visit_bool(value),
            Plain::Signed(value) => visitor.visit_i64(value),
            Plain::Signed128(value) => visitor.visit_i128(value),
            Plain::Unsigned(value) => visitor.visit_u64(value),
            Plain::Unsigned128(value) => visitor.visit_u128(value),
            Plain::Float(value) => visitor.visit_f64(value),
            Plain::Char(value) => visitor.visit_char(value),
            Plain::Str(value) => visitor.visit_str(value),
            Plain::BorrowedStr(value) => visitor.visit_borrowed_str(value),
            Plain::String(value) => visitor.visit_string(value),
            Plain::Bytes(value) => visitor.visit_bytes(value),
            Plain::BorrowedBytes(value) => visitor.visit_borrowed_bytes(value),
            Plain::ByteBuf(value) => visitor.visit_byte_buf(value),
            Plain::None => visitor.visit_none(),
            Plain::Unit => visitor.visit_unit(),
        })
    }

    fn some(&mut self, inner: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault> {
        self.visit(|visitor| visitor.visit_some(Thin(inner)))
    }

    fn newtype(&mut self, inner: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault> {
        self.visit(|visitor| visitor.visit_newtype_struct(Thin(inner)))
    }

    fn seq(&mut self, items: &mut dyn AnySeq<'de>) -> Result<(), Fault> {
        self.visit(|visitor| visitor.visit_seq(ThinSeq(items)))
    }

    fn map(&mut self, entries: &mut dyn AnyMap<'de>) -> Result<(), Fault> {
        self.visit(|visitor| visitor.visit_map(ThinMap(entries)))
    }

    fn choice(&mut self, choice: &mut dyn AnyEnum<'de>) -> Result<(), Fault> {
        self.visit(|visitor| visitor.visit_enum(ThinEnum(choice)))
    }
}

/// The one visitor that the reader sees.
pub(super) struct Via<'a, 'de>(pub(super) &'a mut dyn AnyVisitor<'de>);

/// The methods for what holds nothing else.
macro_rules! plain {
    ($($method:ident($type:ty) $plain:ident,)*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<(), E> {
            self.0.plain(Plain::$plain(value.into())).map_err(|fault| fault.raise(None))
        })*
    };
}

impl<'de> Visitor<'de> for Via<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    plain! {
        visit_bool(bool) Bool,
        visit_i8(i8) Signed,
        visit_i16(i16) Signed,
        visit_i32(i32) Signed,
        visit_i64(i64) Signed,
        visit_i128(i128) Signed128,
        visit_u8(u8) Unsigned,
        visit_u16(u16) Unsigned,
        visit_u32(u32) Unsigned,
        visit_u64(u64) Unsigned,
        visit_u128(u128) Unsigned128,
        visit_f32(f32) Float,
        visit_f64(f64) Float,
        visit_char(char) Char,
        visit_str(&str) Str,
        visit_borrowed_str(&'de str) BorrowedStr,
        visit_string(String) String,
        visit_bytes(&[u8]) Bytes,
        visit_borrowed_bytes(&'de [u8]) BorrowedBytes,
        visit_byte_buf(Vec<u8>) ByteBuf,
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.0.plain(Plain::None).map_err(|fault| fault.raise(None))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.0.plain(Plain::Unit).map_err(|fault| fault.raise(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<(), D::Error> {
        let mut held = Held::new(inner);
        self.0.some(&mut held).map_err(|fault| fault.raise(held.error))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<(), D::Error> {
        let mut held = Held::new(inner);
        self.0.newtype(&mut held).map_err(|fault| fault.raise(held.error))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        let mut held = Parts::new(items);
        self.0.seq(&mut held).map_err(|fault| fault.raise(held.error))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<(), A::Error> {
        let mut held = Parts::new(entries);
        self.0.map(&mut held).map_err(|fault| fault.raise(held.error))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, choice: A) -> Result<(), A::Error> {
        let mut held = HeldEnum::new(choice);
        self.0.choice(&mut held).map_err(|fault| fault.raise(held.error))
    }
}
