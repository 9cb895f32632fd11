//! Every verb of `postern policy` with `--json`: one document on standard output, whatever comes of it, and the same exit
//! code as without.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("policy").args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it says, after what must be so of every answer.
fn ask(arguments: &[&str], code: i32) -> Value {
    let said = run(&[arguments, &["--json"]].concat());
    let (out, err) = (text(&said.stdout), text(&said.stderr));
    assert_eq!(said.status.code(), Some(code), "{arguments:?}: {out}{err}");
    assert_eq!(err, "", "{arguments:?}");
    let answer: Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"));
    if arguments == ["schema"] {
        return answer;
    }
    let ok = answer["ok"].as_bool().unwrap_or_else(|| panic!("{arguments:?}: {out}"));
    // A denied call is an answer, too.
    assert!(if code == 0 { ok } else { !ok || arguments[0] == "explain" }, "{arguments:?}: {out}");
    if code == 2 {
        let errors = answer["errors"].as_array().unwrap_or_else(|| panic!("{arguments:?}: {out}"));
        assert!(!errors.is_empty(), "{arguments:?}");
        assert_eq!(answer.as_object().map(serde_json::Map::len), Some(2), "{arguments:?}: {out}");
    }
    for error in answer["errors"].as_array().into_iter().flatten() {
        let fields = [error["severity"] == "error", error["file"].is_string(), error["message"].is_string()];
        assert!(fields.iter().all(|is_there| *is_there), "{arguments:?}: {out}");
        assert!(error["line"].is_u64() && error["column"].is_u64(), "{arguments:?}: {out}");
    }
    answer
}

const HEAD: &str =
    "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: shop}\n";

fn file(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).expect("the directory can be written to");
    path.display().to_string()
}

#[test]
fn every_verb_answers_with_one_document() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("the directory is ours");
        path
    };
    let documents = at("documents");
    let good = file(
        &documents,
        "good.yaml",
        &format!(
            "{HEAD}spec: {{action: Allow, rules: [{{name: web, from: [{{serviceAccounts: [web]}}]}}]}}\n"
        ),
    );
    let files = at("files");
    let bad = file(&files, "bad.yaml", "kind: Nothing\n");
    let broken = file(&files, "broken.yaml", "a: [\n");
    let night = file(
        &files,
        "night.yaml",
        &format!(
            "{HEAD}spec: {{action: Allow, rules: [{{name: r, when: {{time: {{weekly: [\"Mon-Sun 22:00-06:00\"], zone: UTC}}}}}}]}}\n"
        ),
    );
    let istio = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: ";
    let exact = file(
        &files,
        "exact.yaml",
        &format!("{istio}{{rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}\n"),
    );
    let names = file(
        &files,
        "names.yaml",
        &format!("{istio}{{rules: [{{from: [{{source: {{namespaces: [web]}}}}]}}]}}\n"),
    );
    let (good, documents) = (good.as_str(), documents.display().to_string());
    let (documents, empty) = (documents.as_str(), at("empty").display().to_string());
    let (schemas, imported) =
        (files.join("schemas").display().to_string(), files.join("new").display().to_string());
    let nobody = files.join("nobody.sock").display().to_string();
    let refused = files.display().to_string();
    let asked = ["explain", good, "--to", "shop/orders:80", "--from"];
    let open = ["open", "--namespace", "shop", "--for", "15m", "--reason", "INC-7"];
    let table: &[(&[&str], i32)] = &[
        (&["check", good], 0),
        (&["check", &bad], 1),
        (&["check", &empty], 1),
        (&["check", "/nowhere"], 2),
        (&["check", "/dev/zero"], 2),
        (&["check"], 2),
        (&["check", good, "--nonsense"], 2),
        (&["check", good, "--trust-domain", "A B"], 2),
        (&["check", "--sidecar", &nobody], 2),
        (&[&asked[..], &["shop/web", "GET", "/"]].concat(), 0),
        (&[&asked[..], &["shop/other", "GET", "/"]].concat(), 1),
        (&[&asked[..], &["shop/web", "GET", "/.."]].concat(), 1),
        (&[&asked[..], &["web", "GET", "/"]].concat(), 2),
        (&[&asked[..], &["shop/web"]].concat(), 2),
        (&[&asked[..], &["shop/web", "GET", "/", "--claims", "/dev/zero"]].concat(), 2),
        (&["explain", &bad, "--to", "shop/orders:80", "--from", "shop/web", "GET", "/"], 2),
        (&["explain", "1-2-3", "--sidecar", &nobody], 2),
        (&["export", "envoy", good, "--workload", "shop/orders"], 0),
        (&["export", "envoy", &night, "--workload", "shop/orders"], 1),
        (&["export", "envoy", &night, "--workload", "shop/orders", "--lossy"], 0),
        (&["export", "envoy", &bad, "--workload", "shop/orders"], 1),
        (&["export", "envoy", good, "--workload", "orders"], 2),
        (&["export", "envoy", good], 2),
        (&["export"], 2),
        (&["fmt", "--check", good], 0),
        (&["fmt", &broken], 1),
        (&["fmt", &empty], 1),
        (&["fmt", "/nowhere"], 2),
        (&["fmt", "-"], 0),
        (&["fmt"], 2),
        (&["import", "istio", &exact], 0),
        (&["import", "istio", &exact, "--out", &imported], 0),
        (&["import", "istio", &exact, "--out", &imported], 2),
        (&["import", "istio", &names], 1),
        (&["import", "istio", &names, "--lossy"], 0),
        (&["import", "istio", &bad], 1),
        (&["import"], 2),
        (&["open", "--list", "--documents", documents], 0),
        (&[&open[..], &["--documents", documents]].concat(), 0),
        (&["open", "--list", "--documents", documents], 0),
        (&["open", "--close", "--documents", documents], 0),
        (&["open", "--close", "--documents", documents], 1),
        (&[&open[..], &["--documents", &refused]].concat(), 1),
        (&[&open[..6], &["a\u{202e}b", "--documents", documents]].concat(), 2),
        (&[&open[..], &["--sidecar", &nobody]].concat(), 1),
        (&["open", "--list", "--sidecar", &nobody], 2),
        (&["open"], 2),
        (&["rollback", "--sidecar", &nobody], 1),
        (&["rollback", "--resume", "--sidecar", &nobody, "--sidecar", &nobody], 1),
        (&["rollback"], 2),
        (&["schema"], 0),
        (&["schema", "--out", &schemas], 0),
        (&["schema", "--out", good], 2),
        (&["test", good], 1),
        (&["test", &bad], 1),
        (&["test", "/nowhere"], 2),
        (&["test", "--min-coverage", "200", good], 2),
        (&["nonsense"], 2),
        (&[], 2),
    ];
    let mut verbs: BTreeSet<&str> = BTreeSet::new();
    for (arguments, code) in table {
        ask(arguments, *code);
        verbs.extend(arguments.first().copied());
    }
    // None is forgotten.
    let help = text(&run(&["--help"]).stdout);
    let listed = help
        .split("Commands:")
        .nth(1)
        .and_then(|rest| rest.split("Options:").next())
        .expect("there are verbs");
    // Below a verb's line stand lines that go on, further in.
    let names = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for verb in names.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help") {
        assert!(verbs.contains(verb), "nobody asks `{verb}` for JSON");
    }
    assert!(verbs.len() > 9, "{verbs:?}");
}

#[test]
fn shapes_are_those_of_the_reference() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let night = "spec: {action: Allow, rules: [{name: r, when: {time: {weekly: [\"Mon-Sun 22:00-06:00\"], zone: UTC}}}]}\n";
    let night = file(directory.path(), "night.yaml", &format!("{HEAD}{night}"));
    let refused = ask(&["export", "envoy", &night, "--workload", "shop/orders"], 1);
    let error = &refused["errors"][0];
    assert_eq!((error["file"].as_str(), error["line"].as_u64()), (Some(&*night), Some(4)), "{refused}");
    let lossy = ask(&["export", "envoy", &night, "--workload", "shop/orders", "--lossy"], 0);
    assert!(lossy["http"].is_array() && lossy["tcp"].is_array(), "{lossy}");
    assert_eq!(lossy["warnings"][0]["severity"], "warning", "{lossy}");
    let usage = ask(&["check", &night, "--jsn"], 2);
    let (message, help) = (&usage["errors"][0]["message"], &usage["errors"][0]["help"]);
    assert!(
        message.as_str().is_some_and(|text| text.contains("--jsn") && !text.contains("Usage")),
        "{usage}"
    );
    assert!(help.as_str().is_some_and(|text| text.contains("Usage")), "{usage}");
    let nobody = directory.path().join("nobody.sock").display().to_string();
    let rolled = ask(&["rollback", "--sidecar", &nobody], 1);
    assert_eq!(rolled["sidecars"][0]["sidecar"].as_str(), Some(&*nobody), "{rolled}");
    assert!(rolled["sidecars"][0]["errors"][0]["message"].is_string(), "{rolled}");
    // Without the flag a mistake is told to people.
    let said = run(&["check", "--jsn"]);
    assert!(said.stdout.is_empty() && text(&said.stderr).contains("Usage"), "{}", text(&said.stderr));
}
