//! Istio's documents as they are written (`security.istio.io/v1` and `v1beta1`, which are the same).

mod request;

pub(crate) use request::{FromHeaderDoc, JwtRuleDoc, RequestAuthenticationSpec};

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::doc::{List, Sp, present};

/// The versions that are read.
pub(crate) const VERSIONS: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];
pub(crate) const AUTHORIZATION_POLICY: &str = "AuthorizationPolicy";
pub(crate) const PEER_AUTHENTICATION: &str = "PeerAuthentication";
pub(crate) const REQUEST_AUTHENTICATION: &str = "RequestAuthentication";
/// All of Istio's kinds that are read.
pub(crate) const KINDS: [&str; 3] = [AUTHORIZATION_POLICY, PEER_AUTHENTICATION, REQUEST_AUTHENTICATION];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuthorizationSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) selector: Option<Sp<Selector>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target_ref: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target_refs: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) action: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) provider: Option<Sp<IgnoredAny>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) rules: Option<List<RuleDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Selector {
    #[serde(default, deserialize_with = "present")]
    pub(crate) match_labels: Option<Sp<BTreeMap<String, String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RuleDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) from: Option<List<FromDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) to: Option<List<ToDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) when: Option<List<ConditionDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FromDoc {
    pub(crate) source: Sp<SourceDoc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SourceDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) principals: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_principals: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) request_principals: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_request_principals: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) namespaces: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_namespaces: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) service_accounts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_service_accounts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) trust_domains: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_trust_domains: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) ip_blocks: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_ip_blocks: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) remote_ip_blocks: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_remote_ip_blocks: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ToDoc {
    pub(crate) operation: Sp<OperationDoc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OperationDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) ports: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_ports: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_methods: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) paths: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_paths: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ConditionDoc {
    pub(crate) key: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) values: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_values: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PeerAuthenticationSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) selector: Option<Sp<Selector>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) mtls: Option<Sp<MtlsDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) port_level_mtls: Option<Sp<BTreeMap<String, Sp<MtlsDoc>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MtlsDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) mode: Option<Sp<String>>,
}
