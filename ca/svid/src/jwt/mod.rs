//! JWT-SVIDs (SPIFFE JWT-SVID): the keys that a trust domain signs them with, and the verification of one.
//!
//! A token is taken for what it says only if the trust domain of its subject has the very key that it names, of the very kind
//! that its algorithm needs. Whatever a token says of keys, algorithms or places beyond that is not looked at: a header with
//! anything else in it is refused, as the standard wants.

mod keys;
mod object;
mod token;

pub use keys::{JwtKey, JwtKeys, JwtKeysError};
pub use token::{JwtError, JwtSvid, LEEWAY, MAX_TOKEN, verify};

pub(crate) use object::object;
