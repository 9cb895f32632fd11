//! One answer from all readings of a question.

use crate::verdict::{DenyReason, Effect};

/// What one reading came to.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// Tier and rule.
    Deny((usize, u32)),
    Allow(u32),
    Nothing,
}

/// What all readings came to.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) obeyed: Readings,
    pub(super) tried: Readings,
    pub(super) audit: Option<u32>,
}

#[derive(Default)]
pub(super) struct Readings {
    denied: Option<(usize, u32)>,
    /// The first reading's.
    allowed: Option<u32>,
    any: bool,
    unruled: bool,
}

impl Readings {
    pub(super) fn add(&mut self, found: Found) {
        match found {
            Found::Deny(by) => self.denied = [self.denied, Some(by)].into_iter().flatten().min(),
            Found::Allow(id) if !self.any => self.allowed = Some(id),
            Found::Allow(_) => {}
            Found::Nothing => self.unruled = true,
        }
        self.any = true;
    }

    /// Denied in one reading is denied; of several rules the one that is asked first is named.
    pub(super) fn together(&self) -> (Effect, Option<u32>) {
        match (self.denied, self.allowed) {
            (Some((_, id)), _) => (Effect::Deny(DenyReason::Rule), Some(id)),
            (None, Some(id)) if !self.unruled => (Effect::Allow, Some(id)),
            (None, _) => (Effect::Deny(DenyReason::NoRule), None),
        }
    }
}
