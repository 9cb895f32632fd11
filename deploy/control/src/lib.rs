//! The control plane: the certificate authority served over gRPC, its health, and the mesh admin endpoint.
//!
//! [`start`] brings it up within a running runtime, as the demo does; [`main`] is the whole process. Reading order: `app` wires,
//! `accept` lets connections in, `identity` answers them, `own` keeps the control plane's certificate fresh, `upkeep` turns the CAs,
//! `rotation` their roots, and takes up what operators write; `replicas` is about other control planes of the same trust.

mod accept;
mod admin;
mod app;
mod attest;
mod config;
mod connection;
mod federation;
mod health;
mod identity;
mod init;
mod limits;
mod lock;
mod net;
mod own;
pub mod registrations;
mod replicas;
mod rotation;
mod site;
mod socket;
mod task;
mod upkeep;

pub use app::{Running, StartError, main, run, start, start_sharing, start_with};
pub use config::{
    Attestation, BundleEndpoint, ClientProfile, Config, ConfigError, Etcd, Federation, Foreign, Jwt, Keys,
    Log, LogFormat, LogLevel, Roots, ServerProfile, TokenIssuer,
};
pub use init::{Initialized, init};
pub use lock::{Lock, LockError};
