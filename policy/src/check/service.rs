//! Service.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use postern_svid::SpiffeId;

use super::{Page, Rules};
use crate::doc::{Document, EndpointDoc, PortDoc, ServiceSpec, Sp};
use crate::services::{Endpoint, Protocol, Service, ServiceName, ServicePort, Transport};
use crate::yaml;

/// The sidecar's inbound port.
const MESH_PORT: u16 = 24_143;

/// Checks a Service.
pub(crate) fn service(page: &mut Page<'_>, document: &Document<ServiceSpec>, rules: &Rules<'_>) -> Service {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let ServiceSpec { identity, external, ports, endpoints } = &spec.value;
    let name = ServiceName {
        namespace: metadata.namespace.value.as_str().into(),
        name: metadata.name.value.as_str().into(),
    };
    let external = external.as_ref().is_some_and(|flag| flag.value);
    let default = identity.as_ref().and_then(|text| self::identity(page, text, external, rules));
    let anonymous = identity.is_none() && !external;
    let mut places = HashSet::new();
    let mut checked = Vec::with_capacity(endpoints.value.len());
    for entry in page.items(endpoints, "endpoints") {
        if let Some(endpoint) = self::endpoint(page, entry, default.as_ref(), anonymous, external, rules) {
            if !places.insert((endpoint.address, endpoint.mesh_port)) {
                page.error(entry.referenced, "this endpoint stands here twice");
            }
            checked.push(endpoint);
        }
    }
    let endpoints: Arc<[Endpoint]> = checked.into();
    let mut numbers = HashSet::new();
    let mut checked = Vec::with_capacity(ports.value.len());
    for entry in page.items(ports, "ports") {
        let PortDoc { port, protocol, target_port, name: port_name } = &entry.value;
        let number = self::port(page, port);
        let target_port = target_port.as_ref().map_or(number, |port| self::port(page, port));
        if !numbers.insert(number) {
            page.error(port.referenced, format!("port {number} stands here twice"));
        }
        if let Some(port_name) = port_name {
            page.name(port_name);
        }
        let Some(protocol) = self::protocol(page, protocol) else { continue };
        checked.push(ServicePort {
            port: number,
            name: port_name.as_ref().map(|name| name.value.as_str().into()),
            protocol,
            target_port,
            service: name.clone(),
            external,
            endpoints: endpoints.clone(),
        });
    }
    Service { name, external, ports: checked, endpoints }
}

fn endpoint(
    page: &mut Page<'_>,
    entry: &Sp<EndpointDoc>,
    default: Option<&SpiffeId>,
    anonymous: bool,
    external: bool,
    rules: &Rules<'_>,
) -> Option<Endpoint> {
    let EndpointDoc { address, mesh_port, identity, transport } = &entry.value;
    let own = identity.as_ref().and_then(|text| self::identity(page, text, external, rules));
    if anonymous && identity.is_none() {
        page.error_with(
            entry.referenced,
            "nothing says who must answer at this endpoint",
            "give the service (or this endpoint) an `identity`, or say `external: true`",
        );
    }
    let mesh_port = mesh_port.as_ref().map_or(MESH_PORT, |port| self::port(page, port));
    let transport = transport
        .as_ref()
        .and_then(|word| page.word(word, &[("postern", Transport::Postern), ("mtls", Transport::Mtls)]))
        .unwrap_or(Transport::Postern);
    let parsed = match address.value.parse::<IpAddr>() {
        Ok(parsed) => parsed.to_canonical(),
        Err(_) => {
            page.error_with(
                address.referenced,
                format!("`{}` is not an IP address", yaml::printable(&address.value)),
                "endpoints are named by address, such as 10.0.0.7 or 2001:db8::7",
            );
            return None;
        }
    };
    if parsed.is_unspecified() || parsed.is_multicast() {
        page.error(address.referenced, "nobody can be dialled at this address");
    }
    let identities = own.or_else(|| default.cloned()).into_iter().collect();
    Some(Endpoint { address: parsed, mesh_port, identities, transport })
}

fn identity(page: &mut Page<'_>, text: &Sp<String>, external: bool, rules: &Rules<'_>) -> Option<SpiffeId> {
    let id = match SpiffeId::parse(&text.value) {
        Ok(id) => id,
        Err(error) => {
            page.error(text.referenced, format!("not a SPIFFE id: {error}"));
            return None;
        }
    };
    if !external && !id.is_member_of(&rules.domains.canonical) {
        page.error_with(
            text.referenced,
            "this id belongs to another trust domain",
            format!("services of this mesh have ids of `{}`", rules.domains.canonical),
        );
    } else if id.is_reserved() {
        page.error(text.referenced, "ids under /postern/ belong to the mesh itself");
    }
    Some(id)
}

fn port(page: &mut Page<'_>, port: &Sp<u16>) -> u16 {
    if port.value == 0 {
        page.error(port.referenced, "0 is no port");
    }
    port.value
}

fn protocol(page: &mut Page<'_>, word: &Sp<String>) -> Option<Protocol> {
    let words = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp, Protocol::Tls];
    page.word(word, &words.map(|protocol| (protocol.as_str(), protocol)))
}
