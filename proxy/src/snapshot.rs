//! The world as one request sees it: policy, services, identity and limits, read once and consistent.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_agent::Identity;
use postern_policy::Generation;
use rustls::ServerConfig;

use crate::error::Reason;
use crate::limits::Limits;
use crate::observe::rules::RuleCounts;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Policy and services. None until a set was loaded: everything is denied then.
    pub policy: Option<Arc<Generation>>,
    /// Whether that is because the last set went unconfirmed for too long.
    pub is_stale: bool,
    /// How often each rule of that policy decided.
    pub rule_counts: RuleCounts,
    /// Certificate and trust. None until the first SVID.
    pub identity: Option<Arc<MeshIdentity>>,
    /// Limits and deadlines.
    pub limits: Arc<Limits>,
}

impl Snapshot {
    /// Why everything is denied while no policy is in force.
    pub fn without_policy(&self) -> Reason {
        if self.is_stale { Reason::PolicyStale } else { Reason::NoPolicy }
    }

    /// Whether both have the very same policy and services.
    pub fn has_policy_of(&self, other: &Self) -> bool {
        match (&self.policy, &other.policy) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
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
#[derive(Debug)]
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    publishing: Mutex<()>,
}

impl Snapshots {
    /// Nothing but limits is in force.
    pub fn new(limits: Limits) -> Self {
        let first = Snapshot { limits: Arc::new(limits), ..Snapshot::default() };
        Self { current: ArcSwap::from_pointee(first), publishing: Mutex::default() }
    }

    /// What is in force now.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The same, to be held for long: by a request for as long as it takes to be judged and sent.
    pub fn held(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The limits in force now.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.current.load().limits)
    }

    /// Changes one part and keeps the others. Publishers wait for each other, readers for nobody.
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let _publishing = self.publishing.lock();
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }
}
