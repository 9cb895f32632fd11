//! Why a question is answered as it is, for people.

mod condition;
pub(crate) mod egress;
mod failures;
mod jwt;
mod propose;
mod text;
mod untold;

use serde::Serialize;

use crate::eval_ref::{self, Truth};
use crate::generation::Generation;
use crate::istio;
use crate::limits::LimitName;
use crate::pattern::PathPattern;
use crate::rule::Rule;
use crate::verdict::{Action, DenyReason, Effect, Enforcement, Operation, RuleName, Source, Verdict};

use failures::{Failure, least, list, method_failure, peer_failures, target_failures, unauthenticated};
use propose::{Alternative, from_alternative, to_alternative};

pub use untold::Untold;

/// Why a question is answered as it is.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The engine's answer, for which what was not told counts as unknown: a Deny fires, an Allow does not match.
    pub verdict: Verdict,
    /// What was not told and decides: then nobody knows the answer yet. Empty: the verdict is the answer.
    pub untold: Vec<Untold>,
    /// The rule that decided, with its place.
    pub rule: Option<RuleName>,
    /// Other readings of the path that had to be allowed too.
    pub readings: Vec<String>,
    /// What holds besides rules.
    pub notes: Vec<String>,
    /// What shadow rules would change.
    pub shadow: Option<Shadow>,
    /// The Audit rule that marks it.
    pub audit: Option<RuleName>,
    /// If nothing allowed it: the Allow rule that came closest. None if no Allow rule concerns this workload.
    pub nearest: Option<Miss>,
    /// Rate limits that count it, obeyed or in the shadow, if it is allowed.
    pub limits: Vec<LimitName>,
}

/// What a shadow rule would do.
#[derive(Clone, Debug, Serialize)]
pub struct Shadow {
    /// Whether it would be allowed.
    pub allowed: bool,
    /// The rule that would decide. None: a call out would be denied because no rule of the shadow lists it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
}

/// An Allow rule that nearly matched.
#[derive(Clone, Debug, Serialize)]
pub struct Miss {
    /// The rule.
    pub rule: RuleName,
    /// What did not match, one sentence a field.
    pub failed: Vec<String>,
    /// The change that would allow the request.
    pub change: String,
}

pub(crate) fn explain(
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
) -> Explanation {
    let connection = generation.connection(source);
    let verdict = generation.decide(&connection, port, operation);
    let rule = verdict.rule.map(|id| generation.rule(id).clone());
    let readings = match operation {
        Operation::Http { path, .. } => path.views().skip(1).map(str::to_owned).collect(),
        Operation::Tcp | Operation::Tls { .. } => Vec::new(),
    };
    let shadow = verdict.shadow.map(|would| Shadow {
        allowed: would.effect == Effect::Allow,
        rule: would.rule.map(|rule| generation.rule(rule).clone()),
    });
    let audit = verdict.audit.map(|id| generation.rule(id).clone());
    let limits = match verdict.effect {
        Effect::Allow => generation.limits_of(&connection, source, port, operation),
        Effect::Deny(_) => Vec::new(),
    };
    let limits = limits.into_iter().cloned().collect();
    let unknown = match verdict.effect {
        Effect::Deny(_) => condition::unknown(generation, verdict.rule, source, port, operation),
        Effect::Allow => None,
    };
    let mut notes: Vec<String> =
        unknown.map(|unknown| format!("{unknown}; a Deny fires then")).into_iter().collect();
    let untold = match untold::depends(generation, source, port, operation, &verdict) {
        untold::Depends::Nothing => Vec::new(),
        untold::Depends::Reason(note) => {
            notes = vec![note];
            Vec::new()
        }
        untold::Depends::Answer(untold) => {
            notes.clear();
            untold
        }
    };
    let nearest = match verdict.effect {
        Effect::Deny(DenyReason::NoRule) if untold.is_empty() => nearest(generation, source, port, operation),
        _ => None,
    };
    Explanation { verdict, untold, rule, readings, notes, shadow, audit, nearest, limits }
}

/// The Allow rule with the fewest failing fields; of several, the first. With several readings of the path the miss is
/// about all of them that nothing allows: whoever mends one of them is denied for the next.
fn nearest(generation: &Generation, source: Source<'_>, port: u16, operation: Operation<'_>) -> Option<Miss> {
    let engine = &generation.engine;
    let grants = |rule: &Rule| rule.action == Action::Allow && rule.enforcement == Enforcement::Enforce;
    let allowed = |view: Option<&str>| {
        engine.rules.iter().any(|rule| {
            grants(rule)
                && eval_ref::matches(rule, &engine.domains, source, port, operation, view, engine.told())
                    == Truth::True
        })
    };
    let views: Vec<&str> = match operation {
        Operation::Http { path, .. } => path.views().filter(|view| !allowed(Some(view))).collect(),
        Operation::Tcp | Operation::Tls { .. } => Vec::new(),
    };
    let allows = engine.rules.iter().zip(&generation.names).filter(|(rule, _)| grants(rule));
    let (misfit, name) = allows
        .map(|(rule, name)| (self::misfit(rule, generation, source, port, operation, &views), name))
        .min_by_key(|(misfit, _)| misfit.failed.len())?;
    let Misfit { failed, changes } = misfit;
    let change = format!("in rule {name} ({}): {}", name.place, changes.join("; and "));
    Some(Miss { rule: RuleName::clone(name), failed, change })
}

/// What keeps a rule from matching, and all that has to be changed in it.
#[derive(Default)]
struct Misfit {
    failed: Vec<String>,
    changes: Vec<String>,
}

impl Misfit {
    /// Adds the failures of one list of alternatives; `alternative` says how to add one that does not fail.
    fn add(&mut self, failures: Vec<Failure>, alternative: impl FnOnce() -> String) {
        let changes: Option<Vec<String>> = failures.iter().map(|failure| failure.change.clone()).collect();
        match changes {
            Some(changes) => self.changes.extend(changes),
            None => self.changes.push(alternative()),
        }
        self.failed.extend(failures.into_iter().map(|failure| failure.what));
    }
}

/// Whether the failures of a list call for another alternative: a word more in one that is there would not do.
fn needs_another(failures: &[Failure]) -> bool {
    failures.iter().any(|failure| failure.change.is_none())
}

/// The failing fields of a rule, taking of each list of alternatives the one that fails least.
fn misfit(
    rule: &Rule,
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    views: &[&str],
) -> Misfit {
    let Rule { action, tier: _, enforcement: _, target_ports, from, to, window, condition, istio } = rule;
    let domains = &generation.engine.domains;
    let mut out = Misfit::default();
    if let Some(clause) = istio {
        out.failed = istio::failures(clause, *action, source, port, operation, views);
        out.changes.push("add an alternative that means this request".to_owned());
        return out;
    }
    if let Some(ports) = target_ports
        && !ports.contains(&port)
    {
        out.failed
            .push(format!("the document's target is for {}, not port {port}", list(ports, "port", "ports")));
        out.changes.push(format!("add {port} to the ports of `target`"));
    }
    if let Some(window) = window
        && !generation.engine.told().is_some_and(|at| window.is_open(at))
    {
        out.failed.push("it does not hold at this time".to_owned());
        out.changes.push("wait, or add hours to `when`".to_owned());
    }
    let each = |peer| (peer_failures(peer, domains, source, operation), peer.asks_tokens());
    let (who, with_token) = match from {
        Some(peers) => peers.iter().map(each).min_by_key(|(failed, _)| failed.len()).unwrap_or_default(),
        None if source.identity.is_none() => (vec![unauthenticated()], false),
        None => (Vec::new(), false),
    };
    let slashes = generation.nameable;
    let nameable = views.iter().all(|path| PathPattern::parse(path, slashes).is_ok());
    let paths = nameable.then_some(views);
    let what = match to {
        Some(targets) => {
            least(targets.iter().map(|target| target_failures(target, port, operation, views, paths)))
        }
        None => method_failure(None, operation).into_iter().collect(),
    };
    let (from_alternative, to_alternative) =
        (from_alternative(source, with_token), to_alternative(port, operation, paths));
    if (from.is_none() && needs_another(&who)) || (to.is_none() && needs_another(&what)) {
        let copied = Alternative::copied(
            Some(&from_alternative).filter(|_| !who.is_empty()),
            Some(&to_alternative).filter(|_| !what.is_empty()),
        );
        out.changes.push(copied);
        out.failed.extend(who.into_iter().chain(what).map(|failure| failure.what));
    } else {
        out.add(who, || from_alternative.added_to("from"));
        out.add(what, || to_alternative.added_to("to"));
    }
    if let Some(condition) = condition {
        let readings = views.iter().copied().map(Some).chain(views.is_empty().then_some(None));
        if let Some(failed) = condition::failure(condition, generation, source, port, operation, readings) {
            out.failed.push(failed);
            out.changes.push("change the condition `cel`, or the request".to_owned());
        }
    }
    out
}

#[cfg(test)]
#[path = "explain/advice_tests.rs"]
mod advice_tests;
