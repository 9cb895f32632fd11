//! JWT-SVIDs, fetched, judged and forged by programs that were not written here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Mesh, Plan, foreign};
use serde_json::Value;

const AUDIENCE: &str = "spiffe://demo.postern/ns/shop/sa/reports";

/// What PyPI's `spiffe`, PyJWT or plain gRPC got, a line of JSON each.
fn ask(mesh: &Mesh, name: &str, case: &[&str]) -> Vec<Value> {
    let (python, script) = foreign::python("jwt_client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(mesh.sidecar(name).workload_socket()).args(case);
    let ran = foreign::run(&mut command, Duration::from_secs(120));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.text().lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

fn mesh(ttl: &str, control: &str) -> Mesh {
    let mut plan = Plan::new();
    plan.ttl(ttl).control(control);
    let orders = plan.sidecar("orders").serves(80, 8080, "http").workload_api("");
    orders.limit("drainMin", "0s").limit("drainMax", "1s");
    plan.start()
}

/// The private half of the key that signs, in the control plane's state directory.
fn key(mesh: &Mesh) -> PathBuf {
    let files = std::fs::read_dir(mesh.control.state()).expect("the state directory is there");
    let mut keys = files.filter_map(|file| {
        let path = file.ok()?.path();
        let name = path.file_name()?.to_str()?;
        (name.starts_with("jwt-") && name.ends_with(".key")).then_some(path)
    });
    keys.next().expect("there is a JWT key")
}

#[test]
fn tokens_live_on_while_their_keys_replace_themselves() {
    if !foreign::need(&["spiffe", "grpc", "jwt"]) {
        return;
    }
    // Keys of tokens that live for 5 s replace themselves after twelve.
    let mesh = mesh("1m", "jwt: {ttl: 5s, issuer: \"https://issuer.demo.postern\"}");
    let told = &ask(&mesh, "orders", &["fetch", AUDIENCE])[0];
    let id = mesh.sidecar("orders").id();
    assert_eq!(told["same"], true, "{told}");
    let claims = &told["claims"];
    assert_eq!((claims["sub"].as_str(), claims["aud"][0].as_str()), (Some(id.as_str()), Some(AUDIENCE)));
    assert_eq!(claims["iss"], "https://issuer.demo.postern");
    assert_eq!(claims["exp"].as_u64().zip(claims["iat"].as_u64()).map(|(exp, iat)| exp - iat), Some(5));
    assert_eq!(
        (&told["header"]["alg"], &told["header"]["typ"]),
        (&Value::from("ES256"), &Value::from("JWT"))
    );

    // Every token was good for three judges, before, during and after the change of the key.
    let told = &ask(&mesh, "orders", &["rotation"])[0];
    assert_eq!(told["errors"].as_array().map(Vec::len), Some(0), "{told}");
    let signers: Vec<&str> =
        told["signers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let sets: Vec<BTreeSet<&str>> = told["sets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|set| set.as_array().into_iter().flatten().filter_map(Value::as_str).collect())
        .collect();
    assert!(signers.len() >= 2 && told["tokens"].as_u64() > Some(10), "{told}");
    // Published before it signed, and there until the last token of the old one had ended.
    assert!(sets.iter().any(|set| set.contains(signers[0]) && set.contains(signers[1])), "{told}");
    assert!(sets.last().is_some_and(|last| !last.contains(signers[0])), "{told}");

    // Each is in the ledger with whom it was for.
    let mut search = Command::new(postern_tests::postern());
    search.args(["ca", "ledger", "search", "--kind", "jwt", "--json", "--config"]).arg(mesh.control.config());
    let found = foreign::run(&mut search, Duration::from_secs(20));
    let records: Vec<Value> =
        found.text().lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert!(records.len() as u64 > told["tokens"].as_u64().unwrap_or(u64::MAX), "{}", found.text());
    let first = &records[0];
    assert_eq!(
        (first["id"].as_str(), first["audience"].as_str()),
        (Some(id.as_str()), Some(AUDIENCE)),
        "{first}"
    );
    let (_, metrics) = mesh.control.page("/metrics").expect("it answers");
    assert!(metrics.contains("postern_ca_jwt_issued_total"), "{metrics}");
}

#[test]
fn broken_tokens_are_refused_and_a_mesh_without_jwt_says_so() {
    if !foreign::need(&["spiffe", "grpc", "jwt"]) {
        return;
    }
    let mesh = mesh("1h", "jwt: {}");
    let told = &ask(&mesh, "orders", &["fetch", AUDIENCE])[0];
    assert_eq!((&told["same"], &told["kept"]), (&Value::from(true), &Value::from(true)), "{told}");
    let kid = told["header"]["kid"].as_str().expect("the token names its key");
    let id = mesh.sidecar("orders").id();
    let path = mesh.directory().join("kept.key");
    std::fs::copy(key(&mesh), &path).expect("it can be read");
    let path = path.to_str().expect("a plain path");
    let said = ask(&mesh, "orders", &["forged", path, kid, &id, AUDIENCE]);
    let codes: BTreeMap<&str, &str> =
        said.iter().filter_map(|one| one["token"].as_str().zip(one["code"].as_str())).collect();
    assert_eq!(codes.len(), 26, "{said:?}");
    for (token, code) in &codes {
        let is_good = ["good", "audience among others"].contains(token);
        assert_eq!(*code, if is_good { "OK" } else { "INVALID_ARGUMENT" }, "{token}: {said:?}");
    }

    assert_eq!(ask(&mesh, "orders", &["codes", "", ""])[0]["code"], "INVALID_ARGUMENT");
    let other = "spiffe://demo.postern/ns/shop/sa/web";
    assert_eq!(ask(&mesh, "orders", &["codes", AUDIENCE, other])[0]["code"], "PERMISSION_DENIED");

    // A sidecar that comes back without its control plane knows the keys, and says why it has no tokens.
    mesh.control.kill();
    mesh.sidecar("orders").restart();
    let said = ask(&mesh, "orders", &["codes", AUDIENCE, ""]);
    assert_eq!((&said[0]["code"], &said[1]["code"]), (&"UNAVAILABLE".into(), &"OK".into()), "{said:?}");

    // Switched off, every token is taken back, and the answer says what to switch on.
    let config = std::fs::read_to_string(mesh.control.config()).expect("it is there");
    std::fs::write(mesh.control.config(), config.replace("jwt: {}", "jwt: {enabled: false}"))
        .expect("it is ours");
    mesh.control.start();
    postern_tests::wait::until("the keys are gone", Duration::from_secs(20), || {
        let said = ask(&mesh, "orders", &["codes", AUDIENCE, ""]);
        said.iter().all(|one| one["code"] == "UNIMPLEMENTED" && one["details"].to_string().contains("`jwt`"))
    });
    let said = ask(&mesh, "orders", &["forged", path, kid, &id, AUDIENCE]);
    assert!(said.iter().all(|one| one["code"] == "INVALID_ARGUMENT"), "{said:?}");
}
