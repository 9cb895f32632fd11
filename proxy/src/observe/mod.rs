//! What is true now, for machines and people.

pub mod admin;
pub mod admin_port;
mod capture;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod probes;
pub mod rate_limits;
pub mod rules;
pub mod tokens;
pub mod workload_api;
