//! Services: what a workload may call, under which names, and who must answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use postern_svid::SpiffeId;
use serde::Serialize;

use crate::diagnostic;
use crate::norm::CanonHost;
use crate::port_paths::PortPaths;
use crate::upgrade::UpgradeName;

mod addresses;
mod hosts;

pub use addresses::Place;

/// What a port speaks, as declared.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS of the workload's own, passed through as opaque bytes.
    Tls,
}

impl Protocol {
    /// Whether layer 7 is read at such a port.
    pub fn is_http(self) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::Grpc => true,
            Self::Tcp | Self::Tls => false,
        }
    }

    /// The word that documents use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// The protocol of a document's word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Http, Self::Http2, Self::Grpc, Self::Tcp, Self::Tls].into_iter().find(|p| p.as_str() == word)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an endpoint is dialled.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The mesh transport of another sidecar.
    Postern,
    /// Plain mutual TLS, without any `postern-*` field.
    Mtls,
}

/// `namespace/name`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ServiceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One place that answers for a service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The port of the sidecar in front of it.
    pub mesh_port: u16,
    /// Who may answer there: exactly these ids. Empty only for an external service.
    #[serde(serialize_with = "as_text")]
    pub identities: Vec<SpiffeId>,
    /// How it is dialled.
    pub transport: Transport,
}

/// TLS that the caller's sidecar opens to what is outside of the mesh, so that its workload need not.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OriginateTls {
    /// Whom the certificate must be for, if not for the host that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Box<str>>,
    /// The file of authorities that it must come from, if not the platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Box<str>>,
}

/// One port of a service, with everything that a call needs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The port that callers use.
    pub port: u16,
    /// Its name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port of the workload (`postern-port` on the mesh).
    pub target_port: u16,
    /// What its HTTP requests may turn into, WebSocket aside.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub upgrades: std::sync::Arc<[UpgradeName]>,
    /// How the paths of its requests are read.
    #[serde(flatten)]
    pub paths: PortPaths,
    /// Whether the sidecar opens TLS there.
    #[serde(rename = "tls", skip_serializing_if = "Option::is_none")]
    pub originate: Option<std::sync::Arc<OriginateTls>>,
    /// The service that it belongs to.
    pub service: ServiceName,
    /// Whether the service stands outside the mesh.
    pub external: bool,
    /// The service's hosts.
    #[serde(skip)]
    pub hosts: std::sync::Arc<[Box<str>]>,
    /// The service's endpoints.
    #[serde(skip)]
    pub endpoints: std::sync::Arc<[Endpoint]>,
    /// Where the document says so.
    #[serde(skip)]
    pub place: diagnostic::Place,
}

impl ServicePort {
    /// Outside the mesh: the addresses that the document names. None of a service that is resolved by its hosts.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let named = self.endpoints.iter().map(|endpoint| endpoint.address);
        if self.external { named.collect() } else { Vec::new() }
    }

    /// Whether this is one of the hosts by which the service is asked for, besides its own name.
    pub fn has_host(&self, name: &str) -> bool {
        hosts::has(&self.hosts, name)
    }

    /// Whether its hosts are looked up.
    pub fn is_resolved(&self) -> bool {
        self.external && self.endpoints.is_empty()
    }

    /// The host that is looked up, and that must prove itself, for a caller who asks by `name`: that one, or the first
    /// that is written out if the caller asks by the service's own name.
    pub fn host_for<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        if self.has_host(name) {
            return Some(name);
        }
        self.hosts.iter().map(|host| &**host).find(|host| !host.starts_with("*."))
    }
}

/// A service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Whether it stands outside the mesh: nothing dials such a service without an egress policy.
    pub external: bool,
    /// Outside the mesh: names by which it is asked for besides its own, and which are resolved if it has no endpoints.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub hosts: std::sync::Arc<[Box<str>]>,
    /// Its own addresses, which no workload has: a redirected connection to one of them is a call to this service.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub addresses: std::sync::Arc<[IpAddr]>,
    /// Its ports, by number.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: std::sync::Arc<[Endpoint]>,
}

impl Service {
    /// Whether an endpoint has to prove the id of this service account.
    fn proves(&self, namespace: &str, account: &str) -> bool {
        let mut ids = self.endpoints.iter().flat_map(|endpoint| &endpoint.identities);
        ids.any(|id| id.namespace_and_account() == Some((namespace, account)))
    }

    /// The port with this number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        let at = self.ports.binary_search_by_key(&port, |candidate| candidate.port).ok()?;
        self.ports.get(at)
    }
}

/// All services of a generation.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// By namespace, then by name: a lookup borrows both parts from the host and allocates nothing.
    index: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    services: Vec<Service>,
    /// Of services outside the mesh, by namespace: a document speaks for its own, those of the root namespace for all.
    hosts: hosts::Hosts,
    /// Those that are found by their hosts alone.
    resolved: Vec<usize>,
    addresses: addresses::Addresses,
    root: Box<str>,
}

impl Services {
    /// The names have been checked to be unique.
    pub(crate) fn new(mut services: Vec<Service>, root: &str) -> Self {
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let mut index: HashMap<Box<str>, HashMap<Box<str>, usize>> = HashMap::new();
        let mut hosts = hosts::Hosts::default();
        let mut resolved = Vec::new();
        for (at, service) in services.iter_mut().enumerate() {
            service.ports.sort_by_key(|port| port.port);
            index.entry(service.name.namespace.clone()).or_default().insert(service.name.name.clone(), at);
            for host in &*service.hosts {
                hosts.insert(&service.name.namespace, host, at);
            }
            if service.external && service.endpoints.is_empty() {
                resolved.push(at);
            }
        }
        let addresses = addresses::Addresses::of(&services);
        Self { index, services, hosts, resolved, addresses, root: root.into() }
    }

    /// The service port that `host` and `port` name for a caller in `own_namespace`.
    pub fn find(&self, host: &CanonHost, port: u16, own_namespace: &str) -> Option<&ServicePort> {
        self.service(host, own_namespace)?.port(port)
    }

    /// The service that `host` names for a caller in `own_namespace`: `name`, `name.namespace`, `name.namespace.svc`
    /// or `name.namespace.svc.cluster.local`; or one of the hosts of a service outside the mesh, of the caller's own
    /// namespace or of the root namespace.
    pub fn service(&self, host: &CanonHost, own_namespace: &str) -> Option<&Service> {
        if host.address().is_some() {
            return None;
        }
        let (name, namespace) = match host.name().split_once('.') {
            None => (host.name(), own_namespace),
            Some((name, rest)) => match rest.split_once('.') {
                None => (name, rest),
                Some((namespace, "svc" | "svc.cluster.local")) => (name, namespace),
                Some(_) => return self.by_host(host.name(), own_namespace),
            },
        };
        self.by_name(namespace, name).or_else(|| self.by_host(host.name(), own_namespace))
    }

    /// What a connection to `place` is a call to, whoever makes it and whatever name it bears.
    pub fn at(&self, place: SocketAddr) -> Option<Place<'_>> {
        self.addresses.find(&self.services, place)
    }

    fn by_host(&self, host: &str, own_namespace: &str) -> Option<&Service> {
        if self.hosts.is_empty() {
            return None;
        }
        let namespaces = [own_namespace, &*self.root];
        let found = namespaces.iter().find_map(|namespace| self.hosts.find(namespace, host));
        self.services.get(found?)
    }

    /// Ports outside of the mesh that a caller in `own_namespace` who connects to an address with this port may mean: those
    /// that are found by their hosts, which no document gives an address.
    pub fn nameless(&self, port: u16, own_namespace: &str) -> impl Iterator<Item = &ServicePort> {
        let is_for = move |service: &&Service| {
            let namespace = &*service.name.namespace;
            (namespace == own_namespace || namespace == &*self.root) && !service.hosts.is_empty()
        };
        let outside = self.resolved.iter().filter_map(|at| self.services.get(*at));
        outside.filter(is_for).filter_map(move |service| service.port(port))
    }

    /// Whether there is a service whose hosts are resolved.
    pub fn have_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// The service of this namespace and name.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(*self.index.get(namespace)?.get(name)?)
    }

    /// The ports of a workload to which services of its namespace lead, each with the service's port that says what is
    /// spoken there: services of the workload's name, or whose endpoints prove its id. Where two of them say different
    /// things about whether HTTP is spoken, nothing is known.
    pub(crate) fn leading_to(&self, namespace: &str, account: &str) -> BTreeMap<u16, &ServicePort> {
        let names = self.index.get(namespace).into_iter().flat_map(HashMap::values);
        let mut own: Vec<&Service> = names
            .filter_map(|at| self.services.get(*at))
            .filter(|service| !service.external)
            .filter(|service| *service.name.name == *account || service.proves(namespace, account))
            .collect();
        // The one of the workload's name speaks first.
        own.sort_by_key(|service| (*service.name.name != *account, &service.name));
        let mut found: BTreeMap<u16, &ServicePort> = BTreeMap::new();
        let mut doubtful = BTreeSet::new();
        for port in own.iter().flat_map(|service| &service.ports) {
            let first = *found.entry(port.target_port).or_insert(port);
            if first.protocol.is_http() != port.protocol.is_http() {
                doubtful.insert(port.target_port);
            }
        }
        found.retain(|port, _| !doubtful.contains(port));
        found
    }

    /// The service's port that says what is spoken at a port of a workload, if one does and none contradicts it.
    pub fn leading_to_port(&self, namespace: &str, account: &str, port: u16) -> Option<&ServicePort> {
        self.leading_to(namespace, account).remove(&port)
    }

    /// All of them, by name.
    pub fn iter(&self) -> std::slice::Iter<'_, Service> {
        self.services.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

impl<'a> IntoIterator for &'a Services {
    type Item = &'a Service;
    type IntoIter = std::slice::Iter<'a, Service>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn as_text<S: serde::Serializer>(ids: &[SpiffeId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(SpiffeId::as_str))
}
