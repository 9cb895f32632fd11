//! HTTP on every leg: one request type, one body type, and the two ways a request can go.

pub mod authority;
pub mod body;
mod caught;
pub(crate) mod framing;
pub mod h2;
pub mod headers;
pub mod inbound;
pub mod interim;
pub mod outbound;
mod owned;
pub mod respond;
pub mod server;
pub(crate) mod stall;
pub mod strict;
pub mod upgrade;
pub mod websocket;

#[cfg(all(test, not(feature = "sim")))]
mod silence_tests;
