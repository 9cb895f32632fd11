//! JWT-SVIDs at the workload's own socket, while a real control plane signs them and changes its key.
#![allow(clippy::unwrap_used, reason = "tests")]

mod caller;
mod control;
mod place;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caller::spiffe::{JwtsvidRequest, ValidateJwtsvidRequest};
use caller::{Caller, asking, endpoint};
use control::jwt::{Signer, TOKEN};
use control::{Ca, TTL};
use place::{CONTROL, ID, Place, Running, clock, eventually};
use postern_agent::workload::{Counts, Door};
use serde_json::json;
use tokio::sync::watch;
use tonic::{Code, Status};

const AUDIENCE: &str = "reports";

struct Scene {
    ca: Arc<Ca>,
    listener: Option<control::Listener>,
    place: Place,
    agent: Running,
    caller: Caller,
    _stop: watch::Sender<bool>,
}

impl Scene {
    async fn new() -> Self {
        let ca = Ca::new(clock());
        let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
        let place = Place::new(&ca, listener.address);
        let agent = place.run();
        agent.identity().await;
        let endpoint = endpoint(place.directory.path());
        let door = Door::bind(endpoint.clone(), Arc::new(Counts::default())).unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(door.serve(agent.observer.clone(), stopped));
        let caller = Caller::connect(&endpoint.socket).await;
        Self { ca, listener: Some(listener), place, agent, caller, _stop: stop }
    }

    async fn fetch(&mut self, audience: &[&str], id: &str) -> Result<String, Status> {
        let audience = audience.iter().map(|one| (*one).to_owned()).collect();
        let request = asking(JwtsvidRequest { audience, spiffe_id: id.to_owned() });
        let answer = self.caller.x509.fetch_jwtsvid(request).await?.into_inner();
        let [svid] = answer.svids.as_slice() else { panic!("{answer:?}") };
        assert_eq!((svid.spiffe_id.as_str(), svid.hint.as_str()), (ID, ""));
        Ok(svid.svid.clone())
    }

    async fn validate(&mut self, token: &str, audience: &str) -> Result<String, Status> {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.caller.x509.validate_jwtsvid(asking(request)).await?.into_inner();
        assert_eq!(answer.spiffe_id, ID);
        Ok(format!("{:?}", answer.claims.unwrap().fields["nested"]))
    }

    /// Lets time pass in which the SVID is renewed.
    async fn renews(&mut self, time: Duration) {
        let before = self.agent.current().unwrap();
        self.place.clock.advance(time);
        self.agent.renewed(&before).await;
    }

    fn asked(&self) -> u64 {
        self.ca.tokens.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_again_at_half_its_life() {
    let mut scene = Scene::new().await;
    let first = scene.fetch(&[AUDIENCE], "").await.unwrap();
    let claims = scene.validate(&first, AUDIENCE).await.unwrap();
    assert!(claims.contains("BoolValue(true)") && claims.contains("NumberValue(1.0)"), "{claims}");
    assert_eq!(scene.fetch(&[AUDIENCE], ID).await.unwrap(), first);
    assert_eq!(scene.asked(), 1);
    let both = scene.fetch(&[AUDIENCE, "a"], "").await.unwrap();
    assert_ne!(both, first);
    assert_eq!(scene.fetch(&["a", AUDIENCE, "a"], "").await.unwrap(), both, "the same audiences");
    assert_eq!(scene.asked(), 2);

    // SVIDs live for less than tokens here, so one is renewed meanwhile: a token is not bound to it.
    for _ in 0..5 {
        scene.renews(TTL / 2).await;
    }
    assert_eq!(scene.fetch(&[AUDIENCE], "").await.unwrap(), first);
    scene.renews(TOKEN / 2 - TTL * 5 / 2).await;
    let second = scene.fetch(&[AUDIENCE], "").await.unwrap();
    assert_ne!(second, first);

    // Past half of its life an old one is better than none, as long as it lasts.
    for _ in 0..5 {
        scene.renews(TTL / 2).await;
    }
    scene.renews(TOKEN / 2 - TTL * 5 / 2).await;
    *scene.ca.refuse.lock() = Some(Status::unavailable("no store"));
    assert_eq!(scene.fetch(&[AUDIENCE], "").await.unwrap(), second);
    assert_eq!(scene.fetch(&["new"], "").await.unwrap_err().code(), Code::Unavailable);
    // A refusal is not that: who is denied does not go on with what was kept.
    *scene.ca.refuse.lock() = Some(Status::permission_denied("denied"));
    assert_eq!(scene.fetch(&["new"], "").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(scene.fetch(&[AUDIENCE], "").await.unwrap_err().code(), Code::PermissionDenied);
    scene.listener = None;
    assert_eq!(scene.fetch(&[AUDIENCE], "").await.unwrap(), second);
}

/// A control plane may close the connection of who is denied instead of answering, which looks like one that is away.
#[tokio::test]
async fn who_is_denied_gets_nothing_that_was_kept() {
    let mut scene = Scene::new().await;
    scene.fetch(&[AUDIENCE], "").await.unwrap();
    scene.ca.bundle.send_modify(|bundle| {
        bundle.sequence += 1;
        bundle.revocations.get_or_insert_default().denied_id.push(ID.to_owned());
    });
    let begun = std::time::Instant::now();
    let refused = loop {
        match scene.fetch(&[AUDIENCE], "").await {
            Err(refused) => break refused,
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20), "a kept token is given out"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains(ID), "{refused}");
    scene.listener = None;
    assert_eq!(scene.fetch(&[AUDIENCE], "").await.unwrap_err().code(), Code::PermissionDenied);
}

/// A workload that asks for ever new audiences costs the sidecar no more memory for it.
#[tokio::test]
async fn so_many_tokens_are_kept_and_no_more() {
    const KEPT: usize = 256;
    let mut scene = Scene::new().await;
    let first = scene.fetch(&["0"], "").await.unwrap();
    scene.place.clock.advance(Duration::from_secs(1));
    for other in 1..KEPT {
        scene.fetch(&[&other.to_string()], "").await.unwrap();
    }
    assert_eq!(scene.fetch(&["0"], "").await.unwrap(), first, "all of them are kept");
    assert_eq!(scene.asked(), KEPT as u64);
    // One more drives out the one that ends first, and that alone.
    scene.fetch(&["more"], "").await.unwrap();
    scene.fetch(&["255"], "").await.unwrap();
    assert_eq!(scene.asked(), KEPT as u64 + 1);
    scene.fetch(&["0"], "").await.unwrap();
    assert_eq!(scene.asked(), KEPT as u64 + 2);
}

#[tokio::test]
async fn a_key_that_leaves_the_bundle_takes_its_tokens_along() {
    let mut scene = Scene::new().await;
    let mut bundles =
        scene.caller.x509.fetch_jwt_bundles(asking(Default::default())).await.unwrap().into_inner();
    let keys = |message: caller::spiffe::JwtBundlesResponse| {
        assert_eq!(message.bundles.len(), 1);
        String::from_utf8(message.bundles["spiffe://demo.postern"].clone()).unwrap()
    };
    let first = scene.ca.jwt.lock().jwks();
    assert_eq!(keys(bundles.message().await.unwrap().unwrap()), first);
    let token = scene.fetch(&[AUDIENCE], "").await.unwrap();

    let signer = Signer::new("second");
    let second = signer.jwks();
    *scene.ca.jwt.lock() = signer;
    // A root more is no news here.
    scene.ca.push(4, Some(Ca::new(clock()).root_der.clone()));
    scene.ca.bundle.send_modify(|bundle| {
        bundle.sequence = 5;
        bundle.jwt_keys = second.clone().into_bytes();
    });
    assert_eq!(keys(bundles.message().await.unwrap().unwrap()), second);
    assert_eq!(scene.validate(&token, AUDIENCE).await.unwrap_err().code(), Code::InvalidArgument);
    let other = scene.fetch(&[AUDIENCE], "").await.unwrap();
    assert_ne!(other, token, "what was kept is not given out");
    scene.validate(&other, AUDIENCE).await.unwrap();

    // A restart knows them without the control plane; and one sequence has one content.
    scene.ca.bundle.send_modify(|bundle| bundle.jwt_keys = first.clone().into_bytes());
    let state = std::fs::read_to_string(scene.place.state("bundle.pem")).unwrap();
    assert!(state.contains(&format!("jwt-keys: {second}\n")), "{state}");
    eventually("it is refused", || {
        scene
            .agent
            .observer
            .status()
            .last_stream_error
            .is_some_and(|error| error.contains("revocations or JWT keys"))
    })
    .await;
    scene.validate(&other, AUDIENCE).await.unwrap();
}

#[tokio::test]
async fn what_is_refused_at_the_socket() {
    let mut scene = Scene::new().await;
    let token = scene.fetch(&[AUDIENCE], "").await.unwrap();
    for (audience, id, code) in [
        (&[][..], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (&[AUDIENCE], "spiffe://demo.postern/ns/shop/sa/other", Code::PermissionDenied),
    ] {
        assert_eq!(scene.fetch(audience, id).await.unwrap_err().code(), code, "{audience:?} {id}");
    }
    assert_eq!(scene.asked(), 1, "the control plane was not asked for these");
    let other = Signer::new("first");
    let forged = other.sign(&json!({"sub": ID, "aud": AUDIENCE, "exp": 4_000_000_000_u64}));
    for (token, audience) in [
        (token.as_str(), "others"),
        (token.as_str(), ""),
        (forged.as_str(), AUDIENCE),
        ("", AUDIENCE),
        ("a.b.c", AUDIENCE),
    ] {
        assert_eq!(scene.validate(token, audience).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // An answer that no peer would take, or of another's: the workload does not see it.
    *scene.ca.other_id.lock() = Some("spiffe://demo.postern/ns/shop/sa/other".to_owned());
    assert_eq!(scene.fetch(&["b"], "").await.unwrap_err().code(), Code::Unavailable);
    *scene.ca.other_id.lock() = None;
    *scene.ca.jwt.lock() = Signer::new("unknown");
    assert_eq!(scene.fetch(&["b"], "").await.unwrap_err().code(), Code::Unavailable);
    *scene.ca.refuse.lock() = Some(Status::unimplemented("no `jwt`"));
    assert_eq!(scene.fetch(&["b"], "").await.unwrap_err().code(), Code::Unimplemented);

    // Without any key there is no bundle to stream.
    scene.ca.bundle.send_modify(|bundle| {
        bundle.sequence = 9;
        bundle.jwt_keys = Vec::new();
    });
    eventually("the bundle lands", || scene.agent.observer.status().bundle_sequence == Some(9)).await;
    let refused = scene.caller.x509.fetch_jwt_bundles(asking(Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(scene.validate(&token, AUDIENCE).await.unwrap_err().code(), Code::InvalidArgument);
}
