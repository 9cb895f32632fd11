//! `postern policy import istio` and `export envoy`, by their exit codes and what they write.

use std::path::Path;
use std::process::{Command, Output};

fn policy(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("policy").args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(directory: &Path, name: &str, spec: &str) -> String {
    let path = directory.join(name);
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
    );
    std::fs::write(&path, text).expect("the directory can be written to");
    path.display().to_string()
}

#[test]
fn what_can_be_said_is_rewritten_and_loads() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let exact =
        write(directory.path(), "a.yaml", "rules: [{to: [{operation: {methods: [GET], paths: [/v1/*]}}]}]");
    let out = directory.path().join("out");
    let done = policy(&["import", "istio", &exact, "--out", &out.display().to_string()]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout).trim(), out.join("shop.yaml").display().to_string());
    let checked = policy(&["check", &out.display().to_string()]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));

    // What stands in the directory may be what is imported: it is never written over, and nothing is written beside it.
    let before = std::fs::read(out.join("shop.yaml")).expect("it was written");
    let again = policy(&["import", "istio", &exact, "--out", &out.display().to_string()]);
    assert_eq!((again.status.code(), text(&again.stdout).as_str()), (Some(2), ""));
    assert!(text(&again.stderr).contains("not written over"), "{}", text(&again.stderr));
    assert_eq!(std::fs::read(out.join("shop.yaml")).expect("it is still there"), before);
    let json = directory.path().join("json");
    let done = policy(&["import", "istio", "--json", &exact, "--out", &json.display().to_string()]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(std::fs::read(json.join("shop.yaml")).expect("JSON or not, it is written"), before);

    let names = write(directory.path(), "b.yaml", "rules: [{from: [{source: {namespaces: [web]}}]}]");
    let kept = policy(&["import", "istio", &names]);
    let said = text(&kept.stdout);
    assert_eq!(kept.status.code(), Some(1), "{said}");
    assert!(said.contains("# shop/p/rule-0 (") && said.contains("# namespace shop stays Istio's"), "{said}");
    let stricter = policy(&["import", "istio", &names, "--lossy"]);
    let said = text(&stricter.stdout);
    assert_eq!(stricter.status.code(), Some(0), "{said}");
    assert!(said.contains("kind: AccessPolicy") && said.contains("# stricter than Istio's"), "{said}");
}

#[test]
fn filters_of_envoy_are_written_or_the_rule_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let exact = write(directory.path(), "a.yaml", "rules: [{to: [{operation: {methods: [GET]}}]}]");
    let done = policy(&["export", "envoy", &exact, "--workload", "shop/orders"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let filters: serde_json::Value = serde_json::from_slice(&done.stdout).expect("it is JSON");
    let rules = &filters["http"][0]["typed_config"]["rules"];
    assert_eq!(rules["action"], "ALLOW");
    assert!(rules["policies"].get("shop/p/rule-0").is_some(), "{filters:#}");
    // Nothing of it can be said of opaque bytes: nothing is allowed there.
    assert_eq!(filters["tcp"][0]["typed_config"]["rules"]["policies"], serde_json::json!({}));

    let path = directory.path().join("b.yaml");
    let night = "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: night, namespace: shop}\n\
                 spec: {action: Allow, rules: [{name: r, when: {time: {weekly: [\"Mon-Sun 22:00-06:00\"], zone: UTC}}}]}\n";
    std::fs::write(&path, night).expect("the directory can be written to");
    let path = path.display().to_string();
    let refused = policy(&["export", "envoy", &path, "--workload", "shop/orders"]);
    let said = text(&refused.stderr);
    assert_eq!((refused.status.code(), text(&refused.stdout).as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("rule shop/night/r (") && said.contains("knows no hours"), "{said}");
    let nearest = policy(&["export", "envoy", &path, "--workload", "shop/orders", "--lossy"]);
    assert_eq!(nearest.status.code(), Some(0), "{}", text(&nearest.stderr));
}
