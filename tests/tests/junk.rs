//! Junk by the thousand at the CA's door, of every kind, beside requests that are honest.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postern_svid::{SpiffeId, Svid, TrustDomain};
use postern_tests::identity::{Client, request};
use postern_tests::{ControlPlane, Mesh, Plan, TRUST_DOMAIN, foreign, is_long, postern, wait};
use tokio::task::JoinSet;

/// Honest workloads, and how often each asks: below the pace that each is allowed.
const HONEST: usize = 8;
const EVERY: Duration = Duration::from_millis(300);
/// Connections that junk comes over, each with many calls at a time.
const DOORS: u32 = 32;

fn id(name: &str) -> SpiffeId {
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
    SpiffeId::service_account(&trust_domain, "shop", name).expect("a constant")
}

fn token(mesh: &Mesh, name: &str) -> String {
    let file = mesh.directory().join(format!("{name}.join"));
    let mut command = std::process::Command::new(postern());
    command.args(["ca", "token", "create", "--id", id(name).as_str(), "--out"]).arg(&file);
    let made = foreign::run(command.arg("--config").arg(mesh.control.config()), wait::PATIENCE);
    assert_eq!(made.code, 0, "{}", made.stderr);
    std::fs::read_to_string(file).expect("it was written")
}

async fn join(mesh: &Mesh, name: &str) -> Svid {
    let token = token(mesh, name);
    let mut client = Client::connect(&mesh.control, None).await.expect("it listens");
    client.issue(&id(name), Some(&token), None).await.expect("a token is good for a certificate")
}

fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
}

/// A request that is right but for its signature.
fn forged() -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("keys can be made");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("requests can be made");
    let mut der = csr.der().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    der
}

/// What one junk call holds.
fn junk(kind: u64, forged: &[u8]) -> (Vec<u8>, Option<&'static str>) {
    match kind % 5 {
        0 => (vec![0x30; 300], None),
        1 => (forged.to_vec(), Some("pjt_not-a-token-that-anybody-has-made")),
        2 => (vec![0x41; 12 * 1_024], Some("")),
        // More than is read of any message.
        3 => (vec![0x42; 40 * 1_024], None),
        _ => (forged.to_vec(), None),
    }
}

/// Junk at so many calls a second, until told to stop; gives how many were answered, none of them with a certificate.
async fn flood(mesh: Arc<Mesh>, insider: Svid, rate: u64, stop: Arc<AtomicBool>) -> u64 {
    let (answered, forged) = (Arc::new(AtomicU64::new(0)), Arc::new(forged()));
    let mut doors = JoinSet::new();
    for door in 0..DOORS {
        let (mesh, insider, forged) = (mesh.clone(), insider.clone(), forged.clone());
        let (answered, stop) = (answered.clone(), stop.clone());
        doors.spawn(async move {
            // A quarter has a certificate, of a workload that was broken into; the rest comes from four addresses.
            let svid = (door % 4 == 0).then_some(&insider);
            let source = IpAddr::from(Ipv4Addr::new(127, 77, 0, u8::try_from(door % 4 + 1).expect("few")));
            let mut pace = tokio::time::interval(Duration::from_secs(u64::from(DOORS) * 8) / rate as u32);
            let mut kind = u64::from(door);
            while !stop.load(Ordering::Relaxed) {
                let Some(client) = Client::connect_from(Some(source), &mesh.control, svid).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                // A stranger's connection is closed after a while; then it comes anew.
                let mut lost = false;
                while !lost && !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let calls = (0..8).map(|_| {
                        kind += 1;
                        let (csr, token) = junk(kind, &forged);
                        let mut message = request(csr, insider.id(), token, svid);
                        if kind % 7 == 0 {
                            message.predecessor_serial = vec![7; 16];
                        }
                        let mut client = client.clone();
                        tokio::spawn(async move { client.ask(message).await })
                    });
                    for call in calls.collect::<Vec<_>>() {
                        match call.await.expect("no panic") {
                            Ok(_) => panic!("a certificate for junk"),
                            Err(status) => {
                                lost |= status.code() == tonic::Code::Unavailable;
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            }
        });
    }
    while let Some(done) = doors.join_next().await {
        done.expect("no panic");
    }
    answered.load(Ordering::Relaxed)
}

/// Connections that say nothing, half of a handshake, or noise.
fn dawdle(control: &ControlPlane, stop: &AtomicBool) {
    let mut open = Vec::new();
    let mut turn = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect((control.address(), 24_150)) {
            let _ = match turn % 3 {
                0 => Ok(()),
                1 => stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]),
                _ => stream.write_all(&[0x17; 400]),
            };
            open.push(stream);
        }
        if open.len() > 200 {
            let mut oldest = open.remove(0);
            let _ = oldest.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = oldest.read(&mut [0; 64]);
        }
        turn += 1;
        wait::pause(Duration::from_millis(5));
    }
}

/// How long each honest call took.
async fn honest(mesh: Arc<Mesh>, svids: Vec<Svid>, time: Duration) -> Vec<Duration> {
    let mut workloads = JoinSet::new();
    for svid in svids {
        let mesh = mesh.clone();
        workloads.spawn(async move {
            let mut client = Client::connect(&mesh.control, Some(&svid)).await.expect("it is let in");
            let (began, mut pace, mut took) = (Instant::now(), tokio::time::interval(EVERY), Vec::new());
            while began.elapsed() < time {
                pace.tick().await;
                let asked = Instant::now();
                client.issue(svid.id(), None, Some(&svid)).await.expect("who is honest is served");
                took.push(asked.elapsed());
            }
            took
        });
    }
    workloads.join_all().await.into_iter().flatten().collect()
}

#[test]
fn junk_does_not_keep_the_honest_waiting_nor_fill_memory() {
    // What two processors can send that the test and all else share, or what the aim says.
    let (rate, time) = if is_long() { (5_000, 30) } else { (500, 6) };
    let (time, patience) =
        (Duration::from_secs(time), Duration::from_millis(if cfg!(debug_assertions) { 2_000 } else { 250 }));
    let mesh = Plan::new().prepare();
    mesh.control.start();
    let mesh = Arc::new(mesh);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("threads can be made");
    let stop = Arc::new(AtomicBool::new(false));
    let process = mesh.control.process().id();
    let (mut took, sent, before, after) = std::thread::scope(|scope| {
        scope.spawn(|| dawdle(&mesh.control, &stop));
        let seen = runtime.block_on(async {
            let mut svids = Vec::new();
            for name in 0..HONEST {
                svids.push(join(&mesh, &format!("honest-{name}")).await);
            }
            let insider = join(&mesh, "insider").await;
            let flooding = tokio::spawn(flood(mesh.clone(), insider, rate, stop.clone()));
            // Threads and buffers come with the first of it.
            tokio::time::sleep(time / 3).await;
            let before = resident(process);
            let took = honest(mesh.clone(), svids, time).await;
            let after = resident(process);
            stop.store(true, Ordering::Relaxed);
            (took, flooding.await.expect("no panic"), before, after)
        });
        stop.store(true, Ordering::Relaxed);
        seen
    });
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    let per_second = sent as f64 / (time + time / 3).as_secs_f64();
    println!(
        "{per_second:.0} junk calls/s, {} honest ones: p50 {:?}, p99 {p99:?}; resident {} to {} KiB",
        took.len(),
        took[took.len() / 2],
        before / 1_024,
        after / 1_024
    );
    assert!(per_second > rate as f64 / 4.0, "that was no flood: {per_second:.0}/s");
    assert!(p99 < patience, "p99 {p99:?}");
    assert!(after < before + 12 * 1_024 * 1_024, "it grew from {before} to {after} bytes");
    let (_, metrics) = mesh.control.page("/metrics").expect("it answers");
    for limit in ["certificate", "source"] {
        let none = format!("postern_ca_shed_total{{limit=\"{limit}\"}} 0\n");
        assert!(!metrics.contains(&none), "junk meets the limit {limit}");
    }
}
