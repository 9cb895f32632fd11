//! One port, method, host, upgrade and server name of every class.

use std::collections::{BTreeSet, HashSet};

use crate::norm::{CanonHost, CanonMethod};
use crate::rule::{HostPattern, Methods, Rule, Target};
use crate::upgrade::{Upgrade, Upgrades};

/// Of a value the answer depends on which fields hold it, and on nothing else: one of each kind is kept.
fn distinct<T>(candidates: impl IntoIterator<Item = T>, alike: impl Fn(&T) -> Vec<bool>) -> Vec<T> {
    let mut seen = HashSet::new();
    candidates.into_iter().filter(|candidate| seen.insert(alike(candidate))).collect()
}

fn targets<'r>(rules: &'r [&'r Rule]) -> impl Iterator<Item = &'r Target> {
    rules.iter().flat_map(|rule| rule.to.iter().flatten())
}

pub(super) fn ports(rules: &[&Rule]) -> Vec<u16> {
    let lists: Vec<&[u16]> = rules
        .iter()
        .filter_map(|rule| rule.target_ports.as_deref())
        .chain(targets(rules).filter_map(|target| target.ports.as_deref()))
        .chain(targets(rules).filter_map(|target| target.not.as_ref().map(|not| not.ports.as_slice())))
        .collect();
    let named: BTreeSet<u16> = lists.iter().copied().flatten().copied().collect();
    // Some number between 1 and 65535 is not named, else the class of the others is empty.
    let other = (8080..=u16::MAX).chain(1..8080).find(|port| !named.contains(port));
    distinct(named.iter().copied().chain(other), |port| {
        lists.iter().map(|list| list.contains(port)).collect()
    })
}

pub(super) fn methods(rules: &[&Rule]) -> Vec<CanonMethod> {
    let only = |target: &'_ Target| match &target.methods {
        Some(Methods::Only(named)) => named.clone(),
        Some(Methods::Any) | None => Vec::new(),
    };
    let lists: Vec<Vec<CanonMethod>> = targets(rules)
        .flat_map(|target| {
            [only(target), target.not.as_ref().map(|not| not.methods.clone()).unwrap_or_default()]
        })
        .collect();
    let named: BTreeSet<CanonMethod> = lists.iter().flatten().cloned().collect();
    // TRACE and CONNECT are covered by name only; OPTIONS alone can ask for `*`.
    let words = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "SEARCH", "OTHER", "ANOTHER"];
    let parsed = |text: &str| CanonMethod::parse(text).ok();
    let other = words.iter().filter_map(|word| parsed(word)).find(|method| !named.contains(method));
    let last = (0_u32..).filter_map(|n| parsed(&format!("OTHER{n}"))).find(|method| !named.contains(method));
    let special = ["TRACE", "CONNECT", "OPTIONS"].into_iter().filter_map(parsed);
    distinct(other.or(last).into_iter().chain(named.iter().cloned()).chain(special), |method| {
        let kinds = [method.must_be_named(), method.as_str() == "OPTIONS"];
        lists.iter().map(|list| list.contains(method)).chain(kinds).collect()
    })
}

/// Hosts that requests are addressed to. `None` where no rule asks for one, and no condition could.
pub(super) fn hosts(rules: &[&Rule], is_conditional: bool) -> Vec<Option<CanonHost>> {
    let lists: Vec<&[HostPattern]> = targets(rules)
        .flat_map(|target| [target.hosts.as_deref(), target.not.as_ref().map(|not| not.hosts.as_slice())])
        .flatten()
        .filter(|list| !list.is_empty())
        .collect();
    if lists.is_empty() && !is_conditional {
        return vec![None];
    }
    names(&lists).into_iter().map(Some).collect()
}

/// What TLS handshakes say: none was read, it asks for no name, or for one.
pub(super) fn handshakes(rules: &[&Rule]) -> Vec<Option<Option<CanonHost>>> {
    let lists: Vec<&[HostPattern]> = targets(rules)
        .flat_map(|target| [target.sni.as_deref(), target.not.as_ref().map(|not| not.sni.as_slice())])
        .flatten()
        .filter(|list| !list.is_empty())
        .collect();
    let named = if lists.is_empty() { Vec::new() } else { names(&lists) };
    let named = named.into_iter().filter(|name| name.address().is_none()).map(|name| Some(Some(name)));
    [None, Some(None)].into_iter().chain(named).collect()
}

/// Each name, one below each domain that is below no deeper one, and one that is neither.
fn names(lists: &[&[HostPattern]]) -> Vec<CanonHost> {
    let patterns: BTreeSet<(&str, bool)> = lists
        .iter()
        .copied()
        .flatten()
        .map(|pattern| match pattern {
            HostPattern::Exact(name) => (&**name, false),
            HostPattern::Below(domain) => (&**domain, true),
        })
        .collect();
    let is_taken = |label: &str| {
        let mut names = patterns.iter().flat_map(|(name, _)| name.split('.'));
        names.any(|known| known == label)
    };
    let label = (0_u64..).map(|n| if n == 0 { "other".to_owned() } else { format!("other{n}") });
    let label = label.into_iter().find(|label| !is_taken(label)).unwrap_or_default();
    let host =
        |name: &str| CanonHost::parse(name).ok().or_else(|| CanonHost::parse(&format!("[{name}]")).ok());
    let candidates = std::iter::once(host(&format!("{label}.invalid")))
        .chain(
            patterns
                .iter()
                .map(|(name, below)| if *below { host(&format!("{label}.{name}")) } else { host(name) }),
        )
        .flatten();
    distinct(candidates, |host| {
        lists.iter().map(|list| list.iter().any(|pattern| pattern.matches(host))).collect()
    })
}

/// What requests want to turn into. Nothing else than `None` where no rule asks for it.
pub(super) fn upgrades(rules: &[&Rule]) -> Vec<Option<Upgrade>> {
    let lists: Vec<&Upgrades> = targets(rules)
        .flat_map(|target| {
            [target.upgrade.as_ref(), target.not.as_ref().and_then(|not| not.upgrade.as_ref())]
        })
        .flatten()
        .collect();
    let named = lists.iter().flat_map(|list| match list {
        Upgrades::Any => Vec::new(),
        Upgrades::Only(named) => named.clone(),
    });
    let named: Vec<Upgrade> = named.collect();
    let other = (0_u64..).filter_map(|n| Upgrade::parse(&format!("other{n}")).ok());
    let other = other.into_iter().find(|upgrade| !named.contains(upgrade));
    let candidates = std::iter::once(None).chain(named.iter().cloned().chain(other).map(Some));
    distinct(candidates, |upgrade| lists.iter().map(|list| list.cover(upgrade.as_ref())).collect())
}
