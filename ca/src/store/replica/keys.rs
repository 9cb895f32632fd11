//! Keys that all replicas need: the roots' and those of JWT-SVIDs. They rest sealed, here as in the shared store, where they come
//! and go in the same step as what they belong to; a replica copies what it lacks.

use std::sync::Arc;

use rcgen::SignatureAlgorithm;

use crate::keys::{Key, KeyError, KeyStore};
use crate::store::StoreError;
use crate::store::shared::{Change, Listing, Shared};
use crate::store::{Kind, State};

use super::Document;

/// What the names of shared keys begin with in the shared store.
pub(super) const PREFIX: &str = "key/";

/// A replica's keys; one that is missing is copied from the shared store.
pub struct ReplicaKeys {
    local: Arc<dyn KeyStore>,
    shared: Arc<dyn Shared>,
}

impl ReplicaKeys {
    /// Keys that rest in `local`.
    pub fn new(local: Arc<dyn KeyStore>, shared: Arc<dyn Shared>) -> Self {
        Self { local, shared }
    }
}

impl KeyStore for ReplicaKeys {
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        self.local.create(name, algorithm)
    }

    fn import(
        &self,
        name: &str,
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        self.local.import(name, pkcs8, algorithm)
    }

    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        if !self.local.names()?.iter().any(|known| known == name) {
            let listing = self.shared.read(&format!("{PREFIX}{name}"));
            match listing {
                Ok(listing) => {
                    if let Some(entry) = listing.find(&format!("{PREFIX}{name}")) {
                        self.local.take_sealed(name, &entry.value)?;
                    }
                }
                Err(error) => {
                    tracing::warn!(key = name, %error, "a key that is missing here could not be copied")
                }
            }
        }
        self.local.load(name, algorithm)
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        self.local.remove(name)
    }

    fn names(&self) -> Result<Vec<String>, KeyError> {
        self.local.names()
    }

    fn sealed(&self, name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        self.local.sealed(name)
    }

    fn take_sealed(&self, name: &str, sealed: &[u8]) -> Result<bool, KeyError> {
        self.local.take_sealed(name, sealed)
    }
}

/// Names of the keys that sign, or will.
pub(super) fn needed(document: &Document) -> impl Iterator<Item = &str> {
    let signs = |state: State| matches!(state, State::Prepared | State::Published | State::Active);
    let roots = document.authorities.iter().map(|held| &held.row);
    let roots = roots.filter(move |row| row.kind == Kind::Root && signs(row.state));
    let jwt = document.jwt_keys.iter().filter(move |key| signs(key.state));
    roots.map(|row| row.label.as_str()).chain(jwt.map(|key| key.label.as_str()))
}

/// What has to become of the shared keys, for them to be those that `document` needs.
pub(super) fn changes(
    document: &Document,
    listing: &Listing,
    keys: &dyn KeyStore,
) -> Result<Vec<Change>, StoreError> {
    let mut changes = Vec::new();
    let needed: Vec<&str> = needed(document).collect();
    for name in &needed {
        let key = format!("{PREFIX}{name}");
        if listing.find(&key).is_none()
            && let Some(sealed) = keys.sealed(name).map_err(|error| StoreError::File(error.to_string()))?
        {
            changes.push(Change::put(key, 0, sealed));
        }
    }
    for entry in listing.entries.iter().filter(|entry| entry.key.starts_with(PREFIX)) {
        if !needed.iter().any(|name| entry.key[PREFIX.len()..] == **name) {
            changes.push(Change::delete(entry.key.clone(), entry.version));
        }
    }
    Ok(changes)
}

/// Copies the keys that `document` needs and that are not here.
pub(super) fn bring(document: &Document, listing: &Listing, keys: &dyn KeyStore) -> Result<(), KeyError> {
    let here = keys.names()?;
    for name in needed(document).filter(|name| !here.iter().any(|known| known == name)) {
        if let Some(entry) = listing.find(&format!("{PREFIX}{name}")) {
            keys.take_sealed(name, &entry.value)?;
        }
    }
    Ok(())
}
