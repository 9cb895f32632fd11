//! The workload's own socket, asked over real sockets by the generated clients while a real control plane renews.
#![allow(clippy::unwrap_used, reason = "tests")]

mod caller;
mod control;
mod place;

use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use caller::{Caller, asking, endpoint};
use control::{Ca, TTL};
use place::{CONTROL, ID, Place, Running, clock, eventually};
use postern_agent::workload::{Counts, Door, Endpoint};
use postern_svid::Svid;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::Code;

/// A control plane, an agent, and the agent's socket.
struct Scene {
    ca: Arc<Ca>,
    listener: control::Listener,
    place: Place,
    agent: Running,
    counts: Arc<Counts>,
    endpoint: Endpoint,
    _stop: watch::Sender<bool>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Endpoint)) -> Self {
        let ca = Ca::new(clock());
        let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
        let place = Place::new(&ca, listener.address);
        let agent = place.run();
        agent.identity().await;
        let mut endpoint = endpoint(place.directory.path());
        change(&mut endpoint);
        let counts = Arc::new(Counts::default());
        let door = Door::bind(endpoint.clone(), counts.clone()).unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(door.serve(agent.observer.clone(), stopped));
        Self { ca, listener, place, agent, counts, endpoint, _stop: stop }
    }

    async fn caller(&self) -> Caller {
        Caller::connect(&self.endpoint.socket).await
    }

    async fn renew(&self) {
        let before = self.agent.current().unwrap();
        self.place.clock.advance(TTL / 2);
        self.agent.renewed(&before).await;
    }
}

fn certificates(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        // A SEQUENCE whose length takes two bytes, as that of every certificate here.
        assert_eq!(der[..2], [0x30, 0x82]);
        let length = 4 + usize::from(u16::from_be_bytes([der[2], der[3]]));
        let (one, rest) = der.split_at(length);
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    all
}

#[tokio::test]
async fn a_workload_gets_its_svid_and_every_renewal() {
    let scene = Scene::new().await;
    let mut caller = scene.caller().await;
    let mut svids = caller.x509.fetch_x509svid(asking(Default::default())).await.unwrap().into_inner();
    let mut bundles = caller.x509.fetch_x509_bundles(asking(Default::default())).await.unwrap().into_inner();
    for _ in 0..3 {
        let message = svids.message().await.unwrap().unwrap();
        let svid = &message.svids[0];
        assert_eq!((message.svids.len(), svid.spiffe_id.as_str(), svid.hint.as_str()), (1, ID, ""));
        let own = Svid::from_pkcs8(certificates(&svid.x509_svid), &svid.x509_svid_key).unwrap();
        let held = scene.agent.current().unwrap();
        assert_eq!((own.serial(), own.chain()), (held.svid.serial(), held.svid.chain()));
        assert_eq!(certificates(&svid.bundle), from_ref(&scene.ca.root_der));
        scene.renew().await;
    }
    let first = bundles.message().await.unwrap().unwrap();
    assert_eq!(first.bundles.keys().collect::<Vec<_>>(), ["spiffe://demo.postern"]);
    assert_eq!(certificates(&first.bundles["spiffe://demo.postern"]), from_ref(&scene.ca.root_der));
    drop(svids.message().await.unwrap().unwrap());

    // Renewals of the SVID are no news about bundles; a root more is, to both.
    let second = Ca::new(clock());
    scene.ca.push(4, Some(second.root_der.clone()));
    let message = bundles.message().await.unwrap().unwrap();
    assert_eq!(certificates(&message.bundles["spiffe://demo.postern"]).len(), 2);
    let message = svids.message().await.unwrap().unwrap();
    assert_eq!(certificates(&message.svids[0].bundle).len(), 2);

    assert_eq!(scene.counts.streams(), 2);
    drop((svids, bundles));
    eventually("the streams end", || scene.counts.streams() == 0).await;
    drop(caller);
    eventually("the connection ends", || scene.counts.connections() == 0).await;
    assert_eq!(scene.counts.with_result("ok"), 2);
}

#[tokio::test]
async fn whoever_does_not_read_gets_the_newest_when_he_does() {
    let scene = Scene::new().await;
    // Room for less than one message, and none is given back before somebody reads.
    let mut caller = Caller::with_window(&scene.endpoint.socket, 256).await;
    let mut svids = caller.x509.fetch_x509svid(asking(Default::default())).await.unwrap().into_inner();
    let first = scene.agent.current().unwrap().svid.chain()[0].to_vec();
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..4 {
        scene.renew().await;
    }
    let message = svids.message().await.unwrap().unwrap();
    assert!(message.svids[0].x509_svid.starts_with(&first), "it was under way");
    // One more may have been made ready while it was. Nothing else waits behind it, and nothing behind the newest.
    let newest = scene.agent.current().unwrap().svid.chain()[0].to_vec();
    let mut made_ready = 0;
    while !svids.message().await.unwrap().unwrap().svids[0].x509_svid.starts_with(&newest) {
        made_ready += 1;
    }
    assert!(made_ready <= 1, "{made_ready}");
    assert!(tokio::time::timeout(Duration::from_millis(300), svids.message()).await.is_err());
}

#[tokio::test]
async fn who_is_refused_and_with_what() {
    let scene = Scene::new().await;
    let mut caller = scene.caller().await;
    let bare = caller.x509.fetch_x509svid(tonic::Request::new(Default::default())).await.unwrap_err();
    assert_eq!(bare.code(), Code::InvalidArgument);
    assert!(bare.message().contains("`workload.spiffe.io: true` is missing"), "{bare}");
    let mut wrong = asking(Default::default());
    wrong.metadata_mut().insert("workload.spiffe.io", "TRUE".parse().unwrap());
    assert_eq!(caller.x509.fetch_x509_bundles(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    for (path, tells) in [
        ("/SpiffeWorkloadAPI/FetchWITSVID", "X.509-SVID and JWT-SVID"),
        ("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", "StreamSecrets"),
        ("/grpc.health.v1.Health/Check", "SpiffeWorkloadAPI"),
    ] {
        let status = caller.raw(path).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        assert!(status.message().contains(tells), "{path}: {status}");
    }
    assert_eq!(scene.counts.with_result("unimplemented"), 3);
    assert_eq!(scene.counts.with_result("invalid_argument"), 2);

    // An SVID that has ended is of no use to anybody; the roots are.
    *scene.ca.refuse.lock() = Some(tonic::Status::unavailable("not now"));
    scene.place.clock.advance(TTL * 2);
    let ended = caller.x509.fetch_x509svid(asking(Default::default())).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.message().contains("has ended"), "{ended}");
    assert!(caller.x509.fetch_x509_bundles(asking(Default::default())).await.is_ok());
    drop(scene.listener);
}

#[tokio::test]
async fn another_user_is_told_so_and_holds_nothing() {
    let own = nix::unistd::geteuid().as_raw();
    let scene = Scene::with(|endpoint| endpoint.uids = [own + 1].into()).await;
    let mut caller = scene.caller().await;
    let refused = caller.x509.fetch_x509svid(asking(Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(&format!("no identity for uid {own}")), "{refused}");
    let refused = caller.sds.fetch_secrets(caller::secrets(&["default"], "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(scene.counts.with_result("permission_denied"), 2);

    // Three more, and then none.
    let mut more = Vec::new();
    for _ in 0..4 {
        more.push(UnixStream::connect(&scene.endpoint.socket).await.unwrap());
    }
    let read = more.last_mut().unwrap().read(&mut [0]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    eventually("it is counted", || scene.counts.with_result("resource_exhausted") == 1).await;
    assert_eq!(scene.counts.connections(), 4);

    let group = Scene::with(|endpoint| {
        endpoint.uids = [own + 1].into();
        endpoint.gids = [nix::unistd::getegid().as_raw()].into();
    });
    let group = group.await;
    assert!(group.caller().await.x509.fetch_x509svid(asking(Default::default())).await.is_ok());
}

#[tokio::test]
async fn before_there_is_an_identity() {
    let ca = Ca::new(clock());
    let place = Place::new(&ca, ([127, 0, 0, 1], 1).into());
    let agent = place.run();
    let endpoint = endpoint(place.directory.path());
    let door = Door::bind(endpoint.clone(), Arc::default()).unwrap();
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(door.serve(agent.observer.clone(), stopped));
    let mut caller = Caller::connect(&endpoint.socket).await;
    let status = caller.x509.fetch_x509svid(asking(Default::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("has no identity yet"), "{status}");
    let status = caller.sds.fetch_secrets(caller::secrets(&["default"], "")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("it stops when told")
        .unwrap()
        .unwrap();
    assert!(!endpoint.socket.exists(), "the socket goes with its server");
}

/// Time runs as fast as nothing happens.
#[tokio::test(start_paused = true)]
async fn connections_that_ask_nothing_do_not_stay() {
    let ca = Ca::new(clock());
    let place = Place::new(&ca, ([127, 0, 0, 1], 1).into());
    let agent = place.start().unwrap();
    let endpoint = endpoint(place.directory.path());
    let counts = Arc::new(Counts::default());
    let door = Door::bind(endpoint.clone(), counts.clone()).unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(door.serve(agent.observer(), stopped));
    let begun = tokio::time::Instant::now();
    let mut silent = UnixStream::connect(&endpoint.socket).await.unwrap();
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(120), silent.read_to_end(&mut bytes));
    let _ = reading.await.expect("it is closed");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    while counts.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
