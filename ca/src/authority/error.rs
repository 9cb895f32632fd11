//! Why there is no working CA.

use postern_svid::BundleError;

use crate::check;
use crate::keys::KeyError;
use crate::profile::ProfileError;
use crate::store::StoreError;

use super::tiers::CEREMONY;

/// Why there is no working CA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The root does not make a bundle.
    #[error("the stored root: {0}")]
    Bundle(#[from] BundleError),
    /// A CA did not pass its own test.
    #[error("the CA's own test failed: {0}")]
    Check(#[from] check::CheckError),
    /// What is stored contradicts itself.
    #[error("the CA's store is damaged: {0}; restore the state directory from a backup")]
    Damaged(&'static str),
    /// A key is missing or open to others.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is another than the certificate's.
    #[error(
        "the key {0} does not belong to its certificate; restore the state directory, keys and database together, from a backup"
    )]
    KeyMismatch(String),
    /// A certificate could not be built.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A root that is offline, and nothing below it.
    #[error("the root is offline, and no tier that it has signed is there or valid: {CEREMONY}")]
    NoTier,
    /// Nothing can be issued any more.
    #[error(
        "the root has expired (or the clock is wrong). If the clock is right, every workload needs a new trust bundle: use a new state directory"
    )]
    RootExpired,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}
