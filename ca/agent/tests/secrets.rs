//! Secret discovery over a real socket: what an Envoy says and gets, message by message.
#![allow(clippy::unwrap_used, reason = "tests")]

mod caller;
mod control;
mod place;

use std::sync::Arc;
use std::time::Duration;

use caller::sds::secret::Type;
use caller::sds::{DiscoveryRequest, DiscoveryResponse, Secret, data_source::Specifier};
use caller::{Caller, SECRET, endpoint, sds, secrets};
use control::{Ca, TTL};
use place::{CONTROL, ID, Place, clock};
use postern_agent::workload::{Counts, Door};
use postern_svid::{Svid, TrustDomain};
use prost::Message as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

const ROOTS: &str = "spiffe://demo.postern";

fn bytes(source: Option<sds::DataSource>) -> Vec<u8> {
    let Some(Specifier::InlineBytes(bytes)) = source.and_then(|source| source.specifier) else {
        panic!("none")
    };
    bytes
}

fn opened(response: &DiscoveryResponse) -> Vec<Secret> {
    let open = |any: &prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        Secret::decode(&any.value[..]).unwrap()
    };
    response.resources.iter().map(open).collect()
}

/// The SVID of a secret, chain and key as they belong together.
fn svid(secret: &Secret) -> Svid {
    let Some(Type::TlsCertificate(certificate)) = secret.r#type.clone() else { panic!("{secret:?}") };
    let chain = bytes(certificate.certificate_chain);
    let chain = CertificateDer::pem_slice_iter(&chain).map(|one| one.unwrap().into_owned()).collect();
    let key = bytes(certificate.private_key);
    Svid::from_pkcs8(chain, PrivatePkcs8KeyDer::from_pem_slice(&key).unwrap().secret_pkcs8_der()).unwrap()
}

struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(caller: &mut Caller, names: &[&str]) -> Self {
        let (requests, queue) = mpsc::channel(8);
        requests.send(secrets(names, "")).await.unwrap();
        let responses = caller.sds.stream_secrets(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = tokio::time::timeout(Duration::from_secs(10), self.responses.message());
        next.await.expect("in time").unwrap().expect("the stream is open")
    }

    async fn silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.responses.message()).await.is_err()
    }
}

#[tokio::test]
async fn an_envoy_follows_renewals_acknowledges_and_refuses() {
    let ca = Ca::new(clock());
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let place = Place::new(&ca, listener.address);
    let agent = place.run();
    let first = agent.identity().await;
    let endpoint = endpoint(place.directory.path());
    let counts = Arc::new(Counts::default());
    let door = Door::bind(endpoint.clone(), counts.clone()).unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(door.serve(agent.observer.clone(), stopped));
    let mut caller = Caller::connect(&endpoint.socket).await;

    let mut own = Stream::open(&mut caller, &["default"]).await;
    let mut roots = Stream::open(&mut caller, &["ROOTCA", "ALL"]).await;
    let response = own.next().await;
    let secret = &opened(&response)[0];
    assert_eq!((secret.name.as_str(), svid(secret).serial()), ("default", first.svid.serial()));
    assert_eq!(response.type_url, SECRET);

    let told = opened(&roots.next().await);
    let [all, root] = &told[..] else { panic!("{told:?}") };
    assert_eq!((all.name.as_str(), root.name.as_str()), ("ALL", "ROOTCA"));
    let Some(Type::ValidationContext(root)) = root.r#type.clone() else { panic!("{root:?}") };
    assert_eq!(String::from_utf8(bytes(root.trusted_ca)).unwrap(), ca.root_pem());
    let Some(Type::ValidationContext(all)) = all.r#type.clone() else { panic!("{all:?}") };
    let validator = all.custom_validator_config.unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = sds::SpiffeCertValidatorConfig::decode(&validator.typed_config.unwrap().value[..]).unwrap();
    let trusted: Vec<_> =
        config.trust_domains.into_iter().map(|one| (one.name, bytes(one.trust_bundle))).collect();
    assert_eq!(
        trusted,
        [(TrustDomain::parse("demo.postern").unwrap().to_string(), ca.root_pem().into_bytes())]
    );

    // An ACK brings nothing; a renewal does, to those whom it concerns.
    let mut ack = secrets(&["default"], &response.nonce);
    ack.version_info.clone_from(&response.version_info);
    own.requests.send(ack).await.unwrap();
    assert!(own.silent().await);
    place.clock.advance(TTL / 2);
    let second = agent.renewed(&first).await;
    let renewed = own.next().await;
    assert_eq!(svid(&opened(&renewed)[0]).serial(), second.svid.serial());
    assert_ne!((&renewed.nonce, &renewed.version_info), (&response.nonce, &response.version_info));
    assert!(roots.silent().await);

    // What is refused is not sent again; what comes after it is.
    let mut refusal = secrets(&["default"], &renewed.nonce);
    refusal.version_info = response.version_info;
    refusal.error_detail = Some(sds::Status { code: 13, message: "the key does not match".to_owned() });
    own.requests.send(refusal).await.unwrap();
    assert!(own.silent().await);
    assert_eq!(counts.with_result("refused_by_client"), 1);
    place.clock.advance(TTL / 2);
    let third = agent.renewed(&second).await;
    let response = own.next().await;
    assert_eq!(svid(&opened(&response)[0]).serial(), third.svid.serial());

    // Names change on an open stream; an unknown one ends it and is told which there are.
    own.requests.send(secrets(&[ID, ROOTS], &response.nonce)).await.unwrap();
    let response = own.next().await;
    let names: Vec<String> = opened(&response).into_iter().map(|secret| secret.name).collect();
    assert_eq!(names, [ROOTS, ID]);
    own.requests.send(secrets(&["spiffe://demo.postern/ns/shop/sa/web"], &response.nonce)).await.unwrap();
    let status = own.responses.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for name in ["sa/web", "default", ID, "ROOTCA", "ALL", ROOTS] {
        assert!(status.message().contains(name), "{name}: {status}");
    }

    let mut once = secrets(&[], "");
    let response = caller.sds.fetch_secrets(once.clone()).await.unwrap().into_inner();
    let names: Vec<String> = opened(&response).into_iter().map(|secret| secret.name).collect();
    assert_eq!(names, [ID, ROOTS]);
    once.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    assert_eq!(caller.sds.fetch_secrets(once).await.unwrap_err().code(), Code::InvalidArgument);
}
