//! `postern policy fmt`: one way to write documents.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postern_policy::{Diagnostic, Diagnostics, Formatted, SourceFile, format};
use serde_json::{Value, json};

use super::files::MAX_FILE;
use super::{Failure, plural, question, read_all, refused};
use crate::say;

/// What of a line is shown.
const SHOWN: usize = 100;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Files or directories of documents, which are rewritten; or `-`: from standard input to standard output.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write nothing; list the files that would change.
    #[arg(long)]
    check: bool,
    /// Machine-readable output.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let is_stdin = args.paths.iter().any(|path| path.as_os_str() == "-");
    if is_stdin && args.paths.len() > 1 {
        return Err(question("`-` stands alone: standard input is one text"));
    }
    let files = if is_stdin {
        vec![stdin()?]
    } else {
        match read_all(&args.paths)? {
            Ok(files) => files,
            Err(nothing) => return Ok(refused(&nothing, args.json, "nothing to format")),
        }
    };
    let mut report = Report::default();
    for file in &files {
        report.add(args, file, is_stdin);
    }
    Ok(report.told(args, is_stdin))
}

fn stdin() -> Result<SourceFile, Failure> {
    let mut text = Vec::new();
    std::io::stdin().take(MAX_FILE + 1).read_to_end(&mut text).map_err(question)?;
    Ok(SourceFile { name: "<stdin>".to_owned(), text })
}

#[derive(Default)]
struct Report {
    entries: Vec<Value>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    changed: usize,
    refused: usize,
}

impl Report {
    /// Each file by itself: a mistake in one is no reason to leave another.
    fn add(&mut self, args: &Args, file: &SourceFile, is_stdin: bool) {
        let mut entry = json!({ "file": file.name });
        match format(file) {
            Err(errors) => {
                if !args.json {
                    eprintln!("{errors}\n");
                }
                self.refuse(&mut entry, errors);
            }
            Ok(Formatted { left: Some(warning), text }) => {
                if !args.json {
                    eprintln!("{warning}\n");
                }
                entry["status"] = "left".into();
                self.warnings.push(warning);
                self.pass_on(args, &mut entry, &text, is_stdin);
            }
            Ok(Formatted { left: None, text }) => {
                let hint = hint(&file.text, &text);
                entry["status"] = if hint.is_some() { "changed" } else { "unchanged" }.into();
                self.changed += usize::from(hint.is_some());
                if let Some(hint) = hint {
                    self.change(args, &mut entry, file, &text, &hint, is_stdin);
                }
                self.pass_on(args, &mut entry, &text, is_stdin);
            }
        }
        self.entries.push(entry);
    }

    fn refuse(&mut self, entry: &mut Value, errors: Diagnostics) {
        entry["status"] = "refused".into();
        self.refused += 1;
        self.errors.extend(errors);
    }

    fn change(
        &mut self,
        args: &Args,
        entry: &mut Value,
        file: &SourceFile,
        text: &str,
        hint: &Hint,
        is_stdin: bool,
    ) {
        let Hint { line, old, new } = hint;
        if args.check {
            entry["line"] = (*line).into();
            entry["old"] = old.as_str().into();
            entry["new"] = new.as_str().into();
            if !args.json {
                say(format_args!("{}:{line}\n  - {old}\n  + {new}", file.name));
            }
        } else if !is_stdin {
            match write(Path::new(&file.name), text) {
                Ok(()) if args.json => {}
                Ok(()) => say(format_args!("formatted {}", file.name)),
                Err(error) => {
                    let error = Diagnostic::whole(&file.name, format!("cannot be written: {error}"));
                    if !args.json {
                        eprintln!("{error}\n");
                    }
                    self.changed -= 1;
                    self.refuse(entry, error.into());
                }
            }
        }
    }

    /// Standard input's text is answered in any case: an editor puts it where the other was.
    fn pass_on(&self, args: &Args, entry: &mut Value, text: &str, is_stdin: bool) {
        if !is_stdin || args.check {
            return;
        }
        if args.json {
            entry["text"] = text.into();
        } else {
            // A reader that has gone needs no answer.
            crate::put(text);
        }
    }

    fn told(self, args: &Args, is_stdin: bool) -> ExitCode {
        let Self { entries, errors, warnings, changed, refused } = self;
        let ok = refused == 0 && warnings.is_empty() && !(args.check && changed > 0);
        if args.json {
            say(json!({ "ok": ok, "files": entries, "errors": errors, "warnings": warnings }));
        } else if !is_stdin || !ok {
            let verb = if args.check { "would change" } else { "changed" };
            let mut line = format!("{}: {changed} {verb}", plural(entries.len(), "file"));
            if refused > 0 {
                line.push_str(&format!(", {refused} refused"));
            }
            if !warnings.is_empty() {
                line.push_str(&format!(", {} left alone", warnings.len()));
            }
            eprintln!("{line}");
        }
        ExitCode::from(u8::from(!ok))
    }
}

/// Where a text begins to be written in another way.
struct Hint {
    line: usize,
    old: String,
    new: String,
}

fn hint(old: &[u8], new: &str) -> Option<Hint> {
    if old == new.as_bytes() {
        return None;
    }
    let old = String::from_utf8_lossy(old);
    let (mut old, mut new) = (old.split_inclusive('\n'), new.split_inclusive('\n'));
    let mut line = 1;
    loop {
        let pair = (old.next(), new.next());
        if pair.0 != pair.1 || pair.0.is_none() {
            return Some(Hint { line, old: shown(pair.0), new: shown(pair.1) });
        }
        line += 1;
    }
}

/// A line with its blanks and its end, which are often all that differs; nothing in it reaches a terminal as it is.
fn shown(line: Option<&str>) -> String {
    let Some(line) = line else { return "(no line)".to_owned() };
    match line.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{:?}...", &line[..cut]),
        None => format!("{line:?}"),
    }
}

/// Beside the file, under a name that no reader of documents takes, and moved over it. A symbolic link stays one: what it
/// leads to is rewritten. Mode and owner stay.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let path = fs::canonicalize(path)?;
    let found = fs::metadata(&path)?;
    if !found.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let directory = path.parent().ok_or_else(|| std::io::Error::other("it stands in no directory"))?;
    let new = directory.join(format!(".{}.new", std::process::id()));
    // Read by nobody else before it has its mode.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| {
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (found.uid(), found.gid()) {
            chown(&new, Some(found.uid()), Some(found.gid()))?;
        }
        file.set_permissions(found.permissions())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}
