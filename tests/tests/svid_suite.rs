//! The SPIFFE suite before foreign judges: OpenSSL and PyPI's cryptography. They know nothing of SPIFFE, so they disagree
//! in much, and `ca/svid/tests/spiffe/expected.txt` says in what and why.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postern_tests::{foreign, openssl};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn suite_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ca/svid/tests/spiffe")
}

fn suite() -> Vec<Value> {
    let text = std::fs::read_to_string(suite_directory().join("spiffe.json")).expect("the suite can be read");
    let suite: Value = serde_json::from_str(&text).expect("the suite is JSON");
    suite["testcases"].as_array().expect("the suite has cases").clone()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {} is text", value["id"]))
}

/// A line of `expected.txt`.
struct Explanation {
    line: String,
    accepts: bool,
    verifiers: Vec<String>,
    case: String,
    used: bool,
}

impl Explanation {
    fn all() -> Vec<Self> {
        let text = std::fs::read_to_string(suite_directory().join("expected.txt"));
        let text = text.expect("the expected results can be read");
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Self::read).collect()
    }

    fn read(line: &str) -> Self {
        let (what, why) = line.split_once(": ").unwrap_or_else(|| panic!("no reason in {line:?}"));
        let words: Vec<&str> = what.split(' ').collect();
        let [verdict @ ("accepts" | "rejects"), verifiers, case] = words[..] else {
            panic!("{line:?} is not `accepts|rejects VERIFIERS CASE: why`")
        };
        assert!(!why.is_empty(), "{line:?} has no reason");
        Self {
            line: line.to_owned(),
            accepts: verdict == "accepts",
            verifiers: verifiers.split(',').map(str::to_owned).collect(),
            case: case.to_owned(),
            used: false,
        }
    }

    fn fits(&self, verifier: &str, accepts: bool, case: &str) -> bool {
        self.accepts == accepts
            && self.verifiers.iter().any(|one| one == verifier)
            && match self.case.strip_suffix('*') {
                Some(beginning) => case.starts_with(beginning),
                None => self.case == case,
            }
    }
}

/// Holds a verifier's verdicts against the suite's: every deviation is explained, and every explanation needed.
fn compare(verifier: &str, verdict: impl Fn(&Value) -> Option<bool>) {
    let mut explanations = Explanation::all();
    let (mut agreed, mut false_accepts, mut false_rejects, mut skipped) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    let cases = suite();
    for case in &cases {
        let id = text(case, "id");
        let Some(accepts) = verdict(case) else {
            skipped += 1;
            continue;
        };
        if accepts == (text(case, "expected_result") == "SUCCESS") {
            agreed += 1;
            continue;
        }
        *(if accepts { &mut false_accepts } else { &mut false_rejects }) += 1;
        let known = explanations.iter_mut().filter(|one| one.fits(verifier, accepts, id));
        if known.map(|one| one.used = true).count() == 0 {
            wrong.push(format!(
                "{} {verifier} {id}: nothing explains it",
                if accepts { "accepts" } else { "rejects" }
            ));
        }
    }
    // A line for two verifiers must be needed by both.
    let needless =
        explanations.iter().filter(|one| one.verifiers.iter().any(|name| name == verifier) && !one.used);
    wrong.extend(needless.map(|one| format!("{verifier} deviates no more: {}", one.line)));
    println!(
        "SPIFFE suite, {verifier}: {agreed} agree, {false_accepts} false accepts, {false_rejects} false rejects, {skipped} skipped"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(agreed > 150 && cases.len() > 300, "{agreed} of {}", cases.len());
}

/// `cargo test -p postern-tests --test svid_suite -- --nocapture` prints the scores.
#[test]
fn openssl_deviates_as_explained() {
    if !foreign::need(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let write = |name: &str, pems: &[Value]| {
        let path = dir.path().join(name);
        let pems: String = pems.iter().filter_map(Value::as_str).collect();
        std::fs::write(&path, &pems).expect("a temporary file can be written");
        (path.display().to_string(), !pems.is_empty())
    };
    let list = |case: &Value, key: &str| case[key].as_array().cloned().unwrap_or_default();
    compare("openssl", |case| {
        let (roots, _) = write("roots.pem", &list(case, "trusted_certs"));
        let (issuing, any) = write("issuing.pem", &list(case, "untrusted_intermediates"));
        let (leaf, _) = write("leaf.pem", std::slice::from_ref(&case["peer_certificate"]));
        let time =
            OffsetDateTime::parse(text(case, "validation_time"), &Rfc3339).expect("a time in RFC 3339");
        let time = time.unix_timestamp().to_string();
        let purpose = if text(case, "validation_kind") == "CLIENT" { "sslclient" } else { "sslserver" };
        let mut arguments =
            vec!["verify", "-x509_strict", "-purpose", purpose, "-attime", &time, "-trusted", &roots];
        if any {
            arguments.extend(["-untrusted", &issuing]);
        }
        arguments.push(&leaf);
        Some(openssl(&arguments, b"").code == 0)
    });
}

#[test]
fn cryptography_deviates_as_explained() {
    if !foreign::need(&["cryptography"]) {
        return;
    }
    let (python, judge) = foreign::python("x509_judge.py");
    let mut command = Command::new(python);
    command.args(["-B", "-W", "ignore"]).arg(judge).arg(suite_directory().join("spiffe.json"));
    let run = foreign::run(&mut command, Duration::from_secs(60));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let said = run.text();
    compare("cryptography", |case| {
        let id = text(case, "id");
        let line = said.lines().find_map(|line| {
            let (verdict, rest) = line.split_once(' ')?;
            let about = rest.strip_prefix(id)?;
            (about.is_empty() || about.starts_with(": ")).then_some(verdict)
        });
        match line {
            Some("accepts") => Some(true),
            Some("rejects") => Some(false),
            Some("skips") => None,
            other => panic!("{id}: {other:?}"),
        }
    });
}

#[test]
fn the_suite_is_what_its_program_writes() {
    if !foreign::need(&["cryptography"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("spiffe.json");
    let (python, _) = foreign::python("");
    let mut command = Command::new(python);
    command.args(["-B", "-W", "ignore"]).arg(suite_directory().join("generate.py")).arg(&file);
    let run = foreign::run(&mut command, Duration::from_secs(120));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let read =
        |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        read(&file) == read(&suite_directory().join("spiffe.json")),
        "spiffe.json is not what generate.py writes: run it and commit both"
    );
}
