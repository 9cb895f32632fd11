//! The registry of what lives: connections, and the streams on them.
//!
//! A stream is registered first and judged second. A policy change publishes its snapshot first and walks the registry
//! second. So whichever comes first, no stream escapes both.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use postern_policy::{Call, Changes, Endpoint, Generation, Refused, Source, Stage, Verdict};
use postern_svid::SpiffeId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admission::Admitted;
use crate::config::Config;
use crate::decisions::{DecisionId, Subject};
use crate::error::Reason;
use crate::sidecar::Sidecar;
use crate::trust::Proof;

mod facts;
mod registry;

pub use facts::{Asked, Facts, Operation};
pub use registry::{Registered, Registry};

/// Which way a connection runs, seen from the workload.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(usize)]
pub enum Direction {
    /// Somebody calls the workload.
    Inbound,
    /// The workload calls somebody.
    Outbound,
}

impl Direction {
    /// Its word in logs, metrics and the admin endpoint.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Who is at the other end of an accepted connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The proven id; none for the own workload.
    pub identity: Option<SpiffeId>,
    /// Where it connects from.
    pub address: SocketAddr,
    /// The own address that it reached; none towards the own workload.
    pub local: Option<IpAddr>,
    /// Serial number of its certificate, in hexadecimal.
    pub serial: Option<String>,
    /// When that certificate ends.
    pub not_after: Option<SystemTime>,
    /// What proved it; none for the own workload.
    pub proof: Option<Proof>,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Its number in this sidecar's life.
    pub id: u64,
    /// Which way it runs.
    pub direction: Direction,
    /// Who is there.
    pub peer: Peer,
    /// When it was accepted.
    pub since: SystemTime,
    /// What the policy engine resolved about the peer, for one generation.
    resolved: Mutex<Option<Arc<postern_policy::Connection>>>,
    /// Whether nothing vouches for the peer any more.
    is_distrusted: AtomicBool,
    /// Has a permit from then on.
    distrusted: Notify,
}

impl Connection {
    /// The peer as the policy engine wants to know it.
    pub fn source(&self) -> Source<'_> {
        Source { identity: self.peer.identity.as_ref(), address: self.peer.address.ip() }
    }

    /// Judges one stream of this connection. What is certain about every stream is answered from the connection stage;
    /// only what that defers costs a look at the stream itself.
    pub fn judge(&self, generation: &Generation, facts: &Facts, now: SystemTime) -> Verdict {
        let resolved = self.resolved(generation);
        match resolved.stage() {
            Stage::Allow(verdict) | Stage::Deny(verdict) => verdict,
            Stage::Defer => generation.decide(&resolved, facts.port, facts.policy_operation(now)),
        }
    }

    /// Asks the rate limits about a stream that is allowed.
    pub fn admit(
        &self,
        generation: &Generation,
        facts: &Facts,
        wall: SystemTime,
        now: Duration,
    ) -> Option<Refused> {
        // Most workloads have none.
        generation.limits().next()?;
        let resolved = self.resolved(generation);
        generation.admit(&resolved, self.source(), facts.port, facts.policy_operation(wall), now)
    }

    /// Whether nothing at all can be allowed here, whatever a stream may turn out to be.
    pub fn is_denied_everything(&self, generation: &Generation) -> bool {
        matches!(self.resolved(generation).stage(), Stage::Deny(_))
    }

    /// Withdraws trust in the peer: whoever serves the connection closes it at once. Returns whether it had any before.
    pub fn distrust(&self) -> bool {
        let is_first = !self.is_distrusted.swap(true, Ordering::Relaxed);
        if is_first {
            self.distrusted.notify_one();
        }
        is_first
    }

    /// Resolves once trust in the peer is withdrawn, for the one who serves the connection.
    pub async fn distrusted(&self) {
        self.distrusted.notified().await;
    }

    /// The peer resolved for `generation`; resolved again when the generation is another.
    fn resolved(&self, generation: &Generation) -> Arc<postern_policy::Connection> {
        let mut resolved = self.resolved.lock();
        match resolved.as_ref() {
            Some(known) if known.generation() == generation.number() => Arc::clone(known),
            _ => {
                let fresh = Arc::new(generation.connection(self.source()));
                *resolved = Some(Arc::clone(&fresh));
                fresh
            }
        }
    }
}

/// One registered stream, as the registry and the decision log see it.
#[derive(Debug)]
pub struct Entry {
    /// The connection that it runs on.
    pub connection: Arc<Connection>,
    /// What it does.
    pub facts: Facts,
    /// When it began.
    pub since: Instant,
    /// Shared with the decision log, which remembers it longer than this lives.
    status: Arc<AtomicU16>,
    response_bytes: AtomicU64,
    /// Outbound: the endpoint that was asked last.
    endpoint: Mutex<Option<Endpoint>>,
    revoked: AtomicBool,
    waker: AtomicWaker,
    /// The decision that the log of decisions has about it.
    logged: OnceLock<DecisionId>,
}

impl Entry {
    /// Notes that the log of decisions has this one, and will want to know its end.
    pub fn is_logged_as(&self, id: DecisionId) {
        let _ = self.logged.set(id);
    }

    /// The decision that the log has, of one that was allowed.
    pub fn logged(&self) -> Option<DecisionId> {
        self.logged.get().copied()
    }

    /// The status answered so far; 0 for none yet.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }

    /// What the decision log keeps of this.
    pub fn subject(&self) -> Subject {
        let Connection { direction, peer, .. } = &*self.connection;
        Subject::new(*direction, peer, &self.facts, Arc::clone(&self.status))
    }

    /// Bytes of the response's body so far.
    pub fn response_bytes(&self) -> u64 {
        self.response_bytes.load(Ordering::Relaxed)
    }

    /// Whether this is a request that began less than `age` ago.
    fn is_young(&self, age: Duration) -> bool {
        matches!(self.facts.operation, Operation::Http { .. }) && self.since.elapsed() < age
    }

    /// Whether the stream may be judged otherwise after `changes`, which led to `generation`.
    fn may_be_concerned(
        &self,
        changes: &Changes,
        generation: &Generation,
        config: &Config,
        now: SystemTime,
    ) -> bool {
        let facts = &self.facts;
        match self.connection.direction {
            Direction::Inbound => {
                changes.may_concern(self.connection.source(), facts.port, facts.policy_operation(now))
            }
            Direction::Outbound => {
                changes.concern_every_call()
                    || self.as_call(generation, config, |call| changes.may_concern_call(call)).unwrap_or(true)
            }
        }
    }

    /// Notes which endpoint is asked. To be held against the documents only afterwards, by `has_lost_its_way`.
    pub fn asks(&self, endpoint: &Endpoint) {
        *self.endpoint.lock() = Some(endpoint.clone());
    }

    /// Outbound: whether the documents no longer lead where this stream runs: its service is gone or outside of the mesh
    /// now, or its endpoint must prove another identity. An endpoint that is merely no longer listed is leaving, and what
    /// runs there may end.
    pub fn has_lost_its_way(&self, generation: &Generation, namespace: &str) -> bool {
        let Some(Asked { host, port, external, addresses: _ }) = &self.facts.asked else { return false };
        let found = generation.services().find(host, *port, namespace);
        let Some(port) = found.filter(|port| port.external == *external) else { return true };
        let used = self.endpoint.lock();
        let Some(used) = used.as_ref() else { return false };
        let at_address =
            |listed: &&Endpoint| listed.address == used.address && listed.mesh_port == used.mesh_port;
        port.endpoints.iter().find(at_address).is_some_and(|listed| listed != used)
    }

    /// Outbound: what the rules say to this call. `None`: none is asked, and it may go on.
    pub fn judge_egress(&self, generation: &Generation, config: &Config) -> Option<Verdict> {
        if !generation.judges_egress(self.facts.asked.as_ref()?.external) {
            return None;
        }
        self.as_call(generation, config, |call| generation.decide_egress(call))
    }

    /// Outbound: hands the call to `ask` as rules know it. `None`: no Service of `generation` is what it asks for.
    fn as_call<T>(
        &self,
        generation: &Generation,
        config: &Config,
        ask: impl FnOnce(&Call<'_>) -> T,
    ) -> Option<T> {
        let Asked { host, port, external: _, addresses } = self.facts.asked.as_ref()?;
        let port = generation.services().find(host, *port, &config.namespace)?;
        // What runs somewhere runs there, whatever other places there were.
        let dialled = self.endpoint.lock().as_ref().map(|endpoint| [endpoint.address]);
        let addresses = dialled.as_ref().map_or(addresses.as_slice(), |dialled| dialled);
        let own = config.own_addresses();
        // The tokens of a call out are unknown at all times: nobody reads them.
        let operation = self.facts.policy_operation(SystemTime::UNIX_EPOCH);
        Some(ask(&Call { port, host, addresses, own: &own, operation }))
    }

    /// Outbound: whether the documents still let this call go out.
    pub fn may_go_out(&self, generation: &Generation, config: &Config) -> bool {
        // A raw path may have gone on while no rule about calls out spoke of paths.
        let is_forwarded_as_judged = match &self.facts.operation {
            Operation::Http { path, .. } => generation.check_path_out(path).is_ok(),
            Operation::Tcp | Operation::Tls { .. } => true,
        };
        is_forwarded_as_judged
            && self.judge_egress(generation, config).is_none_or(|verdict| verdict.is_allowed())
    }

    /// Whether permission is withdrawn.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Ready once permission is withdrawn. One task at a time may wait.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_revoked() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.is_revoked() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Withdraws permission: whoever carries the stream resets it.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// In order.
    Complete,
    /// Broken, by whom the reason says.
    Failed(Reason),
    /// Permission was withdrawn.
    Revoked,
}

/// A stream's place in the registry: it leaves when this is dropped.
#[derive(Debug)]
pub struct Stream {
    sidecar: Arc<Sidecar>,
    entry: Arc<Entry>,
    key: usize,
    ended: bool,
    admitted: Option<Admitted>,
}

impl Stream {
    /// Registers a stream. To be judged only afterwards.
    pub fn open(sidecar: &Arc<Sidecar>, connection: &Arc<Connection>, facts: Facts) -> Self {
        let entry = Arc::new(Entry {
            connection: Arc::clone(connection),
            facts,
            since: Instant::now(),
            status: Arc::default(),
            response_bytes: AtomicU64::new(0),
            endpoint: Mutex::new(None),
            revoked: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            logged: OnceLock::new(),
        });
        let key = sidecar.registry.streams.lock().insert(Arc::clone(&entry));
        sidecar.metrics.streams_active[connection.direction as usize].inc();
        Self { sidecar: Arc::clone(sidecar), entry, key, ended: false, admitted: None }
    }

    /// What is registered.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Keeps a place among the requests in flight until the stream ends.
    pub fn hold(&mut self, admitted: Admitted) {
        self.admitted = Some(admitted);
    }

    /// Ready once permission is withdrawn. One task at a time may wait.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.entry.poll_revoked(cx)
    }

    /// Notes the status that was answered.
    pub fn answered(&self, status: u16) {
        self.entry.status.store(status, Ordering::Relaxed);
    }

    /// Notes bytes of the response.
    pub fn count_response_bytes(&self, count: usize) {
        self.entry.response_bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Accounts for the end.
    pub fn finish(mut self, end: End) {
        self.account(end);
    }

    /// Takes a stream back that nothing was done for, as if it had never been registered.
    pub fn withdraw(mut self) {
        self.ended = true;
    }

    fn account(&mut self, end: End) {
        if !std::mem::replace(&mut self.ended, true) {
            self.sidecar.stream_ended(&self.entry, end);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.account(End::Failed(Reason::Canceled));
        self.sidecar.registry.streams.lock().remove(self.key);
        self.sidecar.metrics.streams_active[self.entry.connection.direction as usize].dec();
    }
}
