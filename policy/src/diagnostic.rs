//! What was wrong, where, and the way out.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::text::Text;
use crate::yaml;

/// More would bury the first, which is usually the one to mend.
const MAX_SHOWN: usize = 20;
/// Enough to mend a set; a generator that went wrong would fill the memory.
pub(crate) const MAX_FINDINGS: usize = 100;
/// A generated file can be one line of a megabyte; the caret needs only its neighbourhood.
const MAX_LINE: usize = 160;

/// One file of a set of documents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceFile {
    /// Its name as messages shall show it.
    pub name: String,
    /// Its bytes. Bytes that are not UTF-8 are a mistake with a place, not a panic.
    pub text: Vec<u8>,
}

/// A place in a file, counted from 1.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Place {
    /// The file's name.
    pub file: Arc<str>,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", shown(&self.file), self.line, self.column)
    }
}

/// Whether a finding refuses the set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The set is refused.
    Error,
    /// The set loads, but probably does not say what was meant.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name.
    pub file: Arc<str>,
    /// The line, from 1; 0 if the whole set or the whole file is meant.
    pub line: usize,
    /// The column in characters, from 1; 0 if the whole set or the whole file is meant.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The way out, if one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    excerpt: Option<Box<Excerpt>>,
}

/// The line under which the caret stands.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Excerpt {
    text: String,
    start: usize,
    end: usize,
}

impl Diagnostic {
    /// A finding about a file (or the set) as a whole.
    pub fn whole(file: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            line: 0,
            column: 0,
            message: message.into(),
            help: None,
            excerpt: None,
        }
    }

    /// A finding at a place of `text`, `len` characters long.
    pub(crate) fn at(place: &Place, text: &Text<'_>, len: usize, message: impl Into<String>) -> Self {
        let excerpt = text.line(place.line).map(|line| Box::new(excerpt(line, place.column, len)));
        Self {
            severity: Severity::Error,
            file: place.file.clone(),
            line: place.line,
            column: place.column,
            message: message.into(),
            help: None,
            excerpt,
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same finding as a warning.
    #[must_use]
    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

/// Cuts a long line down to the neighbourhood of the caret; `…` stands where it was cut.
fn excerpt(line: &str, column: usize, len: usize) -> Excerpt {
    let is_long = line.chars().nth(MAX_LINE).is_some();
    let cut = if is_long { column.saturating_sub(1 + MAX_LINE / 2) } else { 0 };
    let chars: Vec<char> = line.chars().skip(cut).take(MAX_LINE).collect();
    let goes_on = line.chars().nth(cut + MAX_LINE).is_some();
    let at = column.saturating_sub(1 + cut).min(chars.len());
    let past = chars.len().min(at + len.max(1));
    // Control characters would be obeyed by the reader's terminal.
    let show = |range: &[char]| -> String {
        range.iter().map(|c| if yaml::is_unseen(*c) && *c != '\t' { '\u{fffd}' } else { *c }).collect()
    };
    let cut_off = |is_cut: bool| if is_cut { "…" } else { "" };
    let before = format!("{}{}", cut_off(cut > 0), show(&chars[..at]));
    let under = show(&chars[at..past]);
    let start = before.len();
    let end = start + under.len();
    let after = show(&chars[past..]);
    Excerpt { text: format!("{before}{under}{after}{}", cut_off(goes_on)), start, end }
}

impl fmt::Display for Diagnostic {
    /// Several lines, without one at the end: the message with its file, line and column, the line itself with a
    /// caret, and the way out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let Some(excerpt) = &self.excerpt else {
            let word = match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            write!(f, "{word}: {}", self.message)?;
            if !self.file.is_empty() {
                write!(f, "\n --> {}", shown(&self.file))?;
                if self.line > 0 {
                    write!(f, ":{}:{}", self.line, self.column)?;
                }
            }
            return match &self.help {
                Some(help) => write!(f, "\n  = help: {help}"),
                None => Ok(()),
            };
        };
        // In one line whatever it is called: this line is found again below.
        let name = shown(&self.file);
        let snippet = Snippet::source(excerpt.text.as_str())
            .line_start(self.line)
            .path(name)
            .annotation(AnnotationKind::Primary.span(excerpt.start..excerpt.end));
        let title = level.primary_title(self.message.as_str());
        let mut group = Group::with_title(title).element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        // Lines are cut already: cut once more, they would not say on which side.
        let renderer = Renderer::plain().decor_style(DecorStyle::Ascii).term_width(usize::from(u16::MAX));
        let text = renderer.render(&[group]);
        // A cropped line moves the column that the renderer counts; ours is the file's.
        f.write_str(&own_place(&text, self))
    }
}

/// A file's name for terminals and logs: whoever names files must not write lines there, or move the cursor.
fn shown(name: &str) -> Cow<'_, str> {
    if name.contains(yaml::is_unseen) {
        Cow::Owned(name.replace(yaml::is_unseen, "\u{fffd}"))
    } else {
        Cow::Borrowed(name)
    }
}

fn own_place(text: &str, diagnostic: &Diagnostic) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(line) = lines.iter_mut().find(|line| line.trim_start().starts_with("--> ")) {
        let indent = line.len() - line.trim_start().len();
        *line = format!(
            "{}--> {}:{}:{}",
            " ".repeat(indent),
            shown(&diagnostic.file),
            diagnostic.line,
            diagnostic.column
        );
    }
    lines.join("\n")
}

/// Findings about a set of documents, in the order of files and lines. Of very many the first are listed, and the last
/// finding says how many more there are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
    /// Found, listed or not.
    total: usize,
}

impl Diagnostics {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a finding.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
        self.total += 1;
    }

    /// The findings.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.found.iter()
    }

    /// How many there are, those that are not listed among them.
    pub fn total(&self) -> usize {
        self.total
    }

    /// How many are listed.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Adds a finding, which is made only if there is room to list it.
    pub(crate) fn add(&mut self, make: impl FnOnce() -> Diagnostic) {
        if !self.is_full() {
            self.found.push(make());
        }
        self.total += 1;
    }

    /// Whether further findings are counted, not listed.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= MAX_FINDINGS
    }

    pub(crate) fn extend(&mut self, other: Self) {
        let room = MAX_FINDINGS.saturating_sub(self.found.len());
        self.found.extend(other.found.into_iter().take(room));
        self.total += other.total;
    }

    /// In the order of files, lines and columns; last, how many are not listed.
    pub(crate) fn finished(mut self) -> Self {
        self.found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        let more = self.total - self.found.len();
        if let (Some(last), true) = (self.found.last(), more > 0) {
            let severity = last.severity;
            let word = match severity {
                Severity::Error => "mistake",
                Severity::Warning => "warning",
            };
            let s = if more == 1 { "" } else { "s" };
            let message = format!("{more} more {word}{s} not listed");
            self.note(Diagnostic { severity, ..Diagnostic::whole("", message) });
        }
        self
    }

    /// Lists what is no finding of its own, but about the findings.
    pub(crate) fn note(&mut self, note: Diagnostic) {
        self.found.push(note);
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { found: vec![diagnostic], total: 1 }
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.found.into_iter()
    }
}

impl Serialize for Diagnostics {
    /// A list of findings.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.found.serialize(serializer)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.found.iter().take(MAX_SHOWN).enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            diagnostic.fmt(f)?;
        }
        match self.total.checked_sub(MAX_SHOWN) {
            Some(more) if more > 0 => write!(f, "\n\n... and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostics {}
