//! Starting and stopping.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_ca::store::{Reason, Sqlite, State, Store as _};
use postern_control::{LockError, StartError};
use postern_svid::{Clock as _, SystemClock, TestClock, TrustDomain};

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn files_have_their_modes() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("ledger")), 0o700);
    let entries = fs::read_dir(&state).unwrap().chain(fs::read_dir(state.join("ledger")).unwrap());
    for entry in entries.map(|e| e.unwrap()).filter(|e| e.file_name() != "ledger") {
        let wanted = if entry.file_name() == "bundle.pem" { 0o644 } else { 0o600 };
        assert_eq!(mode(&entry.path()), wanted, "{:?}", entry.file_name());
    }
    running.shutdown().await;
}

#[tokio::test]
async fn refusals_at_the_start_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let second = postern_control::start(config(&state, HOUR)).await.err().unwrap();
    assert!(matches!(second, StartError::Lock(LockError::InUse(_))), "{second}");

    let mut taken = config(&dir.path().join("other"), HOUR);
    taken.listen = running.identity_address();
    let error = postern_control::start(taken).await.err().unwrap().to_string();
    assert!(error.starts_with("listen: cannot listen on 127.0.0.1:"), "{error}");
    running.shutdown().await;

    let mut other = config(&state, HOUR);
    other.trust_domain = TrustDomain::parse("other").unwrap();
    let error = postern_control::start(other).await.err().unwrap().to_string();
    assert!(error.contains("belongs to the trust domain demo.postern"), "{error}");

    let mut open = config(&state, HOUR);
    open.mesh_admin = "0.0.0.0:0".parse().unwrap();
    let error = postern_control::start(open).await.err().unwrap();
    assert!(matches!(error, StartError::Config(_)), "{error}");

    for name in fs::read_dir(&state).unwrap().map(|e| e.unwrap().path()) {
        if name.extension().is_some_and(|e| e == "key") {
            fs::set_permissions(&name, fs::Permissions::from_mode(0o640)).unwrap();
            let error = postern_control::start(config(&state, HOUR)).await.err().unwrap().to_string();
            assert!(error.contains("chmod 600"), "{error}");
            fs::set_permissions(&name, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    start(&state, HOUR).await.shutdown().await;
}

#[tokio::test]
async fn stopping_is_quick_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let svid = join(&running, &state, "orders").await;
    let mut client = Client::connect(&running, Some(&svid)).await.unwrap();
    let mut directives = client.watch(tokio_stream::pending()).await.unwrap();
    // Our bundle, and those of other trust domains.
    directives.message().await.unwrap().unwrap();
    directives.message().await.unwrap().unwrap();
    let began = Instant::now();
    let (status, ()) = tokio::join!(directives.message(), running.shutdown());
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(status.unwrap_err().code(), tonic::Code::Unavailable);
}

async fn ready(running: &postern_control::Running) -> (u16, Vec<String>) {
    let (status, body) = get(running.health_address(), "/ready", "x").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let reasons = body["reasons"].as_array().unwrap();
    (status, reasons.iter().map(|reason| reason.as_str().unwrap().to_owned()).collect())
}

#[tokio::test]
async fn not_ready_while_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    // A leaf's life of 8 s: a round every 400 ms, and the own certificate is due after about four.
    let running = start(&state, Duration::from_secs(8)).await;
    assert_eq!(ready(&running).await, (200, Vec::new()));
    let other = rusqlite::Connection::open(state.join("ca.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    eventually("the store's failure shows", || async {
        ready(&running).await.1.contains(&"store".to_owned())
    })
    .await;
    let overdue = "own_certificate_overdue".to_owned();
    eventually("the failed renewal shows", || async { ready(&running).await.1.contains(&overdue) }).await;
    assert_eq!(ready(&running).await.0, 503);
    other.execute_batch("ROLLBACK").unwrap();
    eventually("it comes back by itself", || async { ready(&running).await == (200, Vec::new()) }).await;
    running.shutdown().await;
}

/// Suspended for longer than issuing CAs live, with a successor ready: on waking it waits for an operator's word on the clock, and makes
/// new ones then by itself.
#[tokio::test]
async fn a_sleep_past_both_issuing_cas_needs_no_restart() {
    const DAY: Duration = Duration::from_secs(86_400);
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    // It wakes today, so that a client with the machine's clock can tell.
    let clock = TestClock::at(SystemClock.wall() - 34 * DAY);
    let config = config(&state, Duration::from_secs(8));
    let running = postern_control::start_with(config, Arc::new(clock.clone())).await.unwrap();
    clock.jump_wall(4 * 86_400_000);
    let store = Sqlite::open(&state, &trust_domain()).unwrap();
    eventually("a successor is ready", || async {
        store.authorities().unwrap().iter().any(|row| row.state == State::Prepared)
    })
    .await;
    clock.jump_wall(30 * 86_400_000);
    eventually("the leap shows", || async { ready(&running).await.1.contains(&"clock".to_owned()) }).await;
    store.confirm_clock(clock.wall(), Reason::parse("it was asleep").unwrap()).unwrap();
    eventually("its new certificate is served", || async { Client::connect(&running, None).await.is_ok() })
        .await;
    eventually("it is ready", || async { ready(&running).await == (200, Vec::new()) }).await;
    join(&running, &state, "orders").await;
    let (_, metrics) = get(running.health_address(), "/metrics", "x").await;
    assert!(metrics.contains("postern_ca_issuing_rotations_total 1"), "{metrics}");
    running.shutdown().await;
}

#[tokio::test]
async fn every_labelled_series_exists_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&state(&dir), HOUR).await;
    let (_, metrics) = get(running.health_address(), "/metrics", "x").await;
    let rejected = postern_ca::issue::IssueError::REASONS;
    let rejected = rejected.map(|reason| format!("postern_ca_rejected_total{{reason=\"{reason}\"}} 0"));
    let issued = ["join_token\"} 0", "svid\"} 0", "own\"} 1"];
    let issued = issued.map(|proof| format!("postern_ca_issued_total{{proof=\"{proof}"));
    for series in rejected.iter().chain(&issued) {
        assert!(metrics.lines().any(|line| line == series), "{series}: {metrics}");
    }
    running.shutdown().await;
}
