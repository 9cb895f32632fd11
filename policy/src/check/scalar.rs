//! Places within a scalar of YAML, for languages that are written in one.

use crate::diagnostic::Place;
use crate::text::Text;

/// The place in the file of the bytes from `from` to `to` of a scalar's value, and how many characters they have on their
/// first line. `start` is where the scalar itself stands. Where its text cannot be followed, the scalar itself.
pub(super) fn place(text: &Text<'_>, start: &Place, value: &str, from: usize, to: usize) -> (Place, usize) {
    // What is missing at the end is missing behind the last word.
    let from = from.min(value.trim_end().len());
    let Some((line, column)) = walk(text, start, value, from) else { return (start.clone(), 1) };
    let wanted = value.get(from..to.min(value.len())).unwrap_or_default();
    let len = wanted.chars().take_while(|c| *c != '\n').count().max(1);
    (Place { file: start.file.clone(), line, column }, len)
}

/// Where a scalar's characters stand, one after the other.
struct Walk<'t> {
    text: &'t Text<'t>,
    line: usize,
    /// Of the line, in characters.
    rest: Vec<char>,
    at: usize,
}

impl Walk<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    /// Moves to where the next line that holds something begins to.
    fn next_line(&mut self) -> Option<()> {
        self.line += 1;
        self.rest = self.text.line(self.line)?.chars().collect();
        self.at = 0;
        self.skip_space();
        Some(())
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Moves past the text of one character of the value. Space counts for nothing: how much of it is the value's differs
    /// from style to style, and so does what becomes of breaks.
    fn follow(&mut self, style: char, c: char) -> Option<()> {
        let is_escape = style == '"' && self.peek() == Some('\\');
        if (is_space(c) || c == '\n') && !is_escape {
            match self.peek() {
                None => self.next_line()?,
                Some(found) if is_space(found) => self.at += 1,
                Some(_) => {}
            }
            return Some(());
        }
        self.reach()?;
        match (style, self.peek()?) {
            ('"', '\\') => {
                self.at += match self.rest.get(self.at + 1)? {
                    'x' => 4,
                    'u' => 6,
                    'U' => 10,
                    _ => 2,
                };
            }
            ('\'', '\'') if c == '\'' => self.at += 2,
            (_, written) if written == c => self.at += 1,
            _ => return None,
        }
        Some(())
    }

    /// Moves to what is written next.
    fn reach(&mut self) -> Option<()> {
        while self.rest.get(self.at..).unwrap_or_default().iter().all(|c| is_space(*c)) {
            self.next_line()?;
        }
        Some(())
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

fn walk(text: &Text<'_>, start: &Place, value: &str, from: usize) -> Option<(usize, usize)> {
    let rest = text.line(start.line)?.chars().collect();
    let mut walk = Walk { text, line: start.line, rest, at: start.column.checked_sub(1)? };
    let style = walk.peek()?;
    match style {
        '\'' | '"' => walk.at += 1,
        // The parser points at what is inside of a block, or at its sign.
        '|' | '>' => walk.next_line()?,
        _ => {}
    }
    for c in value.get(..from)?.chars() {
        walk.follow(style, c)?;
    }
    if value.get(from..)?.starts_with(|c: char| !c.is_whitespace()) {
        walk.reach()?;
        if walk.peek().is_some_and(is_space) {
            walk.skip_space();
        }
    }
    Some((walk.line, walk.at + 1))
}
