//! Lists, maps and choices, whose parts are asked for one after the other.

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use crate::yaml_spanned::Location;

use super::fault::Fault;
use super::visitor::{AnyVisitor, Slot, Via};
use super::{AnyDeserializer, Held, Thin};

/// What makes a value from a deserializer, without its type. It keeps the value itself.
pub(super) trait AnySeed<'de> {
    fn read(&mut self, from: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault>;
}

/// A seed, and then its value.
pub(super) struct SeedSlot<'de, S: DeserializeSeed<'de>> {
    seed: Option<S>,
    pub(super) value: Option<S::Value>,
}

impl<'de, S: DeserializeSeed<'de>> SeedSlot<'de, S> {
    pub(super) fn new(seed: S) -> Self {
        Self { seed: Some(seed), value: None }
    }
}

impl<'de, S: DeserializeSeed<'de>> AnySeed<'de> for SeedSlot<'de, S> {
    fn read(&mut self, from: &mut dyn AnyDeserializer<'de>) -> Result<(), Fault> {
        let seed = self.seed.take().ok_or(Fault::Lost)?;
        self.value = Some(seed.deserialize(Thin(from))?);
        Ok(())
    }
}

/// The one seed that the reader sees.
pub(super) struct ViaSeed<'a, 'de>(pub(super) &'a mut dyn AnySeed<'de>);

impl<'de> DeserializeSeed<'de> for ViaSeed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let mut held = Held::new(from);
        self.0.read(&mut held).map_err(|fault| fault.raise(held.error))
    }
}

/// A list without its type.
pub(super) trait AnySeq<'de> {
    /// Whether there was another element.
    fn element(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<bool, Fault>;
    fn size_hint(&self) -> Option<usize>;
}

/// A map without its type.
pub(super) trait AnyMap<'de> {
    /// Whether there was another key.
    fn key(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<bool, Fault>;
    fn value(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<(), Fault>;
    fn size_hint(&self) -> Option<usize>;
}

/// A list or a map of the reader's, and the error that came out of it.
pub(super) struct Parts<A, E> {
    parts: A,
    pub(super) error: Option<E>,
}

impl<A, E> Parts<A, E> {
    pub(super) fn new(parts: A) -> Self {
        Self { parts, error: None }
    }

    fn keep<V>(&mut self, result: Result<V, E>) -> Result<V, Fault> {
        result.map_err(|error| {
            self.error = Some(error);
            Fault::Below
        })
    }
}

impl<'de, A: SeqAccess<'de>> AnySeq<'de> for Parts<A, A::Error> {
    fn element(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<bool, Fault> {
        let next = self.parts.next_element_seed(ViaSeed(seed));
        self.keep(next).map(|found| found.is_some())
    }

    fn size_hint(&self) -> Option<usize> {
        self.parts.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> AnyMap<'de> for Parts<A, A::Error> {
    fn key(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<bool, Fault> {
        let next = self.parts.next_key_seed(ViaSeed(seed));
        self.keep(next).map(|found| found.is_some())
    }

    fn value(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<(), Fault> {
        let value = self.parts.next_value_seed(ViaSeed(seed));
        self.keep(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.parts.size_hint()
    }
}

/// The list that types see.
pub(super) struct ThinSeq<'a, 'de>(pub(super) &'a mut dyn AnySeq<'de>);

impl<'de> SeqAccess<'de> for ThinSeq<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let mut slot = SeedSlot::new(seed);
        let found = self.0.element(&mut slot)?;
        Ok(slot.value.filter(|_| found))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// A value with its place as types see it: the value, and then the place's bits.
pub(super) struct Placed<'a, 'de> {
    pub(super) from: &'a mut dyn AnyDeserializer<'de>,
    pub(super) place: Option<Location>,
}

impl<'de> SeqAccess<'de> for Placed<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        if let Some(place) = self.place {
            return seed.deserialize(place.bits().into_deserializer()).map(Some);
        }
        let mut slot = SeedSlot::new(seed);
        self.place = Some(self.from.placed(&mut slot)?);
        Ok(slot.value)
    }
}

/// The map that types see.
pub(super) struct ThinMap<'a, 'de>(pub(super) &'a mut dyn AnyMap<'de>);

impl<'de> MapAccess<'de> for ThinMap<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let mut slot = SeedSlot::new(seed);
        let found = self.0.key(&mut slot)?;
        Ok(slot.value.filter(|_| found))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let mut slot = SeedSlot::new(seed);
        self.0.value(&mut slot)?;
        slot.value.ok_or(Fault::Lost)
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// One of several variants, without its type: first which, then what it holds.
pub(super) trait AnyEnum<'de> {
    fn variant(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<(), Fault>;
    fn content(&mut self, content: Content<'_, 'de>) -> Result<(), Fault>;
}

/// What a variant holds, and who wants it.
pub(super) enum Content<'a, 'de> {
    Unit,
    Newtype(&'a mut dyn AnySeed<'de>),
    Tuple(usize, &'a mut dyn AnyVisitor<'de>),
    Struct(&'static [&'static str], &'a mut dyn AnyVisitor<'de>),
}

/// The reader's choice, before and after its variant is known, and the error that came out of it.
pub(super) struct HeldEnum<'de, A: EnumAccess<'de>> {
    choice: Option<A>,
    variant: Option<A::Variant>,
    pub(super) error: Option<A::Error>,
}

impl<'de, A: EnumAccess<'de>> HeldEnum<'de, A> {
    pub(super) fn new(choice: A) -> Self {
        Self { choice: Some(choice), variant: None, error: None }
    }
}

impl<'de, A: EnumAccess<'de>> AnyEnum<'de> for HeldEnum<'de, A> {
    fn variant(&mut self, seed: &mut dyn AnySeed<'de>) -> Result<(), Fault> {
        let choice = self.choice.take().ok_or(Fault::Lost)?;
        match choice.variant_seed(ViaSeed(seed)) {
            Ok(((), variant)) => {
                self.variant = Some(variant);
                Ok(())
            }
            Err(error) => {
                self.error = Some(error);
                Err(Fault::Below)
            }
        }
    }

    fn content(&mut self, content: Content<'_, 'de>) -> Result<(), Fault> {
        let variant = self.variant.take().ok_or(Fault::Lost)?;
        let result = match content {
            Content::Unit => variant.unit_variant(),
            Content::Newtype(seed) => variant.newtype_variant_seed(ViaSeed(seed)),
            Content::Tuple(len, visitor) => variant.tuple_variant(len, Via(visitor)),
            Content::Struct(fields, visitor) => variant.struct_variant(fields, Via(visitor)),
        };
        result.map_err(|error| {
            self.error = Some(error);
            Fault::Below
        })
    }
}

/// The choice that types see.
pub(super) struct ThinEnum<'a, 'de>(pub(super) &'a mut dyn AnyEnum<'de>);

impl<'de> EnumAccess<'de> for ThinEnum<'_, 'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let mut slot = SeedSlot::new(seed);
        self.0.variant(&mut slot)?;
        Ok((slot.value.ok_or(Fault::Lost)?, self))
    }
}

impl<'de> VariantAccess<'de> for ThinEnum<'_, 'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        self.0.content(Content::Unit)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        let mut slot = SeedSlot::new(seed);
        self.0.content(Content::Newtype(&mut slot))?;
        slot.value.ok_or(Fault::Lost)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        let mut slot = Slot::new(visitor);
        self.0.content(Content::Tuple(len, &mut slot))?;
        slot.value.ok_or(Fault::Lost)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let mut slot = Slot::new(visitor);
        self.0.content(Content::Struct(fields, &mut slot))?;
        slot.value.ok_or(Fault::Lost)
    }
}
