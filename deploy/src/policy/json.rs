//! What `--json` tells: one document on standard output, whatever comes of a verb.

use std::ffi::OsString;
use std::process::ExitCode;

use postern_policy::{Diagnostic, Diagnostics, Place, Severity};
use serde_json::json;

use crate::say;

/// The one shape in which mistakes are told: of documents, of the question, of the command line.
pub(crate) fn say_errors(errors: &Diagnostics) {
    say(json!({ "ok": false, "errors": errors }));
}

/// A finding about a place in documents.
pub(super) fn finding(severity: Severity, place: &Place, message: String) -> Diagnostic {
    let mut finding = Diagnostic::whole(&place.file, message);
    (finding.severity, finding.line, finding.column) = (severity, place.line, place.column);
    finding
}

/// Whether a command line asks a verb of `postern policy` or `postern ca` for JSON, though it may be wrong otherwise.
pub(crate) fn is_asked_for(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut arguments = arguments.skip(1);
    arguments.next().is_some_and(|command| command == "policy" || command == "ca")
        && arguments.take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Tells what is wrong with a command line, as JSON.
pub(crate) fn say_usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut finding = Diagnostic::whole("", message.trim());
    if !help.trim().is_empty() {
        finding = finding.with_help(help.trim());
    }
    say_errors(&finding.into());
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_by_a_flag_of_policy_or_ca() {
        let asked =
            |line: &str| is_asked_for(std::iter::once("postern").chain(line.split(' ')).map(OsString::from));
        assert!(asked("policy check --json"));
        assert!(asked("policy --json"));
        assert!(asked("ca root prepare --json"));
        assert!(!asked("policy check a.yaml"));
        assert!(!asked("policy fmt -- --json"));
        assert!(!asked("demo --json"));
        assert!(!is_asked_for(std::iter::empty()));
    }
}
