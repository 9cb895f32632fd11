//! Interned destinations: which services and networks of rules a call's place belongs to.

use std::net::IpAddr;

use foldhash::HashMap;
use ipnet::IpNet;

use super::super::keys::Keys;
use crate::egress::At;
use crate::egress::address::Reach;
use crate::egress::rule::ServicePattern;
use crate::services::ServiceName;

/// One service, its namespace, the mesh; a network of each length of an IPv6 address.
const MAX_KEYS: usize = 3 + 129;

/// All interned destinations, hosts aside.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// By namespace, then by name: a lookup borrows both and allocates nothing.
    services: HashMap<Box<str>, HashMap<Box<str>, u32>>,
    namespaces: HashMap<Box<str>, u32>,
    meshed: Option<u32>,
    nets: HashMap<IpNet, u32>,
    /// Prefix lengths that occur, IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    /// Stands for every network where the address is not known.
    unknown: Option<u32>,
}

/// A place that a call leads to.
pub(super) struct Place {
    pub(super) at: At,
    pub(super) reach: Reach,
    /// The key of the network that is this address and nothing else.
    pub(super) exact: Option<u32>,
    keys: [u32; MAX_KEYS],
    len: usize,
}

impl Place {
    pub(super) fn keys(&self) -> &[u32] {
        &self.keys[..self.len]
    }

    fn push(&mut self, key: Option<u32>) {
        // Cannot overflow: MAX_KEYS counts every place that pushes.
        if let (Some(key), Some(slot)) = (key, self.keys.get_mut(self.len)) {
            *slot = key;
            self.len += 1;
        }
    }
}

impl Places {
    pub(super) fn service(&mut self, keys: &mut Keys, pattern: &ServicePattern) -> u32 {
        match pattern {
            ServicePattern::Meshed => *self.meshed.get_or_insert_with(|| keys.fresh()),
            ServicePattern::Namespace(name) => {
                *self.namespaces.entry(name.clone()).or_insert_with(|| keys.fresh())
            }
            ServicePattern::One(ServiceName { namespace, name }) => {
                let names = self.services.entry(namespace.clone()).or_default();
                *names.entry(name.clone()).or_insert_with(|| keys.fresh())
            }
        }
    }

    pub(super) fn net(&mut self, keys: &mut Keys, net: IpNet) -> u32 {
        let lengths = &mut self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
        if !lengths.contains(&net.prefix_len()) {
            lengths.push(net.prefix_len());
        }
        *self.nets.entry(net).or_insert_with(|| keys.fresh())
    }

    pub(super) fn unknown(&mut self, keys: &mut Keys) -> u32 {
        *self.unknown.get_or_insert_with(|| keys.fresh())
    }

    /// The keys that are true of a call to `service` at this place.
    pub(super) fn of(&self, service: &ServiceName, at: At, reach: Reach) -> Place {
        let mut place = Place { at, reach, exact: None, keys: [0; MAX_KEYS], len: 0 };
        let named = self.services.get(&service.namespace).and_then(|names| names.get(&service.name));
        place.push(named.copied());
        match at {
            At::Mesh => {
                place.push(self.meshed);
                place.push(self.namespaces.get(&service.namespace).copied());
            }
            At::Unknown => place.push(self.unknown),
            At::Address(address) => self.nets_of(address, &mut place),
        }
        place
    }

    fn nets_of(&self, address: IpAddr, place: &mut Place) {
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            let Ok(net) = IpNet::new(address, *length) else { continue };
            let key = self.nets.get(&net.trunc()).copied();
            place.push(key);
            if *length == net.max_prefix_len() {
                place.exact = key;
            }
        }
    }
}
