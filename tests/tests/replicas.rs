//! Two replicas of a control plane on one etcd, as real processes: either is killed under load, etcd goes away and comes back, a
//! leader is stopped past its lease.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_svid::{SpiffeId, Svid, TrustDomain};
use postern_tests::identity::Client;
use postern_tests::{ControlPlane, Etcd, Mesh, Plan, TRUST_DOMAIN, foreign, postern, wait};

const CLIENTS: usize = 8;
/// Between two renewals of a client: one id may ask for five a second.
const PACE: Duration = Duration::from_millis(250);

/// A mesh with two replicas of its control plane; what is dropped first stands first.
struct Pair {
    second: ControlPlane,
    mesh: Mesh,
    etcd: Etcd,
    _directory: tempfile::TempDir,
}

impl Pair {
    fn new(shape: impl FnOnce(&mut Plan)) -> Option<Self> {
        if !foreign::need(&["etcd", "etcdctl"]) {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("there is room");
        let etcd = Etcd::start(directory.path());
        let seal =
            etcd.secret("seal.key", "4f0c9d1a7be2583604c6f1d8a99b37e5d20f6c418ea75b93c7f8012b64da3e9f\n");
        let mut plan = Plan::new();
        plan.control(&etcd.yaml()).control("replica: first").replicas(1);
        plan.control(&format!("keys: {{seal: {{keyFile: {}}}}}", seal.display()));
        shape(&mut plan);
        let mesh = plan.prepare();
        let second = mesh.replica(0, "second");
        Some(Self { second, mesh, etcd, _directory: directory })
    }

    fn started(shape: impl FnOnce(&mut Plan)) -> Option<Self> {
        let pair = Self::new(shape)?;
        pair.mesh.control.start();
        pair.second.start();
        Some(pair)
    }

    fn both(&self) -> [&ControlPlane; 2] {
        [&self.mesh.control, &self.second]
    }

    /// Sequence and digest of the trust bundle at each of them.
    fn bundles(&self) -> [(u64, String); 2] {
        self.both().map(bundle)
    }

    /// Waits until both have a bundle of this sequence, and the same; how long that took.
    fn agree(&self, sequence: u64) -> Duration {
        let begun = Instant::now();
        wait::until(&format!("both have the bundle {sequence}"), wait::PATIENCE, || {
            let [one, other] = self.bundles();
            one == other && one.0 == sequence
        });
        begun.elapsed()
    }
}

fn bundle(control: &ControlPlane) -> (u64, String) {
    let page = control.admin("/v1/replicas");
    (page["bundleSequence"].as_u64().expect("a number"), page["sha256"].as_str().expect("text").to_owned())
}

fn leads(control: &ControlPlane) -> bool {
    control.admin("/v1/replicas")["leads"].as_bool().expect("it says so")
}

fn shared_store(control: &ControlPlane) -> String {
    control.admin("/v1/replicas")["sharedStore"].as_str().unwrap_or_default().to_owned()
}

fn ca(control: &ControlPlane, verb: &[&str]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.arg("ca").args(verb).arg("--config").arg(control.config());
    foreign::run(&mut command, wait::PATIENCE * 2)
}

fn done(control: &ControlPlane, verb: &[&str]) -> String {
    let ran = ca(control, verb);
    assert_eq!(ran.code, 0, "{verb:?}: {}{}", ran.text(), ran.stderr);
    ran.text()
}

fn deny(control: &ControlPlane, id: &SpiffeId) {
    done(control, &["deny", "id", id.as_str(), "--for", "1d", "--reason", "a test"]);
}

fn id(name: &str) -> SpiffeId {
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
    SpiffeId::service_account(&trust_domain, "shop", name).expect("a constant")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads can be made")
}

fn token(pair: &Pair, control: &ControlPlane, name: &str) -> String {
    let file = pair.mesh.directory().join(format!("{name}.join"));
    let _ = fs::remove_file(&file);
    done(control, &["token", "create", "--id", id(name).as_str(), "--out", &file.display().to_string()]);
    fs::read_to_string(file).expect("it was written")
}

/// A certificate at this replica: the first by a token, or the next of `svid`.
async fn issue(
    control: &ControlPlane,
    id: &SpiffeId,
    token: Option<&str>,
    svid: Option<&Svid>,
) -> Option<Svid> {
    Client::connect(control, svid).await?.issue(id, token, svid).await
}

fn join(pair: &Pair, control: &ControlPlane, name: &str) -> Svid {
    let token = token(pair, control, name);
    runtime()
        .block_on(issue(control, &id(name), Some(&token), None))
        .expect("a token is good for a certificate")
}

fn renew(control: &ControlPlane, svid: &Svid) -> Option<Svid> {
    runtime().block_on(issue(control, svid.id(), None, Some(svid)))
}

/// What became of the calls of some clients.
#[derive(Default)]
struct Counts {
    issued: AtomicU64,
    /// Calls that failed, and were made again at the other replica.
    retried: AtomicU64,
    /// Calls that failed there too.
    failed: AtomicU64,
    /// The longest that somebody waited for a certificate, in milliseconds.
    slowest: AtomicU64,
}

/// Renews again and again until told to stop, now at one replica, now at the other; what fails at one is asked for at the other.
fn renew_again_and_again(pair: &Pair, at: usize, first: Svid, stop: &AtomicBool, counts: &Counts) {
    runtime().block_on(async {
        let (mut svid, mut turn) = (first, at);
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let (mut next, begun) = (None, Instant::now());
            for attempt in 0..2 {
                next = issue(pair.both()[(turn + attempt) % 2], svid.id(), None, Some(&svid)).await;
                let count = match (&next, attempt) {
                    (Some(_), _) => &counts.issued,
                    (None, 0) => &counts.retried,
                    (None, _) => &counts.failed,
                };
                count.fetch_add(1, Ordering::Relaxed);
                if next.is_some() {
                    break;
                }
            }
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            counts.slowest.fetch_max(took, Ordering::Relaxed);
            if let Some(next) = next {
                svid = next;
            }
            tokio::time::sleep(PACE).await;
        }
    });
}

#[test]
fn either_replica_is_killed_under_load_and_no_issuance_fails() {
    let Some(pair) = Pair::started(|plan| {
        plan.ttl("10s");
        plan.sidecar("web").serves(80, 8080, "http");
    }) else {
        return;
    };
    let web = pair.mesh.sidecar("web");
    web.create_token();
    web.start();
    web.wait_ready();
    let (counts, stop) = (Counts::default(), AtomicBool::new(false));
    let svids: Vec<_> =
        (0..CLIENTS).map(|at| join(&pair, pair.both()[at % 2], &format!("client-{at}"))).collect();
    let mut serials = BTreeSet::new();
    let mut seen = |when: &str| {
        serials.insert(web.serial());
        println!("{when}: the sidecar's {} certificates so far", serials.len());
    };
    std::thread::scope(|scope| {
        for (at, svid) in svids.into_iter().enumerate() {
            let (pair, counts, stop) = (&pair, &counts, &stop);
            scope.spawn(move || renew_again_and_again(pair, at, svid, stop, counts));
        }
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        for control in pair.both() {
            wait::pause(Duration::from_secs(1));
            let (issued, retried) = (load(&counts.issued), load(&counts.retried));
            control.kill();
            // Calls that go to the dead one first are refused at once and answered by the other.
            wait::pause(Duration::from_secs(3));
            seen("one is dead");
            println!(
                "3 s with one replica dead: {} issued, {} asked for at the other",
                load(&counts.issued) - issued,
                load(&counts.retried) - retried
            );
            assert!(load(&counts.issued) > issued + 10, "the other goes on");
            control.start();
            seen("both live");
        }
        wait::pause(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
    });
    let [issued, retried, failed] =
        [&counts.issued, &counts.retried, &counts.failed].map(|count| count.load(Ordering::Relaxed));
    let slowest = Duration::from_millis(counts.slowest.load(Ordering::Relaxed));
    println!(
        "{issued} issued, {retried} asked for a second time, {failed} failed, the slowest after {slowest:?}"
    );
    assert_eq!(failed, 0);
    let rejected = pair.both().map(|control| control.metrics().sum("postern_ca_rejected_total"));
    assert_eq!(rejected, [0.0, 0.0], "what was asked for again was in flight, or asked of a dead process");
    wait::until("the sidecar has renewed", wait::PATIENCE, || !serials.contains(&web.serial()));
    let forked = pair.both().map(|control| control.metrics().sum("postern_ca_lineage_forks_total"));
    assert_eq!(forked, [0.0, 0.0], "nobody honest is taken for a thief");
}

#[test]
fn without_etcd_issuing_goes_on_and_the_bundle_is_frozen() {
    let Some(pair) = Pair::started(|_| {}) else { return };
    let [first, second] = pair.both();
    let svid = join(&pair, first, "steady");
    let before = bundle(first).0;
    pair.agree(before);
    let begun = Instant::now();
    deny(first, &id("thief"));
    let sequence = bundle(first).0;
    assert!(sequence > before);
    pair.agree(sequence);
    let took = begun.elapsed();
    println!("denied at one, the same bundle {sequence} at both {took:?} after the verb began");
    assert!(took < Duration::from_secs(4), "two seconds on a machine of its own: {took:?}");
    pair.etcd.save("snapshot");
    deny(second, &id("another"));
    let newest = sequence + 1;
    pair.agree(newest);

    pair.etcd.kill();
    let svid = renew(first, &svid).expect("no etcd is needed for that");
    let svid = renew(second, &svid).expect("nor at the other replica");
    wait::until("it is told of", wait::PATIENCE, || shared_store(first).contains("does not answer"));
    assert_eq!(pair.bundles().map(|(sequence, _)| sequence), [newest; 2]);
    // Both are gone, and come back from their copies.
    let known = bundle(first);
    first.kill();
    second.kill();
    first.start();
    second.start();
    assert_eq!(pair.bundles(), [known.clone(), known.clone()]);
    let svid = renew(second, &renew(first, &svid).expect("from its copy")).expect("from its copy");

    pair.etcd.start_again();
    // An etcd that refuses us is no reason not to start either.
    second.kill();
    let wrong = fs::read_to_string(second.config()).expect("it was written");
    fs::write(second.config(), wrong.replace("etcd/ca.pem", "etcd/other-ca.pem")).expect("it is ours");
    second.start();
    assert!(shared_store(second).contains("not signed by tls.ca"), "{}", shared_store(second));
    assert_eq!(bundle(second), known);
    second.kill();
    fs::write(second.config(), wrong).expect("it is ours");
    second.start();
    wait::until("it is heard again", wait::PATIENCE, || {
        pair.both().iter().all(|control| shared_store(control) == "answers")
    });
    deny(second, &id("third"));
    let newest = newest + 1;
    pair.agree(newest);

    // An older snapshot comes back: nobody goes back with it.
    pair.etcd.put_back("snapshot");
    for control in pair.both() {
        wait::until("it says what to do", wait::PATIENCE, || shared_store(control).contains("older"));
        println!("{}", shared_store(control));
        assert_eq!(bundle(control).0, newest);
    }
    let _ = renew(second, &svid).expect("issuing goes on");
    let listed = done(first, &["status"]);
    assert!(listed.contains("older"), "{listed}");
}

#[test]
fn a_leader_stopped_past_its_lease_writes_nothing() {
    let Some(pair) = Pair::started(|_| {}) else { return };
    wait::until("somebody leads", wait::PATIENCE, || pair.both().iter().any(|control| leads(control)));
    let (leader, other) = if leads(pair.both()[0]) { (0, 1) } else { (1, 0) };
    let (leader, other) = (pair.both()[leader], pair.both()[other]);
    let before = bundle(other).0;
    leader.process().signal(Signal::SIGSTOP);
    wait::until("the lease has ended and the other leads", wait::PATIENCE * 2, || leads(other));
    deny(other, &id("thief"));
    wait::until("the other writes", wait::PATIENCE, || bundle(other).0 == before + 1);
    // What an operator asks of the stopped one waits in its database.
    let asked = std::thread::scope(|scope| {
        let asking = scope
            .spawn(|| ca(leader, &["deny", "id", id("late").as_str(), "--for", "1d", "--reason", "late"]));
        wait::pause(Duration::from_millis(500));
        leader.process().signal(Signal::SIGCONT);
        asking.join().expect("it ends")
    });
    assert!(
        asked.code == 1 && asked.stderr.contains("the lease leader of"),
        "{}{}",
        asked.text(),
        asked.stderr
    );
    assert!(asked.stderr.contains("had ended") && asked.stderr.contains("ask again"), "{}", asked.stderr);
    assert!(leader.metrics().value("postern_ca_fenced_writes_total") >= 1.0);
    assert!(leader.metrics().value("postern_ca_shared_swaps_total{result=\"fenced\"}") >= 1.0);
    assert_eq!(bundle(other).0, before + 1, "nothing was written");
    // Asked again, it takes the lease like anybody.
    deny(leader, &id("late"));
    println!("agreed {:?} after it woke", pair.agree(before + 2));
}
