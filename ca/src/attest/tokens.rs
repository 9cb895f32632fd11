//! The attestors of tokens: a cluster's projected service account tokens, and an OIDC provider's.
//!
//! Both are checked here alone, against keys that are held: no request to an API server, so a thousand pods that start at once
//! ask nobody a thousand times. What a token says is true of whoever had it within its life; it proves no key.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::jwt::{Unverified, text};
use super::{Attestation, FactName, Facts, KeySet, NoProof};
use crate::lineage::Attestor;

/// The longest life of a service account token that is taken. A projected one lives for an hour, and kubelet renews it at 80 %.
pub const MAX_KUBERNETES_LIFE: Duration = Duration::from_secs(2 * 3_600);
/// The longest life of an OIDC token that is taken; clouds give some for a day.
pub const MAX_OIDC_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// Claims of one OIDC token that become facts.
const MAX_FACTS: usize = 128;

/// A cluster whose service account tokens are believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cluster {
    /// Its name here.
    pub name: String,
    /// `iss` of its tokens, exactly.
    pub issuer: String,
    /// What they must be for.
    pub audience: String,
    /// Its keys.
    pub keys: KeySet,
}

/// An OIDC provider whose tokens are believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provider {
    /// Its name here.
    pub name: String,
    /// `iss` of its tokens, exactly.
    pub issuer: String,
    /// What they must be for.
    pub audience: String,
    /// Its keys.
    pub keys: KeySet,
}

impl Attestation {
    /// What a cluster's projected service account token says of the pod that it was made for.
    pub fn kubernetes(&self, token: &str, now: SystemTime) -> Result<Facts, NoProof> {
        let token = Unverified::parse(token)?;
        let issuer = token.issuer()?;
        let mut same = self.kubernetes.iter().filter(|cluster| cluster.issuer == issuer).peekable();
        if same.peek().is_none() {
            return Err("the token is of an issuer that no cluster under `attestation` has".into());
        }
        // Many clusters call themselves `https://kubernetes.default.svc`; the key tells whose token it is.
        let cluster = same.find(|cluster| token.is_by(&cluster.keys)).ok_or(UNKNOWN_KEY)?;
        let claims = token.verify(&cluster.keys, &cluster.audience, MAX_KUBERNETES_LIFE, now)?;
        pod(&cluster.name, &claims)
    }

    /// What an OIDC provider's token says of whoever it was made for.
    pub fn oidc(&self, token: &str, now: SystemTime) -> Result<Facts, NoProof> {
        let token = Unverified::parse(token)?;
        let issuer = token.issuer()?;
        let provider = self.oidc.iter().find(|provider| provider.issuer == issuer);
        let provider =
            provider.ok_or("the token is of an issuer that no provider under `attestation` has")?;
        if !token.is_by(&provider.keys) {
            return Err(UNKNOWN_KEY.into());
        }
        let claims = token.verify(&provider.keys, &provider.audience, MAX_OIDC_LIFE, now)?;
        let subject = text(&claims, "sub")?;
        let mut facts = Facts::new(Attestor::Oidc)
            .with(FactName::OidcProvider, &provider.name)
            .with(FactName::OidcIssuer, &provider.issuer)
            .with(FactName::OidcSubject, subject);
        let mut others = 0;
        for (name, value) in &claims {
            let values = match value {
                _ if ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"].contains(&name.as_str()) => continue,
                Value::Array(all) => all.as_slice(),
                one => std::slice::from_ref(one),
            };
            for value in values.iter().filter_map(plain) {
                others += 1;
                if others > MAX_FACTS {
                    return Err(format!("the token has more than {MAX_FACTS} claims").into());
                }
                facts = facts.with(FactName::OidcClaim(name.clone()), value);
            }
        }
        Ok(facts)
    }
}

const UNKNOWN_KEY: &str = "the token's key (`kid`) is not in the set of its issuer's keys; if the issuer has exchanged its keys, exchange the file";

/// What is written as a text; objects are not facts.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The facts of a token that kubelet got for a pod. One that anybody asked for without a pod lacks them, and ends with no pod.
fn pod(cluster: &str, claims: &Map<String, Value>) -> Result<Facts, NoProof> {
    let inner = |outer: &Map<String, Value>, name: &str| match outer.get(name) {
        Some(Value::Object(inner)) => Ok(inner.clone()),
        _ => Err(NoProof::from(format!(
            "the token has no `kubernetes.io` claim {name}: it must be a projected token of a pod, of a cluster of 1.30 or later"
        ))),
    };
    let own = inner(claims, "kubernetes.io")?;
    let (account, pod, node) = (inner(&own, "serviceaccount")?, inner(&own, "pod")?, inner(&own, "node")?);
    let namespace = text(&own, "namespace")?;
    let name = text(&account, "name")?;
    text(&account, "uid")?;
    if text(claims, "sub")? != format!("system:serviceaccount:{namespace}:{name}") {
        return Err("the token's `sub` is not the service account of its other claims".into());
    }
    Ok(Facts::new(Attestor::Kubernetes)
        .with(FactName::KubernetesCluster, cluster)
        .with(FactName::KubernetesNamespace, namespace)
        .with(FactName::KubernetesServiceAccount, name)
        .with(FactName::KubernetesPodName, text(&pod, "name")?)
        .with(FactName::KubernetesPodUid, text(&pod, "uid")?)
        .with(FactName::KubernetesNode, text(&node, "name")?))
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
