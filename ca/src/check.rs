//! The CA's own test: whatever it makes is parsed back and verified exactly as a peer would before anybody sees it.

use std::time::{Duration, SystemTime};

use postern_svid::{Bundles, SpiffeId, TrustDomain, VerifyError, verify_both};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Issuing;
use crate::csr::{self, VerifiedKey};
use crate::profile::{self, ISSUING_KEY, ProfileError, Serial, Validity};

/// Verifies a chain for both ends of a connection: it must be an SVID of `id` with the public key `key`.
pub fn leaf(
    chain: &[CertificateDer<'_>],
    id: &SpiffeId,
    key: &VerifiedKey,
    bundles: &Bundles,
    now: SystemTime,
) -> Result<(), CheckError> {
    if verify_both(chain, bundles, now)?.id() != id {
        return Err(CheckError::Different("the id"));
    }
    let first = chain.first().ok_or(CheckError::Different("the length of the chain"))?;
    let (rest, parsed) = X509Certificate::from_der(first).map_err(|_| CheckError::Unreadable)?;
    if !rest.is_empty() {
        return Err(CheckError::Unreadable);
    }
    if parsed.public_key().raw != key.spki() {
        return Err(CheckError::Different("the public key"));
    }
    Ok(())
}

/// Makes a leaf that nobody will see and verifies it.
pub fn issuing(td: &TrustDomain, ca: &Issuing, bundles: &Bundles, now: SystemTime) -> Result<(), CheckError> {
    let id = td.control_plane();
    let key = rcgen::KeyPair::generate_for(ISSUING_KEY).map_err(ProfileError::Build)?;
    let key = csr::verify(&csr::own(&key)?, &id).map_err(|_| CheckError::Different("our own request"))?;
    let validity = Validity::from_now(now, Duration::from_secs(60)).ending_by(ca.not_after());
    let certificate = profile::leaf(&id, &key, ca.signer(), validity, Serial::random()?)?;
    let chain: Vec<_> = std::iter::once(certificate).chain(ca.chain()).collect();
    leaf(&chain, &id, &key, bundles, now)
}

/// Why a certificate of our own making is not handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It says something else than it was to say.
    #[error("{0} came out differently")]
    Different(&'static str),
    /// It could not even be made.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It does not parse.
    #[error("the certificate does not parse")]
    Unreadable,
    /// A peer would refuse it.
    #[error("a peer would refuse it: {0}")]
    Verify(#[from] VerifyError),
}
