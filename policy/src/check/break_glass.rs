//! A policy that is marked to break the glass: it must end, and say why it was wanted.

use std::sync::Arc;

use super::Page;
use crate::break_glass::{BREAK_GLASS, BreakGlass, MAX_OPEN, MAX_REASON, OPENED_BY, REASON};
use crate::doc::{AccessSpec, Document};
use crate::rule::Rule;
use crate::verdict::{Action, Enforcement, RuleName};
use crate::yaml::is_unseen;

/// What a marked policy says of itself; `None` for all others.
pub(super) fn marked(
    page: &mut Page<'_>,
    document: &Document<AccessSpec>,
    rules: &[(Arc<RuleName>, Arc<Rule>)],
) -> Option<BreakGlass> {
    let annotations = &document.metadata.annotations;
    let mark = annotations.get(BREAK_GLASS)?;
    let at = document.metadata.name.referenced;
    if mark != "true" {
        page.error_with(
            at,
            format!("the annotation `{BREAK_GLASS}` can only be \"true\""),
            "leave it out of an ordinary policy",
        );
        return None;
    }
    let said = |key: &str| annotations.get(key).map(String::as_str).map(str::trim).unwrap_or_default();
    for (key, text) in [(REASON, said(REASON)), (OPENED_BY, said(OPENED_BY))] {
        if text.len() > MAX_REASON || text.contains(is_unseen) {
            page.error_with(
                at,
                format!("the annotation `{key}` holds characters that nobody sees, or more than {MAX_REASON} bytes"),
                "it is written to logs: one short line",
            );
        }
    }
    if said(REASON).is_empty() {
        page.error_with(
            at,
            "a policy that breaks the glass says why",
            format!("write the annotation `{REASON}`"),
        );
    }
    if rules.iter().any(|(_, rule)| rule.action != Action::Allow || rule.enforcement != Enforcement::Enforce)
    {
        page.error(document.spec.value.action.referenced, "a policy that breaks the glass is an Allow");
    }
    let mut span: Option<(i64, i64)> = None;
    for (written, (_, rule)) in document.spec.value.rules.value.iter().zip(rules) {
        let at = written.value.name.referenced;
        if rule.from.iter().flatten().any(|peer| peer.unauthenticated) {
            page.error(at, "breaking the glass admits nobody without an identity");
        }
        let window = rule.window.as_ref();
        let ends = window.and_then(|window| Some((window.not_before?, window.not_after?)));
        let Some((start, end)) = ends else {
            page.error_with(
                at,
                "a rule that breaks the glass begins and ends by itself",
                "write `when: {time: {notBefore: …, notAfter: …}}`; `postern policy open` does",
            );
            continue;
        };
        let (start, end) = (start.as_second(), end.as_second());
        if end.saturating_sub(start) > i64::try_from(MAX_OPEN.as_secs()).unwrap_or(i64::MAX) {
            page.error_with(
                at,
                format!("glass stays broken for {} h at most", MAX_OPEN.as_secs() / 3_600),
                "what is wanted for longer is an ordinary policy",
            );
        }
        let (first, last) = span.unwrap_or((start, end));
        span = Some((first.min(start), last.max(end)));
    }
    let (from, until) = span?;
    let by = Some(said(OPENED_BY)).filter(|text| !text.is_empty()).map(Into::into);
    Some(BreakGlass { reason: said(REASON).into(), by, from, until })
}
