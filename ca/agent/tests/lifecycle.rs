//! An identity from its first request to its renewals, with the control plane in all its moods.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use control::{Ca, TTL};
use place::{CONTROL, ID, Place, TOKEN, clock, eventually, private};
use postern_agent::{Config, Identity, StartError, Trust, start};
use postern_svid::{Clock, Revoked, SpiffeId};

#[tokio::test]
async fn the_first_svid_and_a_restart_without_control_plane() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let identity = agent.identity().await;
    assert_eq!((identity.generation, identity.svid.id().as_str()), (1, ID));
    assert_eq!(identity.bundles.iter().map(|bundle| bundle.sequence()).collect::<Vec<_>>(), [3]);
    assert_eq!(identity.renew_after, place.clock.wall() + TTL / 2);
    let seen = ca.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].token.as_deref(), seen[0].peer.as_deref()), (Some(TOKEN), None));
    assert!(seen[0].predecessor.is_empty());

    eventually("a report", || ca.last_report().is_some()).await;
    let report = ca.last_report().unwrap();
    assert_eq!(report.bundle_sequence, 3);
    assert_eq!(report.held.len(), 1);
    assert_eq!(report.held[0].serial, identity.svid.serial());
    assert_eq!(report.held[0].issuer_key_id, identity.svid.issuer_key_id());
    assert_eq!(report.held[0].not_after_unix_ms, control::millis(identity.svid.not_after()));
    eventually("the stream", || agent.observer.status().connected).await;
    assert_eq!(agent.observer.status().clock_skew_ms, Some(7));

    for name in ["svid.pem", "bundle.pem"] {
        let mode = fs::metadata(place.state(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(place.state("")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(!place.state("pending-key.pem").exists());

    agent.stop().await;
    drop(listener);
    fs::remove_file(place.directory.path().join("token")).unwrap();
    let restarted = place.start().unwrap();
    let restored = restarted.identity().borrow().clone().expect("at once");
    assert_eq!(restored.svid.serial(), identity.svid.serial());
    assert_eq!(restored.renew_after, identity.renew_after);
}

#[tokio::test]
async fn nothing_is_told_to_a_server_that_has_not_proven_its_id() {
    let ca = Ca::new(clock());
    let stranger = Ca::new(clock());
    let other_service = ca.listen("spiffe://demo.postern/ns/shop/sa/orders", "127.0.0.1:0").await;
    let other_root = stranger.listen(CONTROL, "127.0.0.1:0").await;
    let right = ca.listen(CONTROL, "127.0.0.1:0").await;
    let pin = Trust::RootSha256(stranger.root_sha256());
    for (what, address, trust, reason) in [
        (
            "another service of the mesh",
            other_service.address,
            None,
            "the peer is spiffe://demo.postern/ns/shop/sa/orders",
        ),
        ("the right id from a foreign root", other_root.address, None, "no path to a root"),
        ("the right one, but another root is pinned", right.address, Some(pin), "pinned SHA-256"),
    ] {
        let mut place = Place::new(&ca, address);
        place.config.trust = trust.unwrap_or(place.config.trust);
        let agent = place.run();
        eventually(what, || agent.observer.status().failures >= 2).await;
        let error = agent.observer.status().last_error.unwrap();
        assert!(error.contains(reason), "{what}: {error}");
        assert!(agent.current().is_none(), "{what}");
    }
    for ca in [&ca, &stranger] {
        assert_eq!(ca.received.load(Ordering::SeqCst), 0, "a request was sent");
    }
    // The pinned root is all that the right one needs.
    let mut place = Place::new(&ca, right.address);
    place.config.trust = Trust::RootSha256(ca.root_sha256());
    let agent = place.run();
    agent.identity().await;
    assert!(ca.received.load(Ordering::SeqCst) > 0);
}

/// Below HTTP as well: the bytes behind the handshake are counted after decryption.
#[tokio::test]
async fn a_wrong_control_plane_reads_nothing() {
    use tokio::io::AsyncReadExt as _;
    let ca = Ca::new(clock());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = Place::new(&ca, listener.local_addr().unwrap());
    // Somebody with a certificate of his own making who asks for none.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().clone();
    let config = rustls::ServerConfig::builder_with_provider(postern_svid::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let _agent = place.run();
    for _ in 0..2 {
        let (tcp, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = acceptor.accept(tcp).await {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            assert_eq!(bytes, b"");
        }
    }
}

#[tokio::test]
async fn renewal_with_a_new_key_and_the_old_svid() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("a report", || ca.last_report().is_some()).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(ca.seen().len(), 1, "not before its time");
    place.clock.advance(TTL / 2);
    let second = agent.renewed(&first).await;
    assert!(second.generation > first.generation);
    let seen = ca.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[1].token.as_deref(), seen[1].peer.as_deref()), (None, Some(ID)));
    assert_eq!(seen[1].predecessor, first.svid.serial());
    assert_ne!(seen[0].public_key, seen[1].public_key);
    eventually("a report of the new SVID", || {
        ca.last_report().is_some_and(|report| report.held[0].serial == second.svid.serial())
    })
    .await;
    // The stream does not rest on an SVID that ends before it does.
    assert_eq!(ca.streams.load(Ordering::SeqCst), 2);
    assert!(!place.state("pending-key.pem").exists());
    drop(agent);
    eventually("the lock is free", || place.start().is_ok()).await;
    let restored = place.start().unwrap().identity().borrow().clone().unwrap();
    assert_eq!(restored.svid.serial(), second.svid.serial());
}

#[tokio::test]
async fn a_control_plane_that_goes_away_and_comes_back() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let address = listener.address;
    let place = Place::new(&ca, address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("the stream", || agent.observer.status().connected).await;
    drop(listener);
    eventually("the loss is noticed", || !agent.observer.status().connected).await;
    place.clock.advance(TTL * 6 / 10);
    eventually("attempts", || agent.observer.status().attempts >= 2).await;
    let status = agent.observer.status();
    assert!(status.last_error.as_deref().unwrap().contains("cannot connect"), "{status:?}");
    assert_eq!(agent.current().unwrap().svid.serial(), first.svid.serial(), "kept");
    // Beyond its end it stays published: whoever uses it looks at its date.
    place.clock.advance(TTL);
    let failures = agent.observer.status().failures;
    eventually("more attempts", || agent.observer.status().failures > failures + 1).await;
    assert_eq!(agent.current().unwrap().svid.serial(), first.svid.serial(), "kept");
    let _listener = ca.listen(CONTROL, &address.to_string()).await;
    agent.renewed(&first).await;
    assert_eq!(ca.seen().last().unwrap().token.as_deref(), Some(TOKEN), "an expired SVID proves nothing");
    eventually("the stream again", || agent.observer.status().connected).await;
    assert_eq!(agent.observer.status().last_error, None);
}

#[tokio::test]
async fn a_crash_between_request_and_answer_keeps_the_key() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    ca.keep_answers.store(true, Ordering::SeqCst);
    let agent = place.run();
    eventually("the request", || !ca.seen().is_empty()).await;
    drop(agent);
    assert!(place.state("pending-key.pem").exists());
    ca.keep_answers.store(false, Ordering::SeqCst);
    eventually("the lock is free", || place.start().is_ok()).await;
    let agent = place.run();
    let identity = agent.identity().await;
    let seen = ca.seen();
    assert!(seen.len() >= 2);
    assert!(seen.iter().all(|one| one.public_key == seen[0].public_key), "another key");
    assert!(!place.state("pending-key.pem").exists());
    place.clock.advance(TTL / 2);
    agent.renewed(&identity).await;
    assert_ne!(ca.seen().last().unwrap().public_key, seen[0].public_key, "the key is used up");
}

#[tokio::test]
async fn a_jump_of_the_wall_clock_is_noticed() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let first = agent.identity().await;
    let jumped = Instant::now();
    place.clock.jump_wall(6_000);
    let second = agent.renewed(&first).await;
    assert!(jumped.elapsed() < TTL / 5, "{:?}", jumped.elapsed());
    // Backwards: nothing is due, nothing is given up.
    place.clock.jump_wall(-3_600_000);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(agent.current().unwrap().svid.serial(), second.svid.serial());
    place.clock.jump_wall(3_600_000 + 6_000);
    agent.renewed(&second).await;
}

#[tokio::test]
async fn bundles_only_go_forward() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("a report", || ca.last_report().is_some()).await;
    let roots =
        |identity: &Identity| identity.bundles.iter().next().map(|one| (one.sequence(), one.roots().len()));
    let acknowledged = |sequence| ca.last_report().unwrap().bundle_sequence == sequence;

    let other = Ca::new(clock()).root_der.clone();
    ca.push(5, Some(other));
    eventually("the acknowledgement", || acknowledged(5)).await;
    let second = agent.current().unwrap();
    assert_eq!((second.generation, roots(&second)), (first.generation + 1, Some((5, 2))));
    assert_eq!(second.svid.serial(), first.svid.serial());

    let reports = ca.reports.lock().len();
    ca.push(4, None);
    eventually("the refusal", || agent.observer.status().last_stream_error.is_some()).await;
    let error = agent.observer.status().last_stream_error.unwrap();
    assert!(error.contains("sequence 4 is refused, 5 is in force"), "{error}");
    assert_eq!(roots(&agent.current().unwrap()), Some((5, 2)));

    ca.push(5, None);
    eventually("the refusal", || agent.observer.status().last_stream_error.unwrap().contains("other roots"))
        .await;
    assert_eq!(roots(&agent.current().unwrap()), Some((5, 2)));
    assert_eq!(ca.reports.lock().len(), reports, "what is refused is not acknowledged");

    ca.push(6, None);
    eventually("the acknowledgement", || acknowledged(6)).await;
    drop(agent);
    eventually("the lock is free", || place.start().is_ok()).await;
    // A renewal must not bring an old one either.
    ca.push(2, None);
    let agent = place.run();
    assert_eq!(roots(&agent.current().unwrap()), Some((6, 1)), "kept over the restart");
    place.clock.advance(TTL / 2);
    let renewed = agent.renewed(&first).await;
    assert_eq!(roots(&renewed), Some((6, 1)));
}

/// In force at once, acknowledged only when a restart would keep it.
#[tokio::test]
async fn a_bundle_that_cannot_be_stored_is_not_acknowledged() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    agent.identity().await;
    eventually("a report", || ca.last_report().is_some()).await;
    let away = place.directory.path().join("away");
    fs::rename(&place.config.state_dir, &away).unwrap();
    ca.push(5, None);
    let sequence = |identity: &Identity| identity.bundles.iter().next().map(|bundle| bundle.sequence());
    agent.until(|identity| identity.as_deref().and_then(sequence) == Some(5)).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(ca.reports.lock().iter().all(|report| report.bundle_sequence == 3));
    assert!(agent.observer.status().last_stream_error.unwrap().contains("state directory"));
    fs::rename(&away, &place.config.state_dir).unwrap();
    eventually("the acknowledgement", || ca.last_report().unwrap().bundle_sequence == 5).await;
}

/// A root that is taken out takes its SVIDs with it: the agent does not wait for the time that the CA once chose.
#[tokio::test]
async fn an_svid_that_its_bundle_disowns_is_renewed_at_once() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    agent.identity().await;
    eventually("a report", || ca.last_report().is_some()).await;
    assert_eq!(agent.observer.status().failures, 0);
    let other = Ca::new(clock()).root_der.clone();
    ca.bundle.send_modify(|bundle| {
        bundle.sequence = 9;
        bundle.root_der = vec![other.to_vec()];
    });
    // This control plane is disowned as well, so the attempt fails, and says what to do.
    eventually("an attempt", || agent.observer.status().failures > 0).await;
    let error = agent.observer.status().last_error.unwrap();
    assert!(error.contains("no path to a root") && error.contains("state/bundle.pem"), "{error}");
}

#[tokio::test]
async fn answers_that_are_not_put_in_force() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = Place::new(&ca, listener.address);
    *ca.other_id.lock() = Some("spiffe://demo.postern/ns/shop/sa/payments".to_owned());
    let agent = place.run();
    eventually("a failure", || agent.observer.status().failures > 0).await;
    assert!(agent.observer.status().last_error.unwrap().contains("payments instead of"), "wrong id");
    assert!(agent.current().is_none());
    drop(agent);
    *ca.other_id.lock() = None;

    eventually("the lock is free", || place.start().is_ok()).await;
    ca.stale.store(true, Ordering::SeqCst);
    let agent = place.run();
    eventually("a failure", || agent.observer.status().failures > 0).await;
    assert!(agent.observer.status().last_error.unwrap().contains("expired"), "an SVID that has ended");
    assert!(agent.current().is_none());
    drop(agent);
    ca.stale.store(false, Ordering::SeqCst);

    eventually("the lock is free", || place.start().is_ok()).await;
    place.config.test = false;
    let agent = place.run();
    eventually("a failure", || agent.observer.status().failures > 0).await;
    assert!(agent.observer.status().last_error.unwrap().contains("test: true"), "too short a life");
    assert!(agent.current().is_none());
    drop(agent);

    eventually("the lock is free", || place.start().is_ok()).await;
    place.config.test = true;
    *ca.refuse.lock() = Some(tonic::Status::permission_denied("the token\nis used"));
    let agent = place.run();
    eventually("a refusal", || agent.observer.status().failures > 0).await;
    let error = agent.observer.status().last_error.unwrap();
    assert!(error.contains("PermissionDenied") && error.contains("tokenis used"), "{error}");
    *ca.refuse.lock() = None;
    agent.identity().await;
}

#[tokio::test]
async fn a_refused_renewal_falls_back_to_the_token() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    agent.identity().await;
    *ca.refuse.lock() = Some(tonic::Status::permission_denied("older than 30 days"));
    place.clock.advance(TTL / 2);
    eventually("both ways", || ca.seen().len() >= 4).await;
    let seen = ca.seen();
    assert_eq!(
        (seen[1].token.is_some(), seen[2].token.is_some(), seen[3].token.is_some()),
        (false, true, false)
    );
    assert_ne!(seen[1].public_key, seen[2].public_key, "a refused key is not tried again");
}

#[tokio::test]
async fn what_is_unusable_is_set_aside() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let first = {
        let agent = place.run();
        let first = agent.identity().await;
        agent.stop().await;
        first
    };
    let good = fs::read_to_string(place.state("svid.pem")).unwrap();
    let set_aside = || {
        let agent = place.start().unwrap();
        assert!(agent.identity().borrow().is_none());
        assert!(place.state("svid.pem.aside").exists());
        assert!(!place.state("svid.pem").exists());
        fs::remove_file(place.state("svid.pem.aside")).unwrap();
    };
    place.clock.advance(TTL + Duration::from_secs(1));
    set_aside();
    place.clock.jump_wall(-11_000);
    private(&place.state("svid.pem"), &good[..good.len() / 2]);
    set_aside();
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    private(&place.state("svid.pem"), &(other_key + &good[good.find("-----BEGIN CERT").unwrap()..]));
    set_aside();
    private(&place.state("svid.pem"), &good);
    let mut other = Place::new(&ca, listener.address);
    other.config.identity = SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/other").unwrap();
    other.config.state_dir.clone_from(&place.config.state_dir);
    assert!(other.start().unwrap().identity().borrow().is_none(), "another id");
    fs::rename(place.state("svid.pem.aside"), place.state("svid.pem")).unwrap();
    // A clock that is behind makes nothing unusable: the SVID waits for it.
    place.clock.jump_wall(-3_600_000);
    let agent = place.start().unwrap();
    assert_eq!(agent.identity().borrow().as_ref().unwrap().svid.serial(), first.svid.serial());
    drop(agent);
    place.clock.jump_wall(3_600_000);
    private(&place.state("bundle.pem"), "postern-bundle 1\nnonsense\n");
    let agent = place.start().unwrap();
    assert!(place.state("bundle.pem.aside").exists());
    assert!(agent.identity().borrow().is_some(), "the configured bundle vouches for it");
}

#[tokio::test]
async fn secrets_that_others_can_read_are_refused() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let error = || place.start().err().map(|error| error.to_string()).unwrap_or_default();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let token = place.directory.path().join("token");

    mode(&token, 0o640);
    assert!(error().contains("mode 0640 lets others in") && error().contains("chmod 0600"), "{}", error());
    mode(&token, 0o600);
    place.start().unwrap();
    fs::write(&token, "two words").unwrap();
    assert!(error().contains("does not hold one token"), "{}", error());
    fs::remove_file(&token).unwrap();
    assert!(error().contains("postern ca token create"), "{}", error());
    fs::create_dir(&token).unwrap();
    assert!(error().contains("not a regular file"), "{}", error());
    fs::remove_dir(&token).unwrap();
    private(&token, "  with-a-newline \n");

    let agent = place.run();
    agent.identity().await;
    assert_eq!(ca.seen()[0].token.as_deref(), Some("with-a-newline"));
    assert!(error().contains("another process uses this state directory"), "{}", error());
    agent.stop().await;

    let svid = place.state("svid.pem");
    for wide in [0o644, 0o660, 0o604] {
        mode(&svid, wide);
        assert!(error().contains("lets others in"), "{wide:o}: {}", error());
    }
    mode(&svid, 0o600);
    for wide in [0o755, 0o710, 0o701] {
        mode(&place.config.state_dir, wide);
        assert!(error().contains("chmod 0700"), "{wide:o}: {}", error());
    }
    mode(&place.config.state_dir, 0o700);
    place.start().unwrap();
}

#[tokio::test]
async fn configurations_that_cannot_work() {
    let ca = Ca::new(clock());
    let place = Place::new(&ca, "127.0.0.1:1".parse().unwrap());
    let error = |change: fn(&mut Config)| {
        let mut config = place.config.clone();
        change(&mut config);
        start(config, Arc::new(place.clock.clone())).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for address in ["", "10.0.0.5", "10.0.0.5:", "10.0.0.5:0", ":24150", "::1:24150", "[::1:24150", "a:99999"]
    {
        let mut config = place.config.clone();
        config.control_plane = address.to_owned();
        assert!(matches!(start(config, Arc::new(clock())), Err(StartError::Address(_))), "{address}");
    }
    let reserved = error(|config| config.identity = config.control_plane_id.clone());
    assert!(reserved.contains("/postern/ belong"), "{reserved}");
    let foreign = error(|config| config.identity = SpiffeId::parse("spiffe://other/a").unwrap());
    assert!(foreign.contains("must share a trust domain"), "{foreign}");
    let empty = error(|config| config.trust = Trust::Bundle("/dev/null".into()));
    assert!(empty.contains("/dev/null") && empty.contains("no certificate"), "{empty}");
    let missing = error(|config| config.trust = Trust::Bundle("/nonexistent/bundle.pem".into()));
    assert!(missing.contains("/nonexistent/bundle.pem"), "{missing}");
    assert_eq!(error(|_| {}), "");
}

#[tokio::test]
async fn a_control_plane_that_accepts_and_says_nothing() {
    let ca = Ca::new(clock());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = Place::new(&ca, silent.local_addr().unwrap());
    // Connections wait in the backlog; the pace of a first SVID allows ten seconds, so the test waits that long.
    let agent = place.run();
    eventually("the deadline", || agent.observer.status().failures > 0).await;
    assert!(agent.observer.status().last_error.unwrap().contains("TLS handshake"), "which step");
}

#[tokio::test]
async fn what_was_revoked_is_acknowledged_and_survives_a_restart() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    agent.identity().await;
    let revoked = [
        Revoked::Id(SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/other").unwrap()),
        Revoked::Serial(vec![0x5a; 16]),
        Revoked::Key([7; 32]),
        Revoked::Authority(vec![9; 20]),
    ];
    let push = |sequence, serial: Vec<u8>| {
        ca.bundle.send_modify(|bundle| {
            bundle.sequence = sequence;
            bundle.revocations = Some(control::api::Revocations {
                tainted_key_id: vec![vec![9; 20]],
                key_sha256: vec![vec![7; 32]],
                denied_serial: vec![serial],
                denied_id: vec!["spiffe://demo.postern/ns/shop/sa/other".to_owned()],
            });
        });
    };
    push(4, vec![0x5a; 16]);
    eventually("it is acknowledged", || ca.last_report().is_some_and(|report| report.bundle_sequence == 4))
        .await;
    let held = |identity: &Identity| {
        let bundle = identity.bundles.iter().next().unwrap().clone();
        (bundle.sequence(), revoked.iter().all(|one| bundle.revocations().contains(one)))
    };
    assert_eq!(held(&agent.current().unwrap()), (4, true));
    // The same sequence with other lists, and lists that cannot be read, are refused whole.
    push(4, vec![1; 16]);
    eventually("a complaint", || agent.observer.status().last_stream_error.is_some()).await;
    push(5, vec![1; 21]);
    let told = || agent.observer.status().last_stream_error.unwrap_or_default();
    eventually("another complaint", || told().contains("serial number")).await;
    assert_eq!(held(&agent.current().unwrap()), (4, true));

    agent.stop().await;
    drop(listener);
    let restarted = place.start().unwrap();
    let restored = restarted.identity().borrow().clone().expect("at once");
    assert_eq!(held(&restored), (4, true), "a restart forgets nothing");
    drop(restarted);
    // A line that cannot be read is no list.
    let text = fs::read_to_string(place.state("bundle.pem")).unwrap();
    private(&place.state("bundle.pem"), &text.replace("tainted-key-id: 09", "tainted-key-id: zz"));
    drop(place.start());
    assert!(place.state("bundle.pem.aside").exists());
}

#[tokio::test]
async fn a_renewal_out_of_turn_when_the_control_plane_wants_one() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("the stream", || agent.observer.status().connected).await;
    ca.hurry.send_modify(|times| *times += 1);
    eventually("a request", || {
        // Its moment within the spread is one of the agent's own clock, which stands still in tests.
        place.clock.advance(Duration::from_millis(5));
        ca.seen().len() == 2
    })
    .await;
    let second = agent.renewed(&first).await;
    assert!(place.clock.wall() < first.renew_after, "it was not due");
    assert_ne!(second.svid.serial(), first.svid.serial());
    assert_eq!(ca.seen().len(), 2, "once told, once renewed");
}
