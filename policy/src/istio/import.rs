//! Istio's policies rewritten as AccessPolicies.
//!
//! A namespace is rewritten if all of its policies can be said exactly, and left as it is otherwise: both kinds load side
//! by side, but one AccessPolicy in a namespace ends what Istio implies in it.

mod rule;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Part;
use crate::check::Policy;
use crate::diagnostic::{Diagnostics, Place, SourceFile};
use crate::load;
use crate::verdict::{Action, Enforcement, Scope};

/// What came of Istio's policies in a set.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Documents by namespace: AccessPolicies, as YAML.
    pub documents: BTreeMap<String, String>,
    /// Why other namespaces stay as they are, and with `lossy`, what the rewritten rules say more strictly.
    pub notes: Vec<Note>,
    /// Namespaces whose policies stay Istio's.
    pub kept: BTreeSet<String>,
}

/// Something that an AccessPolicy cannot say, or says more strictly.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// Whose it is.
    pub namespace: String,
    /// The policy, and the rule in it if there is one.
    pub name: String,
    /// Where it stands.
    pub place: Option<Place>,
    /// What it is about.
    pub what: String,
    /// Whether the rule can be written all the same, so that it allows less or denies more.
    pub is_stricter: bool,
}

/// Rewrites the AuthorizationPolicies of a set. With `lossy`, rules that an AccessPolicy says more strictly are rewritten
/// too; what would open something never is.
pub fn import_istio(files: &[SourceFile], scope: &Scope, lossy: bool) -> Result<Imported, Diagnostics> {
    let checked = load::checked(files, &Scope { workload: None, ..scope.clone() })?;
    let all: Vec<&Policy> = checked.policies().collect();
    let mut out = Imported { documents: BTreeMap::new(), notes: Vec::new(), kept: BTreeSet::new() };
    let istio = all.iter().copied().filter(|policy| policy.istio.is_some());
    let mut namespaces: BTreeMap<&str, Vec<&Policy>> = BTreeMap::new();
    for policy in istio {
        namespaces.entry(&policy.namespace).or_default().push(policy);
    }
    for (namespace, policies) in &namespaces {
        let mut writer =
            Writer { scope, lossy, text: String::new(), notes: Vec::new(), is_impossible: false };
        for policy in policies {
            writer.policy(policy);
        }
        writer.implied(namespace, &all);
        let Writer { text, notes, is_impossible, .. } = writer;
        let kept = is_impossible || notes.iter().any(|note| !(lossy && note.is_stricter));
        out.notes.extend(notes);
        if kept {
            out.kept.insert((*namespace).to_owned());
        } else {
            out.documents.insert((*namespace).to_owned(), text);
        }
    }
    // The root namespace's ALLOW policies close the others as long as they are Istio's.
    let root = &scope.root_namespace;
    if out.documents.contains_key(root) && !out.kept.is_empty() {
        out.documents.remove(root);
        out.kept.insert(root.clone());
        out.notes.push(Note {
            namespace: root.clone(),
            name: "*".into(),
            place: None,
            what: "policies of the root namespace stay Istio's as long as those of another namespace do"
                .into(),
            is_stricter: false,
        });
    }
    // What is written must load, or it is not written.
    let mut refused = Vec::new();
    for (namespace, text) in &out.documents {
        let file = SourceFile { name: format!("{namespace}.yaml"), text: text.clone().into_bytes() };
        if let Err(errors) = load::checked(&[file], &Scope { workload: None, ..scope.clone() })
            && text.contains("kind:")
        {
            refused.push((namespace.clone(), errors));
        }
    }
    for (namespace, errors) in refused {
        out.documents.remove(&namespace);
        let first = errors.iter().next().map(|error| error.message.clone()).unwrap_or_default();
        out.notes.push(Note {
            namespace: namespace.clone(),
            name: "*".into(),
            place: None,
            what: format!("as an AccessPolicy it would be refused: {first}"),
            is_stricter: false,
        });
        out.kept.insert(namespace);
    }
    out.notes.extend(checked.requests().map(|policy| Note {
        namespace: policy.namespace.to_string(),
        name: policy.document.to_string(),
        place: policy.issuers.first().map(|issuer| issuer.place.clone()),
        what: "a RequestAuthentication has no counterpart for one namespace: keep it, it loads beside AccessPolicies".into(),
        is_stricter: true,
    }));
    Ok(out)
}

struct Writer<'a> {
    scope: &'a Scope,
    lossy: bool,
    text: String,
    notes: Vec<Note>,
    is_impossible: bool,
}

impl Writer<'_> {
    fn note(&mut self, policy: &Policy, rule: Option<&str>, what: &str, is_stricter: bool) {
        let document = &policy.document;
        self.is_impossible |= !is_stricter;
        self.notes.push(Note {
            namespace: policy.namespace.to_string(),
            name: rule.map_or_else(|| document.to_string(), |rule| format!("{document}/{rule}")),
            place: policy.place.clone(),
            what: what.to_owned(),
            is_stricter,
        });
    }

    fn policy(&mut self, policy: &Policy) {
        let Some(Part::Written(action, enforcement)) = policy.istio else { return };
        let name = &policy.document;
        if !crate::check::is_name(name) {
            return self.note(
                policy,
                None,
                "the name of an AccessPolicy holds no dots and has at most 63 characters",
                false,
            );
        }
        if action == Action::Allow && enforcement == Enforcement::Shadow {
            return self.note(
                policy,
                None,
                "a dry-run ALLOW also tries what it would deny, which no AccessPolicy says",
                false,
            );
        }
        if policy.rules.is_empty() {
            self.text.push_str(&format!(
                "---\n# {name} allows nothing, and nothing is allowed where no rule allows it: it needs no document.\n"
            ));
            return;
        }
        let mut target = Vec::new();
        if policy.all {
            target.push("all: true".to_owned());
        }
        if !policy.selector.is_empty() {
            let labels: Vec<String> =
                policy.selector.iter().map(|(key, value)| format!("{key:?}: {value:?}")).collect();
            target.push(format!("selector: {{{}}}", labels.join(", ")));
        }
        let mut text = header(&policy.namespace, name);
        if enforcement == Enforcement::Shadow {
            text.push_str("  enforcement: Shadow\n");
        }
        if !target.is_empty() {
            text.push_str(&format!("  target: {{{}}}\n", target.join(", ")));
        }
        text.push_str(&format!("  action: {action}\n  rules:\n"));
        for (written, rule) in &policy.rules {
            let Some(clause) = &rule.istio else { continue };
            let mut rewriter = rule::Rewriter::new(action);
            let lines = rewriter.rule(clause);
            let rule::Rewriter { notes, .. } = rewriter;
            text.push_str(&format!("  - name: {}\n{lines}", written.rule));
            for (what, is_stricter) in notes {
                self.note(policy, Some(&written.rule), what, is_stricter);
                if is_stricter && self.lossy {
                    text.push_str(&format!("    # stricter than Istio's: {what}\n"));
                }
            }
        }
        self.text.push_str(&text);
    }

    /// What the namespace means without saying it.
    fn implied(&mut self, namespace: &str, all: &[&Policy]) {
        let in_ours = |policy: &&&Policy| policy.istio.is_none() && *policy.namespace == *namespace;
        if all.iter().any(|policy| in_ours(&policy)) {
            return;
        }
        let here = |policy: &&&Policy| {
            *policy.namespace == *namespace || *policy.namespace == *self.scope.root_namespace
        };
        let allows: Vec<&&Policy> = all
            .iter()
            .filter(here)
            .filter(|policy| policy.istio == Some(Part::Written(Action::Allow, Enforcement::Enforce)))
            .collect();
        if allows.iter().any(|policy| policy.selector.is_empty()) {
            return;
        }
        if let Some(policy) = allows.first() {
            return self.note(
                policy,
                None,
                "it closes the workloads that it selects and leaves the namespace's others open, which no AccessPolicy says",
                false,
            );
        }
        self.text.push_str(&format!(
            "{}  tier: Baseline\n  action: Allow\n  rules:\n  # As in Istio, what nothing denies is allowed to every peer of the mesh.\n  - name: implicit-allow\n",
            header(namespace, "istio")
        ));
    }
}

fn header(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n"
    )
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
