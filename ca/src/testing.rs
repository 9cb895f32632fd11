//! A CA in a temporary directory, with a clock to move.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_svid::{Clock, PeerSvid, SpiffeId, TestClock, TrustDomain, tls};
use prometheus_client::registry::Registry;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::authority::{Authority, AuthorityError, Lives};
use crate::issue::{IssueError, Issuer, LeafPolicy, Proof, Reply, Request};
use crate::keys::{self, KeyFiles, KeyStore, Source};
use crate::metrics::Metrics;
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

/// A directory that a CA lives in, while the CA comes and goes.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: TestClock,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: TestClock::at(start()) }
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
        let dir = tempfile::tempdir().unwrap();
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
        let store = self.store(name).unwrap();
        let keys: Arc<dyn KeyStore> = Arc::new(ReplicaKeys::new(self.keys(name), self.shared.clone()));
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
