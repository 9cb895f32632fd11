//! Who lives where: the parties of the demo, their addresses and names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

/// The mesh of the demo.
pub(crate) const TRUST_DOMAIN: &str = "demo.postern";
/// The namespace of the three services.
pub(crate) const NAMESPACE: &str = "shop";

const OUTBOUND_PORT: u16 = 24140;
const MESH_PORT: u16 = 24143;
const HEALTH_PORT: u16 = 24191;
const CONTROL_PORT: u16 = 24150;
const MESH_ADMIN_PORT: u16 = 24192;
/// The port each service listens on.
pub(crate) const SERVICE_PORT: u16 = 8080;

/// Where orders listens on its loopback alone, in a namespace.
pub(crate) const LOOPBACK_PORT: u16 = 7070;

/// One of the three services.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, clap::ValueEnum)]
pub(crate) enum Service {
    /// Where the customer comes in; calls orders.
    Storefront,
    /// Knows the orders; calls the store.
    Orders,
    /// Knows what is in stock.
    Store,
}

impl Service {
    /// All three, in the order of a call.
    pub(crate) const ALL: [Self; 3] = [Self::Storefront, Self::Orders, Self::Store];

    /// Its name in documents, host names and log files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Storefront => "storefront",
            Self::Orders => "orders",
            Self::Store => "store",
        }
    }

    /// Its SPIFFE id.
    pub(crate) fn spiffe_id(self) -> String {
        spiffe_id(self.name())
    }

    const fn host_number(self) -> u8 {
        match self {
            Self::Storefront => 11,
            Self::Orders => 12,
            Self::Store => 13,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The SPIFFE id of a service account in the demo's namespace.
pub(crate) fn spiffe_id(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// The first three octets of every address of one demo, such as `127.0.0`. Two demos run side by side on two of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Subnet([u8; 3]);

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole: Ipv4Addr = format!("{text}.0").parse().map_err(|_| {
            format!(
                "`{text}` is not the first three numbers of a loopback address; write for example 127.0.5"
            )
        })?;
        let [a, b, c, _] = whole.octets();
        if !whole.is_loopback() {
            return Err(format!("`{text}` is not on the loopback, which is 127.x.x"));
        }
        Ok(Self([a, b, c]))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a}.{b}.{c}")
    }
}

/// What a demo stands on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ground {
    /// Loopback addresses of this machine.
    Loopback,
    /// A network namespace for each party, in which the kernel redirects.
    Namespaces(Apart),
}

/// How the kernel tells a sidecar from its workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Apart {
    /// By its user, where there are several.
    User,
    /// By the mark of its connections, where there is one user only.
    Mark,
}

/// Who has a network namespace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Place {
    Service(Service),
    /// Where the control plane is, and names are looked up.
    Control,
    /// A machine without a sidecar.
    Outsider,
}

impl Place {
    /// Every one.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Service::ALL.into_iter().map(Self::Service).chain([Self::Control, Self::Outsider])
    }

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service(service) => service.name(),
            Self::Control => "control",
            Self::Outsider => "outsider",
        }
    }

    const fn host_number(self) -> u8 {
        match self {
            Self::Service(service) => service.host_number(),
            Self::Control => 10,
            Self::Outsider => 14,
        }
    }
}

/// Every address of one demo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) ground: Ground,
    subnet: Subnet,
}

impl Plan {
    /// The addresses on one subnet.
    pub(crate) const fn new(subnet: Subnet) -> Self {
        Self { ground: Ground::Loopback, subnet }
    }

    /// The addresses of namespaces, the same in each demo: nobody else is on their network.
    pub(crate) const fn namespaces(apart: Apart) -> Self {
        Self { ground: Ground::Namespaces(apart), subnet: Subnet([10, 77, 0]) }
    }

    /// Both addresses of a party that has a namespace.
    pub(crate) const fn both(&self, place: Place) -> [IpAddr; 2] {
        let number = place.host_number();
        [IpAddr::V4(self.address(number)), v6(0xfd77, number)]
    }

    /// Both addresses at which a service is called, whichever of its endpoints answers. `payments` has some as well.
    pub(crate) fn called(name: &str) -> [IpAddr; 2] {
        let found = Service::ALL.into_iter().find(|service| service.name() == name);
        let number = found.map_or(20, Service::host_number);
        [IpAddr::V4(Ipv4Addr::new(10, 96, 0, number)), v6(0xfd96, number)]
    }

    /// Where the demo itself stands on the namespaces' network, as one more stranger.
    pub(crate) const fn own(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.address(1)), v6(0xfd77, 1)]
    }

    /// Of a service and of its sidecar.
    pub(crate) const fn host(&self, service: Service) -> Ipv4Addr {
        self.address(service.host_number())
    }

    /// Where the service itself listens.
    pub(crate) const fn service(&self, service: Service) -> SocketAddr {
        at(self.host(service), SERVICE_PORT)
    }

    /// Where the service's sidecar takes the service's own calls.
    pub(crate) const fn outbound(&self, service: Service) -> SocketAddr {
        match self.ground {
            Ground::Loopback => at(self.host(service), OUTBOUND_PORT),
            Ground::Namespaces(_) => at(Ipv4Addr::LOCALHOST, OUTBOUND_PORT),
        }
    }

    /// What a listener of this is bound to: where the kernel redirects, it may come to any address of its namespace.
    pub(crate) const fn bound(&self, address: SocketAddr) -> SocketAddr {
        match self.ground {
            Ground::Loopback => address,
            Ground::Namespaces(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port()),
        }
    }

    /// Where the service's sidecar speaks mesh transport.
    pub(crate) const fn mesh(&self, service: Service) -> SocketAddr {
        at(self.host(service), MESH_PORT)
    }

    /// Where the service's sidecar answers `/live`, `/ready` and `/metrics`.
    pub(crate) const fn health(&self, service: Service) -> SocketAddr {
        at(self.host(service), HEALTH_PORT)
    }

    /// The identity API.
    pub(crate) const fn control(&self) -> SocketAddr {
        at(self.address(10), CONTROL_PORT)
    }

    /// The control plane's `/live`, `/ready` and `/metrics`.
    pub(crate) const fn control_health(&self) -> SocketAddr {
        at(self.address(10), HEALTH_PORT)
    }

    /// Who holds which certificate.
    pub(crate) const fn mesh_admin(&self) -> SocketAddr {
        match self.ground {
            Ground::Loopback => at(self.address(10), MESH_ADMIN_PORT),
            Ground::Namespaces(_) => at(Ipv4Addr::LOCALHOST, MESH_ADMIN_PORT),
        }
    }

    /// A server outside the mesh, which only checks for calls that must not arrive listen on.
    pub(crate) const fn outsider(&self) -> Ipv4Addr {
        self.address(14)
    }

    /// Every listener the demo needs, each with what it is for.
    pub(crate) fn listeners(&self) -> Vec<(SocketAddr, String)> {
        let mut all = vec![
            (self.control(), "the control plane's identity API".to_owned()),
            (self.control_health(), "the control plane's health".to_owned()),
            (self.mesh_admin(), "the mesh admin endpoint".to_owned()),
        ];
        for service in Service::ALL {
            all.push((self.service(service), format!("the service {service}")));
            all.push((self.outbound(service), format!("outbound of the sidecar of {service}")));
            all.push((self.mesh(service), format!("inbound of the sidecar of {service}")));
            all.push((self.health(service), format!("health of the sidecar of {service}")));
        }
        all
    }

    const fn address(&self, host_number: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet.0;
        Ipv4Addr::new(a, b, c, host_number)
    }
}

const fn v6(net: u16, number: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, number as u16))
}

const fn at(host: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_subnet_parses() {
        assert_eq!("127.0.5".parse::<Subnet>().map(|s| s.to_string()), Ok("127.0.5".to_owned()));
        for wrong in ["", "127.0", "127.0.0.1", "10.0.0", "127.0.256", "127.0.x", " 127.0.0"] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_two_listeners_share_an_address() {
        let plan = Plan::new("127.0.0".parse().expect("a subnet"));
        let mut seen = std::collections::BTreeSet::new();
        for (address, what) in plan.listeners() {
            assert!(seen.insert(address), "{address} twice, the second time for {what}");
        }
    }
}
