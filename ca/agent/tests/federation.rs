//! Bundles of other trust domains: told, kept, taken back, and never our own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use control::{Ca, api};
use place::{CONTROL, Place, clock, eventually};
use postern_svid::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// A root that names no trust domain, and so may be anybody's.
fn root() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "another root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn bundle(name: &str, root: Vec<u8>) -> api::Bundle {
    api::Bundle { trust_domain: name.to_owned(), sequence: 7, root_der: vec![root], ..api::Bundle::default() }
}

#[tokio::test]
async fn other_trust_domains_come_and_go() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    agent.identity().await;
    let partner = TrustDomain::parse("partner.postern").unwrap();
    let roots = |identity: &postern_agent::Identity, td: &TrustDomain| {
        identity.bundles.of_trust_domain(td).map(|bundle| bundle.roots().to_vec())
    };
    // Ours among them, one that belongs to nobody, and one whose root names us: they are left out.
    let theirs = root();
    let told = vec![
        bundle("demo.postern", root()),
        bundle("Not A Name", root()),
        bundle("third.postern", ca.root_der.to_vec()),
        bundle("partner.postern", theirs.clone()),
    ];
    ca.federation.send_replace(api::Federation { bundles: told });
    let identity = agent
        .until(|held| held.as_ref().is_some_and(|held| held.bundles.of_trust_domain(&partner).is_some()))
        .await
        .unwrap();
    assert_eq!(roots(&identity, &partner).unwrap()[0].as_ref(), theirs);
    assert_eq!(roots(&identity, &ca.td).unwrap(), std::slice::from_ref(&ca.root_der), "nobody speaks for us");
    assert_eq!(identity.bundles.iter().count(), 2);

    // A restart without a control plane has them still; a renewal keeps them.
    eventually("it is stored", || place.state("federation.pb").exists()).await;
    agent.stop().await;
    drop(listener);
    let agent = place.run();
    let identity = agent.identity().await;
    assert!(roots(&identity, &partner).is_some());
    agent.stop().await;

    // Told no more, it is gone, on the disk too.
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let mut place = place;
    place.config.control_plane = listener.address.to_string();
    ca.federation.send_replace(api::Federation::default());
    let agent = place.run();
    agent.until(|held| held.as_ref().is_some_and(|held| held.bundles.iter().count() == 1)).await;
    eventually("it is stored", || {
        std::fs::read(place.state("federation.pb")).is_ok_and(|file| file.is_empty())
    })
    .await;
    agent.stop().await;

    // What cannot be read is nobody's bundle, and no reason not to start.
    place::private(&place.state("federation.pb"), "\u{1}\u{2}\u{3}");
    drop(listener);
    let agent = place.run();
    assert_eq!(agent.identity().await.bundles.iter().count(), 1);
}
