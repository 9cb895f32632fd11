//! Bytes that nobody reads: TLS of the workloads' own by server name, ends of one direction, resets, and what is cut.

use std::fs;

use postern_tests::protocols::Notes;
use postern_tests::{Process, wait};

use super::{NOBODY, Scene, V4, V6, WAYS, WORKLOAD, inside, text, url};

const NGINX: u16 = 8443;
const OPENSSL: u16 = 8444;
const SORT: u16 = 7100;
const RESET: u16 = 7101;
const ENDLESS: u16 = 7102;
const READER: u16 = 7103;

#[test]
fn tls_and_plain_bytes() {
    if !inside("opaque::tls_and_plain_bytes", &["curl", "nginx", "openssl", "socat", "node"]) {
        return;
    }
    let ports =
        [(NGINX, "tls"), (OPENSSL, "tls"), (SORT, "tcp"), (RESET, "tcp"), (ENDLESS, "tcp"), (READER, "tcp")];
    let to = "{ports: [8443], sni: [a.db.example]}, {ports: [8444, 7100, 7101, 7102, 7103]}";
    let mut scene = Scene::start(&ports, to);
    start_tls(&mut scene);
    start_plain(&mut scene);
    let mut notes = Notes::new("5-opaque", "TLS of the workloads' own, and plain bytes");
    for way in WAYS {
        scene.go(way);
        notes.way(way);
        for at in [V4, V6] {
            tls(&scene, at, &mut notes);
            ends(&scene, at, &mut notes);
        }
        resets(&scene, &mut notes);
        cuts(&scene, &mut notes);
    }
    notes.leave();
}

fn start_tls(scene: &mut Scene) {
    let place = scene.place("tls", NOBODY);
    let root = place.display().to_string();
    for name in ["a.db.example", "b.db.example"] {
        let made = scene.orders.run(
            NOBODY,
            &[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &format!("/CN={name}"),
                "-addext",
                &format!("subjectAltName=DNS:{name}"),
                "-keyout",
                &format!("{root}/{name}.key"),
                "-out",
                &format!("{root}/{name}.pem"),
            ],
        );
        assert_eq!(made.code, 0, "{}", made.stderr);
    }
    fs::write(place.join("file.txt"), text(300_000)).expect("it is ours");
    let server = |name: &str| {
        format!(
            "server {{ listen [::]:{NGINX} ssl http2 ipv6only=off; server_name {name}; root {root};\n\
             ssl_protocols TLSv1.2 TLSv1.3;\
             ssl_certificate {root}/{name}.pem; ssl_certificate_key {root}/{name}.key; add_header x-server {name}; }}\n"
        )
    };
    let config = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n{}{} }}\n",
        server("a.db.example"),
        server("b.db.example").replace(" ipv6only=off", ""),
    );
    let file = place.join("nginx.conf");
    fs::write(&file, config).expect("it is ours");
    scene.serve(NGINX, NOBODY, &["nginx", "-c", &file.display().to_string(), "-p", &root]);
    let (certificate, key) = (format!("{root}/a.db.example.pem"), format!("{root}/a.db.example.key"));
    scene.serve(
        OPENSSL,
        NOBODY,
        &["openssl", "s_server", "-accept", "8444", "-cert", &certificate, "-key", &key, "-rev", "-quiet"],
    );
}

fn tls(scene: &Scene, at: &str, notes: &mut Notes) {
    let get = |name: &str, more: &[&str]| {
        let resolve = format!("{name}:{NGINX}:{}", url(at));
        let (trust, url) = (format!("/run/tls/{name}.pem"), format!("https://{name}:{NGINX}/file.txt"));
        scene.curl(&[&["--cacert", &trust, "--resolve", &resolve, &url][..], more].concat())
    };
    for more in [&["--tlsv1.3"][..], &["--tls-max", "1.2"], &["--http1.1"]] {
        let got = get("a.db.example", more);
        assert!(got.code == 0 && got.text() == text(300_000), "{more:?}: {}", got.stderr);
    }
    notes.saw(at, "TLS", ["curl", "nginx"], "1.2 and 1.3, certificates and ALPN between the two ends");
    let denied = get("b.db.example", &[]);
    assert!([35, 56].contains(&denied.code), "{}: {}", denied.code, denied.stderr);
    notes.saw(at, "TLS", ["curl", "nginx"], "a server name that no rule allows is refused");
    let line = format!(
        "(echo backwards; sleep 0.3) | openssl s_client -quiet -no_ign_eof -CAfile /run/tls/a.db.example.pem -verify_return_error \
         -servername a.db.example -connect {}:{OPENSSL} 2>/dev/null",
        url(at)
    );
    assert_eq!(scene.shell(&line).text(), "sdrawkcab\n");
    notes.saw(at, "TLS", ["openssl", "openssl"], "both ends are OpenSSL's");
}

fn start_plain(scene: &mut Scene) {
    for (port, what) in [(SORT, "EXEC:sort -r"), (ENDLESS, "SYSTEM:while echo more; do sleep 0.01; done")] {
        let listen = format!("TCP6-LISTEN:{port},ipv6only=0,fork,reuseaddr,backlog=64");
        scene.serve(port, NOBODY, &["socat", &listen, what]);
    }
    let script = scene.mesh.directory().join("ends.js");
    fs::write(&script, include_str!("../../peers/ends.js")).expect("the directory is ours");
    let script = script.display().to_string();
    // What is about READER is in this one's log.
    scene.serve(RESET, NOBODY, &["node", &script, "serve", &RESET.to_string(), &READER.to_string()]);
}

/// sort answers when its input has ended, and not before.
fn ends(scene: &Scene, at: &str, notes: &mut Notes) {
    let sorted = scene.shell(&format!("seq -w 20000 | socat -t8 - TCP:{}:{SORT}", url(at)));
    let lines: Vec<String> = (1..=20_000).rev().map(|line| format!("{line:05}")).collect();
    assert!(sorted.code == 0 && sorted.text() == lines.join("\n") + "\n", "{}", sorted.stderr);
    notes.saw(at, "TCP", ["socat", "socat"], "one side ends first, the other still answers");
    let empty = scene.shell(&format!("socat -t8 - TCP:{}:{SORT} </dev/null", url(at)));
    assert_eq!((empty.code, empty.text().as_str()), (0, ""), "{}", empty.stderr);
}

fn resets(scene: &Scene, notes: &mut Notes) {
    let script = scene.mesh.directory().join("ends.js").display().to_string();
    let node = |what: &str, port: u16| scene.get(&["node", &script, what, V4, &port.to_string()]);
    assert_eq!(node("read", RESET), "ECONNRESET after \"begun\\n\"\n");
    notes.saw(V4, "TCP", ["Node.js net", "Node.js net"], "a reset of the server's is one");
    let count = || scene.log(RESET).matches("ECONNRESET after \"begun\\n\"").count();
    let before = count();
    assert_eq!(node("reset", READER), "");
    wait::until("the server sees a reset", wait::PATIENCE, || count() == before + 1);
    assert!(!scene.log(RESET).contains("ended"), "{}", scene.log(RESET));
    notes.saw(V4, "TCP", ["Node.js net", "Node.js net"], "a reset of the client's is one");
}

/// Whoever's end it is that dies, nobody takes what came so far for the whole.
fn cuts(scene: &Scene, notes: &mut Notes) {
    for (dies, seen) in [
        ("orders", "a stream is reset when the server's sidecar is killed"),
        ("web", "a stream is reset when the client's sidecar is killed"),
    ] {
        let reader = read(scene);
        let sidecar = scene.mesh.sidecar(dies);
        sidecar.kill();
        let ended = reader.wait(wait::PATIENCE);
        let log = reader.log();
        assert!(log.contains("reset by peer"), "{dies} was killed: {ended}: {log}");
        notes.saw(V4, "TCP", ["socat", "socat"], seen);
        sidecar.start();
        sidecar.wait_ready();
        drop(reader);
    }
}

/// A client that reads what has no end, and has begun to.
fn read(scene: &Scene) -> Process {
    let directory = scene.mesh.directory();
    let (log, out) = (directory.join("reader.log"), directory.join("reader.out"));
    let _ = (fs::remove_file(&log), fs::remove_file(&out));
    fs::write(&out, "").expect("the directory is ours");
    super::give(&out, WORKLOAD);
    let (from, to) = (format!("TCP:{V4}:{ENDLESS}"), format!("OPEN:{},append", out.display()));
    let reader = scene.web.start("socat", WORKLOAD, &log, &["socat", "-d", "-d", "-u", &from, &to], |_| {});
    wait::until("it flows", wait::PATIENCE, || fs::metadata(&out).is_ok_and(|file| file.len() > 50));
    reader
}
