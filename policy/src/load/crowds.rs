//! Warnings about rules that a request makes the engine look at one by one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::applying;
use crate::check::Policy;
use crate::crowd::{self, Crowd, Traffic};
use crate::diagnostic::Diagnostic;
use crate::generation::Generation;
use crate::rule::Rule;
use crate::verdict::{RuleName, Workload};

/// From here on a decision takes tens of microseconds, which an operator should know.
const MANY_CANDIDATES: usize = 1_000;
/// Without a workload those are looked at that most rules concern, so many at most, with so many rules together.
const MAX_WORKLOADS: usize = 64;
const MAX_RULES_LOOKED_AT: usize = 500_000;

/// About the rules for the generation's workload.
pub(crate) fn of_workload(generation: &Generation) -> Vec<Diagnostic> {
    let rules = &generation.engine.rules;
    let mut found = Vec::new();
    of_rules(&generation.names, rules, None, &mut HashSet::new(), &mut found);
    // The engine's own count, should it see what was not found above.
    let worst = generation.engine.worst_list();
    if found.is_empty() && worst > MANY_CANDIDATES {
        let message =
            format!("a question can make the engine look at {worst} rules that share all their keys");
        found.push(
            Diagnostic::whole("", message).with_help("join rules that differ in methods only").warning(),
        );
    }
    let worst = generation.egress.worst_list();
    if worst > MANY_CANDIDATES {
        let message =
            format!("a call out can make the engine look at {worst} egress rules that share all their keys");
        found.push(
            Diagnostic::whole("", message).with_help("join rules that differ in methods only").warning(),
        );
    }
    found
}

/// About a set that is checked for no workload in particular: for those that its documents select.
pub(super) fn of_set(policies: &[Arc<Policy>], implied: &[Policy]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let (mut told, mut looked_at) = (HashSet::new(), 0);
    for workload in workloads(policies) {
        let (names, rules) = applying(&workload, policies, implied);
        looked_at += rules.len();
        if looked_at > MAX_RULES_LOOKED_AT && !found.is_empty() {
            break;
        }
        of_rules(&names, &rules, Some(&described(&workload)), &mut told, &mut found);
    }
    found
}

/// Adds crowds of rules that are not in `told` already.
fn of_rules(
    names: &[Arc<RuleName>],
    rules: &[Arc<Rule>],
    whom: Option<&str>,
    told: &mut HashSet<*const Rule>,
    found: &mut Vec<Diagnostic>,
) {
    for traffic in [Traffic::Http, Traffic::Opaque] {
        let crowds = crowd::crowds(rules.iter().map(|rule| &**rule), traffic, MANY_CANDIDATES);
        for crowd in crowds {
            // The same rules in another light, or with a few more, are not worth another warning.
            let fresh =
                crowd.rules.iter().filter(|id| told.insert(Arc::as_ptr(&rules[**id as usize]))).count();
            if fresh * 2 > crowd.rules.len() {
                found.push(warning(&crowd, names, rules, whom));
            }
        }
    }
}

fn warning(
    crowd: &Crowd<'_>,
    names: &[Arc<RuleName>],
    rules: &[Arc<Rule>],
    whom: Option<&str>,
) -> Diagnostic {
    crowd.warning(|id| (&rules[id as usize], &names[id as usize]), whom)
}

/// One workload for each selection of the documents, in namespaces that many rules concern; the most crowded first.
fn workloads(policies: &[Arc<Policy>]) -> Vec<Workload> {
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    let mut everywhere = 0;
    for policy in policies {
        let Policy { namespace, all, namespaces, rules, .. } = &**policy;
        match &namespaces[..] {
            [] if *all => {
                everywhere += rules.len();
                named.entry(namespace).or_default();
            }
            [] => *named.entry(namespace).or_default() += rules.len(),
            namespaces => namespaces.iter().for_each(|name| *named.entry(name).or_default() += rules.len()),
        }
    }
    let mut namespaces: Vec<(&str, usize)> =
        named.into_iter().filter(|(_, count)| count + everywhere > MANY_CANDIDATES).collect();
    namespaces.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut found = Vec::new();
    for (namespace, _) in namespaces {
        let bare = Workload {
            namespace: namespace.to_owned(),
            service_account: String::new(),
            labels: BTreeMap::new(),
        };
        let mut selectors: BTreeSet<&BTreeMap<String, String>> = BTreeSet::from([&bare.labels]);
        let concerns = |policy: &&Arc<Policy>| {
            policy.applies_to(&Workload { labels: policy.selector.clone(), ..bare.clone() })
        };
        selectors.extend(policies.iter().filter(concerns).map(|policy| &policy.selector));
        let each = |labels: &BTreeMap<String, String>| Workload { labels: labels.clone(), ..bare.clone() };
        found.extend(selectors.into_iter().take(MAX_WORKLOADS - found.len()).map(each));
        if found.len() >= MAX_WORKLOADS {
            break;
        }
    }
    found
}

fn described(workload: &Workload) -> String {
    let Workload { namespace, service_account: _, labels } = workload;
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    match &labels[..] {
        [] => format!("workloads in {namespace}"),
        labels => format!("workloads in {namespace} with {}", labels.join(", ")),
    }
}
