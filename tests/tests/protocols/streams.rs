//! WebSocket and server-sent events.

use std::collections::BTreeMap;

use postern_tests::foreign;
use postern_tests::protocols::Notes;
use serde_json::{Value, json};

use super::{ROOT, Scene, V4, V6, WAYS, inside, url};

const SOCKETS: u16 = 8091;
const EVENTS: u16 = 8092;

#[test]
fn websocket_and_events() {
    if !inside("streams::websocket_and_events", &["curl", "websockets", "node"]) {
        return;
    }
    let ports = [(SOCKETS, "http"), (EVENTS, "http")];
    let mut scene = Scene::start(&ports, "{ports: [8091, 8092], methods: [GET], paths: [/chat, /stream]}");
    let (python, script) = foreign::python("ws_server.py");
    let words = [python.display().to_string(), script.display().to_string()];
    scene.serve(SOCKETS, ROOT, &[&words[0], &words[1], "0.0.0.0", "8091"]);
    let script = postern_tests::events::server().display().to_string();
    scene.serve(EVENTS, ROOT, &["node", &script, "::", "8092"]);
    let mut notes = Notes::new("3-streams", "Streams over HTTP");
    for way in WAYS {
        scene.go(way);
        notes.way(way);
        sockets(&scene, &mut notes);
        for at in [V4, V6] {
            events(&scene, at, &mut notes);
        }
    }
    notes.leave();
}

fn sockets(scene: &Scene, notes: &mut Notes) {
    let (python, script) = foreign::python("ws_client.py");
    let words = [python.display().to_string(), script.display().to_string()];
    let cases = ["echo", "plain", "ping", "closes", "caller", "denied"];
    let to = [&*words[0], &words[1], V4, "8091", "ws://orders:8091"];
    let run = scene.web.run(ROOT, &[&to[..], &cases].concat());
    assert_eq!(run.code, 0, "{}\n{}", run.text(), run.stderr);
    let result = |line: &str| -> Option<(String, Value)> {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["case"].as_str()?.to_owned(), value))
    };
    let results: BTreeMap<String, Value> = run.text().lines().filter_map(result).collect();
    assert_eq!(results["echo"]["same"], json!([true, true, true, true, true, true, true, true]));
    assert_eq!((&results["plain"]["same"], &results["ping"]["ponged"]), (&true.into(), &true.into()));
    notes.saw(
        V4,
        "WebSocket",
        ["websockets", "websockets"],
        "messages of all sizes, in pieces, compressed and not; pings",
    );
    assert_eq!(results["closes"]["codes"], json!([[1000, ""], [1001, "away"], [4001, "ours"]]));
    notes.saw(V4, "WebSocket", ["websockets", "websockets"], "who closed, and why");
    assert_eq!(results["caller"]["caller"], "['URI=spiffe://demo.postern/ns/shop/sa/web']");
    assert_eq!(results["denied"]["status"], 403, "{}", results["denied"]);
}

fn events(scene: &Scene, at: &str, notes: &mut Notes) {
    let stream = format!("http://{}:{EVENTS}/stream?every=50", url(at));
    let got = scene.curl(&["-N", "--max-time", "1", &stream]);
    let text = got.text();
    assert_eq!(got.code, 28, "it has no end: {}", got.stderr);
    assert!(text.matches("data: ").count() > 8 && text.contains(": still here\n"), "{text}");
    notes.saw(at, "server-sent events", ["curl", "Node.js http"], "each event when it is sent");
}
