//! Egress rules in canonical form.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::pattern::PathPattern;
use crate::rule::{HostPattern, Methods};
use crate::services::{Protocol, ServiceName};
use crate::verdict::{Action, Enforcement, Tier};
use crate::window::Window;

/// One egress rule that concerns the workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EgressRule {
    pub(crate) action: Action,
    pub(crate) tier: Tier,
    pub(crate) enforcement: Enforcement,
    /// Alternatives. `None`: any destination; never in an Allow.
    pub(crate) to: Option<Vec<Destination>>,
    /// `None`: always.
    pub(crate) window: Option<Window>,
}

/// Where to: every field that is given must hold, any value of a field will do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Destination {
    pub(crate) whither: Whither,
    /// Ports as the workload asks for them.
    pub(crate) ports: Option<Vec<u16>>,
    pub(crate) protocol: Option<Spoken>,
    pub(crate) methods: Option<Methods>,
    pub(crate) paths: Option<Vec<PathPattern>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Whither {
    Services(Vec<ServicePattern>),
    /// Outside of the mesh, by the host that is asked for.
    Hosts(Vec<HostPattern>),
    /// Outside of the mesh, by the address that is dialled.
    Addresses {
        nets: Vec<IpNet>,
        except: Vec<IpNet>,
    },
}

/// Services of a rule.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum ServicePattern {
    /// `*`: every one of the mesh, none outside.
    Meshed,
    /// `namespace/*`: every one of the mesh in it, none outside.
    Namespace(Box<str>),
    /// This one, wherever it is.
    One(ServiceName),
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meshed => f.write_str("*"),
            Self::Namespace(namespace) => write!(f, "{namespace}/*"),
            Self::One(name) => name.fmt(f),
        }
    }
}

/// What is spoken at a destination, as far as rules tell it apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Spoken {
    Http,
    Tls,
    Tcp,
}

impl Spoken {
    /// Words of documents.
    pub(crate) const WORDS: [(&'static str, Self); 3] =
        [("Http", Self::Http), ("Tls", Self::Tls), ("Tcp", Self::Tcp)];

    pub(crate) fn at(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => Self::Http,
            Protocol::Tls => Self::Tls,
            Protocol::Tcp => Self::Tcp,
        }
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "Http",
            Self::Tls => "Tls",
            Self::Tcp => "Tcp",
        })
    }
}

/// A network of one address.
pub(crate) fn is_exactly(net: &IpNet, address: IpAddr) -> bool {
    net.prefix_len() == net.max_prefix_len() && net.addr() == address
}
