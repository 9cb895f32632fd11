//! Several addresses of one control plane: one that is gone, hangs or refuses costs a moment.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::sync::atomic::Ordering;
use std::time::Duration;

use control::{Ca, TTL};
use place::{CONTROL, Place, clock, eventually};
use tonic::Status;

#[tokio::test]
async fn the_next_is_asked_when_one_is_gone() {
    let ca = Ca::new(clock());
    let first = ca.listen(CONTROL, "127.0.0.1:0").await;
    let second = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = Place::new(&ca, first.address);
    place.config.replicas = vec![second.address.to_string()];
    let agent = place.run();
    let identity = agent.identity().await;
    eventually("the stream", || agent.observer.status().connected).await;
    let streams = ca.streams.load(Ordering::SeqCst);
    drop(first);
    eventually("a stream to the other", || ca.streams.load(Ordering::SeqCst) > streams).await;
    eventually("it says so", || agent.observer.status().connected).await;
    // A renewal goes there as well, and nothing has failed.
    place.clock.advance(TTL / 2 + Duration::from_secs(1));
    agent.renewed(&identity).await;
    assert_eq!(agent.observer.status().failures, 0);
}

#[tokio::test]
async fn nobody_at_the_first_address_and_somebody_who_hangs_at_the_second() {
    let ca = Ca::new(clock());
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    // It takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = Place::new(&ca, gone);
    place.config.replicas = vec![silent.local_addr().unwrap().to_string(), good.address.to_string()];
    let agent = place.run();
    agent.identity().await;
    let status = agent.observer.status();
    assert_eq!((status.failures, status.issued), (0, 1));
    assert_eq!(ca.received.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_in_flight_is_asked_again_at_the_other() {
    let ca = Ca::new(clock());
    // Of one trust, and it cannot issue now.
    let first = ca.listen(CONTROL, "127.0.0.1:0").await;
    *ca.refuse.lock() = Some(Status::unavailable("not now"));
    let mut place = Place::new(&ca, first.address);
    let second = ca.listen(CONTROL, "127.0.0.1:0").await;
    place.config.replicas = vec![second.address.to_string()];
    let agent = place.run();
    eventually("a failure", || agent.observer.status().failures >= 1).await;
    assert!(ca.received.load(Ordering::SeqCst) >= 2, "one attempt is at both");
    *ca.refuse.lock() = None;
    agent.identity().await;
    // The same key each time: a join token is bound to it.
    let seen = ca.seen();
    assert!(seen.iter().all(|one| one.public_key == seen[0].public_key));
    // What would be refused anywhere is asked once.
    agent.stop().await;
    *ca.refuse.lock() = Some(Status::permission_denied("never"));
    let other = Place::new(&ca, first.address);
    let mut config = other.config.clone();
    config.replicas = vec![second.address.to_string()];
    let before = ca.received.load(Ordering::SeqCst);
    let place = Place { config, ..other };
    let agent = place.run();
    eventually("a refusal", || agent.observer.status().failures == 1).await;
    assert_eq!(ca.received.load(Ordering::SeqCst), before + 1);
}
