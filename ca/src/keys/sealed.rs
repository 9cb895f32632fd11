//! Sealed key files in a directory: `<name>.sealed`.

use std::path::{Path, PathBuf};

use rcgen::{KeyPair, SignatureAlgorithm};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use super::seal::{OVERHEAD, Seal};
use super::{
    Key, KeyError, KeyStore, MAX_KEY_FILE, generate, named, pair, read_private, remove, write_private,
};

/// What follows the name of a sealed key.
pub(super) const SEALED: &str = ".sealed";

/// Keys that are opened only to sign.
pub(super) struct SealedFiles {
    directory: PathBuf,
    seal: Seal,
}

impl SealedFiles {
    /// Uses `directory`, which [`private_dir`](super::private_dir) has checked.
    pub(super) fn new(directory: &Path, seal: Seal) -> Self {
        Self { directory: directory.to_owned(), seal }
    }
}

impl KeyStore for SealedFiles {
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let key = generate(algorithm)?;
        write_private(&path(&self.directory, name), &self.seal.seal(name, key.serialized_der())?)?;
        Ok(key.into())
    }

    fn import(
        &self,
        name: &str,
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        let path = path(&self.directory, name);
        let key = pair(pkcs8, algorithm).ok_or_else(|| KeyError::NoKey(path.clone()))?;
        write_private(&path, &self.seal.seal(name, pkcs8)?)?;
        Ok(key)
    }

    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let der = open(&self.directory, name, &self.seal)?;
        pair(&der, algorithm).ok_or_else(|| KeyError::NoKey(path(&self.directory, name)))
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        remove(&path(&self.directory, name))
    }

    fn names(&self) -> Result<Vec<String>, KeyError> {
        named(&self.directory, SEALED)
    }

    fn sealed(&self, name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        if !self.names()?.iter().any(|known| known == name) {
            return Ok(None);
        }
        let sealed = read_private(&path(&self.directory, name), MAX_KEY_FILE + OVERHEAD as u64)?;
        Ok(Some(sealed.to_vec()))
    }

    fn take_sealed(&self, name: &str, sealed: &[u8]) -> Result<bool, KeyError> {
        let path = path(&self.directory, name);
        if !is_key(&self.seal.open(&path, name, sealed)?) {
            return Err(KeyError::NoKey(path));
        }
        match write_private(&path, sealed) {
            // Another thread has just taken it over.
            Ok(()) | Err(KeyError::Exists(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{SEALED}"))
}

/// The content of a sealed key.
pub(super) fn open(directory: &Path, name: &str, seal: &Seal) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let path = path(directory, name);
    let sealed = read_private(&path, MAX_KEY_FILE + OVERHEAD as u64).map_err(KeyError::of_a_key)?;
    Ok(seal.open(&path, name, &sealed)?)
}

/// Whether `der` is a private key, of whatever algorithm.
pub(super) fn is_key(der: &[u8]) -> bool {
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).is_ok()
}
