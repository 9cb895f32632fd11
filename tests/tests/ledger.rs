//! The issuance ledger with real processes: kills, full disks, the verbs, and readers that were not written here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use postern_svid::{SpiffeId, Svid, TrustDomain};
use postern_tests::identity::Client;
use postern_tests::{ControlPlane, Mesh, Plan, TRUST_DOMAIN, foreign, namespace, postern, wait};
use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ledger.md");
const CLIENTS: usize = 4;

fn ca(control: &ControlPlane, verb: &[&str]) -> foreign::Run {
    let mut command = Command::new(postern());
    command.arg("ca").args(verb).arg("--config").arg(control.config());
    foreign::run(&mut command, wait::PATIENCE)
}

fn verify(control: &ControlPlane) -> Value {
    let run = ca(control, &["ledger", "verify", "--json"]);
    assert_eq!(run.code, 0, "{}{}", run.text(), run.stderr);
    serde_json::from_slice(&run.stdout).expect("it is JSON")
}

fn search(control: &ControlPlane, conditions: &[&str]) -> Vec<Value> {
    let run = ca(control, &[&["ledger", "search", "--json"], conditions].concat());
    assert_eq!(run.code, i32::from(run.stdout.is_empty()), "{}", run.stderr);
    assert!(run.stderr.is_empty(), "{}", run.stderr);
    run.text().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn id(name: &str) -> SpiffeId {
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
    SpiffeId::service_account(&trust_domain, "shop", name).expect("a constant")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads can be made")
}

fn token(mesh: &Mesh, name: &str) -> String {
    let file = mesh.directory().join(format!("{name}.join"));
    let run = ca(
        &mesh.control,
        &["token", "create", "--id", id(name).as_str(), "--out", &file.display().to_string()],
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    fs::read_to_string(file).expect("it was written")
}

/// One certificate by a token.
fn join(mesh: &Mesh, name: &str) -> Svid {
    let token = token(mesh, name);
    let joined = runtime().block_on(async {
        Client::connect(&mesh.control, None).await?.issue(&id(name), Some(&token), None).await
    });
    joined.expect("a token is good for a certificate")
}

/// Whoever got a certificate finds it in the ledger, however the control plane was killed.
#[test]
fn what_a_client_received_is_in_the_ledger_after_a_kill() {
    let mesh = Plan::new().prepare();
    mesh.control.start();
    let mut svids: Vec<Svid> = (0..CLIENTS).map(|n| join(&mesh, &format!("client-{n}"))).collect();
    let received = Arc::new(Mutex::new(Vec::new()));
    received.lock().extend(svids.iter().map(|svid| hex(svid.serial())));
    let runtime = runtime();
    for round in 0..6_u64 {
        let before = received.lock().len();
        // Each renews without a pause, until the control plane is gone.
        let clients: Vec<_> =
            svids.drain(..).enumerate().map(|(n, svid)| (id(&format!("client-{n}")), svid)).collect();
        let (control, received) = (&mesh.control, &received);
        let busy = async {
            let renewals = clients.into_iter().map(|(id, mut svid)| async move {
                while let Some(mut client) = Client::connect(control, Some(&svid)).await {
                    let Some(next) = client.issue(&id, None, Some(&svid)).await else { break };
                    received.lock().push(hex(next.serial()));
                    svid = next;
                }
                svid
            });
            join_all(renewals.collect()).await
        };
        let kill = async {
            while received.lock().len() < before + 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(700 * round)).await;
            control.kill();
        };
        svids = runtime.block_on(async { tokio::join!(busy, kill).0 });
        assert!(received.lock().len() > before);
        mesh.control.start();
        let recorded: BTreeSet<String> = search(&mesh.control, &["--kind", "certificate"])
            .iter()
            .map(|record| record["serial"].as_str().expect("a certificate has a serial number").to_owned())
            .collect();
        let lost: Vec<_> =
            received.lock().iter().filter(|serial| !recorded.contains(*serial)).cloned().collect();
        assert!(lost.is_empty(), "round {round}: not in the ledger: {lost:?}");
        verify(&mesh.control);
    }
    // Each lineage goes on from what its holder has, whatever became of the last answer.
    let mut newest = svids.remove(0);
    runtime.block_on(async {
        let mut client = Client::connect(&mesh.control, Some(&newest)).await.expect("it has started");
        newest = client.issue(&id("client-0"), None, Some(&newest)).await.expect("it renews");
    });
    let found = search(&mesh.control, &["--serial", &hex(newest.serial())]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["id"], id("client-0").as_str());
}

async fn join_all<T>(tasks: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Box::pin(task), None)).collect();
    std::future::poll_fn(|context| {
        for (task, done) in &mut tasks {
            if done.is_none()
                && let std::task::Poll::Ready(value) = task.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if tasks.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    tasks.into_iter().filter_map(|(_, done)| done).collect()
}

/// Beside a control plane that issues meanwhile, nothing looks different that is not; what was changed by hand is named.
#[test]
fn the_database_is_held_against_the_ledger_while_it_issues() {
    let mesh = Plan::new().prepare();
    mesh.control.start();
    let svids: Vec<Svid> = (0..2).map(|n| join(&mesh, &format!("client-{n}"))).collect();
    let (done, issued) = (AtomicBool::new(false), AtomicUsize::new(0));
    let control = &mesh.control;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let renewals = svids.into_iter().enumerate().map(|(n, mut svid)| {
                let (id, done, issued) = (id(&format!("client-{n}")), &done, &issued);
                async move {
                    while !done.load(Ordering::Relaxed) {
                        let mut client = Client::connect(control, Some(&svid)).await.expect("it runs");
                        svid = client.issue(&id, None, Some(&svid)).await.expect("it renews");
                        issued.fetch_add(1, Ordering::Relaxed);
                        // Below what the control plane takes of one address.
                        tokio::time::sleep(Duration::from_millis(60)).await;
                    }
                }
            });
            runtime().block_on(join_all(renewals.collect()));
        });
        for _ in 0..8 {
            let before = issued.load(Ordering::Relaxed);
            let found = ca(control, &["ledger", "verify", "--json"]);
            done.store(found.code != 0, Ordering::Relaxed);
            assert_eq!(found.code, 0, "{}{}", found.text(), found.stderr);
            wait::until("it issues beside that", wait::PATIENCE, || issued.load(Ordering::Relaxed) > before);
        }
        done.store(true, Ordering::Relaxed);
    });

    let database = rusqlite::Connection::open(mesh.control.state().join("ca.db")).expect("it is ours");
    database.busy_timeout(Duration::from_secs(5)).expect("it waits");
    let spent: Vec<u8> = database
        .query_row("SELECT hash FROM token ORDER BY hash LIMIT 1", [], |row| row.get(0))
        .expect("tokens were spent");
    database
        .execute("UPDATE token SET bound_key = NULL, lineage = NULL WHERE hash = ?1", [&spent])
        .expect("it takes it");
    let json = ca(&mesh.control, &["ledger", "verify", "--json"]);
    assert_eq!(json.code, 1);
    let report: Value = serde_json::from_slice(&json.stdout).expect("it is JSON");
    let differences = report["differences"].as_array().expect("an array");
    assert_eq!(differences.len(), 2, "{differences:?}");
    for one in differences {
        assert_eq!((&one["table"], &one["key"]), (&"token".into(), &hex(&spent)[..16].into()));
        let record = one["record"].as_u64().expect("the record that it was spent by");
        assert_eq!(
            search(&mesh.control, &["--kind", "certificate"])[..]
                .iter()
                .filter(|found| found["sequence"] == record)
                .count(),
            1
        );
    }
    let told = ca(&mesh.control, &["ledger", "verify"]);
    assert_eq!(told.code, 1);
    let line = format!("token {}: bound_key: the ledger says ", &hex(&spent)[..16]);
    assert!(told.text().contains(&line), "{}", told.text());
    assert!(told.stderr.contains("When the database differs"), "{}", told.stderr);
}

/// On a disk of its own: while it is full nothing leaves, and with room it goes on.
#[test]
fn a_full_disk_stops_issuing_until_there_is_room() {
    const NAME: &str = "a_full_disk_stops_issuing_until_there_is_room";
    if !namespace::inside(NAME, &[]) {
        return;
    }
    // A life of two minutes: it tests itself every six seconds.
    let mut plan = Plan::new();
    plan.ttl("2m");
    let mesh = plan.prepare();
    let ledger = mesh.control.state().join("ledger");
    fs::create_dir(&ledger).expect("it is ours");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs"]).arg(&ledger);
    let mounted = foreign::run(&mut mount, wait::PATIENCE);
    assert_eq!(mounted.code, 0, "{}", mounted.stderr);
    mesh.control.start();
    let mut orders = join(&mesh, "orders");

    let filler = ledger.join("filler");
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/zero", "bs=4096", &format!("of={}", filler.display())]);
    let filled = foreign::run(&mut fill, wait::PATIENCE);
    assert!(filled.stderr.contains("No space left"), "{}", filled.stderr);
    let store = token(&mesh, "store");
    let runtime = runtime();
    let ask = || {
        runtime.block_on(async {
            let mut client = Client::connect(&mesh.control, None).await.expect("it listens");
            client.issue(&id("store"), Some(&store), None).await
        })
    };
    let ready = || mesh.control.page("/ready").expect("it answers");
    let renew = |orders: &Svid| {
        runtime.block_on(async {
            let mut client = Client::connect(&mesh.control, Some(orders)).await.expect("it listens");
            client.issue(&id("orders"), None, Some(orders)).await
        })
    };
    // Some fit into what was reserved.
    for _ in 0..6 {
        orders = renew(&orders).expect("there is room for a thousand");
    }
    wait::until("it shows before the room is used up", wait::PATIENCE * 2, || {
        let (status, reasons) = ready();
        status == 503 && reasons.contains("\"ledger\"")
    });
    assert!(ask().is_none(), "nothing leaves");
    assert!(renew(&orders).is_none(), "no renewal either");

    fs::remove_file(&filler).expect("it is ours");
    wait::until("it recovers by itself", wait::PATIENCE * 2, || ready().0 == 200);
    let store = ask().expect("there is room");
    mesh.control.process().signal(nix::sys::signal::Signal::SIGTERM);
    mesh.control.process().wait(wait::PATIENCE);
    assert_eq!(verify(&mesh.control)["waiting"], 0);
    assert_eq!(search(&mesh.control, &["--serial", &hex(store.serial())]).len(), 1);
}

#[test]
fn the_verbs_tell_what_there_is() {
    let mesh = Plan::new().prepare();
    let none = ca(&mesh.control, &["ledger", "tail"]);
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("no ledger is here"), "{}", none.stderr);
    mesh.control.start();
    let svid = join(&mesh, "orders");
    let serial = hex(svid.serial());

    let tail = ca(&mesh.control, &["ledger", "tail", "-n", "1"]);
    let line = tail.text();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.contains("certificate") && line.contains(&serial) && line.contains(id("orders").as_str()),
        "{line}"
    );
    let of_orders = search(&mesh.control, &["--id", id("orders").as_str()]);
    let kinds: Vec<_> = of_orders.iter().map(|record| record["kind"].as_str().expect("a word")).collect();
    assert_eq!(kinds, ["token", "certificate"]);
    let time = of_orders[1]["time"].as_str().expect("a time");
    assert_eq!(search(&mesh.control, &["--kind", "certificate", "--since", time]).len(), 1);
    assert_eq!(search(&mesh.control, &["--serial", &serial, "--until", time]).len(), 0);
    for bad in [["--since", "yesterday"], ["--kind", "leaf"], ["--serial", "xyz"]] {
        assert_eq!(ca(&mesh.control, &["ledger", "search", bad[0], bad[1]]).code, 2, "{bad:?}");
    }

    // Signed within ten seconds.
    let report = wait::for_some("a head covers it", wait::PATIENCE, || {
        let report = verify(&mesh.control);
        (report["latest"]["size"] == report["size"]).then_some(report)
    });
    let size = report["size"].as_u64().expect("a number");
    let metrics = mesh.control.page("/metrics").expect("it answers").1;
    assert!(metrics.contains(&format!("postern_ca_ledger_entries {size}")), "{metrics}");
    assert!(!metrics.contains("postern_ca_ledger_sync_seconds_count 0"), "{metrics}");
    assert!(metrics.contains("postern_ca_ledger_head_age_seconds 0"), "{metrics}");

    mesh.control.kill();
    let segment = segment(&mesh.control);
    let mut bytes = fs::read(&segment).expect("it is ours");
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).expect("it is ours");
    let told = format!("record {}: {}", size - 1, segment.display());
    let verified = ca(&mesh.control, &["ledger", "verify"]);
    assert_eq!(verified.code, 1);
    assert!(verified.stderr.contains(&told), "{}", verified.stderr);
    mesh.control.start_unready();
    let ended = mesh.control.process().wait(wait::PATIENCE);
    assert_eq!(ended.code(), Some(1));
    assert!(mesh.control.process().log().contains(&told), "{}", mesh.control.process().log());
}

fn segment(control: &ControlPlane) -> PathBuf {
    control.state().join("ledger/00000000000000000000.segment")
}

/// The page's two programs, run as they stand there.
#[test]
fn python_reads_the_files_and_checks_a_proof() {
    let mesh = Plan::new().prepare();
    mesh.control.start();
    let svid = join(&mesh, "orders");
    join(&mesh, "store");
    let page = fs::read_to_string(PAGE).expect("the page is there");
    let programs: Vec<&str> = page
        .split("```python\n")
        .skip(1)
        .map(|rest| rest.split_once("\n```").expect("a block ends").0)
        .collect();
    let [check, read] = programs[..] else { panic!("{} programs", programs.len()) };
    let python = |program: &str, argument: &Path, input: &[u8]| {
        let mut command = Command::new("python3");
        command.arg("-c").arg(program).arg(argument);
        foreign::run_with_input(&mut command, input, wait::PATIENCE)
    };

    let all = python(read, &mesh.control.state().join("ledger"), b"");
    assert_eq!(all.code, 0, "{}", all.stderr);
    let ours = search(&mesh.control, &[]);
    assert_eq!(all.text().lines().count(), ours.len());
    for (line, record) in all.text().lines().zip(&ours) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], record["sequence"].to_string());
        assert_eq!(words[2], record["kind"].as_str().expect("a word"));
    }
    assert!(all.text().contains(&hex(svid.serial())));

    let proof = wait::for_some("a head covers it", wait::PATIENCE, || {
        let run = ca(&mesh.control, &["ledger", "proof", &hex(svid.serial())]);
        (run.code == 0).then_some(run.stdout)
    });
    let checked = python(check, Path::new("-"), &proof);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    let mut forged: Value = serde_json::from_slice(&proof).expect("it is JSON");
    let sequence = forged["sequence"].as_u64().expect("a number");
    assert_eq!(checked.text().trim(), format!("record {sequence} is in the ledger"));
    forged["body"] = Value::String(forged["body"].as_str().expect("a text").replace("01", "02"));
    assert_ne!(python(check, Path::new("-"), forged.to_string().as_bytes()).code, 0);
    let size = forged["size"].as_u64().expect("a number");
    let older = ca(&mesh.control, &["ledger", "proof", "--consistency", &(size - 1).to_string()]);
    assert_eq!(older.code, 0, "{}", older.stderr);
    for (far, asked) in [(size + 100, None), (size + 99, Some("--consistency"))] {
        let number = (size + 100).to_string();
        let arguments: Vec<&str> =
            ["ledger", "proof"].into_iter().chain(asked).chain([number.as_str()]).collect();
        let none = ca(&mesh.control, &arguments);
        assert_eq!(none.code, 1);
        assert!(
            none.stderr.contains(&format!("there is no record {far}: the ledger has")),
            "{}",
            none.stderr
        );
    }
}
