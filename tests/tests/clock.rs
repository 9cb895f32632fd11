//! A control plane whose machine's clock is set wrong beneath it, by libfaketime.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use postern_svid::{SpiffeId, Svid, TrustDomain};
use postern_tests::identity::Client;
use postern_tests::{Mesh, Plan, TRUST_DOMAIN, foreign, postern, wait};

/// A mesh without sidecars, whose control plane sees the time that a file tells.
struct Shifted {
    mesh: Mesh,
    file: PathBuf,
}

impl Shifted {
    fn start() -> Self {
        let mut plan = Plan::new();
        // It looks at its clock every three seconds.
        plan.ttl("1m");
        let mesh = plan.prepare();
        let file = mesh.directory().join("time");
        let this = Self { mesh, file };
        this.shift("+0d");
        this.mesh.control.environment(&this.variables());
        this.mesh.control.start();
        this
    }

    fn shift(&self, by: &str) {
        // Whole or not at all: it is read at every look at the clock.
        let new = self.file.with_extension("new");
        fs::write(&new, by).expect("it is ours");
        fs::rename(&new, &self.file).expect("it is ours");
    }

    fn variables(&self) -> Vec<(String, String)> {
        let library = foreign::libfaketime().display().to_string();
        let file = self.file.display().to_string();
        [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// A verb on the same machine.
    fn ca(&self, verb: &[&str]) -> foreign::Run {
        let mut command = Command::new(postern());
        command.arg("ca").args(verb).arg("--config").arg(self.mesh.control.config()).envs(self.variables());
        foreign::run(&mut command, wait::PATIENCE)
    }

    fn token(&self, name: &str) -> foreign::Run {
        let file = self.mesh.directory().join(name).display().to_string();
        self.ca(&["token", "create", "--id", id().as_str(), "--out", &file])
    }

    fn ready(&self, wanted: u16) {
        wait::until(&format!("/ready says {wanted}"), wait::PATIENCE * 2, || {
            self.mesh.control.page("/ready").is_some_and(|(status, text)| {
                status == wanted && (status == 200) != text.contains("\"clock\"")
            })
        });
    }

    fn issue(&self, token: Option<&str>, svid: Option<&Svid>) -> Option<Svid> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(async {
            Client::connect(&self.mesh.control, svid).await?.issue(&id(), token, svid).await
        })
    }
}

fn id() -> SpiffeId {
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
    SpiffeId::service_account(&trust_domain, "shop", "orders").expect("a constant")
}

#[test]
fn a_clock_set_wrong_stops_the_ca_and_costs_nothing_once_it_is_right() {
    if !foreign::need(&["faketime"]) {
        return;
    }
    let shifted = Shifted::start();
    let control = &shifted.mesh.control;
    for name in ["one", "two"] {
        assert_eq!(shifted.token(name).code, 0);
    }
    let token = |name: &str| fs::read_to_string(shifted.mesh.directory().join(name)).expect("it was written");
    let mut svid = shifted.issue(Some(&token("one")), None).expect("all is well");
    let bundle = fs::read(control.state().join("bundle.pem")).expect("it is there");

    shifted.shift("-1d");
    shifted.ready(503);
    assert!(shifted.issue(Some(&token("two")), None).is_none(), "a day back");
    shifted.shift("+0d");
    shifted.ready(200);
    svid = shifted.issue(None, Some(&svid)).expect("it goes on by itself");

    shifted.shift("+3650d");
    shifted.ready(503);
    assert!(shifted.issue(Some(&token("two")), None).is_none(), "ten years ahead");
    let refused = shifted.token("three");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("postern ca clock confirm"), "{}", refused.stderr);
    let shown = shifted.ca(&["clock", "show"]);
    assert_eq!(shown.code, 1, "{}", shown.text());
    // Nor is anything lost over a start at that time.
    control.kill();
    control.start_unready();
    let ended = control.process().wait(wait::PATIENCE);
    assert_eq!(ended.code(), Some(1));
    let log = control.process().log();
    assert!(log.contains("days after the latest time that this CA has seen"), "{log}");
    shifted.shift("+0d");
    control.start();
    shifted.issue(None, Some(&svid)).expect("its lineage is known still");
    shifted.issue(Some(&token("two")), None).expect("and its token");
    assert_eq!(fs::read(control.state().join("bundle.pem")).expect("it is there"), bundle);
    assert_eq!(shifted.ca(&["clock", "show"]).code, 0);

    // Where the time is right, an operator says so.
    shifted.shift("+30d");
    shifted.ready(503);
    let confirmed = shifted.ca(&["clock", "confirm", "--reason", "the machine was off", "--json"]);
    assert_eq!(confirmed.code, 0, "{}", confirmed.stderr);
    shifted.ready(200);
}
