//! Tokens: handed over by a descriptor, new ones for those who cannot renew, and those that are shown each time.
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
    for (text, says) in [("", "one token"), ("two words\n", "one token"), ("\u{0}\n", "one token")] {
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

/// Kubelet exchanges the token in its place; each renewal shows the one that is there, beside the SVID.
#[tokio::test]
async fn a_projected_token_is_shown_anew_each_time() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = Place::new(&ca, listener.address);
    let token = place.directory.path().join("projected");
    // As kubelet makes it: others may read it, and it is a link into a directory that is exchanged whole.
    let exchange = |content: &str| {
        let data = place.directory.path().join(content);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("token"), content).unwrap();
        let link = place.directory.path().join("..link");
        std::os::unix::fs::symlink(data.join("token"), &link).unwrap();
        fs::rename(link, &token).unwrap();
    };
    exchange("first");
    place.config.attestation = Attestation::ServiceAccountToken(token.clone());
    let agent = place.run();
    let first = agent.identity().await;
    exchange("second");
    place.clock.advance(TTL / 2);
    let second = agent.renewed(&first).await;
    // A renewal that is refused begins anew, by the same token.
    *ca.refuse.lock() = Some(tonic::Status::permission_denied("the lineage renews no more"));
    place.clock.advance(TTL / 2);
    let failures = agent.observer.status().failures;
    eventually("it is refused", || agent.observer.status().failures > failures).await;
    *ca.refuse.lock() = None;
    agent.renewed(&second).await;
    let seen = ca.seen();
    let shown: Vec<_> = seen.iter().map(|one| (one.token.as_deref(), one.peer.is_some())).collect();
    assert_eq!(shown[..2], [(Some("kubernetes first"), false), (Some("kubernetes second"), true)]);
    assert!(shown[2..].iter().all(|(token, _)| *token == Some("kubernetes second")), "{shown:?}");
    assert_eq!(seen[1].predecessor, seen[0].serial);
    agent.stop().await;

    // Whoever has an SVID starts without it, and whoever has none does not.
    fs::remove_file(&token).unwrap();
    assert!(place.start().unwrap().identity().borrow().is_some());
    fs::remove_file(place.state("svid.pem")).unwrap();
    let error = place.start().err().unwrap().to_string();
    assert!(error.contains("projected: No such file") && error.contains("projected volume"), "{error}");
    place.config.attestation = Attestation::OidcToken(token.clone());
    for (content, says) in [
        ("", "one token"),
        ("a b", "one token"),
        (&*"a".repeat(9_000), "one token"),
        (&*"a".repeat(20_000), "16 KiB"),
    ] {
        fs::write(&token, content).unwrap();
        let error = place.start().err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    fs::write(&token, "of a provider\n".replace(' ', "-")).unwrap();
    let agent = place.run();
    agent.identity().await;
    assert_eq!(ca.seen().last().unwrap().token.as_deref(), Some("oidc of-a-provider"));
}
