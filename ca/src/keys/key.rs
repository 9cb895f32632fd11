//! A private key as the rest of the CA sees it: it signs, and that is all.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

/// A private key that signs. Whether it is in memory or in a device is its store's business, and no method gives it away.
pub struct Key(Box<dyn SigningKey + Send + Sync>);

impl Key {
    /// Whatever can sign.
    pub fn new(signs: impl SigningKey + Send + Sync + 'static) -> Self {
        Self(Box::new(signs))
    }
}

impl From<KeyPair> for Key {
    fn from(key: KeyPair) -> Self {
        Self::new(InMemory(Zeroizing::new(key)))
    }
}

/// A key pair that is overwritten when it is dropped.
struct InMemory(Zeroizing<KeyPair>);

impl PublicKeyData for InMemory {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for InMemory {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(msg)
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Key {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(msg)
    }
}
