//! What a row of each table may say.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paths {
    pub(crate) paths: Vec<PathRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PathRow {
    pub(crate) raw: String,
    pub(crate) path: Option<String>,
    pub(crate) query: Option<String>,
    #[serde(default)]
    pub(crate) views: Vec<String>,
    pub(crate) error: Option<String>,
    pub(crate) slashes: Option<String>,
    pub(crate) method: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hosts {
    pub(crate) hosts: Vec<HostRow>,
    pub(crate) rules: Vec<HostRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRow {
    pub(crate) raw: String,
    pub(crate) canonical: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRule {
    pub(crate) rule: String,
    pub(crate) host: Option<String>,
    pub(crate) allow: Option<bool>,
    pub(crate) deny: Option<bool>,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Headers {
    pub(crate) rules: Vec<HeaderRow>,
    pub(crate) names: Vec<NameRow>,
    pub(crate) istio: Vec<IstioRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderRow {
    pub(crate) test: String,
    pub(crate) lines: Option<Vec<String>>,
    pub(crate) allow: Option<bool>,
    pub(crate) deny: Option<bool>,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameRow {
    pub(crate) name: String,
    pub(crate) error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IstioRow {
    pub(crate) when: String,
    pub(crate) lines: Option<Vec<String>>,
    pub(crate) allow: bool,
    pub(crate) deny: bool,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Methods {
    pub(crate) methods: Vec<MethodRow>,
    pub(crate) rules: Vec<MethodRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MethodRow {
    pub(crate) raw: String,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MethodRule {
    pub(crate) rule: String,
    pub(crate) method: Option<String>,
    #[serde(default)]
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) allow: Option<bool>,
    pub(crate) deny: Option<bool>,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Addresses {
    pub(crate) rules: Vec<AddressRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddressRow {
    pub(crate) from: String,
    pub(crate) source: Option<String>,
    #[serde(default)]
    pub(crate) anonymous: bool,
    pub(crate) allow: Option<bool>,
    pub(crate) deny: Option<bool>,
    pub(crate) error: Option<String>,
    #[serde(rename = "why")]
    pub(crate) _why: Option<String>,
}
