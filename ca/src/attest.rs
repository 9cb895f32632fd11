//! Attestation: a proof becomes facts, and registrations say which ids those facts are granted.
//!
//! An attestor knows nothing of ids and a registration knows nothing of proofs; between them stand [`Facts`] alone. Nothing is
//! granted that no [`Registration`] grants. Everything here is pure: files are read, and exchanged while it is in force, by
//! whoever serves the CA.

mod facts;
mod json;
mod jwk;
mod jwt;
mod registration;
mod template;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod unix;
mod x509pop;

use std::sync::Arc;

pub use facts::{Fact, FactName, Facts, MAX_SHOWN};
pub use jwk::KeySet;
pub use jwt::MAX_TOKEN;
pub use registration::{
    Clause, Granted, Judged, MAX_CLAUSES, MAX_REGISTRATIONS, Outcome, Pattern, Registration, Registrations,
};
pub use template::{BadTemplate, Template};
pub use tokens::{Cluster, MAX_KUBERNETES_LIFE, MAX_OIDC_LIFE, Provider};
pub use unix::Process;
pub use x509pop::{Machines, Possession, Roots};

/// Everything that is believed at one moment.
#[derive(Clone, Debug, Default)]
pub struct Attestation {
    /// Whose service account tokens are believed.
    pub kubernetes: Vec<Cluster>,
    /// Whose OIDC tokens are believed.
    pub oidc: Vec<Provider>,
    /// Whose certificates are believed of those who hold their keys.
    pub x509pop: Vec<Machines>,
    /// Which facts are granted which ids.
    pub registrations: Arc<Registrations>,
}

/// Why a proof is none. For the log: whoever shows it is told nothing of it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NoProof(pub(crate) std::borrow::Cow<'static, str>);

impl From<&'static str> for NoProof {
    fn from(why: &'static str) -> Self {
        Self(why.into())
    }
}

impl From<String> for NoProof {
    fn from(why: String) -> Self {
        Self(why.into())
    }
}
