//! Join tokens: handed over by a descriptor, and new ones for those who cannot renew.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use control::{Ca, TTL};
use place::{CONTROL, Place, clock, eventually, private};
use postern_agent::{Attestation, Identity};
use postern_svid::Clock as _;

#[tokio::test]
async fn a_pipe_brings_the_token() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = Place::new(&ca, listener.address);
    fs::remove_file(place.directory.path().join("token")).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"piped-0123456789\n").unwrap();
    drop(writer);
    let descriptor = u32::try_from(reader.as_raw_fd()).unwrap();
    place.config.attestation = Attestation::JoinTokenDescriptor(descriptor);
    let agent = place.run();
    let first = agent.identity().await;
    assert_eq!(ca.seen()[0].token.as_deref(), Some("piped-0123456789"));
    // Read once, kept while the process lives: an expired SVID proves nothing.
    place.clock.advance(TTL + Duration::from_secs(1));
    agent.renewed(&first).await;
    assert_eq!(ca.seen().last().unwrap().token.as_deref(), Some("piped-0123456789"));
    agent.stop().await;

    // A restart does not need it, as it does not need a file.
    drop(reader);
    place.config.attestation = Attestation::JoinTokenDescriptor(99_999);
    assert!(place.start().unwrap().identity().borrow().is_some());
    fs::remove_file(place.state("svid.pem")).unwrap();
    let error = place.start().err().unwrap().to_string();
    assert!(
        error.contains("descriptor 99999: it is not open") && error.contains("99999< TOKENFILE"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pipe_without_a_token_is_told() {
    let ca = Ca::new(clock());
    let mut place = Place::new(&ca, "127.0.0.1:1".parse().unwrap());
    for (text, says) in
        [("", "one join token"), ("two words\n", "one join token"), ("\u{0}\n", "one join token")]
    {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        let descriptor = u32::try_from(reader.as_raw_fd()).unwrap();
        place.config.attestation = Attestation::JoinTokenDescriptor(descriptor);
        let error = place.start().err().unwrap().to_string();
        assert!(error.contains(says), "{text:?}: {error}");
    }
}

/// Its own root is gone from the bundle, so its SVID opens no connection; the way back is a new token, not the end of the
/// SVID.
#[tokio::test]
async fn a_new_token_helps_whom_the_bundle_disowns() {
    let (ca, successor) = (Ca::new(clock()), Ca::new(clock()));
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let address = listener.address;
    let place = Place::new(&ca, address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("a report", || ca.last_report().is_some()).await;
    ca.bundle.send_modify(|bundle| {
        bundle.sequence = 9;
        bundle.root_der = vec![successor.root_der.to_vec()];
    });
    eventually("it is disowned", || agent.observer.status().bundle_sequence == Some(9)).await;
    drop(listener);
    eventually("the loss is noticed", || !agent.observer.status().connected).await;
    successor.bundle.send_modify(|bundle| bundle.sequence = 10);
    let _listener = successor.listen(CONTROL, &address.to_string()).await;
    let failures = agent.observer.status().failures;
    eventually("more attempts", || agent.observer.status().failures > failures + 3).await;
    // The token that was used up is not sent about again.
    assert!(successor.seen().iter().all(|one| one.token.is_none()), "{:?}", successor.seen());
    assert_eq!(agent.current().unwrap().svid.serial(), first.svid.serial());

    let token = place.directory.path().join("token");
    private(&token, "token-of-the-successor");
    // By its issuer: serial numbers of the two may be the same.
    let issuer = first.svid.issuer_key_id().to_vec();
    let is_new =
        |now: &Option<Arc<Identity>>| now.as_ref().is_some_and(|now| now.svid.issuer_key_id() != issuer);
    let renewed = agent.until(is_new).await.unwrap();
    let seen = successor.seen();
    let last = seen.last().unwrap();
    assert_eq!((last.token.as_deref(), last.peer.as_deref()), (Some("token-of-the-successor"), None));
    assert!(renewed.svid.not_after() > place.clock.wall());
    assert!(first.svid.not_after() > place.clock.wall(), "not only at its end");
    // And from there on by SVID again.
    place.clock.advance(TTL / 2);
    agent.renewed(&renewed).await;
    assert!(successor.seen().last().unwrap().token.is_none());
}
