//! The identity API: joining, renewing, watching.

use std::time::{Duration, SystemTime};

use postern_ca::proto::{Held, Report, directive};
use postern_svid::{Clock, SystemClock};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn join_and_renew() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let first = join(&running, &state, "orders").await;
    assert_eq!(first.id(), &id("orders"));

    let (key, csr) = key_and_csr();
    let mut client = Client::connect(&running, Some(&first)).await.unwrap();
    let response = client.issue(renewal(&first, csr)).await.unwrap();
    let second = svid(&response, &key);
    second.verify_against(&bundles(&running), SystemClock.wall()).unwrap();
    assert_ne!(first.serial(), second.serial());

    let bundle = response.bundle.unwrap();
    assert_eq!((bundle.trust_domain.as_str(), bundle.sequence), ("demo.postern", 1));
    assert_eq!(bundle.root_der.len(), 1);
    assert!((response.ca_time_unix_ms - unix_ms(SystemClock.wall())).abs() < 5_000);
    let renew_in = (response.renew_after_unix_ms - response.ca_time_unix_ms) / 1_000;
    assert!((1_600..2_000).contains(&renew_in), "{renew_in}");
    running.shutdown().await;
}

fn unix_ms(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test]
async fn who_proves_nothing_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let mut stranger = Client::connect(&running, None).await.unwrap();
    let (_, csr) = key_and_csr();

    let token = token(&state, &id("orders"));
    for (request, code) in [
        (with_token(&id("orders"), csr.clone(), "guess"), Code::Unauthenticated),
        (with_token(&id("store"), csr.clone(), &token), Code::PermissionDenied),
        (with_token(&trust_domain().control_plane(), csr.clone(), &token), Code::PermissionDenied),
        (with_token(&id("orders"), b"junk".to_vec(), &token), Code::InvalidArgument),
        (with_token(&id("orders"), vec![0; 5_000], &token), Code::InvalidArgument),
    ] {
        assert_eq!(stranger.issue(request).await.unwrap_err().code(), code);
    }
    let mut nothing = with_token(&id("orders"), csr.clone(), &token);
    nothing.proof = None;
    assert_eq!(stranger.issue(nothing).await.unwrap_err().code(), Code::Unauthenticated);
    // Beyond 16 KiB nothing is even decoded.
    let huge = with_token(&id("orders"), vec![0; 17 * 1024], &token);
    assert_eq!(stranger.issue(huge).await.unwrap_err().code(), Code::OutOfRange);
    let watch = stranger.watch(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(watch.code(), Code::Unauthenticated);
    // After all that the token is still good.
    stranger.issue(with_token(&id("orders"), csr, &token)).await.unwrap();
    running.shutdown().await;
}

#[tokio::test]
async fn a_restart_keeps_root_tokens_and_lineages() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    // A token made before the control plane's first start.
    let early = token(&state, &id("orders"));
    let running = start(&state, HOUR).await;
    let pem = std::fs::read(running.bundle_path()).unwrap();
    let store = join(&running, &state, "store").await;
    running.shutdown().await;

    let running = start(&state, HOUR).await;
    assert_eq!(std::fs::read(running.bundle_path()).unwrap(), pem);
    let (_, csr) = key_and_csr();
    let mut client = Client::connect(&running, Some(&store)).await.unwrap();
    client.issue(renewal(&store, csr.clone())).await.unwrap();
    let mut stranger = Client::connect(&running, None).await.unwrap();
    let first = stranger.issue(with_token(&id("orders"), csr_of(1), &early)).await;
    assert!(first.is_ok());
    running.shutdown().await;
    let running = start(&state, HOUR).await;
    let mut stranger = Client::connect(&running, None).await.unwrap();
    let spent = stranger.issue(with_token(&id("orders"), csr_of(2), &early)).await.unwrap_err();
    assert_eq!(spent.code(), Code::Unauthenticated);
    running.shutdown().await;
}

fn csr_of(_: u8) -> Vec<u8> {
    key_and_csr().1
}

#[tokio::test]
async fn watching() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let svid = join(&running, &state, "orders").await;
    let mut client = Client::connect(&running, Some(&svid)).await.unwrap();
    let (reports, stream) = mpsc::channel(1);
    let mut directives = client.watch(ReceiverStream::new(stream)).await.unwrap();
    let first = directives.message().await.unwrap().unwrap();
    let Some(directive::Directive::Bundle(bundle)) = first.directive else { panic!("{first:?}") };
    assert_eq!(bundle.sequence, 1);
    let root = CertificateDer::from(bundle.root_der[0].clone());
    assert_eq!(bundles(&running).of_trust_domain(&trust_domain()).unwrap().roots(), [root]);

    let held = Held {
        spiffe_id: svid.id().as_str().to_owned(),
        serial: svid.serial().to_vec(),
        not_after_unix_ms: unix_ms(svid.not_after()),
        issuer_key_id: svid.issuer_key_id().to_vec(),
    };
    // It may say what it likes about others and about versions of the future.
    let other = Held { spiffe_id: id("store").as_str().to_owned(), serial: vec![9], ..held.clone() };
    reports.send(Report { bundle_sequence: 99, held: vec![other.clone(), held.clone()] }).await.unwrap();
    let address = running.mesh_admin_address();
    eventually("such a version is none", || async {
        let (_, body) = get(address, "/v1/workloads", "localhost").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let one = &body["workloads"][0];
        one["bundleSequence"] == 0 && one["serial"] == postern_ca::hex(svid.serial())
    })
    .await;
    reports.send(Report { bundle_sequence: 1, held: vec![other, held] }).await.unwrap();
    eventually("the report shows", || async {
        let (status, body) = get(address, "/v1/workloads", "localhost").await;
        assert_eq!(status, 200);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let one = &body["workloads"][0];
        one["bundleSequence"] == 1
            && one["connected"] == true
            && one["id"] == id("orders").as_str()
            && one["serial"] == postern_ca::hex(svid.serial())
    })
    .await;
    let (_, body) = get(address, "/v1/bundle", "localhost").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["acknowledged"][0]["sequence"], 1);
    assert_eq!(body["behind"], serde_json::json!([]));

    drop((reports, directives, client));
    eventually("the sidecar is shown as gone", || async {
        let (_, body) = get(address, "/v1/workloads", "localhost").await;
        body.contains("\"connected\":false")
    })
    .await;
    running.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_reports_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let svid = join(&running, &state, "orders").await;
    let mut client = Client::connect(&running, Some(&svid)).await.unwrap();
    let flood = tokio_stream::iter((0..10_000).map(|n| Report { bundle_sequence: n, held: Vec::new() }));
    let mut directives = client.watch(flood).await.unwrap();
    let ended = loop {
        match directives.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted);
    running.shutdown().await;
}

/// Certificates of five seconds: the stream ends with its certificate, the control plane renews its own, and a workload that
/// renews in time is served all the while.
#[tokio::test]
async fn short_lives() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, Duration::from_secs(6)).await;
    let svid = join(&running, &state, "orders").await;
    let mut client = Client::connect(&running, Some(&svid)).await.unwrap();
    let mut directives = client.watch(tokio_stream::pending()).await.unwrap();
    // Our bundle, and those of other trust domains.
    directives.message().await.unwrap().unwrap();
    directives.message().await.unwrap().unwrap();
    let before = served_serial(&running).await;

    // Renewed on a connection of its own while the stream is open. Certificates count whole seconds: let one pass.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let (key, csr) = key_and_csr();
    let mut fresh = Client::connect(&running, Some(&svid)).await.unwrap();
    let renewed = fresh.issue(renewal(&svid, csr)).await.unwrap();
    let renewed = crate::common::svid(&renewed, &key);

    let ended = tokio::time::timeout(Duration::from_secs(10), directives.message()).await.unwrap();
    let over = SystemClock.wall();
    assert!(over >= svid.not_after() && over < svid.not_after() + Duration::from_secs(2));
    let told = ended.unwrap_err();
    assert_eq!(told.code(), Code::Unauthenticated, "it is told why: {told}");
    // Neither does the connection serve calls any more, nor does it last.
    let (_, csr) = key_and_csr();
    assert!(client.issue(renewal(&svid, csr)).await.is_err());
    assert!(renewed.not_after() > svid.not_after());
    eventually("the control plane's certificate is renewed", || async {
        served_serial(&running).await != before
    })
    .await;
    // With an expired certificate there is no connection.
    let mut late = Client::connect(&running, Some(&svid)).await;
    if let Ok(client) = &mut late {
        let (_, csr) = key_and_csr();
        assert!(client.issue(renewal(&svid, csr)).await.is_err());
    }
    running.shutdown().await;
}

/// Serial number of the control plane's present certificate; the chain also carries the root.
async fn served_serial(running: &postern_control::Running) -> Vec<u8> {
    let chain = served_chain(running).await;
    let roots = bundles(running).of_trust_domain(&trust_domain()).unwrap().roots().to_vec();
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[2], roots[0]);
    postern_svid::tls::peer(Some(&chain)).unwrap().serial().to_vec()
}
