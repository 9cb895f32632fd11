//! Checks Istio's documents.

mod condition;
mod operation;
mod peer;
mod request;
mod source;
mod token;

pub(crate) use peer::peer_authentication;
pub(crate) use request::{RequestPolicy, WrittenIssuer, request_authentication};

use std::collections::BTreeMap;
use std::sync::Arc;

use super::doc::{AuthorizationSpec, RuleDoc, Selector};
use super::{Clause, Part, What, Who};
use crate::check::{NamedPorts, Page, Policy, Rules};
use crate::doc::{Document, Metadata, Sp};
use crate::rule::Rule;
use crate::verdict::{Action, Enforcement, RuleName, Tier};
use crate::yaml;

/// What a rule's parts are read in the light of.
pub(super) struct Context<'a> {
    pub(super) namespace: &'a str,
    pub(super) rules: &'a Rules<'a>,
}

/// Checks an AuthorizationPolicy.
pub(crate) fn authorization(
    page: &mut Page<'_>,
    document: &Document<AuthorizationSpec>,
    rules: &Rules<'_>,
) -> Policy {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    names(page, metadata);
    let AuthorizationSpec { selector, target_ref, target_refs, action, provider, rules: written } =
        &spec.value;
    for reference in [target_ref, target_refs].into_iter().flatten() {
        page.error_with(
            reference.referenced,
            "a policy is not attached to a Gateway or a Service here",
            "write `selector: {matchLabels: ...}` with the labels of the workloads behind it",
        );
    }
    if let Some(provider) = provider {
        page.error_with(provider.referenced, "there are no external authorizers here", CUSTOM);
    }
    let kind = action.as_ref().map_or(Some(Action::Allow), |word| check_action(page, word));
    let action_word = action;
    let action = kind.unwrap_or(Action::Allow);
    let enforcement = dry_run(page, metadata);
    if let (Action::Audit, Enforcement::Shadow, Some(word)) = (action, enforcement, action_word) {
        page.error_with(
            word.referenced,
            "an AUDIT changes nothing, so there is nothing to try",
            "leave out the annotation `istio.io/dry-run`",
        );
    }
    let namespace = metadata.namespace.value.as_str();
    let mut policy = Policy {
        namespace: namespace.into(),
        // Istio's root namespace speaks for the mesh without saying so.
        all: namespace == rules.root_namespace,
        namespaces: Vec::new(),
        break_glass: None,
        selector: selector.as_ref().map(|selector| labels(page, selector)).unwrap_or_default(),
        rules: Vec::new(),
        document: metadata.name.value.as_str().into(),
        istio: Some(Part::Written(action, enforcement)),
        place: Some(page.place(metadata.name.referenced)),
        ports: NamedPorts::default(),
    };
    let Some(written) = written else {
        if let (false, Some(word)) = (action == Action::Allow, action_word) {
            page.error_with(
                word.referenced,
                format!("`action: {}` without `rules` never does anything", word.value),
                "name what it is about; `rules: [{}]` means everything",
            );
        }
        return policy;
    };
    let context = Context { namespace, rules };
    for (n, rule) in page.items(written, "rules").iter().enumerate() {
        let clause = clause(page, rule, &context);
        warn_about(page, rule, &clause, action);
        let name = RuleName {
            namespace: policy.namespace.clone(),
            document: metadata.name.value.as_str().into(),
            rule: format!("rule-{n}").into(),
            action,
            tier: Tier::App,
            enforcement,
            place: page.place(rule.referenced),
        };
        policy.rules.push((Arc::new(name), Arc::new(Rule::of_istio(action, Tier::App, enforcement, clause))));
    }
    policy
}

const CUSTOM: &str = "write the rule as ALLOW or DENY; what asks an external authorizer belongs into the workload or a gateway";

fn check_action(page: &mut Page<'_>, word: &Sp<String>) -> Option<Action> {
    if word.value == "CUSTOM" {
        page.error_with(
            word.referenced,
            "`CUSTOM` asks an external authorizer, and there are none here",
            CUSTOM,
        );
        return None;
    }
    page.word(word, &[("ALLOW", Action::Allow), ("DENY", Action::Deny), ("AUDIT", Action::Audit)])
}

/// As Istio reads it, but that a word which is none is a mistake here.
fn dry_run(page: &mut Page<'_>, metadata: &Metadata) -> Enforcement {
    match metadata.annotations.get("istio.io/dry-run").map(String::as_str) {
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Enforcement::Enforce,
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Enforcement::Shadow,
        Some(other) => {
            page.error_with(
                metadata.name.referenced,
                format!("the annotation `istio.io/dry-run` is `{}`", yaml::printable(other)),
                "write \"true\", or leave it out",
            );
            Enforcement::Enforce
        }
    }
}

/// Kubernetes lets names of these kinds hold dots.
pub(super) fn names(page: &mut Page<'_>, metadata: &Metadata) {
    let Metadata { name, namespace, labels: _, annotations: _ } = metadata;
    page.name(namespace);
    if name.value.len() > 253 || !name.value.split('.').all(crate::check::is_name) {
        page.error_with(
            name.referenced,
            format!("`{}` is not a name", yaml::printable(&name.value)),
            "a name has up to 253 characters: a-z, 0-9, '-' and '.'",
        );
    }
}

/// No labels select every workload of the namespace.
pub(super) fn labels(page: &mut Page<'_>, selector: &Sp<Selector>) -> BTreeMap<String, String> {
    let Selector { match_labels } = &selector.value;
    let labels = match_labels.as_ref().map(|labels| &labels.value);
    if let (Some(labels), Some(written)) = (labels, match_labels) {
        for (key, value) in labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                page.error_with(
                    written.referenced,
                    format!("`{}: {}` selects nothing", yaml::printable(key), yaml::printable(value)),
                    "labels are compared as they are; stars are not known here",
                );
            }
        }
    }
    labels.cloned().unwrap_or_default()
}

fn clause(page: &mut Page<'_>, rule: &Sp<RuleDoc>, context: &Context<'_>) -> Clause {
    let RuleDoc { from, to, when } = &rule.value;
    let mut out = Clause { from: Vec::new(), to: Vec::new(), fields: Vec::new() };
    for entry in from.iter().flat_map(|list| page.items(list, "from")).collect::<Vec<_>>() {
        out.from.push(source::who(page, &entry.value.source, context));
    }
    for entry in to.iter().flat_map(|list| page.items(list, "to")).collect::<Vec<_>>() {
        out.to.push(operation::what(page, &entry.value.operation, context));
    }
    if out.from.is_empty() {
        out.from.push(Who::default());
    }
    if out.to.is_empty() {
        out.to.push(What::default());
    }
    for entry in when.iter().flat_map(|list| page.items(list, "when")).collect::<Vec<_>>() {
        condition::condition(page, entry, context, &mut out);
    }
    out
}

/// What loads but probably does not say what was meant.
fn warn_about(page: &mut Page<'_>, rule: &Sp<RuleDoc>, clause: &Clause, action: Action) {
    let everywhere = |what: &What| what.ports.iter().all(|test| test.values.is_empty());
    if action == Action::Deny && clause.asks_layer7() && clause.to.iter().any(everywhere) {
        page.warn(
            rule.referenced,
            "on ports that carry opaque TCP this denies what it says of peers and ports alone, as in Istio",
            "name the HTTP ports with `ports` if that is not meant",
        );
    }
}
