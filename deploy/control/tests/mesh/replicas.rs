//! Two control planes in one process that share one store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_ca::keys::Source;
use postern_ca::proto::Report;
use postern_ca::store::shared::{Memory, Shared};
use postern_ca::store::{Reason, Revocation, Sqlite, Store as _};
use postern_control::{Config, Running, StartError};
use postern_svid::{Clock as _, Revoked, SystemClock};
use serde_json::Value;
use tonic::Code;

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn replica(dir: &Path, name: &str) -> Config {
    let seal = dir.join("seal");
    if !seal.exists() {
        postern_ca::keys::write_private(&seal, "0123456789abcdef".repeat(4).as_bytes()).unwrap();
    }
    let mut config = config(&dir.join(name), HOUR);
    config.replica = Some(name.to_owned());
    config.keys.seal = Some(Source::KeyFile(seal));
    config
}

async fn start(dir: &Path, name: &str, shared: &Arc<Memory>) -> Running {
    let shared: Arc<dyn Shared> = shared.clone();
    postern_control::start_sharing(replica(dir, name), Arc::new(SystemClock), Some(shared)).await.unwrap()
}

/// What an operator's command does, which asks the control plane and waits for its answer.
async fn command<T: Send + 'static>(
    state: std::path::PathBuf,
    work: impl FnOnce(Sqlite) -> T + Send + 'static,
) -> T {
    let run = move || work(Sqlite::open(&state, &trust_domain()).unwrap());
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn token_for(state: std::path::PathBuf, name: &str) -> String {
    let id = id(name);
    tokio::task::spawn_blocking(move || token(&state, &id)).await.unwrap()
}

async fn deny(state: std::path::PathBuf, name: &str) -> u64 {
    let (entry, at) = (Revoked::Id(id(name)), SystemClock.wall());
    let reason = Reason::parse("a test").unwrap();
    let entry = Revocation { entry, reason, at, ends: Some(at + HOUR) };
    command(state, |store| store.revoke(entry).unwrap()).await
}

async fn page(running: &Running, path: &str) -> Value {
    let address = running.mesh_admin_address();
    serde_json::from_str(&get(address, path, &address.to_string()).await.1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_control_planes_are_one_trust() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Memory::new(Arc::new(SystemClock)));
    let a = start(dir.path(), "a", &shared).await;
    let b = start(dir.path(), "b", &shared).await;
    assert_eq!(std::fs::read(a.bundle_path()).unwrap(), std::fs::read(b.bundle_path()).unwrap());
    let (at_a, at_b) = (dir.path().join("a"), dir.path().join("b"));

    // A token that was made at one is spent at the other, and the certificate renews at the first.
    let token = token_for(at_a.clone(), "orders").await;
    let (key, csr) = key_and_csr();
    let mut client = Client::connect(&b, None).await.unwrap();
    let first = svid(&client.issue(with_token(&id("orders"), csr, &token)).await.unwrap(), &key);
    let (key, csr) = key_and_csr();
    let mut client = Client::connect(&a, Some(&first)).await.unwrap();
    // It may hear of the other's issuing CA a moment later.
    let second = svid(&client.issue(renewal(&first, csr)).await.unwrap(), &key);
    assert_ne!(first.issuer_key_id(), second.issuer_key_id());
    // A stream is opened with either.
    for (running, svid) in [(&b, &second), (&a, &first)] {
        let mut client = Client::connect(running, Some(svid)).await.unwrap();
        let reports = tokio_stream::once(Report { bundle_sequence: 1, held: Vec::new() });
        let mut directives = client.watch(reports).await.unwrap();
        directives.message().await.unwrap().unwrap();
    }

    // What is denied at one is denied at both, soon; whichever leads.
    for (state, name) in [(&at_a, "thief"), (&at_b, "rogue"), (&at_a, "spy")] {
        let sequence = deny(state.clone(), name).await;
        let began = Instant::now();
        eventually("both have it", || async {
            let (a, b) = (page(&a, "/v1/bundle").await, page(&b, "/v1/bundle").await);
            a["sequence"] == b["sequence"]
                && a["sequence"].as_u64() >= Some(sequence)
                && a["sha256"] == b["sha256"]
                && a["revocations"] == b["revocations"]
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    // Each tells of the other.
    eventually("they have heard of each other", || async {
        let (a, b) = (page(&a, "/v1/replicas").await, page(&b, "/v1/replicas").await);
        let is_other = |page: &Value, name: &str| {
            page["others"][0]["replica"] == name && page["others"][0]["fresh"] == true
        };
        let leaders = [&a, &b].iter().filter(|page| page["leads"] == true).count();
        is_other(&a, "b") && is_other(&b, "a") && leaders == 1 && a["leader"] == b["leader"]
    })
    .await;

    // Without the store certificates go on, and tokens do not.
    let token = token_for(at_a.clone(), "late").await;
    shared.set_away(true);
    let mut client = Client::connect(&b, Some(&second)).await.unwrap();
    let (key, csr) = key_and_csr();
    let third = svid(&client.issue(renewal(&second, csr)).await.unwrap(), &key);
    let (_, csr) = key_and_csr();
    let mut client = Client::connect(&b, None).await.unwrap();
    let refused = client.issue(with_token(&id("late"), csr.clone(), &token)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    eventually("it says so", || async {
        page(&b, "/v1/replicas").await["sharedStore"]
            .as_str()
            .is_some_and(|text| text.contains("does not answer"))
    })
    .await;
    eventually("/ready says so too", || async {
        let address = b.health_address();
        let (status, body) = get(address, "/ready", &address.to_string()).await;
        status == 200 && body.contains("\"degraded\":[\"shared_store\"]")
    })
    .await;
    shared.set_away(false);
    // The client may come before the control plane has noticed: it is asked at once.
    client.issue(with_token(&id("late"), csr, &token)).await.unwrap();

    // One goes, and the other goes on.
    a.shutdown().await;
    let mut client = Client::connect(&b, Some(&third)).await.unwrap();
    let (_, csr) = key_and_csr();
    client.issue(renewal(&third, csr)).await.unwrap();
    deny(at_b, "last").await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_replica_needs_a_name_and_what_it_shares() {
    let dir = tempfile::tempdir().unwrap();
    let shared: Arc<dyn Shared> = Arc::new(Memory::new(Arc::new(SystemClock)));
    let mut nameless = replica(dir.path(), "a");
    nameless.replica = None;
    let clock = Arc::new(SystemClock);
    let error = postern_control::start_sharing(nameless, clock, Some(shared)).await.err().unwrap();
    assert!(matches!(error, StartError::Config(_)) && error.to_string().contains("replica:"), "{error}");
}
