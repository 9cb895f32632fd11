//! What a question does not tell, and the rules that wait for it. A sidecar knows the host and the header fields of every
//! request; a person who leaves them out must not hear an answer that depends on them.

use serde::Serialize;

use super::failures::list;
use crate::eval_ref::{self, Truth};
use crate::generation::Generation;
use crate::istio::Clause;
use crate::rule::{HeaderMatch, HeaderTest, Rule, Target};
use crate::tokens::Tokens;
use crate::verdict::{Action, Effect, Enforcement, Operation, RuleName, Source, Verdict};
use crate::yaml::printable;

/// More of them say nothing more.
const SHOWN: usize = 8;

/// A rule that waits for what was not told.
#[derive(Clone, Debug, Serialize)]
pub struct Untold {
    /// The rule.
    pub rule: RuleName,
    /// When it matches, one sentence an alternative.
    pub when: Vec<String>,
}

/// What depends on what was not told.
pub(super) enum Depends {
    Nothing,
    /// It is denied in any case, and the rule that is named may not be the reason.
    Reason(String),
    /// Whether it is allowed.
    Answer(Vec<Untold>),
}

/// What of a request was not told.
#[derive(Clone, Copy)]
struct Lacks {
    host: bool,
    headers: bool,
    /// No token either; but of that a sidecar knows no more.
    tokens: bool,
}

impl Lacks {
    fn of(operation: Operation<'_>) -> Option<Self> {
        let Operation::Http { host, headers, tokens, .. } = operation else { return None };
        let lacks = Self {
            host: host.is_none(),
            headers: headers.is_none(),
            tokens: matches!(tokens, Tokens::Unknown),
        };
        (lacks.host || lacks.headers).then_some(lacks)
    }

    fn is_asked_by(self, rule: &Rule) -> bool {
        if self.tokens && rule.asks_tokens() {
            return false;
        }
        let (of_host, of_headers) = asks(rule);
        (self.host && of_host) || (self.headers && of_headers)
    }
}

/// Whether a rule asks for the host, and whether for header fields.
fn asks(rule: &Rule) -> (bool, bool) {
    let targets = || rule.to.iter().flatten();
    let condition = rule.condition.as_ref();
    let istio = rule.istio.as_deref();
    let host = targets().any(asks_host)
        // A text that only looks so makes nothing unknown: it is asked about rules of which something is.
        || condition.is_some_and(|condition| condition.to_string().contains("request.host"))
        || istio.is_some_and(asks_host_of_istio);
    let headers = targets().any(|target| !target.headers.is_empty())
        || condition.is_some_and(|condition| !condition.headers().is_empty())
        || istio.is_some_and(|clause| !clause.fields.is_empty());
    (host, headers)
}

fn asks_host(target: &Target) -> bool {
    target.hosts.is_some() || target.not.as_ref().is_some_and(|not| !not.hosts.is_empty())
}

fn asks_host_of_istio(clause: &Clause) -> bool {
    clause.to.iter().any(|what| !what.hosts.is_empty())
}

pub(super) fn depends(
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    verdict: &Verdict,
) -> Depends {
    // What is allowed although something is unknown is allowed whatever that is.
    let Some(lacks) = Lacks::of(operation).filter(|_| !verdict.is_allowed()) else { return Depends::Nothing };
    let engine = &generation.engine;
    let views = operation.views();
    let truth = |rule: &Rule, view: Option<&str>| {
        eval_ref::matches(rule, &engine.domains, source, port, operation, view, engine.told())
    };
    let waits =
        |rule: &Rule, view: Option<&str>| truth(rule, view) == Truth::Unknown && lacks.is_asked_by(rule);
    // The best that it can come to: Denies that wait do not fire, and Allows that wait match, or do not.
    let at_best = |allows_match: bool| {
        eval_ref::decide_by(&engine.rules, &views, &|rule: &Rule, view: Option<&str>| match waits(rule, view)
        {
            true => rule.action == Action::Allow && allows_match,
            false => eval_ref::fires(rule, truth(rule, view)),
        })
    };
    let best = at_best(true);
    let when = |rule: &Rule| {
        describe(rule, lacks, &|target: &Target| {
            views
                .iter()
                .any(|view| eval_ref::target(target, rule.action, port, operation, *view) == Truth::Unknown)
        })
    };
    if best.effect != Effect::Allow {
        let named = verdict.rule.and_then(|id| engine.rules.get(id.index()).map(|rule| (id, &**rule)));
        let is_certain = |rule: &Rule| {
            views.iter().any(|view| {
                let truth = truth(rule, *view);
                eval_ref::fires(rule, truth) && !waits(rule, *view)
            })
        };
        let Some((id, rule)) = named.filter(|(_, rule)| !is_certain(rule)) else { return Depends::Nothing };
        let instead = match best.rule {
            Some(other) => {
                let other = generation.rule(other);
                format!("it is denied by rule {other} ({})", other.place)
            }
            None => "no Allow rule matches".to_owned(),
        };
        return Depends::Reason(format!(
            "whether {} fires depends on what was not told: it does if {}; if not, {instead}",
            generation.rule(id),
            when(rule).join(", or if ")
        ));
    }
    let only_denies = at_best(false).effect == Effect::Allow;
    let rules = engine.rules.iter().zip(&generation.names).filter(|(rule, _)| {
        rule.enforcement == Enforcement::Enforce
            && match rule.action {
                Action::Deny => true,
                Action::Allow => !only_denies,
                Action::Audit => false,
            }
            && views.iter().any(|view| waits(rule, *view))
    });
    let untold =
        rules.take(SHOWN).map(|(rule, name)| Untold { rule: RuleName::clone(name), when: when(rule) });
    Depends::Answer(untold.collect())
}

/// What a rule waits for, alternative by alternative.
fn describe(rule: &Rule, lacks: Lacks, is_open: &dyn Fn(&Target) -> bool) -> Vec<String> {
    let mut out: Vec<String> = rule
        .to
        .iter()
        .flatten()
        .filter(|target| is_open(target))
        .map(|target| demands(target, lacks).join(" and "))
        .filter(|text| !text.is_empty())
        .collect();
    if let Some(condition) = &rule.condition {
        let unless = if rule.action == Action::Deny { "not false" } else { "true" };
        out.push(format!("its condition `{}` is {unless}", printable(&condition.to_string())));
    }
    if let Some(clause) = &rule.istio {
        let names: Vec<&str> = clause.fields.iter().map(|field| &*field.name).collect();
        if lacks.headers && !names.is_empty() {
            let fields = list(&names, "the header field", "the header fields");
            out.push(format!("{fields} are as its `when` asks"));
        } else if lacks.host {
            out.push("the host is as it asks".to_owned());
        }
    }
    out
}

fn demands(target: &Target, lacks: Lacks) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(hosts) = target.hosts.as_ref().filter(|_| lacks.host) {
        out.push(format!("the host is {}", list(hosts, "", "one of")));
    }
    if let Some(not) = target.not.as_ref().filter(|not| lacks.host && !not.hosts.is_empty()) {
        out.push(format!("the host is not {}", list(&not.hosts, "", "one of")));
    }
    if lacks.headers {
        out.extend(target.headers.iter().map(demand));
    }
    out
}

fn demand(field: &HeaderMatch) -> String {
    let name = &field.name;
    match &field.test {
        HeaderTest::Present => format!("there is a header field `{name}`"),
        HeaderTest::Absent => format!("there is no header field `{name}`"),
        HeaderTest::Is(values, _) => format!("the header field `{name}` is {}", list(values, "", "one of")),
        HeaderTest::Not(values) => format!("the header field `{name}` is not {}", list(values, "", "one of")),
    }
}
