//! Rate limits: which of them a stream meets, and whether it may pass.
//!
//! Matching is the rules' own ([`crate::engine`]): a limit means what a Deny with the same words would deny, so what can
//! never be known counts as a match. All limits that match are asked. First each is looked at without taking anything;
//! only if none refuses is one request taken from each, so a request that one limit refuses costs the others nothing.
//! Between the two another thread may have taken the last one: then what was taken is given back.
//!
//! Time is an argument, counted from an origin of the caller's choice that never goes backwards.

mod buckets;
mod key;
mod meter;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::diagnostic::Place;
use crate::engine::{Connection, Engine};
use crate::rule::{Peer, Rule};
use crate::verdict::{Enforcement, Operation, Source};

use buckets::{At, Buckets, Taken};
pub(crate) use key::{ADDRESS, HEADER, IDENTITY, KeyPart, NAMESPACE};
pub(crate) use meter::{Quota, Rate};

/// Limits that concern one workload, at most: each is looked at for every request.
pub(crate) const MAX_LIMITS: usize = 256;

/// A limit as its document has it.
#[derive(Clone, Debug)]
pub(crate) struct LimitRule {
    pub(crate) name: LimitName,
    /// What it counts.
    pub(crate) rule: Arc<Rule>,
    pub(crate) quota: Quota,
    /// Empty: everything in one bucket.
    pub(crate) key: Vec<KeyPart>,
    /// Buckets of keys.
    pub(crate) max_keys: usize,
    /// In order; the first that means the peer stands in the quota's place.
    pub(crate) overrides: Vec<Override>,
    /// Whether callers are told when to come again.
    pub(crate) tells: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Override {
    pub(crate) from: Vec<Peer>,
    pub(crate) quota: Quota,
}

impl LimitRule {
    /// Whether it asks whose tokens a request carries.
    pub(crate) fn asks_tokens(&self) -> bool {
        let overridden = self.overrides.iter().flat_map(|one| &one.from);
        self.rule.asks_tokens() || overridden.into_iter().any(Peer::asks_tokens)
    }

    /// The header fields that its key is made of.
    pub(crate) fn headers_in_key(&self) -> impl Iterator<Item = &Box<str>> {
        self.key.iter().filter_map(|part| match part {
            KeyPart::Header(name) => Some(name),
            KeyPart::Identity | KeyPart::Namespace | KeyPart::Address => None,
        })
    }

    /// Everything that says what is counted and how, in words. Limits with the same words are the same limit, whichever
    /// generation they are in; whether they are obeyed or tried, and what a caller is told, is not among it.
    fn definition(&self) -> Box<str> {
        let Self { name, rule, quota, key, max_keys, overrides, tells: _ } = self;
        let LimitName { namespace, document, limit, enforcement: _, place: _ } = name;
        let Rule { action: _, tier: _, enforcement: _, target_ports, from, to, window, condition, istio: _ } =
            &**rule;
        let counted = (target_ports, from, to, window, condition);
        format!("{namespace}/{document}/{limit} {counted:?} {quota:?} {key:?} {max_keys} {overrides:?}")
            .into()
    }
}

/// A limit's name and place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LimitName {
    /// The document's namespace.
    pub namespace: Box<str>,
    /// The document's name.
    pub document: Box<str>,
    /// The limit's name within it.
    pub limit: Box<str>,
    /// Whether it is obeyed.
    pub enforcement: Enforcement,
    /// Where it stands.
    pub place: Place,
}

impl fmt::Display for LimitName {
    /// `namespace/document/limit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.document, self.limit)
    }
}

/// A limit's number within its generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LimitId(usize);

/// A stream that may not pass now.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The limit that refuses longest.
    pub limit: LimitId,
    /// How long until it would pass, if nobody else came meanwhile.
    pub wait: Duration,
    /// Whether the caller is told how long.
    pub tells: bool,
}

/// How often a limit did what.
#[derive(Debug, Default)]
struct Tally {
    admitted: AtomicU64,
    refused: AtomicU64,
    shadow_refused: AtomicU64,
}

/// What has become of a limit so far, for people who look at a running sidecar.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LimitCounts {
    /// Streams that passed.
    pub admitted: u64,
    /// Streams that it refused.
    pub refused: u64,
    /// Streams that it would have refused, were it not in the shadow.
    pub shadow_refused: u64,
    /// Keys whose buckets are held.
    pub keys: usize,
}

/// A limit in force, with what it has counted: cheap to clone, and counts on.
#[derive(Clone, Debug)]
pub struct Limit {
    rule: Arc<LimitRule>,
    /// The own quota, then each override's.
    quotas: Arc<[Quota]>,
    definition: Arc<str>,
    buckets: Arc<Buckets>,
    tally: Arc<Tally>,
}

impl Limit {
    fn new(rule: Arc<LimitRule>) -> Self {
        let quotas: Arc<[Quota]> =
            std::iter::once(rule.quota).chain(rule.overrides.iter().map(|one| one.quota)).collect();
        Self {
            buckets: Arc::new(Buckets::new(quotas.len(), (!rule.key.is_empty()).then_some(rule.max_keys))),
            definition: rule.definition().into(),
            rule,
            quotas,
            tally: Arc::default(),
        }
    }

    /// Its name and place.
    pub fn name(&self) -> &LimitName {
        &self.rule.name
    }

    /// Its rate, as it is written.
    pub fn rate(&self) -> String {
        self.rule.quota.rate.to_string()
    }

    /// How many may come at once.
    pub fn burst(&self) -> u32 {
        self.rule.quota.burst.get()
    }

    /// What callers are told apart by; nothing for a limit with one bucket.
    pub fn key(&self) -> Vec<String> {
        self.rule.key.iter().map(ToString::to_string).collect()
    }

    /// Keys with a bucket of their own, at most; `None` for a limit without a key.
    pub fn max_keys(&self) -> Option<usize> {
        (!self.rule.key.is_empty()).then_some(self.rule.max_keys)
    }

    /// What it has counted.
    pub fn counts(&self) -> LimitCounts {
        let Tally { admitted, refused, shadow_refused } = &*self.tally;
        LimitCounts {
            admitted: admitted.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            shadow_refused: shadow_refused.load(Ordering::Relaxed),
            keys: self.buckets.keys(),
        }
    }

    fn is_obeyed(&self) -> bool {
        self.rule.name.enforcement == Enforcement::Enforce
    }
}

/// A stream that asks.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) connection: &'a Connection,
    pub(crate) source: Source<'a>,
    pub(crate) port: u16,
    pub(crate) operation: Operation<'a>,
}

/// The limits that concern a workload, in the order of the set.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) all: Vec<Limit>,
}

impl Limits {
    pub(crate) fn new(rules: Vec<Arc<LimitRule>>) -> Self {
        Self { all: rules.into_iter().map(Limit::new).collect() }
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &LimitRule> {
        self.all.iter().map(|limit| &*limit.rule)
    }

    /// Counts on where `previous` stands, in each limit that means the same there; what only `previous` has is forgotten,
    /// for it may be kept for long.
    pub(crate) fn inherit(&mut self, previous: &Self) {
        for limit in &mut self.all {
            let known = previous.all.iter().find(|known| known.rule.name.is_same(&limit.rule.name));
            let Some(known) = known else { continue };
            limit.tally = Arc::clone(&known.tally);
            if known.definition == limit.definition {
                limit.buckets = Arc::clone(&known.buckets);
            }
        }
        for known in &previous.all {
            if !self.all.iter().any(|limit| Arc::ptr_eq(&limit.buckets, &known.buckets)) {
                known.buckets.clear();
            }
        }
    }

    pub(crate) fn sweep(&self, now: Duration) {
        let now = meter::moment(now);
        for limit in &self.all {
            limit.buckets.sweep(now);
        }
    }

    /// The limits that match, obeyed or not.
    pub(crate) fn matching<'s>(
        &'s self,
        asked: Asked<'_>,
    ) -> impl Iterator<Item = (usize, &'s Limit)> + use<'s> {
        let matched = asked.engine.limits_that_match(asked.connection, asked.port, asked.operation);
        self.all.iter().enumerate().filter(move |(id, _)| matched.contains(*id))
    }

    /// Takes a stream in, or says which limit refuses it.
    pub(crate) fn admit(&self, asked: Asked<'_>, now: Duration) -> Option<Refused> {
        if self.all.is_empty() {
            return None;
        }
        let now = meter::moment(now);
        let matched = asked.engine.limits_that_match(asked.connection, asked.port, asked.operation);
        let matching = || self.all.iter().enumerate().filter(|(id, _)| matched.contains(*id));
        let obeyed = || matching().filter(|(_, limit)| limit.is_obeyed());
        let mut strictest: Option<Refused> = None;
        for (id, limit) in obeyed() {
            let at = limit.at(id, asked);
            if let Err(wait) = limit.buckets.peek(at, limit.quota(at), now) {
                limit.tally.refused.fetch_add(1, Ordering::Relaxed);
                if strictest.is_none_or(|refused| refused.wait < wait) {
                    strictest = Some(Refused { limit: LimitId(id), wait, tells: limit.rule.tells });
                }
            }
        }
        if strictest.is_some() {
            return strictest;
        }
        // Where each was taken from is kept for the case that one is refused after all.
        let mut own = Matched::default();
        for (id, limit) in obeyed() {
            let at = limit.at(id, asked);
            match limit.buckets.take(at, limit.quota(at), now) {
                Ok(Taken::Own) => own.insert(id),
                Ok(Taken::Shared) => {}
                Err(wait) => {
                    for (other, limit) in obeyed().take_while(|(other, _)| *other < id) {
                        let taken = if own.contains(other) { Taken::Own } else { Taken::Shared };
                        let at = limit.at(other, asked);
                        limit.buckets.give_back(at, taken, limit.quota(at));
                    }
                    limit.tally.refused.fetch_add(1, Ordering::Relaxed);
                    return Some(Refused { limit: LimitId(id), wait, tells: limit.rule.tells });
                }
            }
        }
        for (id, limit) in matching() {
            let at = limit.at(id, asked);
            let passes = limit.is_obeyed() || limit.buckets.take(at, limit.quota(at), now).is_ok();
            let count = if passes { &limit.tally.admitted } else { &limit.tally.shadow_refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// # Panics
    ///
    /// If the id comes from another generation.
    pub(crate) fn name(&self, id: LimitId) -> &LimitName {
        self.all[id.0].name()
    }
}

impl LimitName {
    fn is_same(&self, other: &Self) -> bool {
        let Self { namespace, document, limit, enforcement: _, place: _ } = self;
        *namespace == other.namespace && *document == other.document && *limit == other.limit
    }
}

impl Limit {
    /// The bucket of a stream that the limit with this number matches.
    fn at(&self, id: usize, asked: Asked<'_>) -> At {
        let Asked { engine, connection, source, port: _, operation } = asked;
        let quota = engine.override_of(id, connection, operation).map_or(0, |at| at + 1);
        let tag =
            self.buckets.secret().map(|secret| key::tag(secret, &self.rule.key, quota, source, operation));
        At { quota, tag }
    }

    fn quota(&self, at: At) -> &Quota {
        self.quotas.get(at.quota).unwrap_or(&self.rule.quota)
    }
}

/// A set of limits, by their numbers. What is beyond its bound, which no set of documents passes, is in it: a limit that
/// was forgotten would be none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Matched([u64; MAX_LIMITS / 64]);

impl Matched {
    pub(crate) fn insert(&mut self, id: usize) {
        if let Some(word) = self.0.get_mut(id / 64) {
            *word |= 1 << (id % 64);
        }
    }

    pub(crate) fn contains(&self, id: usize) -> bool {
        self.0.get(id / 64).is_none_or(|word| word >> (id % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests;
