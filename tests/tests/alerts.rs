//! The alerts that are shipped: Prometheus accepts them, they come when they must, and what they ask for is there to be scraped.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use postern_tests::{Plan, foreign, wait};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/postern.rules.yaml");

/// Names of our metrics in the rules' expressions.
fn names() -> BTreeSet<String> {
    let rules = std::fs::read_to_string(RULES).expect("the rules are there");
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = expressions.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| word.starts_with("postern_")).map(str::to_owned).collect()
}

#[test]
fn every_metric_that_an_alert_asks_for_is_scraped() {
    let mut plan = Plan::new();
    plan.sidecar("web").serves(80, 8080, "http");
    let mesh = plan.start();
    let control = mesh.control.page("/metrics").expect("it answers").1;
    let pages = control.clone() + &mesh.sidecar("web").page("/metrics").expect("it answers").1;
    let names = names();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let is_there = |line: &str| {
            line.starts_with(&name)
                && !line[name.len()..].starts_with(|c: char| c == '_' || c.is_ascii_alphanumeric())
        };
        assert!(pages.lines().any(is_there), "{name} is not there");
    }
    for series in
        ["kind=\"root\",state=\"active\",label=\"root-", "kind=\"issuing\",state=\"active\",label=\"issuing-"]
    {
        let series = format!("postern_ca_authority_not_after_seconds{{{series}");
        assert!(control.contains(&series), "{series}");
    }
    let due = mesh.sidecar("web").metrics().value("postern_svid_renew_after_seconds");
    assert!(due > 1e9 && due < mesh.sidecar("web").metrics().value("postern_svid_not_after_seconds"));
}

#[test]
fn prometheus_takes_the_rules_and_alerts_come_when_they_must() {
    if !foreign::need(&["promtool"]) {
        return;
    }
    let tests = Path::new(RULES).with_file_name("postern.test.yaml");
    for arguments in [["check", "rules", RULES], ["test", "rules", tests.to_str().expect("it is text")]] {
        let ran = foreign::run(Command::new("promtool").args(arguments), wait::PATIENCE);
        assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.text(), ran.stderr);
    }
}
