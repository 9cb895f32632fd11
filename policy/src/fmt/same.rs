//! Whether two texts say the same, as the parser reads them.

use granit_parser::{Event, Options, Parser};

use super::lexemes::{Kind, lexemes};
use super::{is_written, order, pieces};

/// Equal values, tags, anchors, quotes and styles, document by document, and the same comments.
pub(super) fn says_the_same(old: &str, new: &str) -> bool {
    match (read(old), read(new)) {
        (Some(a), Some(b)) => a == b && comments(old) == comments(new),
        _ => false,
    }
}

fn read(text: &str) -> Option<Vec<Vec<Event<'_>>>> {
    pieces(text).into_iter().filter(|(_, piece)| is_written(piece)).map(|(_, piece)| nodes(piece)).collect()
}

/// What the parser says of a document, its fields at the top in order.
fn nodes(text: &str) -> Option<Vec<Event<'_>>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut all = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, _) = event.ok()?;
        if event.is_node() || matches!(event, Event::SequenceEnd | Event::MappingEnd) {
            all.push(event);
        }
    }
    if !matches!(all.first(), Some(Event::MappingStart(..))) {
        return Some(all);
    }
    let mut fields: Vec<Vec<Event<'_>>> = Vec::new();
    let (mut depth, mut parts) = (0_usize, 0_usize);
    let mut events = all.into_iter();
    let mut out: Vec<_> = events.next().into_iter().collect();
    for event in events {
        let change = match event {
            Event::MappingEnd | Event::SequenceEnd if depth == 0 => break,
            Event::MappingEnd | Event::SequenceEnd => -1,
            Event::MappingStart(..) | Event::SequenceStart(..) => 1,
            _ => 0,
        };
        if depth == 0 && parts % 2 == 0 {
            fields.push(Vec::new());
        }
        depth = depth.saturating_add_signed(change);
        parts += usize::from(depth == 0);
        fields.last_mut()?.push(event);
    }
    fields.sort_by_key(|field| match &field[0] {
        Event::Scalar(key, ..) => order::rank(key),
        _ => usize::MAX,
    });
    out.extend(fields.into_iter().flatten());
    Some(out)
}

/// The comments of a text, in no order.
fn comments(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for (_, piece) in pieces(text) {
        if !is_written(piece) {
            out.extend(piece.lines().map(str::trim).filter(|line| line.starts_with('#')).map(str::to_owned));
            out.extend(
                piece.lines().next().and_then(|line| line.split_once(" #")).map(|(_, rest)| rest.to_owned()),
            );
            continue;
        }
        let words = lexemes(piece, true);
        // Not understood here, so not touched but for its end.
        let Some(words) = words else {
            out.push(piece.trim_start_matches("---").trim().to_owned());
            continue;
        };
        let comments = words.iter().filter(|word| word.kind == Kind::Comment);
        out.extend(comments.map(|word| piece[word.start..word.end].trim_end().to_owned()));
    }
    out.sort_unstable();
    Some(out)
}
