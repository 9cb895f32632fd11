//! HTTP/2 with prior knowledge, and gRPC.

use std::collections::BTreeMap;
use std::fs;

use postern_tests::foreign;
use postern_tests::protocols::Notes;
use serde_json::Value;

use super::{NOBODY, ROOT, Scene, V4, V6, WAYS, inside, text, url};

const NGHTTPD: u16 = 8081;
const GRPC: u16 = 50_051;

#[test]
fn http_2_and_grpc() {
    if !inside("http2::http_2_and_grpc", &["curl", "nghttp", "nghttpd", "grpc"]) {
        return;
    }
    // All methods but `Secret`.
    let methods = ["Get", "List", "Put", "Chat", "Fail", "FailLate", "Slow", "Endless"];
    let methods = methods.map(|name| format!("/shop.Orders/{name}")).join(", ");
    let to = &format!(
        "{{ports: [8081], pathPrefix: [/open]}}, {{ports: [50051], methods: [POST], paths: [{methods}]}}"
    );
    let mut scene = Scene::start(&[(NGHTTPD, "http2"), (GRPC, "grpc")], to);
    let place = scene.place("nghttpd", NOBODY);
    fs::create_dir(place.join("open")).expect("it is ours");
    fs::write(place.join("open/file.txt"), text(300_000)).expect("it is ours");
    let root = place.display().to_string();
    scene.serve(
        NGHTTPD,
        NOBODY,
        &["nghttpd", "--no-tls", "--trailer", "x-checksum: 42", "-d", &root, "8081"],
    );
    let (python, script) = foreign::python("grpc_server.py");
    let words = [python.display().to_string(), script.display().to_string()];
    scene.serve(GRPC, ROOT, &[&words[0], &words[1], "[::]:50051"]);
    let mut notes = Notes::new("2-http2", "HTTP/2 and gRPC");
    for way in WAYS {
        scene.go(way);
        notes.way(way);
        for at in [V4, V6] {
            files(&scene, at, &mut notes);
        }
        calls(&scene, &mut notes);
    }
    notes.leave();
}

fn files(scene: &Scene, at: &str, notes: &mut Notes) {
    let file = format!("http://{}:{NGHTTPD}/open/file.txt", url(at));
    let got = scene.get(&["nghttp", &file]);
    assert!(got == text(300_000), "{} bytes", got.len());
    let said = scene.get(&["nghttp", "-nv", "-H", "te: trailers", &file]);
    assert!(said.contains(":status: 200") && said.contains("x-checksum: 42"), "{said}");
    notes.saw(at, "HTTP/2", ["nghttp", "nghttpd"], "whole bodies, trailers");
    let body = scene.mesh.directory().join("body");
    fs::write(&body, text(300_000)).expect("the directory is ours");
    let said = scene.get(&["nghttp", "-nv", "-d", &body.display().to_string(), &file]);
    assert!(said.contains(":status: 200"), "{said}");
    notes.saw(at, "HTTP/2", ["nghttp", "nghttpd"], "a request with a body");
    let got = scene.curl(&["--http2-prior-knowledge", "-w", "%{http_version}", &file]);
    assert!(got.text() == text(300_000) + "2", "{}", got.stderr);
    notes.saw(at, "HTTP/2", ["curl", "nghttpd"], "whole bodies");
    let denied = scene.get(&["nghttp", "-nv", &format!("http://{}:{NGHTTPD}/secret", url(at))]);
    assert!(denied.contains(":status: 403") && denied.contains("postern-decision"), "{denied}");
}

fn calls(scene: &Scene, notes: &mut Notes) {
    let (python, script) = foreign::python("grpc_client.py");
    let words = [python.display().to_string(), script.display().to_string()];
    let at = format!("{V4}:{GRPC}");
    let cases =
        ["unary", "list", "put", "chat", "64k", "4m", "fail", "fail-late", "deadline", "cancel", "denied"];
    let run = scene.web.run(ROOT, &[&[&words[0], &words[1], &*at, "orders"][..], &cases].concat());
    assert_eq!(run.code, 0, "{}\n{}", run.text(), run.stderr);
    let result = |line: &str| -> Option<(String, Value)> {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["case"].as_str()?.to_owned(), value))
    };
    let results: BTreeMap<String, Value> = run.text().lines().filter_map(result).collect();
    for (case, seen) in [
        ("unary", "unary"),
        ("list", "server streaming"),
        ("put", "client streaming"),
        ("chat", "both streaming"),
    ] {
        let result = &results[case];
        assert_eq!(
            (&result["code"], &result["trailing"]["x-trailing"]),
            (&"OK".into(), &"two".into()),
            "{result}"
        );
        notes.saw(V4, "gRPC", ["grpcio", "grpcio"], seen);
    }
    assert_eq!(results["chat"]["got"], serde_json::json!(["re: one", "re: two", "re: three"]));
    assert_eq!((&results["64k"]["size"], &results["4m"]["size"]), (&(64 << 10).into(), &(4 << 20).into()));
    notes.saw(V4, "gRPC", ["grpcio", "grpcio"], "messages of 4 MiB");
    let code = |case: &str| results[case]["code"].as_str().unwrap_or_default();
    let codes = ["fail", "fail-late", "deadline", "cancel"].map(code);
    assert_eq!(codes, ["FAILED_PRECONDITION", "DATA_LOSS", "DEADLINE_EXCEEDED", "CANCELLED"], "{results:?}");
    notes.saw(V4, "gRPC", ["grpcio", "grpcio"], "statuses, early and late; deadlines; cancelling");
    // Each call is judged, at a port of which nobody said what it speaks too.
    assert_eq!(code("denied"), "PERMISSION_DENIED", "{}", results["denied"]);
    assert!(!scene.log(GRPC).contains("reached"), "a denied call reached the server");
}
