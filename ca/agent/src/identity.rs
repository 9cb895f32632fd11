//! What the agent holds and publishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_svid::{Bundle, Bundles, Clock, Svid};
use tokio::sync::watch::{self, Receiver};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::federation::{self, Foreigners};
use crate::hurry::Hurry;
use crate::jwt::Tokens;
use crate::key::Key;
use crate::pace::Pace;
use crate::state::State;
use crate::status::{Progress, Status};

/// An SVID and the bundles to verify peers with, published together. It stays published after its SVID has expired:
/// whoever uses it must look at `svid.not_after()`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Counts from 1 within the process; each change of SVID or bundle is a new one.
    pub generation: u64,
    /// Chain and key.
    pub svid: Arc<Svid>,
    /// Roots by trust domain.
    pub bundles: Bundles,
    /// When the agent will renew.
    pub renew_after: SystemTime,
}

/// An identity with its private key, for the workload beside us.
pub(crate) struct Keyed {
    pub(crate) identity: Arc<Identity>,
    pub(crate) key: Key,
}

/// A view of an agent that runs elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct Observer(Arc<Live>);

impl Observer {
    pub(crate) const fn new(live: Arc<Live>) -> Self {
        Self(live)
    }

    /// The current identity and every later one; `None` until there is a first.
    pub fn identity(&self) -> Receiver<Option<Arc<Identity>>> {
        self.0.subscribe()
    }

    /// What the agent is at.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// As [`identity`](Self::identity), with the key.
    pub(crate) fn keyed(&self) -> Receiver<Option<Arc<Keyed>>> {
        self.0.keyed.subscribe()
    }

    pub(crate) fn live(&self) -> &Live {
        &self.0
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }
}

/// The agent's one state, shared by its loops.
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) state: Arc<State>,
    sender: watch::Sender<Option<Arc<Identity>>>,
    keyed: watch::Sender<Option<Arc<Keyed>>>,
    pub(crate) held: Mutex<Held>,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) hurry: Hurry,
    pub(crate) tokens: Tokens,
    /// The address of the control plane that answered last.
    place: AtomicUsize,
    /// One installation at a time: two must not interleave between check and publication.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
pub(crate) struct Held {
    pub(crate) bundle: Option<Arc<Bundle>>,
    /// Of other trust domains.
    pub(crate) foreigners: Foreigners,
    /// Sequence of the bundle in the state directory; behind `bundle` while the disk refuses.
    pub(crate) stored: Option<u64>,
    /// Of a request under way.
    pub(crate) pending: Option<Key>,
    pub(crate) generation: u64,
    /// The join token that came by a descriptor, or why none came.
    pub(crate) handed_over: Option<Result<Zeroizing<String>, String>>,
    /// The join token that the control plane has taken, or refused for good: nothing new can come of it.
    pub(crate) used_token: Option<Zeroizing<String>>,
}

impl Live {
    pub(crate) fn new(config: Config, clock: Arc<dyn Clock>, state: State) -> Self {
        Self {
            config,
            clock,
            state: Arc::new(state),
            sender: watch::Sender::new(None),
            keyed: watch::Sender::new(None),
            held: Mutex::default(),
            progress: Mutex::default(),
            hurry: Hurry::default(),
            tokens: Tokens::default(),
            place: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Which address of the control plane to try.
    pub(crate) fn place(&self) -> usize {
        self.place.load(Ordering::Relaxed) % self.config.places()
    }

    /// From now on the next one, unless another has changed it already.
    pub(crate) fn go_elsewhere(&self, from: usize) {
        let next = (from + 1) % self.config.places();
        let _ = self.place.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn subscribe(&self) -> Receiver<Option<Arc<Identity>>> {
        self.sender.subscribe()
    }

    pub(crate) fn current(&self) -> Option<Arc<Identity>> {
        self.sender.borrow().clone()
    }

    pub(crate) fn pace(&self) -> Pace {
        Pace::of(self.current().as_ref().map(|identity| &*identity.svid))
    }

    /// The SVID in force once more, with the bundle that is held by now.
    pub(crate) fn republish(&self) {
        let Some(current) = self.keyed.borrow().clone() else { return };
        let Identity { svid, renew_after, .. } = &*current.identity;
        self.publish(svid.clone(), current.key.clone(), *renew_after);
    }

    pub(crate) fn publish(&self, svid: Arc<Svid>, key: Key, renew_after: SystemTime) {
        let identity = {
            let mut held = self.held.lock();
            let Some(bundle) = held.bundle.clone().or_else(|| self.configured()) else { return };
            held.generation += 1;
            let bundles = federation::all(bundle, &held.foreigners);
            Identity { generation: held.generation, svid, bundles, renew_after }
        };
        let identity = Arc::new(identity);
        self.keyed.send_replace(Some(Arc::new(Keyed { identity: identity.clone(), key })));
        self.sender.send_replace(Some(identity));
    }
}
