//! Hosts of Services outside of the mesh that are names of Services within it.

use std::collections::HashSet;

use super::file::Content;
use super::set::{CheckedSet, text};
use crate::diagnostic::Diagnostics;
use crate::services::Service;
use crate::yaml;

impl CheckedSet<'_> {
    /// A name of the mesh leads into it first, so such a host is never what is asked for.
    pub(super) fn warnings_about_hosts(&self) -> Diagnostics {
        let mut warnings = Diagnostics::new();
        let services = || {
            self.documents().filter_map(|(file, head, content)| match content {
                Content::Service(service) => Some((file, head, service)),
                _ => None,
            })
        };
        if services().all(|(_, _, service)| service.hosts.is_empty()) {
            return warnings;
        }
        let known: HashSet<(&str, &str)> =
            services().map(|(_, _, Service { name, .. })| (&*name.namespace, &*name.name)).collect();
        for (file, head, service) in services() {
            let own = (&*service.name.namespace, &*service.name.name);
            let taken = service.hosts.iter().filter_map(|host| {
                let (name, namespace) = mesh_name(host)?;
                let other = (namespace, name);
                (other != own && known.contains(&other)).then_some((host, namespace, name))
            });
            for (host, namespace, name) in taken {
                let text = text(file);
                let mut page = head.page(&text);
                page.warn(
                    head.at,
                    format!(
                        "the host `{}` is the name of the Service {}/{}, which is what a call to it means",
                        yaml::printable(host),
                        yaml::printable(namespace),
                        yaml::printable(name)
                    ),
                    "leave this host out, or rename that Service: nothing asks for this one by that host",
                );
                warnings.extend(page.warnings);
            }
        }
        warnings
    }
}

/// Name and namespace of a service, as [`Services::service`](crate::Services::service) reads them.
fn mesh_name(host: &str) -> Option<(&str, &str)> {
    let (name, rest) = host.split_once('.')?;
    match rest.split_once('.') {
        None => Some((name, rest)),
        Some((namespace, "svc" | "svc.cluster.local")) => Some((name, namespace)),
        Some(_) => None,
    }
}
