//! Rules in canonical form: the only thing that the engines see.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use crate::cond::Condition;
use crate::istio::{Clause, What};
use crate::jwt::JwtMatch;
use crate::norm::{CanonHost, CanonMethod};
use crate::pattern::PathPattern;
use crate::upgrade::Upgrades;
use crate::verdict::{Action, Enforcement, Tier};
use crate::window::Window;

/// One rule that concerns the workload.
#[derive(Clone, Debug, PartialEq)]
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
    /// `None`: always.
    pub(crate) window: Option<Box<Window>>,
    /// What must be true besides.
    pub(crate) condition: Option<Condition>,
    /// What a rule of Istio's asks, in its own words; everything above but action, tier and enforcement is empty then.
    pub(crate) istio: Option<Box<Clause>>,
}

impl Rule {
    /// A rule of Istio's.
    pub(crate) fn of_istio(action: Action, tier: Tier, enforcement: Enforcement, clause: Clause) -> Self {
        Self {
            action,
            tier,
            enforcement,
            target_ports: None,
            from: None,
            to: None,
            window: None,
            condition: None,
            istio: Some(Box::new(clause)),
        }
    }

    /// Gives back room that nothing will take any more: there are many rules, and they stay.
    pub(crate) fn shrink(&mut self) {
        fn fit<T>(list: &mut Option<Vec<T>>) {
            list.iter_mut().for_each(Vec::shrink_to_fit);
        }
        fit(&mut self.from);
        fit(&mut self.to);
        for Peer { spiffe, accounts, namespaces, cidrs, .. } in self.from.iter_mut().flatten() {
            fit(spiffe);
            fit(accounts);
            fit(namespaces);
            fit(cidrs);
        }
        for Target { methods, paths, hosts, headers, sni, ports, .. } in self.to.iter_mut().flatten() {
            if let Some(Methods::Only(named)) = methods {
                named.shrink_to_fit();
            }
            fit(paths);
            fit(hosts);
            headers.shrink_to_fit();
            fit(sni);
            fit(ports);
            for pattern in paths.iter_mut().flatten() {
                pattern.shrink();
            }
        }
    }

    /// Whether it is about one path and not another, whatever operation it is asked about.
    fn condition_asks_path(&self) -> bool {
        self.condition.as_ref().is_some_and(Condition::asks_path)
    }

    /// Ports that it is about; `None`: any.
    pub(crate) fn ports(&self) -> Option<Vec<u16>> {
        let of_targets = || {
            let targets = self.to.as_ref()?;
            let ports: Option<Vec<&Vec<u16>>> = targets.iter().map(|target| target.ports.as_ref()).collect();
            Some(ports?.into_iter().flatten().copied().collect())
        };
        self.target_ports.clone().or_else(of_targets)
    }

    /// Whether it asks for tokens.
    pub(crate) fn asks_tokens(&self) -> bool {
        self.from.iter().flatten().any(Peer::asks_tokens)
            || self.istio.as_deref().is_some_and(Clause::asks_tokens)
            || self.condition.as_ref().is_some_and(Condition::asks_tokens)
    }
}

/// Who: every field that is given must hold, any value of a field will do.
#[derive(Clone, Debug, Default, PartialEq)]
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
    pub(crate) jwt: Option<Box<JwtMatch>>,
    pub(crate) not: Option<Box<Excluded>>,
}

impl Peer {
    /// Whether it asks for tokens.
    pub(crate) fn asks_tokens(&self) -> bool {
        self.jwt.is_some() || self.not.as_ref().is_some_and(|not| not.jwt.is_some())
    }
}

/// Who not: a peer that matches any of these is excluded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Excluded {
    pub(crate) spiffe: Vec<SpiffeId>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) namespaces: Vec<Box<str>>,
    /// As in [`Peer`].
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) cidrs: Vec<IpNet>,
    pub(crate) jwt: Option<Box<JwtMatch>>,
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
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Target {
    pub(crate) methods: Option<Methods>,
    pub(crate) paths: Option<Vec<PathPattern>>,
    /// Methods and paths were written as `grpc`.
    pub(crate) grpc: bool,
    pub(crate) hosts: Option<Vec<HostPattern>>,
    /// All of them must hold.
    pub(crate) headers: Vec<HeaderMatch>,
    pub(crate) upgrade: Option<Upgrades>,
    /// Server names of TLS; an HTTP request has none.
    pub(crate) sni: Option<Vec<HostPattern>>,
    pub(crate) ports: Option<Vec<u16>>,
    pub(crate) not: Option<Box<ExcludedTarget>>,
}

impl Target {
    /// Whether it is about one path and not another.
    pub(crate) fn speaks_of_paths(&self) -> bool {
        self.paths.is_some() || self.not.as_ref().is_some_and(|not| !not.paths.is_empty())
    }

    /// Whether it asks for a server name.
    pub(crate) fn asks_sni(&self) -> bool {
        self.sni.is_some() || self.not.as_ref().is_some_and(|not| !not.sni.is_empty())
    }

    /// Whether it asks for anything that opaque bytes never show, a TLS handshake included.
    pub(crate) fn asks_layer7(&self) -> bool {
        let Self { methods, paths, grpc: _, hosts, headers, upgrade, sni: _, ports: _, not } = self;
        methods.is_some()
            || paths.is_some()
            || hosts.is_some()
            || !headers.is_empty()
            || upgrade.is_some()
            || not.as_ref().is_some_and(|not| not.asks_layer7())
    }
}

/// What not: an operation that matches any of these is excluded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ExcludedTarget {
    pub(crate) methods: Vec<CanonMethod>,
    pub(crate) paths: Vec<PathPattern>,
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) upgrade: Option<Upgrades>,
    pub(crate) sni: Vec<HostPattern>,
    pub(crate) ports: Vec<u16>,
}

impl ExcludedTarget {
    fn asks_layer7(&self) -> bool {
        let Self { methods, paths, hosts, upgrade, sni: _, ports: _ } = self;
        !methods.is_empty() || !paths.is_empty() || !hosts.is_empty() || upgrade.is_some()
    }
}

/// Labels of a host in a rule.
pub(crate) const MAX_LABELS: usize = 16;

/// A host of a rule. Ports are left out on both sides: a name with another port behind it is the same name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum HostPattern {
    Exact(Box<str>),
    /// `*.` in front: any name below this one, not the name itself.
    Below(Box<str>),
}

impl HostPattern {
    pub(crate) fn matches(&self, host: &CanonHost) -> bool {
        let name = host.name();
        match self {
            Self::Exact(exact) => **exact == *name,
            // An address has no names below it, nor above.
            Self::Below(domain) => {
                host.address().is_none()
                    && name
                        .strip_suffix(&**domain)
                        .is_some_and(|front| front.len() > 1 && front.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// What a header field must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HeaderMatch {
    pub(crate) name: Box<str>,
    pub(crate) test: HeaderTest,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum HeaderTest {
    Present,
    Absent,
    /// One of these values; how many of a list's elements must be is said beside it.
    Is(Vec<ValuePattern>, ListOf),
    /// None of these values.
    Not(Vec<ValuePattern>),
}

/// How a field with several values is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum ListOf {
    /// It is not: a second value matches no Allow.
    #[default]
    One,
    Any,
    All,
}

/// A value of a header field. It holds no comma, so it is compared with the elements of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ValuePattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl ValuePattern {
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        }
    }
}

impl fmt::Display for ValuePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{text:?}"),
            Self::Prefix(text) => write!(f, "{text:?} and what begins so"),
        }
    }
}

/// Methods of a rule.
#[derive(Clone, Debug, PartialEq)]
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

/// The workload's ports for which rules speak of something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PortsJudged {
    everywhere: bool,
    ports: BTreeSet<u16>,
}

impl PortsJudged {
    /// Ports for which enforced rules speak of paths.
    pub(crate) fn by_path(rules: &[Arc<Rule>]) -> Self {
        // Shadows and audits change nothing, so they make no request a bad one.
        let enforced =
            |rule: &&Arc<Rule>| rule.enforcement == Enforcement::Enforce && rule.action != Action::Audit;
        let mut judged = Self::by(rules.iter().filter(enforced), Target::speaks_of_paths);
        let istio = rules.iter().filter(enforced).flat_map(|rule| &rule.istio).flat_map(|clause| &clause.to);
        judged.add(istio.filter(|what| !what.paths.is_empty()));
        for rule in rules.iter().filter(enforced).filter(|rule| rule.condition_asks_path()) {
            match rule.ports() {
                Some(ports) => judged.ports.extend(ports),
                None => judged.everywhere = true,
            }
        }
        judged
    }

    /// Ports for which rules of any kind speak of server names.
    pub(crate) fn by_sni<'r>(rules: impl Iterator<Item = &'r Arc<Rule>>) -> Self {
        let rules: Vec<_> = rules.collect();
        let mut judged = Self::by(rules.iter().copied(), Target::asks_sni);
        let istio = rules.iter().flat_map(|rule| &rule.istio).flat_map(|clause| &clause.to);
        judged.add(istio.filter(|what| !what.sni.is_empty()));
        judged
    }

    fn add<'r>(&mut self, targets: impl Iterator<Item = &'r What>) {
        for what in targets {
            match what.ports.iter().find(|test| !test.values.is_empty()) {
                Some(test) => self.ports.extend(&test.values),
                None => self.everywhere = true,
            }
        }
    }

    fn by<'r>(rules: impl Iterator<Item = &'r Arc<Rule>>, wanted: fn(&Target) -> bool) -> Self {
        let mut judged = Self::default();
        for rule in rules {
            for target in rule.to.iter().flatten().filter(|target| wanted(target)) {
                match (&rule.target_ports, &target.ports) {
                    (None, None) => judged.everywhere = true,
                    (Some(ports), None) | (None, Some(ports)) => judged.ports.extend(ports),
                    (Some(all), Some(some)) => {
                        judged.ports.extend(some.iter().filter(|port| all.contains(port)));
                    }
                }
            }
        }
        judged
    }

    pub(crate) fn at(&self, port: u16) -> bool {
        self.everywhere || self.ports.contains(&port)
    }
}

/// The trust domains in which bare namespaces and service accounts are meant.
#[derive(Clone, Debug, Eq, PartialEq)]
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
