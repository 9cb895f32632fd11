//! Services by address: what a redirected connection is a call to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{Endpoint, Service, ServicePort};

/// Where a connection to an address leads.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The service's port.
    pub port: &'a ServicePort,
    /// The one endpoint that has this address. None if it is the service's own: then any of its endpoints may answer.
    pub endpoint: Option<&'a Endpoint>,
}

/// Whose an address is, by the position of services that are sorted by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    services: HashMap<IpAddr, usize>,
    endpoints: HashMap<IpAddr, Vec<usize>>,
}

impl Addresses {
    /// No address of a service is that of another, or of an endpoint: that has been checked.
    pub(super) fn of(services: &[Service]) -> Self {
        let mut all = Self::default();
        for (at, service) in services.iter().enumerate() {
            for address in &*service.addresses {
                all.services.entry(*address).or_insert(at);
            }
            for endpoint in &*service.endpoints {
                let known = all.endpoints.entry(endpoint.address).or_default();
                if known.last() != Some(&at) {
                    known.push(at);
                }
            }
        }
        all
    }

    /// The port of a service that `place` is, or of an endpoint: of several services that name the endpoint, one of the
    /// namespace of its identity if there is one, and of these the first by name. Whichever it is, its callers may reach
    /// the endpoint by its name as well.
    pub(super) fn find<'a>(&self, services: &'a [Service], place: SocketAddr) -> Option<Place<'a>> {
        let (address, port) = (place.ip().to_canonical(), place.port());
        if let Some(at) = self.services.get(&address) {
            let port = services.get(*at)?.port(port)?;
            return Some(Place { port, endpoint: None });
        }
        let named = self.endpoints.get(&address)?.iter().filter_map(|at| services.get(*at));
        let places = named.filter_map(|service| {
            let port = service.ports.iter().find(|candidate| candidate.target_port == port)?;
            let endpoint = service.endpoints.iter().find(|endpoint| endpoint.address == address)?;
            Some((service, Place { port, endpoint: Some(endpoint) }))
        });
        let rank = |(service, place): &(&Service, Place<'_>)| {
            let ids = place.endpoint.iter().flat_map(|endpoint| &endpoint.identities);
            let mut namespaces = ids.filter_map(|id| id.namespace_and_account());
            // Of equals, the first is kept.
            (service.external, !namespaces.any(|(namespace, _)| *namespace == *service.name.namespace))
        };
        places.min_by_key(rank).map(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use postern_svid::TrustDomain;

    use crate::{Generation, Scope, SourceFile, load};

    fn loaded(services: &[(&str, &str, &str)]) -> Result<Generation, String> {
        let texts = services.iter().map(|(namespace, name, spec)| {
            format!(
                "---\napiVersion: postern.dev/v1alpha1\nkind: Service\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
            )
        });
        let scope = Scope {
            trust_domain: TrustDomain::parse("td").unwrap(),
            root_namespace: "postern-system".to_owned(),
            workload: None,
        };
        let files = [SourceFile { name: "s.yaml".to_owned(), text: texts.collect::<String>().into_bytes() }];
        load(&files, &scope, 1).map_err(|errors| errors.to_string())
    }

    const ORDERS: &str = "{identity: spiffe://td/ns/shop/sa/orders, addresses: [10.96.0.7, 'fd96::7'], \
         ports: [{port: 80, targetPort: 8080, protocol: http}, {port: 5432, protocol: tcp}], \
         endpoints: [{address: 10.0.0.7}, {address: 'fd00::7', meshPort: 24999}]}";

    fn at(generation: &Generation, place: &str) -> Option<String> {
        let found = generation.services().at(place.parse().unwrap())?;
        let endpoint = found.endpoint.map(|endpoint| format!("@{}:{}", endpoint.address, endpoint.mesh_port));
        Some(format!("{}:{}{}", found.port.service, found.port.port, endpoint.unwrap_or_default()))
    }

    #[test]
    fn an_address_and_port_lead_to_one_port_of_one_service() {
        let generation = loaded(&[("shop", "orders", ORDERS)]).unwrap();
        for (place, found) in [
            ("10.96.0.7:80", Some("shop/orders:80")),
            ("[fd96::7]:80", Some("shop/orders:80")),
            ("[::ffff:10.96.0.7]:5432", Some("shop/orders:5432")),
            // The service's address has the service's ports, an endpoint's those of the workload.
            ("10.96.0.7:8080", None),
            ("10.0.0.7:8080", Some("shop/orders:80@10.0.0.7:24143")),
            ("[fd00::7]:5432", Some("shop/orders:5432@fd00::7:24999")),
            ("10.0.0.7:80", None),
            ("10.0.0.7:24143", None),
            ("10.0.0.8:8080", None),
        ] {
            assert_eq!(at(&generation, place).as_deref(), found, "{place}");
        }
    }

    #[test]
    fn an_endpoint_is_spoken_for_by_its_own_namespace() {
        let of = |identity: &str| {
            format!(
                "{{identity: 'spiffe://td/ns/{identity}', ports: [{{port: 80, targetPort: 8080, protocol: tcp}}], \
                 endpoints: [{{address: 10.0.0.7}}]}}"
            )
        };
        let (own, outside) = (
            of("shop/sa/orders"),
            "{external: true, \
             ports: [{port: 8080, protocol: http}], endpoints: [{address: 10.0.0.7}]}",
        );
        let named =
            [("a", "claims", &*own), ("shop", "orders", &own), ("shop", "z", &own), ("a", "b", outside)];
        assert_eq!(at(&loaded(&named).unwrap(), "10.0.0.7:8080").unwrap(), "shop/orders:80@10.0.0.7:24143");
        assert_eq!(at(&loaded(&named[3..]).unwrap(), "10.0.0.7:8080").unwrap(), "a/b:8080@10.0.0.7:24143");
    }

    #[test]
    fn an_address_is_one_services_and_nobody_elses() {
        let other = |spec: &str| loaded(&[("shop", "orders", ORDERS), ("zoo", "other", spec)]).unwrap_err();
        let spec = |addresses: &str, endpoint: &str| {
            format!(
                "{{identity: spiffe://td/ns/zoo/sa/other, {addresses}ports: [{{port: 80, protocol: tcp}}], \
                 endpoints: [{{address: {endpoint}}}]}}"
            )
        };
        for (spec, words) in [
            (
                spec("addresses: [10.96.0.7], ", "10.0.0.9"),
                "the address 10.96.0.7 is that of the Service shop/orders",
            ),
            (
                spec("addresses: [10.0.0.7], ", "10.0.0.9"),
                "the address 10.0.0.7 is that of an endpoint of shop/orders",
            ),
            (spec("", "10.96.0.7"), "the address 10.96.0.7 is that of an endpoint of zoo/other"),
            (spec("addresses: ['::ffff:10.96.0.7'], ", "10.0.0.9"), "10.96.0.7"),
            (spec("addresses: [10.96.0.9, 10.96.0.9], ", "10.0.0.9"), "stands here twice"),
            (spec("addresses: [127.0.0.1], ", "10.0.0.9"), "loopback"),
            (spec("addresses: [0.0.0.0], ", "10.0.0.9"), "nobody can be dialled"),
            (spec("addresses: [orders], ", "10.0.0.9"), "is not an IP address"),
            (spec("addresses: [], ", "10.0.0.9"), "empty"),
            (spec("external: true, addresses: [10.96.0.9], ", "10.0.0.9"), "outside of the mesh"),
        ] {
            let said = other(&spec);
            assert!(said.contains(words), "{spec}: {said}");
        }
    }
}
