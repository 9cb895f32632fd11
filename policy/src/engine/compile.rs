//! From rules to the compiled engine: packed in the order in which they are asked, then filed.

use std::sync::Arc;

use super::clause;
use super::clock::Clock;
use super::index::Drawer;
use super::keys::{Keys, SourceKey};
use super::limits;
use super::matching::PathKeys;
use super::packed::{Alternatives, Head, NO_KEY, Packed, What, Who, Writer, head, head_of, put, what, who};
use super::{Book, Engine, StageIndex};
use crate::cond::Condition;
use crate::limits::LimitRule;
use crate::norm::CanonMethod;
use crate::pattern::PathPattern;
use crate::rule::{
    Account, Excluded, ExcludedTarget, HeaderMatch, HostPattern, Methods, OwnDomains, Peer, Rule, Target,
};
use crate::upgrade::Upgrades;
use crate::verdict::{Action, Enforcement};

pub(super) fn compile<'a>(
    rules: Vec<Arc<Rule>>,
    limits: impl Iterator<Item = &'a LimitRule>,
    domains: OwnDomains,
    generation: u64,
    instance: u64,
) -> Engine {
    let (mut keys, mut clock, mut packed) = (Keys::default(), Clock::default(), Packed::default());
    let anonymous = keys.source(SourceKey::Anonymous);
    // The order in which they are asked: of two that fire the one that stands in front decides.
    let mut order: Vec<(usize, bool, u32, &Rule)> = (0_u32..)
        .zip(&rules)
        .map(|(id, rule)| {
            // Audits decide nothing; of those that fire the lowest is named, of whatever tier.
            let tier = if rule.action == Action::Audit { 3 } else { rule.tier as usize };
            (tier, rule.action == Action::Allow, id, &**rule)
        })
        .collect();
    order.sort_unstable_by_key(|(tier, allows, id, _)| (*tier, *allows, *id));
    let places: Vec<u32> = order
        .iter()
        .map(|(.., id, rule)| pack(&mut Writer::new(&mut packed), &mut keys, &mut clock, *id, rule))
        .collect();
    let limits = limits::compile(&mut packed, &mut keys, &mut clock, limits);
    if packed.side.conditions.iter().any(Condition::asks_time) {
        clock.count_minutes();
    }
    let mut filing = Filing::default();
    let (mut obeyed, mut shadow, mut audit) = (Drawers::default(), Drawers::default(), Drawers::default());
    let mut by_source = Drawer::default();
    let (mut open_allow, mut open_deny) = ([None; 3], [None; 3]);
    let (mut has_shadow, mut has_audit) = (false, false);
    for ((.., rule), &at) in order.iter().zip(&places) {
        let ready = packed.rule(at);
        filing.of(&packed, &ready, anonymous, &mut keys);
        let Filing { source, path, host, sni, port, net, .. } = &filing;
        has_audit |= rule.action == Action::Audit;
        has_shadow |= rule.enforcement == Enforcement::Shadow;
        let drawers = match (rule.action, rule.enforcement) {
            (Action::Audit, _) => &mut audit,
            (_, Enforcement::Shadow) => &mut shadow,
            (_, Enforcement::Enforce) => &mut obeyed,
        };
        drawers.http.put(at, [source, path, host, port, net].into_iter().filter_map(Option::as_deref));
        // Without layer 7 a Deny by path fires on everything: the path proposes nothing there.
        drawers.tcp.put(at, [source, sni, port, net].into_iter().filter_map(Option::as_deref));
        if rule.enforcement == Enforcement::Shadow {
            continue;
        }
        let tier = rule.tier as usize;
        match rule.action {
            Action::Audit => {}
            _ if rule.istio.is_some() || rule.from.is_some() => {
                by_source.put(at, [source, net].into_iter().filter_map(Option::as_deref));
            }
            Action::Allow => open_allow[tier] = open_allow[tier].or(Some(at)),
            Action::Deny => open_deny[tier] = open_deny[tier].or(Some(at)),
        }
    }
    drop(order);
    keys.shrink();
    packed.shrink();
    let count = keys.len();
    Engine {
        rules,
        domains,
        generation,
        instance,
        has_conditions: !packed.side.conditions.is_empty(),
        keys,
        packed,
        obeyed: obeyed.file(count),
        shadow: has_shadow.then(|| Box::new(shadow.file(count))),
        audit: has_audit.then(|| Box::new(audit.file(count))),
        stage: StageIndex { index: by_source.file(count), open_allow, open_deny },
        clock,
        limits,
    }
}

/// Rules of one kind, to be filed together.
#[derive(Default)]
struct Drawers {
    http: Drawer,
    tcp: Drawer,
}

impl Drawers {
    fn file(self, keys: usize) -> Book {
        Book { http: self.http.file(keys), tcp: self.tcp.file(keys) }
    }
}

/// The ways to file a rule: for each dimension, keys one of which is true whenever the rule fires.
#[derive(Default)]
struct Filing {
    source: Option<Vec<u32>>,
    path: Option<Vec<u32>>,
    host: Option<Vec<u32>>,
    sni: Option<Vec<u32>>,
    port: Option<Vec<u32>>,
    /// Source addresses, beside whatever else is said of callers.
    net: Option<Vec<u32>>,
    /// Lists that were used before.
    spare: Vec<Vec<u32>>,
}

impl Filing {
    fn of(&mut self, packed: &Packed, rule: &Head<'_>, anonymous: u32, keys: &mut Keys) {
        let Self { source, path, host, sni, port, net, spare } = self;
        spare.extend([&mut *source, path, host, sni, port, net].into_iter().filter_map(Option::take));
        let is_wide = rule.action().is_wide();
        if let Some(clause) = rule.clause {
            let clause = packed.clause(clause);
            (*source, *path, *sni) = (clause.source_keys(), clause.path_keys(), None);
            *net = clause.net_keys();
            *host = if is_wide { None } else { clause.host_keys() };
            *port = clause.ports().map(|ports| ports.iter().map(|port| keys.add_port(*port)).collect());
            return;
        }
        let mut list = || {
            let mut list = spare.pop().unwrap_or_default();
            list.clear();
            list
        };
        let (from, to) = rule.alternatives();
        *source = from.and_then(|from| sources(from, anonymous, list()));
        *net = from.and_then(|from| nets(from, list()));
        *path = to.and_then(|to| paths(to, list()));
        // Where the host or the server name is not known no key proposes, and a Deny by them fires all the same: only an
        // Allow can be filed so.
        let narrow = to.filter(|_| !is_wide);
        *host = narrow.and_then(|to| every(to, what::HOSTS, |target| target.hosts, list()));
        *sni = narrow.and_then(|to| every(to, what::SNI, |target| target.sni, list()));
        let mut of_targets = || every(to?, what::PORTS, |target| target.ports, list());
        *port = match rule.ports {
            Some(ports) => Some(ports.to_vec()),
            None => of_targets(),
        };
        for port in port.iter_mut().flatten() {
            *port = u16::try_from(*port).map_or(NO_KEY, |port| keys.add_port(port));
        }
    }
}

/// The most specific field of every alternative, or `None` if an alternative has none (`not` alone).
fn sources(from: Alternatives<'_>, anonymous: u32, mut out: Vec<u32>) -> Option<Vec<u32>> {
    for peer in from {
        let peer = Who::read(peer);
        // Identity fields stand in this order: ids, accounts, namespaces, trust domain. A short list of wide names would
        // gather all rules that share them.
        match peer.identity().next().or(peer.cidrs) {
            Some(list) => out.extend_from_slice(list),
            None if peer.unauthenticated => out.push(anonymous),
            None => return None,
        }
    }
    Some(sorted(out))
}

/// The networks of every alternative, if every one names some.
fn nets(from: Alternatives<'_>, mut out: Vec<u32>) -> Option<Vec<u32>> {
    for peer in from {
        out.extend_from_slice(Who::read(peer).cidrs?);
    }
    Some(sorted(out))
}

/// Keys one of which is true wherever one of the patterns matches, if every alternative has such.
fn paths(to: Alternatives<'_>, mut out: Vec<u32>) -> Option<Vec<u32>> {
    for target in to {
        let target = What::read(target);
        if !target.has(what::PATHS) && !target.has(what::PATTERNS) {
            return None;
        }
        out.extend_from_slice(target.paths);
        for pair in target.patterns.chunks_exact(2) {
            out.push(Some(pair[1]).filter(|key| *key != NO_KEY)?);
        }
    }
    Some(sorted(out))
}

/// The keys of a field that every alternative has.
fn every<'p>(
    to: Alternatives<'p>,
    flag: u32,
    field: fn(&What<'p>) -> &'p [u32],
    mut out: Vec<u32>,
) -> Option<Vec<u32>> {
    for target in to {
        let target = What::read(target);
        if !target.has(flag) {
            return None;
        }
        out.extend_from_slice(field(&target));
    }
    Some(sorted(out))
}

/// Writes a rule, and says where.
pub(super) fn pack(writer: &mut Writer<'_>, keys: &mut Keys, clock: &mut Clock, id: u32, rule: &Rule) -> u32 {
    let Rule { action, tier, enforcement: _, target_ports, from, to, window, condition, istio } = rule;
    let at = writer.place();
    let mut flags = head_of(*action, *tier);
    for (flag, is_there) in [
        (head::ALWAYS, always_fires(rule)),
        (head::WINDOW, window.is_some()),
        (head::CONDITION, condition.is_some()),
        (head::CLAUSE, istio.is_some()),
        (head::PORTS, target_ports.is_some()),
        (head::FROM, from.is_some()),
        (head::TO, to.is_some()),
    ] {
        flags |= if is_there { flag } else { 0 };
    }
    writer.word(flags);
    writer.word(id);
    if let Some(window) = window {
        writer.word(clock.add(window));
    }
    if let Some(condition) = condition {
        let number = put(&mut writer.side().conditions, [condition.clone()]).start;
        writer.word(number);
    }
    if let Some(clause) = istio {
        let clause = clause::compile(keys, clause);
        let number = put(&mut writer.side().clauses, [clause]).start;
        writer.word(number);
    }
    if let Some(ports) = target_ports {
        writer.list(ports.iter().map(|port| u32::from(*port)));
    }
    if let Some(peers) = from {
        let began = writer.begin();
        peers.iter().for_each(|peer| pack_peer(writer, keys, peer));
        writer.end(began);
    }
    if let Some(targets) = to {
        let began = writer.begin();
        targets.iter().for_each(|target| pack_target(writer, keys, target));
        writer.end(began);
    }
    at
}

/// Writes a rule that is nothing but peers, for [`Packed::takes`].
pub(super) fn pack_peers(writer: &mut Writer<'_>, keys: &mut Keys, action: Action, peers: &[Peer]) -> u32 {
    let at = writer.place();
    writer.word(head_of(action, crate::verdict::Tier::App) | head::FROM);
    writer.word(NO_KEY);
    let began = writer.begin();
    peers.iter().for_each(|peer| pack_peer(writer, keys, peer));
    writer.end(began);
    at
}

fn pack_peer(writer: &mut Writer<'_>, keys: &mut Keys, peer: &Peer) {
    let Peer { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, jwt, not } = peer;
    let td = trust_domain.as_ref().map(|td| td.as_str());
    let began = writer.begin();
    let at = writer.place();
    let mut flags = if *unauthenticated { who::UNAUTHENTICATED } else { 0 };
    writer.word(0);
    let mut field = |writer: &mut Writer<'_>, list: &mut dyn Iterator<Item = SourceKey<'_>>| {
        flags += 1 << who::FIELDS;
        writer.keys(list.map(|key| keys.source(key)));
    };
    if let Some(ids) = spiffe {
        field(writer, &mut ids.iter().map(|id| SourceKey::Id(id.as_str())));
    }
    if let Some(accounts) = accounts {
        field(writer, &mut accounts.iter().map(|account| account_key(td, account)));
    }
    if let Some(names) = namespaces {
        field(writer, &mut names.iter().map(|name| SourceKey::Namespace(td, name)));
    }
    if let Some(td) = td {
        field(writer, &mut std::iter::once(SourceKey::Domain(td)));
    }
    if let Some(nets) = cidrs {
        flags |= who::CIDRS;
        writer.keys(nets.iter().map(|net| keys.source(SourceKey::Net(*net))));
    }
    if let Some(not) = not {
        flags |= who::NOT;
        pack_excluded(writer, keys, not);
    }
    let not_jwt = not.as_ref().and_then(|not| not.jwt.as_deref());
    for (flag, tokens) in [(who::JWT, jwt.as_deref()), (who::NOT_JWT, not_jwt)] {
        if let Some(tokens) = tokens {
            flags |= flag;
            let number = put(&mut writer.side().tokens, [tokens.clone()]).start;
            writer.word(number);
        }
    }
    writer.mark(at, flags);
    writer.end(began);
}

fn pack_excluded(writer: &mut Writer<'_>, keys: &mut Keys, excluded: &Excluded) {
    let Excluded { spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _ } = excluded;
    let td = trust_domain.as_ref().map(|td| td.as_str());
    let alone = td.filter(|_| accounts.is_empty() && namespaces.is_empty());
    let all = spiffe.iter().map(|id| SourceKey::Id(id.as_str()));
    let all = all.chain(accounts.iter().map(|account| account_key(td, account)));
    let all = all.chain(namespaces.iter().map(|name| SourceKey::Namespace(td, name)));
    let all = all.chain(alone.map(SourceKey::Domain)).chain(cidrs.iter().map(|net| SourceKey::Net(*net)));
    writer.keys(all.map(|key| keys.source(key)));
}

fn account_key<'a>(trust_domain: Option<&'a str>, account: &'a Account) -> SourceKey<'a> {
    SourceKey::Account(trust_domain, &account.namespace, &account.name)
}

fn pack_target(writer: &mut Writer<'_>, keys: &mut Keys, target: &Target) {
    let Target { methods, paths, grpc: _, hosts, headers, upgrade, sni, ports, not } = target;
    let began = writer.begin();
    let said = Said {
        methods: methods.as_ref().map(|methods| match methods {
            Methods::Any => None,
            Methods::Only(named) => Some(&**named),
        }),
        ports: ports.as_deref(),
        paths: paths.as_deref(),
        hosts: hosts.as_deref(),
        sni: sni.as_deref(),
        upgrade: upgrade.as_ref(),
        headers,
    };
    let at = pack_said(writer, keys, &said);
    writer.mark(at, if target.asks_layer7() { what::LAYER7 } else { 0 });
    if let Some(not) = not.as_deref() {
        writer.mark(at, what::NOT);
        let ExcludedTarget { methods, paths, hosts, upgrade, sni, ports } = not;
        let said = Said {
            methods: some(methods).map(Some),
            ports: some(ports),
            paths: some(paths),
            hosts: some(hosts),
            sni: some(sni),
            upgrade: upgrade.as_ref(),
            headers: &[],
        };
        pack_said(writer, keys, &said);
    }
    writer.end(began);
}

fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// What a rule says of operations.
struct Said<'r> {
    /// Within: `None` for any.
    methods: Option<Option<&'r [CanonMethod]>>,
    ports: Option<&'r [u16]>,
    paths: Option<&'r [PathPattern]>,
    hosts: Option<&'r [HostPattern]>,
    sni: Option<&'r [HostPattern]>,
    upgrade: Option<&'r Upgrades>,
    headers: &'r [HeaderMatch],
}

/// Writes them in the order in which [`What`] reads them, and says where.
fn pack_said(writer: &mut Writer<'_>, keys: &mut Keys, said: &Said<'_>) -> u32 {
    let Said { methods, ports, paths, hosts, sni, upgrade, headers } = said;
    let at = writer.place();
    writer.word(0);
    match methods {
        None => {}
        Some(None) => {
            writer.mark(at, what::METHODS | what::ANY_METHOD);
            writer.word(0);
        }
        Some(Some(named)) => {
            writer.mark(at, what::METHODS);
            writer.word(named.iter().filter_map(CanonMethod::bit).fold(0, |mask, bit| mask | bit));
            let rare = named.iter().filter(|method| method.bit().is_none()).cloned();
            let rare = put(&mut writer.side().methods, rare);
            if !rare.is_empty() {
                writer.mark(at, what::NAMED_METHODS);
                writer.list(rare);
            }
        }
    }
    if let Some(ports) = ports {
        writer.mark(at, what::PORTS);
        writer.list(ports.iter().map(|port| u32::from(*port)));
    }
    if let Some(patterns) = paths {
        let PathKeys { keys, loose } = compile_paths(keys, patterns);
        if !keys.is_empty() {
            writer.mark(at, what::PATHS);
            writer.list(keys);
        }
        if !loose.is_empty() {
            writer.mark(at, what::PATTERNS);
            let pairs: Vec<u32> = loose
                .into_iter()
                .flat_map(|(pattern, wider)| {
                    [put(&mut writer.side().patterns, [pattern]).start, wider.unwrap_or(NO_KEY)]
                })
                .collect();
            writer.list(pairs);
        }
    }
    for (flag, names) in [(what::HOSTS, hosts), (what::SNI, sni)] {
        if let Some(names) = names {
            writer.mark(at, flag);
            writer.keys(names.iter().map(|name| keys.host(name)));
        }
    }
    if let Some(upgrade) = upgrade {
        writer.mark(at, what::UPGRADE);
        let number = put(&mut writer.side().upgrades, [(*upgrade).clone()]).start;
        writer.word(number);
    }
    if !headers.is_empty() {
        writer.mark(at, what::HEADERS);
        let range = put(&mut writer.side().headers, headers.iter().cloned());
        writer.word(range.start);
        writer.word(range.end);
    }
    at
}

/// Whether a rule fires on every stream of a peer that it means.
fn always_fires(rule: &Rule) -> bool {
    let Rule { action, tier: _, enforcement: _, target_ports, from, to, window, condition, istio } = rule;
    // Of layer 7 nothing but the method, and that is looked at below.
    let everywhere = |target: &&Target| {
        let Target { methods: _, paths, grpc: _, hosts, headers, upgrade, sni, ports, not } = *target;
        let layer7 = paths.is_some() || hosts.is_some() || !headers.is_empty() || upgrade.is_some();
        !layer7 && sni.is_none() && ports.is_none() && not.is_none()
    };
    let everywhere = || to.iter().flatten().filter(everywhere);
    target_ports.is_none()
        && window.is_none()
        && condition.is_none()
        && istio.is_none()
        // What tokens a stream carries is the stream's.
        && !from.iter().flatten().any(Peer::asks_tokens)
        && match action {
            Action::Audit => false,
            Action::Deny => {
                to.is_none() || everywhere().any(|target| matches!(target.methods, None | Some(Methods::Any)))
            }
            // TRACE and CONNECT take their names, and a rule that names methods says nothing of opaque bytes.
            Action::Allow => {
                let named = |wanted: &str| {
                    everywhere().any(|target| match &target.methods {
                        Some(Methods::Only(named)) => named.iter().any(|name| name.as_str() == wanted),
                        Some(Methods::Any) | None => false,
                    })
                };
                everywhere().any(|target| target.methods.is_none()) && named("TRACE") && named("CONNECT")
            }
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
