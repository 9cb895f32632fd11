//! Ports that policies name, held against those to which the set's Services lead.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::yaml::Location;

use super::Page;
use crate::doc::List;
use crate::services::Service;

/// Ports that are listed in a warning.
const SHOWN: usize = 8;

/// Ports as a policy names them, each with the first place where it does.
#[derive(Clone, Default)]
pub(crate) struct NamedPorts(BTreeMap<u16, Location>);

impl NamedPorts {
    pub(super) fn of<'d>(lists: impl IntoIterator<Item = &'d List<u16>>) -> Self {
        let mut ports = BTreeMap::new();
        for port in lists.into_iter().flat_map(|list| &list.value) {
            ports.entry(port.value).or_insert(port.referenced);
        }
        Self(ports)
    }
}

/// Where the Services of the mesh lead to, by their namespaces.
#[derive(Default)]
pub(crate) struct Leads<'s>(HashMap<&'s str, OfNamespace<'s>>);

#[derive(Default)]
struct OfNamespace<'s> {
    /// Ports of workloads.
    to: BTreeSet<u16>,
    /// Ports of Services that lead to other ones: the first Service that has each, and where it leads to.
    from: BTreeMap<u16, (&'s str, u16)>,
}

impl<'s> Leads<'s> {
    pub(crate) fn of(services: impl Iterator<Item = &'s Service>) -> Self {
        let mut leads = Self::default();
        for service in services.filter(|service| !service.external) {
            let own = leads.0.entry(&service.name.namespace).or_default();
            for port in &service.ports {
                own.to.insert(port.target_port);
                own.from.entry(port.port).or_insert((&service.name.name, port.target_port));
            }
        }
        leads
    }

    /// Says which ports of a policy for workloads of these namespaces no Service leads to; nothing if one of them has no
    /// Services at all, for its workloads are called in some other way.
    pub(crate) fn warn_about(&self, page: &mut Page<'_>, ports: &NamedPorts, namespaces: &[&str]) {
        let known: Option<Vec<_>> = namespaces.iter().map(|namespace| self.0.get(namespace)).collect();
        let Some(known) = known.filter(|known| !known.is_empty()) else { return };
        for (port, at) in &ports.0 {
            if known.iter().any(|own| own.to.contains(port)) {
                continue;
            }
            let help = match known.iter().find_map(|own| own.from.get(port)) {
                Some((service, target)) => {
                    format!(
                        "it is a port of the Service `{service}`, which leads to {target}: write `{target}`"
                    )
                }
                None => {
                    let all: BTreeSet<u16> = known.iter().flat_map(|own| &own.to).copied().collect();
                    let mut list: Vec<String> = all.iter().take(SHOWN).map(u16::to_string).collect();
                    if all.len() > SHOWN {
                        list.push("...".to_owned());
                    }
                    format!(
                        "they lead to {}; nothing is wrong if workloads are called there without a Service",
                        list.join(", ")
                    )
                }
            };
            let of = if let [one] = namespaces { format!("`{one}`") } else { "these namespaces".to_owned() };
            page.warn(*at, format!("no Service of {of} leads to port {port} of a workload"), help);
        }
    }
}
