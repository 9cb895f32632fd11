//! Whole-mesh tests: the real binaries as real processes on loopback, and peers that were not written here.
//!
//! A test draws a [`Plan`], starts it as a [`Mesh`], and lets foreign programs ([`foreign`]) talk through it to each
//! other or to a recording [`Origin`], the only workload written here. Every mesh has loopback addresses of its own, so
//! tests run side by side, and beside a demo.
//!
//! ```no_run
//! let mut plan = postern_tests::Plan::new();
//! plan.sidecar("web");
//! plan.sidecar("orders").serves(80, 8080, "http");
//! plan.document("policy.yaml", "apiVersion: …");
//! let origin = postern_tests::Origin::http((plan.address("orders"), 8080));
//! let mesh = plan.start();
//! let answer = mesh.curl("web", &["http://orders.shop/"]);
//! assert_eq!((answer.status, origin.requests().len()), (200, 1));
//! ```
//!
//! The binaries must have been built: `cargo build --workspace --bins`, or `cargo test --workspace`, which does it.

mod binaries;
mod cgroup;
mod curl;
mod dns;
mod documents;
mod envoy;
mod etcd;
pub mod events;
pub mod foreign;
mod forge;
pub mod frames;
pub mod identity;
mod issuer;
mod load;
mod loopback;
mod mesh;
mod metrics;
pub mod namespace;
mod nginx;
mod origin;
mod paced;
mod peer;
mod plan;
pub mod pods;
mod process;
pub mod protocols;
pub mod wait;
mod web_ca;
pub mod wire;

pub use binaries::{postern, postern_init, postern_proxy, target_directory};
pub use cgroup::Cgroup;
pub use curl::Answer;
pub use dns::Dns;
pub use documents::{Documents, digest};
pub use envoy::Envoy;
pub use etcd::Etcd;
pub use forge::{Forge, Papers, openssl, pem};
pub use issuer::Issuer;
pub use load::{Load, Loaded};
pub use loopback::Block;
pub use mesh::{ControlPlane, Mesh, Sidecar};
pub use metrics::Metrics;
pub use nginx::Nginx;
pub use origin::{Ended, Origin, Seen};
pub use paced::{Asked, Paced, Told};
pub use peer::Peer;
pub use plan::{Plan, SidecarPlan, TRUST_DOMAIN};
pub use process::{Process, descriptors, processor_time, resident, resident_at_most};
pub use web_ca::WebCa;

/// Whether the long forms of tests are asked for (`POSTERN_TEST_LONG=1`, as the nightly run does).
pub fn is_long() -> bool {
    std::env::var_os("POSTERN_TEST_LONG").is_some_and(|value| value == "1")
}
