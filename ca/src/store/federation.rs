//! What the control plane must not forget of other trust domains.

use std::time::SystemTime;

use postern_svid::TrustDomain;

use super::{Store, StoreError};

/// The part of the CA's memory for bundles of other trust domains.
pub trait FederationStore: Store {
    /// All of them, by name.
    fn federated(&self) -> Result<Vec<Federated>, StoreError>;
    /// Puts one in the place of what its trust domain had; a lower version is refused.
    fn put_federated(&self, row: Federated) -> Result<(), StoreError>;
    /// Takes one out.
    fn forget_federated(&self, trust_domain: &TrustDomain, at: SystemTime) -> Result<(), StoreError>;
}

/// The bundle of another trust domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Federated {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// Its version; 0 if that trust domain does not count them.
    pub sequence: u64,
    /// The document as it came.
    pub document: Vec<u8>,
    /// SHA-256 over its roots, as [`postern_svid::Bundle::digest`] has it.
    pub digest: [u8; 32],
    /// When it came.
    pub fetched: SystemTime,
}
