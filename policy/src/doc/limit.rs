//! RateLimitPolicy as it is written.

use serde::Deserialize;

use super::number::{some_number, some_ports};
use super::{FromDoc, HeaderDoc, List, NotToDoc, Sp, Target, present};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RateLimitSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) enforcement: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target: Option<Sp<Target>>,
    pub(crate) limits: List<LimitDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) overrides: Option<List<OverrideDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) on_limit: Option<Sp<OnLimitDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LimitDoc {
    pub(crate) name: Sp<String>,
    pub(crate) rate: Sp<String>,
    #[serde(default, deserialize_with = "some_number")]
    pub(crate) burst: Option<Sp<u64>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) r#match: Option<Sp<MatchDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) key: Option<List<String>>,
    #[serde(default, deserialize_with = "some_number")]
    pub(crate) max_keys: Option<Sp<u64>>,
}

/// One alternative of a rule's `to`, and a rule's `from`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MatchDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) from: Option<List<FromDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) paths: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) path_prefix: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) headers: Option<List<HeaderDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grpc: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) upgrade: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) sni: Option<List<String>>,
    #[serde(default, deserialize_with = "some_ports")]
    pub(crate) ports: Option<List<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not: Option<Sp<NotToDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OverrideDoc {
    pub(crate) from: List<FromDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) limit: Option<Sp<String>>,
    pub(crate) rate: Sp<String>,
    #[serde(default, deserialize_with = "some_number")]
    pub(crate) burst: Option<Sp<u64>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OnLimitDoc {
    #[serde(default, deserialize_with = "some_number")]
    pub(crate) http: Option<Sp<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grpc: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) retry_after: Option<Sp<bool>>,
}
