//! Where every connection and every stream can be found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_policy::{Changes, Generation};
use slab::Slab;
use tokio::sync::{Notify, watch};

use super::{Connection, Direction, Entry, Peer};
use crate::config::Config;
use crate::sidecar::Sidecar;
use crate::trust::{self, Issuers};

/// Everything that lives in this sidecar.
#[derive(Debug, Default)]
pub struct Registry {
    pub(super) streams: Mutex<Slab<Arc<Entry>>>,
    connections: Mutex<Slab<Arc<Connection>>>,
    next: AtomicU64,
    /// The issuing CAs that peers have shown.
    pub issuers: Issuers,
    /// Says that the trust bundle in force lost a root.
    pub trust_changed: watch::Sender<()>,
}

/// A connection's place in the registry.
#[derive(Debug)]
pub struct Registered {
    sidecar: Arc<Sidecar>,
    connection: Arc<Connection>,
    key: usize,
}

impl Registered {
    /// Registers a connection, and holds the trust bundle in force against its peer.
    pub fn open(sidecar: &Arc<Sidecar>, direction: Direction, peer: Peer) -> Self {
        let connection = Arc::new(Connection {
            id: sidecar.registry.next.fetch_add(1, Ordering::Relaxed) + 1,
            direction,
            peer,
            since: sidecar.clock.wall(),
            resolved: Mutex::new(None),
            is_distrusted: AtomicBool::new(false),
            distrusted: Notify::new(),
        });
        let key = sidecar.registry.connections.lock().insert(Arc::clone(&connection));
        trust::check(sidecar, &connection);
        Self { sidecar: Arc::clone(sidecar), connection, key }
    }

    /// What is registered.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sidecar.registry.connections.lock().remove(self.key);
    }
}

impl Registry {
    /// All connections now.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.connections.lock().iter().map(|(_, connection)| Arc::clone(connection)).collect()
    }

    /// All streams now.
    pub fn streams(&self) -> Vec<Arc<Entry>> {
        self.streams.lock().iter().map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// Whether a peer of this id, at this address, has proven a certificate that is valid past `now`. Then it can
    /// renew, and what it opened before may go on.
    pub fn has_newer(&self, than: &Connection, now: SystemTime) -> bool {
        self.connections.lock().iter().any(|(_, other)| {
            other.direction == Direction::Inbound
                && other.peer.identity == than.peer.identity
                && other.peer.address.ip() == than.peer.address.ip()
                && other.peer.not_after.is_some_and(|not_after| not_after > now)
        })
    }

    /// Revokes every stream, requests younger than `young` excepted. Returns how many.
    pub fn revoke_all(&self, young: Duration) -> usize {
        let old = self.streams().into_iter().filter(|entry| !entry.is_young(young));
        old.map(|entry| entry.revoke()).count()
    }

    /// Whether a token of some stream ended between two moments.
    pub fn has_token_ended(&self, from: SystemTime, to: SystemTime) -> bool {
        self.streams.lock().iter().any(|(_, entry)| entry.facts.has_token_ended(from, to))
    }

    /// Asks `generation` again about every stream and revokes what lost permission, requests younger than `young`
    /// excepted. Returns how many it revoked.
    pub fn rejudge(
        &self,
        generation: &Generation,
        config: &Config,
        young: Duration,
        now: SystemTime,
    ) -> usize {
        self.rejudge_concerned(&Changes::everything(), generation, config, young, now)
    }

    /// The same, but asks only about streams that `changes` may concern; all others keep what they have.
    pub fn rejudge_concerned(
        &self,
        changes: &Changes,
        generation: &Generation,
        config: &Config,
        young: Duration,
        now: SystemTime,
    ) -> usize {
        if changes.are_none() {
            return 0;
        }
        let mut revoked = 0;
        for entry in self.streams() {
            if entry.is_young(young) || !entry.may_be_concerned(changes, generation, config, now) {
                continue;
            }
            let is_allowed = match entry.connection.direction {
                // A rule without ports allows every port, but reaches none that no other rule names.
                Direction::Inbound => {
                    config.reaches(Some(generation), entry.facts.port)
                        && entry.facts.is_judged_as_forwarded(generation)
                        && entry.connection.judge(generation, &entry.facts, now).is_allowed()
                }
                Direction::Outbound => {
                    !entry.has_lost_its_way(generation, &config.namespace)
                        && entry.may_go_out(generation, config)
                }
            };
            if !is_allowed {
                entry.revoke();
                revoked += 1;
            }
        }
        revoked
    }
}
