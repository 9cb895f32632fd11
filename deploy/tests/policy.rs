//! `postern policy test`, and the shop that docs/examples shows.

use std::path::Path;
use std::process::{Command, Output};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/shop");

fn policy(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("policy").args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The shop, with changes to one of its files: text and what stands there instead.
fn shop_with(file: &str, changes: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for entry in std::fs::read_dir(SHOP).expect("the example is there") {
        let path = entry.expect("it can be listed").path();
        let mut content = std::fs::read_to_string(&path).expect("it can be read");
        let name = path.file_name().expect("files have names");
        if name == Path::new(file) {
            for (from, to) in changes {
                assert!(content.contains(from), "{file} does not hold {from}");
                content = content.replacen(from, to, 1);
            }
        }
        std::fs::write(directory.path().join(name), content).expect("the directory can be written to");
    }
    directory
}

fn tested(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let path = directory.display().to_string();
    let output = policy(&[&["test", &path], arguments].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn the_example_loads_without_a_warning_and_its_tests_reach_every_rule() {
    let checked = policy(&["check", SHOP]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let said = text(&checked.stdout);
    assert!(
        said.contains("21 services, 1 rate limit policy, 1 egress policy, 21 policy tests")
            && !said.contains("warning"),
        "{said}"
    );
    let (code, said) = tested(Path::new(SHOP), &["--coverage", "--min-coverage", "100"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("coverage: 100%") && !said.contains('✗'), "{said}");
}

#[test]
fn a_limit_that_counts_something_else_fails_its_cases() {
    let change =
        ("match: {methods: [POST], paths: [\"/v1/charges/{*}/refunds\"]}", "match: {methods: [PUT]}");
    let shop = shop_with("pay.yaml", &[change]);
    let (code, said) = tested(shop.path(), &[]);
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "✗ a refund (",
        "under the limits pay/payments-limits/per-caller, pay/payments-limits/refunds, pay/payments-limits/total",
        "counted by limit pay/payments-limits/total (",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
}

#[test]
fn a_rule_that_says_something_else_fails_its_cases_with_the_reason() {
    let change = ("from: [{serviceAccounts: [shop/checkout]}]", "from: [{serviceAccounts: [shop/chekout]}]");
    let shop = shop_with("pay.yaml", &[change]);
    let (code, said) = tested(shop.path(), &[]);
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "✗ a charge (",
        "pay-test.yaml:",
        "expected: allowed by pay/payments/charges",
        "got:      denied by default",
        "to allow it:",
        "1 of 103 cases failed",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("coverage"), "{said}");
    let (code, json) = tested(shop.path(), &["--json", "--coverage"]);
    assert_eq!(code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    let failed: Vec<_> =
        json["cases"].as_array().expect("a list").iter().filter(|case| case["passed"] == false).collect();
    assert_eq!((json["ok"].as_bool(), json["passed"].as_u64(), failed.len()), (Some(false), Some(102), 1));
    assert_eq!((&failed[0]["test"], &failed[0]["case"]), (&"pay/payments".into(), &"a charge".into()));
    assert_eq!(json["coverage"]["percent"], 98);
}

/// The request that is shown is a question that can be copied, and is answered as was said.
#[test]
fn an_invariant_that_is_broken_names_a_request_that_breaks_it() {
    let change = (
        "from: [{serviceAccounts: [shop/checkout]}]",
        "from: [{serviceAccounts: [shop/checkout, shop/cart]}]",
    );
    let shop = shop_with("pay.yaml", &[change]);
    let (code, said) = tested(shop.path(), &[]);
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "✗ only the checkout charges (",
        "pay-test.yaml:",
        "1 of 8 invariants not proven",
        "103 cases passed",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("a request is allowed by pay/payments/charges"), "{said}");
    let shown = said.lines().find_map(|line| line.trim().strip_prefix("postern policy explain DOCUMENTS "));
    // As a shell takes it apart: quotes stand around whole words.
    let mut words: Vec<&str> = Vec::new();
    for (n, part) in shown.expect("a request is shown").split('\'').enumerate() {
        match n % 2 {
            1 => words.push(part),
            _ => words.extend(part.split_whitespace()),
        }
    }
    let path = shop.path().display().to_string();
    let answered = policy(&[&["explain", &path], words.as_slice()].concat());
    assert_eq!(answered.status.code(), Some(0), "{words:?}: {}", text(&answered.stderr));
    assert!(text(&answered.stdout).contains("allowed by rule pay/payments/charges"), "{answered:?}");
    let (code, json) = tested(shop.path(), &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!((code, json["ok"].as_bool(), json["proven"].as_u64()), (Some(1), Some(false), Some(7)));
    let of = |proven: bool| {
        let all = json["invariants"].as_array().expect("a list");
        all.iter().find(|one| one["proven"] == proven).expect("there is one").clone()
    };
    assert!(of(true)["classes"].as_u64() > Some(1) && of(true).get("witness").is_none());
    assert!(
        of(false)["witness"]
            .as_str()
            .is_some_and(|line| line.contains("spiffe://shop.example/ns/shop/sa/cart"))
    );
}

#[test]
fn a_rule_that_no_case_reaches_is_named_and_fails_where_all_are_asked_for() {
    let case = "  - name: take\n    request: {from: checkout, method: POST, path: /v1/carts/7/take}\n    expect: {allow: cart/take}\n";
    let shop = shop_with("shop-test.yaml", &[(case, "")]);
    for (arguments, code, words) in [
        (&["--coverage"][..], 0, "no case reaches shop/cart/take ("),
        (&["--min-coverage", "98"], 0, "98%, 68 of 69 rules"),
        (&["--min-coverage", "99"], 1, "that is less than 99%"),
    ] {
        let (found, said) = tested(shop.path(), arguments);
        assert!(found == Some(code) && said.contains(words), "{arguments:?}: {found:?} {said}");
    }
}

#[test]
fn what_tests_nothing_is_no_success() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    assert_eq!(tested(directory.path(), &[]).0, Some(1), "no documents");
    std::fs::copy(Path::new(SHOP).join("mesh.yaml"), directory.path().join("mesh.yaml")).expect("it is ours");
    let (code, said) = tested(directory.path(), &[]);
    assert!(code == Some(1) && said.contains("holds no PolicyTest"), "{said}");
    let shop = shop_with("shop-test.yaml", &[("allow: cart/take", "allow: cart/tkae")]);
    let (code, said) = tested(shop.path(), &[]);
    assert!(code == Some(1) && said.contains("did you mean `shop/cart/take`?"), "{said}");
    assert!(said.contains("nothing was tested"), "{said}");
    // A sidecar would load it: tests keep no rule out of the mesh.
    let path = shop.path().display().to_string();
    let checked = policy(&["check", &path]);
    assert!(checked.status.success() && text(&checked.stderr).contains("did you mean `shop/cart/take`?"));
    assert_eq!(tested(shop.path(), &["--min-coverage", "101"]).0, Some(2));
    assert_eq!(policy(&["test"]).status.code(), Some(2));
    assert_eq!(policy(&["test", "/nowhere/of-it"]).status.code(), Some(2));
}
