//! One way to write a document: what `postern policy fmt` does to a file.
//!
//! Only blanks, line breaks, bare document markers and the order of the fields at the top change. Every byte that carries
//! meaning, and every comment, is taken over as it stands. That is not trusted: the result is read again with the parser
//! that loads documents, and a file whose result would differ in one value, tag, quote or comment is left alone.

mod layout;
mod lexemes;
mod order;
mod same;

use serde::de::IgnoredAny;

use crate::diagnostic::{Diagnostic, Diagnostics, SourceFile};
use crate::text::{self, Text};
use crate::yaml;

/// A file as it is written canonically.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Formatted {
    /// Its text; as it was, if nothing is to be changed or nothing can be changed safely.
    pub text: String,
    /// Why the file was left alone, if it was.
    pub left: Option<Diagnostic>,
}

/// Formats a file of documents, of whatever kinds. Mistakes are those of YAML; what a document says is not looked at.
pub fn format(file: &SourceFile) -> Result<Formatted, Diagnostics> {
    let text = yaml::text_of(file)?;
    let read = Text::new(file, text);
    let unified = unified(text);
    let mut errors = Diagnostics::new();
    for (first_line, piece) in pieces(&unified) {
        if errors.is_full() {
            break;
        }
        if is_written(piece)
            && let Err(error) = yaml::read_piece::<IgnoredAny>(&read, piece, first_line)
        {
            errors.push(error);
        }
    }
    if !errors.is_empty() {
        return Err(errors.finished());
    }
    match settled(&unified) {
        Some(text) => Ok(Formatted { text, left: None }),
        None => {
            let left =
                Diagnostic::whole(&file.name, "left as it is: no other way to write it is surely the same")
                    .with_help("write its unusual parts in a simpler way")
                    .warning();
            Ok(Formatted { text: String::from_utf8_lossy(&file.text).into_owned(), left: Some(left) })
        }
    }
}

/// The canonical text, if it says the same and is its own canonical text.
fn settled(text: &str) -> Option<String> {
    let new = canonical(text)?;
    (same::says_the_same(text, &new) && canonical(&new).as_deref() == Some(&new)).then_some(new)
}

/// Line feeds as line ends, which is how YAML reads every break (YAML 1.2.2, 5.4); no byte order mark.
fn unified(text: &str) -> String {
    text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n")
}

/// The documents of a text, each with its first line. Unlike those that are loaded, with what holds comments only.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let (mut out, mut start, mut first_line, mut at) = (Vec::new(), 0, 1, 0);
    for (n, line) in text::lines(text).enumerate() {
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n']));
        if is_marker && at > start {
            out.push((first_line, &text[start..at]));
            (start, first_line) = (at, n + 1);
        }
        at += line.len();
    }
    out.push((first_line, &text[start..]));
    out
}

/// Whether anything is written that a parser sees.
fn is_written(piece: &str) -> bool {
    !text::lines(piece).all(text::is_empty_line)
}

fn canonical(text: &str) -> Option<String> {
    let mut out = String::new();
    for (_, piece) in pieces(text) {
        let bare = piece.lines().next().is_some_and(|line| line.trim_end() == "---");
        let body = if bare { piece.split_once('\n').map_or("", |(_, body)| body) } else { piece };
        // Nothing between two markers is no document.
        if body.trim().is_empty() {
            continue;
        }
        let body = if is_written(body) { order::ordered(&layout::laid_out(body)?)? } else { comments(body) };
        if bare && !out.is_empty() {
            out.push_str("---\n");
        }
        out.push_str(&body);
    }
    Some(out)
}

/// A document of comments: at the left, in groups that one line parts.
fn comments(body: &str) -> String {
    let mut out = String::new();
    let mut blank = false;
    for line in body.lines().map(str::trim) {
        if line.is_empty() {
            blank = !out.is_empty();
            continue;
        }
        if std::mem::take(&mut blank) {
            out.push('\n');
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
#[path = "fmt/tests.rs"]
mod tests;
