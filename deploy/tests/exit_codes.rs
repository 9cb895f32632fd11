//! What every verb's exit code says: 0 it worked, 1 it failed or the call is denied, 2 the asker's mistake.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern")).args(arguments).output().expect("the binary starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn check(arguments: &[&str], code: i32, says: &str) {
    let ended = run(arguments);
    assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {}", text(&ended));
    assert!(text(&ended).contains(says), "{arguments:?} must say {says:?}: {}", text(&ended));
}

const DOCUMENT: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec: {action: Allow, rules: [{name: web, from: [{serviceAccounts: [web]}]}]}
";

fn document(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("policy.yaml");
    std::fs::write(&path, text).expect("the directory can be written to");
    let path = path.display().to_string();
    (directory, path)
}

/// `postern policy fmt - <a >b && mv b a` must not lose the file when the disk is full.
#[test]
fn of_answers_that_get_lost() {
    let (_good, good) = document(DOCUMENT);
    for arguments in [&["policy", "check", &*good][..], &["policy", "fmt", "-"], &["policy", "schema"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let ended = Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(arguments)
            .stdin(std::fs::File::open(&good).expect("it was written"))
            .stdout(full)
            .output()
            .expect("the binary starts");
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {}", text(&ended));
        assert!(
            text(&ended).contains("standard output cannot be written"),
            "{arguments:?}: {}",
            text(&ended)
        );
    }
}

#[test]
fn of_policy() {
    let (_good, good) = document(DOCUMENT);
    let (_bad, bad) = document("kind: Nothing\n");
    check(&["policy"], 2, "Usage");
    check(&["policy", "check"], 2, "required");
    check(&["policy", "check", "/nowhere/of-it.yaml"], 2, "/nowhere/of-it.yaml");
    check(&["policy", "check", &good], 0, "ok: 1 document");
    check(&["policy", "check", &bad], 1, "policy.yaml:1:7");
    check(&["policy", "check", &good, "--trust-domain", "A B"], 2, "--trust-domain");
    let asked = ["policy", "explain", &good, "--from", "shop/web", "--to", "shop/orders:80"];
    let explain = |more: &[&str], code, says: &str| check(&[&asked[..], more].concat(), code, says);
    explain(&["GET", "/"], 0, "allowed by rule");
    explain(&["TRACE", "/"], 1, "denied");
    explain(&[], 2, "required");
    explain(&["GET"], 2, "METHOD /path");
    explain(&["GET", "/", "more"], 2, "more");
    explain(&["GET", "/", "--labels", "a"], 2, "--labels");
    explain(&["GET", "/", "--address", "here"], 2, "--address");
    let other = |from: &str, to: &str, file: &str, says: &str| {
        check(&["policy", "explain", file, "--from", from, "--to", to, "GET", "/"], 2, says);
    };
    other("web", "shop/orders:80", &good, "--from");
    other("shop/web", "orders", &good, "--to");
    other("shop/web", "shop/orders", &good, "port");
    other("shop/web", "shop/orders:80", &bad, "no answer from these documents");
    other("shop/web", "shop/orders:80", "/nowhere", "/nowhere");
}

#[test]
fn of_ca_and_control() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let nothing = directory.path().join("state").display().to_string();
    let out = directory.path().join("token").display().to_string();
    check(&["ca"], 2, "Usage");
    check(&["ca", "status"], 2, "required");
    let deny = |what: &[&str], code, says: &str| {
        let place = ["--state-dir", &nothing, "--trust-domain", "td", "--reason", "test"];
        check(&[&["ca", "deny"], what, &place].concat(), code, says);
    };
    deny(&["id", "spiffe://td/a"], 2, "--for");
    deny(&["id", "spiffe://td/a", "--for", "1d"], 1, "no CA has been here");
    deny(&["id", "nobody", "--for", "1d"], 2, "nobody");
    deny(&["serial", "00"], 2, "hexadecimal");
    deny(&["serial", "5a", "--for", "0s"], 2, "length of time");
    deny(&["key", "5a"], 2, "64 hexadecimal digits");
    check(&["ca", "deny", "serial", "5a", "--config", "x"], 2, "--reason");
    check(&["ca", "deny", "serial", "5a", "--config", "x", "--reason", "\u{1b}[2J"], 2, "printable ASCII");
    check(&["ca", "allow-again", "serial", "5a"], 2, "--reason");
    let again = ["ca", "allow-again", "serial", "5a", "--config", "x", "--reason", "r"];
    check(&[&again[..], &["--for", "1d"]].concat(), 2, "belongs to postern ca deny");
    check(&["ca", "taint"], 2, "--reason");
    check(&["ca", "root", "activate", "--force", "--config", "x"], 2, "--reason");
    check(&["ca", "clock", "confirm", "--config", "x"], 2, "--reason");
    check(&["ca", "clock", "show"], 2, "required");
    check(&["ca", "root", "prepare"], 2, "required");
    check(&["ca", "who", "--admin", "127.0.0.1:1"], 1, "is postern control running?");
    check(&["ca", "who", "--admin", "nowhere"], 2, "address with a port");
    check(&["ca", "status", "--config", "/nowhere/of-it.yaml"], 2, "/nowhere/of-it.yaml");
    check(&["ca", "status", "--state-dir", &nothing], 2, "--trust-domain");
    check(&["ca", "status", "--state-dir", &nothing, "--trust-domain", "td"], 1, "no CA has been here");
    let create = |id: &str, more: &[&str], says: &str| {
        let known = ["ca", "token", "create", "--id", id, "--state-dir", &nothing, "--out", &out];
        check(&[&known[..], more].concat(), 2, says);
    };
    create("web", &[], "--id");
    create("spiffe://td/ns/a/sa/b", &["--ttl", "soon"], "30s, 10m or 1h");
    create("spiffe://td/ns/a/sa/b", &["--ttl", "1000h"], "the next few minutes");
    create("spiffe://td/ns/a/sa/b", &["--config", "c.yaml"], "cannot be used with");
    check(&["control"], 2, "required");
    check(&["control", "--config", "/nowhere/of-it.yaml"], 2, "/nowhere/of-it.yaml");
    check(&["sidecar"], 2, "required");
    assert!(!directory.path().join("state").exists(), "nothing is made by a question");
}

/// A sidecar that answers one request with this, and what it was asked.
fn answering(status: &str, body: &str) -> (tempfile::TempDir, String, Receiver<String>) {
    let (ask, asked) = channel();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("admin.sock");
    let listener = UnixListener::bind(&path).expect("the directory is ours");
    let answer = format!("HTTP/1.0 {status}\r\n\r\n{body}");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody asks");
        let mut reader = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            let said = line.strip_prefix("Content-Length: ").and_then(|said| said.trim().parse().ok());
            length = said.unwrap_or(length);
            line.clear();
        }
        // All of it, or the asker would write to nobody.
        let mut question = vec![0; length];
        reader.read_exact(&mut question).expect("the question is whole");
        let _ = ask.send(String::from_utf8(question).expect("questions are text"));
        reader.into_inner().write_all(answer.as_bytes()).expect("the asker waits");
    });
    let path = path.display().to_string();
    (directory, path, asked)
}

#[test]
fn of_proxy() {
    check(&["proxy"], 2, "Usage");
    check(&["proxy", "ready"], 2, "--socket");
    let nobody = ["proxy", "--socket", "/nowhere/admin.sock"];
    check(&[&nobody[..], &["drain"]].concat(), 1, "/nowhere/admin.sock");
    check(&[&nobody[..], &["set-log"]].concat(), 2, "required");
    check(&[&nobody[..], &["explain", "--port", "80", "GET"]].concat(), 2, "METHOD and PATH");
    check(&[&nobody[..], &["explain", "--port", "http"]].concat(), 2, "--port");
    let explain = &["explain", "--from", "spiffe://td/x", "--port", "80", "GET", "/"][..];
    let verdict = |allowed| {
        format!("{{\"explanation\": {{\"verdict\": {{\"allowed\": {allowed}}}}}, \"text\": \"so\"}}")
    };
    for (status, body, verb, code, says) in [
        ("200 OK", "{\"a\": 1}", &["identity"][..], 0, "\"a\": 1"),
        ("200 OK", "ready\n", &["ready"], 0, "ready"),
        ("503 Service Unavailable", "no_policy\n", &["ready"], 1, "no_policy"),
        ("400 Bad Request", "{\"error\": \"what\"}", &["set-log", "loud"], 2, "what"),
        ("409 Conflict", "{\"error\": \"no policy is in force\"}", explain, 1, "no policy"),
        ("200 OK", &verdict(true), explain, 0, "so"),
        ("200 OK", &verdict(false), explain, 1, "so"),
        ("nonsense", "", &["drain"], 1, "not HTTP"),
    ] {
        let (_directory, socket, _) = answering(status, body);
        check(&[&["proxy", "--socket", &socket][..], verb].concat(), code, says);
    }
}

#[test]
fn proxy_explain_asks_for_what_it_was_told() {
    for (flags, host, headers) in [
        (&[][..], "null", "null"),
        (&["--host", "orders.shop"], "\"orders.shop\"", "null"),
        (
            &["--header", "X-Team: red:blue ", "--header", "x-empty:"],
            "null",
            "[[\"X-Team\",\"red:blue\"],[\"x-empty\",\"\"]]",
        ),
    ] {
        let body = "{\"explanation\": {\"verdict\": {\"allowed\": true}}, \"text\": \"so\"}";
        let (_directory, socket, asked) = answering("200 OK", body);
        let explain = ["proxy", "--socket", &socket, "explain", "--port", "80"];
        check(&[&explain[..], flags, &["GET", "/"]].concat(), 0, "so");
        let question = asked.recv().expect("it was asked");
        for part in
            [format!("\"host\":{host}"), format!("\"headers\":{headers}"), "\"path\":\"/\"".to_owned()]
        {
            assert!(question.contains(&part), "{part}: {question}");
        }
    }
    let nobody = ["proxy", "--socket", "/nowhere/admin.sock", "explain", "--port", "80"];
    check(&[&nobody[..], &["--header", "x-team", "GET", "/"]].concat(), 2, "a name, a colon and a value");
    check(&[&nobody[..], &["--host", "orders.shop"]].concat(), 2, "opaque TCP has no host");
    check(&[&nobody[..], &["--header", "a: b"]].concat(), 2, "opaque TCP has no host");
}

/// `postern … | head -1`: a pipe that nobody reads any more.
#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (_good, good) = document(DOCUMENT);
    let explain = ["policy", "explain", &good, "--from", "shop/web", "--to", "shop/orders:80", "GET", "/"];
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    let [state, out] = ["state", "token"].map(|name| directory.path().join(name).display().to_string());
    let place = ["--state-dir", &state, "--trust-domain", "td"];
    let create =
        [&["ca", "token", "create", "--id", "spiffe://td/ns/a/sa/b", "--out", &out], &place[..]].concat();
    let status = [&["ca", "status"], &place[..]].concat();
    for arguments in
        [&["policy", "check", &good][..], &["policy", "check", &good, "--json"], &explain, &create, &status]
    {
        let (reader, writer) = std::io::pipe().expect("pipes can be made");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        let child = command.args(arguments).stdout(writer).stderr(Stdio::piped()).spawn();
        let ended = child.and_then(std::process::Child::wait_with_output).expect("the binary starts");
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {}", text(&ended));
    }
}
