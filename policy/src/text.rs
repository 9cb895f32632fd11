//! A file's text, and the way to a place in it.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::diagnostic::{Place, SourceFile};

/// A file's text. Its lines are found once: findings are many, and each would walk the file for its own.
pub(crate) struct Text<'a> {
    pub(crate) file: Arc<str>,
    pub(crate) text: &'a str,
    starts: OnceCell<Vec<usize>>,
}

impl<'a> Text<'a> {
    pub(crate) fn new(file: &SourceFile, text: &'a str) -> Self {
        Self { file: file.name.as_str().into(), text, starts: OnceCell::new() }
    }

    /// A line, counted from 1, without its break.
    pub(crate) fn line(&self, number: usize) -> Option<&'a str> {
        let starts = self.starts();
        let start = *starts.get(number.checked_sub(1)?)?;
        let end = starts.get(number).copied().unwrap_or(self.text.len());
        Some(self.text[start..end].trim_end_matches(['\r', '\n']))
    }

    /// Where the first words stand, from a line on.
    pub(crate) fn first_words(&self, first_line: usize) -> Option<Place> {
        let number = (first_line..=self.starts().len())
            .find(|number| self.line(*number).is_some_and(|line| !is_empty_line(line)))?;
        let line = self.line(number)?;
        let column = 1 + line.chars().take_while(|c| c.is_whitespace()).count();
        Some(Place { file: self.file.clone(), line: number, column })
    }

    /// The place itself, or for one after the last line the end of what is written: there is where something is missing.
    pub(crate) fn within(&self, place: Place) -> Place {
        if self.line(place.line).is_some() {
            return place;
        }
        let written = |number: &usize| self.line(*number).is_some_and(|line| !line.trim().is_empty());
        match (1..=self.starts().len()).rev().find(written) {
            Some(number) => {
                let column = 1 + self.line(number).unwrap_or_default().trim_end().chars().count();
                Place { file: place.file, line: number, column }
            }
            None => place,
        }
    }

    fn starts(&self) -> &[usize] {
        self.starts.get_or_init(|| {
            let mut at = 0;
            let mut starts = Vec::new();
            for line in lines(self.text) {
                starts.push(at);
                at += line.len();
            }
            starts
        })
    }
}

/// Lines with their breaks, cut as YAML cuts them: after a line feed, a carriage return, or both (YAML 1.2.2, 5.4).
pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = match rest.find(['\r', '\n']) {
            Some(at) if rest[at..].starts_with("\r\n") => at + 2,
            Some(at) => at + 1,
            None if rest.is_empty() => return None,
            None => rest.len(),
        };
        let (line, after) = rest.split_at(end);
        rest = after;
        Some(line)
    })
}

/// Whether a line holds nothing but a marker of documents, a comment or space.
pub(crate) fn is_empty_line(line: &str) -> bool {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line).trim();
    line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_in_yaml() {
        for text in ["a\nb\n\nc", "a\r\nb\r\n\r\nc", "a\rb\r\rc", "a\nb\r\r\nc\n"] {
            let file = SourceFile { name: "f".into(), text: text.into() };
            let text = Text::new(&file, text);
            let found: Vec<_> = (0..=5).map(|n| text.line(n)).collect();
            assert_eq!(found, [None, Some("a"), Some("b"), Some(""), Some("c"), None], "{:?}", text.text);
        }
        assert_eq!(lines("").count(), 0);
    }
}
