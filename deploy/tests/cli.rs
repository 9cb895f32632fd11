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

#[test]
fn policies_are_checked_offline() {
    let good = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
";
    let (_directory, path) = file("policy.yaml", good);
    let checked = run(&["policy", "check", &path]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let (_directory, path) = file("policy.yaml", &good.replace("action: Allow", "action: Alow"));
    let refused = run(&["policy", "check", &path]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let said = text(&refused.stderr) + &text(&refused.stdout);
    assert!(said.contains("policy.yaml:6:11") && said.contains('^'), "{said}");
}

const TWO_PORTS: &str = "apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{port: 80, protocol: http, targetPort: 8080}, {port: 8080, protocol: http, targetPort: 9090}]
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {ports: [9090]}
  action: Allow
  rules: [{name: web, from: [{serviceAccounts: [web]}]}]
";

/// The exit code, and everything that is said.
fn explained(documents: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (_directory, path) = file("policy.yaml", documents);
    let answer = run(&[&["policy", "explain", &path, "--from", "shop/web"], arguments].concat());
    (answer.status.code(), text(&answer.stdout) + &text(&answer.stderr))
}

/// The Service's 8080 is not the workload's: an answer about another port than the one that was meant is worse than none.
#[test]
fn an_explanation_says_which_port_it_judged() {
    let ask = |to: &[&str]| explained(TWO_PORTS, &[&["--to"], to, &["GET", "/"]].concat());
    for (to, code, words) in [
        (&["shop/orders:8080"][..], 2, ["--workload-port", "9090"]),
        (
            &["shop/orders:8080", "--workload-port"],
            1,
            ["judged: port 8080 of the workload", "as --workload-port says"],
        ),
        (&["shop/orders:9090", "--workload-port"], 0, ["judged: port 9090 of the workload", "allowed by"]),
        (&["shop/orders:80"], 1, ["judged: port 8080 of the workload", "Service's port 80"]),
        (&["shop/orders:9090"], 0, ["judged: port 9090 of the workload", "no port of the Service"]),
        (&["shop/orders"], 2, ["several ports", "80, 8080"]),
        (&["shop/orders", "--workload-port"], 2, ["--workload-port", "a port"]),
        (&["shop/others:9090"], 0, ["judged: port 9090 of the workload", "no Service"]),
    ] {
        let (found, said) = ask(to);
        assert_eq!(found, Some(code), "{to:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{to:?}: {said}");
    }
    let (_, json) = ask(&["shop/orders:80", "--json"]);
    assert!(
        json.contains("\"port\":8080") && json.contains("\"portBecause\":\"the Service's port 80\""),
        "{json}"
    );
}

/// A path is read as the Service's port that leads there says.
#[test]
fn an_explanation_reads_paths_as_the_port_does() {
    let documents = |to: &str| {
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: store, namespace: shop}}\nspec:\n  \
             identity: spiffe://td/ns/shop/sa/store\n  ports:\n  - {{port: 80, targetPort: 8080, protocol: http}}\n  \
             - {{port: 81, targetPort: 8081, protocol: http, escapedSlashes: Keep}}\n  \
             - {{port: 83, targetPort: 8083, protocol: http, preserveRawPath: true}}\n  \
             endpoints: [{{address: 127.0.0.1}}]\n---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{action: Allow, rules: [{{name: r, to: [{to}]}}]}}\n"
        )
    };
    let any = documents("{methods: [GET]}");
    let some = documents("{pathPrefix: [/]}");
    let refused = "400 before any rule";
    for (documents, arguments, code, word) in [
        (&any, &["shop/store:80", "GET", "/a%2Fb"][..], 1, refused),
        (&any, &["shop/store:81", "GET", "/a%2Fb"], 0, "allowed"),
        (&any, &["shop/store:8081", "--workload-port", "GET", "/a%2Fb"], 0, "allowed"),
        (&any, &["shop/store:83", "GET", "/a//b"], 0, "allowed"),
        (&some, &["shop/store:80", "GET", "/a//b"], 0, "allowed"),
        (&some, &["shop/store:83", "GET", "/a/b"], 0, "allowed"),
        (&some, &["shop/store:83", "GET", "/a//b"], 1, "preserves raw paths"),
        (&any, &["shop/store:80", "--host", "Store.shop", "GET", "/"], 0, "allowed"),
        (&any, &["shop/store:83", "--host", "store.shop", "GET", "/"], 0, "allowed"),
        (&any, &["shop/store:83", "--host", "Store.shop", "GET", "/"], 1, refused),
    ] {
        let (found, said) = explained(documents, &[&["--to"], arguments].concat());
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn what_a_sidecar_refuses_before_any_rule_is_denied() {
    let ask = |operation: &[&str]| explained(TWO_PORTS, &[&["--to", "shop/orders:9090"], operation].concat());
    for operation in [&["GET", "/a/../../b"][..], &["GET", "/a%2Fb"], &["G T", "/"]] {
        let (code, said) = ask(operation);
        assert_eq!(code, Some(1), "{operation:?}: {said}");
        assert!(said.contains("denied") && said.contains("400 before any rule"), "{operation:?}: {said}");
        let (code, said) = ask(&[operation, &["--json"]].concat());
        assert_eq!(code, Some(1), "{operation:?}: {said}");
        assert!(said.contains("\"reason\":\"bad_request\""), "{operation:?}: {said}");
    }
    let (code, said) = ask(&["tcp", "/x"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("has no path"), "{said}");
    assert_eq!(ask(&["tcp"]).0, Some(0));
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
    let (_beside, good) = file("policy.yaml", TWO_PORTS);
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

const ISSUER: &str = "\
apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: default, namespace: postern-system}
spec:
  jwt: {issuers: [{issuer: 'https://id.example.com', audiences: [orders], jwks: {file: /keys.json}}]}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  action: Allow
  rules:
  - name: users
    from: [{jwt: {issuer: 'https://id.example.com', claims: {scope: {has: 'orders:write'}}}}]
";

/// A question states the claims that a sidecar would have verified.
#[test]
fn an_explanation_takes_claims() {
    let ask = |claims: &[&str]| {
        explained(
            ISSUER,
            &[&["--trust-domain", "td", "--to", "shop/orders:8080", "GET", "/"], claims].concat(),
        )
    };
    let (code, said) = ask(&[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no token of https://id.example.com"), "{said}");
    let good = r#"{"iss": "https://id.example.com", "scope": "orders:read orders:write"}"#;
    assert_eq!(ask(&["--claims", good]).0, Some(0));
    let (_directory, path) = file("claims.json", good);
    assert_eq!(ask(&["--claims", &path]).0, Some(0));
    let (code, said) = ask(&["--claims", r#"{"iss": "https://id.example.com", "scope": "a"}"#]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the token's `scope` has no `orders:write`"), "{said}");
    let (code, said) = ask(&["--claims", "unverified"]);
    assert!(code == Some(1) && said.contains("could not be verified"), "{said}");
    // An end in the past is an end.
    let ended = r#"{"iss": "https://id.example.com", "scope": "orders:write", "exp": 10}"#;
    assert_eq!(ask(&["--claims", ended]).0, Some(1));
    for (claims, says) in
        [("{", "no JSON"), ("{}", "`iss` is missing"), ("/nowhere/claims", "/nowhere/claims")]
    {
        let (code, said) = ask(&["--claims", claims]);
        assert!(code == Some(2) && said.contains(says), "{claims}: {said}");
    }
}

/// A call out is explained at the caller's sidecar: the rule, or the nearest one and what to change in it.
#[test]
fn calls_out_are_explained() {
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/shop");
    for (arguments, code, words) in [
        (&["https://api.bank.example"][..], 0, "allowed by rule pay/payments-out/bank ("),
        (
            &["https://api.bank.example", "--resolves-to", "169.254.169.254"],
            1,
            "169.254.169.254 is opened only by an alternative with `cidrs`",
        ),
        (&["https://api.bank.example", "--resolves-to", "127.0.0.1"], 1, "never dialled outside of the mesh"),
        (&["http://orders.shop/", "POST"], 1, "add shop/orders to `services`"),
        (&["http://ledger:9090/a"], 0, "allowed by rule pay/payments-out/books"),
        (
            &["https://drop.example"],
            1,
            "before any rule is asked (unknown_service): no Service has this host",
        ),
        (&["http://api.bank.example:443/"], 1, "(http_to_tcp)"),
        (&["http://ledger:9090/%2f"], 1, "(bad_request)"),
        (&["https://api.bank.example", "GET"], 2, "no method is known"),
        (&["api.bank.example"], 2, "this is no URL"),
        (&["https://api.bank.example", "--host", "a"], 2, "cannot be used with"),
    ] {
        let all =
            [&["policy", "explain", "--egress", shop, "--from", "pay/payments", "--to"], arguments].concat();
        let answer = run(&all);
        let said = text(&answer.stdout) + &text(&answer.stderr);
        assert!(answer.status.code() == Some(code) && said.contains(words), "{arguments:?}: {said}");
    }
    let ask =
        ["policy", "explain", "--egress", "--json", shop, "--from", "pay/payments", "--to", "http://fraud/"];
    let json: serde_json::Value = serde_json::from_slice(&run(&ask).stdout).expect("it is JSON");
    assert_eq!(
        (&json["verdict"]["allowed"], &json["service"]),
        (&true.into(), &"pay/fraud".into()),
        "{json}"
    );
}
