//! Rules as the engine keeps them: each in a few consecutive words, so that checking one touches a line or two of memory.
//!
//! A rule is a head, then what the head's flags say is there: ports, alternatives of who, alternatives of what. An
//! alternative stands behind its length. Lists of keys are sorted and stand behind their lengths; whatever is no key lies in
//! [`Side`], under its number. Nothing but [`Writer`] writes this, and nothing but the readers here reads it.

use std::ops::Range;

use super::clause::ClauseKeys;
use crate::cond::Condition;
use crate::jwt::JwtMatch;
use crate::norm::CanonMethod;
use crate::pattern::PathPattern;
use crate::rule::HeaderMatch;
use crate::upgrade::Upgrades;
use crate::verdict::{Action, Tier};

/// All rules, one behind the other, and what of them is no word.
#[derive(Debug, Default)]
pub(super) struct Packed {
    words: Vec<u32>,
    pub(super) side: Side,
}

/// What is asked rarely, or last.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// Methods that have no bit.
    pub(super) methods: Vec<CanonMethod>,
    pub(super) patterns: Vec<PathPattern>,
    pub(super) headers: Vec<HeaderMatch>,
    pub(super) upgrades: Vec<Upgrades>,
    pub(super) tokens: Vec<JwtMatch>,
    pub(super) conditions: Vec<Condition>,
    pub(super) clauses: Vec<ClauseKeys>,
}

/// Flags of a head.
pub(super) mod head {
    pub(in super::super) const ACTION: u32 = 0b11;
    pub(in super::super) const TIER: u32 = 2;
    /// It fires on every stream of a peer that it means.
    pub(in super::super) const ALWAYS: u32 = 1 << 4;
    pub(in super::super) const WINDOW: u32 = 1 << 5;
    pub(in super::super) const CONDITION: u32 = 1 << 6;
    pub(in super::super) const CLAUSE: u32 = 1 << 7;
    pub(in super::super) const PORTS: u32 = 1 << 8;
    pub(in super::super) const FROM: u32 = 1 << 9;
    pub(in super::super) const TO: u32 = 1 << 10;
}

/// Flags of an alternative of who. The number of its identity fields stands above them.
pub(super) mod who {
    pub(in super::super) const UNAUTHENTICATED: u32 = 1;
    pub(in super::super) const CIDRS: u32 = 1 << 1;
    pub(in super::super) const NOT: u32 = 1 << 2;
    pub(in super::super) const JWT: u32 = 1 << 3;
    pub(in super::super) const NOT_JWT: u32 = 1 << 4;
    pub(in super::super) const FIELDS: u32 = 8;
}

/// Flags of an alternative of what, and of what it leaves out.
pub(super) mod what {
    /// Methods are said: a mask follows.
    pub(in super::super) const METHODS: u32 = 1;
    /// `"*"`.
    pub(in super::super) const ANY_METHOD: u32 = 1 << 1;
    /// Methods that have no bit.
    pub(in super::super) const NAMED_METHODS: u32 = 1 << 2;
    pub(in super::super) const PATHS: u32 = 1 << 3;
    /// Patterns that no key stands for.
    pub(in super::super) const PATTERNS: u32 = 1 << 4;
    pub(in super::super) const HOSTS: u32 = 1 << 5;
    pub(in super::super) const SNI: u32 = 1 << 6;
    pub(in super::super) const PORTS: u32 = 1 << 7;
    pub(in super::super) const UPGRADE: u32 = 1 << 8;
    pub(in super::super) const HEADERS: u32 = 1 << 9;
    pub(in super::super) const LAYER7: u32 = 1 << 10;
    /// What it leaves out follows.
    pub(in super::super) const NOT: u32 = 1 << 11;
}

/// Where no key stands for a pattern.
pub(super) const NO_KEY: u32 = u32::MAX;

/// A rule's head, and the rest of it.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    flags: u32,
    pub(super) id: u32,
    pub(super) window: Option<u32>,
    pub(super) condition: Option<u32>,
    pub(super) clause: Option<u32>,
    pub(super) ports: Option<&'a [u32]>,
    rest: Words<'a>,
}

/// An alternative of who.
pub(super) struct Who<'a> {
    pub(super) unauthenticated: bool,
    fields: u32,
    lists: Words<'a>,
    pub(super) cidrs: Option<&'a [u32]>,
    pub(super) not: Option<&'a [u32]>,
    pub(super) jwt: Option<u32>,
    pub(super) not_jwt: Option<u32>,
}

/// An alternative of what, or what one leaves out.
#[derive(Clone, Copy)]
pub(super) struct What<'a> {
    pub(super) flags: u32,
    pub(super) methods: u32,
    pub(super) named_methods: &'a [u32],
    pub(super) paths: &'a [u32],
    /// Pairs: a pattern, and a key that is true wherever it matches.
    pub(super) patterns: &'a [u32],
    pub(super) hosts: &'a [u32],
    pub(super) sni: &'a [u32],
    pub(super) ports: &'a [u32],
    pub(super) upgrade: u32,
    /// Where they begin and end.
    pub(super) headers: (u32, u32),
    rest: Words<'a>,
}

impl Packed {
    /// The rule at a place.
    pub(super) fn rule(&self, at: u32) -> Head<'_> {
        let mut words = Words(&self.words[at as usize..]);
        let (flags, id) = (words.word(), words.word());
        let mut number = |flag: u32| (flags & flag != 0).then(|| words.word());
        let (window, condition, clause) =
            (number(head::WINDOW), number(head::CONDITION), number(head::CLAUSE));
        let ports = (flags & head::PORTS != 0).then(|| words.list());
        Head { flags, id, window, condition, clause, ports, rest: words }
    }

    pub(super) fn shrink(&mut self) {
        self.words.shrink_to_fit();
        let Side { methods, patterns, headers, upgrades, tokens, conditions, clauses } = &mut self.side;
        methods.shrink_to_fit();
        patterns.shrink_to_fit();
        headers.shrink_to_fit();
        upgrades.shrink_to_fit();
        tokens.shrink_to_fit();
        conditions.shrink_to_fit();
        clauses.shrink_to_fit();
    }
}

impl<'a> Head<'a> {
    pub(super) fn action(&self) -> Action {
        match self.flags & head::ACTION {
            0 => Action::Deny,
            1 => Action::Allow,
            _ => Action::Audit,
        }
    }

    pub(super) fn tier(&self) -> usize {
        (self.flags >> head::TIER & 0b11) as usize
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Alternatives of who, then those of what; `None` where nothing is said.
    pub(super) fn alternatives(&self) -> (Option<Alternatives<'a>>, Option<Alternatives<'a>>) {
        let mut rest = self.rest;
        let mut next = |flag: u32| self.has(flag).then(|| Alternatives(Words(rest.list())));
        (next(head::FROM), next(head::TO))
    }
}

impl<'a> Who<'a> {
    pub(super) fn read(words: &'a [u32]) -> Self {
        let mut words = Words(words);
        let flags = words.word();
        let fields = flags >> who::FIELDS;
        let lists = words;
        for _ in 0..fields {
            words.list();
        }
        let mut list = |flag: u32| (flags & flag != 0).then(|| words.list());
        let (cidrs, not) = (list(who::CIDRS), list(who::NOT));
        let mut number = |flag: u32| (flags & flag != 0).then(|| words.word());
        let (jwt, not_jwt) = (number(who::JWT), number(who::NOT_JWT));
        let unauthenticated = flags & who::UNAUTHENTICATED != 0;
        Self { unauthenticated, fields, lists, cidrs, not, jwt, not_jwt }
    }

    /// Keys of each identity field: a peer must have one of every field.
    pub(super) fn identity(&self) -> impl Iterator<Item = &'a [u32]> {
        let mut lists = self.lists;
        (0..self.fields).map(move |_| lists.list())
    }
}

impl<'a> What<'a> {
    pub(super) fn read(words: &'a [u32]) -> Self {
        Self::next(Words(words))
    }

    fn next(mut words: Words<'a>) -> Self {
        let flags = words.word();
        let methods = if flags & what::METHODS != 0 { words.word() } else { 0 };
        let mut list = |flag: u32| if flags & flag != 0 { words.list() } else { &[] };
        let named_methods = list(what::NAMED_METHODS);
        let (ports, paths, patterns) = (list(what::PORTS), list(what::PATHS), list(what::PATTERNS));
        let (hosts, sni) = (list(what::HOSTS), list(what::SNI));
        let upgrade = if flags & what::UPGRADE != 0 { words.word() } else { 0 };
        let headers = if flags & what::HEADERS != 0 { (words.word(), words.word()) } else { (0, 0) };
        Self {
            flags,
            methods,
            named_methods,
            paths,
            patterns,
            hosts,
            sni,
            ports,
            upgrade,
            headers,
            rest: words,
        }
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// What it leaves out.
    pub(super) fn not(&self) -> Option<Self> {
        self.has(what::NOT).then(|| Self::next(self.rest))
    }
}

/// Alternatives, each behind its length.
#[derive(Clone, Copy)]
pub(super) struct Alternatives<'a>(Words<'a>);

impl<'a> Iterator for Alternatives<'a> {
    type Item = &'a [u32];

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.0.is_empty()).then(|| self.0.list())
    }
}

/// Words that are read one after the other. What is read was written by [`Writer`], so it does not end too early.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u32]);

impl<'a> Words<'a> {
    fn word(&mut self) -> u32 {
        let (word, rest) = self.0.split_first().expect("a rule has all its words");
        self.0 = rest;
        *word
    }

    fn list(&mut self) -> &'a [u32] {
        let length = self.word() as usize;
        let (list, rest) = self.0.split_at(length);
        self.0 = rest;
        list
    }
}

/// Writes rules.
pub(super) struct Writer<'p> {
    packed: &'p mut Packed,
}

impl<'p> Writer<'p> {
    pub(super) fn new(packed: &'p mut Packed) -> Self {
        Self { packed }
    }

    /// The next rule's place.
    pub(super) fn place(&self) -> u32 {
        word(self.packed.words.len())
    }

    pub(super) fn side(&mut self) -> &mut Side {
        &mut self.packed.side
    }

    pub(super) fn word(&mut self, word: u32) {
        self.packed.words.push(word);
    }

    /// Adds flags to a word that was written before.
    pub(super) fn mark(&mut self, at: u32, flags: u32) {
        self.packed.words[at as usize] |= flags;
    }

    /// A list of keys, in whatever order.
    pub(super) fn keys(&mut self, keys: impl IntoIterator<Item = u32>) {
        let at = self.begin();
        let start = self.packed.words.len();
        self.packed.words.extend(keys);
        let list = &mut self.packed.words[start..];
        list.sort_unstable();
        let mut kept = usize::from(!list.is_empty());
        for at in 1..list.len() {
            if list[at] != list[kept - 1] {
                list[kept] = list[at];
                kept += 1;
            }
        }
        self.packed.words.truncate(start + kept);
        self.end(at);
    }

    /// Words in the order in which they come.
    pub(super) fn list(&mut self, words: impl IntoIterator<Item = u32>) {
        let at = self.begin();
        self.packed.words.extend(words);
        self.end(at);
    }

    /// Begins something that stands behind its length.
    pub(super) fn begin(&mut self) -> usize {
        self.packed.words.push(0);
        self.packed.words.len()
    }

    pub(super) fn end(&mut self, began: usize) {
        self.packed.words[began - 1] = word(self.packed.words.len() - began);
    }
}

/// A flag for each of the few actions and tiers.
pub(super) fn head_of(action: Action, tier: Tier) -> u32 {
    let action = match action {
        Action::Deny => 0,
        Action::Allow => 1,
        Action::Audit => 2,
    };
    action | (tier as u32) << head::TIER
}

/// The numbers of things that are put on the side.
pub(super) fn put<T>(side: &mut Vec<T>, things: impl IntoIterator<Item = T>) -> Range<u32> {
    let start = word(side.len());
    side.extend(things);
    start..word(side.len())
}

/// The bounds of a set of documents are far below what a word can count.
fn word(count: usize) -> u32 {
    u32::try_from(count).expect("less than 16 GiB of rules")
}
