//! `postern policy open --documents`: glass that is broken for all who read a directory.

use std::fs;
use std::path::Path;
use std::process::Command;

const DENY: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: none, namespace: shop}
spec: {action: Deny, rules: [{name: all}]}
";

fn policy(arguments: &[&str], directory: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    let output = command.arg("policy").args(arguments).arg(directory).output().expect("the binary starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).expect("it is there").count()
}

const OPEN: [&str; 9] =
    ["open", "--namespace", "shop", "--for", "15m", "--reason", "orders are down", "--from", "shop/web"];

fn open(more: &[&str]) -> Vec<&'static str> {
    let more: Vec<&'static str> =
        more.iter().map(|word| &*Box::leak((*word).to_owned().into_boxed_str())).collect();
    [&OPEN[..], &more, &["--documents"]].concat()
}

#[test]
fn it_opens_lists_and_closes() {
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path();
    fs::write(path.join("deny.yaml"), DENY).expect("it is ours");
    let shown = path.display().to_string();
    let ask = |caller: &str| {
        let arguments = ["explain", &shown, "--to", "shop/orders:80", "--from", caller, "GET"];
        policy(&arguments, Path::new("/")).0
    };
    assert_eq!(ask("shop/web"), Some(1));
    let (code, said) = policy(&open(&["--by", "ada"]), path);
    assert!(code == Some(0) && said.contains("is open until"), "{said}");
    assert_eq!(
        (files(path), ask("shop/web"), ask("shop/other"), ask("unauthenticated")),
        (2, Some(0), Some(1), Some(1))
    );
    let (code, said) = policy(&["check"], path);
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = policy(&["open", "--list", "--documents"], path);
    assert!(said.contains("by ada: orders are down") && !said.contains("not now"), "{said}");
    let (code, said) = policy(&["open", "--close", "none", "--documents"], path);
    assert!(code == Some(1) && files(path) == 2, "an ordinary document is nothing to close: {said}");
    let (code, said) = policy(&["open", "--close", "--documents"], path);
    assert!(code == Some(0) && files(path) == 1, "{said}");
    assert_eq!(ask("shop/web"), Some(1));
    let (_, said) = policy(&["open", "--list", "--json", "--documents"], path);
    assert_eq!(said.trim(), r#"{"ok":true,"open":[]}"#);
}

#[test]
fn what_would_not_open_writes_nothing() {
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path();
    fs::write(path.join("bad.yaml"), DENY.replace("Deny", "Dny")).expect("it is ours");
    let (code, said) = policy(&open(&[]), path);
    assert!(code == Some(1) && said.contains("--sidecar") && files(path) == 1, "{said}");
    fs::write(path.join("bad.yaml"), DENY).expect("it is ours");
    for (flag, value) in
        [("--for", "5h"), ("--for", "soon"), ("--reason", " "), ("--namespace", "a: b"), ("--from", "web")]
    {
        let mut arguments = open(&[]);
        let at = arguments.iter().position(|word| *word == flag).expect("it is there");
        arguments[at + 1] = value;
        let (code, said) = policy(&arguments, path);
        assert!(code == Some(2) && files(path) == 1, "{flag} {value}: {said}");
    }
}
