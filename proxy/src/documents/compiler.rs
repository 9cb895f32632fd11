//! From what was read to what can be put in force.

use std::sync::Arc;

use parking_lot::Mutex;
use postern_policy::{Diagnostic, Diagnostics, Generation, Scope, SourceFile, Workload};

use super::history::Set;
use super::read::Files;
use crate::sidecar::Sidecar;

/// What came of a set.
pub(super) type Loaded = Result<(Arc<Generation>, Set), Diagnostics>;

/// Makes the generation that follows the one in force.
pub(super) struct Compiler {
    pub(super) policies: Arc<Mutex<postern_policy::Loader>>,
    pub(super) scope: Scope,
    /// The new one's.
    pub(super) number: u64,
    /// Whether each file must end with its mark.
    pub(super) end_marks: bool,
    /// What an operator opened: it is loaded with the directory's files.
    pub(super) overlays: Vec<SourceFile>,
    /// Files that did not change are shared with it.
    pub(super) last: Option<Arc<Set>>,
}

impl Compiler {
    pub(super) fn compile(self, digest: &str, set: Files) -> Loaded {
        let mut files = set?;
        if self.end_marks {
            expect_end_marks(&files)?;
        }
        let own = files.len();
        files.extend(self.overlays);
        let generation = Arc::new(self.policies.lock().load(&files, &self.scope, self.number)?);
        files.truncate(own);
        Ok((generation, Set::sharing(digest.to_owned(), files, self.last.as_deref())))
    }
}

/// A file that is cut where a line ends is often a set of its own, and one that allows more: without the end of a rule, or
/// the Deny behind it. Nobody can tell, unless what was meant to be the end is marked.
fn expect_end_marks(files: &[SourceFile]) -> Result<(), Diagnostics> {
    let mut wrong = Diagnostics::new();
    for file in files.iter().filter(|file| !ends_with_its_mark(&file.text)) {
        let what =
            "the file does not end with the line `...`, its only one: was it cut while it was written?";
        let help = "end it with a line of three dots, or take `endMarks` out of sidecar.yaml";
        wrong.push(Diagnostic::whole(&file.name, what).with_help(help));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// At the beginning of a line three dots end a document whatever stands around them (YAML 1.2, 9.1.2), in a text of several
/// lines too.
fn ends_with_its_mark(text: &[u8]) -> bool {
    let mut lines = text.trim_ascii_end().split(|byte| *byte == b'\n').rev();
    let is_mark = |line: &[u8]| line.trim_ascii_end() == b"...";
    lines.next().is_some_and(is_mark) && !lines.any(is_mark)
}

pub(crate) fn scope(sidecar: &Sidecar) -> Scope {
    let config = &sidecar.config;
    Scope {
        trust_domain: config.identity.trust_domain(),
        root_namespace: config.root_namespace.clone(),
        workload: Some(Workload {
            namespace: config.namespace.clone(),
            service_account: config.service_account.clone(),
            labels: config.workload.labels.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_ends_where_it_says() {
        for (text, is_whole) in [
            ("a: 1\n...\n", true),
            ("a: 1\n...", true),
            ("a: 1\r\n...\r\n", true),
            ("a: 1\n---\nb: 2\n...\n\n", true),
            ("a: 1\n..", false),
            ("a: 1\n", false),
            ("", false),
            ("a: '...'", false),
            ("a: |\n  ...\n", false),
            ("a: 1\n...\n---\nb: 2\n", false),
            // Cut there, it would look whole.
            ("a: 1\n...\n---\nb: 2\n...\n", false),
        ] {
            let file = SourceFile { name: "a.yaml".to_owned(), text: text.as_bytes().to_vec() };
            assert_eq!(expect_end_marks(&[file]).is_ok(), is_whole, "{text:?}");
        }
    }
}
