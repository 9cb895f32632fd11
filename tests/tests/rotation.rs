//! Roots and issuing CAs that follow each other under load, planned and in an emergency, and identities that are denied.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use postern_tests::{Load, Mesh, Nginx, Origin, Plan, foreign, is_long, openssl, postern, wait, wire};
use serde_json::Value;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: shop
    from: [{namespaces: [shop]}]
"#;

/// `postern ca …` on the mesh's control plane.
fn ca(mesh: &Mesh, arguments: &[&str]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.arg("ca").args(arguments).arg("--config").arg(mesh.control.config());
    foreign::run(&mut command, Duration::from_secs(240))
}

fn done(mesh: &Mesh, arguments: &[&str]) -> String {
    let ran = ca(mesh, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.text(), ran.stderr);
    ran.text()
}

fn status(mesh: &Mesh) -> Value {
    serde_json::from_str(&done(mesh, &["status", "--json"])).expect("it is JSON")
}

/// Label and state of each CA of a kind, oldest first.
fn states(status: &Value, kind: &str) -> Vec<(String, String)> {
    let all = status["authorities"].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    all.iter().filter(|one| one["kind"] == kind).map(|one| (text(one, "label"), text(one, "state"))).collect()
}

/// Serial number of the certificate that a stranger is shown at a mesh listener, and its issuer's unique name.
fn served(mesh: &Mesh, name: &str) -> (String, String) {
    let address = mesh.sidecar(name).inbound().to_string();
    let shown = openssl(&["s_client", "-connect", &address, "-alpn", "postern/1"], b"");
    let read = openssl(&["x509", "-noout", "-serial", "-issuer", "-nameopt", "sep_multiline"], &shown.stdout);
    let text = read.text();
    let field = |name: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}{}", shown.text())).to_owned()
    };
    (field("serial="), field("serialNumber="))
}

fn endless(mesh: &Mesh, from: &str) -> TcpStream {
    let mut stream = wire::connect(mesh.sidecar(from).outbound());
    write!(stream, "GET /endless HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"), "{from}");
    stream.read_exact(&mut [0; 100]).expect("it goes on");
    stream
}

/// How long until the stream breaks off.
fn breaks_off(stream: &mut TcpStream, within: Duration) -> Duration {
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("it is a socket");
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < within, "it still runs after {within:?}");
        match stream.read(&mut [0; 4_096]) {
            Ok(0) => return start.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return start.elapsed(),
        }
    }
}

fn refusals(mesh: &Mesh, name: &str, reason: &str) -> f64 {
    let metrics = mesh.sidecar(name).metrics();
    let matching = metrics.iter().filter(|(series, _)| {
        series.starts_with("postern_tls_refusals_total") && series.contains(&format!("reason=\"{reason}\""))
    });
    matching.map(|(_, value)| value).sum()
}

/// Chain and key that a sidecar had, kept by a thief.
fn stolen(mesh: &Mesh, name: &str, at: &str) -> PathBuf {
    let path = mesh.directory().join(at);
    fs::copy(mesh.sidecar(name).state().join("svid.pem"), &path).expect("the sidecar has stored it");
    path
}

/// Whether orders' sidecar believes the thief. A TLS 1.3 client hears of its refusal only after its own handshake, so the other
/// side is asked.
fn gets_in(mesh: &Mesh, papers: &Path) -> bool {
    let refused = || {
        let metrics = mesh.sidecar("orders").metrics();
        let all = metrics.iter().filter(|(series, _)| {
            series.starts_with("postern_tls_refusals_total") && !series.contains("no_certificate")
        });
        all.map(|(_, value)| value).sum::<f64>()
    };
    let (address, papers) = (mesh.sidecar("orders").inbound().to_string(), papers.display().to_string());
    let before = refused();
    let arguments = ["s_client", "-connect", &address, "-alpn", "h2", "-cert", &papers];
    let _ = openssl(&[&arguments[..], &["-cert_chain", &papers, "-key", &papers]].concat(), b"");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        if refused() > before {
            return false;
        }
        wait::pause(Duration::from_millis(20));
    }
    true
}

#[test]
fn whoever_is_denied_is_cut_off_everywhere_and_stays_out_over_a_restart() {
    if !foreign::need(&["openssl"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.ttl("10s");
    plan.sidecar("web");
    plan.sidecar("steady");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let mut cut = endless(&mesh, "web");
    let mut kept = endless(&mesh, "steady");
    let web = mesh.sidecar("web").id();
    let issued = || mesh.control.certificates().iter().filter(|(id, _)| *id == web).count();

    let begun = Instant::now();
    let said = done(&mesh, &["deny", "id", &web, "--for", "1d", "--reason", "laptop stolen"]);
    assert!(said.contains("denied: the id") && said.contains("24 h"), "{said}");
    let verb = begun.elapsed();
    let reset = breaks_off(&mut cut, Duration::from_secs(10));
    println!("the verb took {verb:?}, the stream was reset {reset:?} after it");
    // Two seconds on a machine of its own; this one runs other tests.
    assert!(reset < Duration::from_secs(4), "{reset:?}");
    kept.read_exact(&mut [0; 1_000]).expect("nobody else is touched");
    let get = |from: &str| mesh.curl(from, &["--max-time", "10", "http://orders.shop/"]).status;
    assert_ne!(get("web"), 200, "nor is it let in anew");
    wait::until("its handshakes are refused", wait::PATIENCE, || {
        let _ = get("web");
        refusals(&mesh, "orders", "denied") > 0.0
    });
    assert_eq!(get("steady"), 200);
    let told = mesh.sidecar("orders").log();
    assert!(
        told.contains(&format!("is on the deny list of its trust domain, by the id {web}"))
            && told.contains("take the entry off the deny list"),
        "{told}"
    );
    let shown = status(&mesh);
    assert_eq!(shown["revocations"][0]["reason"], "laptop stolen", "{shown}");
    let count = issued();
    // What would do harm, or nothing, is refused.
    let control = web.split("/ns/").next().map(|td| format!("{td}/postern/control")).expect("an id");
    for (id, time, says) in [
        (web.as_str(), "5s", "denied for longer already (laptop stolen)"),
        (&control, "1d", "control plane's own id"),
        ("spiffe://other.example/ns/a/sa/b", "1d", "Deny it where other.example has its CA"),
    ] {
        let refused = ca(&mesh, &["deny", "id", id, "--for", time, "--reason", "a slip"]);
        assert!(refused.code == 1 && refused.stderr.contains(says), "{id}: {}", refused.stderr);
    }
    // Without its control plane a sidecar knows from its disk.
    mesh.control.kill();
    mesh.sidecar("orders").restart();
    let before = refusals(&mesh, "orders", "denied");
    assert_ne!(get("web"), 200);
    wait::until("it is refused still", wait::PATIENCE, || {
        let _ = get("web");
        refusals(&mesh, "orders", "denied") > before
    });
    mesh.control.start();
    // Half of its certificate's life is over by then: it asks for another one, in vain.
    wait::until("web's renewal is refused", Duration::from_secs(40), || {
        let failures = mesh.sidecar("web").admin("/v1/identity")["failures"].as_u64().unwrap_or(0);
        failures > 0 || mesh.sidecar("web").log().contains("no new SVID")
    });
    assert_eq!(issued(), count, "the CA has made nothing for it");
    // It knows why from its own copy of the list, whatever became of the connection.
    wait::until("web's own log says so", wait::PATIENCE, || {
        let log = mesh.sidecar("web").log();
        log.contains(&format!("by the id {web}")) && log.contains("postern ca allow-again")
    });

    let again = ca(&mesh, &["allow-again", "id", &web, "--reason", "found under the sofa"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    mesh.sidecar("web").create_token();
    wait::until("web is back", Duration::from_secs(60), || get("web") == 200);
    let ledger = done(&mesh, &["ledger", "search", "--kind", "deny"]);
    assert!(ledger.contains("laptop stolen") && ledger.contains(&web), "{ledger}");
    // What a verb has written, the control plane brings into the files.
    wait::until("the ledger tells of it", wait::PATIENCE, || {
        ca(&mesh, &["ledger", "search", "--kind", "allow"]).text().contains("under the sofa")
    });
}

/// A pair of sidecars under load, and what is seen meanwhile.
struct Busy {
    mesh: Mesh,
    _nginx: Nginx,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// A minute of all the load that there can be, with certificates of seconds: two of them at once would take from each other
/// the time in which a renewal has to come.
static TURN: Mutex<()> = Mutex::new(());

impl Busy {
    fn new(ttl: &str) -> Self {
        // The short form has time to spare.
        let turn = is_long().then(|| TURN.lock());
        let mut plan = Plan::new();
        plan.ttl(ttl);
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.document("policy.yaml", POLICY);
        let address = plan.address("orders");
        let mesh = plan.start();
        let nginx = Nginx::start(&mesh, (address, 8080), "location / { return 200 \"yes\\n\"; }");
        Self { mesh, _nginx: nginx, _turn: turn }
    }

    /// Runs `work` under load until both are over; what each sidecar has served, oldest first.
    fn under_load(&self, time: Duration, work: impl FnOnce(&Mesh) -> String + Send) -> Vec<(String, String)> {
        let mesh = &self.mesh;
        let load = Load::start(mesh, "web", "http://orders.shop/", time);
        let mut seen = Vec::new();
        let said = std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                wait::pause(Duration::from_secs(1));
                work(mesh)
            });
            while !load.is_over() || !worker.is_finished() {
                for name in ["web", "orders"] {
                    let one = served(mesh, name);
                    if !seen.contains(&one) {
                        println!("{name} serves {} of {}", one.0, one.1);
                        seen.push(one);
                    }
                }
                wait::pause(Duration::from_millis(300));
            }
            worker.join().expect("the work was done")
        });
        print!("{said}");
        let loaded = load.end();
        println!("{} requests, {} failed", loaded.answered(), loaded.failed);
        assert_eq!(loaded.failed, 0, "{}", loaded.summary);
        assert_eq!(loaded.statuses.keys().collect::<Vec<_>>(), [&200], "{}", loaded.summary);
        assert!(loaded.answered() > 500, "that was no load: {}", loaded.summary);
        seen
    }
}

fn issuers(seen: &[(String, String)]) -> BTreeSet<&str> {
    seen.iter().map(|(_, issuer)| issuer.as_str()).collect()
}

/// Until this many roots are out of the bundle.
fn until_removed(mesh: &Mesh, count: usize, within: Duration) {
    wait::until("the old root is removed", within, || {
        states(&status(mesh), "root").iter().filter(|(_, state)| state == "removed").count() == count
    });
}

#[test]
fn a_root_follows_another_under_load_and_nobody_notices() {
    if !foreign::need(&["h2load", "nginx", "openssl"]) {
        return;
    }
    let busy = Busy::new("6s");
    let time = Duration::from_secs(if is_long() { 60 } else { 20 });
    let before = status(&busy.mesh);
    let seen = busy.under_load(time, |mesh| {
        let begun = Instant::now();
        let mut said = done(mesh, &["root", "prepare"]);
        let refused = ca(mesh, &["root", "activate"]);
        assert_eq!(refused.code, 1, "not before everybody has had time to learn of it: {}", refused.text());
        assert!(refused.stderr.contains("not yet"), "{}", refused.stderr);
        let mut last = Vec::new();
        while last.iter().filter(|(_, state)| state == "removed").count() == 0 {
            let now = states(&status(mesh), "root");
            if now != last {
                said.push_str(&format!("{:6.1} s  {now:?}\n", begun.elapsed().as_secs_f64()));
                last = now;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{said}{}", done(mesh, &["status"]));
            wait::pause(Duration::from_millis(100));
        }
        said
    });
    let after = status(&busy.mesh);
    let (old, new) = (states(&before, "root"), states(&after, "root"));
    assert_eq!(new[0], (old[0].0.clone(), "removed".to_owned()), "{after}");
    assert_eq!(new[1].1, "active", "{after}");
    assert_eq!(after["bundleSequence"], 3, "{after}");
    assert_eq!(issuers(&seen).len(), 2, "an issuing CA under each root has been seen: {seen:?}");
    let behind = done(&busy.mesh, &["who", "--behind", "3"]);
    assert!(behind.starts_with("0 of 2 sidecars"), "{behind}");
    let pem = fs::read_to_string(busy.mesh.control.state().join("bundle.pem")).expect("it is there");
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 1, "new sidecars get the new root alone");
}

/// As SIGKILL leaves it after each step.
#[test]
fn a_control_plane_that_is_killed_between_two_steps_goes_on_where_it_was() {
    let mut plan = Plan::new();
    plan.ttl("6s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let _origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    done(&mesh, &["root", "prepare"]);
    let begun = Instant::now();
    let mut seen: Vec<Vec<String>> = Vec::new();
    while !seen.last().is_some_and(|states| states.contains(&"removed".to_owned())) {
        let now: Vec<_> = states(&status(&mesh), "root").into_iter().map(|(_, state)| state).collect();
        if seen.last() != Some(&now) {
            println!("{:5.1} s  {now:?}", begun.elapsed().as_secs_f64());
            mesh.control.kill();
            mesh.control.start();
            seen.push(now);
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "{seen:?}: {}", done(&mesh, &["status"]));
        wait::pause(Duration::from_millis(50));
    }
    let last = seen.iter().rev().take(3).rev().map(|states| states.join(" ")).collect::<Vec<_>>();
    assert_eq!(last, ["active published", "draining active", "removed active"], "{seen:?}");
    wait::until("calls are answered", wait::PATIENCE, || {
        mesh.curl("web", &["--max-time", "10", "http://orders.shop/"]).status == 200
    });
}

#[test]
fn an_emergency_under_load_fails_nobody_and_refuses_every_old_chain_in_the_end() {
    if !foreign::need(&["h2load", "nginx", "openssl"]) {
        return;
    }
    let busy = Busy::new("20s");
    let mesh = &busy.mesh;
    let time = Duration::from_secs(if is_long() { 60 } else { 24 });
    let first = states(&status(mesh), "issuing").remove(0).0;
    let root = states(&status(mesh), "root").remove(0).0;
    let seen = busy.under_load(time, |mesh| {
        let papers = stolen(mesh, "web", "first.pem");
        assert!(gets_in(mesh, &papers), "a copied key is good until somebody notices");
        let mut said = done(mesh, &["taint", &first, "--reason", "backup tape lost"]);
        assert!(said.contains("all 2 sidecars refuse"), "{said}");
        // Its dates are right still.
        assert!(!gets_in(mesh, &papers), "what the tainted CA has signed is refused");

        let papers = stolen(mesh, "web", "second.pem");
        assert!(gets_in(mesh, &papers));
        said.push_str(&done(mesh, &["taint", &root, "--reason", "root key lost too"]));
        assert!(!gets_in(mesh, &papers), "what came from the tainted root is refused");
        until_removed(mesh, 1, Duration::from_secs(5));
        said
    });
    assert!(issuers(&seen).len() >= 3, "the first, its successor, and the new root's: {seen:?}");
    assert!(refusals(mesh, "orders", "tainted") > 0.0);
    let now = status(mesh);
    let reasons: Vec<_> = (0..3).map(|at| now["revocations"][at]["reason"].as_str()).collect();
    assert_eq!(reasons, [Some("backup tape lost"), Some("root key lost too"), None], "{now}");
    assert_eq!(now["steps"].as_array().map(Vec::len), Some(0), "{now}");
    let ledger = done(mesh, &["ledger", "search", "--kind", "taint"]);
    assert_eq!(ledger.lines().count(), 2, "{ledger}");
}
