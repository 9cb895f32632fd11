//! Calls on their way out of the workload: to services of the mesh, and to what is outside of it.
//!
//! Rules are about the destination. A meshed service may be called by any workload that no EgressPolicy selects; once one
//! does, only what some Allow lists. What is outside of the mesh is called only if an Allow lists it, selected or not. The
//! specification is [`reference`]; [`crate::engine::egress`] answers traffic.

pub(crate) mod address;
pub(crate) mod reference;
pub(crate) mod rule;
mod target;

use std::net::IpAddr;

use crate::norm::CanonHost;
use crate::services::ServicePort;
use crate::verdict::Operation;

pub(crate) use address::MeshAddresses;
pub(crate) use rule::EgressRule;
pub use target::CallTarget;

/// A call on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The port of the service that the workload asks for, as [`Services::find`](crate::Services::find) knows it.
    pub port: &'a ServicePort,
    /// The host by which it asks.
    pub host: &'a CanonHost,
    /// Outside of the mesh: where it would be dialled, every place of which has to be allowed. Empty: not known.
    pub addresses: &'a [IpAddr],
    /// The sidecar's own addresses, which nothing outside of the mesh has.
    pub own: &'a [IpAddr],
    /// What it wants there.
    pub operation: Operation<'a>,
}

/// Where a call goes, in one reading of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum At {
    /// To a sidecar of the mesh: the identity counts, not the address.
    Mesh,
    /// Outside, to an address that is not known.
    Unknown,
    /// Outside, to this address, in canonical form.
    Address(IpAddr),
}

impl Call<'_> {
    /// The places of which each has to be allowed.
    pub(crate) fn places(&self) -> impl Iterator<Item = At> + Clone + '_ {
        let only = match (self.port.external, self.addresses.is_empty()) {
            (false, _) => Some(At::Mesh),
            (true, true) => Some(At::Unknown),
            (true, false) => None,
        };
        let known = if only.is_none() { self.addresses } else { &[] };
        only.into_iter().chain(known.iter().map(|address| At::Address(address.to_canonical())))
    }
}
