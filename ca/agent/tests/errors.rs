//! What a person is told when the control plane cannot be reached, or refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::sync::Arc;

use control::Ca;
use place::{CONTROL, ID, Place, clock, eventually};
use postern_agent::{Trust, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

async fn last_error(place: &Place) -> String {
    let agent = place.run();
    eventually("a failure", || agent.observer.status().failures > 0).await;
    agent.observer.status().last_error.unwrap()
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_named() {
    let ca = Ca::new(clock());
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = last_error(&Place::new(&ca, address)).await;
    assert!(error.contains(&format!("at {address}: ")), "{error}");
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_told_as_that() {
    let ca = Ca::new(clock());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = last_error(&Place::new(&ca, address)).await;
    for part in [&format!("{address} does not speak TLS"), "24150", "health"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_refused_token_is_named_with_its_file_the_id_and_the_way_out() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let file = place.directory.path().join("token").display().to_string();
    for refusal in [tonic::Status::permission_denied("no"), tonic::Status::unauthenticated("no")] {
        *ca.refuse.lock() = Some(refusal);
        eventually("the lock is free", || place.start().is_ok()).await;
        let error = last_error(&place).await;
        for part in [&file, ID, &format!("postern ca token create --id {ID}")] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[tokio::test]
async fn a_trust_bundle_is_refused_by_its_file_and_its_key() {
    let ca = Ca::new(clock());
    let mut place = Place::new(&ca, "127.0.0.1:1".parse().unwrap());
    let error =
        |place: &Place| start(place.config.clone(), Arc::new(place.clock.clone())).err().unwrap().to_string();
    let bundle = place.directory.path().join("bundle.pem").display().to_string();
    place.config.identity = postern_svid::SpiffeId::parse("spiffe://other.example/ns/a/sa/b").unwrap();
    place.config.control_plane_id =
        postern_svid::SpiffeId::parse("spiffe://other.example/postern/control").unwrap();
    let foreign = error(&place);
    for part in [&bundle, "controlPlane.trustBundle", "trust domain demo.postern, not of other.example"] {
        assert!(foreign.contains(part), "{part}: {foreign}");
    }
    place.config.trust = Trust::Bundle("/nonexistent/bundle.pem".into());
    let missing = error(&place);
    for part in ["/nonexistent/bundle.pem", "controlPlane.trustBundle", "state directory"] {
        assert!(missing.contains(part), "{part}: {missing}");
    }
}
