//! Who lives where: the parties of the demo, their addresses and names.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
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

/// Every address of one demo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    subnet: Subnet,
}

impl Plan {
    /// The addresses on one subnet.
    pub(crate) const fn new(subnet: Subnet) -> Self {
        Self { subnet }
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
        at(self.host(service), OUTBOUND_PORT)
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
        at(self.address(10), MESH_ADMIN_PORT)
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
