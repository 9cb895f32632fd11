//! Loads a set again and again, and reads only what changed.

use std::collections::HashMap;
use std::sync::Arc;

use super::file::CheckedFile;
use super::{Known, assemble, checked_with};
use crate::diagnostic::{Diagnostics, SourceFile};
use crate::generation::Generation;
use crate::verdict::Scope;

/// Warnings that are kept with their files, in all. A warning holds a line of text; sets with more are read anew.
const MAX_WARNINGS: usize = 4_096;

/// Loads one set after the other, as [`load`](crate::load()) does and with the same answer to the byte. What a file came to
/// is kept, and taken again as long as its bytes and everything that it was checked under are the same. Files are compared
/// byte by byte, never by a hash: a rule that is not read is a rule that does not deny.
///
/// It holds the files of the last set and about as much again for what was made of them, both bounded by what a set may
/// hold.
#[derive(Default)]
pub struct Loader {
    kept: HashMap<String, (Vec<u8>, Arc<CheckedFile>)>,
}

impl Loader {
    /// A loader that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks a set and compiles what concerns the scope's workload, as [`load`](crate::load()) does.
    pub fn load(
        &mut self,
        files: &[SourceFile],
        scope: &Scope,
        number: u64,
    ) -> Result<Generation, Diagnostics> {
        let known = |file: &SourceFile| {
            let (as_it_was, checked) = self.kept.get(&file.name)?;
            (*as_it_was == file.text).then(|| Arc::clone(checked))
        };
        let mut good = Vec::new();
        let checked = checked_with(files, scope, &known, &mut good);
        // Files without a mistake are kept even if others have some: those will be mended next.
        if !good.is_empty() {
            self.keep(files, good);
        }
        Ok(assemble(checked?, scope, number))
    }

    fn keep(&mut self, files: &[SourceFile], good: Vec<Known>) {
        let mut warnings = 0;
        let mut before = std::mem::take(&mut self.kept);
        for (file, checked) in files.iter().zip(good) {
            let Some(checked) = checked else { continue };
            warnings += checked.warnings.len();
            if warnings > MAX_WARNINGS {
                break;
            }
            let text = match before.remove(&file.name) {
                Some((text, _)) if text == file.text => text,
                _ => file.text.clone(),
            };
            self.kept.insert(file.name.clone(), (text, checked));
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("files", &self.kept.len()).finish()
    }
}
