//! Registrations as they are written. Every leaf knows its place.

use std::collections::BTreeMap;

use postern_policy::yaml::{Span, Spanned};
use serde::Deserialize;

pub(super) type List = Spanned<Vec<Spanned<String>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) api_version: Spanned<String>,
    pub(super) kind: Spanned<String>,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: Spanned<String>,
    #[expect(dead_code, reason = "Kubernetes' own; nothing here depends on them")]
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[expect(dead_code, reason = "Kubernetes' own; nothing here depends on them")]
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) id: Spanned<String>,
    pub(super) from: Spanned<Vec<Spanned<From>>>,
    pub(super) ttl: Option<Spanned<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    pub(super) k8s: Option<Kubernetes>,
    pub(super) oidc: Option<Oidc>,
    pub(super) x509pop: Option<Machine>,
    pub(super) unix: Option<Process>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Kubernetes {
    pub(super) cluster: Spanned<String>,
    pub(super) namespaces: List,
    pub(super) service_accounts: List,
    pub(super) pod_names: Option<List>,
    pub(super) nodes: Option<List>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Oidc {
    pub(super) provider: Spanned<String>,
    pub(super) subjects: Option<List>,
    pub(super) claims: Option<BTreeMap<String, List>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) ca: Spanned<String>,
    pub(super) common_names: Option<List>,
    pub(super) subjects: Option<List>,
    pub(super) dns_names: Option<List>,
    pub(super) uris: Option<List>,
    pub(super) fingerprints: Option<List>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {
    pub(super) uids: Spanned<Vec<u32>>,
    pub(super) gids: Option<Spanned<Vec<u32>>>,
    pub(super) paths: Option<List>,
    pub(super) sha256: Option<List>,
}
