//! Indentation, blanks between words, blank lines. Only blanks and line breaks are put in or taken out.

use super::lexemes::{Kind, Lexeme, lexemes, line_end};

/// Blanks that become others.
struct Edit {
    start: usize,
    end: usize,
    new: String,
}

/// A document in its layout; `None` if its words are not understood.
pub(super) fn laid_out(text: &str) -> Option<String> {
    let mut text = text.to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // Columns stay if something in the document would have to be rewritten to move.
    let (words, keep) = match lexemes(&text, false) {
        Some(words) => (words, false),
        None => match lexemes(&text, true) {
            Some(words) => (words, true),
            None => return Some(text),
        },
    };
    let mut edits = Vec::new();
    let mut held = vec![false; text.matches('\n').count() + 1];
    let starts: Vec<usize> =
        std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line_of = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    let mut hold = |from: usize, to: usize| {
        held[line_of(from)..line_of(to)].fill(true);
    };
    // Flow collections of several lines, whose inside only moves as a whole.
    let mut flow: Option<(isize, bool)> = None;
    for (n, word) in words.iter().enumerate() {
        let line = line_of(word.start);
        let is_first = text[starts[line]..word.start].trim_matches([' ', '\t']).is_empty();
        let moved = word.column.cast_signed() - (word.start - starts[line]).cast_signed();
        let inside = word.depth > 0 || word.kind == Kind::Close && flow.is_some();
        let mut delta = if is_first && !keep { moved } else { word.delta };
        if inside && let Some((by, _)) = flow {
            delta = by;
        }
        if is_first && !keep {
            let old = word.start - starts[line];
            edits.push(Edit {
                start: starts[line],
                end: word.start,
                new: blanks(old.saturating_add_signed(delta)),
            });
        }
        if word.kind == Kind::Open && word.depth == 0 {
            let end = closing(&words, n)?;
            let is_long = text[word.start..end].contains('\n');
            flow = Some((delta, is_long));
            if is_long {
                hold(word.start, end);
            }
        }
        let is_long = text[word.start..word.end].contains('\n');
        if is_long || word.kind == Kind::Block {
            let past = if word.kind == Kind::Block { word.end + 1 } else { word.end };
            hold(word.start, past.min(text.len()));
            for start in &starts[line + 1..=line_of(word.end)] {
                shift(&text, *start, delta, &mut edits);
            }
        }
        if let Some(next) = words.get(n + 1) {
            let long_flow =
                flow.is_some_and(|(_, is_long)| is_long) && (next.depth > 0 || next.kind == Kind::Close);
            if let Some(gap) = gap(word, next, keep).filter(|_| !long_flow)
                && text[word.end..next.start].bytes().all(|byte| matches!(byte, b' ' | b'\t'))
            {
                edits.push(Edit { start: word.end, end: next.start, new: gap.to_owned() });
            }
        }
        if word.kind == Kind::Close && word.depth == 0 {
            flow = None;
        }
    }
    lines(&text, &starts, &held, &mut edits);
    Some(apply(&text, edits))
}

fn closing(words: &[Lexeme], open: usize) -> Option<usize> {
    words[open..].iter().find(|word| word.kind == Kind::Close && word.depth == 0).map(|word| word.end)
}

fn blanks(count: usize) -> String {
    " ".repeat(count)
}

/// Moves a line within a word of several lines. What begins further left than it moves is left for the comparison to find.
fn shift(text: &str, start: usize, delta: isize, edits: &mut Vec<Edit>) {
    let line = &text[start..line_end(text, start)];
    let old = line.len() - line.trim_start_matches(' ').len();
    if !line.is_empty() && delta != 0 {
        edits.push(Edit { start, end: start + old, new: blanks(old.saturating_add_signed(delta)) });
    }
}

/// What stands between two words of one line; `None`: what stands there now.
fn gap(word: &Lexeme, next: &Lexeme, keep: bool) -> Option<&'static str> {
    use Kind::{Close, Colon, Comma, Comment, Dash, Open, Property, Scalar};
    match (word.kind, next.kind) {
        // Comments are often written one below the other.
        (_, Comment) | (Property, _) | (Colon, Close | Comma) => None,
        (Dash, _) => (!keep).then_some(" "),
        (Scalar | Close, Colon) => Some(""),
        (_, Colon) => None,
        (Open, _) | (_, Close | Comma) => Some(""),
        (Colon | Comma, _) => Some(" "),
        _ => None,
    }
}

/// Blanks at the end of lines, and lines of blanks: one at most, none at the start and the end.
fn lines(text: &str, starts: &[usize], held: &[bool], edits: &mut Vec<Edit>) {
    let mut blank = true;
    let mut last = None;
    for (n, start) in starts.iter().copied().enumerate().filter(|(_, start)| *start < text.len()) {
        let end = line_end(text, start);
        let line = &text[start..end];
        let is_blank = line.trim_matches([' ', '\t']).is_empty();
        if held[n] {
            (blank, last) = (false, None);
            continue;
        }
        if is_blank {
            let new = if blank { "" } else { "\n" };
            edits.push(Edit { start, end: end + 1, new: new.to_owned() });
            if !blank {
                last = Some(edits.len() - 1);
            }
            blank = true;
            continue;
        }
        (blank, last) = (false, None);
        let written = start + line.trim_end_matches([' ', '\t']).len();
        if written < end {
            edits.push(Edit { start: written, end, new: String::new() });
        }
    }
    if let Some(last) = last {
        edits[last].new.clear();
    }
}

fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.start, edit.end));
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        // Two that meet would be a mistake here; the comparison finds what comes of it.
        if edit.start >= at {
            out.push_str(&text[at..edit.start]);
            out.push_str(&edit.new);
            at = edit.end;
        }
    }
    out.push_str(&text[at..]);
    out
}
