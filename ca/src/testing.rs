//! A CA in a temporary directory, with a clock to move.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_svid::{Clock, PeerSvid, SpiffeId, TestClock, TrustDomain, tls};
use prometheus_client::registry::Registry;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::authority::{
    Authority, AuthorityError, ImportError, ImportedTier, Lives, TierRequest, import_root, import_tier,
    request_tier,
};
use crate::issue::{IssueError, Issuer, LeafPolicy, Proof, Reply, Request};
use crate::keys::{self, KeyFiles, KeyStore, Seal, Source};
use crate::metrics::Metrics;
use crate::offline::{OfflineError, OfflineRoot, pem};
use crate::store::shared::Memory;
use crate::store::{ReplicaKeys, Replicated, Sqlite, Store, StoreError};
use crate::token::{Token, TokenRecord};

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// 2026-11-22.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_305_600)
}

pub(crate) fn td() -> TrustDomain {
    TrustDomain::parse("demo.postern").unwrap()
}

pub(crate) fn id(name: &str) -> SpiffeId {
    SpiffeId::service_account(&td(), "shop", name).unwrap()
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

/// A temporary directory, in memory where that can be had: no power fails here, and a disk's syncs are most of what these tests would
/// wait for.
pub(crate) fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A directory that a CA lives in, while the CA comes and goes.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: TestClock,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: dir(), clock: TestClock::at(start()) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn store(&self) -> Arc<Sqlite> {
        Arc::new(Sqlite::open(&self.path(), &td()).unwrap())
    }

    /// As the control plane opens it, with segments of so many bytes.
    pub(crate) fn store_with_ledger(&self, segment: u64) -> Result<Arc<Sqlite>, StoreError> {
        // The database's opening makes it elsewhere.
        crate::keys::private_dir(&self.path()).unwrap();
        let keys = KeyFiles::new(&self.path());
        let metrics = Metrics::new(&mut Registry::default());
        Sqlite::open_with_ledger(&self.path(), &td(), &keys, metrics, segment, self.clock.wall())
            .map(Arc::new)
    }

    /// After a leap of its clock, an operator's word that the time is right.
    pub(crate) fn confirm_clock(&self, store: &Sqlite) {
        let words = crate::store::Reason::parse("looked at three other clocks").unwrap();
        store.confirm_clock(self.clock.wall(), words).unwrap();
    }

    pub(crate) fn authority(&self, store: Arc<Sqlite>) -> Result<Authority, AuthorityError> {
        let keys = Arc::new(KeyFiles::new(&self.path()));
        Authority::open(td(), store, keys, Arc::new(self.clock.clone()), Lives::with_leaf(HOUR))
    }

    pub(crate) fn ca(&self) -> Ca {
        self.ca_on(self.store())
    }

    pub(crate) fn ca_on(&self, store: Arc<Sqlite>) -> Ca {
        let authority = Arc::new(self.authority(store.clone()).unwrap());
        let metrics = Metrics::new(&mut Registry::default());
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let clock = Arc::new(self.clock.clone());
        let issuer = Issuer::new(authority.clone(), store.clone(), clock, policy, metrics.clone()).unwrap();
        Ca { store, authority, issuer, metrics, clock: self.clock.clone() }
    }
}

/// An offline root in a directory of its own, that signs what a home asks for.
pub(crate) struct Vault {
    pub(crate) dir: tempfile::TempDir,
    source: Source,
}

impl Vault {
    pub(crate) fn new(now: SystemTime) -> Self {
        let dir = dir();
        let secret = dir.path().join("secret");
        crate::keys::write_private(&secret, "0123456789abcdef".repeat(4).as_bytes()).unwrap();
        let vault = Self { dir, source: Source::KeyFile(secret) };
        OfflineRoot::create(&td(), &vault.path(), vault.seal(), now).unwrap();
        vault
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.path().join(crate::offline::CERTIFICATE)
    }

    pub(crate) fn seal(&self) -> Seal {
        Seal::read(&self.source).unwrap()
    }

    pub(crate) fn open(&self, now: SystemTime) -> Result<OfflineRoot, OfflineError> {
        OfflineRoot::open(&self.path(), self.seal(), now)
    }

    /// The file with the certificate for a request.
    pub(crate) fn sign(&self, request: &TierRequest, days: u32, now: SystemTime) -> PathBuf {
        let file = self.dir.path().join(format!("{}.csr", request.label));
        std::fs::write(&file, pem("CERTIFICATE REQUEST", &request.csr)).unwrap();
        let mut root = self.open(now).unwrap();
        let asked = root.read(&file).unwrap();
        let signed = root.sign(&asked, days, now).unwrap();
        let file = file.with_extension("pem");
        std::fs::write(&file, pem("CERTIFICATE", &signed.certificate)).unwrap();
        file
    }
}

impl Home {
    /// The CA's certificate of the offline root comes here.
    pub(crate) fn import_root(&self, vault: &Vault) -> Result<crate::store::Authority, ImportError> {
        let imported = import_root(&td(), self.store().as_ref(), &vault.certificate(), self.clock.wall());
        imported.map(|(row, _)| row)
    }

    pub(crate) fn request_tier(&self, another: bool) -> TierRequest {
        let keys = KeyFiles::new(&self.path());
        request_tier(&td(), self.store().as_ref(), &keys, another, self.clock.wall()).unwrap()
    }

    pub(crate) fn import_tier(
        &self,
        file: &std::path::Path,
        spare: bool,
    ) -> Result<ImportedTier, ImportError> {
        let keys = KeyFiles::new(&self.path());
        import_tier(&td(), self.store().as_ref(), &keys, file, spare, self.clock.wall())
    }

    /// A tier of the vault's, from request to import.
    pub(crate) fn tier(&self, vault: &Vault, spare: bool) -> ImportedTier {
        let request = self.request_tier(true);
        self.import_tier(&vault.sign(&request, 365, self.clock.wall()), spare).unwrap()
    }

    /// The certificate of the CA with this label.
    pub(crate) fn certificate_of(&self, label: &str) -> rustls_pki_types::CertificateDer<'static> {
        let rows = self.store().authorities().unwrap();
        rows.into_iter().find(|row| row.label == label).unwrap().certificate.into()
    }

    /// A home whose CA has an offline root.
    pub(crate) fn offline() -> (Self, Vault) {
        let home = Self::new();
        let vault = Vault::new(home.clock.wall());
        home.import_root(&vault).unwrap();
        home.tier(&vault, false);
        (home, vault)
    }
}

pub(crate) struct Ca {
    pub(crate) store: Arc<Sqlite>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) issuer: Issuer,
    pub(crate) metrics: Metrics,
    pub(crate) clock: TestClock,
}

impl Ca {
    /// A token for ten minutes.
    pub(crate) fn token(&self, id: &SpiffeId) -> String {
        let token = Token::random().unwrap();
        let now = self.clock.wall();
        let expires = now + Duration::from_secs(600);
        let hash = token.hash();
        self.store
            .add_token(TokenRecord { hash, id: id.clone(), created: now, expires, bound: None })
            .unwrap();
        token.reveal().to_owned()
    }

    pub(crate) fn join(&self, id: &SpiffeId, token: &str, key: &KeyPair) -> Result<Reply, IssueError> {
        self.issuer.issue(Request {
            csr: &csr(key),
            id: id.as_str(),
            ttl_seconds: 0,
            predecessor: &[],
            proof: Proof::JoinToken(token),
        })
    }

    pub(crate) fn renew(&self, peer: &PeerSvid, key: &KeyPair) -> Result<Reply, IssueError> {
        self.issuer.issue(Request {
            csr: &csr(key),
            id: peer.id().as_str(),
            ttl_seconds: 0,
            predecessor: peer.serial(),
            proof: Proof::Svid(peer),
        })
    }

    /// A first certificate, as its holder's connection would show it.
    pub(crate) fn joined(&self, id: &SpiffeId) -> PeerSvid {
        peer(&self.join(id, &self.token(id), &key()).unwrap())
    }
}

/// Replicas that share one store, and a clock.
pub(crate) struct Mesh {
    pub(crate) clock: TestClock,
    pub(crate) shared: Arc<Memory>,
    dir: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let clock = TestClock::at(start());
        let shared = Arc::new(Memory::new(Arc::new(clock.clone())));
        let dir = dir();
        keys::write_private(&dir.path().join("seal"), "0123456789abcdef".repeat(4).as_bytes()).unwrap();
        Self { clock, shared, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn keys(&self, name: &str) -> Arc<dyn KeyStore> {
        keys::private_dir(&self.path(name)).unwrap();
        let seal = Source::KeyFile(self.dir.path().join("seal"));
        Arc::from(keys::open(&self.path(name), Some(&seal)).unwrap())
    }

    pub(crate) fn store(&self, name: &str) -> Result<Arc<Replicated>, StoreError> {
        self.store_at(name, name)
    }

    /// The replica `name` on another's directory.
    pub(crate) fn store_at(&self, name: &str, place: &str) -> Result<Arc<Replicated>, StoreError> {
        let keys = self.keys(place);
        let metrics = Metrics::new(&mut Registry::default());
        let (path, now) = (self.path(place), self.clock.wall());
        let local =
            Sqlite::open_with_ledger(&path, &td(), keys.as_ref(), metrics.clone(), 1 << 20, now).unwrap();
        let (clock, shared) = (Arc::new(self.clock.clone()), self.shared.clone());
        Replicated::open(name, Arc::new(local), shared, keys, td(), clock, metrics).map(Arc::new)
    }

    pub(crate) fn replica(&self, name: &str) -> Replica {
        self.replica_at(name, name)
    }

    pub(crate) fn replica_at(&self, name: &str, place: &str) -> Replica {
        let store = self.store_at(name, place).unwrap();
        let keys: Arc<dyn KeyStore> = Arc::new(ReplicaKeys::new(self.keys(place), self.shared.clone()));
        let clock = Arc::new(self.clock.clone());
        let lives = Lives::with_leaf(HOUR);
        let authority = Authority::open(td(), store.clone(), keys.clone(), clock.clone(), lives).unwrap();
        let authority = Arc::new(authority);
        let metrics = Metrics::new(&mut Registry::default());
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let issuer = Issuer::new(authority.clone(), store.clone(), clock, policy, metrics).unwrap();
        Replica { store, authority, issuer, keys, clock: self.clock.clone() }
    }

    /// Two of them, the first of which has handed the lease over to the second.
    pub(crate) fn two(&self) -> (Replica, Replica) {
        let a = self.replica("a");
        // As its own thread does when another wants it.
        a.store.resign();
        let b = self.replica("b");
        a.follow();
        (a, b)
    }
}

/// A replica that runs.
pub(crate) struct Replica {
    pub(crate) store: Arc<Replicated>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) issuer: Issuer,
    pub(crate) keys: Arc<dyn KeyStore>,
    clock: TestClock,
}

impl Replica {
    /// As the control plane does all the time.
    pub(crate) fn follow(&self) {
        self.store.follow(Duration::ZERO).unwrap();
        self.authority.follow().unwrap();
    }

    pub(crate) fn token(&self, id: &SpiffeId) -> String {
        let token = Token::random().unwrap();
        let now = self.clock.wall();
        let (hash, expires) = (token.hash(), now + Duration::from_secs(600));
        self.store
            .add_token(TokenRecord { hash, id: id.clone(), created: now, expires, bound: None })
            .unwrap();
        token.reveal().to_owned()
    }

    pub(crate) fn join(&self, id: &SpiffeId, token: &str, key: &KeyPair) -> Result<Reply, IssueError> {
        self.issuer.issue(Request {
            csr: &csr(key),
            id: id.as_str(),
            ttl_seconds: 0,
            predecessor: &[],
            proof: Proof::JoinToken(token),
        })
    }

    pub(crate) fn renew(&self, peer: &PeerSvid, key: &KeyPair) -> Result<Reply, IssueError> {
        self.issuer.issue(Request {
            csr: &csr(key),
            id: peer.id().as_str(),
            ttl_seconds: 0,
            predecessor: peer.serial(),
            proof: Proof::Svid(peer),
        })
    }

    pub(crate) fn joined(&self, id: &SpiffeId) -> PeerSvid {
        peer(&self.join(id, &self.token(id), &key()).unwrap())
    }
}

pub(crate) fn peer(reply: &Reply) -> PeerSvid {
    tls::peer(Some(&reply.chain)).unwrap()
}
