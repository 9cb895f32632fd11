//! Every TLS port of a mesh before the scanner sslyze, which tries all that old clients and known attacks would.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Mesh, Papers, Plan, Process, WebCa, foreign, is_long, wait};
use serde_json::{Value, json};

/// Beyond handshakes with each suite there are, most of the time is Python's.
const PATIENCE: Duration = Duration::from_secs(120);

/// All of them; the order is the server's affair, and is tested in `ca/svid`.
const SUITES: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Of those that the scanner knows: X25519MLKEM768 is not among them.
const GROUPS: [&str; 3] = ["X25519", "secp256r1", "secp384r1"];

const OLD: [&str; 5] = ["ssl2", "ssl3", "tls1.0", "tls1.1", "tls1.2"];

fn of<'a>(page: &'a Value, what: &str) -> &'a Value {
    if OLD.contains(&what) { &page["versions"][what] } else { &page[what] }
}

/// What must be found, beside the suites of TLS 1.3.
fn expected() -> impl Iterator<Item = (&'static str, Value)> {
    OLD.map(|version| (version, json!([]))).into_iter().chain([
        ("groups", json!(GROUPS)),
        ("compression", json!(false)),
        ("earlyData", json!(false)),
        ("ccsInjection", json!(false)),
        ("heartbleed", json!(false)),
        ("renegotiation", json!(false)),
        ("robot", json!("NOT_VULNERABLE_RSA_NOT_SUPPORTED")),
        // What TLS 1.3 has instead, `expect_no_ticket` looks for.
        ("resumption", json!("SERVER_IS_TLS_1_3_ONLY")),
    ])
}

fn expect(port: &str, page: &Value, excused: &[(&str, &str)]) {
    assert_eq!(page["versions"]["tls1.3"], json!(SUITES), "{port}, tls1.3: {page:#}");
    for (what, expected) in expected() {
        let found = of(page, what);
        let why = found["trace"].as_str().unwrap_or_default();
        let is_excused = excused.iter().any(|(one, words)| *one == what && why.contains(words));
        assert!(*found == expected || is_excused, "{port}, {what}: {found:#}");
        if is_excused {
            let last = why.trim_end().lines().next_back().unwrap_or("nothing was found");
            println!("{port}: {what} is not scanned: {last}");
        }
    }
}

/// Neither resumption nor early data goes without a ticket.
fn expect_no_ticket(port: &str, address: SocketAddr, papers: Option<&Papers>) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-alpn", "h2,http/1.1", "-ign_eof"]);
    if let Some(Papers { chain, key }) = papers {
        command.arg("-cert").arg(chain).arg("-cert_chain").arg(chain).arg("-key").arg(key);
    }
    // Answered, or refused as no HTTP/2: the connection ends, and what came before that has been read.
    let request = b"GET / HTTP/1.1\r\nHost: scanned.invalid\r\nConnection: close\r\n\r\n";
    let text = foreign::run_with_input(&mut command, request, PATIENCE).text();
    assert!(text.contains("New, TLSv1.3, Cipher is"), "{port}: {text}");
    assert!(!text.contains("Session Ticket arrived"), "{port} gives a ticket for a session: {text}");
}

/// A control plane with a bundle endpoint for which somebody else's authority vouches.
fn of_the_web(directory: &Path) -> (Mesh, IpAddr) {
    let mut plan = Plan::new();
    let control = plan.control_address();
    let Papers { chain, key } = WebCa::new(directory).server("bundle", &["bundle.example"], (-60, 3_600));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    plan.control(&format!(
        "federation: {{listen: {{address: \"{control}:24152\"}}, profile: https_web, certificate: {}, key: {}}}",
        chain.display(),
        key.display()
    ));
    (plan.start(), control)
}

/// A server of OpenSSL's that allows as much as it can.
fn lenient(at: SocketAddr, directory: &Path) -> Process {
    let [chain, key] = ["lenient.pem", "lenient.key"].map(|file| directory.join(file).display().to_string());
    // An RSA key, for ciphers without forward secrecy.
    let make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=lenient.example"];
    let made =
        foreign::run(Command::new("openssl").args(make).args(["-out", &chain, "-keyout", &key]), PATIENCE);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let log = directory.join("openssl.log");
    let server = Process::start("openssl", Path::new("openssl"), &log, |command| {
        command.args(["s_server", "-www", "-quiet", "-client_renegotiation", "-cipher", "ALL:@SECLEVEL=0"]);
        command.args(["-accept", &at.to_string(), "-cert", &chain, "-key", &key]);
        // Debian's own forbids what is old.
        command.env("OPENSSL_CONF", "/dev/null");
    });
    wait::until("openssl listens", wait::PATIENCE, || TcpStream::connect(at).is_ok());
    server
}

#[test]
fn every_port_speaks_tls_1_3_and_nothing_else() {
    if !foreign::need(&["openssl", "sslyze"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    let (control, spare) = (plan.control_address(), plan.spare_address(0));
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
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (_web, web) = of_the_web(directory.path());
    let orders = mesh.sidecar("orders").inbound();
    type Port<'a> = (&'a str, SocketAddr, bool, &'a [(&'a str, &'a str)]);
    let ports: [Port<'_>; 5] = [
        ("the mesh listener, unproven", orders, false, &refused),
        ("the mesh listener", orders, true, &proven),
        ("the identity API", (control, 24_150).into(), false, &[]),
        ("the bundle endpoint", (control, 24_152).into(), false, &[]),
        ("the bundle endpoint with a certificate of the web", (web, 24_152).into(), false, &[]),
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
    // It answers one connection at a time, which takes half a minute.
    let lenient = is_long().then(|| {
        let at = SocketAddr::new(spare, 4_433);
        command.arg(at.to_string());
        (at, lenient(at, directory.path()))
    });
    let scanned = foreign::run(&mut command, PATIENCE);
    assert_eq!(scanned.code, 0, "{}", scanned.stderr);
    let pages: Value = serde_json::from_slice(&scanned.stdout).expect("it is JSON");
    for (port, address, is_mutual, excused) in &ports {
        let name = format!("{address}{}", if *is_mutual { "," } else { "" });
        expect(port, &pages[name], excused);
        // Who has proven nothing has no session.
        if *address != orders || *is_mutual {
            expect_no_ticket(port, *address, is_mutual.then_some(&papers));
        }
        println!("{port}: TLS 1.3 only, of {SUITES:?} and {GROUPS:?}");
    }
    if let Some((at, _server)) = lenient {
        let page = &pages[at.to_string()];
        for (what, expected) in expected() {
            let is_beyond_openssl =
                ["ssl2", "ssl3", "compression", "earlyData", "ccsInjection", "heartbleed"];
            assert!(
                is_beyond_openssl.contains(&what) || *of(page, what) != expected,
                "the scanner finds nothing wrong with {what} of a server that allows everything: {page:#}"
            );
        }
        println!("a server that allows everything is found out");
    }
}
