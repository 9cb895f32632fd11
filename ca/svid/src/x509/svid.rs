//! One's own X.509-SVID: chain and key.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Role;
use super::bundle::{Bundles, to_pem};
use super::cert::Facts;
use super::error::VerifyError;
use super::lint;
use super::verify::{PeerSvid, verify_both};
use crate::SpiffeId;

/// A chain that is an SVID for both sides of a connection, and the key that belongs to it. Whether anybody trusts it is
/// not known here: see [`verify_against`](Self::verify_against).
#[derive(Clone)]
pub struct Svid {
    leaf: PeerSvid,
    certified_key: Arc<CertifiedKey>,
}

impl Svid {
    /// Takes a chain, leaf first, and the key of its leaf.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>) -> Result<Self, SvidError> {
        let first = chain.first().ok_or(SvidError::Certificate(VerifyError::NoCertificate))?;
        let facts = Facts::parse(first).map_err(SvidError::Certificate)?;
        let id = lint::spiffe_id(&facts).map_err(SvidError::Certificate)?;
        lint::leaf(&facts, &[Role::Client, Role::Server]).map_err(SvidError::Certificate)?;
        for issuer in &chain[1..] {
            Facts::parse(issuer).map_err(SvidError::Certificate)?;
        }
        // A key that cannot tell its public half might belong to anything.
        let public = key.public_key().ok_or(SvidError::Key)?;
        if public.as_ref() != facts.spki {
            return Err(SvidError::Mismatch);
        }
        drop(public);
        let leaf = PeerSvid::from_leaf(id, facts);
        Ok(Self { leaf, certified_key: Arc::new(CertifiedKey::new(chain, key)) })
    }

    /// As [`new`](Self::new), with the key as PKCS#8 DER.
    pub fn from_pkcs8(chain: Vec<CertificateDer<'static>>, pkcs8: &[u8]) -> Result<Self, SvidError> {
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))
            .map_err(|_| SvidError::Key)?;
        Self::new(chain, key)
    }

    /// Verifies this SVID as its peers will, in both roles.
    pub fn verify_against(&self, bundles: &Bundles, now: SystemTime) -> Result<(), VerifyError> {
        verify_both(self.chain(), bundles, now).map(drop)
    }

    /// The id.
    pub const fn id(&self) -> &SpiffeId {
        self.leaf.id()
    }

    /// The leaf's serial number, big-endian, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        self.leaf.serial()
    }

    /// When the leaf begins to be valid.
    pub const fn not_before(&self) -> SystemTime {
        self.leaf.not_before()
    }

    /// The last second in which the leaf is valid.
    pub const fn not_after(&self) -> SystemTime {
        self.leaf.not_after()
    }

    /// The key identifier of the issuing CA.
    pub fn issuer_key_id(&self) -> &[u8] {
        self.leaf.issuer_key_id()
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified_key.cert
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        to_pem(self.chain())
    }

    /// Chain and key as rustls wants them.
    pub const fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified_key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// Why chain and key are no SVID.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain is empty, unreadable, or its leaf is no SVID.
    Certificate(VerifyError),
    /// The key cannot be read, or its kind is not supported.
    Key,
    /// The key belongs to another certificate.
    Mismatch,
}

impl fmt::Display for SvidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(error) => error.fmt(f),
            Self::Key => f.write_str("the private key is not a PKCS#8 key of type P-256, P-384 or Ed25519"),
            Self::Mismatch => f.write_str("the private key does not belong to the certificate"),
        }
    }
}

impl std::error::Error for SvidError {}
