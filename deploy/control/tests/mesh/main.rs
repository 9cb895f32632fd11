//! The control plane from outside: real sockets, real TLS, a client of its own.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod common;
mod hostile;
mod identity;
mod process;
mod replicas;
