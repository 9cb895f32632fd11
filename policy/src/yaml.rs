//! Strict YAML: unknown fields, duplicate keys and bombs are refused, and every mistake has its place.
//!
//! The sidecar's and the control plane's configuration files are read with it too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use granit_parser::{Scanner, StrInput, TokenType};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Visitor};
use serde_saphyr::Error;

pub use crate::yaml_spanned::{Location, Spanned};

pub use crate::yaml_pieces::{Piece, pieces};

use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::text::{self, Text};
use crate::{yaml_erased, yaml_limits, yaml_words};

/// A configuration file or a file of documents larger than this is not one.
pub const MAX_FILE: usize = 8 * 1024 * 1024;

/// Parses one document. Give values that are checked later the type [`Spanned`], and point at them with [`at`].
pub fn parse<T: DeserializeOwned>(file: &SourceFile) -> Result<T, Diagnostics> {
    let text = Text::new(file, text_of(file)?);
    parse_piece(&text, text.text, 1).map_err(Diagnostics::from)
}

/// A finding about a value that parsed but is wrong.
pub fn at<T>(file: &SourceFile, value: &Spanned<T>, message: impl Into<String>) -> Diagnostic {
    let text = Text::new(file, text_of(file).unwrap_or(""));
    located(&text, 1, value.referenced, message.into())
}

/// The text of a file, within bounds and in UTF-8, without the byte order mark that some editors begin it with: columns are
/// counted as they show them.
pub(crate) fn text_of(file: &SourceFile) -> Result<&str, Diagnostic> {
    if file.text.len() > MAX_FILE {
        return Err(Diagnostic::whole(&file.name, format!("the file is larger than {} MiB", MAX_FILE >> 20))
            .with_help("split it"));
    }
    std::str::from_utf8(&file.text).map(unmarked).map_err(|error| {
        let good = std::str::from_utf8(&file.text[..error.valid_up_to()]).unwrap_or("");
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let place = Place { file: file.name.as_str().into(), line, column };
        let readable = String::from_utf8_lossy(&file.text);
        Diagnostic::at(&place, &Text::new(file, &readable), 1, "the file is not UTF-8 from here on")
            .with_help("save it as UTF-8 text")
    })
}

fn unmarked(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Parses a piece of a file's text as one document; `first_line` is its first line within the file.
pub(crate) fn parse_piece<T: DeserializeOwned>(
    text: &Text<'_>,
    piece: &str,
    first_line: usize,
) -> Result<T, Diagnostic> {
    refuse_tags(text, piece, first_line)?;
    read_piece(text, piece, first_line)
}

/// The same for documents of whatever kind, whose tags are their readers' affair.
pub(crate) fn read_piece<T: DeserializeOwned>(
    text: &Text<'_>,
    piece: &str,
    first_line: usize,
) -> Result<T, Diagnostic> {
    refuse_directives(text, piece, first_line)?;
    yaml_erased::from_str(piece, yaml_limits::options()).map_err(|error| translate(text, first_line, &error))
}

/// `%YAML 1.1` would change what words mean (`yes`, `010`), and `%TAG` what tags do; nobody needs either here.
fn refuse_directives(text: &Text<'_>, piece: &str, first_line: usize) -> Result<(), Diagnostic> {
    let content = text::lines(piece).enumerate().find(|(_, line)| !text::is_empty_line(line));
    let Some((n, line)) = content.filter(|(_, line)| line.starts_with('%')) else { return Ok(()) };
    let place = Place { file: text.file.clone(), line: first_line + n, column: 1 };
    let len = line.trim_end().chars().count();
    Err(Diagnostic::at(&place, text, len, "directives (`%YAML`, `%TAG`) are not read here")
        .with_help("leave the line out: documents are YAML 1.2"))
}

/// Readers of YAML obey some tags and pass over others: what a document says would depend on who reads it.
fn refuse_tags(text: &Text<'_>, piece: &str, first_line: usize) -> Result<(), Diagnostic> {
    if !piece.contains('!') {
        return Ok(());
    }
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    // What cannot be read ends it: the parser comes to the same place, and says what is wrong.
    let tokens = Scanner::with_options(StrInput::new(piece), options).map_while(Result::ok);
    for token in tokens {
        let (span, TokenType::Tag(..)) = token.into_parts() else { continue };
        let tag = span.byte_range().and_then(|range| piece.get(range)).unwrap_or("!");
        let (line, column) = (first_line - 1 + span.start.line(), span.start.col() + 1);
        let place = Place { file: text.file.clone(), line, column };
        let tag = tag.trim_end();
        let message = format!("`{}` is a tag, and tags are not read here", printable(tag));
        return Err(Diagnostic::at(&place, text, tag.chars().count(), message).with_help(
            "leave it out; a text that begins with `!`, or that looks like a number, stands in quotes",
        ));
    }
    Ok(())
}

fn translate(text: &Text<'_>, first_line: usize, error: &Error) -> Diagnostic {
    let error = error.without_snippet();
    let location = error.location().map_or(Location::UNKNOWN, Location::from);
    // What is wrong with what a reference stands for is told where the reference stands.
    let mut cause = error;
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    let (message, help) = match cause {
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown field `{}`", printable(field)), Some(suggest(field, expected)))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("unknown value `{}`", printable(variant)), Some(suggest(variant, expected)))
        }
        Error::SerdeMissingField { field, .. } => {
            (format!("the field `{field}` is missing"), Some(yaml_words::missing(field)))
        }
        Error::DuplicateMappingKey { key, .. } => (
            format!("the key `{}` stands here twice", printable(key.as_deref().unwrap_or("?"))),
            Some("keep one of them".to_owned()),
        ),
        // Ports are all that is as wide as this, here and in configurations.
        Error::InvalidScalar { ty: "u16", .. } => (
            "a port is a number from 1 to 65535".to_owned(),
            Some("write the number, such as 8080; names of ports are not known here".to_owned()),
        ),
        Error::MultipleDocuments { .. } => ("more than one document where one is expected".to_owned(), None),
        other => yaml_limits::exceeded(other).unwrap_or_else(|| plain_message(other)),
    };
    let mut diagnostic = located(text, first_line, location, message);
    // The parser stops before what it could not read.
    if ["found a tab", "start with a tab"].iter().any(|words| error.to_string().contains(words))
        && let Some(tab) = first_tab(text, diagnostic.line)
    {
        diagnostic = Diagnostic::at(&tab, text, 1, diagnostic.message);
    }
    match help {
        Some(help) => diagnostic.with_help(help),
        None => diagnostic,
    }
}

/// The library's own sentence, without the place that it appends.
fn plain_message(error: &Error) -> (String, Option<String>) {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or("not valid YAML");
    let cut = first.find(" at line ").unwrap_or(first.len());
    yaml_words::plain(&printable(&first[..cut]))
}

/// The first tab among what begins a line, from a line on.
fn first_tab(text: &Text<'_>, from: usize) -> Option<Place> {
    let lines = (from..).map_while(|number| Some((number, text.line(number)?)));
    lines
        .filter_map(|(line, written)| {
            let column = 1 + written.chars().take_while(|c| *c == ' ').count();
            let is_tab = written.chars().nth(column - 1) == Some('\t');
            is_tab.then(|| Place { file: text.file.clone(), line, column })
        })
        .next()
}

pub(crate) fn located(text: &Text<'_>, first_line: usize, location: Location, message: String) -> Diagnostic {
    let place = match location.line() {
        // The document as a whole: its first words stand for it.
        0 => text.first_words(first_line),
        _ => Some(text.within(place(&text.file, first_line, location))),
    };
    let Some(place) = place else { return Diagnostic::whole(&text.file, message) };
    Diagnostic::at(&place, text, location.len(), message)
}

/// The place in the file of a location in one of its documents.
pub(crate) fn place(file: &Arc<str>, first_line: usize, location: Location) -> Place {
    Place {
        file: file.clone(),
        line: (first_line - 1).saturating_add(location.line()),
        column: location.column(),
    }
}

/// "did you mean" and what there is to choose from, as the way out of a word that is not known.
pub fn suggest(word: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    match closest(word, known) {
        Some(candidate) => format!("did you mean `{candidate}`? (known: {list})"),
        None if known.is_empty() => "no field is known here".to_owned(),
        None => format!("known: {list}"),
    }
}

/// The proposal alone, for words that are too many to be listed.
pub(crate) fn nearest(word: &str, known: &[&str]) -> Option<String> {
    closest(word, known).map(|candidate| format!("did you mean `{candidate}`?"))
}

pub(crate) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let nearest =
        known.iter().map(|candidate| (distance(&word, &candidate.to_lowercase()), *candidate)).min();
    nearest
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words, swapped neighbours counting as one; long words are cut, they are no typing mistakes.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Words from a file go to terminals: no control characters, no endless lines.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(200).map(|c| if is_unseen(c) { '\u{fffd}' } else { c }).collect();
    if out.len() < text.len() && text.chars().nth(200).is_some() {
        out.push_str("...");
    }
    out
}

/// Characters that a reader does not see, or that move what is seen: control characters, those without width, and those
/// that turn the direction of text (CVE-2021-42574). A name that holds one is not the name that it looks like.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A length of time in a file: `0s`, `500ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span(pub Duration);

impl Span {
    /// Parses `<whole number><ms|s|m|h|d>`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        number.checked_mul(millis).map(|millis| Self(Duration::from_millis(millis)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as 500ms, 30s, 5m, 1h or 7d")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text)
                    .ok_or_else(|| E::custom("a length of time is written as 500ms, 30s, 5m, 1h or 7d"))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
