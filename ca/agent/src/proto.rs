//! `postern.identity.v1`, generated.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]

tonic::include_proto!("postern.identity.v1");
