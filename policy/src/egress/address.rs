//! Addresses outside of the mesh that no rule opens, and those that only a rule with exactly that address opens.
//!
//! A name is resolved anew for each call, and whoever answers for it may answer with an address inside: of a cloud's
//! metadata service, of this machine, of a workload beside. So an address is judged whichever name led to it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::services::Services;

/// Metadata and platform services of clouds that are not link-local: whoever reaches them gets credentials.
const METADATA_V4: [Ipv4Addr; 3] = [
    // Alibaba Cloud, Azure, Oracle Cloud.
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    // AWS, Google Cloud.
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// What may open an address. In order: the stricter of two readings of an address is the greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Reach {
    /// Any rule that matches.
    ByRule,
    /// A rule that names exactly this address with `cidrs`.
    ByName,
    /// Nothing.
    Never,
}

/// The addresses at which workloads of the mesh are: outside of it there is none of them, and a plaintext call there would
/// be one past the callee's policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshAddresses(HashSet<IpAddr>);

impl MeshAddresses {
    pub(crate) fn of(services: &Services) -> Self {
        let meshed = services.iter().filter(|service| !service.external);
        Self(meshed.flat_map(|service| service.endpoints.iter().map(|endpoint| endpoint.address)).collect())
    }
}

/// What may open `address`, in canonical form.
pub(crate) fn reach(address: IpAddr, own: &[IpAddr], mesh: &MeshAddresses) -> Reach {
    let inside =
        |address: IpAddr| mesh.0.contains(&address) || own.iter().any(|own| own.to_canonical() == address);
    let of_v4 = |v4: Ipv4Addr| if inside(v4.into()) { Reach::Never } else { of_v4(v4) };
    match address {
        IpAddr::V4(v4) => of_v4(v4),
        IpAddr::V6(_) if inside(address) => Reach::Never,
        IpAddr::V6(v6) => embedded(v6).map_or(Reach::ByRule, of_v4).max(of_v6(v6)),
    }
}

fn of_v4(address: Ipv4Addr) -> Reach {
    // 0.0.0.0/8 is "this network": Linux takes 0.0.0.0 for the machine itself.
    if address.is_loopback() || address.octets()[0] == 0 || address.is_multicast() || address.is_broadcast() {
        Reach::Never
    } else if address.is_link_local() || METADATA_V4.contains(&address) {
        Reach::ByName
    } else {
        Reach::ByRule
    }
}

fn of_v6(address: Ipv6Addr) -> Reach {
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        Reach::Never
    } else if address.is_unicast_link_local() || METADATA_V6.contains(&address) {
        Reach::ByName
    } else {
        Reach::ByRule
    }
}

/// The IPv4 address that an IPv6 address may lead to: IPv4-compatible (RFC 4291, 2.5.5.1), NAT64 (RFC 6052, 2.1; RFC 8215)
/// and 6to4 (RFC 3056). IPv4-mapped ones are IPv4 in canonical form.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0) if (g, h) != (0, 0) && (g, h) != (0, 1) => v4(g, h),
        (0x64, 0xff9b, 0, 0, 0, 0) | (0x64, 0xff9b, 1, _, _, _) => v4(g, h),
        (0x2002, high, low, _, _, _) => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Reach {
        let own = ["192.0.2.9".parse().unwrap()];
        let mesh = MeshAddresses(["10.9.9.9".parse().unwrap(), "2001:db8::9".parse().unwrap()].into());
        reach(address.parse::<IpAddr>().unwrap().to_canonical(), &own, &mesh)
    }

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        for never in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::",
            "192.0.2.9",
            "::ffff:192.0.2.9",
            "10.9.9.9",
            "::ffff:10.9.9.9",
            "64:ff9b::10.9.9.9",
            "64:ff9b:1::10.9.9.9",
            "2001:db8::9",
        ] {
            assert_eq!(of(never), Reach::Never, "{never}");
        }
        for by_name in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ] {
            assert_eq!(of(by_name), Reach::ByName, "{by_name}");
        }
        for free in
            ["10.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "fd00::1"]
        {
            assert_eq!(of(free), Reach::ByRule, "{free}");
        }
    }
}
