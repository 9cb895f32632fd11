//! Istio's own documents, loaded beside ours with Istio's semantics.
//!
//! [`doc`] is what is written, [`check`] finds its mistakes and makes a [`clause`] of each rule: what the rule asks, in
//! Istio's words, as a rule of [`crate::rule`] carries it. [`implicit`] adds what Istio's namespaces mean without saying
//! it. What differs from Istio on purpose stands in docs/istio.md, and a test holds the rest against Envoy.

mod check;
mod clause;
pub(crate) mod doc;
mod identity;
mod implicit;
mod import;
mod text;
mod token;

pub(crate) use check::{
    RequestPolicy, WrittenIssuer, authorization, peer_authentication, request_authentication,
};
pub(crate) use clause::{
    Clause, Field, HostReadings, Test, What, Who, failures, field_holds, matches, method_holds, sni_holds,
};
pub(crate) use identity::{Glob, IdentityPattern, namespaces};
pub(crate) use implicit::{findings, implied, selected};
pub use import::{Imported, Note, import_istio};
pub(crate) use text::TextPattern;
pub(crate) use token::{TokenTest, tokens_hold};

use crate::verdict::{Action, Enforcement};

/// What a policy of Istio's kind has to do with what its namespace means without saying it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    /// An AuthorizationPolicy. An ALLOW closes what it selects to everything else.
    Written(Action, Enforcement),
    /// What no ALLOW selects is allowed.
    ImplicitAllow,
    /// What a dry-run ALLOW does not match would be denied.
    DryRunRest,
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod token_tests;
