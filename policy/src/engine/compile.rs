//! From rules to the compiled engine: two passes, count and file.

use std::collections::HashSet;
use std::sync::Arc;

use super::clause;
use super::clock::Clock;
use super::index::Index;
use super::keys::{Keys, SourceKey};
use super::limits;
use super::matching::{Compiled, ExcludedKeys, PathKeys, PeerKeys, TargetKeys};
use super::{Audit, Engine, Layers, Sides, StageIndex};
use crate::cond::Condition;
use crate::limits::LimitRule;
use crate::pattern::PathPattern;
use crate::rule::{Account, Excluded, ExcludedTarget, HostPattern, OwnDomains, Peer, Rule, Target};
use crate::verdict::{Action, Enforcement};

/// A rule under more keys than this is better filed by another dimension, if it has one.
const MANY_KEYS: usize = 64;

/// Ways to file a rule: for each dimension, keys one of which is true whenever the rule fires.
pub(super) type Dimensions = Vec<Vec<u32>>;

pub(super) fn compile<'a>(
    rules: Vec<Arc<Rule>>,
    limits: impl Iterator<Item = &'a LimitRule>,
    domains: OwnDomains,
    generation: u64,
    instance: u64,
) -> Engine {
    let mut keys = Keys::default();
    let anonymous = keys.source(SourceKey::Anonymous);
    let mut clock = Clock::default();
    let compiled: Vec<Compiled> =
        rules.iter().map(|rule| compile_rule(&mut keys, &mut clock, rule)).collect();
    let limits = limits::compile(&mut keys, &mut clock, limits);
    let all = compiled.iter().chain(limits.iter().map(|limit| &limit.rule));
    let mut conditions = all.filter_map(|rule| rule.condition.as_ref());
    let has_conditions = conditions.clone().next().is_some();
    if conditions.any(Condition::asks_time) {
        clock.count_minutes();
    }
    let ports =
        |list: &[u16], keys: &mut Keys| list.iter().map(|port| keys.add_port(*port)).collect::<Vec<_>>();
    let mut drawers: [Drawer; DRAWERS] = std::array::from_fn(|_| Drawer::default());
    let mut by_source = Vec::new();
    let (mut open_allow, mut open_deny) = ([None; 3], [None; 3]);
    for (id, rule) in (0_u32..).zip(&compiled) {
        let source = match &rule.istio {
            Some(clause) => clause.source_keys(),
            None => rule.from.as_deref().and_then(|peers| source_keys(peers, anonymous)),
        };
        let path = match &rule.istio {
            Some(clause) => clause.path_keys(),
            None => rule.to.as_deref().and_then(path_keys),
        };
        let numbers = match &rule.istio {
            Some(clause) => clause.ports(),
            None => rule
                .target_ports
                .as_deref()
                .map(Vec::from)
                .or_else(|| rule.to.as_deref().and_then(port_numbers)),
        };
        let port = numbers.map(|list| ports(&list, &mut keys));
        let drawer = &mut drawers[drawer(rule)];
        let narrow = rule.to.as_deref().filter(|_| !rule.action.is_wide());
        let host = match &rule.istio {
            Some(clause) if !rule.action.is_wide() => clause.host_keys(),
            Some(_) => None,
            None => narrow.and_then(|to| every(to, |target| target.hosts.as_deref())),
        };
        let sni = narrow.and_then(|to| every(to, |target| target.sni.as_deref()));
        drawer.http.push((id, [&source, &path, &host, &port].into_iter().flatten().cloned().collect()));
        // Without layer 7 a Deny by path fires on everything: the path proposes nothing there.
        drawer.tcp.push((id, [&source, &sni, &port].into_iter().flatten().cloned().collect()));
        if rule.enforcement == Enforcement::Shadow {
            continue;
        }
        let tier = rule.tier as usize;
        match (&rule.from, rule.action) {
            (_, Action::Audit) => {}
            (None, _) if rule.istio.is_some() => by_source.push((id, source.into_iter().collect())),
            (Some(_), _) => by_source.push((id, source.into_iter().collect())),
            (None, Action::Allow) => open_allow[tier] = open_allow[tier].or(Some(id)),
            (None, Action::Deny) => open_deny[tier] = open_deny[tier].or(Some(id)),
        }
    }
    let count = keys.len();
    let mut drawers = drawers.into_iter().map(|Drawer { http, tcp }| (file(count, http), file(count, tcp)));
    let mut next = || drawers.next().unwrap_or_default();
    let mut layers = || {
        let ((http_deny, tcp_deny), (http_allow, tcp_allow)) = (next(), next());
        Layers {
            http: Sides { deny: http_deny, allow: http_allow },
            tcp: Sides { deny: tcp_deny, allow: tcp_allow },
        }
    };
    let tiers = [layers(), layers(), layers()];
    let shadow = Box::new([layers(), layers(), layers()]);
    let (http, tcp) = next();
    let any = |wanted: fn(&Compiled) -> bool| compiled.iter().any(wanted);
    let (has_shadow, has_audit) =
        (any(|rule| rule.enforcement == Enforcement::Shadow), any(|rule| rule.action == Action::Audit));
    Engine {
        rules,
        domains,
        generation,
        instance,
        keys,
        compiled,
        tiers,
        shadow: has_shadow.then_some(shadow),
        audit: has_audit.then_some(Audit { http, tcp }),
        stage: StageIndex { index: file(count, by_source), open_allow, open_deny },
        clock,
        limits,
        has_conditions,
    }
}

/// Rules of one kind, to be filed together: each asks for its lowest rule.
#[derive(Default)]
struct Drawer {
    http: Vec<(u32, Dimensions)>,
    tcp: Vec<(u32, Dimensions)>,
}

/// Deny and Allow of each tier, obeyed; the same in the shadow; Audit.
const DRAWERS: usize = 2 * 2 * 3 + 1;

fn drawer(rule: &Compiled) -> usize {
    let side = match rule.action {
        Action::Audit => return DRAWERS - 1,
        Action::Deny => 0,
        Action::Allow => 1,
    };
    let shadow = usize::from(rule.enforcement == Enforcement::Shadow);
    (shadow * 3 + rule.tier as usize) * 2 + side
}

/// Files each rule under the dimension whose commonest key is rarest.
pub(super) fn file(keys: usize, rules: Vec<(u32, Dimensions)>) -> Index {
    let mut counts = vec![0_u32; keys];
    for key in rules.iter().flat_map(|(_, dimensions)| dimensions.iter().flatten()) {
        counts[*key as usize] += 1;
    }
    let (mut filed, mut rest) = (Vec::new(), Vec::new());
    for (id, dimensions) in rules {
        let cost = |dimension: &Vec<u32>| {
            let commonest = dimension.iter().map(|key| counts[*key as usize]).max().unwrap_or(0);
            (dimension.len() > MANY_KEYS, commonest)
        };
        match dimensions.iter().min_by_key(|dimension| cost(dimension)) {
            Some(dimension) => filed.extend(dimension.iter().map(|key| (*key, id))),
            None => rest.push(id),
        }
    }
    Index::new(keys, filed, rest)
}

/// One positive field of every alternative, or `None` if an alternative has none (`not` alone).
fn source_keys(peers: &[PeerKeys], anonymous: u32) -> Option<Vec<u32>> {
    let mut out = HashSet::new();
    for PeerKeys { unauthenticated, identity, cidrs, not: _, jwt: _, not_jwt: _ } in peers {
        // The shortest list is the most specific field.
        match (identity.iter().chain(cidrs).min_by_key(|list| list.len()), unauthenticated) {
            (Some(list), _) => out.extend(list.iter().copied()),
            (None, true) => {
                out.insert(anonymous);
            }
            (None, false) => return None,
        }
    }
    Some(sorted(out.into_iter().collect()))
}

fn path_keys(targets: &[TargetKeys]) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for target in targets {
        out.extend(target.paths.as_ref()?.all()?);
    }
    Some(sorted(out))
}

/// The keys of a field that every alternative has. Where the host or the server name is not known no key proposes, and a
/// Deny by them fires all the same: only an Allow can be filed so.
fn every(targets: &[TargetKeys], field: fn(&TargetKeys) -> Option<&[u32]>) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for target in targets {
        out.extend_from_slice(field(target)?);
    }
    Some(sorted(out))
}

fn port_numbers(targets: &[TargetKeys]) -> Option<Vec<u16>> {
    let mut out = Vec::new();
    for target in targets {
        out.extend_from_slice(target.ports.as_ref()?);
    }
    out.sort_unstable();
    out.dedup();
    Some(out)
}

pub(super) fn compile_rule(keys: &mut Keys, clock: &mut Clock, rule: &Rule) -> Compiled {
    let Rule { action, tier, enforcement, target_ports, from, to, window, condition, istio } = rule;
    Compiled {
        action: *action,
        tier: *tier,
        enforcement: *enforcement,
        target_ports: target_ports.as_deref().map(Box::from),
        from: from.as_ref().map(|peers| peers.iter().map(|peer| compile_peer(keys, peer)).collect()),
        to: to.as_ref().map(|targets| targets.iter().map(|target| compile_target(keys, target)).collect()),
        window: window.as_ref().map(|window| clock.add(window)),
        condition: condition.clone(),
        istio: istio.as_ref().map(|clause| clause::compile(keys, clause)),
    }
}

pub(super) fn compile_peer(keys: &mut Keys, peer: &Peer) -> PeerKeys {
    let Peer { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, jwt, not } = peer;
    let mut identity: Vec<Box<[u32]>> = Vec::new();
    let mut field = |list: Vec<SourceKey>, keys: &mut Keys| {
        identity.push(sorted(list.into_iter().map(|key| keys.source(key)).collect()).into());
    };
    if let Some(ids) = spiffe {
        field(ids.iter().cloned().map(SourceKey::Id).collect(), keys);
    }
    if let Some(accounts) = accounts {
        field(accounts.iter().map(|account| account_key(trust_domain.as_ref(), account)).collect(), keys);
    }
    if let Some(names) = namespaces {
        field(
            names.iter().map(|name| SourceKey::Namespace(trust_domain.clone(), name.clone())).collect(),
            keys,
        );
    }
    if let Some(td) = trust_domain {
        field(vec![SourceKey::Domain(td.clone())], keys);
    }
    PeerKeys {
        unauthenticated: *unauthenticated,
        identity: identity.into(),
        cidrs: cidrs
            .as_ref()
            .map(|nets| sorted(nets.iter().map(|net| keys.source(SourceKey::Net(*net))).collect()).into()),
        not: not.as_ref().map(|not| compile_excluded(keys, not)),
        jwt: jwt.clone().map(Box::new),
        not_jwt: not.as_ref().and_then(|not| not.jwt.clone()).map(Box::new),
    }
}

fn compile_excluded(keys: &mut Keys, excluded: &Excluded) -> Box<[u32]> {
    let Excluded { spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _ } = excluded;
    let mut out: Vec<SourceKey> = spiffe.iter().cloned().map(SourceKey::Id).collect();
    out.extend(accounts.iter().map(|account| account_key(trust_domain.as_ref(), account)));
    out.extend(namespaces.iter().map(|name| SourceKey::Namespace(trust_domain.clone(), name.clone())));
    if let (Some(td), true, true) = (trust_domain, accounts.is_empty(), namespaces.is_empty()) {
        out.push(SourceKey::Domain(td.clone()));
    }
    out.extend(cidrs.iter().map(|net| SourceKey::Net(*net)));
    sorted(out.into_iter().map(|key| keys.source(key)).collect()).into()
}

fn account_key(trust_domain: Option<&postern_svid::TrustDomain>, account: &Account) -> SourceKey {
    SourceKey::Account(trust_domain.cloned(), account.namespace.clone(), account.name.clone())
}

fn compile_target(keys: &mut Keys, target: &Target) -> TargetKeys {
    let Target { methods, paths, grpc: _, hosts, headers, upgrade, sni, ports, not } = target;
    TargetKeys {
        methods: methods.clone(),
        paths: paths.as_ref().map(|patterns| compile_paths(keys, patterns)),
        hosts: hosts.as_ref().map(|hosts| compile_hosts(keys, hosts)),
        headers: headers.as_slice().into(),
        upgrade: upgrade.clone(),
        sni: sni.as_ref().map(|names| compile_hosts(keys, names)),
        ports: ports.as_deref().map(Box::from),
        not: not.as_ref().map(|not| compile_excluded_target(keys, not)),
        asks_layer7: target.asks_layer7(),
    }
}

fn compile_excluded_target(keys: &mut Keys, excluded: &ExcludedTarget) -> ExcludedKeys {
    let ExcludedTarget { methods, paths, hosts, upgrade, sni, ports } = excluded;
    ExcludedKeys {
        methods: methods.as_slice().into(),
        paths: (!paths.is_empty()).then(|| compile_paths(keys, paths)),
        hosts: (!hosts.is_empty()).then(|| compile_hosts(keys, hosts)),
        upgrade: upgrade.clone(),
        sni: (!sni.is_empty()).then(|| compile_hosts(keys, sni)),
        ports: ports.as_slice().into(),
    }
}

pub(super) fn compile_hosts(keys: &mut Keys, hosts: &[HostPattern]) -> Box<[u32]> {
    sorted(hosts.iter().map(|host| keys.host(host)).collect()).into()
}

pub(super) fn compile_paths(keys: &mut Keys, patterns: &[PathPattern]) -> PathKeys {
    let (mut found, mut loose) = (Vec::new(), Vec::new());
    for pattern in patterns {
        match keys.pattern(pattern) {
            Some(key) => found.push(key),
            None => {
                let parent = pattern.parent().and_then(|parent| keys.pattern(&parent));
                let wider = parent.or_else(|| pattern.wider().and_then(|template| keys.template(&template)));
                loose.push((pattern.clone(), wider));
            }
        }
    }
    PathKeys { keys: sorted(found).into(), loose: loose.into() }
}

pub(super) fn sorted(mut list: Vec<u32>) -> Vec<u32> {
    list.sort_unstable();
    list.dedup();
    list
}
