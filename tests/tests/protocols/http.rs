//! HTTP/1.0 and 1.1: nginx, Node.js and Python, called by curl, Node.js and Python.

use std::fs;

use postern_tests::protocols::{Notes, Way};
use postern_tests::wait;
use serde_json::Value;

use super::{NOBODY, ROOT, Scene, V4, V6, WAYS, WORKLOAD, inside, text, url};

const NGINX: u16 = 8080;
const PYTHON: u16 = 8000;
const NODE: u16 = 8090;

#[test]
fn http_1() {
    if !inside("http::http_1", &["curl", "nghttp", "nginx", "node", "socat"]) {
        return;
    }
    let ports = [(NGINX, "http"), (PYTHON, "http"), (NODE, "http")];
    let mut scene = Scene::start(&ports, "{ports: [8080, 8000, 8090], pathPrefix: [/open]}");
    start_servers(&mut scene);
    let mut notes = Notes::new("1-http", "HTTP/1");
    for way in WAYS {
        scene.go(way);
        notes.way(way);
        for at in [V4, V6] {
            versions_and_connections(&scene, at, &mut notes);
        }
        bodies_and_trailers(&scene, &mut notes);
        informational(&scene, way, &mut notes);
        other_clients(&scene, &mut notes);
        cuts(&scene, &mut notes);
        // Not a protocol only: each request is judged, at a port of which nobody said so too.
        let denied = scene.curl(&["-w", "%{http_code}", &format!("http://{V4}:{NGINX}/secret")]);
        assert!(denied.text().ends_with("403") && denied.text().contains("Decision"), "{}", denied.text());
    }
    notes.leave();
}

fn start_servers(scene: &mut Scene) {
    let place = scene.place("nginx", NOBODY);
    fs::create_dir(place.join("open")).expect("it is ours");
    for (name, body) in
        [("open/file.txt", text(300_000)), ("open/small", "small\n".to_owned()), ("secret", String::new())]
    {
        fs::write(place.join(name), body).expect("it is ours");
    }
    let root = place.display().to_string();
    let config = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen [::]:{NGINX} ipv6only=off; root {root}; }} }}\n"
    );
    let file = place.join("nginx.conf");
    fs::write(&file, config).expect("it is ours");
    scene.serve(NGINX, NOBODY, &["nginx", "-c", &file.display().to_string(), "-p", &root]);
    let words = ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "::", "--directory", &root];
    scene.serve(PYTHON, NOBODY, &words);
    let service = scene.mesh.directory().join("service.js");
    fs::write(&service, include_str!("../../peers/service.js")).expect("the directory is ours");
    scene.serve(NODE, ROOT, &["node", &service.display().to_string(), "8090"]);
}

fn versions_and_connections(scene: &Scene, at: &str, notes: &mut Notes) {
    let host = url(at);
    for (port, server) in [(NGINX, "nginx"), (PYTHON, "Python http.server")] {
        let file = format!("http://{host}:{port}/open/file.txt");
        for (flag, version) in [("-0", "HTTP/1.0"), ("--http1.1", "HTTP/1.1")] {
            let got = scene.curl(&[flag, &file]);
            assert_eq!(
                (got.code, got.text() == text(300_000)),
                (0, true),
                "{version} {file}: {}",
                got.stderr
            );
            notes.saw(at, version, ["curl", server], "whole bodies");
        }
    }
    let small = format!("http://{host}:{NGINX}/open/small");
    let got = scene.curl(&["-w", "%{num_connects} ", &small, &small, &small]);
    assert_eq!(got.text(), "small\n1 small\n0 small\n0 ", "{}", got.stderr);
    notes.saw(at, "HTTP/1.1", ["curl", "nginx"], "connections are kept alive");
    let part = scene.curl(&["-r", "8-15", &format!("http://{host}:{NGINX}/open/file.txt")]);
    assert_eq!(part.text(), "0000001\n");
    let line = format!(
        "printf 'GET /open/small HTTP/1.1\\r\\nHost: nginx\\r\\nConnection: close\\r\\n\\r\\n' | \
         socat -b1 -t8 - TCP:{host}:{NGINX},nodelay,shut-none"
    );
    let got = scene.shell(&line);
    assert!(
        got.text().starts_with("HTTP/1.1 200 OK\r\n") && got.text().ends_with("\r\n\r\nsmall\n"),
        "{got:?}"
    );
    notes.saw(at, "HTTP/1.1", ["socat", "nginx"], "a request that comes byte by byte");
}

fn bodies_and_trailers(scene: &Scene, notes: &mut Notes) {
    let echo = format!("http://{V4}:{NODE}/open/echo");
    let chunked = scene.shell(&format!(
        "yes 0123456 | head -c 1000000 | curl -q -sS --noproxy '*' -T - -H 'Transfer-Encoding: chunked' {echo}"
    ));
    let seen = json(&chunked.text());
    assert_eq!((&seen["length"], &seen["method"]), (&1_000_000.into(), &"PUT".into()), "{chunked:?}");
    notes.saw(V4, "HTTP/1.1", ["curl", "Node.js http"], "a chunked body of unknown length");

    let url = format!("http://{V4}:{NODE}/open/trailers");
    let got = scene.curl(&["-H", "TE: trailers", "-H", "Connection: TE", "-D", "-", &url]);
    assert!(got.code == 0 && got.text().contains("\r\n\r\none\ntwo\nx-checksum: 42\r\n"), "{got:?}");
    notes.saw(V4, "HTTP/1.1", ["curl", "Node.js http"], "trailers");
}

fn informational(scene: &Scene, way: Way, notes: &mut Notes) {
    let hints = format!("http://{V4}:{NODE}/open/hints");
    let got = scene.curl(&["-v", &hints]);
    assert_eq!(got.text(), "after hints\n", "{}", got.stderr);
    assert!(!got.stderr.contains(" 103 "), "HTTP/1 cannot carry it: {}", got.stderr);
    if way == Way::Declared {
        let said = scene.get(&["nghttp", "-v", &hints]);
        let places =
            [":status: 103", "link: </style.css>; rel=preload; as=style", ":status: 200", "after hints"];
        let places = places.map(|part| said.find(part).unwrap_or_else(|| panic!("{part}: {said}")));
        assert!(places.is_sorted(), "{said}");
        notes.saw(
            V4,
            "HTTP/2 to HTTP/1.1",
            ["nghttp", "Node.js http"],
            "103 (Early Hints) before the answer",
        );
    }
    let body = scene.mesh.directory().join("body");
    fs::write(&body, text(200_000)).expect("the directory is ours");
    let (data, url) = (format!("@{}", body.display()), format!("http://{V4}:{NODE}/open/echo"));
    let words = ["-v", "-H", "Expect: 100-continue", "--data-binary", &data];
    let got = scene.curl(&[&words[..], &[&url]].concat());
    assert_eq!(json(&got.text())["length"], 200_000, "{}", got.stderr);
    assert!(got.stderr.contains("< HTTP/1.1 100 Continue"), "{}", got.stderr);
    notes.saw(V4, "HTTP/1.1", ["curl", "Node.js http"], "100 (Continue) before the body");
    let denied = format!("http://{V4}:{NODE}/secret");
    let got = scene.curl(&[&words[..], &["-w", "%{http_code} %{size_upload}", &denied]].concat());
    assert!(got.text().ends_with("403 0"), "{}: {}", got.text(), got.stderr);
    assert!(!got.stderr.contains("100 Continue"), "{}", got.stderr);
    notes.saw(V4, "HTTP/1.1", ["curl", "Node.js http"], "a body that is refused is not asked for");
}

fn other_clients(scene: &Scene, notes: &mut Notes) {
    let echo = format!("http://{V4}:{NODE}/open/echo");
    let script = format!(
        "fetch('{echo}', {{method: 'POST', body: 'x'.repeat(50000)}}).then((r) => r.text()).then(console.log)"
    );
    let seen = json(&scene.get(&["node", "-e", &script]));
    assert_eq!(seen["length"], 50_000, "{seen}");
    notes.saw(V4, "HTTP/1.1", ["Node.js fetch", "Node.js http"], "a request with a body");
    let script = format!(
        "import urllib.request as u; print(u.urlopen(u.Request('{echo}', b'y' * 50000)).read().decode())"
    );
    let seen = json(&scene.get(&["/usr/bin/python3", "-c", &script]));
    assert_eq!(seen["length"], 50_000, "{seen}");
    notes.saw(V4, "HTTP/1.1", ["Python urllib", "Node.js http"], "a request with a body");
}

/// Where the end of a connection is the end of a body, what was cut must not look like one.
fn cuts(scene: &Scene, notes: &mut Notes) {
    let directory = scene.mesh.directory();
    let url = format!("http://{V4}:{NODE}/open/endless");
    let read = |flag: &str| {
        let log = directory.join("curl.log");
        let _ = fs::remove_file(&log);
        let words = ["curl", "-q", "-sS", "--noproxy", "*", "-N", flag, &url];
        let curl = scene.web.start("curl", WORKLOAD, &log, &words, |_| {});
        wait::until("it flows", wait::PATIENCE, || curl.log().len() > 3_000);
        curl
    };
    for (flag, version) in [("-0", "HTTP/1.0"), ("--http1.1", "HTTP/1.1")] {
        let curl = read(flag);
        let sidecar = scene.mesh.sidecar("orders");
        sidecar.kill();
        let ended = curl.wait(wait::PATIENCE);
        let log = curl.log();
        let said = &log[log.len().saturating_sub(200)..];
        assert!([Some(18), Some(56)].contains(&ended.code()), "{version}: {ended}: {said}");
        notes.saw(V4, version, ["curl", "Node.js http"], "a body that is cut does not look whole");
        sidecar.start();
        sidecar.wait_ready();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
