//! Rules in canonical form: the only thing that the engines see.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use crate::norm::CanonMethod;
use crate::pattern::PathPattern;
use crate::verdict::{Action, Enforcement, Tier};

/// One rule that concerns the workload.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) action: Action,
    pub(crate) tier: Tier,
    pub(crate) enforcement: Enforcement,
    /// Ports of the document's target; any if `None`.
    pub(crate) target_ports: Option<Vec<u16>>,
    /// Alternatives. `None`: any authenticated peer (Allow), anybody (Deny, Audit).
    pub(crate) from: Option<Vec<Peer>>,
    /// Alternatives. `None`: any operation.
    pub(crate) to: Option<Vec<Target>>,
}

/// Who: every field that is given must hold, any value of a field will do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// Only peers without an identity. The checker lets nothing but `cidrs` stand beside it.
    pub(crate) unauthenticated: bool,
    pub(crate) spiffe: Option<Vec<SpiffeId>>,
    pub(crate) accounts: Option<Vec<Account>>,
    pub(crate) namespaces: Option<Vec<Box<str>>>,
    /// For `accounts` and `namespaces`: the trust domain that they are meant in, instead of the mesh's own. Alone:
    /// every id of that trust domain.
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) cidrs: Option<Vec<IpNet>>,
    pub(crate) not: Option<Excluded>,
}

/// Who not: a peer that matches any of these is excluded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excluded {
    pub(crate) spiffe: Vec<SpiffeId>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) namespaces: Vec<Box<str>>,
    /// As in [`Peer`].
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) cidrs: Vec<IpNet>,
}

/// A service account.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Account {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What: every field that is given must hold, any value of a field will do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    pub(crate) methods: Option<Methods>,
    pub(crate) paths: Option<Vec<PathPattern>>,
    pub(crate) ports: Option<Vec<u16>>,
}

/// Methods of a rule.
#[derive(Clone, Debug)]
pub(crate) enum Methods {
    /// `"*"`.
    Any,
    Only(Vec<CanonMethod>),
}

impl Methods {
    /// Whether a rule with `action` and these methods (`None`: not said) covers `method`. An Allow covers TRACE and
    /// CONNECT only by name; a Deny covers all that it does not leave out.
    pub(crate) fn cover(methods: Option<&Self>, action: Action, method: &CanonMethod) -> bool {
        match methods {
            Some(Self::Only(named)) => named.contains(method),
            Some(Self::Any) | None => action.is_wide() || !method.must_be_named(),
        }
    }
}

/// The trust domains in which bare namespaces and service accounts are meant.
#[derive(Clone, Debug)]
pub(crate) struct OwnDomains {
    pub(crate) canonical: TrustDomain,
    pub(crate) aliases: Vec<TrustDomain>,
}

impl OwnDomains {
    pub(crate) fn contain(&self, id: &SpiffeId) -> bool {
        id.is_member_of(&self.canonical) || self.aliases.iter().any(|alias| id.is_member_of(alias))
    }
}

/// IPv4 in IPv6 clothes is IPv4, in questions and in rules (CVE-2026-39409).
pub(crate) fn contains(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address.to_canonical())
}
