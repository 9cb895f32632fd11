use std::fs;
use std::path::Path;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{HeaderFields, SourceFile, TokenSet};
use serde_json::Value;

use super::*;
use crate::authorize;
use crate::config::Config;
use crate::connections::{Direction, End, Facts, Operation, Stream};
use crate::error::Reason;
use crate::testing;

const POLICY: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: reads, to: [{methods: [GET], headers: [{name: x-tenant, exact: [a]}]}]}
  - {name: never, to: [{methods: [PUT], headers: [{name: authorization, present: true}, {name: x-user, present: true}]}]}
  - {name: tunnels, to: [{ports: [9000]}]}
";

fn config(path: &Path, more: &str) -> DecisionLogConfig {
    DecisionLogConfig {
        path: Some(path.to_owned()),
        allow: 1.0,
        deny: 1.0,
        max_bytes_per_second: 1 << 20,
        rotate_bytes: 1 << 20,
        rotate_keep: 2,
        show_headers: more.split(',').map(str::to_owned).collect(),
    }
}

fn sidecar(log: DecisionLogConfig) -> Arc<Sidecar> {
    let mut sidecar = testing::sidecar("");
    let own = Arc::get_mut(&mut sidecar).expect("it is new");
    own.decision_log = Some(DecisionLogger::new(&log));
    own.config.decision_log = Some(log);
    let generation = testing::generation(&sidecar, 7, POLICY);
    sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(generation));
    sidecar
}

fn http(method: &str, path: &str, fields: &[(&str, &str)]) -> Facts {
    let method = CanonMethod::parse(method).expect("a literal, or a file that was written");
    let path = CanonPath::parse_for(&method, path, &Default::default())
        .expect("a literal, or a file that was written");
    let mut headers = HeaderFields::new();
    for (name, value) in fields {
        headers.push(name, value).expect("a literal, or a file that was written");
    }
    let host = CanonHost::parse("orders.shop").expect("a literal, or a file that was written");
    let operation =
        Operation::Http { method, path, host, headers, upgrade: None, tokens: TokenSet::absent() };
    Facts { port: 8080, operation, destination: None, asked: None }
}

fn tunnel(operation: Operation) -> Facts {
    Facts { port: 9_000, operation, destination: None, asked: None }
}

fn judge(sidecar: &Arc<Sidecar>, facts: Facts) {
    let connection = testing::connection(sidecar, Direction::Inbound);
    let stream = Box::new(Stream::open(sidecar, connection.connection(), facts));
    let _ = authorize::stream(sidecar, &stream, &sidecar.snapshots.load());
    stream.answered(200);
    stream.finish(End::Complete);
}

fn flush(sidecar: &Sidecar) {
    sidecar.decision_log.as_ref().expect("it is configured").flush();
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a literal, or a file that was written");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn lines_are_as_the_schema_says_and_hold_no_secret() {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/decision-log.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions.jsonl");
    let sidecar = sidecar(config(&path, "x-tenant"));
    start(&sidecar).unwrap();
    let secret =
        [("x-tenant", "a"), ("authorization", "Bearer s3cret"), ("x-user", "ada"), ("cookie", "c=s3cret")];
    judge(&sidecar, http("GET", "/v1/7?token=s3cret", &secret));
    judge(&sidecar, http("PUT", "/v1/7", &secret[..1]));
    judge(&sidecar, tunnel(Operation::Tcp));
    judge(&sidecar, tunnel(Operation::Tls { sni: CanonHost::parse("db.shop").ok() }));
    sidecar.snapshots.publish(|snapshot| snapshot.policy = None);
    judge(&sidecar, http("GET", "/", &[]));
    flush(&sidecar);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("ada"), "{text}");
    let lines = lines(&path);
    for line in &lines {
        let errors: Vec<String> = validator.iter_errors(line).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}\n{errors:#?}");
    }
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    let both = ["decision", "end"];
    assert_eq!(
        kinds,
        [&both[..], &["decision"], &both, &both, &["decision"]].concat(),
        "denials have no end"
    );
    let first = &lines[0];
    assert_eq!((first["path"].as_str(), first["rule"].as_str()), (Some("/v1/7"), Some("shop/p/reads")));
    let header = |name: &str| {
        first["headers"].as_array().unwrap().iter().find(|header| header["name"] == name).cloned().unwrap()
    };
    assert_eq!(header("x-tenant")["value"], "a");
    assert_eq!(header("authorization")["withheld"], true);
    assert!(header("x-user")["masked"].as_str().is_some_and(|mask| mask.len() == 16));
    assert_eq!(first["headers"].as_array().unwrap().len(), 3, "no other field is there");
    assert_eq!((lines[1]["id"].as_str(), lines[1]["status"].as_u64()), (first["id"].as_str(), Some(200)));
    assert_eq!((lines[2]["effect"].as_str(), lines[2]["reason"].as_str()), (Some("deny"), Some("no_rule")));
    assert_eq!(lines[7]["reason"], "no_policy");
    // And the schema says something.
    let mut wrong = first.clone();
    wrong["path"] = Value::Null;
    assert!(!validator.is_valid(&wrong));
    wrong = first.clone();
    wrong["token"] = "x".into();
    assert!(!validator.is_valid(&wrong));
}

#[test]
fn a_token_that_does_not_hold_is_told_without_the_token() {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/decision-log.schema.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions.jsonl");
    let sidecar = sidecar(config(&path, ""));
    start(&sidecar).unwrap();
    let connection = testing::connection(&sidecar, Direction::Inbound);
    let facts = http("GET", "/v1/7", &[("authorization", "Bearer s3cret")]);
    let stream = Stream::open(&sidecar, connection.connection(), facts);
    let judgement = authorize::refuse_token(&sidecar, &stream, &sidecar.snapshots.load(), "expired");
    assert_eq!(judgement.refused, Some(Reason::TokenInvalid));
    flush(&sidecar);
    let lines = lines(&path);
    assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&lines[0]), "{}", lines[0]);
    assert_eq!(lines[0]["id"], judgement.id.to_string());
    assert_eq!((&lines[0]["effect"], &lines[0]["reason"]), (&"deny".into(), &"token_invalid".into()));
    assert_eq!((&lines[0]["tokenError"], &lines[0]["generation"]), (&"expired".into(), &7.into()));
    assert!(!lines[0].to_string().contains("s3cret"), "{}", lines[0]);
    let remembered = &sidecar.decisions.recent()[0];
    assert_eq!((remembered.reason(), remembered.id), ("token_invalid", judgement.id));
}

#[test]
fn the_same_ids_are_sampled_everywhere_and_about_as_many_as_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let rare = DecisionLogConfig { allow: 0.1, deny: 0.0, ..config(&dir.path().join("a"), "") };
    let (one, other) = (DecisionLogger::new(&rare), DecisionLogger::new(&rare));
    let log = crate::decisions::DecisionLog::new(0xabcdef);
    let ids: Vec<DecisionId> = (0..10_000).map(|_| log.id(3)).collect();
    let taken = ids.iter().filter(|id| one.samples(**id, true)).count();
    assert!((800..1_200).contains(&taken), "{taken}");
    assert!(ids.iter().all(|id| one.samples(*id, true) == other.samples(*id, true)));
    assert!(ids.iter().all(|id| !one.samples(*id, false)));
    let all = DecisionLogger::new(&config(&dir.path().join("a"), ""));
    assert!(ids.iter().all(|id| all.samples(*id, true)));
}

#[test]
fn a_flood_is_bounded_on_its_way_and_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions.jsonl");
    let small = DecisionLogConfig {
        rotate_bytes: 4_096,
        rotate_keep: 2,
        max_bytes_per_second: 40_000,
        ..config(&path, "")
    };
    let sidecar = sidecar(small);
    // Nobody writes yet: the queue fills, and nothing waits.
    for _ in 0..QUEUE + 100 {
        judge(&sidecar, http("POST", "/denied", &[]));
    }
    assert_eq!(sidecar.metrics.decision_dropped[0].get(), 100);
    assert!(sidecar.decision_log.as_ref().unwrap().queued.load(Ordering::Relaxed) <= QUEUE_BYTES);
    start(&sidecar).unwrap();
    flush(&sidecar);
    flush(&sidecar);
    assert_eq!(sidecar.decision_log.as_ref().unwrap().queued.load(Ordering::Relaxed), 0);
    let (written, rate) = (sidecar.metrics.decision_lines.get(), sidecar.metrics.decision_dropped[1].get());
    assert_eq!(written + rate, QUEUE as u64);
    assert!(written > 10 && rate > 1_000, "{written} {rate}");
    let sizes: Vec<u64> =
        fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 4_096), "{sizes:?}");
}

#[test]
fn what_cannot_be_written_is_counted_and_a_line_cut_off_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions.jsonl");
    // A link can be replaced in one step: at no moment is there nothing, which the log would make anew.
    std::os::unix::fs::symlink(dir.path(), &path).unwrap();
    let sidecar = sidecar(config(&path, ""));
    start(&sidecar).unwrap();
    judge(&sidecar, http("POST", "/denied", &[]));
    flush(&sidecar);
    assert_eq!(sidecar.metrics.decision_dropped[2].get(), 1);
    let cut = dir.path().join("cut");
    fs::write(&cut, "{\"v\":1,\"ki").unwrap();
    fs::rename(&cut, &path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while sidecar.metrics.decision_lines.get() == 0 {
        judge(&sidecar, http("POST", "/denied", &[]));
        flush(&sidecar);
        assert!(Instant::now() < deadline, "it is tried again");
    }
    let text = fs::read_to_string(&path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("{\"v\":1,\"ki"));
    let next: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(next["kind"], "dropped", "what was lost is told where it is missing");
}

#[test]
fn the_configuration_is_checked_with_its_places() {
    let parse = |section: &str| {
        let text = format!("{}decisionLog: {section}\n", testing::CONFIG);
        Config::parse(&SourceFile { name: "sidecar.yaml".to_owned(), text: text.into_bytes() })
            .map_err(|errors| errors.to_string())
    };
    let config = parse("{path: /log, sample: {allow: 0.5}, rotate: {keep: 1}, showHeaders: [x-a]}").unwrap();
    let log = config.decision_log.unwrap();
    assert_eq!((log.allow, log.deny, log.rotate_keep, log.show_headers.len()), (0.5, 1.0, 1, 1));
    assert!(parse("{stdout: true}").is_ok());
    for (section, says) in [
        ("{}", "needs `path`"),
        ("{path: /log, stdout: true}", "not both"),
        ("{path: /log, sample: {allow: 1.5}}", "between 0 and 1"),
        ("{path: /log, sample: {allow: -1}}", "between 0 and 1"),
        ("{path: /log, maxBytesPerSecond: 1}", "between 1024"),
        ("{path: /log, rotate: {bytes: 1}}", "between 65536"),
        ("{path: /log, rotate: {keep: 101}}", "at most 100"),
        ("{path: /log, showHeaders: [authorization]}", "never written"),
        ("{path: /log, showHeaders: [Cookie]}", "lower case"),
        ("{path: /log, shows: []}", "unknown"),
    ] {
        let error = parse(section).expect_err(section);
        assert!(error.contains(says) && error.contains("sidecar.yaml:1"), "{error}");
    }
}
