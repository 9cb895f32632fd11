//! A control plane for the agent's tests: a real CA behind the real API over real TLS, with switches for trouble.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod jwt;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use postern_svid::{Bundle, Bundles, Clock, Svid, TestClock, TrustDomain, tls};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service as _;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]
pub(crate) mod api {
    include!(concat!(env!("OUT_DIR"), "/test-server/postern.identity.v1.rs"));
}

use api::identity_server::{Identity, IdentityServer};

/// Life of the SVIDs: everything in the agent is a fraction of it, so tests of a second see it all.
pub(crate) const TTL: Duration = Duration::from_secs(10);

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) peer: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) predecessor: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    /// What was issued for it.
    pub(crate) serial: Vec<u8>,
}

/// The CA and what it saw; listeners come and go.
pub(crate) struct Ca {
    pub(crate) clock: TestClock,
    pub(crate) td: TrustDomain,
    root: CertificateParams,
    root_key: KeyPair,
    pub(crate) root_der: CertificateDer<'static>,
    issuing: CertificateParams,
    issuing_key: KeyPair,
    issuing_der: CertificateDer<'static>,
    serial: AtomicU64,
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) reports: Mutex<Vec<api::Report>>,
    pub(crate) bundle: watch::Sender<api::Bundle>,
    /// Each change is a wish that everybody renew now.
    pub(crate) hurry: watch::Sender<u32>,
    /// Requests are taken and not answered.
    pub(crate) keep_answers: AtomicBool,
    /// Answers name this id instead.
    pub(crate) other_id: Mutex<Option<String>>,
    /// Answers hold an SVID that has just ended.
    pub(crate) stale: AtomicBool,
    /// Answers have this refusal instead.
    pub(crate) refuse: Mutex<Option<Status>>,
    /// It has been restored, and knows nobody until somebody shows this token.
    pub(crate) forgotten: Mutex<Option<String>>,
    /// Life of the next SVIDs.
    pub(crate) ttl: Mutex<Duration>,
    /// Requests that arrived.
    pub(crate) received: AtomicU64,
    /// Streams that were opened.
    pub(crate) streams: AtomicU64,
    /// Bundles of other trust domains.
    pub(crate) federation: watch::Sender<api::Federation>,
    /// What signs tokens.
    pub(crate) jwt: Mutex<jwt::Signer>,
    /// Tokens that were asked for.
    pub(crate) tokens: AtomicU64,
}

impl Ca {
    pub(crate) fn new(clock: TestClock) -> Arc<Self> {
        let td = TrustDomain::parse("demo.postern").unwrap();
        let mut root = authority(&td, "root", 1);
        root.not_before = date(clock.wall() - Duration::from_secs(86_400));
        root.not_after = date(clock.wall() + Duration::from_secs(86_400 * 365));
        let root_key = KeyPair::generate().unwrap();
        let root_der = root.self_signed(&root_key).unwrap().der().clone();
        let mut issuing = authority(&td, "issuing", 0);
        issuing.use_authority_key_identifier_extension = true;
        issuing.not_before = root.not_before;
        issuing.not_after = date(clock.wall() + Duration::from_secs(86_400 * 7));
        let issuing_key = KeyPair::generate().unwrap();
        let issuing_der =
            issuing.signed_by(&issuing_key, &Issuer::from_params(&root, &root_key)).unwrap().der().clone();
        let jwt = jwt::Signer::new("first");
        let bundle = watch::Sender::new(api::Bundle {
            trust_domain: td.as_str().to_owned(),
            sequence: 3,
            root_der: vec![root_der.to_vec()],
            refresh_hint_seconds: 300,
            revocations: None,
            jwt_keys: jwt.jwks().into_bytes(),
        });
        Arc::new(Self {
            clock,
            td,
            root,
            root_key,
            root_der,
            issuing,
            issuing_key,
            issuing_der,
            serial: AtomicU64::new(0x1000),
            seen: Mutex::default(),
            reports: Mutex::default(),
            bundle,
            hurry: watch::Sender::new(0),
            keep_answers: AtomicBool::new(false),
            other_id: Mutex::new(None),
            stale: AtomicBool::new(false),
            refuse: Mutex::new(None),
            forgotten: Mutex::new(None),
            ttl: Mutex::new(TTL),
            received: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            federation: watch::Sender::new(api::Federation::default()),
            jwt: Mutex::new(jwt),
            tokens: AtomicU64::new(0),
        })
    }

    pub(crate) fn root_sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &self.root_der).as_ref());
        hash
    }

    pub(crate) fn root_pem(&self) -> String {
        Bundle::new(self.td.clone(), 0, vec![self.root_der.clone()]).unwrap().to_pem()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(crate) fn last_report(&self) -> Option<api::Report> {
        self.reports.lock().last().cloned()
    }

    /// Puts another bundle on the streams.
    pub(crate) fn push(&self, sequence: u64, extra_root: Option<CertificateDer<'static>>) {
        let mut root_der = vec![self.root_der.to_vec()];
        root_der.extend(extra_root.map(|root| root.to_vec()));
        self.bundle.send_modify(|bundle| {
            bundle.sequence = sequence;
            bundle.root_der = root_der;
        });
    }

    /// A listener that presents an SVID of `id`, with the root in its chain.
    pub(crate) async fn listen(self: &Arc<Self>, id: &str, address: &str) -> Listener {
        let key = KeyPair::generate().unwrap();
        let mut leaf = leaf(id, self.clock.wall(), Duration::from_secs(86_400));
        leaf.serial_number = Some(SerialNumber::from_slice(&[1, 1]));
        let issuer = Issuer::from_params(&self.issuing, &self.issuing_key);
        let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
        let chain = vec![leaf, self.issuing_der.clone(), self.root_der.clone()];
        let svid = Svid::from_pkcs8(chain, key.serialized_der()).unwrap();
        let bundles = Bundles::of(Bundle::new(self.td.clone(), 1, vec![self.root_der.clone()]).unwrap());
        let clock = Arc::new(self.clock.clone());
        let config = tls::server_config_optional_client(&svid, &bundles, clock, &[b"h2"]).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(accept(self.clone(), listener, TlsAcceptor::from(config)));
        Listener { address, task }
    }

    fn issue(&self, id: &str, public_key: &impl PublicKeyData) -> (CertificateDer<'static>, Vec<u8>) {
        let serial = self.serial.fetch_add(1, Ordering::SeqCst).to_be_bytes()[6..].to_vec();
        let age =
            if self.stale.load(Ordering::SeqCst) { TTL + Duration::from_secs(1) } else { Duration::ZERO };
        let mut params = leaf(id, self.clock.wall() - age, *self.ttl.lock());
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let issuer = Issuer::from_params(&self.issuing, &self.issuing_key);
        (params.signed_by(public_key, &issuer).unwrap().der().clone(), serial)
    }
}

/// Gone, with all its connections, when dropped.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(ca: Arc<Ca>, listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (ca, tls) = (ca.clone(), tls.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let peer = tls::peer(stream.get_ref().1.peer_certificates()).ok();
            let peer = Peer(peer.map(|peer| peer.id().to_string()));
            let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
                ca.received.fetch_add(1, Ordering::SeqCst);
                request.extensions_mut().insert(peer.clone());
                IdentityServer::new(Api(ca.clone())).call(request)
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Clone)]
struct Peer(Option<String>);

struct Api(Arc<Ca>);

#[tonic::async_trait]
impl Identity for Api {
    async fn issue(
        &self,
        request: Request<api::IssueRequest>,
    ) -> Result<Response<api::IssueResponse>, Status> {
        let ca = &self.0;
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
        let request = request.into_inner();
        use api::issue_request::Proof;
        let token = request.proof.map(|proof| match proof {
            Proof::JoinToken(token) => token,
            Proof::KubernetesToken(token) => format!("kubernetes {token}"),
            Proof::OidcToken(token) => format!("oidc {token}"),
            Proof::PeerProcess(_) => "process".to_owned(),
            Proof::X509pop(shown) => format!("x509pop {}", shown.scheme),
        });
        let csr = CertificateSigningRequestDer::from(request.csr_der);
        let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let id = ca.other_id.lock().clone().unwrap_or(request.spiffe_id);
        let (leaf, serial) = ca.issue(&id, &csr.public_key);
        ca.seen.lock().push(Seen {
            peer,
            token: token.clone(),
            predecessor: request.predecessor_serial,
            public_key: csr.public_key.der_bytes().to_vec(),
            serial,
        });
        if let Some(status) = ca.refuse.lock().clone() {
            return Err(status);
        }
        {
            let mut forgotten = ca.forgotten.lock();
            if forgotten.is_some() && *forgotten != token {
                return Err(Status::unauthenticated("a certificate that this store never issued"));
            }
            *forgotten = None;
        }
        while ca.keep_answers.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let now = millis(ca.clock.wall());
        Ok(Response::new(api::IssueResponse {
            chain_der: vec![leaf.to_vec(), ca.issuing_der.to_vec()],
            bundle: Some(ca.bundle.borrow().clone()),
            renew_after_unix_ms: now + i64::try_from(ca.ttl.lock().as_millis()).unwrap() / 2,
            ca_time_unix_ms: now + 7,
        }))
    }

    async fn issue_jwt(
        &self,
        request: Request<api::IssueJwtRequest>,
    ) -> Result<Response<api::IssueJwtResponse>, Status> {
        let ca = &self.0;
        ca.tokens.fetch_add(1, Ordering::SeqCst);
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
        let peer = peer.ok_or_else(|| Status::unauthenticated("no SVID"))?;
        if let Some(status) = ca.refuse.lock().clone() {
            return Err(status);
        }
        let id = ca.other_id.lock().clone().unwrap_or(peer);
        let (token, expires_unix_ms) = ca.token(&id, &request.into_inner().audience);
        let ca_time_unix_ms = millis(ca.clock.wall());
        Ok(Response::new(api::IssueJwtResponse { token, expires_unix_ms, ca_time_unix_ms }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<api::Directive, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<api::Report>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if request.extensions().get::<Peer>().and_then(|peer| peer.0.clone()).is_none() {
            return Err(Status::unauthenticated("no SVID"));
        }
        if self.0.forgotten.lock().is_some() {
            return Err(Status::unauthenticated("this CA does not know the connection's certificate"));
        }
        self.0.streams.fetch_add(1, Ordering::SeqCst);
        let mut reports = request.into_inner();
        let ca = self.0.clone();
        tokio::spawn(async move {
            while let Some(Ok(report)) = reports.next().await {
                ca.reports.lock().push(report);
            }
        });
        let bundles = tokio_stream::wrappers::WatchStream::new(self.0.bundle.subscribe());
        let bundles = bundles.map(api::directive::Directive::Bundle);
        let hurry = tokio_stream::wrappers::WatchStream::from_changes(self.0.hurry.subscribe());
        let hurry = hurry.map(|_| api::directive::Directive::RenewNow(api::RenewNow { spread_ms: 200 }));
        let federations = tokio_stream::wrappers::WatchStream::new(self.0.federation.subscribe());
        let federations = federations.map(api::directive::Directive::Federation);
        let directives = bundles
            .merge(hurry)
            .merge(federations)
            .map(|directive| Ok(api::Directive { directive: Some(directive) }));
        Ok(Response::new(Box::pin(directives)))
    }
}

fn authority(td: &TrustDomain, kind: &str, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{kind} {:?}", std::time::Instant::now()));
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(td.id()).unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(id: &str, now: SystemTime, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id).unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date(now - Duration::from_secs(1));
    params.not_after = date(now + ttl);
    params
}

fn date(time: SystemTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(millis(time) / 1_000).unwrap()
}

pub(crate) fn millis(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
