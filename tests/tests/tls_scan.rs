//! Every TLS port of a mesh before the scanner sslyze, which tries all that old clients and known attacks would.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Papers, Plan, foreign};
use serde_json::{Value, json};

/// Beyond handshakes with each suite there are, most of the time is Python's.
const PATIENCE: Duration = Duration::from_secs(120);

/// All of them; the order is the server's affair, and is tested in `ca/svid`.
const SUITES: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Of those that the scanner knows: X25519MLKEM768 is not among them.
const GROUPS: [&str; 3] = ["X25519", "secp256r1", "secp384r1"];

const OLD: [&str; 5] = ["ssl2", "ssl3", "tls1.0", "tls1.1", "tls1.2"];

fn expect(port: &str, page: &Value, excused: &[(&str, &str)]) {
    let of = |what: &str| if OLD.contains(&what) { &page["versions"][what] } else { &page[what] };
    let expected = OLD.map(|version| (version, json!([]))).into_iter().chain([
        ("groups", json!(GROUPS)),
        ("compression", json!(false)),
        ("earlyData", json!(false)),
        ("ccsInjection", json!(false)),
        ("heartbleed", json!(false)),
        ("renegotiation", json!(false)),
        ("robot", json!("NOT_VULNERABLE_RSA_NOT_SUPPORTED")),
        // What TLS 1.3 has instead, tests/tests/tls.rs looks for: no tickets are given.
        ("resumption", json!("SERVER_IS_TLS_1_3_ONLY")),
    ]);
    assert_eq!(page["versions"]["tls1.3"], json!(SUITES), "{port}: {page:#}");
    for (what, expected) in expected {
        let found = of(what);
        let why = found["trace"].as_str().unwrap_or_default();
        let is_excused = excused.iter().any(|(one, words)| *one == what && why.contains(words));
        assert!(*found == expected || is_excused, "{port}, {what}: {found:#}");
        if is_excused {
            let last = why.trim_end().lines().next_back().unwrap_or("nothing was found");
            println!("{port}: {what} is not scanned: {last}");
        }
    }
}

#[test]
fn every_port_speaks_tls_1_3_and_nothing_else() {
    if !foreign::need(&["sslyze"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    let control = plan.control_address();
    plan.control(&format!("federation: {{listen: {{address: \"{control}:24152\"}}, profile: https_spiffe}}"));
    let mesh = plan.start();
    let papers = Papers::of_sidecar(&mesh, "web");
    // Who has proven nothing gets no further than the handshake; some of what the scanner tries, it cannot with a certificate.
    let refused = [("groups", ""), ("earlyData", "")];
    let proven = [
        ("ssl2", "use_certificate_chain_file"),
        // It asks before it looks, and speaks no protocol of the mesh's.
        ("earlyData", "peer closed the connection"),
    ];
    let orders = mesh.sidecar("orders").inbound();
    type Port<'a> = (&'a str, SocketAddr, bool, &'a [(&'a str, &'a str)]);
    let ports: [Port<'_>; 4] = [
        ("the mesh listener, unproven", orders, false, &refused),
        ("the mesh listener", orders, true, &proven),
        ("the identity API", (control, 24_150).into(), false, &[]),
        ("the bundle endpoint", (control, 24_152).into(), false, &[]),
    ];
    let (python, script) = foreign::sslyze("tls_scan.py");
    let mut command = Command::new(python);
    command.arg(script);
    for (_, address, is_mutual, _) in &ports {
        let mut target = address.to_string();
        if *is_mutual {
            target = format!("{target},{},{}", papers.chain.display(), papers.key.display());
        }
        command.arg(target);
    }
    let scanned = foreign::run(&mut command, PATIENCE);
    assert_eq!(scanned.code, 0, "{}", scanned.stderr);
    let pages: Value = serde_json::from_slice(&scanned.stdout).expect("it is JSON");
    for (port, address, is_mutual, excused) in &ports {
        let name = format!("{address}{}", if *is_mutual { "," } else { "" });
        expect(port, &pages[name], excused);
        println!("{port}: TLS 1.3 only, of {SUITES:?} and {GROUPS:?}");
    }
}
