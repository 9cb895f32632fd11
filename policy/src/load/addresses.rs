//! Addresses of Services that somebody else has as well.

use std::collections::HashMap;
use std::net::IpAddr;

use super::file::Content;
use super::set::{CheckedSet, text};
use crate::diagnostic::Diagnostics;
use crate::services::ServiceName;
use crate::yaml;

impl CheckedSet<'_> {
    /// A connection to an address means one service. If two could have it, one could take the other's callers, from
    /// another namespace as well.
    pub(super) fn check_addresses(&mut self) {
        let errors = self.taken_addresses();
        self.errors.extend(errors);
    }

    fn taken_addresses(&self) -> Diagnostics {
        let mut errors = Diagnostics::new();
        let services = || {
            self.documents().filter_map(|(file, head, content)| match content {
                Content::Service(service) => Some((file, head, service)),
                _ => None,
            })
        };
        if services().all(|(_, _, service)| service.addresses.is_empty()) {
            return errors;
        }
        let mut endpoints: HashMap<IpAddr, &ServiceName> = HashMap::new();
        for (_, _, service) in services() {
            for endpoint in &*service.endpoints {
                endpoints.entry(endpoint.address).or_insert(&service.name);
            }
        }
        let mut taken: HashMap<IpAddr, &ServiceName> = HashMap::new();
        for (file, head, service) in services() {
            for address in &*service.addresses {
                let other = match (taken.get(address), endpoints.get(address)) {
                    (Some(name), _) if **name != service.name => format!("the Service {name}"),
                    (_, Some(name)) => format!("an endpoint of {name}"),
                    _ => {
                        taken.insert(*address, &service.name);
                        continue;
                    }
                };
                let text = text(file);
                let mut page = head.page(&text);
                page.error_with(
                    head.at,
                    format!("the address {address} is that of {}", yaml::printable(&other)),
                    "an address under `addresses` is one service's and nobody else's",
                );
                errors.extend(page.errors);
            }
        }
        errors
    }
}
