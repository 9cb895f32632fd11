//! EgressPolicy as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::number::some_ports;
use super::{List, Sp, WhenDoc, present};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EgressSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) tier: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) enforcement: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) source: Option<Sp<SourceDoc>>,
    pub(crate) action: Sp<String>,
    pub(crate) rules: List<EgressRuleDoc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SourceDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) all: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) selector: Option<Sp<BTreeMap<String, String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EgressRuleDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) to: Option<List<DestinationDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) when: Option<Sp<WhenDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DestinationDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) services: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) cidrs: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) except: Option<List<String>>,
    #[serde(default, deserialize_with = "some_ports")]
    pub(crate) ports: Option<List<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) protocol: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) paths: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) path_prefix: Option<List<String>>,
}
