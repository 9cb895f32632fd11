//! RateLimitPolicy.

use std::collections::HashSet;
use std::sync::Arc;

use crate::yaml::Location;

use super::access::{Selection, check_target, peers};
use super::{NamedPorts, Page, Rules, target};
use crate::doc::{Document, LimitDoc, List, MatchDoc, OnLimitDoc, OverrideDoc, RateLimitSpec, Sp, ToDoc};
use crate::limits::{
    ADDRESS, HEADER, IDENTITY, KeyPart, LimitName, LimitRule, NAMESPACE, Override, Quota, Rate,
};
use crate::rule::{Peer, Rule, Target};
use crate::verdict::{Action, Enforcement, Tier, Workload};
use crate::yaml;

/// Limits and overrides are gone through one by one.
const MAX_LIMITS: usize = 32;
const MAX_OVERRIDES: usize = 256;
/// A key of more parts is a mistake.
const MAX_PARTS: usize = 4;
/// Keys of a limit that says nothing of it, and the most it can say: some 40 bytes each.
const KEYS: usize = 10_000;
const MAX_KEYS: usize = 100_000;

/// A checked RateLimitPolicy.
pub(crate) struct LimitPolicy {
    selection: Selection,
    pub(crate) limits: Vec<Arc<LimitRule>>,
    /// Ports that its target and its limits name.
    pub(crate) ports: NamedPorts,
}

impl LimitPolicy {
    /// Whether it concerns `workload`.
    pub(crate) fn applies_to(&self, workload: &Workload) -> bool {
        self.selection.applies_to(workload)
    }

    /// The namespaces of the workloads that it can concern; none if it speaks for all.
    pub(crate) fn meant_namespaces(&self) -> Vec<&str> {
        self.selection.meant_namespaces()
    }
}

/// Checks a RateLimitPolicy.
pub(crate) fn limit_policy(
    page: &mut Page<'_>,
    document: &Document<RateLimitSpec>,
    rules: &Rules<'_>,
) -> LimitPolicy {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let RateLimitSpec { enforcement, target, limits: written, overrides, on_limit } = &spec.value;
    let namespace = metadata.namespace.value.as_str();
    let enforcement = enforcement.as_ref().and_then(|word| {
        page.word(word, &[("Enforce", Enforcement::Enforce), ("Shadow", Enforcement::Shadow)])
    });
    let enforcement = enforcement.unwrap_or_default();
    let mut selection = Selection::of_namespace(namespace);
    let ports = target.as_ref().and_then(|target| {
        let only_root = format!("only documents of the root namespace `{}` may", rules.root_namespace);
        check_target(page, target, &mut selection, namespace == rules.root_namespace, &only_root)
    });
    let tells = on_limit.as_ref().is_none_or(|entry| check_answer(page, entry));
    at_most(page, written, "limits", MAX_LIMITS);
    let mut limits = Vec::with_capacity(written.value.len());
    let mut seen = HashSet::new();
    for entry in page.items(written, "limits") {
        let name = &entry.value.name;
        page.name(name);
        if !seen.insert(name.value.as_str()) {
            page.error_with(
                name.referenced,
                format!("the limit `{}` stands here twice", yaml::printable(&name.value)),
                "limits are named in metrics; give each its own name",
            );
        }
        let Some((rule, quota, key, max_keys)) =
            limit(page, &entry.value, namespace, ports.as_ref(), enforcement, rules)
        else {
            continue;
        };
        let name = LimitName {
            namespace: namespace.into(),
            document: metadata.name.value.as_str().into(),
            limit: name.value.as_str().into(),
            enforcement,
            place: page.place(name.referenced),
        };
        warn_about(page, &entry.value, &rule);
        limits.push(LimitRule {
            name,
            rule: Arc::new(rule),
            quota,
            key,
            max_keys,
            overrides: Vec::new(),
            tells,
        });
    }
    if let Some(list) = overrides {
        at_most(page, list, "overrides", MAX_OVERRIDES);
        let mut earlier = Vec::new();
        for entry in page.items(list, "overrides") {
            check_override(page, entry, namespace, rules, &seen, &mut limits, &mut earlier);
        }
    }
    warn_of_idle(page, written, &limits);
    let of_target = target.as_ref().and_then(|target| target.value.ports.as_ref());
    let matches = written.value.iter().filter_map(|limit| limit.value.r#match.as_ref());
    let of_limits = matches.filter_map(|entry| entry.value.ports.as_ref());
    let named = NamedPorts::of(of_target.into_iter().chain(of_limits));
    LimitPolicy { selection, limits: limits.into_iter().map(Arc::new).collect(), ports: named }
}

fn at_most<T>(page: &mut Page<'_>, list: &List<T>, field: &str, most: usize) {
    if list.value.len() > most {
        page.error_with(
            list.referenced,
            format!("{} {field}; a document has at most {most}", list.value.len()),
            "write a second document",
        );
    }
}

type Counted = (Rule, Quota, Vec<KeyPart>, usize);

/// `None` if its rate is wrong, which has been told then.
fn limit(
    page: &mut Page<'_>,
    entry: &LimitDoc,
    namespace: &str,
    ports: Option<&Vec<u16>>,
    enforcement: Enforcement,
    rules: &Rules<'_>,
) -> Option<Counted> {
    let LimitDoc { name: _, rate, burst, r#match, key, max_keys } = entry;
    let quota = quota(page, rate, burst.as_ref());
    let (from, to) = match r#match {
        Some(entry) => matched(page, entry, namespace, rules),
        None => (None, None),
    };
    let key = key.as_ref().map(|list| check_key(page, list)).unwrap_or_default();
    if let (Some(most), true) = (max_keys, entry.key.is_none()) {
        page.error_with(
            most.referenced,
            "a limit without `key` has one bucket for all",
            "leave `maxKeys` out, or say with `key` what callers are told apart by",
        );
    }
    let max_keys = max_keys.as_ref().map_or(KEYS, |most| check_max_keys(page, most));
    // Read as a Deny is: what can never be known is counted.
    let rule = Rule {
        action: Action::Audit,
        tier: Tier::App,
        enforcement,
        target_ports: ports.cloned(),
        from,
        to,
        window: None,
        condition: None,
        istio: None,
    };
    Some((rule, quota?, key, max_keys))
}

fn quota(page: &mut Page<'_>, rate: &Sp<String>, burst: Option<&Sp<u64>>) -> Option<Quota> {
    let parsed = match Rate::parse(&rate.value) {
        Ok(parsed) => parsed,
        Err((error, help)) => {
            page.error_with(rate.referenced, error, help);
            return None;
        }
    };
    match Quota::new(parsed, burst.map(|burst| burst.value)) {
        Ok(quota) => Some(quota),
        Err((error, help)) => {
            page.error_with(burst.map_or(rate.referenced, |burst| burst.referenced), error, help);
            None
        }
    }
}

fn check_max_keys(page: &mut Page<'_>, most: &Sp<u64>) -> usize {
    match usize::try_from(most.value) {
        Ok(most) if (1..=MAX_KEYS).contains(&most) => most,
        _ => {
            page.error_with(
                most.referenced,
                format!("`maxKeys` is a number from 1 to {MAX_KEYS}"),
                "only buckets that are not full take a place: count the callers of a few seconds",
            );
            KEYS
        }
    }
}

fn check_key(page: &mut Page<'_>, list: &List<String>) -> Vec<KeyPart> {
    if list.value.len() > MAX_PARTS {
        let message = format!("a key has at most {MAX_PARTS} parts");
        page.error_with(list.referenced, message, "leave out what tells nobody apart");
    }
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, "key") {
        let part = match (item.value.as_str(), item.value.strip_prefix(HEADER)) {
            (IDENTITY, _) => KeyPart::Identity,
            (NAMESPACE, _) => KeyPart::Namespace,
            (ADDRESS, _) => KeyPart::Address,
            (_, Some(name)) => {
                let lower = name.to_ascii_lowercase();
                if lower == name {
                    target::field_name(page, item.referenced, &lower);
                } else {
                    page.error_with(
                        item.referenced,
                        "names of header fields are written in lower case",
                        format!("write `{HEADER}{}`", yaml::printable(&lower)),
                    );
                }
                KeyPart::Header(lower.into())
            }
            (other, None) => {
                page.error_with(
                    item.referenced,
                    format!("no key is made of `{}`", yaml::printable(other)),
                    yaml::suggest(other, &[IDENTITY, NAMESPACE, ADDRESS, "request.header.NAME"]),
                );
                continue;
            }
        };
        if out.contains(&part) {
            page.error_with(item.referenced, format!("`{part}` stands here twice"), "leave one of them out");
        } else {
            out.push(part);
        }
    }
    out
}

/// A limit's `match` is one alternative of a rule's `to` and the rule's `from`, in one.
fn matched(
    page: &mut Page<'_>,
    entry: &Sp<MatchDoc>,
    namespace: &str,
    rules: &Rules<'_>,
) -> (Option<Vec<Peer>>, Option<Vec<Target>>) {
    let MatchDoc { from, methods, paths, path_prefix, hosts, headers, grpc, upgrade, sni, ports, not } =
        &entry.value;
    let words = [methods, paths, path_prefix, hosts, grpc, upgrade, sni];
    let to = words.iter().any(|list| list.is_some()) || headers.is_some() || ports.is_some() || not.is_some();
    if !to && from.is_none() {
        page.error_with(
            entry.referenced,
            "`match` is empty",
            "say what is counted, or leave `match` out to count everything",
        );
    }
    // Of words that exclude each other a rule says "write two alternatives", of which a limit has none.
    let mut both = |one: &Option<List<String>>, other: &Option<List<String>>, why: &str| {
        let second = one.as_ref().and(other.as_ref());
        if let Some(second) = second {
            page.error_with(second.referenced, why, "write two limits, or leave one of them out");
        }
        second.is_some()
    };
    let prefixed = both(paths, path_prefix, "`paths` and `pathPrefix` cannot stand in one limit");
    let named = [methods, paths, path_prefix];
    let called = named.iter().any(|list| both(grpc, list, "`grpc` says method and path itself"));
    let to = to.then(|| {
        let written = ToDoc {
            methods: methods.clone().filter(|_| !called),
            paths: paths.clone().filter(|_| !called),
            path_prefix: path_prefix.clone().filter(|_| !called && !prefixed),
            hosts: hosts.clone(),
            headers: headers.clone(),
            grpc: grpc.clone(),
            upgrade: upgrade.clone(),
            sni: sni.clone(),
            ports: ports.clone(),
            not: not.clone(),
        };
        let written = Sp::new(written, entry.referenced);
        vec![target::target(page, &written, Action::Audit, rules)]
    });
    (from.as_ref().map(|list| peers(page, list, namespace, Action::Audit, rules)), to)
}

/// Whether callers are told when to come again. The status is not to be chosen: clients, retries and the far sidecar know
/// this one.
fn check_answer(page: &mut Page<'_>, entry: &Sp<OnLimitDoc>) -> bool {
    let OnLimitDoc { http, grpc, retry_after } = &entry.value;
    if http.is_none() && grpc.is_none() && retry_after.is_none() {
        page.error_with(entry.referenced, "`onLimit` is empty", "leave it out");
    }
    if let Some(http) = http.as_ref().filter(|http| http.value != 429) {
        page.error_with(
            http.referenced,
            "a limit is answered with 429",
            "write `http: 429`, or leave it out: clients know by it that they may come again",
        );
    }
    if let Some(grpc) = grpc {
        page.word(grpc, &[("RESOURCE_EXHAUSTED", ())]);
    }
    retry_after.as_ref().is_none_or(|flag| flag.value)
}

fn check_override(
    page: &mut Page<'_>,
    entry: &Sp<OverrideDoc>,
    namespace: &str,
    rules: &Rules<'_>,
    names: &HashSet<&str>,
    limits: &mut [LimitRule],
    earlier: &mut Vec<(String, Box<str>)>,
) {
    let OverrideDoc { from, limit, rate, burst } = &entry.value;
    let peers = peers(page, from, namespace, Action::Audit, rules);
    let Some(quota) = quota(page, rate, burst.as_ref()) else { return };
    if let Some(name) = limit.as_ref().filter(|name| !names.contains(name.value.as_str())) {
        let known: Vec<&str> = names.iter().copied().collect();
        page.error_with(
            name.referenced,
            format!("this document has no limit `{}`", yaml::printable(&name.value)),
            yaml::suggest(&name.value, &known),
        );
        return;
    }
    let is_meant = |one: &LimitRule| match limit {
        Some(name) => *one.name.limit == *name.value,
        None => !one.key.is_empty(),
    };
    let means = format!("{peers:?}");
    let (mut any, mut new, mut changed) = (false, false, false);
    for one in limits.iter_mut().filter(|one| is_meant(one)) {
        any = true;
        let meant = (means.clone(), one.name.limit.clone());
        if earlier.contains(&meant) {
            continue;
        }
        earlier.push(meant);
        new = true;
        changed |= one.quota != quota;
        one.overrides.push(Override { from: peers.clone(), quota });
    }
    let at = from.referenced;
    match (any, new, changed) {
        (false, ..) => page.warn(
            at,
            "this overrides nothing: no limit here tells callers apart",
            "name the limit with `limit`: who is meant gets a bucket beside its one",
        ),
        (_, false, _) => {
            page.warn(
                at,
                "an earlier override means the same callers: this one is never reached",
                "leave it out",
            );
        }
        (_, _, false) => {
            page.warn(at, "this is the limit's own rate and burst: it changes nothing", "leave it out")
        }
        _ => {}
    }
}

/// What loads but probably does not say what was meant.
fn warn_about(page: &mut Page<'_>, written: &LimitDoc, rule: &Rule) {
    let at = written.name.referenced;
    let to = rule.to.iter().flatten();
    let named = to.clone().find_map(|target| target.ports.as_ref());
    if let (Some(all), Some(some)) = (&rule.target_ports, named)
        && !some.iter().any(|port| all.contains(port))
    {
        page.warn(at, "this limit counts nothing: its ports are none of the target's", "name one of them");
    }
    let open = rule.target_ports.is_none() && named.is_none();
    if open && to.clone().any(|target| target.asks_sni() && !target.asks_layer7()) {
        page.warn(
            at,
            "on ports that are declared `tcp` this counts every connection: no server name is read there",
            "name the ports with TLS with `ports` if that is not meant",
        );
    }
    let tokens = rule.asks_tokens() && rule.target_ports.is_none() && named.is_none();
    if tokens || (open && to.clone().any(Target::asks_layer7)) {
        page.warn(
            at,
            "on ports that carry opaque TCP this counts every connection: what is inside is never known there",
            "name the HTTP ports with `ports` if that is not meant",
        );
    }
}

/// A limit that another one is always stricter than.
fn warn_of_idle(page: &mut Page<'_>, written: &List<LimitDoc>, limits: &[LimitRule]) {
    let place = |name: &str| -> Option<Location> {
        let mut entries = written.value.iter();
        entries.find(|entry| entry.value.name.value == name).map(|entry| entry.value.name.referenced)
    };
    let counted = |limit: &LimitRule| format!("{:?}", (&limit.rule.from, &limit.rule.to));
    for (n, idle) in limits.iter().enumerate() {
        let stricter = limits.iter().enumerate().find(|(m, other)| {
            let all = other.rule.from.is_none() && other.rule.to.is_none();
            let is_wider = all || counted(other) == counted(idle);
            let (strict, loose) = (&other.quota, &idle.quota);
            // What tells fewer callers apart counts more in each bucket.
            let is_coarser = other.key.iter().all(|part| idle.key.contains(part));
            let same = strict == loose && other.key == idle.key && counted(other) == counted(idle);
            // Who has an override may be refused by either.
            *m != n
                && idle.overrides.is_empty()
                && other.overrides.is_empty()
                && is_wider
                && is_coarser
                && strict.is_at_most(loose)
                && (!same || *m < n)
        });
        if let (Some((_, other)), Some(at)) = (stricter, place(&idle.name.limit)) {
            page.warn(
                at,
                format!("this limit never refuses anything: `{}` always does so first", other.name.limit),
                "leave one of them out, or tell them apart with `match` or `key`",
            );
        }
    }
}
