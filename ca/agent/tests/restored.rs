//! A control plane that came back from a backup, and does not know what it issued since.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::time::{Duration, Instant};

use control::Ca;
use place::{CONTROL, Place, TOKEN, clock, eventually, private};

/// Bundles and revocations come by the stream, so that a refused one does not wait for half of a certificate's life; nor does
/// the token that ends it wait for what was tried before it.
#[tokio::test]
async fn a_certificate_that_the_ca_does_not_know_is_renewed_at_once_and_a_new_token_tried_when_it_comes() {
    let ca = Ca::new(clock());
    *ca.ttl.lock() = Duration::from_secs(3_600);
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let address = listener.address;
    let place = Place::new(&ca, address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("the stream", || agent.observer.status().connected).await;
    // Two renewals out of turn are never closer than this.
    place.clock.advance(Duration::from_secs(5));
    *ca.forgotten.lock() = Some("token-after-the-restore".to_owned());
    drop(listener);
    eventually("the loss is noticed", || !agent.observer.status().connected).await;
    let _listener = ca.listen(CONTROL, &address.to_string()).await;
    eventually("a renewal, then the token", || ca.seen().len() >= 3).await;
    let tokens: Vec<_> = ca.seen().into_iter().map(|seen| seen.token).collect();
    assert_eq!(tokens[..3], [Some(TOKEN.to_owned()), None, Some(TOKEN.to_owned())]);
    let error = agent.observer.status().last_stream_error.unwrap();
    assert!(error.contains("does not know the connection's certificate"), "{error}");
    // By now it waits for three seconds and more between two attempts.
    eventually("failures", || agent.observer.status().failures >= 4).await;
    let put = Instant::now();
    private(&place.directory.path().join("token"), "token-after-the-restore");
    agent.renewed(&first).await;
    assert!(put.elapsed() < Duration::from_secs(3), "{:?}", put.elapsed());
    eventually("the stream again", || agent.observer.status().connected).await;
}
