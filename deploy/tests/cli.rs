//! The command line of `postern`: exit codes and what it tells people.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern")).args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(name: &str, content: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join(name);
    std::fs::write(&path, content).expect("the directory can be written to");
    let path = path.display().to_string();
    (directory, path)
}

#[test]
fn version_and_help_are_success() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(text(&version.stdout), format!("postern {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&["--help"]);
    assert!(help.status.success());
    for verb in ["ca", "control", "demo", "policy", "proxy", "sidecar"] {
        assert!(text(&help.stdout).contains(&format!("\n  {verb} ")), "{verb}: {}", text(&help.stdout));
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    for wrong in [&[][..], &["contorl"], &["control"], &["ca", "token", "create"], &["proxy", "drain"]] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert!(text(&run(&["contorl"]).stderr).contains("control"), "the right word is suggested");
}

#[test]
fn a_wrong_configuration_is_2_and_shown_with_its_place() {
    let (_directory, path) = file(
        "control.yaml",
        "trustDomain: Demo\nstateDir: /tmp/nowhere\nlisten: {address: \"127.0.0.1:1\"}\nsvid: {ttl: 1s}\n",
    );
    for verb in [
        &["control", "--config", &path][..],
        &["ca", "token", "create", "--id", "spiffe://a/ns/b/sa/c", "--out", "/tmp/x", "--config", &path],
    ] {
        let refused = run(verb);
        assert_eq!(refused.status.code(), Some(2), "{verb:?}");
        let said = text(&refused.stderr);
        assert!(said.contains("control.yaml:1:14") && said.contains("control.yaml:4:13"), "{verb:?}: {said}");
    }
}

const GOOD: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
";

#[test]
fn policies_are_checked_offline() {
    let (_directory, path) = file("policy.yaml", GOOD);
    let checked = run(&["policy", "check", &path]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let (_directory, path) = file("policy.yaml", &GOOD.replace("action: Allow", "action: Alow"));
    let refused = run(&["policy", "check", &path]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let said = text(&refused.stderr) + &text(&refused.stdout);
    assert!(said.contains("policy.yaml:6:11") && said.contains('^'), "{said}");
}

#[test]
fn what_fails_is_1() {
    let nobody = run(&["proxy", "--socket", "/nonexistent/admin.sock", "ready"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("/nonexistent/admin.sock"), "{}", text(&nobody.stderr));
    // A sidecar through `postern` ends as one through `postern-proxy` does.
    assert_eq!(run(&["sidecar", "--config", "/nonexistent.yaml"]).status.code(), Some(2));
}

#[test]
fn a_token_is_written_once_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    let state = directory.path().join("state").display().to_string();
    let out = directory.path().join("token").display().to_string();
    let arguments = [
        "ca",
        "token",
        "create",
        "--id",
        "spiffe://demo.postern/ns/shop/sa/web",
        "--state-dir",
        &state,
        "--trust-domain",
        "demo.postern",
        "--out",
        &out,
    ];
    let made = run(&arguments);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let secret = std::fs::read_to_string(&out).expect("the token was written");
    assert!(!(text(&made.stdout) + &text(&made.stderr)).contains(secret.trim()), "a token is never printed");
    let mode = std::fs::metadata(&out).expect("the token was written").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let again = run(&arguments);
    assert_eq!(again.status.code(), Some(1), "an existing file is never replaced");
    assert_eq!(std::fs::read_to_string(&out).expect("it is still there"), secret);
    let control = run(&[
        "ca",
        "token",
        "create",
        "--id",
        "spiffe://demo.postern/postern/control",
        "--state-dir",
        &state,
        "--out",
        &(out.clone() + "2"),
    ]);
    assert_eq!(control.status.code(), Some(1), "nobody is ever made the control plane");
}

#[test]
fn a_token_never_makes_a_ca_by_accident() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let create = |more: &[&str]| run(&[&["ca", "token", "create"], more].concat());
    let (typo, out) = (at("typo"), at("token"));
    let web = "spiffe://demo.postern/ns/shop/sa/web";

    let nowhere = create(&["--id", web, "--state-dir", &typo, "--out", &out]);
    assert_eq!(nowhere.status.code(), Some(1));
    let said = text(&nowhere.stderr);
    for way_out in [&typo, "--state-dir", "postern control", "--trust-domain"] {
        assert!(said.contains(way_out), "{way_out}: {said}");
    }

    // Whatever else is wrong shows before anything is made.
    let named = ["--state-dir", &typo, "--trust-domain", "demo.postern"];
    let missing = at("missing/token");
    let id_and_file: [(&str, &str); 3] = [
        ("spiffe://foreign/ns/shop/sa/web", &out),
        ("spiffe://demo.postern/postern/control", &out),
        (web, &missing),
    ];
    for (id, out) in id_and_file {
        let refused = create(&[&named[..], &["--id", id, "--out", out]].concat());
        assert_eq!(refused.status.code(), Some(1), "{id} {out}");
        if id.contains("foreign") {
            let said = text(&refused.stderr);
            assert!(said.contains("trust domain foreign") && said.contains("is demo.postern"), "{said}");
        }
    }
    assert_eq!(
        run(&["ca", "status", "--state-dir", &typo, "--trust-domain", "demo.postern"]).status.code(),
        Some(1)
    );
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is ours").count(), 0, "something was left");

    // Where a CA is, its own trust domain counts, and a token that it refuses leaves no file.
    let made = create(&[&named[..], &["--id", web, "--out", &out]].concat());
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let second = at("second");
    let known = ["--state-dir", &typo, "--out", &second];
    let foreign = create(&[&known[..], &["--id", "spiffe://foreign/ns/shop/sa/web"]].concat());
    assert_eq!(foreign.status.code(), Some(1));
    assert!(
        text(&foreign.stderr).contains("belongs to the trust domain demo.postern"),
        "{}",
        text(&foreign.stderr)
    );
    assert!(!std::path::Path::new(&second).exists());
    assert_eq!(create(&[&known[..], &["--id", web]].concat()).status.code(), Some(0));
}

/// A mistyped path, or a disk that is not mounted.
#[test]
fn a_ca_begins_only_in_a_directory_whose_parent_is_there() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let state = directory.path().join("mnt/ca").display().to_string();
    let any = "{address: \"127.0.0.1:0\"}";
    let (_beside, config) = file(
        "control.yaml",
        &format!(
            "trustDomain: demo.postern\nstateDir: {state}\nlisten: {any}\nhealth: {any}\nmeshAdmin: {any}\n"
        ),
    );
    let out = directory.path().join("token").display().to_string();
    let web = "spiffe://demo.postern/ns/shop/sa/web";
    for verb in [
        // First: were it not refused, a control plane would run on.
        &["ca", "token", "create", "--config", &config, "--id", web, "--out", &out][..],
        &["control", "--config", &config],
    ] {
        let refused = run(verb);
        assert_eq!(refused.status.code(), Some(1), "{verb:?}");
        let said = text(&refused.stderr);
        for part in [&format!("mkdir -p -m 700 {state}"), "stateDir"] {
            assert!(said.contains(part), "{verb:?}: {said}");
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is ours").count(), 0, "something was left");
}

/// A sidecar that meets such a directory keeps what it has, or denies everything.
#[test]
fn a_directory_without_documents_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let empty = directory.path().display().to_string();
    let (_beside, good) = file("policy.yaml", GOOD);
    let explain = ["policy", "explain", &empty, "--from", "shop/web", "--to", "shop/orders:1", "GET", "/"];
    for (what, arguments, code) in [
        ("no file", &["policy", "check", &empty][..], 1),
        ("no file beside another", &["policy", "check", &good, &empty], 1),
        ("no file to explain", &explain, 2),
    ] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(code), "{what}: {}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains("holds no documents"), "{what}: {}", text(&refused.stderr));
    }
    std::fs::write(directory.path().join("a.yaml"), "# nothing yet\n---\n").expect("it is ours");
    let refused = run(&["policy", "check", &empty, "--json"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stdout).contains("holds no documents"), "{}", text(&refused.stdout));
}
