//! Services outside of the mesh by their hosts.

use std::collections::HashMap;

/// Whether `name` is one of `hosts`, of which one that begins with `*.` is whatever stands below it.
pub(super) fn has(hosts: &[Box<str>], name: &str) -> bool {
    hosts.iter().any(|host| match host.strip_prefix('*') {
        Some(domain) => name.len() > domain.len() && name.ends_with(domain),
        None => **host == *name,
    })
}

/// Whose a host is, by namespace, as positions of services.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    exact: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    /// Those that begin with `*.`, without that.
    domains: HashMap<Box<str>, HashMap<Box<str>, usize>>,
}

impl Hosts {
    pub(super) fn insert(&mut self, namespace: &str, host: &str, at: usize) {
        let (kind, name) = match host.strip_prefix("*.") {
            Some(domain) => (&mut self.domains, domain),
            None => (&mut self.exact, host),
        };
        kind.entry(namespace.into()).or_default().insert(name.into(), at);
    }

    /// The service of this namespace whose host this is: one that writes it out before a star, and of stars the longest.
    pub(super) fn find(&self, namespace: &str, host: &str) -> Option<usize> {
        let exact = self.exact.get(namespace).and_then(|hosts| hosts.get(host));
        let below = || {
            let known = self.domains.get(namespace)?;
            domains(host).find_map(|domain| known.get(domain))
        };
        exact.or_else(below).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.domains.is_empty()
    }
}

/// What stands behind each dot of a host, the longest first.
fn domains(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.').map(|(at, _)| &host[at + 1..])
}

#[cfg(test)]
mod tests {
    use postern_svid::TrustDomain;

    use crate::norm::CanonHost;
    use crate::{Scope, SourceFile, load};

    fn service(namespace: &str, name: &str, hosts: &str, endpoints: &str) -> String {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  external: true\n  hosts: [{hosts}]\n  ports: [{{port: 80, protocol: http}}]\n{endpoints}"
        )
    }

    #[test]
    fn a_host_that_is_written_out_comes_before_a_star_and_the_longer_star_before_the_shorter() {
        let text = [
            service("shop", "wide", "'*.b.example'", ""),
            service("shop", "narrow", "'*.a.b.example', first.example", ""),
            service("shop", "one", "x.a.b.example", ""),
            service("root", "all", "'*.b.example', '*.c.example'", ""),
            service("shop", "placed", "d.example", "  endpoints: [{address: 192.0.2.1}]\n"),
            service("pay", "other", "'*.e.example'", ""),
        ]
        .concat();
        let scope = Scope {
            trust_domain: TrustDomain::parse("td").unwrap(),
            root_namespace: "root".to_owned(),
            workload: None,
        };
        let files = [SourceFile { name: "s.yaml".to_owned(), text: text.into_bytes() }];
        let generation = load(&files, &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
        let services = generation.services();
        for (host, expected) in [
            ("b.example", None),
            ("xb.example", None),
            ("y.b.example", Some("shop/wide")),
            ("z.y.b.example", Some("shop/wide")),
            ("a.b.example", Some("shop/wide")),
            ("y.a.b.example", Some("shop/narrow")),
            ("x.a.b.example", Some("shop/one")),
            ("w.x.a.b.example", Some("shop/narrow")),
            ("first.example", Some("shop/narrow")),
            ("y.c.example", Some("root/all")),
            ("y.e.example", None),
        ] {
            let host = CanonHost::parse(host).unwrap();
            let found = services.find(&host, 80, "shop");
            assert_eq!(found.map(|port| port.service.to_string()).as_deref(), expected, "{host}");
            if let Some(port) = found {
                assert!(port.has_host(host.name()), "{host}");
                assert_eq!(port.host_for(host.name()), Some(host.name()));
            }
        }
        let by_own_name = |name: &str| {
            let port = services.by_name("shop", name).and_then(|service| service.port(80)).unwrap();
            port.host_for(&format!("{name}.shop")).map(str::to_owned)
        };
        assert_eq!(by_own_name("narrow").as_deref(), Some("first.example"));
        assert_eq!(by_own_name("wide"), None, "nobody can be looked up by a star");
        let named: Vec<String> = services.nameless(80, "shop").map(|port| port.service.to_string()).collect();
        assert_eq!(named, ["root/all", "shop/narrow", "shop/one", "shop/wide"]);
        assert_eq!(services.nameless(81, "shop").count(), 0);
    }
}
