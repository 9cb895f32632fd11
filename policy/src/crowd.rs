//! Rules that no look-up tells apart: a question has to look at them one by one.
//!
//! The engine looks at one or two rules, however many there are, where rules name something that is looked up: a caller, a
//! path, a host, a port. A set can be written for which that is not so, by mistake or on purpose. Here such rules are found
//! from the rules themselves, with what they share, so that whoever loads the set can be told which they are.

mod terms;

use foldhash::HashMap;

use crate::diagnostic::Diagnostic;
use crate::istio::{Clause, What};
use crate::pattern::PathPattern;
use crate::rule::{Rule, Target};
use crate::verdict::RuleName;

use terms::Term;
pub(crate) use terms::Traffic;

/// Crowds of one set that are named; to mend the first often mends the next.
const MAX_NAMED: usize = 8;
/// Rules of a crowd that a warning names: the first, the second and the last.
const NAMED: usize = 3;

/// Rules that a question can make the engine look at together.
#[derive(Debug)]
pub(crate) struct Crowd<'r> {
    key: Key<'r>,
    traffic: Traffic,
    /// Numbers of rules, ascending.
    pub(crate) rules: Vec<u32>,
}

#[derive(Debug)]
enum Key<'r> {
    /// Nothing of theirs is looked up.
    Nothing,
    /// Patterns for identities, which are compared one by one.
    Compared,
    /// This is the narrowest that they are looked up by.
    Term(Term<'r>),
}

/// Crowds of more than so many rules, the largest first among those that share a key; no rule is in two of them.
pub(crate) fn crowds<'r>(
    rules: impl Iterator<Item = &'r Rule> + Clone,
    traffic: Traffic,
    more_than: usize,
) -> Vec<Crowd<'r>> {
    let count = rules.clone().count();
    if count <= more_than {
        return Vec::new();
    }
    let mut filed = terms::file(rules, traffic);
    let mut rest = filed.remove(&None).unwrap_or_default();
    let mut found = Vec::new();
    let mut told = vec![false; count];
    if rest.len() > more_than {
        let rules = sorted(std::mem::take(&mut rest));
        tell(&mut told, &rules);
        found.push(Crowd { key: Key::Nothing, traffic, rules });
    }
    let lists: Vec<(Term<'r>, Vec<u32>)> =
        filed.into_iter().filter_map(|(term, rules)| Some((term?, rules))).collect();
    let compared = lists.iter().filter(|(term, _)| term.is_compared());
    let compared = sorted(compared.flat_map(|(_, rules)| rules.iter().copied()).collect());
    if compared.len() > more_than {
        tell(&mut told, &compared);
        found.push(Crowd { key: Key::Compared, traffic, rules: compared });
    }
    let implied = implied(&lists);
    while found.len() < MAX_NAMED {
        let untold = |rules: &[u32]| rules.iter().filter(|id| !told[**id as usize]).count();
        let sizes: Vec<usize> = lists.iter().map(|(_, rules)| untold(rules)).collect();
        let together = |at: usize| sizes[at] + implied[at].iter().map(|above| sizes[*above]).sum::<usize>();
        let Some(most) = (0..lists.len()).max_by_key(|at| together(*at)) else { break };
        // What most of them are looked up by is what the warning names.
        let chain = || std::iter::once(most).chain(implied[most].iter().copied());
        let named = chain().max_by_key(|at| sizes[*at]).unwrap_or(most);
        let all = chain().flat_map(|at| &lists[at].1).chain(&rest);
        let rules = sorted(all.filter(|id| !told[**id as usize]).copied().collect());
        if rules.len() <= more_than {
            break;
        }
        tell(&mut told, &rules);
        found.push(Crowd { key: Key::Term(lists[named].0.clone()), traffic, rules });
    }
    found
}

/// As many rules as one question can make the engine look at: by the key that most share, those that it implies, and none.
pub(crate) fn most<'r>(rules: impl Iterator<Item = &'r Rule>) -> usize {
    let mut filed = terms::file(rules, Traffic::Http);
    let rest = filed.remove(&None).unwrap_or_default();
    let lists: Vec<(Term<'r>, Vec<u32>)> =
        filed.into_iter().filter_map(|(term, rules)| Some((term?, rules))).collect();
    let compared: usize =
        lists.iter().filter(|(term, _)| term.is_compared()).map(|(_, rules)| rules.len()).sum();
    let size = |at: usize| lists[at].1.len();
    let implied = implied(&lists);
    let together = (0..lists.len()).map(|at| size(at) + implied[at].iter().copied().map(size).sum::<usize>());
    rest.len() + together.max().unwrap_or(0).max(compared)
}

/// For each list those that a question meets with it.
fn implied(lists: &[(Term<'_>, Vec<u32>)]) -> Vec<Vec<usize>> {
    let numbers: HashMap<&Term<'_>, usize> = lists.iter().map(|(term, _)| term).zip(0..).collect();
    let of = |term: &Term<'_>| term.implied().iter().filter_map(|term| numbers.get(term).copied()).collect();
    lists.iter().map(|(term, _)| of(term)).collect()
}

fn tell(told: &mut [bool], rules: &[u32]) {
    for id in rules {
        told[*id as usize] = true;
    }
}

fn sorted(mut list: Vec<u32>) -> Vec<u32> {
    list.sort_unstable();
    list.dedup();
    list
}

impl Crowd<'_> {
    /// What an operator should know of it, and the way out. `rule` gives a rule of the set and its name, `whom` says for
    /// which workloads this is so.
    pub(crate) fn warning<'n>(
        &self,
        rule: impl Fn(u32) -> (&'n Rule, &'n RuleName),
        whom: Option<&str>,
    ) -> Diagnostic {
        let count = self.rules.len();
        let names: Vec<&RuleName> = self.rules.iter().map(|id| rule(*id).1).collect();
        let time = duration(self.rules.iter().map(|id| cost(rule(*id).0)).sum());
        let whom = whom.map(|whom| format!(" ({whom})")).unwrap_or_default();
        let why = match &self.key {
            Key::Nothing => {
                "none of them names a caller, a path, a host or a port that is looked up".to_owned()
            }
            Key::Compared => "they name callers by patterns, which are compared one by one".to_owned(),
            Key::Term(term) => format!("what most of them share, {term}, is the narrowest that is looked up"),
        };
        let asker = match self.traffic {
            Traffic::Http => "a request",
            Traffic::Opaque => "a connection of opaque TCP",
        };
        let message = format!(
            "{asker} can make the engine look at {count} rules one by one{whom}: {why}; about {time} each time. \
             Among them: {}",
            among(&names)
        );
        let place = names.first().map(|name| &name.place);
        let mut warning = Diagnostic::whole(place.map_or("", |place| &place.file), message);
        if let Some(place) = place {
            (warning.line, warning.column) = (place.line, place.column);
        }
        warning.with_help(self.way_out()).warning()
    }

    fn way_out(&self) -> &'static str {
        match &self.key {
            _ if self.traffic == Traffic::Opaque => {
                "give each rule callers by name; or ports that speak HTTP, where its paths are looked up"
            }
            Key::Nothing => {
                "give each rule callers by name, paths, ports or (an Allow) hosts: methods, header fields, `not`, `when`, \
                 hours, endings of paths and hosts in a Deny narrow nothing by themselves; or join them into few rules"
            }
            Key::Compared => "name callers by whole identities, namespaces or service accounts, without `*`",
            Key::Term(Term::Net(_)) => {
                "name callers by identity, or smaller networks; or give each rule its own paths"
            }
            Key::Term(Term::Path(_) | Term::Prefix(_) | Term::Template(_) | Term::Host(_)) => {
                "join rules that differ in methods or header fields only; or give each rule its own callers or longer paths"
            }
            Key::Term(_) => {
                "join rules that differ in methods or header fields only; or give each rule its own paths"
            }
        }
    }
}

fn among(names: &[&RuleName]) -> String {
    let shown = |name: &&RuleName| format!("{name} ({})", name.place);
    let (first, last) = names.split_at(names.len().min(NAMED - 1));
    let mut shown_ones: Vec<String> = first.iter().map(shown).collect();
    if last.len() > 1 {
        shown_ones.push("…".to_owned());
    }
    shown_ones.extend(last.last().iter().map(|name| shown(name)));
    shown_ones.join(", ")
}

/// Nanoseconds that it takes to see that a rule does not fire, measured by the bench `adversarial`.
fn cost(rule: &Rule) -> u64 {
    const RULE: u64 = 15;
    const HEADER: u64 = 30;
    const PATTERN: u64 = 8;
    const CONDITION: u64 = 200;
    let condition = u64::from(rule.condition.is_some()) * CONDITION;
    let of_targets: usize = rule.to.iter().flatten().map(|Target { headers, .. }| headers.len()).sum();
    let (fields, patterns) = match rule.istio.as_deref() {
        Some(Clause { fields, to, .. }) => {
            let loose = |pattern: &&PathPattern| {
                matches!(pattern, PathPattern::Ending(_) | PathPattern::Beginning(_))
            };
            let patterns = to.iter().map(|What { paths, .. }| paths.values.iter().filter(loose).count());
            (fields.len(), patterns.sum())
        }
        None => (0, 0),
    };
    RULE + condition + HEADER * (of_targets + fields) as u64 + PATTERN * patterns as u64
}

fn duration(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000_000 => format!("{} us", (nanoseconds / 1_000).max(1)),
        _ => format!("{:.1} ms", nanoseconds as f64 / 1e6),
    }
}

#[cfg(test)]
#[path = "crowd/tests.rs"]
mod tests;
