//! What only the whole set shows about services outside of the mesh and the policies about calls there.

use std::collections::HashMap;
use std::sync::Arc;

use super::file::{Content, Head};
use super::set::{CheckedSet, Set, text};
use crate::check::{EgressPolicy, Known};
use crate::diagnostic::{Diagnostics, Place};
use crate::doc;
use crate::istio::doc::AUTHORIZATION_POLICY;
use crate::services::Service;
use crate::verdict::{Action, Enforcement};
use crate::yaml;

impl Set<'_> {
    /// Rules are named by document in logs, metrics and tests, whatever its kind.
    pub(super) fn check_policy_names(&mut self) {
        let mut access: HashMap<(&str, &str), &Place> = HashMap::new();
        for (_, Head { kind, namespace, name, place, .. }) in self.heads() {
            if [doc::ACCESS_POLICY, AUTHORIZATION_POLICY].contains(kind) {
                access.insert((namespace, name), place);
            }
        }
        let mut errors = Diagnostics::new();
        for (file, head) in self.heads().filter(|(_, head)| head.kind == doc::EGRESS_POLICY) {
            let Some(earlier) = access.get(&(&*head.namespace, &*head.name)) else { continue };
            let text = text(file);
            let mut page = head.page(&text);
            page.error_with(
                head.at,
                "another policy has this name, and rules are known by their document's name",
                format!("it stands at {earlier}"),
            );
            errors.extend(page.errors);
        }
        self.errors.extend(errors);
    }
}

impl CheckedSet<'_> {
    /// A host leads to one service of a namespace, or nobody could tell to which.
    pub(super) fn check_hosts(&mut self) {
        let mut seen: HashMap<(&str, &str), &Place> = HashMap::new();
        let mut errors = Diagnostics::new();
        for (file, head, content) in self.documents() {
            let Content::Service(Service { hosts, .. }) = content else { continue };
            for host in &**hosts {
                let Some(earlier) = seen.insert((&head.namespace, host), &head.place) else { continue };
                if *earlier == head.place {
                    // Twice in one document is told there.
                    continue;
                }
                let text = text(file);
                let mut page = head.page(&text);
                page.error_with(
                    head.at,
                    format!("another Service of this namespace has the host `{}`", yaml::printable(host)),
                    format!("it stands at {earlier}"),
                );
                errors.extend(page.errors);
            }
        }
        self.errors.extend(errors);
    }

    /// What loads, and probably does not say what was meant in this set.
    pub(super) fn warnings_about_egress(&self) -> Diagnostics {
        let mut warnings = Diagnostics::new();
        let policies: Vec<_> = self
            .documents()
            .filter_map(|(file, head, content)| match content {
                Content::Egress(policy) => Some((file, head, policy)),
                _ => None,
            })
            .collect();
        if policies.is_empty() {
            return warnings;
        }
        let known = Known::of(self.documents().filter_map(|(_, _, content)| match content {
            Content::Service(service) => Some(service),
            _ => None,
        }));
        let is = |policy: &Arc<EgressPolicy>, action| {
            (policy.action, policy.enforcement) == (action, Enforcement::Enforce)
        };
        let has_allow = policies.iter().any(|(_, _, policy)| is(policy, Action::Allow));
        for (file, head, policy) in policies {
            let text = text(file);
            let mut page = head.page(&text);
            // A policy selects, whatever it does: then only what some Allow lists is called.
            if is(policy, Action::Deny) && !has_allow {
                page.warn(
                    policy.action_at,
                    "no Allow lists what may be called: the workloads that this selects call nothing",
                    "an EgressPolicy of the tier Baseline can allow `to: [{services: [\"*\"]}]`",
                );
            }
            known.warn_about(&mut page, policy);
            warnings.extend(page.warnings);
        }
        warnings
    }
}
