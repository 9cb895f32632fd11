//! RequestAuthentication.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Selector;
use crate::doc::{List, Sp, present};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RequestAuthenticationSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) selector: Option<Sp<Selector>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target_ref: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target_refs: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwt_rules: Option<List<JwtRuleDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct JwtRuleDoc {
    pub(crate) issuer: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) audiences: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwks_uri: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwks: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) from_headers: Option<List<FromHeaderDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) from_params: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) from_cookies: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) output_payload_to_header: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) output_claim_to_headers: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) forward_original_token: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) timeout: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) space_delimited_claims: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FromHeaderDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<Sp<String>>,
}
