//! X.509-SVIDs: bundles of roots, one's own SVID, the verification of a peer's, and TLS configurations made of them.

mod bundle;
mod cert;
mod document;
mod error;
#[cfg(test)]
mod limbo;
mod lint;
mod possession;
mod revoked;
mod signatures;
mod svid;
pub mod tls;
mod verify;

pub use bundle::{Bundle, BundleError, Bundles};
pub use document::{Document, DocumentError};
pub use error::{Culprit, VerifyError};
pub use possession::Channel;
pub use revoked::{Revocations, RevocationsError, Revoked};
pub use svid::{Svid, SvidError};
pub use verify::{PeerSvid, verify, verify_again, verify_both};

/// Which side of a TLS connection a certificate stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The side that dials; needs the purpose clientAuth.
    Client,
    /// The side that accepts; needs the purpose serverAuth.
    Server,
}
