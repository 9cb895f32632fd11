//! The command line of `postern-proxy`: exit codes and what it tells people.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern-proxy")).args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A configuration in a directory of its own, so that its paths can be real.
fn config(edit: impl FnOnce(String) -> String) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let root = directory.path().display();
    let good = format!(
        "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: {root}
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: {root}/bundle.pem
  joinToken: {root}/token
workload:
  address: 127.0.0.1
  ports: [{{port: 8080, protocol: http}}]
inbound: {{address: \"127.0.0.1:24143\"}}
outbound: {{address: \"127.0.0.1:24140\"}}
health: {{address: \"127.0.0.1:24191\"}}
admin: {{socket: {root}/admin.sock}}
documents: {root}
"
    );
    let path = directory.path().join("sidecar.yaml");
    std::fs::write(&path, edit(good)).expect("the directory can be written to");
    let path = path.display().to_string();
    (directory, path)
}

#[test]
fn version_and_help_are_success() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(text(&version.stdout), format!("postern-proxy {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("run --config"), "{}", text(&help.stdout));
}

#[test]
fn a_wrong_command_line_is_2() {
    for wrong in [&[][..], &["run"], &["run", "--config"], &["walk"], &["run", "--config", "a", "b"]] {
        let run = run(wrong);
        assert_eq!(run.status.code(), Some(2), "{wrong:?}");
        assert!(text(&run.stderr).contains("Usage"), "{wrong:?}: {}", text(&run.stderr));
    }
}

#[test]
fn a_good_configuration_is_checked_without_running() {
    let (_directory, path) = config(|good| good);
    let checked = run(&["check", "--config", &path]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("spiffe://demo.postern/ns/shop/sa/orders"));
    // Other replicas of the control plane.
    let (_directory, path) =
        config(|good| good.replacen("127.0.0.1:1\n", "127.0.0.1:1\n  replicas: [\"127.0.0.1:2\"]\n", 1));
    let checked = run(&["check", "--config", &path]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
}

#[test]
fn what_cannot_run_is_refused_before_it_runs() {
    for (good, bad, place, says) in [
        ("127.0.0.1:1\n", "control\n", ":4:12", "no host:port"),
        ("127.0.0.1:1\n", "control:99999\n", ":4:12", "no host:port"),
        ("127.0.0.1:1\n", "127.0.0.1:1\n  replicas: [\"10.0.0.11\"]\n", ":5:14", "no host:port"),
        ("127.0.0.1:1\n", "127.0.0.1:1\n  replicas: [\"127.0.0.1:1\"]\n", ":5:14", "is there already"),
        ("127.0.0.1:24191", "127.0.0.1:24140", ":13:19", "health and outbound cannot both listen here"),
        ("127.0.0.1:24191", "0.0.0.0:24143", ":13:19", "health and inbound cannot both listen here"),
        ("127.0.0.1:24140", "0.0.0.0:24140", ":12:21", "calls with the workload's identity"),
        ("127.0.0.1:24140", "10.0.0.7:24140", ":12:21", "bind it to a 127.x.y.z address"),
        ("/admin.sock", "/admin.sock, address: \"10.0.0.7:24190\"", "", "it asks nobody who they are"),
        ("/admin.sock", "/admin.sock, address: \"0.0.0.0:24190\"", "", "such as 127.0.0.1:24190"),
        ("/admin.sock", "/admin.sock, address: \"127.0.0.1:24191\"", "", "admin and health cannot both"),
        ("/admin.sock", "/admin.sock, address: \"127.0.0.1:8080\"", ":10:18", "sidecar's own listeners"),
        ("documents:", "limits: {stall: 0s}\ndocuments:", ":15:17", "lets nothing pass"),
        ("documents:", "limits: {stal: 1s}\ndocuments:", ":15:16", "no such limit"),
        (
            "documents:",
            "limits: {streamWindow: \"2147483648\"}\ndocuments:",
            ":15:24",
            "from 16384 to 2147483647",
        ),
        (
            "documents:",
            "limits: {memoryRejectPercent: \"70\"}\ndocuments:",
            ":15:31",
            "limits.memoryStreamsPercent (85) is above limits.memoryRejectPercent (70)",
        ),
        ("documents:", "log: {level: loud}\ndocuments:", ":15:14", "is no level"),
    ] {
        let (_directory, path) = config(|text| {
            assert!(text.contains(good), "{good}");
            text.replacen(good, bad, 1)
        });
        let checked = run(&["check", "--config", &path]);
        let said = text(&checked.stderr);
        assert_eq!(checked.status.code(), Some(2), "{bad}: {said}");
        assert!(said.contains(place) && said.contains(says), "{bad}: {said}");
    }
}

#[test]
fn every_mistake_is_shown_with_its_place() {
    let (_directory, path) = config(|good| {
        good.replace("protocol: http", "protocol: htpt")
            .replace("spiffe://demo.postern/ns/shop/sa/orders", "spiffe://demo.postern/orders")
    });
    for verb in ["check", "run"] {
        let refused = run(&[verb, "--config", &path]);
        assert_eq!(refused.status.code(), Some(2), "{verb}");
        let said = text(&refused.stderr);
        assert!(said.contains("sidecar.yaml:1:11"), "{verb}: {said}");
        assert!(said.contains("sidecar.yaml:10:34"), "{verb}: {said}");
        assert!(said.contains("one of http, http2, grpc, tcp, tls"), "{verb}: {said}");
        assert!(said.contains('^'), "{verb}: a caret stands under the mistake: {said}");
    }
}

#[test]
fn a_field_that_does_not_exist_is_a_mistake() {
    let (_directory, path) = config(|good| good.replace("inbound:", "inbuond:"));
    let refused = run(&["run", "--config", &path]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("sidecar.yaml:11:1"), "{}", text(&refused.stderr));
}

#[test]
fn a_machine_that_does_not_let_it_is_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("a listener has an address").to_string();
    let (_directory, path) = config(|good| good.replace("127.0.0.1:24143", &address));
    let failed = run(&["run", "--config", &path]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    let said = text(&failed.stderr);
    assert!(said.contains("inbound.address") && said.contains(&address), "{said}");
}

#[test]
fn upgrades_are_listed_by_name_and_checked() {
    let with = |port: &str| {
        let (_directory, path) = config(|good| good.replace("protocol: http}", port));
        let checked = run(&["check", "--config", &path]);
        (checked.status.code(), text(&checked.stderr))
    };
    let (code, said) = with("protocol: http, upgrades: [tcp, spdy/3.1]}");
    assert_eq!(code, Some(0), "{said}");
    for (port, words) in [
        ("protocol: http, upgrades: [tcp, h2c]}", ["sidecar.yaml:10:56", "never passed on"]),
        ("protocol: http, upgrades: [websocket]}", ["sidecar.yaml:10:51", "passes at every HTTP port"]),
        ("protocol: http, upgrades: [TCP]}", ["sidecar.yaml:10:51", "write tcp"]),
        ("protocol: http, upgrades: [tcp, tcp]}", ["sidecar.yaml:10:56", "twice"]),
        ("protocol: http, upgrades: []}", ["sidecar.yaml:10:50", "empty"]),
        ("protocol: grpc, upgrades: [tcp]}", ["sidecar.yaml:10:50", "only HTTP/1.1"]),
    ] {
        let (code, said) = with(port);
        assert_eq!(code, Some(2), "{port}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{port}: {said}");
    }
}

#[test]
fn what_a_port_says_of_paths_is_checked() {
    let with = |port: &str| {
        let (_directory, path) = config(|good| good.replace("protocol: http}", port));
        let checked = run(&["check", "--config", &path]);
        (checked.status.code(), text(&checked.stderr))
    };
    for good in
        ["escapedSlashes: Decode", "escapedSlashes: Keep, preserveRawPath: true", "preserveRawPath: false"]
    {
        let (code, said) = with(&format!("protocol: grpc, {good}}}"));
        assert_eq!(code, Some(0), "{good}: {said}");
    }
    for (port, words) in [
        ("protocol: http, escapedSlashes: keep}", ["sidecar.yaml:10:56", "one of Reject, Decode, Keep"]),
        ("protocol: tcp, escapedSlashes: Keep}", ["sidecar.yaml:10:55", "of protocol tcp has no paths"]),
        ("protocol: tls, preserveRawPath: true}", ["sidecar.yaml:10:56", "of protocol tls has no paths"]),
        (
            "protocol: http, escapedSlashes: Decode, preserveRawPath: true}",
            ["sidecar.yaml:10:56", "write `Keep` to take"],
        ),
    ] {
        let (code, said) = with(port);
        assert_eq!(code, Some(2), "{port}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{port}: {said}");
    }
}
