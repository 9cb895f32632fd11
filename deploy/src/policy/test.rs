//! `postern policy test`: the PolicyTests of a set against its rules.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_policy::{CaseResult, InvariantResult, TestReport, run_tests};

use super::{Failure, Set, live, plural, read_all, refused};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Files or directories of documents: rules and the tests that speak of them.
    #[arg(required_unless_present = "sidecar", conflicts_with = "sidecar")]
    paths: Vec<PathBuf>,
    /// Instead of documents: those in force at the sidecar with this admin socket.
    #[arg(long, value_name = "SOCKET")]
    sidecar: Option<PathBuf>,
    /// List the rules that no case's verdict names.
    #[arg(long)]
    coverage: bool,
    /// Fail if fewer rules than these percents are named by some case's verdict.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    min_coverage: Option<u8>,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (files, scope) = match &args.sidecar {
        Some(socket) => live::documents(socket)?,
        None => match read_all(&args.paths)? {
            Ok(files) => {
                let scope = args.set.scope(&files, None)?;
                (files, scope)
            }
            Err(nothing) => return Ok(refused(&nothing, args.set.json, "nothing was tested")),
        },
    };
    let report = match run_tests(&files, &scope) {
        Ok(report) => report,
        Err(errors) => return Ok(refused(&errors, args.set.json, "nothing was tested")),
    };
    let enough = args.min_coverage.is_none_or(|least| report.percent() >= least);
    let ok = report.is_ok() && enough;
    if args.set.json {
        let mut value = serde_json::json!({
            "ok": ok,
            "trustDomain": scope.trust_domain.as_str(),
            "passed": report.passed(),
            "cases": report.cases,
            "proven": report.proven(),
            "invariants": report.invariants,
        });
        if args.coverage || args.min_coverage.is_some() {
            value["coverage"] = serde_json::json!({ "percent": report.percent(), "rules": report.rules });
        }
        say(value);
    } else {
        show(args, &report, enough);
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn show(args: &Args, report: &TestReport, enough: bool) {
    let mut test = "";
    for case in &report.cases {
        if case.test != test {
            test = &case.test;
            say(test);
        }
        show_case(case);
    }
    let mut test = "";
    for invariant in &report.invariants {
        if invariant.test != test {
            test = &invariant.test;
            say(format_args!("{test}: invariants"));
        }
        show_invariant(invariant);
    }
    let (passed, all) = (report.passed(), report.cases.len());
    let (proven, claims) = (report.proven(), report.invariants.len());
    match all {
        0 if claims == 0 => say("no case: the set holds no PolicyTest"),
        0 => {}
        _ if passed == all => say(format_args!("ok: {} passed", plural(all, "case"))),
        _ => say(format_args!("{} of {} failed", all - passed, plural(all, "case"))),
    }
    match claims {
        0 => {}
        _ if proven == claims => say(format_args!("ok: {} proven", plural(claims, "invariant"))),
        _ => say(format_args!("{} of {} not proven", claims - proven, plural(claims, "invariant"))),
    }
    let Some(least) = args.min_coverage.or_else(|| args.coverage.then_some(0)) else { return };
    let (covered, rules) = (report.covered(), report.rules.len());
    say(format_args!("coverage: {}%, {covered} of {}", report.percent(), plural(rules, "rule")));
    for missed in report.rules.iter().filter(|rule| !rule.covered) {
        say(format_args!("  no case reaches {} ({})", missed.rule, missed.rule.place));
    }
    if !enough {
        say(format_args!("that is less than {least}%"));
    }
}

fn show_case(case: &CaseResult) {
    if case.passed {
        return say(format_args!("  ✓ {}", case.case));
    }
    say(format_args!("  ✗ {} ({})", case.case, case.place));
    say(format_args!("      expected: {}", case.expected));
    say(format_args!("      got:      {}", case.got));
    for line in case.explanation.iter().flat_map(|text| text.lines()) {
        say(format_args!("      {line}"));
    }
}

fn show_invariant(invariant: &InvariantResult) {
    if invariant.proven {
        return say(format_args!("  ✓ {}: {}", invariant.invariant, invariant.outcome));
    }
    say(format_args!("  ✗ {} ({})", invariant.invariant, invariant.place));
    say(format_args!("      {}", invariant.outcome));
    if let Some(witness) = &invariant.witness {
        say(format_args!("      postern policy explain DOCUMENTS {witness}"));
    }
    for line in invariant.explanation.iter().flat_map(|text| text.lines()) {
        say(format_args!("      {line}"));
    }
}
