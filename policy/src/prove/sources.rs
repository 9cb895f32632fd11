//! One peer of every class: each id, account, namespace and trust domain that rules name, and one that none names; and an
//! address in each network that is in no smaller one.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use super::TooLarge;
use crate::eval_ref;
use crate::rule::{self, Excluded, OwnDomains, Peer, Rule};
use crate::verdict::Source;

/// Answers about single peers and rules.
const MAX_QUESTIONS: usize = 20_000_000;

/// A peer of its class. `None` has proven nothing.
pub(super) type Sample = (Option<SpiffeId>, IpAddr);

/// Samples of all peers that `scope` means, no two of which are alike to every rule.
pub(super) fn samples(
    rules: &[Arc<Rule>],
    scope: &Rule,
    domains: &OwnDomains,
) -> Result<Vec<Sample>, TooLarge> {
    let named = Named::of(rules.iter().map(|rule| &**rule).chain([scope]), domains);
    let (ids, addresses) = (named.ids(domains), named.addresses());
    if ids.len().saturating_mul(addresses.len()).saturating_mul(rules.len() + 1) > MAX_QUESTIONS {
        return Err(TooLarge(format!(
            "{} kinds of callers for {} rules",
            ids.len() * addresses.len(),
            rules.len()
        )));
    }
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    for id in &ids {
        for address in &addresses {
            let source = Source { identity: id.as_ref(), address: *address };
            if !means(scope, domains, source) {
                continue;
            }
            // Of a peer the answer depends on which rules mean it, and on nothing else.
            let alike: Vec<bool> = rules.iter().map(|rule| means(rule, domains, source)).collect();
            if seen.insert(alike) {
                out.push((id.clone(), *address));
            }
        }
    }
    Ok(out)
}

/// Whether a rule's `from` means this peer.
pub(super) fn means(rule: &Rule, domains: &OwnDomains, source: Source<'_>) -> bool {
    match &rule.from {
        Some(peers) => peers.iter().any(|entry| eval_ref::peer(entry, domains, source, rule.action)),
        None => rule.action.is_wide() || source.identity.is_some(),
    }
}

/// Everything that rules say of peers.
#[derive(Default)]
struct Named {
    ids: BTreeSet<SpiffeId>,
    accounts: BTreeSet<(Box<str>, Box<str>)>,
    namespaces: BTreeSet<Box<str>>,
    domains: BTreeSet<TrustDomain>,
    nets: BTreeSet<IpNet>,
}

impl Named {
    fn of<'r>(rules: impl Iterator<Item = &'r Rule>, own: &OwnDomains) -> Self {
        let mut named = Self::default();
        named.domains.insert(own.canonical.clone());
        named.domains.extend(own.aliases.iter().cloned());
        for peer in rules.flat_map(|rule| rule.from.iter().flatten()) {
            let Peer { unauthenticated: _, spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _, not } =
                peer;
            named.ids.extend(spiffe.iter().flatten().cloned());
            let pairs =
                accounts.iter().flatten().map(|account| (account.namespace.clone(), account.name.clone()));
            named.accounts.extend(pairs);
            named.namespaces.extend(namespaces.iter().flatten().cloned());
            named.domains.extend(trust_domain.clone());
            named.nets.extend(cidrs.iter().flatten());
            let Some(Excluded { spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _ }) = not.as_deref()
            else {
                continue;
            };
            named.ids.extend(spiffe.iter().cloned());
            named.accounts.extend(accounts.iter().map(|a| (a.namespace.clone(), a.name.clone())));
            named.namespaces.extend(namespaces.iter().cloned());
            named.domains.extend(trust_domain.clone());
            named.nets.extend(cidrs);
        }
        let of_accounts: Vec<Box<str>> =
            named.accounts.iter().map(|(namespace, _)| namespace.clone()).collect();
        named.namespaces.extend(of_accounts);
        named
    }

    /// In every trust domain: each account, another account of each namespace, one of another namespace, and an id of
    /// another shape. An id that is named is its own class.
    fn ids(&self, own: &OwnDomains) -> Vec<Option<SpiffeId>> {
        let mut domains: Vec<TrustDomain> = self.domains.iter().cloned().collect();
        domains.sort_by_key(|td| *td != own.canonical);
        let is_domain = |name: &str| domains.iter().any(|td| td.as_str() == name);
        domains.extend(TrustDomain::parse(&unused("another.example", is_domain)).ok());
        let is_namespace = |name: &str| self.namespaces.iter().any(|known| **known == *name);
        let is_account = |name: &str| self.accounts.iter().any(|(_, known)| **known == *name);
        let is_named = |name: &str| self.ids.iter().any(|id| id.to_string().ends_with(&format!("/{name}")));
        let account = unused("another", |name| is_account(name) || is_named(name));
        let namespace = unused("elsewhere", is_namespace);
        let shape = unused("another", is_named);
        let mut out = vec![None];
        for td in &domains {
            let id = |namespace: &str, name: &str| SpiffeId::service_account(td, namespace, name).ok();
            let accounts = self.accounts.iter().map(|(namespace, name)| id(namespace, name));
            let others = self.namespaces.iter().map(|namespace| id(namespace, &account));
            out.extend(accounts.chain(others).chain([id(&namespace, &account)]).flatten().map(Some));
            out.extend(SpiffeId::parse(&format!("spiffe://{td}/{shape}")).ok().map(Some));
        }
        out.extend(self.ids.iter().cloned().map(Some));
        out
    }

    /// What is in a network and in no smaller one begins where the network does, or right behind one in it.
    fn addresses(&self) -> Vec<IpAddr> {
        let mut candidates: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()];
        candidates.push(Ipv6Addr::LOCALHOST.into());
        for net in &self.nets {
            candidates.push(net.network());
            candidates.extend(behind(net.broadcast()));
        }
        let mut seen = HashSet::new();
        candidates
            .into_iter()
            .filter(|address| {
                let nets: Vec<bool> = self.nets.iter().map(|net| rule::contains(net, *address)).collect();
                seen.insert(nets)
            })
            .collect()
    }
}

fn behind(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The word, or one like it that is not taken.
fn unused(word: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let candidates = std::iter::once(word.to_owned()).chain((2_u64..).map(|n| format!("{word}-{n}")));
    // Endless, and only finitely many are taken.
    candidates.into_iter().find(|name| !is_taken(name)).unwrap_or_default()
}
