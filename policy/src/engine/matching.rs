//! Whether a candidate fires: the whole rule is checked, whatever key proposed it.

use super::Connection;
use super::clause::ClauseKeys;
use super::clock::{Clock, Standing};
use super::keys::Hits;
use super::packed::{Head, Packed, What, Who, what};
use crate::cond::{Asked as CondAsked, Condition};
use crate::eval_ref::Truth;
use crate::fields::{self, HeaderLines};
use crate::jwt;
use crate::norm::{CanonHost, CanonMethod};
use crate::pattern::PathPattern;
use crate::rule::{HeaderMatch, HeaderTest, ListOf, Methods, ValuePattern};
use crate::tokens::Tokens;
use crate::upgrade::Upgrade;
use crate::verdict::{Action, Operation};

/// One reading of one operation.
pub(super) struct Question<'a> {
    pub(super) port: u16,
    pub(super) what: Asked<'a>,
    pub(super) tokens: Tokens<'a>,
    /// For conditions: all that was asked.
    pub(super) operation: Operation<'a>,
}

pub(super) enum Asked<'a> {
    Http(Layer7<'a>),
    /// With the keys of its server name.
    Tls(Hits),
    Tcp,
}

pub(super) struct Layer7<'a> {
    pub(super) method: &'a CanonMethod,
    /// Its bit, if it has one.
    pub(super) method_bit: Option<u32>,
    pub(super) path: &'a str,
    pub(super) host: Option<&'a CanonHost>,
    /// `None`: not known.
    pub(super) headers: Option<&'a dyn HeaderLines>,
    pub(super) knows_host: bool,
    pub(super) upgrade: Option<&'a Upgrade>,
    pub(super) hits: Hits,
}

#[derive(Debug)]
pub(super) struct PathKeys {
    /// Sorted.
    pub(super) keys: Box<[u32]>,
    /// Patterns that no key stands for, each with a key that is true wherever it matches, if there is one.
    pub(super) loose: Box<[(PathPattern, Option<u32>)]>,
}

impl Asked<'_> {
    pub(super) fn is_http(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    /// Keys that are true of it.
    pub(super) fn hits(&self) -> &[u32] {
        match self {
            Self::Http(layer7) => layer7.hits.as_slice(),
            Self::Tls(hits) => hits.as_slice(),
            Self::Tcp => &[],
        }
    }
}

impl Packed {
    /// Whether a rule fires: it matches, or - for a wide action - can never be known not to.
    pub(super) fn fires(
        &self,
        rule: &Head<'_>,
        connection: &Connection,
        question: &Question<'_>,
        clock: &Clock,
    ) -> bool {
        let action = rule.action();
        if let Some(clause) = rule.clause {
            return self.clause(clause).fires(connection, question, action);
        }
        let holds = match rule.window.map(|window| clock.standing(window)) {
            None | Some(Standing::Open) => true,
            Some(Standing::Closed) => false,
            Some(Standing::Unknown) => action.is_wide(),
        };
        if !holds || !rule.ports.is_none_or(|ports| ports.contains(&u32::from(question.port))) {
            return false;
        }
        let (from, to) = rule.alternatives();
        (match from {
            Some(mut from) => from.any(|peer| {
                let peer = Who::read(peer);
                peer.means(connection, action) && self.admits(&peer, action, question.tokens)
            }),
            None => action.is_wide() || connection.authenticated,
        }) && (match to {
            Some(mut to) => to.any(|target| self.target_fires(&What::read(target), action, question)),
            None => match &question.what {
                Asked::Http(layer7) => Methods::cover(None, action, layer7.method),
                Asked::Tls(_) | Asked::Tcp => true,
            },
        }) && rule.condition.is_none_or(|condition| {
            let condition = &self.side.conditions[condition as usize];
            holds_now(condition, action, connection, question, clock)
        })
    }

    /// Whether a rule means this peer, with whatever tokens.
    pub(super) fn means(&self, rule: &Head<'_>, connection: &Connection) -> bool {
        let action = rule.action();
        if let Some(clause) = rule.clause {
            return self.clause(clause).means(connection, action);
        }
        match rule.alternatives().0 {
            Some(mut from) => from.any(|peer| Who::read(peer).means(connection, action)),
            None => action.is_wide() || connection.authenticated,
        }
    }

    /// Whether an alternative of a rule certainly means this peer with these tokens.
    pub(super) fn takes(&self, rule: u32, connection: &Connection, tokens: Tokens<'_>) -> bool {
        let rule = self.rule(rule);
        let action = rule.action();
        rule.alternatives().0.into_iter().flatten().any(|peer| {
            let peer = Who::read(peer);
            peer.means(connection, action) && self.admits(&peer, action, tokens)
        })
    }

    pub(super) fn clause(&self, number: u32) -> &ClauseKeys {
        &self.side.clauses[number as usize]
    }

    /// Whether the alternative takes these tokens.
    fn admits(&self, peer: &Who<'_>, action: Action, tokens: Tokens<'_>) -> bool {
        let of = |number: Option<u32>| number.map(|number| &self.side.tokens[number as usize]);
        if peer.jwt.is_none() && peer.not_jwt.is_none() {
            return true;
        }
        jwt::admits(of(peer.jwt), of(peer.not_jwt), tokens, action.is_wide())
    }

    fn target_fires(&self, target: &What<'_>, action: Action, question: &Question<'_>) -> bool {
        let port = u32::from(question.port);
        if target.has(what::PORTS) && !target.ports.contains(&port) {
            return false;
        }
        let not = target.not();
        if not.is_some_and(|not| not.ports.contains(&port)) {
            return false;
        }
        let layer7 = match &question.what {
            // What can be read is no TLS.
            Asked::Http(_) if target.has(what::SNI) => return false,
            Asked::Http(layer7) => layer7,
            Asked::Tls(hits) => {
                return (!target.has(what::SNI) || hits.has_any(target.sni))
                    && !not.is_some_and(|not| hits.has_any(not.sni))
                    && (action.is_wide() || !target.has(what::LAYER7));
            }
            Asked::Tcp => {
                let asks_sni = target.has(what::SNI) || not.is_some_and(|not| not.has(what::SNI));
                return action.is_wide() || !(target.has(what::LAYER7) || asks_sni);
            }
        };
        if !self.covers(target, action, layer7)
            || ((target.has(what::PATHS) || target.has(what::PATTERNS)) && !self.path_in(target, layer7))
            || (target.has(what::UPGRADE) && !self.upgrade_in(target, layer7))
        {
            return false;
        }
        let mut unknown = false;
        if target.has(what::HOSTS) {
            match layer7.knows_host {
                true if !layer7.hits.has_any(target.hosts) => return false,
                true => {}
                false => unknown = true,
            }
        }
        if let Some(not) = not {
            if self.names(&not, layer7)
                || self.path_in(&not, layer7)
                || (not.has(what::UPGRADE) && self.upgrade_in(&not, layer7))
                || layer7.hits.has_any(not.hosts)
            {
                return false;
            }
            unknown |= not.has(what::HOSTS) && !layer7.knows_host;
        }
        let (start, end) = target.headers;
        for entry in &self.side.headers[start as usize..end as usize] {
            match header_matches(entry, action, layer7.headers) {
                Some(true) => {}
                Some(false) => return false,
                None => unknown = true,
            }
        }
        action.is_wide() || !unknown
    }

    /// As [`Methods::cover`].
    fn covers(&self, target: &What<'_>, action: Action, layer7: &Layer7<'_>) -> bool {
        if !target.has(what::METHODS) || target.has(what::ANY_METHOD) {
            return Methods::cover(None, action, layer7.method);
        }
        self.names(target, layer7)
    }

    fn names(&self, target: &What<'_>, layer7: &Layer7<'_>) -> bool {
        match layer7.method_bit {
            Some(bit) => target.methods & bit != 0,
            None => target.named_methods.iter().any(|at| self.side.methods[*at as usize] == *layer7.method),
        }
    }

    fn path_in(&self, target: &What<'_>, layer7: &Layer7<'_>) -> bool {
        layer7.hits.has_any(target.paths)
            || target
                .patterns
                .chunks_exact(2)
                .any(|pair| self.side.patterns[pair[0] as usize].matches(layer7.path))
    }

    fn upgrade_in(&self, target: &What<'_>, layer7: &Layer7<'_>) -> bool {
        self.side.upgrades[target.upgrade as usize].cover(layer7.upgrade)
    }
}

/// Asked last: nothing else of a rule costs as much, or allocates.
fn holds_now(
    condition: &Condition,
    action: Action,
    connection: &Connection,
    question: &Question<'_>,
    clock: &Clock,
) -> bool {
    // A connection is resolved with its caller where there are conditions.
    let Some(caller) = &connection.caller else { return action.is_wide() };
    let view = match &question.what {
        Asked::Http(layer7) => Some(layer7.path),
        Asked::Tls(_) | Asked::Tcp => None,
    };
    let Question { port, operation, .. } = *question;
    match condition.holds(CondAsked { caller, port, operation, view, at: clock.told() }) {
        Truth::True => true,
        Truth::False => false,
        Truth::Unknown => action.is_wide(),
    }
}

impl Who<'_> {
    pub(super) fn means(&self, connection: &Connection, action: Action) -> bool {
        let has = |list: &[u32]| intersect(&connection.keys, list);
        if !self.cidrs.is_none_or(has) {
            return false;
        }
        if connection.authenticated {
            return !self.unauthenticated && self.identity().all(has) && !self.not.is_some_and(has);
        }
        self.identity().next().is_none() && (action.is_wide() || (self.unauthenticated && self.not.is_none()))
    }
}

/// `None`: never to be known. One pass over the lines, without keeping them.
fn header_matches(entry: &HeaderMatch, action: Action, headers: Option<&dyn HeaderLines>) -> Option<bool> {
    let patterns: &[ValuePattern] = match &entry.test {
        HeaderTest::Present | HeaderTest::Absent => &[],
        HeaderTest::Is(patterns, _) | HeaderTest::Not(patterns) => patterns,
    };
    let (mut lines, mut values, mut hits) = (0_u32, 0_u32, 0_u32);
    let known = headers?.each(&entry.name, &mut |line| {
        lines += 1;
        for value in fields::elements(line) {
            values += 1;
            hits += u32::from(patterns.iter().any(|pattern| pattern.matches(value)));
        }
    });
    let wide = action.is_wide();
    known.then_some(match &entry.test {
        HeaderTest::Present => lines > 0,
        HeaderTest::Absent => lines == 0,
        HeaderTest::Is(_, ListOf::One) if !wide => values == 1 && hits == 1,
        HeaderTest::Is(_, ListOf::All) if !wide => hits > 0 && hits == values,
        HeaderTest::Is(_, _) => hits > 0,
        HeaderTest::Not(_) if wide => values != 1 || hits == 0,
        HeaderTest::Not(_) => lines > 0 && hits == 0,
    })
}

impl Hits {
    /// Whether one of these keys, sorted, is true of the question.
    fn has_any(&self, keys: &[u32]) -> bool {
        self.as_slice().iter().any(|key| keys.binary_search(key).is_ok())
    }
}

impl PathKeys {
    /// Keys one of which is true wherever one of the patterns matches, if there are such.
    pub(super) fn all(&self) -> Option<Vec<u32>> {
        let wider: Option<Vec<u32>> = self.loose.iter().map(|(_, wider)| *wider).collect();
        Some(self.keys.iter().copied().chain(wider?).collect())
    }

    pub(super) fn match_any(&self, layer7: &Layer7<'_>) -> bool {
        layer7.hits.has_any(&self.keys) || self.loose.iter().any(|(pattern, _)| pattern.matches(layer7.path))
    }
}

/// Whether two sorted lists share a key; the first is short.
pub(super) fn intersect(few: &[u32], many: &[u32]) -> bool {
    few.iter().any(|key| many.binary_search(key).is_ok())
}
