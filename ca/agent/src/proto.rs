//! `postern.identity.v1`, and what workloads speak: generated.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]

tonic::include_proto!("postern.identity.v1");

/// The SPIFFE Workload API.
pub(crate) mod spiffe {
    tonic::include_proto!("_");
}

/// Envoy's SDS.
pub(crate) mod sds {
    tonic::include_proto!("envoy.service.secret.v3");
}
