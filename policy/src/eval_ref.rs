//! The specification: slow, obvious, rule by rule.
//!
//! Facts have three values. *Unknown* is a fact about layer 7 on a stream of opaque bytes: it will never be known. A
//! Deny fires on true or unknown, an Allow needs true. So a rule that cannot be judged never opens anything.

pub(crate) mod jwt;

use std::borrow::Borrow;
use std::net::IpAddr;

use postern_svid::SpiffeId;

use crate::cond::{Asked, Caller};
use crate::fields;
use crate::istio;
use crate::pattern::PathPattern;
use crate::rule::{
    self, Account, Excluded, ExcludedTarget, HeaderMatch, HeaderTest, HostPattern, ListOf, Methods,
    OwnDomains, Peer, Rule, Target, ValuePattern,
};
use crate::upgrade::Upgrades;
use crate::verdict::{
    Action, DenyReason, Effect, Enforcement, Operation, RuleId, Source, Tier, Verdict, Would,
};

/// True, false, or never to be known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Truth {
    False,
    Unknown,
    True,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

impl Truth {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, Self::True) => Self::True,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::True, _) | (_, Self::True) => Self::True,
            (Self::False, Self::False) => Self::False,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }
}

/// Answers by asking every rule. `at` is the time in seconds since 1970, if it has been told.
pub(crate) fn decide<R: Borrow<Rule>>(
    rules: &[R],
    domains: &OwnDomains,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    at: Option<i64>,
) -> Answer {
    decide_by(rules, &operation.views(), &|rule: &Rule, view: Option<&str>| {
        fires(rule, matches(rule, domains, source, port, operation, view, at))
    })
}

/// What a set of rules comes to, given which of them act in which reading of the path.
pub(crate) fn decide_by<R: Borrow<Rule>>(
    rules: &[R],
    views: &[Option<&str>],
    fires: &dyn Fn(&Rule, Option<&str>) -> bool,
) -> Answer {
    let rules: Vec<&Rule> = rules.iter().map(Borrow::borrow).collect();
    let world = |obeyed: &dyn Fn(&Rule) -> bool| {
        let first = |tier: Tier, action: Action, view: Option<&str>| {
            let mut rules = rules.iter().zip(0..);
            let found = rules.find(|(rule, _)| {
                rule.tier == tier && rule.action == action && obeyed(rule) && fires(rule, view)
            });
            found.map(|(_, id)| id)
        };
        let answers: Vec<(Effect, Option<u32>)> = views
            .iter()
            .map(|view| {
                for tier in Tier::ALL {
                    if let Some(id) = first(tier, Action::Deny, *view) {
                        return (Effect::Deny(DenyReason::Rule), Some(id));
                    }
                    if let Some(id) = first(tier, Action::Allow, *view) {
                        return (Effect::Allow, Some(id));
                    }
                }
                (Effect::Deny(DenyReason::NoRule), None)
            })
            .collect();
        // Denied in one reading is denied; of several rules the one that is asked first is named.
        let denied = answers.iter().filter(|(effect, _)| *effect == Effect::Deny(DenyReason::Rule));
        let denied = denied.filter_map(|(_, id)| *id).min_by_key(|id| (rules[*id as usize].tier, *id));
        let unruled = answers.iter().any(|(effect, _)| *effect == Effect::Deny(DenyReason::NoRule));
        match (denied, answers.first()) {
            (Some(id), _) => (Effect::Deny(DenyReason::Rule), Some(id)),
            (None, Some((Effect::Allow, id))) if !unruled => (Effect::Allow, *id),
            _ => (Effect::Deny(DenyReason::NoRule), None),
        }
    };
    let (effect, rule) = world(&|rule| rule.enforcement == Enforcement::Enforce);
    let shadow = match world(&|_| true) {
        (effect, Some(id)) if rules[id as usize].enforcement == Enforcement::Shadow => {
            Some(Would { effect, rule: Some(RuleId(id)) })
        }
        _ => None,
    };
    let audit = rules
        .iter()
        .zip(0..)
        .find(|(rule, _)| rule.action == Action::Audit && views.iter().any(|view| fires(rule, *view)))
        .map(|(_, id)| RuleId(id));
    Answer { effect, rule: rule.map(RuleId), shadow, audit }
}

/// Everything about a verdict but its generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) effect: Effect,
    pub(crate) rule: Option<RuleId>,
    pub(crate) shadow: Option<Would>,
    pub(crate) audit: Option<RuleId>,
}

impl Answer {
    pub(crate) fn by(self, generation: u64) -> Verdict {
        let Self { effect, rule, shadow, audit } = self;
        Verdict { effect, rule, shadow, audit, generation }
    }
}

/// Whether a rule acts, given whether it matches.
pub(crate) fn fires(rule: &Rule, matches: Truth) -> bool {
    if rule.action.is_wide() { matches != Truth::False } else { matches == Truth::True }
}

/// Whether a wide rule fires in any reading of the path: a limit counts what it cannot be sure about.
pub(crate) fn matches_any_view(
    rule: &Rule,
    domains: &OwnDomains,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    at: Option<i64>,
) -> bool {
    operation
        .views()
        .iter()
        .any(|view| fires(rule, matches(rule, domains, source, port, operation, *view, at)))
}

/// Whether a rule matches, in one reading of the path.
pub(crate) fn matches(
    rule: &Rule,
    domains: &OwnDomains,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    view: Option<&str>,
    at: Option<i64>,
) -> Truth {
    let Rule { action, tier: _, enforcement: _, target_ports, from, to, window, condition, istio } = rule;
    if let Some(clause) = istio {
        return istio::matches(clause, *action, source, port, operation, view);
    }
    let in_target = target_ports.as_ref().is_none_or(|ports| ports.contains(&port));
    let from = match from {
        Some(peers) => peers
            .iter()
            .map(|entry| {
                Truth::from(peer(entry, domains, source, *action)).and(token(entry, *action, operation))
            })
            .fold(Truth::False, Truth::or),
        None => (action.is_wide() || source.identity.is_some()).into(),
    };
    let to = match to {
        Some(targets) => targets
            .iter()
            .map(|entry| target(entry, *action, port, operation, view))
            .fold(Truth::False, Truth::or),
        None => anything(*action, operation),
    };
    let when = match (window, at) {
        (None, _) => Truth::True,
        (Some(window), Some(at)) => window.is_open(at).into(),
        (Some(_), None) => Truth::Unknown,
    };
    let rest = Truth::from(in_target).and(from).and(to).and(when);
    match condition {
        Some(condition) if rest != Truth::False => {
            let caller = &Caller::new(source, domains);
            rest.and(condition.holds(Asked { caller, port, operation, view, at }))
        }
        Some(_) | None => rest,
    }
}

/// An Allow that does not say what covers everything but TRACE and CONNECT.
fn anything(action: Action, operation: Operation<'_>) -> Truth {
    match operation {
        Operation::Http { method, .. } => Methods::cover(None, action, method).into(),
        Operation::Tcp | Operation::Tls { .. } => Truth::True,
    }
}

/// Whether the tokens are what an alternative of `from` asks for.
pub(crate) fn token(entry: &Peer, action: Action, operation: Operation<'_>) -> Truth {
    let tokens = jwt::tokens(operation);
    let asked = entry.jwt.as_ref().map_or(Truth::True, |jwt| jwt::is_there(jwt, action, tokens));
    let excluded = entry.not.as_ref().and_then(|not| not.jwt.as_ref());
    asked.and(excluded.map_or(Truth::True, |not| jwt::is_excluded(not, action, tokens).not()))
}

/// Whether the source is one of those that an alternative of `from` means, whatever tokens are asked for beside it.
pub(crate) fn peer(entry: &Peer, domains: &OwnDomains, source: Source<'_>, action: Action) -> bool {
    let Peer { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _, not } = entry;
    let address = |nets: &Vec<ipnet::IpNet>| in_any(nets, source.address);
    let Some(id) = source.identity else {
        let identity =
            spiffe.is_some() || accounts.is_some() || namespaces.is_some() || trust_domain.is_some();
        return !identity
            && cidrs.as_ref().is_none_or(address)
            && (action.is_wide() || (*unauthenticated && not.is_none()));
    };
    let own = |id: &SpiffeId| in_domain(id, trust_domain.as_ref(), domains);
    !unauthenticated
        && spiffe.as_ref().is_none_or(|ids| ids.contains(id))
        && accounts.as_ref().is_none_or(|accounts| own(id) && accounts.iter().any(|a| is_account(id, a)))
        && namespaces.as_ref().is_none_or(|names| own(id) && names.iter().any(|n| is_in_namespace(id, n)))
        && trust_domain.as_ref().is_none_or(|td| id.is_member_of(td))
        && cidrs.as_ref().is_none_or(address)
        && not.as_ref().is_none_or(|not| !excludes(not, domains, id, source.address))
}

fn excludes(entry: &Excluded, domains: &OwnDomains, id: &SpiffeId, address: IpAddr) -> bool {
    let Excluded { spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _ } = entry;
    let own = in_domain(id, trust_domain.as_ref(), domains);
    // A trust domain beside names says where the names are meant; alone it means everybody of it.
    let whole_domain = trust_domain
        .as_ref()
        .is_some_and(|td| accounts.is_empty() && namespaces.is_empty() && id.is_member_of(td));
    spiffe.contains(id)
        || (own && accounts.iter().any(|account| is_account(id, account)))
        || (own && namespaces.iter().any(|namespace| is_in_namespace(id, namespace)))
        || whole_domain
        || in_any(cidrs, address)
}

fn in_domain(id: &SpiffeId, named: Option<&postern_svid::TrustDomain>, domains: &OwnDomains) -> bool {
    match named {
        Some(td) => id.is_member_of(td),
        None => domains.contain(id),
    }
}

fn is_account(id: &SpiffeId, account: &Account) -> bool {
    id.namespace_and_account() == Some((&account.namespace, &account.name))
}

fn is_in_namespace(id: &SpiffeId, namespace: &str) -> bool {
    id.namespace_and_account().is_some_and(|(own, _)| own == namespace)
}

fn in_any(nets: &[ipnet::IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| rule::contains(net, address))
}

/// Whether an operation is one of those that an alternative of `to` means.
pub(crate) fn target(
    entry: &Target,
    action: Action,
    port: u16,
    operation: Operation<'_>,
    view: Option<&str>,
) -> Truth {
    let Target { methods, paths, grpc: _, hosts, headers, upgrade, sni, ports, not } = entry;
    let on_port = Truth::from(ports.as_ref().is_none_or(|ports| ports.contains(&port)));
    let method = match (operation, methods) {
        (Operation::Http { method, .. }, methods) => Methods::cover(methods.as_ref(), action, method).into(),
        (Operation::Tcp | Operation::Tls { .. }, Some(_)) => Truth::Unknown,
        (Operation::Tcp | Operation::Tls { .. }, None) => Truth::True,
    };
    let path = paths.as_ref().map_or(Truth::True, |paths| path_is_in(paths, view));
    let host = hosts.as_ref().map_or(Truth::True, |hosts| host_is_in(hosts, operation));
    let headers = headers.iter().map(|entry| header(entry, action, operation)).fold(Truth::True, Truth::and);
    let upgrade = upgrade.as_ref().map_or(Truth::True, |upgrades| upgrade_is_in(upgrades, operation));
    let sni = sni.as_ref().map_or(Truth::True, |names| sni_is_in(names, operation));
    let not = not.as_ref().map_or(Truth::True, |not| excludes_operation(not, port, operation, view).not());
    [method, path, host, headers, upgrade, sni, not].into_iter().fold(on_port, Truth::and)
}

pub(crate) fn excludes_operation(
    entry: &ExcludedTarget,
    port: u16,
    operation: Operation<'_>,
    view: Option<&str>,
) -> Truth {
    let ExcludedTarget { methods, paths, hosts, upgrade, sni, ports } = entry;
    let method = match operation {
        _ if methods.is_empty() => Truth::False,
        Operation::Http { method, .. } => methods.contains(method).into(),
        Operation::Tcp | Operation::Tls { .. } => Truth::Unknown,
    };
    let path = if paths.is_empty() { Truth::False } else { path_is_in(paths, view) };
    let host = if hosts.is_empty() { Truth::False } else { host_is_in(hosts, operation) };
    let upgrade = upgrade.as_ref().map_or(Truth::False, |upgrades| upgrade_is_in(upgrades, operation));
    let sni = if sni.is_empty() { Truth::False } else { sni_is_in(sni, operation) };
    Truth::from(ports.contains(&port)).or(method).or(path).or(host).or(upgrade).or(sni)
}

fn upgrade_is_in(upgrades: &Upgrades, operation: Operation<'_>) -> Truth {
    match operation {
        Operation::Http { upgrade, .. } => upgrades.cover(upgrade).into(),
        Operation::Tcp | Operation::Tls { .. } => Truth::Unknown,
    }
}

/// A request that can be read is no TLS: it has no server name, which is known.
fn sni_is_in(patterns: &[HostPattern], operation: Operation<'_>) -> Truth {
    match operation {
        Operation::Http { .. } => Truth::False,
        Operation::Tls { sni } => {
            sni.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name))).into()
        }
        Operation::Tcp => Truth::Unknown,
    }
}

fn path_is_in(patterns: &[PathPattern], view: Option<&str>) -> Truth {
    view.map_or(Truth::Unknown, |view| patterns.iter().any(|pattern| pattern.matches(view)).into())
}

fn host_is_in(patterns: &[HostPattern], operation: Operation<'_>) -> Truth {
    match operation {
        Operation::Http { host: Some(host), .. } => {
            patterns.iter().any(|pattern| pattern.matches(host)).into()
        }
        Operation::Http { host: None, .. } | Operation::Tcp | Operation::Tls { .. } => Truth::Unknown,
    }
}

/// Whether a header field is what a rule asks for. A field that comes in several lines, or as a list, is read
/// differently by different servers: a Deny fires if any reading makes it fire, an Allow needs all of them.
pub(crate) fn header(entry: &HeaderMatch, action: Action, operation: Operation<'_>) -> Truth {
    let Operation::Http { headers: Some(headers), .. } = operation else { return Truth::Unknown };
    let mut lines = Vec::new();
    if !headers.each(&entry.name, &mut |line| lines.push(line.to_vec())) {
        return Truth::Unknown;
    }
    let values: Vec<&[u8]> = lines.iter().flat_map(|line| fields::elements(line)).collect();
    let is_one_of = |patterns: &[ValuePattern], value: &[u8]| patterns.iter().any(|p| p.matches(value));
    let single = values.len() == 1;
    Truth::from(match &entry.test {
        HeaderTest::Present => !lines.is_empty(),
        HeaderTest::Absent => lines.is_empty(),
        HeaderTest::Is(patterns, list) => {
            let any = values.iter().any(|value| is_one_of(patterns, value));
            match (action.is_wide(), list) {
                (true, _) | (false, ListOf::Any) => any,
                (false, ListOf::One) => single && any,
                (false, ListOf::All) => any && values.iter().all(|value| is_one_of(patterns, value)),
            }
        }
        HeaderTest::Not(patterns) => {
            let any = values.iter().any(|value| is_one_of(patterns, value));
            match action.is_wide() {
                true => !(single && any),
                false => !lines.is_empty() && !any,
            }
        }
    })
}
