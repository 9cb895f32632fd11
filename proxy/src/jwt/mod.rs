//! Tokens that requests carry (JWT, RFC 7519): read, verified, and handed to the policy as claims.
//!
//! Nothing is read unless a rule of the generation in force asks for tokens. What is read is verified by keys that are
//! already here; no request ever waits for a key server. Tokens and claims appear in no log and on no page.

mod fetch;
mod jwk;
mod keyring;
mod read;
mod verify;

pub use keyring::{KeyringState, Keyrings, keep};
pub use read::{Read, read};
