//! What the JWT authority must not forget.

use std::time::SystemTime;

use postern_svid::SpiffeId;

use super::{Store, StoreError};

pub use super::State as JwtState;

/// The JWT authority's part of the CA's memory.
pub trait JwtStore: Store {
    /// All keys that are published, oldest first.
    fn jwt_keys(&self) -> Result<Vec<JwtKey>, StoreError>;
    /// Changes keys as one step; if others are published afterwards, with the next version of the trust bundle.
    fn change_jwt_keys(&self, change: JwtChange) -> Result<(), StoreError>;
    /// Writes down a token that was issued. It must not leave before this has returned.
    fn record_jwt(&self, issued: JwtIssued) -> Result<(), StoreError>;
}

/// A key that signs JWT-SVIDs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtKey {
    /// The name of its private half.
    pub label: String,
    /// What tokens name it by.
    pub key_id: String,
    /// Its public half: the uncompressed point on P-256.
    pub point: Vec<u8>,
    /// Where it stands in its life.
    pub state: JwtState,
    /// When it was made and published.
    pub made: SystemTime,
    /// Since when it is in its state.
    pub since: SystemTime,
}

/// One step of the keys' life.
#[derive(Clone, Debug)]
pub struct JwtChange {
    /// When.
    pub at: SystemTime,
    /// A new key.
    pub add: Option<JwtKey>,
    /// New states by label.
    pub set: Vec<(String, JwtState)>,
    /// Labels of keys that leave.
    pub remove: Vec<String>,
}

impl JwtChange {
    /// No change.
    pub const fn at(at: SystemTime) -> Self {
        Self { at, add: None, set: Vec::new(), remove: Vec::new() }
    }
}

/// A token that was issued, as the ledger tells of it.
#[derive(Clone, Debug)]
pub struct JwtIssued {
    /// Whose it is.
    pub id: SpiffeId,
    /// For whom, several with spaces between them.
    pub audience: String,
    /// The key that signed it.
    pub key_id: String,
    /// Serial number of the SVID that asked for it.
    pub predecessor: Vec<u8>,
    /// When it was made.
    pub issued: SystemTime,
    /// Its end.
    pub expires: SystemTime,
}
