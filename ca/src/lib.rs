//! The certificate authority of the mesh.
//!
//! The way of a request is [`issue`]: the caller is authenticated by a join token, an attestor ([`attest`]) or its own SVID, the
//! id comes from that proof and never from the request ([`authz`]), the request gives its public key and nothing else
//! ([`csr`]), the certificate is built by [`profile`], verified as a peer would, written down durably ([`store`]), and only then
//! handed out.
//!
//! The crate has no sockets and no tasks; `deploy/control` serves it.

pub mod attest;
pub mod authority;
pub mod authz;
pub mod backup;
pub mod bundle;
pub mod check;
pub mod csr;
pub mod drill;
pub mod issue;
pub mod jwt;
pub mod keys;
pub mod ledger;
pub mod limits;
pub mod lineage;
pub mod metrics;
pub mod offline;
pub mod profile;
pub mod store;
pub mod token;

#[cfg(test)]
mod testing;

/// The identity API as protobuf has it.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated; documented in the .proto file"
)]
pub mod proto {
    tonic::include_proto!("postern.identity.v1");
}

/// Lower-case hexadecimal, for serial numbers and key identifiers.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
