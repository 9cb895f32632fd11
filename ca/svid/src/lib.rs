//! What every part of the mesh must agree on about identity.
//!
//! Without features this crate holds SPIFFE ids ([`SpiffeId`], [`TrustDomain`]), the [`Clock`] and [`spread`]; the feature `x509`
//! adds X.509-SVID and JWT-SVID verification, trust bundles and the rustls configurations built from them. The policy engine needs
//! only the first half and stays free of cryptography.

mod clock;
mod id;
#[cfg(feature = "x509")]
pub mod jwt;
pub mod spread;
#[cfg(feature = "x509")]
mod x509;

pub use clock::{Clock, SystemClock, TestClock};
pub use id::{IdError, SpiffeId, TrustDomain};
#[cfg(feature = "x509")]
pub use x509::{
    Bundle, BundleError, Bundles, Channel, Culprit, Document, DocumentError, PeerSvid, Revocations,
    RevocationsError, Revoked, Role, Svid, SvidError, VerifyError, tls, verify, verify_again, verify_both,
};
