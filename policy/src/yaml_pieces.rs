//! Documents of kinds that other crates read: a file's pieces, each read on its own, every mistake at its place in the file.

use crate::yaml::Spanned;
use serde::de::DeserializeOwned;

use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::load::document;
use crate::text::Text;
use crate::yaml;

/// One document of a file.
pub struct Piece<'f> {
    file: &'f SourceFile,
    whole: &'f str,
    text: &'f str,
    first_line: usize,
}

/// The documents of a file, which `---` parts.
pub fn pieces(file: &SourceFile) -> Result<Vec<Piece<'_>>, Diagnostics> {
    let whole = yaml::text_of(file)?;
    let pieces = document::pieces(whole).into_iter();
    Ok(pieces.map(|(first_line, text)| Piece { file, whole, text, first_line }).collect())
}

impl Piece<'_> {
    /// Reads it as strictly as [`yaml::parse`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Diagnostic> {
        yaml::parse_piece(&self.lines(), self.text, self.first_line)
    }

    /// A finding about a value that parsed but is wrong.
    pub fn at<T>(&self, value: &Spanned<T>, message: impl Into<String>) -> Diagnostic {
        yaml::located(&self.lines(), self.first_line, value.referenced, message.into())
    }

    /// Where a value stands.
    pub fn place<T>(&self, value: &Spanned<T>) -> Place {
        let lines = self.lines();
        lines.within(yaml::place(&lines.file, self.first_line, value.referenced))
    }

    fn lines(&self) -> Text<'_> {
        Text::new(self.file, self.whole)
    }
}
