//! `postern policy explain`: what it tells, and how it ends.

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
    let (code, said) = ask(&["tcp"]);
    assert!(code == Some(1) && said.contains("connect_to_http"), "{said}");
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
    let good = r#"{"iss": "https://id.example.com", "aud": "orders", "exp": 4102444800, "scope": "orders:read orders:write"}"#;
    let (code, said) = ask(&["--claims", good]);
    assert!(code == Some(0) && said.contains("taken for granted: that a key of"), "{said}");
    let (_directory, path) = file("claims.json", good);
    assert_eq!(ask(&["--claims", &path]).0, Some(0));
    let (code, said) = ask(&["--claims", &good.replace("orders:write", "a")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the token's `scope` has no `orders:write`"), "{said}");
    let (code, said) = ask(&["--claims", "unverified"]);
    assert!(code == Some(1) && said.contains("could not be verified"), "{said}");
    for (claims, says) in [
        // An end in the past is an end.
        (good.replace("4102444800", "10"), "has ended"),
        (good.replace("\"exp\": 4102444800, ", ""), "has no claim `exp`"),
        (good.replace("\"aud\": \"orders\", ", ""), "`aud` must name one of orders"),
        (good.replace("id.example.com", "id.example.org"), "nobody configured"),
        (good.replace('}', ", \"scope\": \"\"}"), "twice"),
        ("{}".to_owned(), "`iss` is missing"),
    ] {
        let (code, said) = ask(&["--claims", &claims]);
        assert!(code == Some(1) && said.contains("answers 401") && said.contains(says), "{claims}: {said}");
        let (_, json) = ask(&["--claims", &claims, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        let verdict = &json["verdict"];
        assert_eq!(
            (&verdict["reason"], &verdict["status"]),
            (&"token_invalid".into(), &401.into()),
            "{json}"
        );
        assert!(json["help"].is_string(), "{json}");
    }
    // The same token was good once.
    let ended = good.replace("4102444800", "10");
    assert_eq!(ask(&["--claims", &ended, "--at", "1970-01-01T00:00:05Z"]).0, Some(0));
    for (claims, says) in [("{", "no JSON"), ("/nowhere/claims", "/nowhere/claims")] {
        let (code, said) = ask(&["--claims", claims]);
        assert!(code == Some(2) && said.contains(says), "{claims}: {said}");
    }
}

/// What the port does not carry is refused before any rule is asked; the document that says so is named.
#[test]
fn an_explanation_knows_what_a_port_carries() {
    let documents = TWO_PORTS
        .replace(
            "{port: 80, protocol: http, targetPort: 8080}",
            "{port: 80, protocol: tcp, targetPort: 9090}",
        )
        .replace(
            "{port: 8080, protocol: http, targetPort: 9090}",
            "{port: 81, protocol: http, targetPort: 9091}",
        )
        .replace("ports: [9090]", "ports: [9090, 9091]");
    for (arguments, reason, words) in [
        (&["shop/orders:80", "GET", "/"][..], "http_to_tcp", "the Service shop/orders declares it tcp"),
        (&["shop/orders:9090", "--workload-port", "GET", "/"], "http_to_tcp", "policy.yaml:6:11"),
        (&["shop/orders:81", "tcp"], "connect_to_http", "protocol: tcp"),
        (
            &["shop/orders:81", "--upgrade", "spdy/3.1", "GET", "/"],
            "upgrade_refused",
            "add spdy/3.1 to `upgrades`",
        ),
    ] {
        let (code, said) = explained(&documents, &[&["--to"], arguments].concat());
        assert!(
            code == Some(1) && said.contains("answers 403") && said.contains(words),
            "{arguments:?}: {said}"
        );
        let (code, json) = explained(&documents, &[&["--json", "--to"], arguments].concat());
        let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!((code, &json["verdict"]["reason"]), (Some(1), &reason.into()), "{json}");
        assert!(json["place"]["line"] == 6 && json["help"].is_string(), "{json}");
    }
    for arguments in [&["shop/orders:80", "tcp"][..], &["shop/orders:81", "GET", "/a#b"]] {
        let (code, said) = explained(&documents, &[&["--to"], arguments].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
    // No selector is known to fit: which labels there are is the asker's to say.
    let selected = TWO_PORTS.replace("target: {ports", "target: {selector: {tier: web}, ports");
    let (code, said) = explained(&selected, &["--to", "shop/orders:80", "GET", "/"]);
    assert!(
        code == Some(1) && said.contains("the label app=orders alone") && said.contains("--labels"),
        "{said}"
    );
    let (code, said) = explained(&documents, &["--to", "shop/orders:7", "--workload-port", "tcp"]);
    assert!(code == Some(1) && said.contains("421 (port_not_declared) unless"), "{said}");
}

/// What is outside of the mesh, or on the caller's side, is another question, and how to put it is said.
#[test]
fn an_explanation_of_one_side_says_where_the_other_is_asked() {
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/shop");
    let ask = |to: &str| {
        let answer = run(&["policy", "explain", shop, "--from", "pay/payments", "--to", to, "GET", "/"]);
        (answer.status.code(), text(&answer.stdout) + &text(&answer.stderr))
    };
    for to in ["api.bank.example", "https://api.bank.example", "pay/bank"] {
        let (code, said) = ask(to);
        assert!(code == Some(2) && said.contains("--egress --from"), "{to}: {said}");
    }
    let (_, said) = ask("shop/orders:80");
    assert!(said.contains("the callee's side alone") && said.contains("--egress"), "{said}");
    let (_, said) = explained(TWO_PORTS, &["--to", "shop/orders:80", "GET", "/"]);
    assert!(!said.contains("--egress"), "no EgressPolicy: {said}");
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
        (&["https://api.bank.example:8443"], 1, "has this host, and not port 8443: it has 443"),
        (&["http://api.bank.example:443/"], 1, "(http_to_tcp)"),
        (&["http://ledger:9090/a#/%2f"], 0, "allowed by rule pay/payments-out/books"),
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

/// The example of the page is one: its documents load, and its question is answered as it says.
#[test]
fn the_page_about_tokens_tells_the_truth() {
    let page = include_str!("../../docs/jwt.md");
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let documents: Vec<&str> = blocks.collect();
    assert_eq!(documents.len(), 2);
    let (_, rest) = page.split_once("--claims '").expect("a question is put");
    let (claims, rest) = rest.split_once('\'').expect("it ends");
    let (_, said) = rest.split_once("``").expect("its answer is quoted");
    let said = said.split_once("``").expect("it ends").0.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_directory, path) = file("page.yaml", &documents.join("---\n"));
    let ask = |claims: &str| {
        let to = ["--to", "shop/orders:8080", "--from", "edge/gateway", "--trust-domain", "td"];
        let answer =
            run(&[&["policy", "explain", &path], &to[..], &["--claims", claims, "POST", "/v1/orders"]]
                .concat());
        (answer.status.code(), text(&answer.stdout) + &text(&answer.stderr))
    };
    let (code, told) = ask(claims);
    assert!(code == Some(1) && told.contains(&said), "{said}: {told}");
    let good = claims
        .replace("orders:read", "orders:write")
        .replace('}', ", \"realm_access\": {\"roles\": [\"customer\"]}}");
    let (code, told) = ask(&good);
    assert_eq!(code, Some(0), "{told}");
}
