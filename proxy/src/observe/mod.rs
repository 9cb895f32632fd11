//! What is true now, for machines and people.

pub mod admin;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
