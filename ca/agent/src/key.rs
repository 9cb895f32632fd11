//! The workload's key: made here, and told to nobody but the workload itself (`workload`).

use std::fmt;

use postern_svid::Svid;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::AttemptError;

/// A P-256 key as PKCS#8, wiped when dropped.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    pub(crate) fn generate() -> Result<Self, AttemptError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| AttemptError::Local(format!("cannot make a key: {error}")))?;
        Ok(Self(Zeroizing::new(pair.serialize_der())))
    }

    /// From storage. Whether it is a key shows when it is used.
    pub(crate) const fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Self {
        Self(pkcs8)
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// A request for a certificate. It carries the public key and proves possession; the CA takes nothing else from it,
    /// so nothing else is in it.
    pub(crate) fn request(&self) -> Result<Vec<u8>, AttemptError> {
        let pkcs8 = PrivatePkcs8KeyDer::from(self.pkcs8());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| AttemptError::Local(format!("the pending key is unusable: {error}")))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&pair)
            .map_err(|error| AttemptError::Local(format!("cannot make a certificate request: {error}")))?;
        Ok(request.der().to_vec())
    }

    /// The SVID of `chain` with this key.
    pub(crate) fn svid(&self, chain: Vec<CertificateDer<'static>>) -> Result<Svid, postern_svid::SvidError> {
        Svid::from_pkcs8(chain, self.pkcs8())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}
