//! `invariants` of a PolicyTest.

use std::collections::HashSet;

use super::{Page, Rules, access};
use crate::doc::{ClaimedDoc, InvariantDoc, List, Sp};
use crate::prove::Invariant;
use crate::rule::Rule;
use crate::verdict::{Action, Enforcement, Tier};
use crate::yaml;

/// Checks them; `own` is the document's namespace.
pub(super) fn invariants(
    page: &mut Page<'_>,
    list: &List<InvariantDoc>,
    own: &str,
    rules: &Rules<'_>,
) -> Vec<Invariant> {
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(list.value.len());
    for entry in page.items(list, "invariants") {
        let InvariantDoc { name, never, always } = &entry.value;
        let line = page.title(name, "an invariant");
        if !seen.insert(line) {
            page.error_with(
                name.referenced,
                format!("the invariant `{}` stands here twice", yaml::printable(line)),
                "give each its own name",
            );
        }
        let claimed = match (never, always) {
            (Some(never), None) => claim(page, never, Action::Deny, own, rules),
            (None, Some(always)) => claim(page, always, Action::Allow, own, rules),
            (Some(_), Some(second)) => {
                page.error_with(
                    second.referenced,
                    "an invariant says `never` or `always`",
                    "write two invariants",
                );
                continue;
            }
            (None, None) => {
                page.error_with(
                    entry.referenced,
                    "this invariant claims nothing",
                    "write `never` or `always`, and in it `from` and `to` as in a rule",
                );
                continue;
            }
        };
        out.push(Invariant { name: line.into(), place: page.place(name.referenced), rule: claimed });
    }
    out
}

/// `never` is read as a Deny is, all that it does not leave out included; `always` as an Allow.
fn claim(page: &mut Page<'_>, entry: &Sp<ClaimedDoc>, action: Action, own: &str, rules: &Rules<'_>) -> Rule {
    let ClaimedDoc { from, to } = &entry.value;
    // Warnings about rules that open too much are not about claims.
    let warnings = std::mem::take(&mut page.warnings);
    let rule = Rule {
        action,
        tier: Tier::App,
        enforcement: Enforcement::Enforce,
        target_ports: None,
        from: from.as_ref().map(|list| access::peers(page, list, own, action, rules)),
        to: to.as_ref().map(|list| access::targets(page, list, action, rules)),
        window: None,
        condition: None,
        istio: None,
    };
    page.warnings = warnings;
    for peer in from.iter().flat_map(|list| &list.value) {
        let not = peer.value.not.as_ref().and_then(|not| not.value.jwt.as_ref());
        for token in peer.value.jwt.as_ref().into_iter().chain(not) {
            page.error_with(
                token.referenced,
                "an invariant cannot ask for tokens",
                "leave `jwt` out: it then holds whatever tokens there are",
            );
        }
    }
    for target in to.iter().flat_map(|list| &list.value) {
        if let Some(headers) = &target.value.headers {
            page.error_with(
                headers.referenced,
                "an invariant cannot ask for header fields",
                "leave `headers` out: it then holds whatever they are",
            );
        }
    }
    rule
}
