//! Health and the mesh admin endpoint.

use std::time::Duration;

use postern_ca::store::{Reason, Revocation, Sqlite, Store};
use postern_svid::{Clock as _, Revoked, SystemClock};

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn health() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let address = running.health_address();
    assert_eq!(get(address, "/live", "x").await.0, 200);
    let (status, body) = get(address, "/ready", "x").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["ready"], &body["test"]), (200, &true.into(), &true.into()));
    join(&running, &state, "orders").await;
    let (status, metrics) = get(address, "/metrics", "x").await;
    assert_eq!(status, 200);
    for line in [
        "postern_ca_issued_total{proof=\"join_token\"} 1",
        "postern_ca_issued_total{proof=\"own\"} 1",
        "postern_ca_bundle_sequence 1",
        "postern_ca_authority_not_after_seconds{kind=\"root\",state=\"active\",",
        "postern_ca_issue_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("join-"), "no secrets");
    assert_eq!(get(address, "/v1/certs", "localhost").await.0, 404);
    let post = "POST /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(address, post).await.0, 405);
    running.shutdown().await;
}

/// Whatever it is that keeps a denial from going out: somebody is told.
#[tokio::test]
async fn trust_that_cannot_go_out_shows() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let address = running.health_address();
    let shown = async || {
        let (status, body) = get(address, "/ready", "x").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let (_, metrics) = get(address, "/metrics", "x").await;
        let stuck = metrics.lines().find_map(|line| line.strip_prefix("postern_ca_trust_stuck "));
        (status, body["degraded"].clone(), stuck.map(str::to_owned))
    };
    // The verb refuses this one.
    let control = Revoked::Id(trust_domain().control_plane());
    let store = Sqlite::open(&state, &trust_domain()).unwrap();
    let (reason, at) = (Reason::parse("a slip").unwrap(), SystemClock.wall());
    let denied = Revocation { entry: control.clone(), reason: reason.clone(), at, ends: None };
    store.revoke(denied).unwrap();
    let stuck = (200, serde_json::json!(["trust_not_published"]), Some("1".to_owned()));
    eventually("it shows", || async { shown().await == stuck }).await;
    store.allow_again(control, reason, at).unwrap();
    let mended = (200, serde_json::json!([]), Some("0".to_owned()));
    eventually("it is mended", || async { shown().await == mended }).await;
    running.shutdown().await;
}

#[tokio::test]
async fn certificates_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    for name in ["a", "b", "c"] {
        join(&running, &state, name).await;
    }
    let address = running.mesh_admin_address();
    let mut seen = Vec::new();
    let mut path = "/v1/certs?limit=3".to_owned();
    loop {
        let (status, body) = get(address, &path, "localhost").await;
        assert_eq!(status, 200, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let rows = body["certificates"].as_array().unwrap();
        seen.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        match body["next"].as_str() {
            Some(next) => path = format!("/v1/certs?limit=3&after={next}"),
            None => break,
        }
    }
    seen.sort();
    let all = [
        id("a").to_string(),
        id("b").to_string(),
        id("c").to_string(),
        trust_domain().control_plane().to_string(),
    ];
    assert_eq!(seen, all);
    for bad in ["limit=0", "limit=1001", "limit=x", "after=zz", "after=abc", "what=1"] {
        assert_eq!(get(address, &format!("/v1/certs?{bad}"), "localhost").await.0, 400, "{bad}");
    }
    running.shutdown().await;
}

#[tokio::test]
async fn only_requests_that_mean_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&state(&dir), HOUR).await;
    let address = running.mesh_admin_address();
    let port = address.port();
    for host in
        ["localhost", "127.0.0.1", "LOCALHOST", &format!("127.0.0.1:{port}"), &format!("[::1]:{port}")]
    {
        assert_eq!(get(address, "/v1/bundle", host).await.0, 200, "{host}");
    }
    for host in [
        "rebind.example",
        "localhost.example",
        "127.0.0.1.example",
        "localhost:1",
        "localhost@example",
        "example@localhost",
        "192.0.2.1",
        "",
    ] {
        assert_eq!(get(address, "/v1/bundle", host).await.0, 421, "{host}");
    }
    let twice = "GET /v1/bundle HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(matches!(raw(address, twice).await.0, 400 | 421));
    let none = "GET /v1/bundle HTTP/1.0\r\n\r\n";
    assert_eq!(raw(address, none).await.0, 421);
    running.shutdown().await;
}
