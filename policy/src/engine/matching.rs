//! Whether a candidate fires: the whole rule is checked, whatever key proposed it.

use super::Connection;
use super::clause::ClauseKeys;
use super::clock::{Clock, Standing};
use super::keys::Hits;
use crate::cond::{Asked, Condition};
use crate::eval_ref::Truth;
use crate::fields::{self, HeaderLines};
use crate::jwt::{self, JwtMatch};
use crate::norm::{CanonHost, CanonMethod};
use crate::pattern::PathPattern;
use crate::rule::{HeaderMatch, HeaderTest, ListOf, Methods, ValuePattern};
use crate::tokens::Tokens;
use crate::upgrade::{Upgrade, Upgrades};
use crate::verdict::{Action, Enforcement, Operation, Tier};

/// One reading of one operation.
pub(super) struct Question<'a> {
    pub(super) port: u16,
    pub(super) what: What<'a>,
    pub(super) tokens: Tokens<'a>,
    /// For conditions: all that was asked.
    pub(super) operation: Operation<'a>,
}

pub(super) enum What<'a> {
    Http(Layer7<'a>),
    /// With the keys of its server name.
    Tls(Hits),
    Tcp,
}

pub(super) struct Layer7<'a> {
    pub(super) method: &'a CanonMethod,
    pub(super) path: &'a str,
    pub(super) host: Option<&'a CanonHost>,
    /// `None`: not known.
    pub(super) headers: Option<&'a dyn HeaderLines>,
    pub(super) knows_host: bool,
    pub(super) upgrade: Option<&'a Upgrade>,
    pub(super) hits: Hits,
}

/// A rule ready to be checked.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) action: Action,
    pub(super) tier: Tier,
    pub(super) enforcement: Enforcement,
    pub(super) target_ports: Option<Box<[u16]>>,
    pub(super) from: Option<Box<[PeerKeys]>>,
    pub(super) to: Option<Box<[TargetKeys]>>,
    pub(super) window: Option<u32>,
    pub(super) condition: Option<Condition>,
    pub(super) istio: Option<ClauseKeys>,
}

/// An alternative of `from`. All lists are sorted.
#[derive(Debug)]
pub(super) struct PeerKeys {
    pub(super) unauthenticated: bool,
    /// One list for each identity field; the peer must have a key of every one.
    pub(super) identity: Box<[Box<[u32]>]>,
    pub(super) cidrs: Option<Box<[u32]>>,
    pub(super) not: Option<Box<[u32]>>,
    pub(super) jwt: Option<Box<JwtMatch>>,
    pub(super) not_jwt: Option<Box<JwtMatch>>,
}

/// An alternative of `to`.
#[derive(Debug)]
pub(super) struct TargetKeys {
    pub(super) methods: Option<Methods>,
    pub(super) paths: Option<PathKeys>,
    /// Sorted.
    pub(super) hosts: Option<Box<[u32]>>,
    pub(super) headers: Box<[HeaderMatch]>,
    pub(super) upgrade: Option<Upgrades>,
    /// Sorted.
    pub(super) sni: Option<Box<[u32]>>,
    pub(super) ports: Option<Box<[u16]>>,
    pub(super) not: Option<ExcludedKeys>,
    pub(super) asks_layer7: bool,
}

/// What an alternative of `to` leaves out.
#[derive(Debug)]
pub(super) struct ExcludedKeys {
    pub(super) methods: Box<[CanonMethod]>,
    pub(super) paths: Option<PathKeys>,
    /// Sorted.
    pub(super) hosts: Option<Box<[u32]>>,
    pub(super) upgrade: Option<Upgrades>,
    /// Sorted.
    pub(super) sni: Option<Box<[u32]>>,
    pub(super) ports: Box<[u16]>,
}

#[derive(Debug)]
pub(super) struct PathKeys {
    /// Sorted.
    pub(super) keys: Box<[u32]>,
    /// Patterns that no key stands for, each with a key that is true wherever it matches, if there is one.
    pub(super) loose: Box<[(PathPattern, Option<u32>)]>,
}

impl What<'_> {
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

impl Compiled {
    pub(super) fn fires(&self, connection: &Connection, question: &Question<'_>, clock: &Clock) -> bool {
        if let Some(clause) = &self.istio {
            return clause.fires(connection, question, self.action);
        }
        let holds = match self.window.map(|window| clock.standing(window)) {
            None | Some(Standing::Open) => true,
            Some(Standing::Closed) => false,
            Some(Standing::Unknown) => self.action.is_wide(),
        };
        holds
            && self.target_ports.as_ref().is_none_or(|ports| ports.contains(&question.port))
            && match &self.from {
                Some(peers) => peers.iter().any(|peer| {
                    peer.means(connection, self.action) && peer.admits(self.action, question.tokens)
                }),
                None => self.action.is_wide() || connection.authenticated,
            }
            && match &self.to {
                Some(targets) => targets.iter().any(|target| target.fires(self.action, question)),
                None => match &question.what {
                    What::Http(layer7) => Methods::cover(None, self.action, layer7.method),
                    What::Tls(_) | What::Tcp => true,
                },
            }
            && self
                .condition
                .as_ref()
                .is_none_or(|condition| self.holds(condition, connection, question, clock))
    }

    /// Asked last: nothing else of a rule costs as much, or allocates.
    fn holds(
        &self,
        condition: &Condition,
        connection: &Connection,
        question: &Question<'_>,
        clock: &Clock,
    ) -> bool {
        // A connection is resolved with its caller where there are conditions.
        let Some(caller) = &connection.caller else { return self.action.is_wide() };
        let view = match &question.what {
            What::Http(layer7) => Some(layer7.path),
            What::Tls(_) | What::Tcp => None,
        };
        let Question { port, operation, .. } = *question;
        let asked = Asked { caller, port, operation, view, at: clock.told() };
        match condition.holds(asked) {
            Truth::True => true,
            Truth::False => false,
            Truth::Unknown => self.action.is_wide(),
        }
    }

    /// Whether it fires on every stream of a peer that it means.
    pub(super) fn always_fires(&self) -> bool {
        // Of layer 7 nothing but the method, and that is looked at below.
        let everywhere = |target: &&TargetKeys| {
            let TargetKeys { methods: _, paths, hosts, headers, upgrade, sni, ports, not, asks_layer7: _ } =
                *target;
            let layer7 = paths.is_some() || hosts.is_some() || !headers.is_empty() || upgrade.is_some();
            !layer7 && sni.is_none() && ports.is_none() && not.is_none()
        };
        let to = self.to.as_deref().unwrap_or_default();
        // What tokens a stream carries is the stream's.
        let asks_tokens = |peer: &PeerKeys| peer.jwt.is_some() || peer.not_jwt.is_some();
        self.target_ports.is_none()
            && self.window.is_none()
            && self.condition.is_none()
            && self.istio.is_none()
            && !self.from.iter().flatten().any(asks_tokens)
            && match self.action {
                Action::Audit => false,
                Action::Deny => {
                    let any = |target: &TargetKeys| matches!(target.methods, None | Some(Methods::Any));
                    self.to.is_none() || to.iter().filter(everywhere).any(any)
                }
                // TRACE and CONNECT take their names, and a rule that names methods says nothing of opaque bytes.
                Action::Allow => {
                    let named = |wanted: &str| {
                        to.iter().filter(everywhere).any(|target| match &target.methods {
                            Some(Methods::Only(named)) => named.iter().any(|name| name.as_str() == wanted),
                            Some(Methods::Any) | None => false,
                        })
                    };
                    to.iter().filter(everywhere).any(|target| target.methods.is_none())
                        && named("TRACE")
                        && named("CONNECT")
                }
            }
    }

    /// Whether `from` means this peer, with whatever tokens.
    pub(super) fn means(&self, connection: &Connection) -> bool {
        if let Some(clause) = &self.istio {
            return clause.means(connection, self.action);
        }
        match &self.from {
            Some(peers) => peers.iter().any(|peer| peer.means(connection, self.action)),
            None => self.action.is_wide() || connection.authenticated,
        }
    }
}

impl PeerKeys {
    /// Whether the alternative takes these tokens.
    pub(super) fn admits(&self, action: Action, tokens: Tokens<'_>) -> bool {
        jwt::admits(self.jwt.as_deref(), self.not_jwt.as_deref(), tokens, action.is_wide())
    }

    pub(super) fn means(&self, connection: &Connection, action: Action) -> bool {
        let has = |list: &[u32]| intersect(&connection.keys, list);
        if !self.cidrs.as_ref().is_none_or(|list| has(list)) {
            return false;
        }
        if connection.authenticated {
            return !self.unauthenticated
                && self.identity.iter().all(|list| has(list))
                && !self.not.as_ref().is_some_and(|list| has(list));
        }
        self.identity.is_empty() && (action.is_wide() || (self.unauthenticated && self.not.is_none()))
    }
}

impl TargetKeys {
    /// Whether the alternative matches, or - for a wide action - can never be known not to.
    fn fires(&self, action: Action, question: &Question<'_>) -> bool {
        let Self { methods, paths, hosts, headers, upgrade, sni, ports, not, asks_layer7 } = self;
        if !ports.as_ref().is_none_or(|ports| ports.contains(&question.port)) {
            return false;
        }
        if not.as_ref().is_some_and(|not| not.ports.contains(&question.port)) {
            return false;
        }
        let excluded_sni = not.as_ref().and_then(|not| not.sni.as_deref());
        let layer7 = match &question.what {
            // What can be read is no TLS.
            What::Http(_) if sni.is_some() => return false,
            What::Http(layer7) => layer7,
            What::Tls(hits) => {
                return sni.as_ref().is_none_or(|names| hits.has_any(names))
                    && !excluded_sni.is_some_and(|names| hits.has_any(names))
                    && (action.is_wide() || !asks_layer7);
            }
            What::Tcp => {
                return action.is_wide() || !(*asks_layer7 || sni.is_some() || excluded_sni.is_some());
            }
        };
        if !Methods::cover(methods.as_ref(), action, layer7.method)
            || !paths.as_ref().is_none_or(|paths| paths.match_any(layer7))
            || !upgrade.as_ref().is_none_or(|upgrades| upgrades.cover(layer7.upgrade))
        {
            return false;
        }
        let mut unknown = false;
        if let Some(hosts) = hosts {
            match layer7.knows_host {
                true if !layer7.hits.has_any(hosts) => return false,
                true => {}
                false => unknown = true,
            }
        }
        if let Some(ExcludedKeys { methods, paths, hosts, upgrade, sni: _, ports: _ }) = not {
            if methods.contains(layer7.method)
                || paths.as_ref().is_some_and(|paths| paths.match_any(layer7))
                || upgrade.as_ref().is_some_and(|upgrades| upgrades.cover(layer7.upgrade))
                || hosts.as_ref().is_some_and(|hosts| layer7.hits.has_any(hosts))
            {
                return false;
            }
            unknown |= hosts.is_some() && !layer7.knows_host;
        }
        for entry in headers {
            match header_matches(entry, action, layer7.headers) {
                Some(true) => {}
                Some(false) => return false,
                None => unknown = true,
            }
        }
        action.is_wide() || !unknown
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
