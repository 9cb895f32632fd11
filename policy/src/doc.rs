//! Documents as they are written. Every leaf knows its place.
//!
//! No `flatten`, no `untagged`: they lose places. No `..` when one of these is taken apart: a field that somebody adds
//! here must not compile until the checker has an opinion about it (a matcher field that one enforcement point forgot
//! widens every rule that uses it).

mod egress;
mod invariant;
mod jwt;
mod limit;
mod number;

use std::collections::BTreeMap;

use crate::yaml::Spanned;
use serde::{Deserialize, Deserializer};

use crate::yaml::Span;
use number::{port, some_port, some_ports};

pub(crate) use egress::{DestinationDoc, EgressRuleDoc, EgressSpec, SourceDoc};
pub(crate) use invariant::{ClaimedDoc, InvariantDoc};
pub(crate) use jwt::{
    ClaimDoc, IssuerDoc, JwksDoc, JwtDefaults, JwtDoc, NotClaimDoc, TokenDoc, TokenHeaderDoc, Words,
};
pub(crate) use limit::{LimitDoc, MatchDoc, OnLimitDoc, OverrideDoc, RateLimitSpec};

/// The only version there is.
pub(crate) const API_VERSION: &str = "postern.dev/v1alpha1";
/// All kinds of our own.
pub(crate) const KINDS: [&str; 6] =
    [ACCESS_POLICY, EGRESS_POLICY, MESH_DEFAULTS, POLICY_TEST, RATE_LIMIT_POLICY, SERVICE];
/// All kinds that are read, Istio's among them.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.into_iter().chain(crate::istio::doc::KINDS)
}
pub(crate) const ACCESS_POLICY: &str = "AccessPolicy";
pub(crate) const EGRESS_POLICY: &str = "EgressPolicy";
pub(crate) const MESH_DEFAULTS: &str = "MeshDefaults";
pub(crate) const POLICY_TEST: &str = "PolicyTest";
pub(crate) const RATE_LIMIT_POLICY: &str = "RateLimitPolicy";
pub(crate) const SERVICE: &str = "Service";

/// A value with its place.
pub(crate) type Sp<T> = Spanned<T>;
/// A list, itself and each of its items with a place.
pub(crate) type List<T> = Spanned<Vec<Spanned<T>>>;

/// What says which kind a document is; everything else is skipped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    #[serde(default)]
    pub(crate) api_version: Option<Sp<String>>,
    #[serde(default)]
    pub(crate) kind: Option<Sp<String>>,
}

/// A document of one kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Document<S> {
    pub(crate) api_version: Sp<String>,
    pub(crate) kind: Sp<String>,
    pub(crate) metadata: Metadata,
    pub(crate) spec: Sp<S>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Metadata {
    pub(crate) name: Sp<String>,
    pub(crate) namespace: Sp<String>,
    /// For people and their tools; no rule reads them.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AccessSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) tier: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) enforcement: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) target: Option<Sp<Target>>,
    pub(crate) action: Sp<String>,
    pub(crate) rules: List<RuleDoc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Target {
    #[serde(default, deserialize_with = "present")]
    pub(crate) all: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) namespaces: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) selector: Option<Sp<BTreeMap<String, String>>>,
    #[serde(default, deserialize_with = "some_ports")]
    pub(crate) ports: Option<List<u16>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RuleDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) from: Option<List<FromDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) to: Option<List<ToDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) when: Option<Sp<WhenDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WhenDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) time: Option<Sp<TimeDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) cel: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TimeDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) weekly: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) zone: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_before: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not_after: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FromDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) spiffe: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) service_accounts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) namespaces: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) trust_domain: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) cidrs: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) unauthenticated: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwt: Option<Sp<JwtDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not: Option<Sp<NotDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NotDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) spiffe: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) service_accounts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) namespaces: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) trust_domain: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) cidrs: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwt: Option<Sp<JwtDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ToDoc {
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

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NotToDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) paths: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) path_prefix: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) upgrade: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) sni: Option<List<String>>,
    #[serde(default, deserialize_with = "some_ports")]
    pub(crate) ports: Option<List<u16>>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HeaderDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) present: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) exact: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) list: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not: Option<Sp<NotHeaderDoc>>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NotHeaderDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) exact: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DefaultsSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) trust_domains: Option<Sp<TrustDomains>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) http: Option<Sp<HttpDefaults>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) on_change: Option<Sp<OnChangeDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwt: Option<Sp<JwtDefaults>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) stale_after: Option<Sp<Span>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TrustDomains {
    #[serde(default, deserialize_with = "present")]
    pub(crate) canonical: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) aliases: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HttpDefaults {
    #[serde(default, deserialize_with = "present")]
    pub(crate) escaped_slashes: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OnChangeDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) tcp: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) streams: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) grace: Option<Sp<Span>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceSpec {
    #[serde(default, deserialize_with = "present")]
    pub(crate) identity: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) external: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) addresses: Option<List<String>>,
    pub(crate) ports: List<PortDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) endpoints: Option<List<EndpointDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PortDoc {
    #[serde(deserialize_with = "port")]
    pub(crate) port: Sp<u16>,
    pub(crate) protocol: Sp<String>,
    #[serde(default, deserialize_with = "some_port")]
    pub(crate) target_port: Option<Sp<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) name: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) upgrades: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) escaped_slashes: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) preserve_raw_path: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) tls: Option<Sp<PortTlsDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PortTlsDoc {
    pub(crate) originate: Sp<bool>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) server_name: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) ca_file: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EndpointDoc {
    pub(crate) address: Sp<String>,
    #[serde(default, deserialize_with = "some_port")]
    pub(crate) mesh_port: Option<Sp<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) identity: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) transport: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TestSpec {
    pub(crate) workload: Sp<TestedDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) cases: Option<List<CaseDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) invariants: Option<List<InvariantDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TestedDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) namespace: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) service_account: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) labels: Option<Sp<BTreeMap<String, String>>>,
    #[serde(default, deserialize_with = "some_port")]
    pub(crate) port: Option<Sp<u16>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CaseDoc {
    pub(crate) name: Sp<String>,
    pub(crate) request: Sp<RequestDoc>,
    pub(crate) expect: Sp<ExpectDoc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RequestDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) egress: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) from: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) unauthenticated: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) address: Option<Sp<String>>,
    #[serde(default, deserialize_with = "some_port")]
    pub(crate) port: Option<Sp<u16>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) method: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) path: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) raw_path: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) host: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) headers: Option<List<LineDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) upgrade: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) tcp: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) sni: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) jwt: Option<Sp<TokenDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) at: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LineDoc {
    pub(crate) name: Sp<String>,
    pub(crate) value: Sp<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExpectDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) allow: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) shadow: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) audit: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) limits: Option<List<String>>,
}

/// A field that is written must have a value: `from:` with nothing behind it must not mean the same as no `from`,
/// which matches more (CVE-2025-64715).
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
