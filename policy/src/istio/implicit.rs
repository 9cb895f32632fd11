//! What Istio's namespaces mean without saying it: what no ALLOW selects is allowed.
//!
//! Postern's own default is to deny. So a namespace is read as Istio reads it only if it holds an AuthorizationPolicy and
//! no AccessPolicy, and one of ours in it ends that. What is implied stands behind everything that is said: in the last
//! tier, where a Deny still wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Clause, Part, What, Who};
use crate::check::{NamedPorts, Policy};
use crate::rule::Rule;
use crate::verdict::{Action, Enforcement, RuleName, Tier, Workload};

/// Policies that a set implies, one or two for each of Istio's namespaces. `policies` are those of the whole set.
pub(crate) fn implied<'p>(policies: impl Iterator<Item = &'p Policy>) -> Vec<Policy> {
    // By namespace: whether one of ours stands in it, and the first of Istio's.
    let mut namespaces: BTreeMap<&str, (bool, Option<&Policy>)> = BTreeMap::new();
    for policy in policies {
        let entry = namespaces.entry(&policy.namespace).or_default();
        match policy.istio {
            None => entry.0 = true,
            Some(_) => entry.1 = entry.1.or(Some(policy)),
        }
    }
    let istio = namespaces.into_iter().filter_map(|(namespace, entry)| match entry {
        (false, Some(first)) => Some((namespace, first)),
        _ => None,
    });
    let both = istio.flat_map(|(namespace, first)| {
        [
            policy(
                namespace,
                first,
                "implicit-allow",
                Action::Allow,
                Enforcement::Enforce,
                Part::ImplicitAllow,
            ),
            policy(namespace, first, "dry-run-rest", Action::Deny, Enforcement::Shadow, Part::DryRunRest),
        ]
    });
    both.flatten().collect()
}

fn policy(
    namespace: &str,
    first: &Policy,
    rule: &str,
    action: Action,
    enforcement: Enforcement,
    part: Part,
) -> Option<Policy> {
    let place = first.place.clone()?;
    let name = RuleName {
        namespace: namespace.into(),
        document: "istio".into(),
        rule: rule.into(),
        action,
        tier: Tier::Baseline,
        enforcement,
        place,
    };
    let everything = Clause { from: vec![Who::default()], to: vec![What::default()], fields: Vec::new() };
    Some(Policy {
        namespace: namespace.into(),
        all: false,
        namespaces: Vec::new(),
        break_glass: None,
        selector: BTreeMap::new(),
        rules: vec![(
            Arc::new(name),
            Arc::new(Rule::of_istio(action, Tier::Baseline, enforcement, everything)),
        )],
        document: "istio".into(),
        istio: Some(part),
        place: None,
        ports: NamedPorts::default(),
    })
}

/// Of the implied policies, those that hold for a workload.
pub(crate) fn selected<'p>(
    workload: &Workload,
    policies: impl Iterator<Item = &'p Policy>,
    implied: &'p [Policy],
) -> impl Iterator<Item = &'p Policy> {
    let (mut closed, mut tried) = (false, false);
    for policy in policies.filter(|policy| policy.applies_to(workload)) {
        match policy.istio {
            Some(Part::Written(Action::Allow, Enforcement::Enforce)) => closed = true,
            Some(Part::Written(Action::Allow, Enforcement::Shadow)) => tried = true,
            _ => {}
        }
    }
    let namespace = workload.namespace.clone();
    implied.iter().filter(move |policy| {
        *policy.namespace == *namespace
            && !closed
            && match policy.istio {
                Some(Part::ImplicitAllow) => true,
                Some(Part::DryRunRest) => tried,
                _ => false,
            }
    })
}

/// What an operator should know about a namespace.
pub(crate) struct Finding {
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

/// One finding for each of Istio's namespaces that opens something, or that holds both kinds, with the place of the first
/// policy of Istio's in it.
pub(crate) fn findings<'p, A: Copy, B: Copy>(
    policies: Vec<((A, B), &'p Policy)>,
    implied: &'p [Policy],
) -> Vec<(A, B, Finding)> {
    let mut first: BTreeMap<&str, (A, B)> = BTreeMap::new();
    for (place, policy) in policies.iter().filter(|(_, policy)| policy.istio.is_some()) {
        first.entry(&policy.namespace).or_insert(*place);
    }
    let closed = |namespace: &str| {
        policies.iter().any(|(_, policy)| {
            policy.istio == Some(Part::Written(Action::Allow, Enforcement::Enforce))
                && policy.selector.is_empty()
                && (policy.all || *policy.namespace == *namespace)
        })
    };
    let opens = |namespace: &str| implied.iter().any(|policy| *policy.namespace == *namespace);
    let finding = |namespace: &str| match (opens(namespace), closed(namespace)) {
        (false, _) => Some(Finding {
            message: format!(
                "namespace `{namespace}` holds AccessPolicies too, so what no rule of either kind allows is denied in it"
            ),
            help: "that is Postern's default; Istio's, to allow what no ALLOW selects, holds where all policies are Istio's",
        }),
        (true, false) => Some(Finding {
            message: format!(
                "as in Istio, workloads of namespace `{namespace}` that no ALLOW selects are open to every peer of the mesh"
            ),
            help: "an AuthorizationPolicy with `spec: {}` allows nothing, and closes the namespace; so does any AccessPolicy",
        }),
        (true, true) => None,
    };
    first.iter().filter_map(|(namespace, (a, b))| Some((*a, *b, finding(namespace)?))).collect()
}
