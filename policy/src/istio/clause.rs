//! What a rule of Istio's asks, and the reference reading of it.
//!
//! The engine's reading stands in [`crate::engine`]; both are held against each other, and against Envoy.

use ipnet::IpNet;

use super::token::token_failures;
use super::{IdentityPattern, TextPattern, TokenTest, tokens_hold};
use crate::eval_ref::{self, Truth};
use crate::fields::{self, HeaderLines};
use crate::norm::{CanonHost, CanonMethod};
use crate::pattern::PathPattern;
use crate::rule;
use crate::verdict::{Action, Operation, Source};

/// One rule of an AuthorizationPolicy: one of `from`, one of `to`, and all of `fields`.
///
/// `when` is taken apart: its conditions about the peer and the port stand in every alternative.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Clause {
    /// Alternatives; at least one.
    pub(crate) from: Vec<Who>,
    /// Alternatives; at least one.
    pub(crate) to: Vec<What>,
    pub(crate) fields: Vec<Field>,
}

/// Holds if one of `values` does, or there are none, and none of `not` does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Test<T> {
    pub(crate) values: Vec<T>,
    pub(crate) not: Vec<T>,
}

impl<T> Default for Test<T> {
    fn default() -> Self {
        Self { values: Vec::new(), not: Vec::new() }
    }
}

impl<T> Test<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not.is_empty()
    }

    pub(crate) fn holds(&self, is: impl Fn(&T) -> bool, is_excluded: impl Fn(&T) -> bool) -> bool {
        (self.values.is_empty() || self.values.iter().any(is)) && !self.not.iter().any(is_excluded)
    }
}

/// Who: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Who {
    pub(crate) identities: Vec<Test<IdentityPattern>>,
    pub(crate) addresses: Vec<Test<IpNet>>,
    pub(crate) tokens: Vec<TokenTest>,
}

/// What: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct What {
    /// In lower case.
    pub(crate) hosts: Test<TextPattern>,
    pub(crate) methods: Test<TextPattern>,
    pub(crate) paths: Test<PathPattern>,
    pub(crate) ports: Vec<Test<u16>>,
    /// Server names of TLS; an HTTP request has none.
    pub(crate) sni: Vec<Test<TextPattern>>,
}

/// A header field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    /// In lower case.
    pub(crate) name: Box<str>,
    pub(crate) test: Test<TextPattern>,
}

impl Clause {
    /// Whether it asks for anything that opaque bytes never show.
    pub(crate) fn asks_layer7(&self) -> bool {
        !self.fields.is_empty() || self.asks_tokens() || self.to.iter().any(What::asks_layer7)
    }

    /// Whether it asks for tokens.
    pub(crate) fn asks_tokens(&self) -> bool {
        self.from.iter().any(|who| !who.tokens.is_empty())
    }
}

impl What {
    pub(crate) fn asks_layer7(&self) -> bool {
        let Self { hosts, methods, paths, ports: _, sni: _ } = self;
        !hosts.is_empty() || !methods.is_empty() || !paths.is_empty()
    }
}

/// Whether a rule of `action` matches.
pub(crate) fn matches(
    clause: &Clause,
    action: Action,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    view: Option<&str>,
) -> Truth {
    let Clause { from, to, fields } = clause;
    if !action.is_wide() {
        // Peers without an identity enter by `unauthenticated: true` of an AccessPolicy, and in no other way.
        if source.identity.is_none() {
            return Truth::False;
        }
        // Istio leaves an ALLOW out of a TCP filter if anything in it asks for HTTP, in whichever alternative.
        if !matches!(operation, Operation::Http { .. }) && clause.asks_layer7() {
            return Truth::False;
        }
    }
    let tokens = eval_ref::jwt::tokens(operation);
    let who = from
        .iter()
        .map(|who| Truth::from(who_holds(who, source)).and(tokens_hold(&who.tokens, action, tokens)));
    let who = who.fold(Truth::False, Truth::or);
    let what = to.iter().map(|what| what_holds(what, action, port, operation, view));
    let fields = fields.iter().map(|field| match operation {
        Operation::Http { headers, .. } => match field_holds(field, action, headers) {
            Some(holds) => holds.into(),
            None => Truth::Unknown,
        },
        Operation::Tcp | Operation::Tls { .. } => Truth::Unknown,
    });
    fields.fold(who.and(what.fold(Truth::False, Truth::or)), Truth::and)
}

fn who_holds(who: &Who, source: Source<'_>) -> bool {
    let Who { identities, addresses, tokens: _ } = who;
    let is = |pattern: &IdentityPattern| source.identity.is_some_and(|id| pattern.matches(id));
    let contains = |net: &IpNet| rule::contains(net, source.address);
    identities.iter().all(|test| test.holds(is, is))
        && addresses.iter().all(|test| test.holds(contains, contains))
}

fn what_holds(what: &What, action: Action, port: u16, operation: Operation<'_>, view: Option<&str>) -> Truth {
    let What { hosts, methods, paths, ports, sni } = what;
    let on_port = ports.iter().all(|test| test.holds(|own| *own == port, |own| *own == port));
    let layer7 = match (operation, view) {
        (Operation::Http { method, host, .. }, Some(view)) => {
            let is = |pattern: &PathPattern| pattern.matches(view);
            let host = match host {
                _ if hosts.is_empty() => Truth::True,
                Some(host) => HostReadings::of(host).hold(hosts, action).into(),
                None => Truth::Unknown,
            };
            Truth::from(method_holds(methods, action, method)).and(paths.holds(is, is).into()).and(host)
        }
        _ if what.asks_layer7() => Truth::Unknown,
        _ => Truth::True,
    };
    let named = sni.iter().map(|test| match operation {
        Operation::Tcp => Truth::Unknown,
        Operation::Tls { sni } => sni_holds(test, sni).into(),
        // A request that can be read is no TLS: it has no server name, which is known.
        Operation::Http { .. } => sni_holds(test, None).into(),
    });
    named.fold(Truth::from(on_port).and(layer7), Truth::and)
}

/// Whether a server name is one that a rule asks for. As for header fields, one that is absent is none of its values.
pub(crate) fn sni_holds(test: &Test<TextPattern>, name: Option<&CanonHost>) -> bool {
    let is = |pattern: &TextPattern| name.is_some_and(|name| pattern.matches(name.name().as_bytes()));
    test.holds(is, is)
}

/// Why a rule of `action` does not match, for people: one sentence for each part that fails.
pub(crate) fn failures(
    clause: &Clause,
    action: Action,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    views: &[&str],
) -> Vec<String> {
    let Clause { from, to, fields } = clause;
    let mut out = Vec::new();
    match source.identity {
        None if !action.is_wide() => out.push("the peer proved no identity".to_owned()),
        _ if from.iter().any(|who| who_holds(who, source)) => {
            let meant = from.iter().filter(|who| who_holds(who, source));
            let tokens = eval_ref::jwt::tokens(operation);
            let failed = meant.map(|who| token_failures(&who.tokens, action, tokens));
            out.extend(failed.min_by_key(Vec::len).unwrap_or_default());
        }
        Some(id) => {
            out.push(format!("no alternative of `from` means {id} at {}", source.address.to_canonical()))
        }
        None => out.push("no alternative of `from` means a peer without an identity".to_owned()),
    }
    let view = |view| to.iter().any(|what| what_holds(what, action, port, operation, view) == Truth::True);
    match operation {
        Operation::Http { method, headers, .. } => {
            for missed in views.iter().filter(|path| !view(Some(path))) {
                out.push(format!("no alternative of `to` means {method} {missed} at port {port}"));
            }
            for field in fields {
                match field_holds(field, action, headers) {
                    Some(true) => {}
                    Some(false) => {
                        out.push(format!("the header field `{}` is not as `when` asks", field.name))
                    }
                    None => out.push(format!("the header field `{}` is not known", field.name)),
                }
            }
        }
        Operation::Tcp | Operation::Tls { .. } if clause.asks_layer7() => {
            out.push(
                "methods, paths, hosts, header fields and tokens are never known of opaque TCP".to_owned(),
            );
        }
        Operation::Tcp | Operation::Tls { .. } if !view(None) => {
            out.push(format!("no alternative of `to` means port {port}"))
        }
        Operation::Tcp | Operation::Tls { .. } => {}
    }
    out
}

/// An Allow covers TRACE and CONNECT only by name.
pub(crate) fn method_holds(test: &Test<TextPattern>, action: Action, method: &CanonMethod) -> bool {
    let text = method.as_str().as_bytes();
    let by_name = |pattern: &TextPattern| matches!(pattern, TextPattern::Exact(_)) && pattern.matches(text);
    let named = action.is_wide() || !method.must_be_named() || test.values.iter().any(by_name);
    named && test.holds(|pattern| pattern.matches(text), |pattern| pattern.matches(text))
}

/// A host as Istio's rules are asked about it: with the port that came with it, and for a rule that closes something
/// without it too. To the workload they are the same host (`Host: admin.example:80` has passed rules for
/// `admin.example`).
pub(crate) struct HostReadings {
    /// As long as a name, brackets and a port can be.
    text: [u8; Self::LONGEST],
    name: usize,
    whole: usize,
}

impl HostReadings {
    const LONGEST: usize = 253 + 2 + 1 + 5;

    pub(crate) fn of(host: &CanonHost) -> Self {
        use std::io::Write;
        let mut text = [0; Self::LONGEST];
        let mut rest = &mut text[..];
        // A name that is too long for it could not have been parsed.
        let _ = write!(rest, "{host}");
        let whole = Self::LONGEST - rest.len();
        let digits = host.port().map_or(0, |port| 1 + port.checked_ilog10().unwrap_or(0) as usize + 1);
        Self { text, name: whole.saturating_sub(digits), whole }
    }

    pub(crate) fn hold(&self, test: &Test<TextPattern>, action: Action) -> bool {
        let whole = |pattern: &TextPattern| pattern.matches(&self.text[..self.whole]);
        let either = |pattern: &TextPattern| whole(pattern) || pattern.matches(&self.text[..self.name]);
        if action.is_wide() { test.holds(either, whole) } else { test.holds(whole, either) }
    }
}

/// Whether a header field is what a rule asks for; `None`: never to be known.
///
/// Istio compares whole lines, and any of several will do. Servers read lists and several lines differently, so a rule
/// that closes something fires on each element too, one that opens something takes a single line, and only a single line
/// is excluded from closing.
pub(crate) fn field_holds(field: &Field, action: Action, headers: Option<&dyn HeaderLines>) -> Option<bool> {
    let Field { name, test: Test { values, not } } = field;
    let (mut lines, mut hit, mut element_hit, mut not_hit, mut not_element_hit) =
        (0_u32, false, false, false, false);
    let known = headers?.each(name, &mut |line| {
        lines += 1;
        hit |= values.iter().any(|pattern| pattern.matches(line));
        not_hit |= not.iter().any(|pattern| pattern.matches(line));
        for element in fields::elements(line) {
            element_hit |= values.iter().any(|pattern| pattern.matches(element));
            not_element_hit |= not.iter().any(|pattern| pattern.matches(element));
        }
    });
    let asks_presence = |patterns: &[TextPattern]| patterns.contains(&TextPattern::Present);
    let single = lines == 1;
    let (is, excluded) = match action.is_wide() {
        true => (hit || element_hit, not_hit && (single || asks_presence(not))),
        false => (hit && (single || asks_presence(values)), not_hit || not_element_hit),
    };
    known.then_some((values.is_empty() || is) && !excluded)
}
