//! Invariants of a PolicyTest, as they are written.

use serde::Deserialize;

use super::{FromDoc, List, Sp, ToDoc, present};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct InvariantDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) never: Option<Sp<ClaimedDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) always: Option<Sp<ClaimedDoc>>,
}

/// What a rule says, without its name and hours.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClaimedDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) from: Option<List<FromDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) to: Option<List<ToDoc>>,
}
