//! R8: the clock of a sidecar's machine is set wrong beneath it, and right again.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use postern_tests::frames::{Raw, kind};
use postern_tests::{Mesh, Origin, Paced, Plan, foreign, is_long, processor_time, wait, wire};

use super::{POLICY, beside_others, call, expect_alive};

/// web and orders see the time that a file tells; the control plane sees the true one.
struct Shifted {
    mesh: Mesh,
    file: PathBuf,
    _origin: Origin,
    _directory: tempfile::TempDir,
}

impl Shifted {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("time");
        fs::write(&file, "+0").expect("it is ours");
        let library = foreign::libfaketime().display().to_string();
        let mut plan = Plan::new();
        for name in ["web", "orders"] {
            let sidecar = plan.sidecar(name).log("warn");
            for (variable, value) in [
                ("LD_PRELOAD", library.as_str()),
                ("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ] {
                sidecar.environment(variable, value);
            }
            if name == "orders" {
                sidecar.serves(80, 8080, "http");
            }
        }
        plan.document("policy.yaml", POLICY);
        let origin = Origin::http((plan.address("orders"), 8080));
        Self { mesh: plan.start(), file, _origin: origin, _directory: directory }
    }

    fn shift(&self, by: &str) {
        // Whole or not at all: it is read at every look at the clock.
        let new = self.file.with_extension("new");
        fs::write(&new, by).expect("it is ours");
        fs::rename(&new, &self.file).expect("it is ours");
    }

    fn processor_time(&self) -> Duration {
        ["web", "orders"].iter().map(|name| processor_time(self.mesh.sidecar(name).process().id())).sum()
    }
}

/// Whether a new mesh connection of web's is served.
fn is_let_in(mesh: &Mesh) -> bool {
    let Ok(mut raw) = Raw::try_mesh(mesh, "web", "orders") else { return false };
    raw.hello(&[]);
    raw.wait_for(wait::PATIENCE, |frame| frame.kind == kind::SETTINGS).is_some()
}

/// Panics unless an answer goes on: what has come by now is no sign of that.
fn expect_more(by: &str, answer: &mut TcpStream) {
    answer.set_read_timeout(Some(Duration::from_millis(5))).expect("a positive time");
    let mut piece = [0; 4_096];
    loop {
        match answer.read(&mut piece) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            ended => panic!("{by}: the call under way has ended: {ended:?}"),
        }
    }
    answer.set_read_timeout(Some(wait::PATIENCE)).expect("a positive time");
    let more = answer.read_exact(&mut piece[..10]);
    more.unwrap_or_else(|error| panic!("{by}: the call under way does not go on: {error}"));
}

#[test]
fn a_clock_that_jumps_closes_and_opens_again_with_it() {
    let _beside = beside_others();
    if !foreign::need(&["faketime"]) {
        return;
    }
    let shifted = Shifted::start();
    let mesh = &shifted.mesh;
    let outbound = mesh.sidecar("web").outbound();
    assert_eq!(call(mesh, "orders.shop"), 200);
    for by in ["+1h", "+30d", "-30d"] {
        // One call is under way, longer than the jump lasts.
        let mut running = wire::connect(outbound);
        running.write_all(b"GET /endless HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("it reads");
        assert!(wire::read_head(&mut running).starts_with("HTTP/1.1 200"), "{by}");
        let jumped = Instant::now();
        shifted.shift(by);
        // Certificates live an hour: by that clock they have ended, or have not begun. Nobody gets in with one.
        wait::until(&format!("{by}: a handshake is refused"), wait::PATIENCE, || !is_let_in(mesh));
        // Ended, it carries nothing any more; what was proven before it began goes on.
        let is_over = by.starts_with('+');
        let as_it_must = || match call(mesh, "orders.shop") {
            200 => !is_over,
            502 | 503 => is_over,
            other => panic!("{by}: {other}"),
        };
        wait::until(&format!("{by}: calls are refused if they must be"), wait::PATIENCE, as_it_must);
        let refused = jumped.elapsed();
        let used = shifted.processor_time();
        let since = Instant::now();
        wait::stays(&format!("{by}: and stay so"), Duration::from_secs(2), as_it_must);
        let share = (shifted.processor_time() - used).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
        // Deadlines run by the other clock: what is under way is not late.
        expect_more(by, &mut running);
        shifted.shift("+0");
        let back = Instant::now();
        wait::until(&format!("{by}: as before"), wait::PATIENCE, || {
            call(mesh, "orders.shop") == 200 && is_let_in(mesh)
        });
        let recovered = back.elapsed();
        let time = Duration::from_secs(if is_long() { 60 } else { 1 });
        let told = Paced::during(outbound, "orders.shop", 50, time);
        println!(
            "R8 {by}: as it must be after {refused:.1?}, {share:.0} % of a processor meanwhile; serves {recovered:.1?} after it is \
             right, then {}",
            told.line()
        );
        told.expect_all(by, 5);
        assert!(recovered < Duration::from_secs(5), "{by}: it serves only after {recovered:?}");
        // It asks the clock without end? Each look opens a file here; a loop without a rest takes all.
        assert!(share < 60.0, "{by}: meanwhile it takes {share} % of a processor");
        expect_alive(mesh);
    }
    for name in ["web", "orders"] {
        wait::until("it is ready as before", wait::PATIENCE, || mesh.sidecar(name).is_ready());
    }
}
