//! Service.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use postern_svid::SpiffeId;

use super::{Page, Rules};
use crate::doc::{Document, EndpointDoc, List, PortDoc, PortTlsDoc, ServiceSpec, Sp};
use crate::norm::{CanonHost, EscapedSlashes};
use crate::port_paths::PortPaths;
use crate::services::{Endpoint, OriginateTls, Protocol, Service, ServiceName, ServicePort, Transport};
use crate::upgrade::{MAX_UPGRADES, UpgradeName};
use crate::yaml;

/// The sidecar's inbound port.
const MESH_PORT: u16 = 24_143;

/// Checks a Service.
pub(crate) fn service(page: &mut Page<'_>, document: &Document<ServiceSpec>, rules: &Rules<'_>) -> Service {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let ServiceSpec { identity, external, hosts, addresses, ports, endpoints } = &spec.value;
    let name = ServiceName {
        namespace: metadata.namespace.value.as_str().into(),
        name: metadata.name.value.as_str().into(),
    };
    let external = external.as_ref().is_some_and(|flag| flag.value);
    let default = identity.as_ref().and_then(|text| self::identity(page, text, external, rules));
    let anonymous = identity.is_none() && !external;
    let hosts: Arc<[Box<str>]> = match hosts {
        Some(list) => self::hosts(page, list, external).into(),
        None => Arc::default(),
    };
    if endpoints.is_none() && hosts.is_empty() {
        page.error_with(
            spec.referenced,
            "the field `endpoints` is missing",
            "only a service outside of the mesh that has `hosts` can do without: they are resolved",
        );
    }
    let mut places = HashSet::new();
    let mut checked = Vec::new();
    let written = endpoints.as_ref().map_or(&[][..], |list| page.items(list, "endpoints"));
    for entry in written {
        if let Some(endpoint) = self::endpoint(page, entry, default.as_ref(), anonymous, external, rules) {
            if !places.insert((endpoint.address, endpoint.mesh_port)) {
                page.error_with(entry.referenced, "this endpoint stands here twice", "leave one of them out");
            }
            checked.push(endpoint);
        }
    }
    let endpoints: Arc<[Endpoint]> = checked.into();
    let addresses: Arc<[IpAddr]> = match addresses {
        Some(list) => self::addresses(page, list, external).into(),
        None => Arc::default(),
    };
    let mut numbers = HashSet::new();
    let mut checked = Vec::with_capacity(ports.value.len());
    for entry in page.items(ports, "ports") {
        let PortDoc {
            port,
            protocol,
            target_port,
            name: port_name,
            upgrades,
            escaped_slashes,
            preserve_raw_path,
            tls,
        } = &entry.value;
        let number = self::port(page, port);
        let target_port = target_port.as_ref().map_or(number, |port| self::port(page, port));
        if !numbers.insert(number) {
            page.error_with(
                port.referenced,
                format!("port {number} stands here twice"),
                "leave one of them out, or give it another number",
            );
        }
        if let Some(port_name) = port_name {
            page.name(port_name);
        }
        let Some(protocol) = self::protocol(page, protocol) else { continue };
        let upgrades = match upgrades {
            Some(names) => self::upgrades(page, names, protocol, &endpoints),
            None => Vec::new(),
        };
        let paths = self::paths(page, escaped_slashes.as_ref(), preserve_raw_path.as_ref(), protocol);
        let originate = tls.as_ref().and_then(|tls| self::originate(page, tls, protocol, external, &hosts));
        checked.push(ServicePort {
            port: number,
            name: port_name.as_ref().map(|name| name.value.as_str().into()),
            protocol,
            target_port,
            upgrades: upgrades.into(),
            paths,
            originate,
            service: name.clone(),
            external,
            hosts: hosts.clone(),
            endpoints: endpoints.clone(),
            place: page.place(entry.referenced),
        });
    }
    Service { name, external, hosts, addresses, ports: checked, endpoints }
}

/// Names by which a service outside of the mesh is asked for.
fn hosts(page: &mut Page<'_>, list: &List<String>, external: bool) -> Vec<Box<str>> {
    if !external {
        page.error_with(
            list.referenced,
            "a service of the mesh is asked for by its own name",
            "leave `hosts` out, or say `external: true`",
        );
    }
    let mut out: Vec<Box<str>> = Vec::with_capacity(list.value.len());
    for item in page.items(list, "hosts") {
        let text = item.value.as_str();
        let (star, below) = match text.strip_prefix("*.") {
            Some(domain) => ("*.", domain),
            None => ("", text),
        };
        let host = match CanonHost::parse(below) {
            Ok(host) => host,
            Err(error) => {
                page.error(item.referenced, error.to_string());
                continue;
            }
        };
        if host.address().is_some() {
            page.error_with(item.referenced, "this is an address, no host", "write it under `endpoints`");
        } else if host.port().is_some() {
            page.error_with(
                item.referenced,
                "a host stands here without its port",
                "write the port under `ports`",
            );
        } else if host.name() != below {
            page.error_with(
                item.referenced,
                "this host is not in the form in which requests are judged",
                format!("write `{star}{}`", host.name()),
            );
        } else if !below.contains('.') && !star.is_empty() {
            page.error_with(
                item.referenced,
                "this is everything below a top-level domain",
                "write a domain of two labels or more, such as `*.partner.example`",
            );
        } else if !below.contains('.') {
            page.error_with(
                item.referenced,
                "a name without a dot is a service of the caller's own namespace",
                "write the whole name",
            );
        } else if out.iter().any(|known| **known == *text) {
            page.error(item.referenced, format!("the host `{text}` stands here twice"));
        }
        out.push(format!("{star}{}", host.name()).into());
    }
    out
}

/// TLS of the sidecar's own to what is outside.
fn originate(
    page: &mut Page<'_>,
    tls: &Sp<PortTlsDoc>,
    protocol: Protocol,
    external: bool,
    hosts: &[Box<str>],
) -> Option<Arc<OriginateTls>> {
    let PortTlsDoc { originate, server_name, ca_file } = &tls.value;
    if !external {
        page.error_with(
            tls.referenced,
            "between sidecars there is mutual TLS always",
            "leave `tls` out: it is for services with `external: true`",
        );
    } else if !protocol.is_http() {
        page.error_with(
            tls.referenced,
            format!("at a port of protocol {protocol} the workload brings its own TLS or none"),
            "leave `tls` out, or declare as http, http2 or grpc what the workload says in clear",
        );
    }
    if !originate.value {
        let written = server_name.as_ref().or(ca_file.as_ref());
        if let Some(written) = written {
            page.error_with(
                written.referenced,
                "no TLS is opened, so nobody proves anything",
                "leave it out",
            );
        }
        return None;
    }
    if let Some(name) = server_name {
        let is_name = CanonHost::parse(&name.value)
            .is_ok_and(|host| host.address().is_none() && host.port().is_none() && host.name() == name.value);
        if !is_name {
            page.error_with(
                name.referenced,
                format!("`{}` is no name that a certificate could be for", yaml::printable(&name.value)),
                "write a host in lower case, such as `api.partner.example`",
            );
        }
    } else if hosts.is_empty() {
        page.error_with(
            tls.referenced,
            "nothing says whom the certificate must be for",
            "give the Service `hosts`, or write `serverName`",
        );
    }
    Some(Arc::new(OriginateTls {
        server_name: server_name.as_ref().map(|name| name.value.as_str().into()),
        ca_file: ca_file.as_ref().map(|path| super::issuers::absolute(page, path)),
    }))
}

/// Addresses of the service's own, as a cluster gives them to its services.
fn addresses(page: &mut Page<'_>, list: &List<String>, external: bool) -> Vec<IpAddr> {
    if external {
        page.error_with(
            list.referenced,
            "what is outside of the mesh has no address of its own in it",
            "write where it is under `endpoints`",
        );
    }
    let mut out: Vec<IpAddr> = Vec::new();
    for item in page.items(list, "addresses") {
        let Some(address) = self::address(page, item, "the address of a service") else { continue };
        if address.is_loopback() {
            page.error_with(
                item.referenced,
                "no connection to loopback leaves a workload",
                "write an address that is routed, such as 10.96.0.7",
            );
        } else if out.contains(&address) {
            page.error(item.referenced, format!("the address {address} stands here twice"));
        }
        out.push(address);
    }
    out
}

/// An address that somebody can be called at.
fn address(page: &mut Page<'_>, text: &Sp<String>, what: &str) -> Option<IpAddr> {
    let Ok(parsed) = text.value.parse::<IpAddr>() else {
        page.error_with(
            text.referenced,
            format!("`{}` is not an IP address", yaml::printable(&text.value)),
            "endpoints are named by address, such as 10.0.0.7 or 2001:db8::7",
        );
        return None;
    };
    let parsed = parsed.to_canonical();
    if parsed.is_unspecified() || parsed.is_multicast() {
        page.error_with(text.referenced, "nobody can be dialled at this address", format!("write {what}"));
    }
    Some(parsed)
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
    let parsed = self::address(page, address, "the address of one workload")?;
    let identities = own.or_else(|| default.cloned()).into_iter().collect();
    Some(Endpoint { address: parsed, mesh_port, identities, transport })
}

fn identity(page: &mut Page<'_>, text: &Sp<String>, external: bool, rules: &Rules<'_>) -> Option<SpiffeId> {
    let id = match SpiffeId::parse(&text.value) {
        Ok(id) => id,
        Err(error) => {
            page.mistake(text.referenced, super::no_spiffe_id(&text.value, error));
            return None;
        }
    };
    if !external && !id.is_member_of(&rules.domains.canonical) {
        // Which trust domains are federated is known to the control plane, and may change while this stands.
        page.warn(
            text.referenced,
            "this id belongs to another trust domain",
            format!(
                "services of this mesh have ids of `{}`; this one can be called only while the control plane federates with `{}`",
                rules.domains.canonical,
                id.trust_domain_name()
            ),
        );
    }
    if id.is_reserved() {
        page.error_with(
            text.referenced,
            "ids under /postern/ belong to the mesh itself",
            "services have ids such as `/ns/shop/sa/orders`",
        );
    }
    Some(id)
}

fn port(page: &mut Page<'_>, port: &Sp<u16>) -> u16 {
    if port.value == 0 {
        page.error_with(port.referenced, "0 is no port", super::NO_PORT);
    }
    port.value
}

fn upgrades(
    page: &mut Page<'_>,
    names: &List<String>,
    protocol: Protocol,
    endpoints: &[Endpoint],
) -> Vec<UpgradeName> {
    if protocol != Protocol::Http {
        page.error_with(
            names.referenced,
            format!("a port of protocol {protocol} has no upgrades"),
            "only HTTP/1.1 has them: declare the port as http, or leave `upgrades` out",
        );
    }
    if endpoints.iter().any(|endpoint| endpoint.transport == Transport::Mtls) {
        page.error_with(
            names.referenced,
            "upgrades travel between sidecars only",
            "an endpoint of this service has `transport: mtls`: leave `upgrades` out",
        );
    }
    if names.value.len() > MAX_UPGRADES {
        page.error(names.referenced, format!("a port lists at most {MAX_UPGRADES} upgrades"));
    }
    let mut checked = Vec::new();
    for entry in page.items(names, "upgrades").iter().take(MAX_UPGRADES) {
        match UpgradeName::parse(&entry.value) {
            Ok(name) if checked.contains(&name) => {
                page.error(entry.referenced, format!("{name} stands here twice"));
            }
            Ok(name) => checked.push(name),
            Err(error) => page.error_with(entry.referenced, error.to_string(), error.help()),
        }
    }
    checked
}

fn paths(
    page: &mut Page<'_>,
    slashes: Option<&Sp<String>>,
    raw: Option<&Sp<bool>>,
    protocol: Protocol,
) -> PortPaths {
    let paths = PortPaths {
        escaped_slashes: slashes.and_then(|word| page.word(word, &EscapedSlashes::WORDS)),
        preserve_raw_path: raw.is_some_and(|flag| flag.value),
    };
    let written = slashes.map(|word| word.referenced).or_else(|| raw.map(|flag| flag.referenced));
    if let (Some((what, help)), Some(at)) = (paths.mistake(protocol), written) {
        page.error_with(at, what, help);
    }
    paths
}

fn protocol(page: &mut Page<'_>, word: &Sp<String>) -> Option<Protocol> {
    let words = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp, Protocol::Tls];
    page.word(word, &words.map(|protocol| (protocol.as_str(), protocol)))
}

#[cfg(test)]
mod tests {
    use postern_svid::TrustDomain;

    use crate::{Scope, SourceFile, load};

    fn loaded(port: &str, endpoint: &str) -> Result<Vec<String>, String> {
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: docker, namespace: shop}}\nspec:\n  \
             identity: spiffe://td/ns/shop/sa/docker\n  ports:\n  - {{port: 80, {port}}}\n  \
             endpoints: [{{address: 127.0.0.1{endpoint}}}]\n"
        );
        let scope = Scope {
            trust_domain: TrustDomain::parse("td").unwrap(),
            root_namespace: "postern-system".to_owned(),
            workload: None,
        };
        let files = [SourceFile { name: "s.yaml".to_owned(), text: text.into_bytes() }];
        let generation = load(&files, &scope, 1).map_err(|errors| errors.to_string())?;
        let service = generation.services().by_name("shop", "docker").unwrap();
        Ok(service.port(80).unwrap().upgrades.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn upgrades_are_listed_by_name() {
        assert_eq!(loaded("protocol: http", "").unwrap(), Vec::<String>::new());
        assert_eq!(loaded("protocol: http, upgrades: [tcp, spdy/3.1]", "").unwrap(), ["tcp", "spdy/3.1"]);
        let many: Vec<String> = (0..17).map(|n| format!("p{n}")).collect();
        let many = format!("protocol: http, upgrades: [{}]", many.join(", "));
        for (port, endpoint, words) in [
            ("protocol: http, upgrades: [tcp, h2c]", "", ["s.yaml:7:48", "never passed on"]),
            ("protocol: http, upgrades: [HTTP/2.0]", "", ["s.yaml:7:43", "never passed on"]),
            ("protocol: http, upgrades: [tls/1.0]", "", ["s.yaml:7:43", "never passed on"]),
            ("protocol: http, upgrades: [websocket]", "", ["s.yaml:7:43", "passes at every HTTP port"]),
            ("protocol: http, upgrades: [SPDY/3.1]", "", ["s.yaml:7:43", "write spdy/3.1"]),
            ("protocol: http, upgrades: ['a b']", "", ["s.yaml:7:43", "not the name of an upgrade"]),
            ("protocol: http, upgrades: [tcp, tcp]", "", ["s.yaml:7:48", "twice"]),
            ("protocol: http, upgrades: []", "", ["s.yaml:7:42", "empty"]),
            ("protocol: http2, upgrades: [tcp]", "", ["s.yaml:7:43", "only HTTP/1.1"]),
            ("protocol: tcp, upgrades: [tcp]", "", ["s.yaml:7:41", "of protocol tcp"]),
            ("protocol: http, upgrades: [tcp]", ", transport: mtls", ["s.yaml:7:42", "between sidecars"]),
            (&many, "", ["s.yaml:7:42", "at most 16"]),
        ] {
            let said = loaded(port, endpoint).expect_err(port);
            assert!(words.iter().all(|word| said.contains(word)), "{port}: {said}");
        }
    }
}
