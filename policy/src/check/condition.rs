//! `when.cel`: a condition, with the place of every mistake in it.

use super::target::field_mistake;
use super::{Page, scalar};
use crate::cond::{Condition, Span};
use crate::doc::{Sp, WhenDoc};

/// Checks the condition of `when`.
pub(super) fn condition(page: &mut Page<'_>, entry: &Sp<WhenDoc>) -> Option<Condition> {
    let WhenDoc { time: _, cel } = &entry.value;
    let cel = cel.as_ref()?;
    if cel.value.trim().is_empty() {
        page.error_with(cel.referenced, "`cel` is empty", "write a condition, or leave it out");
        return None;
    }
    let condition = match Condition::parse(&cel.value) {
        Ok(condition) => condition,
        Err(mistake) => {
            error(page, cel, mistake.at, mistake.message, mistake.help);
            return None;
        }
    };
    for (name, at) in condition.headers() {
        if let Some((message, way)) = field_mistake(name) {
            error(page, cel, *at, message, way);
        }
    }
    Some(condition)
}

fn error(page: &mut Page<'_>, cel: &Sp<String>, at: Span, message: String, help: String) {
    let start = page.place(cel.referenced);
    let (place, len) = scalar::place(page.text, &start, &cel.value, at.start, at.end);
    page.error_at(&place, len, message, help);
}
