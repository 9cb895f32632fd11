//! What was wrong, where, and the way out.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

/// More would bury the first, which is usually the one to mend.
const MAX_SHOWN: usize = 20;
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
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
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

    /// A finding at `line` and `column` (characters, from 1) of `text`, `len` characters long.
    pub(crate) fn at(place: &Place, text: &str, len: usize, message: impl Into<String>) -> Self {
        let excerpt = place
            .line
            .checked_sub(1)
            .and_then(|n| text.lines().nth(n))
            .map(|line| Box::new(excerpt(line, place.column, len)));
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

/// Cuts a long line down to the neighbourhood of the caret.
fn excerpt(line: &str, column: usize, len: usize) -> Excerpt {
    let chars: Vec<char> = line.chars().collect();
    let at = column.saturating_sub(1).min(chars.len());
    let from = if chars.len() > MAX_LINE { at.saturating_sub(MAX_LINE / 2) } else { 0 };
    let to = chars.len().min(from + MAX_LINE);
    // Control characters would be obeyed by the reader's terminal.
    let show = |range: &[char]| -> String {
        range.iter().map(|c| if c.is_control() && *c != '\t' { '\u{fffd}' } else { *c }).collect()
    };
    let before = show(&chars[from..at]);
    let under = show(&chars[at..to.min(at + len.max(1))]);
    let start = before.len();
    let end = start + under.len();
    let after = show(&chars[(at + len.max(1)).min(to)..to]);
    Excerpt { text: format!("{before}{under}{after}"), start, end }
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
                write!(f, "\n --> {}", self.file)?;
                if self.line > 0 {
                    write!(f, ":{}:{}", self.line, self.column)?;
                }
            }
            return match &self.help {
                Some(help) => write!(f, "\n  = help: {help}"),
                None => Ok(()),
            };
        };
        let snippet = Snippet::source(excerpt.text.as_str())
            .line_start(self.line)
            .path(&*self.file)
            .annotation(AnnotationKind::Primary.span(excerpt.start..excerpt.end));
        let title = level.primary_title(self.message.as_str());
        let mut group = Group::with_title(title).element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let text = Renderer::plain().decor_style(DecorStyle::Ascii).render(&[group]);
        // A cropped line moves the column that the renderer counts; ours is the file's.
        f.write_str(&own_place(&text, self))
    }
}

fn own_place(text: &str, diagnostic: &Diagnostic) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(line) = lines.iter_mut().find(|line| line.trim_start().starts_with("--> ")) {
        let indent = line.len() - line.trim_start().len();
        *line = format!(
            "{}--> {}:{}:{}",
            " ".repeat(indent),
            diagnostic.file,
            diagnostic.line,
            diagnostic.column
        );
    }
    lines.join("\n")
}

/// Findings about a set of documents, in the order of files and lines.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a finding.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }

    /// The findings.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.found.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// In the order of files, lines and columns.
    pub(crate) fn sorted(mut self) -> Self {
        self.found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        self
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.found.extend(other.found);
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { found: vec![diagnostic] }
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
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
        match self.found.len().checked_sub(MAX_SHOWN) {
            Some(more) if more > 0 => write!(f, "\n\n... and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostics {}
