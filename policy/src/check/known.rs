//! What a set's Services are called, for policies that name them.

use std::collections::{BTreeMap, BTreeSet};

use super::Page;
use super::egress::{EgressPolicy, Named};
use crate::services::Service;
use crate::yaml;

/// Names of the Services of a set.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// `namespace/name`.
    services: BTreeSet<String>,
    /// `name.namespace` to `namespace/name`, of those of the mesh.
    meshed: BTreeMap<String, String>,
    /// Hosts by which those outside are asked for.
    hosts: BTreeSet<String>,
}

impl Known {
    pub(crate) fn of<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let mut known = Self::default();
        for service in services {
            let (full, host) =
                (service.name.to_string(), format!("{}.{}", service.name.name, service.name.namespace));
            if service.external {
                known.hosts.extend(service.hosts.iter().map(|host| host.to_string()));
                known.hosts.insert(host);
            } else {
                known.meshed.insert(host, full.clone());
            }
            known.services.insert(full);
        }
        known
    }

    /// Says what a policy names that is not there, or is something else.
    pub(crate) fn warn_about(&self, page: &mut Page<'_>, policy: &EgressPolicy) {
        for (at, named) in &policy.named {
            match named {
                Named::Service(name) if !self.services.contains(name) => {
                    let known: Vec<&str> = self.services.iter().map(String::as_str).collect();
                    page.warn(
                        *at,
                        format!("no Service of the set is called {name}"),
                        yaml::nearest(name, &known).unwrap_or_else(|| {
                            "until there is one, nothing is called by this name".to_owned()
                        }),
                    );
                }
                Named::Host(host) => match self.meshed(host) {
                    Some(service) => page.warn(
                        *at,
                        format!("this is the service {service} of the mesh, which `hosts` never means"),
                        format!("write `services: [{service}]`"),
                    ),
                    None if !self.has_host(host) => page.warn(
                        *at,
                        "no Service with `external: true` has such a host, and what no Service names is not called",
                        "write one with this host under `hosts`",
                    ),
                    None => {}
                },
                Named::Service(_) => {}
            }
        }
    }

    /// The service of the mesh that a host of a rule names.
    fn meshed(&self, host: &str) -> Option<&str> {
        let host =
            host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
        self.meshed.get(host).map(String::as_str)
    }

    /// Whether some host outside is what a rule's host means.
    fn has_host(&self, pattern: &str) -> bool {
        match pattern.strip_prefix("*.") {
            Some(domain) => {
                self.hosts.iter().any(|host| is_below(host, domain))
                    || self.domains().any(|known| known == domain || is_below(domain, known))
            }
            None => self.hosts.contains(pattern) || self.domains().any(|domain| is_below(pattern, domain)),
        }
    }

    /// Domains of which a Service means everything below.
    fn domains(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().filter_map(|host| host.strip_prefix("*."))
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
}
