//! A CA in a temporary directory, with a clock to move.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_svid::{Clock, PeerSvid, SpiffeId, TestClock, TrustDomain, tls};
use prometheus_client::registry::Registry;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::authority::{Authority, AuthorityError, Lives};
use crate::issue::{IssueError, Issuer, LeafPolicy, Proof, Reply, Request};
use crate::keys::KeyFiles;
use crate::metrics::Metrics;
use crate::store::{Sqlite, Store, StoreError};
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

pub(crate) fn peer(reply: &Reply) -> PeerSvid {
    tls::peer(Some(&reply.chain)).unwrap()
}
