//! The sidecar's own listeners: where they may stand, and which calls would lead back to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use postern_policy::norm::CanonHost;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, Endpoint, Generation, SourceFile};

use super::{CaptureConfig, Config, File};

impl Config {
    /// Whether `address`, one of the workload's, is one of the sidecar's own doors.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        self.own_listeners().any(|own| self.is_at(own, address))
    }

    /// The same of an address to which a connection was redirected, or would be: there each of the sidecar's ports is a
    /// door, whichever address it is bound to.
    pub fn is_own_door(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_here = ip.is_loopback() || self.is_own_address(ip);
        let is_redirected_to = || self.own_listeners().any(|own| own.port() == address.port());
        self.is_own_listener(address) || (self.capture.is_some() && is_here && is_redirected_to())
    }

    /// Whether the workload has this address itself.
    pub fn is_own_address(&self, ip: IpAddr) -> bool {
        let is_captured = |capture: &CaptureConfig| capture.addresses.contains(&ip);
        ip == self.workload.address || self.capture.as_ref().is_some_and(is_captured)
    }

    /// Where in the workload something goes that reached it at `asked`. Without redirection that is one address, whatever
    /// a peer names; with it the workload may tell its addresses apart.
    pub fn forwarded_to(&self, asked: Option<IpAddr>) -> IpAddr {
        let own = |ip: &IpAddr| self.capture.as_ref().is_some_and(|capture| capture.addresses.contains(ip));
        asked.filter(own).unwrap_or(self.workload.address)
    }

    /// Whether peers may reach this port of the workload's, if they are allowed to: one that it declares, or that a rule in
    /// force names; never one of the sidecar's own.
    pub fn reaches(&self, generation: Option<&Generation>, port: u16) -> bool {
        let is_named = || generation.is_some_and(|generation| generation.ports_named().contains(&port));
        !self.is_own_door(SocketAddr::new(self.workload.address, port))
            && (self.workload.ports.contains_key(&port) || is_named())
    }

    /// Whether a call of the workload's to this host and port would come back to one of the sidecar's own doors. Names
    /// other than `localhost` are not looked up: only services have some.
    pub fn leads_back(&self, host: &CanonHost, port: u16) -> bool {
        let name = host.name();
        let ip = match host.address() {
            Some(ip) => ip,
            None if name == "localhost" || name.ends_with(".localhost") => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            None => return false,
        };
        let target = SocketAddr::new(ip, port);
        self.own_listeners().any(|own| self.is_at(own, target))
    }

    /// Whether an endpoint is one of the sidecar's own doors other than the mesh listener, where calls to oneself go.
    pub fn is_own_way_back(&self, endpoint: &Endpoint) -> bool {
        let target = SocketAddr::new(endpoint.address, endpoint.mesh_port);
        !self.is_at(self.inbound, target) && self.own_listeners().any(|own| self.is_at(own, target))
    }

    /// Addresses that are this sidecar's and its workload's: nothing outside of the mesh has them.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let captured = self.capture.iter().flat_map(|capture| &capture.addresses).copied();
        let own = [self.workload.address, self.inbound.ip(), self.outbound.ip(), self.health.ip()];
        own.into_iter().chain(captured).collect()
    }

    fn own_listeners(&self) -> impl Iterator<Item = SocketAddr> {
        [self.inbound, self.outbound, self.health].into_iter().chain(self.admin_port)
    }

    fn is_at(&self, own: SocketAddr, target: SocketAddr) -> bool {
        let here = SocketAddr::new(self.workload.address, target.port());
        // Any of the workload's addresses is as good as the first.
        let is_here = self.is_own_address(target.ip().to_canonical());
        is_at(own, target, self.workload.address) || (is_here && is_at(own, here, self.workload.address))
    }
}

/// Whether connecting to `target` from here reaches the listener `own`. A listener on all addresses is reached at those
/// known to be this machine's, loopback and the workload's; an unspecified target is loopback to the kernel.
pub(super) fn is_at(own: SocketAddr, target: SocketAddr, workload: IpAddr) -> bool {
    let (ip, asked) = (own.ip().to_canonical(), target.ip().to_canonical());
    let is_here = || asked.is_loopback() || asked == workload.to_canonical();
    own.port() == target.port()
        && (ip == asked
            || ip.is_unspecified() && is_here()
            || asked.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()))
}

/// The workload's address. The kernel would take an unspecified one for loopback, and so reach doors that are compared
/// with another address.
pub(super) fn workload(file: &SourceFile, address: &Spanned<IpAddr>, wrong: &mut Diagnostics) -> IpAddr {
    let ip = address.value.to_canonical();
    if ip.is_unspecified() {
        wrong.push(
            yaml::at(
                file,
                address,
                format!("workload.address: {} is no address to connect to", address.value),
            )
            .with_help("write the one address at which the workload is reached, such as 127.0.0.1"),
        );
    }
    ip
}

impl File {
    /// Every listener by its name.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (&'static str, &Spanned<SocketAddr>)> {
        [
            ("inbound", &self.inbound.address),
            ("outbound", &self.outbound.address),
            ("health", &self.health.address),
        ]
        .into_iter()
        .chain(self.admin.address.as_ref().map(|address| ("admin", address)))
    }
}

/// Reports listeners that cannot, or must not, stand where they are told to.
pub(super) fn check(file: &SourceFile, raw: &File, wrong: &mut Diagnostics) {
    apart(file, raw, wrong);
    loopback(
        file,
        "outbound",
        &raw.outbound.address,
        "whoever reaches it calls with the workload's identity",
        wrong,
    );
    if let Some(address) = &raw.admin.address {
        loopback(file, "admin", address, "it asks nobody who they are", wrong);
    }
}

/// Two doors cannot stand in one place; the machine would only say so when the second one is opened.
fn apart(file: &SourceFile, raw: &File, wrong: &mut Diagnostics) {
    let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
    for (name, address) in raw.listeners() {
        let one = address.value;
        let ip = one.ip().to_canonical();
        let same = |other: &SocketAddr| {
            let taken = other.ip().to_canonical();
            other.port() == one.port() && (taken == ip || taken.is_unspecified() || ip.is_unspecified())
        };
        if one.port() == 0 {
            wrong.push(yaml::at(file, address, format!("{name}: port 0 is no port")));
        } else if let Some((other, _)) = taken.iter().find(|(_, other)| same(other)) {
            wrong.push(yaml::at(file, address, format!("{name} and {other} cannot both listen here")));
        }
        taken.push((name, one));
    }
}

/// Nobody proves anything at these doors.
fn loopback(
    file: &SourceFile,
    name: &str,
    address: &Spanned<SocketAddr>,
    why: &str,
    wrong: &mut Diagnostics,
) {
    if !address.value.ip().to_canonical().is_loopback() {
        wrong.push(
            yaml::at(file, address, format!("{name} must listen on a loopback address: {why}")).with_help(
                format!(
                    "bind it to a 127.x.y.z address of this machine, such as 127.0.0.1:{}",
                    address.value.port()
                ),
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listeners: &str) -> Config {
        parse("{address: 10.0.0.5, ports: [{port: 8080, protocol: http}]}", listeners)
            .unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn parse(workload: &str, listeners: &str) -> Result<Config, Diagnostics> {
        let text = format!(
            "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /s
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /b
  joinToken: /t
workload: {workload}
documents: /d
{listeners}"
        );
        Config::parse(&SourceFile { name: "sidecar.yaml".to_owned(), text: text.into_bytes() })
    }

    #[test]
    fn what_leads_back() {
        let config = config(
            "inbound: {address: \"0.0.0.0:24143\"}
outbound: {address: \"127.0.0.1:24140\"}
health: {address: \"10.0.0.5:24191\"}
admin: {socket: /a, address: \"127.0.0.1:24190\"}
",
        );
        let leads_back = |text: &str| {
            let host = CanonHost::parse(text).unwrap();
            config.leads_back(&host, host.port().unwrap())
        };
        for back in [
            "127.0.0.1:24140",
            "[::ffff:127.0.0.1]:24140",
            "0.0.0.0:24140",
            "[::]:24140",
            "localhost:24140",
            "LocalHost.:24140",
            "a.localhost:24190",
            "127.9.9.9:24143",
            "10.0.0.5:24143",
            "10.0.0.5:24191",
            "127.0.0.1:24190",
        ] {
            assert!(leads_back(back), "{back}");
        }
        for elsewhere in [
            "127.0.0.2:24140",
            "10.0.0.5:24140",
            "127.0.0.1:24191",
            "localhost:24191",
            "10.0.0.6:24143",
            "10.0.0.5:8080",
            "orders:24140",
        ] {
            assert!(!leads_back(elsewhere), "{elsewhere}");
        }
    }

    const ON_LOOPBACK: &str = "inbound: {address: \"127.0.0.1:24143\"}
outbound: {address: \"127.0.0.1:24140\"}
health: {address: \"127.0.0.1:24191\"}
admin: {socket: /a, address: \"127.0.0.1:24190\"}
";

    #[test]
    fn no_spelling_of_the_workloads_address_opens_the_sidecars_own_doors() {
        for address in ["127.0.0.1", "\"::ffff:127.0.0.1\""] {
            let workload = format!("{{address: {address}, ports: [{{port: 8080, protocol: http}}]}}");
            let config = parse(&workload, ON_LOOPBACK).unwrap_or_else(|wrong| panic!("{wrong}"));
            for ip in
                [config.workload.address, "::ffff:127.0.0.1".parse().unwrap(), "0.0.0.0".parse().unwrap()]
            {
                for port in [24140, 24143, 24190, 24191] {
                    assert!(config.is_own_listener(SocketAddr::new(ip, port)), "{address}: {ip} {port}");
                }
                assert!(!config.is_own_listener(SocketAddr::new(ip, 8080)), "{address}: {ip}");
            }
            let own = workload.replace("8080", "24190");
            let error = parse(&own, ON_LOOPBACK).unwrap_err().to_string();
            assert!(error.contains("one of the sidecar's own listeners"), "{error}");
        }
    }

    #[test]
    fn a_workload_is_not_everywhere() {
        for address in ["0.0.0.0", "\"::\"", "\"::ffff:0.0.0.0\""] {
            let workload = format!("{{address: {address}, ports: [{{port: 8080, protocol: http}}]}}");
            let error = parse(&workload, ON_LOOPBACK).unwrap_err().to_string();
            assert!(error.contains("workload.address: ") && error.contains("sidecar.yaml:8:21"), "{error}");
            assert!(error.contains("such as 127.0.0.1"), "{error}");
        }
    }

    #[test]
    fn one_place_is_taken_once_however_it_is_written() {
        let twice = ON_LOOPBACK.replace("127.0.0.1:24143", "[::ffff:127.0.0.1]:24140");
        let workload = "{address: 10.0.0.5, ports: [{port: 8080, protocol: http}]}";
        let error = parse(workload, &twice).unwrap_err().to_string();
        assert!(error.contains("outbound and inbound cannot both listen here"), "{error}");
    }
}
