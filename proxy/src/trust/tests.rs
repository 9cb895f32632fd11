use std::future::Future as _;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Waker};
use std::time::{Duration, UNIX_EPOCH};

use postern_agent::Identity;
use postern_policy::SourceFile;
use postern_svid::{Bundle, Clock as _, Svid, TestClock, tls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::*;
use crate::config::Config;
use crate::connections::{Peer, Registered};
use crate::snapshot::MeshIdentity;

const CONFIG: &str = r#"
identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /nonexistent
controlPlane:
  address: 127.0.0.1:24150
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /nonexistent
  joinToken: /nonexistent
workload: {address: 127.0.0.1, ports: [{port: 8080, protocol: http}]}
inbound: {address: "127.0.0.1:24143"}
outbound: {address: "127.0.0.1:24140"}
health: {address: "127.0.0.1:24191"}
admin: {socket: /nonexistent}
documents: /nonexistent
"#;

static CLOCK: LazyLock<TestClock> =
    LazyLock::new(|| TestClock::at(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));

fn sidecar() -> Arc<Sidecar> {
    let file = SourceFile { name: "sidecar.yaml".to_owned(), text: CONFIG.as_bytes().to_vec() };
    Arc::new(Sidecar::new(Config::parse(&file).unwrap(), Arc::new(CLOCK.clone()), 1))
}

struct Root {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

fn uri(text: &str) -> Vec<SanType> {
    vec![SanType::URI(text.try_into().unwrap())]
}

fn root(name: &str) -> Root {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = uri("spiffe://demo.postern");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Root { params, key, der }
}

impl Root {
    /// An SVID's chain, the root along, and its key.
    fn svid(&self, account: &str) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uri(&format!("spiffe://demo.postern/ns/shop/sa/{account}"));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let at = |seconds| time::OffsetDateTime::from(CLOCK.wall()) + time::Duration::seconds(seconds);
        (params.not_before, params.not_after) = (at(-60), at(3_600));
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        (vec![leaf.der().clone(), self.der.clone()], key)
    }
}

/// Puts an identity of `own` in force that trusts `roots`.
fn publish(sidecar: &Sidecar, generation: u64, own: &Root, roots: &[&Root]) -> Bundles {
    let (chain, key) = own.svid("orders");
    let svid = Arc::new(Svid::from_pkcs8(chain, &key.serialize_der()).unwrap());
    let roots = roots.iter().map(|root| root.der.clone()).collect();
    let bundles = Bundles::of(Bundle::new(svid.id().trust_domain(), generation, roots).unwrap());
    let server = tls::server_config(&svid, &bundles, Arc::new(CLOCK.clone()), &[b"h2"]).unwrap();
    let renew_after = svid.not_after();
    let identity = Arc::new(Identity { generation, svid, bundles: bundles.clone(), renew_after });
    sidecar
        .snapshots
        .publish(|snapshot| snapshot.identity = Some(Arc::new(MeshIdentity { identity, server })));
    bundles
}

fn peer(sidecar: &Sidecar, chain: &[CertificateDer<'static>], generation: u64) -> Peer {
    let svid = tls::peer(Some(chain)).unwrap();
    Peer {
        identity: Some(svid.id().clone()),
        address: ([127, 0, 0, 1], 1).into(),
        local: None,
        serial: None,
        not_after: Some(svid.not_after()),
        proof: Some(Proof::new(sidecar, Some(chain), Role::Client, generation).unwrap()),
    }
}

fn is_cut(connection: &Connection) -> bool {
    pin!(connection.distrusted()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn a_root_that_goes_takes_its_connections_and_no_others() {
    let (sidecar, ours, theirs) = (sidecar(), root("ours"), root("theirs"));
    let both = publish(&sidecar, 1, &ours, &[&ours, &theirs]);
    let chains = [ours.svid("web").0, theirs.svid("web").0, theirs.svid("store").0];
    let open = |chain: &Vec<_>| Registered::open(&sidecar, Direction::Inbound, peer(&sidecar, chain, 1));
    let registered: Vec<_> = chains.iter().chain(&chains).map(open).collect();
    let cut = || registered.iter().map(|one| is_cut(one.connection())).collect::<Vec<_>>();
    assert_eq!(check_all(&sidecar, &both), 0);
    assert_eq!(cut(), [false; 6]);
    let alone = publish(&sidecar, 2, &ours, &[&ours]);
    assert_eq!(check_all(&sidecar, &alone), 4);
    assert_eq!(cut(), [false, true, true, false, true, true]);
    let text = sidecar.metrics.render();
    assert!(text.contains("connections_distrusted_total{direction=\"inbound\"} 4"), "{text}");
    assert!(text.contains("connections_distrusted_total{direction=\"outbound\"} 0"), "{text}");
}

/// The walk comes between its handshake and its registration.
#[test]
fn a_connection_that_registers_after_the_walk_does_not_escape() {
    let (sidecar, ours, theirs) = (sidecar(), root("ours"), root("theirs"));
    publish(&sidecar, 1, &ours, &[&ours, &theirs]);
    let (good, bad) = (peer(&sidecar, &ours.svid("web").0, 1), peer(&sidecar, &theirs.svid("web").0, 1));
    let alone = publish(&sidecar, 2, &ours, &[&ours]);
    assert_eq!(check_all(&sidecar, &alone), 0);
    let good = Registered::open(&sidecar, Direction::Inbound, good);
    let bad = Registered::open(&sidecar, Direction::Inbound, bad);
    assert!(!is_cut(good.connection()));
    assert!(is_cut(bad.connection()));
    // The walk that finds it, too, does not count it again.
    assert_eq!(check_all(&sidecar, &alone), 0);
    let text = sidecar.metrics.render();
    assert!(text.contains("connections_distrusted_total{direction=\"inbound\"} 1"), "{text}");
}

#[test]
fn a_thousand_peers_share_their_issuing_ca() {
    let (sidecar, ours) = (sidecar(), root("ours"));
    let chain = ours.svid("web").0;
    let proof = || Proof::new(&sidecar, Some(&chain), Role::Client, 1).unwrap();
    let proofs: Vec<Proof> = (0..1_000).map(|_| proof()).collect();
    assert!(proofs.windows(2).all(|pair| Arc::ptr_eq(&pair[0].issuers, &pair[1].issuers)));
    assert_eq!(sidecar.registry.issuers.0.lock().len(), 1);
    // What nobody holds any more makes room for what comes.
    drop(proofs);
    for _ in 0..100 {
        let other = root("another").svid("web").0;
        drop(Proof::new(&sidecar, Some(&other), Role::Client, 1).unwrap());
    }
    assert!(sidecar.registry.issuers.0.lock().len() <= 2);
}
