//! The world as one request sees it: policy, services and identity, read once and consistent.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_agent::Identity;
use postern_policy::Generation;
use rustls::ServerConfig;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Policy and services. None until a set was loaded: everything is denied then.
    pub policy: Option<Arc<Generation>>,
    /// Certificate and trust. None until the first SVID.
    pub identity: Option<Arc<MeshIdentity>>,
}

/// The sidecar's identity, ready for handshakes.
#[derive(Debug)]
pub struct MeshIdentity {
    /// What the agent published.
    pub identity: Arc<Identity>,
    /// For the mesh listener.
    pub server: Arc<ServerConfig>,
}

/// The one place where a snapshot is replaced.
#[derive(Debug, Default)]
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    publishing: Mutex<()>,
}

impl Snapshots {
    /// What is in force now.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Changes one part and keeps the others. Publishers wait for each other, readers for nobody.
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let _publishing = self.publishing.lock();
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }
}
