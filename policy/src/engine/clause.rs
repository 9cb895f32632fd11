//! Rules of Istio's kind, ready to be checked. What can be known of a peer is looked up as keys of its connection, paths
//! as keys of the request; hosts, methods and header fields are compared where few candidates are left.

use super::Connection;
use super::compile::{compile_paths, sorted};
use super::keys::{Keys, SourceKey};
use super::matching::{Asked, PathKeys, Question, intersect};
use crate::eval_ref::Truth;
use crate::istio::{
    Clause, Field, HostReadings, IdentityPattern, Test, TextPattern, TokenTest, What, Who, field_holds,
    method_holds, sni_holds, tokens_hold,
};
use crate::norm::CanonHost;
use crate::rule::HostPattern;
use crate::verdict::{Action, Operation};

/// A [`Clause`] over keys.
#[derive(Debug)]
pub(super) struct ClauseKeys {
    from: Box<[WhoKeys]>,
    to: Box<[WhatKeys]>,
    fields: Box<[Field]>,
    asks_layer7: bool,
}

/// Every test must hold.
#[derive(Debug)]
struct WhoKeys {
    /// Those of identities, most specific first, then those of addresses.
    tests: Box<[KeyTest]>,
    /// How many are of identities.
    identities: usize,
    tokens: Box<[TokenTest]>,
}

/// Both lists are sorted.
#[derive(Debug)]
struct KeyTest {
    values: Option<Box<[u32]>>,
    not: Box<[u32]>,
}

#[derive(Debug)]
struct WhatKeys {
    hosts: Test<TextPattern>,
    /// One of them is true of a host wherever `hosts` holds in an Allow. `None`: nothing can be said.
    host_keys: Option<Vec<u32>>,
    methods: Test<TextPattern>,
    paths: Option<PathKeys>,
    not_paths: Option<PathKeys>,
    ports: Box<[Test<u16>]>,
    sni: Box<[Test<TextPattern>]>,
    asks_layer7: bool,
}

pub(super) fn compile(keys: &mut Keys, clause: &Clause) -> ClauseKeys {
    let Clause { from, to, fields } = clause;
    ClauseKeys {
        from: from.iter().map(|who| compile_who(keys, who)).collect(),
        to: to.iter().map(|what| compile_what(keys, what)).collect(),
        fields: fields.as_slice().into(),
        asks_layer7: clause.asks_layer7(),
    }
}

fn compile_who(keys: &mut Keys, who: &Who) -> WhoKeys {
    let Who { identities, addresses, tokens } = who;
    let mut tests = Vec::with_capacity(identities.len() + addresses.len());
    let mut test = |values: Vec<u32>, not: Vec<u32>| {
        let values = (!values.is_empty()).then(|| sorted(values).into());
        tests.push(KeyTest { values, not: sorted(not).into() });
    };
    let mut identities: Vec<&Test<IdentityPattern>> = identities.iter().collect();
    identities.sort_by_key(|test| test.values.iter().map(IdentityPattern::width).max());
    for Test { values, not } in &identities {
        let mut all = |list: &[IdentityPattern]| list.iter().map(|pattern| keys.identity(pattern)).collect();
        test(all(values), all(not));
    }
    for Test { values, not } in addresses {
        let mut all =
            |list: &[ipnet::IpNet]| list.iter().map(|net| keys.source(SourceKey::Net(*net))).collect();
        test(all(values), all(not));
    }
    WhoKeys { tests: tests.into(), identities: identities.len(), tokens: tokens.as_slice().into() }
}

fn compile_what(keys: &mut Keys, what: &What) -> WhatKeys {
    let What { hosts, methods, paths, ports, sni } = what;
    let mut host_key = |pattern: &TextPattern| match pattern {
        TextPattern::Exact(text) => {
            let host = CanonHost::parse(text).ok()?;
            Some(keys.host(&HostPattern::Exact(host.name().into())))
        }
        _ => None,
    };
    let host_keys: Option<Vec<u32>> = hosts.values.iter().map(&mut host_key).collect();
    let mut paths_of =
        |list: &[crate::pattern::PathPattern]| (!list.is_empty()).then(|| compile_paths(keys, list));
    WhatKeys {
        host_keys: host_keys.filter(|keys| !keys.is_empty()),
        paths: paths_of(&paths.values),
        not_paths: paths_of(&paths.not),
        hosts: hosts.clone(),
        methods: methods.clone(),
        ports: ports.as_slice().into(),
        sni: sni.as_slice().into(),
        asks_layer7: what.asks_layer7(),
    }
}

impl ClauseKeys {
    /// Whatever tokens a request has.
    pub(super) fn means(&self, connection: &Connection, action: Action) -> bool {
        (action.is_wide() || connection.authenticated) && self.from.iter().any(|who| who.means(connection))
    }

    pub(super) fn fires(&self, connection: &Connection, question: &Question<'_>, action: Action) -> bool {
        if !question.what.is_http() && self.asks_layer7 && !action.is_wide() {
            return false;
        }
        (action.is_wide() || connection.authenticated)
            && self.from.iter().any(|who| who.means(connection) && who.admits(question, action))
            && self.to.iter().any(|what| what.fires(question, action))
            && self.fields.iter().all(|field| {
                let Asked::Http(layer7) = &question.what else { return true };
                // An Allow needs to know.
                field_holds(field, action, layer7.headers).unwrap_or_else(|| action.is_wide())
            })
    }

    /// Keys one of which is true of every peer that it means, if every alternative names some: of its most specific field.
    pub(super) fn source_keys(&self) -> Option<Vec<u32>> {
        self.keys_of(|who| &who.tests)
    }

    /// The same for networks alone.
    pub(super) fn net_keys(&self) -> Option<Vec<u32>> {
        self.keys_of(|who| &who.tests[who.identities..])
    }

    fn keys_of(&self, tests: impl Fn(&WhoKeys) -> &[KeyTest]) -> Option<Vec<u32>> {
        let mut out = Vec::new();
        for who in &self.from {
            out.extend_from_slice(tests(who).iter().find_map(|test| test.values.as_ref())?);
        }
        Some(sorted(out))
    }

    pub(super) fn path_keys(&self) -> Option<Vec<u32>> {
        let mut out = Vec::new();
        for what in &self.to {
            out.extend(what.paths.as_ref()?.all()?);
        }
        Some(sorted(out))
    }

    pub(super) fn host_keys(&self) -> Option<Vec<u32>> {
        let mut out = Vec::new();
        for what in &self.to {
            out.extend_from_slice(what.host_keys.as_ref()?);
        }
        Some(sorted(out))
    }

    pub(super) fn ports(&self) -> Option<Vec<u16>> {
        let mut out = Vec::new();
        for what in &self.to {
            out.extend_from_slice(&what.ports.iter().find(|test| !test.values.is_empty())?.values);
        }
        out.sort_unstable();
        out.dedup();
        Some(out)
    }
}

impl WhoKeys {
    fn means(&self, connection: &Connection) -> bool {
        self.tests.iter().all(|KeyTest { values, not }| {
            values.as_ref().is_none_or(|list| intersect(&connection.keys, list))
                && !intersect(&connection.keys, not)
        })
    }

    fn admits(&self, question: &Question<'_>, action: Action) -> bool {
        match tokens_hold(&self.tokens, action, question.tokens) {
            Truth::True => true,
            Truth::False => false,
            Truth::Unknown => action.is_wide(),
        }
    }
}

impl WhatKeys {
    fn fires(&self, question: &Question<'_>, action: Action) -> bool {
        let Self { hosts, host_keys: _, methods, paths, not_paths, ports, sni, asks_layer7 } = self;
        let is = |port: &u16| *port == question.port;
        if !ports.iter().all(|test| test.holds(is, is)) {
            return false;
        }
        let is_named = match question.operation {
            Operation::Tcp => sni.is_empty() || action.is_wide(),
            Operation::Tls { sni: name } => sni.iter().all(|test| sni_holds(test, name)),
            Operation::Http { .. } => sni.iter().all(|test| sni_holds(test, None)),
        };
        if !is_named {
            return false;
        }
        let Asked::Http(layer7) = &question.what else { return action.is_wide() || !asks_layer7 };
        method_holds(methods, action, layer7.method)
            && paths.as_ref().is_none_or(|paths| paths.match_any(layer7))
            && !not_paths.as_ref().is_some_and(|paths| paths.match_any(layer7))
            && (hosts.is_empty()
                || match layer7.host {
                    Some(host) => HostReadings::of(host).hold(hosts, action),
                    None => action.is_wide(),
                })
    }
}
