//! What is written in a document, word by word, and in which column its line shall begin.
//!
//! The parser's own scanner finds words and structure; what it does not give - the indicators `-` and `:`, comments, heads of
//! block scalars - stands between its words, and nothing else does.

use granit_parser::{Options, ScalarStyle, Scanner, StrInput, TokenType};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Dash,
    Colon,
    Scalar,
    /// A block scalar, from its head to its last line.
    Block,
    /// An anchor, an alias or a tag: the blanks behind it are left alone.
    Property,
    Open,
    Close,
    Comma,
    Comment,
    /// `---` or `...`.
    Marker,
}

/// A word.
#[derive(Debug)]
pub(super) struct Lexeme {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The column in which its line begins, if it is the first there.
    pub(super) column: usize,
    /// By how much what belongs to the same collection moves.
    pub(super) delta: isize,
    /// Flow collections around it.
    pub(super) depth: usize,
}

#[derive(Clone, Copy)]
struct Collection {
    old: usize,
    new: usize,
    is_map: bool,
    /// In a list that stands in its key's column.
    in_item: bool,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Whether everything keeps its column.
    keep: bool,
    open: Vec<Collection>,
    /// Those around the last word that is no comment.
    before: Vec<(usize, usize)>,
    depth: usize,
    key: Option<usize>,
    /// The line that was seen last, and how far: a line can be the whole file.
    line_start: usize,
    seen: usize,
    found: Vec<Lexeme>,
}

/// The words of a document; `None` if it is written in a way that is not understood here. With `keep`, columns are those of
/// the text.
pub(super) fn lexemes(text: &str, keep: bool) -> Option<Vec<Lexeme>> {
    let mut reader = Reader {
        text,
        at: 0,
        keep,
        open: Vec::new(),
        before: Vec::new(),
        depth: 0,
        key: None,
        line_start: 0,
        seen: 0,
        found: Vec::new(),
    };
    let mut options = Options::default();
    options.set_emit_comments(false);
    for token in Scanner::with_options(StrInput::new(text), options) {
        let (span, token) = token.ok()?.into_parts();
        reader.take(span.byte_range()?, span.start.col(), &token)?;
    }
    // Comments at the end.
    reader.gap(text.len(), None)?;
    Some(reader.found)
}

impl Reader<'_> {
    fn take(&mut self, range: std::ops::Range<usize>, column: usize, token: &TokenType<'_>) -> Option<()> {
        match token {
            TokenType::StreamStart | TokenType::StreamEnd => {}
            TokenType::BlockSequenceStart => self.begin(column, false),
            TokenType::BlockMappingStart => self.begin(column, true),
            TokenType::BlockEnd => {
                self.open.pop()?;
            }
            TokenType::BlockEntry => {
                let top = self.open.last_mut()?;
                top.in_item = top.is_map;
                let column = top.new;
                self.indicator('-', Kind::Dash, column)?;
            }
            TokenType::Key => {
                // `?` begins a key of any shape, and is left to people.
                if self.is_explicit_key() {
                    return None;
                }
                if self.depth == 0 {
                    let top = self.open.last_mut()?;
                    top.in_item = false;
                    self.key = Some(top.new);
                }
            }
            TokenType::Value => {
                let column = self.value_column();
                self.indicator(':', Kind::Colon, column)?;
            }
            TokenType::DocumentStart | TokenType::DocumentEnd => self.word(range, Kind::Marker, Some(0))?,
            TokenType::FlowSequenceStart | TokenType::FlowMappingStart => {
                self.word(range, Kind::Open, None)?;
                self.depth += 1;
            }
            TokenType::FlowSequenceEnd | TokenType::FlowMappingEnd => {
                self.depth = self.depth.checked_sub(1)?;
                self.word(range, Kind::Close, None)?;
            }
            TokenType::FlowEntry => self.word(range, Kind::Comma, None)?,
            TokenType::Alias(_) | TokenType::Anchor(_) | TokenType::Tag(..) => {
                self.word(range, Kind::Property, None)?;
            }
            TokenType::Scalar(ScalarStyle::Literal | ScalarStyle::Folded, _) => self.block_scalar(&range)?,
            TokenType::Scalar(..) => self.word(range, Kind::Scalar, None)?,
            _ => return None,
        }
        Some(())
    }

    fn begin(&mut self, old: usize, is_map: bool) {
        let new = match self.open.last() {
            _ if self.keep => old,
            None => 0,
            // A list stands in the column of its key.
            Some(around) if around.is_map && !around.in_item && !is_map => around.new,
            Some(around) => around.new + 2,
        };
        self.open.push(Collection { old, new, is_map, in_item: false });
    }

    fn value_column(&self) -> usize {
        self.open.last().map_or(0, |around| around.new + 2)
    }

    fn is_explicit_key(&self) -> bool {
        let rest = self.next_word().and_then(|at| self.text[at..].strip_prefix('?'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n']))
    }

    fn word(&mut self, range: std::ops::Range<usize>, kind: Kind, column: Option<usize>) -> Option<()> {
        let column = column.or_else(|| self.key.take()).unwrap_or_else(|| self.column_of(range.start));
        self.gap(range.start, Some(column))?;
        self.push(kind, range.start, range.end, column);
        Some(())
    }

    /// Of a value on a line of its own.
    fn column_of(&mut self, start: usize) -> usize {
        if let Some(end) = self.text.get(self.seen..start).and_then(|passed| passed.rfind('\n')) {
            self.line_start = self.seen + end + 1;
        }
        self.seen = start;
        if self.keep || self.open.is_empty() { start - self.line_start } else { self.value_column() }
    }

    fn indicator(&mut self, sign: char, kind: Kind, column: usize) -> Option<()> {
        let start = self.next_word()?;
        self.gap(start, Some(column))?;
        if !self.text[start..].starts_with(sign) {
            return None;
        }
        self.push(kind, start, start + 1, column);
        Some(())
    }

    /// Where the next word stands that is no comment.
    fn next_word(&self) -> Option<usize> {
        let mut at = self.at;
        loop {
            let rest = &self.text[at..];
            at += rest.len() - rest.trim_start_matches([' ', '\t', '\n']).len();
            if !self.text[at..].starts_with('#') {
                return (at < self.text.len()).then_some(at);
            }
            at += self.text[at..].find('\n')?;
        }
    }

    /// A block scalar's head stands before what the scanner calls its start, and behind its end may stand blanks.
    fn block_scalar(&mut self, range: &std::ops::Range<usize>) -> Option<()> {
        let start = self.next_word()?;
        let column = self.column_of(start);
        self.gap(start, Some(column))?;
        let head_end = start + self.text[start..].find('\n').unwrap_or(self.text.len() - start);
        let head = &self.text[start..head_end];
        let delta = self.open.last().map_or(0, |around| around.new.cast_signed() - around.old.cast_signed());
        let head = head.split('#').next()?;
        // Its lines are counted from a column that would move under them.
        if !head.starts_with(['|', '>']) || delta != 0 && head.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let body_start = (head_end + 1).min(self.text.len());
        let last = range.end.max(body_start);
        let body = &self.text[body_start..last];
        let written = body_start + body.trim_end_matches([' ', '\n']).len();
        let mut end = line_end(self.text, if written > body_start { written } else { start });
        let indent = body.lines().find(|line| !line.trim_matches(' ').is_empty()).map_or(0, |line| {
            // The first line may begin before what the scanner gives.
            line.len() - line.trim_start_matches(' ').len()
        });
        // Blank lines behind its words belong to it if it keeps them, or if they are longer than its column.
        let mut at = end;
        while at < self.text.len() {
            let next = line_end(self.text, at + 1);
            let line = &self.text[at + 1..next];
            if !line.trim_matches(' ').is_empty() {
                break;
            }
            if at + 1 < self.text.len() && (head.contains('+') || line.len() > indent) {
                end = next;
            }
            at = next;
        }
        self.push(Kind::Block, start, end.min(self.text.len()), column);
        Some(())
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize, column: usize) {
        let delta = self.open.last().map_or(0, |around| around.new.cast_signed() - around.old.cast_signed());
        self.found.push(Lexeme { kind, start, end, column, delta, depth: self.depth });
        self.at = end;
        self.before.clear();
        self.before.extend(self.open.iter().map(|around| (around.old, around.new)));
    }

    /// Comments up to the next word, which begins in a line of its own in column `next`.
    fn gap(&mut self, end: usize, next: Option<usize>) -> Option<()> {
        while self.at < end {
            let rest = &self.text[self.at..end];
            let start = self.at + rest.len() - rest.trim_start_matches([' ', '\t', '\n']).len();
            if start >= end {
                break;
            }
            if !self.text[start..].starts_with('#') {
                return None;
            }
            let stop = line_end(self.text, start).min(end);
            let at = column(self.text, start);
            let next = next.map(|new| (column(self.text, end), new));
            let column = if self.keep { at } else { comment_column(at, next, &self.before) };
            let delta =
                self.open.last().map_or(0, |around| around.new.cast_signed() - around.old.cast_signed());
            self.found.push(Lexeme {
                kind: Kind::Comment,
                start,
                end: stop,
                column,
                delta,
                depth: self.depth,
            });
            self.at = stop;
        }
        self.at = end;
        Some(())
    }
}

/// A comment goes with what it stands above, else with what it was written in line with before.
fn comment_column(at: usize, next: Option<(usize, usize)>, before: &[(usize, usize)]) -> usize {
    let next_old = match next {
        Some((old, new)) if old == at => return new,
        next => next.map(|(old, _)| old),
    };
    if let Some((_, new)) = before.iter().rev().find(|(old, _)| *old == at) {
        return *new;
    }
    let deeper = before.iter().rev().find(|(old, _)| *old <= at && next_old.is_none_or(|next| *old > next));
    deeper.copied().or(next).map_or(0, |(_, new)| new)
}

/// The column of a place, in bytes from its line's start; what stands before the first word of a line is blanks.
fn column(text: &str, at: usize) -> usize {
    at - text[..at].rfind('\n').map_or(0, |end| end + 1)
}

/// Where the line of a place ends, its break left out.
pub(super) fn line_end(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    text[at..].find('\n').map_or(text.len(), |more| at + more)
}
