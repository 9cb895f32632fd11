//! The order of the fields at the top of a document: `apiVersion`, `kind`, `metadata`, `spec`, then others as they stand.

use std::collections::HashSet;

use super::lexemes::{Kind, Lexeme, lexemes};

const FIRST: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];

pub(super) fn rank(key: &str) -> usize {
    FIRST.iter().position(|known| *known == key).unwrap_or(FIRST.len())
}

/// The document with its fields in order. What stands before the first field is about the document and stays; comments
/// between two fields go with the second.
pub(super) fn ordered(text: &str) -> Option<String> {
    let Some(words) = lexemes(text, true) else { return Some(text.to_owned()) };
    let keys = keys(text, &words);
    let names: Vec<&str> = keys.iter().map(|word| &text[word.start..word.end]).collect();
    // References stand behind what they refer to, and blank lines at the end may be part of a text that keeps them.
    let is_odd = |word: &Lexeme| match word.kind {
        Kind::Property | Kind::Marker => true,
        Kind::Block => text[word.start..word.end].lines().next().is_some_and(|head| head.contains('+')),
        _ => false,
    };
    let is_document = FIRST[..2].iter().all(|known| names.contains(known));
    let is_ordered = names.is_sorted_by_key(|name| rank(name));
    let is_unique = names.iter().collect::<HashSet<_>>().len() == names.len();
    if !is_document || is_ordered || !is_unique || words.iter().any(is_odd) {
        return Some(text.to_owned());
    }
    let first = keys.first()?.start;
    let mut starts = vec![first];
    starts.extend(keys[1..].iter().map(|key| above(text, key.start)));
    let tail = above(text, text.len());
    let ends = starts[1..].iter().copied().chain([tail]);
    let mut fields: Vec<(usize, &str)> = names
        .iter()
        .map(|name| rank(name))
        .zip(starts.iter().zip(ends).map(|(start, end)| &text[*start..end]))
        .collect();
    fields.sort_by_key(|(rank, _)| *rank);
    let mut out = text[..first].to_owned();
    for (n, (_, field)) in fields.iter().enumerate() {
        out.push_str(if n == 0 { field.trim_start_matches('\n') } else { field });
    }
    out.push_str(&text[tail..]);
    Some(out)
}

/// The keys in the first column.
fn keys<'w>(text: &str, words: &'w [Lexeme]) -> Vec<&'w Lexeme> {
    let pairs = words.windows(2).filter(|pair| pair[0].kind == Kind::Scalar && pair[1].kind == Kind::Colon);
    pairs
        .map(|pair| &pair[0])
        .filter(|word| word.depth == 0 && (word.start == 0 || text[..word.start].ends_with('\n')))
        .collect()
}

/// Where comments in the first column and blank lines begin that stand directly above a place.
fn above(text: &str, mut at: usize) -> usize {
    loop {
        let before = &text[..at];
        let Some(before) = before.strip_suffix('\n') else { return at };
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        if !(before[start..].is_empty() || before[start..].starts_with('#')) {
            return at;
        }
        at = start;
    }
}
