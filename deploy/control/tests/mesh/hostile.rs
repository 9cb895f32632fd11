//! Peers that mean no good, or cannot do better.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_svid::{Clock, SystemClock, TestClock, tls};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3_600);

async fn is_closed_within(mut stream: TcpStream, limit: Duration) -> bool {
    let mut buf = [0; 1024];
    let all = async { while !matches!(stream.read(&mut buf).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(limit, all).await.is_ok()
}

async fn refused(address: SocketAddr, reason: &str) -> bool {
    let (_, metrics) = get(address, "/metrics", "x").await;
    let series = format!("postern_control_connections_refused_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap();
    count.parse::<u64>().unwrap() > 0
}

#[tokio::test]
async fn handshakes_that_never_end_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(running.identity_address()).await.unwrap());
    }
    let mut slow = TcpStream::connect(running.identity_address()).await.unwrap();
    slow.write_all(&[0x16, 0x03]).await.unwrap();
    join(&running, &state, "orders").await;
    assert!(began.elapsed() < Duration::from_secs(3), "others waited for them");
    for one in silent {
        assert!(is_closed_within(one, Duration::from_secs(8)).await);
    }
    assert!(is_closed_within(slow, Duration::from_secs(8)).await);
    assert!(refused(running.health_address(), "handshake_timeout").await);
    running.shutdown().await;
}

/// A probe of one second would restart a control plane that is well.
#[tokio::test]
async fn silent_connections_keep_no_probe_out() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&state(&dir), HOUR).await;
    for (address, host, path, name) in [
        (running.health_address(), "x", "/live", "health"),
        (running.mesh_admin_address(), "localhost", "/v1/bundle", "mesh_admin"),
    ] {
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let began = Instant::now();
        assert_eq!(get(address, path, host).await.0, 200);
        assert!(began.elapsed() < Duration::from_secs(1), "{path} after {:?}", began.elapsed());
        // Surplus is closed at once, the rest when it has said nothing for two seconds.
        for one in silent {
            assert!(is_closed_within(one, Duration::from_secs(5)).await);
        }
        assert!(refused(running.health_address(), name).await);
    }
    running.shutdown().await;
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&state(&dir), HOUR).await;
    let mut plain = TcpStream::connect(running.identity_address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(is_closed_within(plain, Duration::from_secs(2)).await);
    assert!(refused(running.health_address(), "tls").await);
    running.shutdown().await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&state(&one), HOUR).await;
    // The same trust domain by name, another root.
    let foreign = start(&state(&other), HOUR).await;
    let svid = join(&foreign, &state(&other), "orders").await;
    let client = Client::connect(&running, Some(&svid)).await;
    if let Ok(mut client) = client {
        let (_, csr) = key_and_csr();
        assert!(client.issue(renewal(&svid, csr)).await.is_err());
    }
    assert!(refused(running.health_address(), "tls").await);
    assert_eq!(running_certificates(&running).await, 1, "only the control plane's own");
    running.shutdown().await;
    foreign.shutdown().await;
}

async fn running_certificates(running: &postern_control::Running) -> usize {
    let (_, body) = get(running.mesh_admin_address(), "/v1/certs", "localhost").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    body["certificates"].as_array().unwrap().len()
}

#[tokio::test]
async fn junk_after_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let expected = [trust_domain().control_plane()];
    let config =
        tls::client_config(None, &bundles(&running), &expected, Arc::new(SystemClock), &[b"h2"]).unwrap();
    for junk in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 20_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff",
    ] {
        let tcp = TcpStream::connect(running.identity_address()).await.unwrap();
        let name = ServerName::try_from("control.invalid").unwrap();
        let mut stream = TlsConnector::from(config.clone()).connect(name, tcp).await.unwrap();
        // The far end may hang up in the middle of it.
        let _ = stream.write_all(junk).await;
        let mut buf = [0; 1024];
        let closed = async { while !matches!(stream.read(&mut buf).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap();
    }
    join(&running, &state, "orders").await;
    running.shutdown().await;
}

/// More calls at once from one address than its burst: some are shed with a hint, none hang, and a known workload still gets through.
#[tokio::test]
async fn a_flood_of_guesses_is_shed() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    // The clock stands still, so no bucket refills however slow this machine is.
    let clock = Arc::new(TestClock::at(SystemClock.wall()));
    let running = postern_control::start_with(config(&state, HOUR), clock).await.unwrap();
    let svid = join(&running, &state, "orders").await;
    let (_, csr) = key_and_csr();
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(Client::connect(&running, None).await.unwrap());
    }
    let mut guesses = tokio::task::JoinSet::new();
    for n in 0..200 {
        let (mut stranger, csr) = (strangers[n % 4].clone(), csr.clone());
        guesses
            .spawn(async move { stranger.issue(with_token(&id("orders"), csr, "guess")).await.unwrap_err() });
    }
    let mut shed = 0;
    for status in guesses.join_all().await {
        match status.code() {
            tonic::Code::ResourceExhausted => {
                assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
                shed += 1;
            }
            tonic::Code::Unauthenticated => {}
            other => panic!("{other:?} {status}"),
        }
    }
    // A burst of 50, of which the join took one.
    assert_eq!(shed, 200 - 49);
    let mut known = Client::connect(&running, Some(&svid)).await.unwrap();
    known.issue(renewal(&svid, csr)).await.unwrap();
    running.shutdown().await;
}
