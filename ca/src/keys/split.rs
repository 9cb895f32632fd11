//! The keys of roots in a token and the others in files: a token makes a few signatures a second, and an issuing CA many.

use rcgen::SignatureAlgorithm;

use super::token::TokenKeys;
use super::{Key, KeyError, KeyStore};

/// By the beginning of a key's name.
pub(super) struct Split {
    pub(super) token: TokenKeys,
    pub(super) files: Box<dyn KeyStore>,
    /// Whether issuing CAs' keys are in the token too.
    pub(super) issuing: bool,
}

impl Split {
    fn is_in_token(&self, name: &str) -> bool {
        name.starts_with("root-") || name.starts_with("tier-") || self.issuing && name.starts_with("issuing-")
    }

    fn of(&self, name: &str) -> &dyn KeyStore {
        if self.is_in_token(name) { &self.token } else { self.files.as_ref() }
    }
}

impl KeyStore for Split {
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        self.of(name).create(name, algorithm)
    }

    fn import(
        &self,
        name: &str,
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        self.of(name).import(name, pkcs8, algorithm)
    }

    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        // Where it was made: an issuing CA's key does not move when the configuration changes, its successor's does.
        let (here, there) = if self.is_in_token(name) {
            (&self.token as &dyn KeyStore, self.files.as_ref())
        } else {
            (self.files.as_ref(), &self.token as &dyn KeyStore)
        };
        let is_there = there.names()?.iter().any(|known| known == name);
        if is_there && !name.starts_with("root-") && !name.starts_with("tier-") {
            return there.load(name, algorithm);
        }
        if is_there {
            return Err(KeyError::Token {
                place: name.to_owned(),
                what: "this key is a file, not in the token: it may have been elsewhere, and does not become a token's by being put there. Take keys.pkcs11 out of the configuration, or begin a root in the token and rotate to it"
                    .to_owned(),
            });
        }
        here.load(name, algorithm)
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        self.token.remove(name).and_then(|()| self.files.remove(name))
    }

    fn sealed(&self, name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        if self.is_in_token(name) { Ok(None) } else { self.files.sealed(name) }
    }

    fn take_sealed(&self, name: &str, sealed: &[u8]) -> Result<bool, KeyError> {
        if self.is_in_token(name) { Ok(false) } else { self.files.take_sealed(name, sealed) }
    }

    fn names(&self) -> Result<Vec<String>, KeyError> {
        let mut names = self.token.names()?;
        names.extend(self.files.names()?);
        names.sort();
        Ok(names)
    }
}
