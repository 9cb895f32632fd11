//! What is signed to show that one holds the key of a certificate that a platform gave (x509pop).
//!
//! The signature is bound to the TLS connection (RFC 5705, RFC 9266) and to what is asked for over it, so it needs no second
//! round trip, is worth nothing on any other connection, and for no other key or id.

use aws_lc_rs::digest::{SHA256, digest};
use rustls::ConnectionCommon;

/// The name under which both ends of a connection derive the same secret.
const LABEL: &[u8] = b"EXPORTER-postern-x509pop-v1";
/// What a signature is for: never taken for one of TLS, or of anything else that this key signs.
const CONTEXT: &[u8] = b"postern x509pop v1\0";

/// A secret of one TLS connection.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Channel([u8; 32]);

impl Channel {
    /// Of a connection whose handshake is over; `None` if it is not.
    pub fn of<D>(connection: &ConnectionCommon<D>) -> Option<Self> {
        connection.export_keying_material([0; 32], LABEL, None).ok().map(Self)
    }

    /// What the holder of the certificate signs, who asks for `id` with the request `csr` over this connection.
    pub fn message(&self, csr: &[u8], id: &str) -> Vec<u8> {
        let hash = |bytes: &[u8]| digest(&SHA256, bytes);
        [CONTEXT, &self.0, hash(csr).as_ref(), hash(id.as_bytes()).as_ref()].concat()
    }
}

impl From<[u8; 32]> for Channel {
    /// For tests; nobody else knows one.
    fn from(secret: [u8; 32]) -> Self {
        Self(secret)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel(…)")
    }
}
