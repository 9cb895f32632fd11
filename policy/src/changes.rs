//! What differs between two generations, and which streams that can concern.
//!
//! A stream's verdict follows from the rules that fire on it, a call's from those of egress. So it is the same in both
//! generations unless a rule fires that only one of them has; and whether one of these *could* fire is asked as of any other
//! rules, of an engine of their own.
//! When in doubt the answer is that it could: asking a stream again costs a microsecond, not asking it keeps a withdrawn
//! permission alive.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::egress::{Call, EgressRule};
use crate::engine::Engine;
use crate::engine::egress::Egress;
use crate::generation::Generation;
use crate::rule::Rule;
use crate::services::Services;
use crate::verdict::{Action, Enforcement, Operation, Source};

/// With so many rules changed, finding out whom they concern costs as much as asking everybody.
const MANY: usize = 4_096;

/// What differs between two generations, as far as verdicts go.
#[derive(Debug)]
pub struct Changes {
    rules: Changed<Engine>,
    calls: Changed<Egress>,
}

#[derive(Debug)]
enum Changed<T> {
    Nothing,
    /// The rules that only one generation has, each as an Audit: that fires wherever they could.
    Rules(Box<T>),
    Everything,
}

impl Changes {
    /// Everybody is concerned.
    pub fn everything() -> Self {
        Self { rules: Changed::Everything, calls: Changed::Everything }
    }

    /// From one generation to another.
    pub fn between(before: &Generation, after: &Generation) -> Self {
        // Whoever adds a field here says whether it can change what becomes of a stream.
        let Generation {
            number: _,
            services,
            // Aliases are among the engine's domains; how paths are read was settled when the request came.
            defaults: _,
            documents: _,
            // Rules among the others.
            glass_rules: _,
            warnings: _,
            told: _,
            ports_named,
            headers_named: _,
            paths_judged,
            // Read when a connection begins.
            sni_judged: _,
            nameable: _,
            // Of a stream that lives, no more is known than was asked for when it came.
            asks_tokens: _,
            names: _,
            engine,
            // Counted when a request comes, never again.
            limits: _,
            egress,
        } = after;
        let rules = if *ports_named == before.ports_named && *paths_judged == before.paths_judged {
            Changed::between(&before.engine, engine)
        } else {
            Changed::Everything
        };
        // What a call is, and which addresses are inside, is told by the services.
        let calls = if services.iter().eq(before.services.iter()) {
            Changed::between_egress(&before.egress, egress, services)
        } else {
            Changed::Everything
        };
        Self { rules, calls }
    }

    #[cfg(test)]
    pub(crate) fn of_engines(before: &Engine, after: &Engine) -> Self {
        Self { rules: Changed::between(before, after), calls: Changed::Nothing }
    }

    #[cfg(test)]
    pub(crate) fn of_egress(before: &Egress, after: &Egress, services: &Services) -> Self {
        Self { rules: Changed::Nothing, calls: Changed::between_egress(before, after, services) }
    }

    /// Whether nobody is concerned.
    pub fn are_none(&self) -> bool {
        matches!((&self.rules, &self.calls), (Changed::Nothing, Changed::Nothing))
    }

    /// Whether what a peer does at one of the workload's ports may be judged otherwise than before.
    pub fn may_concern(&self, source: Source<'_>, port: u16, operation: Operation<'_>) -> bool {
        self.rules.may_concern(source, port, operation)
    }

    /// Whether every call of the workload may be led elsewhere than before, or be judged otherwise, whatever it is.
    pub fn concern_every_call(&self) -> bool {
        matches!(self.calls, Changed::Everything)
    }

    /// Whether a call of the workload may be led elsewhere than before, or be judged otherwise.
    pub fn may_concern_call(&self, call: &Call<'_>) -> bool {
        match &self.calls {
            Changed::Nothing => false,
            Changed::Everything => true,
            Changed::Rules(egress) => egress.decide(call).audit.is_some(),
        }
    }
}

impl Changed<Egress> {
    fn between_egress(before: &Egress, after: &Egress, services: &Services) -> Self {
        // The first rule that selects the workload and the last one concern what no rule lists; and a raw path goes out
        // only while no rule speaks of paths.
        if before.is_selected() != after.is_selected() || before.speaks_of_paths != after.speaks_of_paths {
            return Self::Everything;
        }
        let Some(mut rules) = differing(&before.rules, &after.rules) else { return Self::Everything };
        // As among the others below.
        rules.extend(after.rules.iter().filter(|rule| rule.window.is_some()));
        let acts = |rule: &&Arc<EgressRule>| {
            rule.enforcement == Enforcement::Enforce && rule.action != Action::Audit
        };
        let changed = rules
            .into_iter()
            .filter(acts)
            .map(|rule| Arc::new(EgressRule { action: Action::Audit, ..EgressRule::clone(rule) }));
        let changed: Vec<_> = changed.collect();
        match changed.len() {
            0 => Self::Nothing,
            1..=MANY => Self::Rules(Box::new(Egress::new(changed, services, 0, 0))),
            _ => Self::Everything,
        }
    }
}

impl Changed<Engine> {
    fn between(before: &Engine, after: &Engine) -> Self {
        if before.domains != after.domains {
            return Self::Everything;
        }
        let Some(mut rules) = differing(&before.rules, &after.rules) else { return Self::Everything };
        // What depends on the time may have changed by the hour, at the very moment at which the generations did.
        let by_time = |rule: &&Arc<Rule>| rule.window.is_some() || rule.condition.is_some();
        rules.extend(after.rules.iter().filter(by_time));
        let changed = rules.into_iter().filter(|rule| acts(rule)).map(|rule| Rule {
            action: Action::Audit,
            enforcement: Enforcement::Enforce,
            ..Rule::clone(rule)
        });
        let changed: Vec<Rule> = changed.collect();
        match changed.len() {
            0 => Self::Nothing,
            1..=MANY => Self::Rules(Box::new(Engine::new(changed, after.domains.clone(), 0))),
            _ => Self::Everything,
        }
    }

    fn may_concern(&self, source: Source<'_>, port: u16, operation: Operation<'_>) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Rules(engine) => engine.decide(&engine.connection(source), port, operation).audit.is_some(),
        }
    }
}

/// A shadow and an audit change nobody's permission.
fn acts(rule: &Rule) -> bool {
    rule.enforcement == Enforcement::Enforce && rule.action != Action::Audit
}

/// The rules that only one list has, by what they say and not by their names or numbers; `None` if they are many.
fn differing<'r, R: fmt::Debug + PartialEq>(
    before: &'r [Arc<R>],
    after: &'r [Arc<R>],
) -> Option<Vec<&'r Arc<R>>> {
    // Files that did not change share their rules from one generation to the next.
    let pointers = |rules: &[Arc<R>]| rules.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
    let (old, new) = (pointers(before), pointers(after));
    let gone: Vec<_> = before.iter().filter(|rule| !new.contains(&Arc::as_ptr(rule))).collect();
    let come: Vec<_> = after.iter().filter(|rule| !old.contains(&Arc::as_ptr(rule))).collect();
    if gone.len() + come.len() > 2 * MANY {
        return None;
    }
    // Their text finds rules that may be the same; that they are is for the rules to say.
    let mut by_text: HashMap<String, Vec<&Arc<R>>> = HashMap::new();
    for rule in gone {
        by_text.entry(format!("{rule:?}")).or_default().push(rule);
    }
    let mut out = Vec::new();
    for rule in come {
        let alike = by_text.get_mut(&format!("{rule:?}"));
        let same = alike.and_then(|alike| {
            let at = alike.iter().position(|gone| *gone == rule)?;
            Some(alike.swap_remove(at))
        });
        if same.is_none() {
            out.push(rule);
        }
    }
    out.extend(by_text.into_values().flatten());
    Some(out)
}
