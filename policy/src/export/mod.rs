//! Rules in other programs' words.
//!
//! [`envoy`] writes what concerns a workload as Envoy's RBAC filters. What such a filter cannot say is a [`Loss`] that
//! names the rule: whoever exports decides whether that is good enough.

mod envoy;
mod istio;

pub use envoy::envoy;

use serde::Serialize;

use crate::verdict::RuleName;

/// The rules for one workload, as filters of Envoy.
#[derive(Clone, Debug, Serialize)]
pub struct EnvoyFilters {
    /// HTTP filters, in their order.
    pub http: Vec<serde_json::Value>,
    /// Network filters for ports that carry opaque TCP, in their order.
    pub tcp: Vec<serde_json::Value>,
    /// What is not said, or not said exactly.
    #[serde(skip)]
    pub losses: Vec<Loss>,
}

/// Something that the other program cannot say.
#[derive(Clone, Debug, Serialize)]
pub struct Loss {
    /// The rule.
    pub rule: RuleName,
    /// What of it, as the end of the sentence "Envoy …".
    pub what: &'static str,
}
