//! What happened, and what of it must never happen.
//!
//! Workloads, callers and the driver write here; each entry is held against the invariants at once. The lines are what two
//! runs of one seed are compared by, so nothing stands in them that differs between runs, such as a serial number.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use postern_proxy::sidecar::Sidecar;
use postern_svid::Revoked;
use tokio::sync::Notify;

use crate::policy::{Call, FILE, NAMES, PATHS, Version, id};

/// How long a request that was allowed when it was judged may still be on its way to the workload, and how long a stream
/// may live on after the version that denies it is in force: docs/policy.md promises a second.
const BEHIND_MS: u64 = 1_000;
/// The longest that a sidecar takes for a request, with the limits of [`crate::mesh`]: two attempts of connecting and
/// handshaking (6 s each), a PING and its answer (6 s), and a slow caller's or a slow workload's own 5 s.
pub(crate) const DEADLINE_MS: u64 = 23_000;

/// How a request ended for its caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// With this status.
    Status(u16),
    /// The sidecar did not accept.
    Refused,
    /// Before the answer was whole.
    Cut,
    /// With more than one answer, or one that is none.
    Odd,
}

/// A request that a caller makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) number: u32,
    pub(crate) call: Call,
    /// Parts of the body, each 250 ms after the one before.
    pub(crate) parts: u32,
    /// How long the workload thinks before it answers.
    pub(crate) thinks_ms: u64,
}

struct Request {
    order: Order,
    began_ms: u64,
    ended: Option<Outcome>,
    arrived: u32,
    /// Its host has crashed, and its caller with it.
    is_lost: bool,
}

/// A pod as it is seen from outside.
#[derive(Default)]
pub(crate) struct Pod {
    pub(crate) sidecar: Weak<Sidecar>,
    pub(crate) orders: VecDeque<Order>,
    /// Says that there are orders.
    pub(crate) came: Arc<Notify>,
    /// Versions in force, each from its time on.
    versions: Vec<(u64, Option<u32>)>,
    /// The number of the generation in force.
    generation: Option<u64>,
    /// The generation of the identity in force, and the sequence of its bundle.
    pub(crate) identity: Option<(u64, u64)>,
    pub(crate) not_after: Option<SystemTime>,
    /// Since when the bundle in force denies whom.
    denies: BTreeMap<usize, u64>,
}

/// The book of one simulation.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) now_ms: u64,
    pub(crate) lines: Vec<String>,
    pub(crate) broken: Vec<String>,
    pub(crate) versions: Vec<Version>,
    pub(crate) pods: [Pod; 3],
    requests: BTreeMap<u32, Request>,
    serials: BTreeMap<Vec<u8>, (usize, SystemTime)>,
    /// Requests that reached a workload, and answers by status: what the figures are made of.
    pub(crate) arrived: u64,
    statuses: BTreeMap<String, u64>,
    /// The longest life that the CA gives.
    ttl_s: u64,
    /// A workload that nobody may hear of from this time on, nor it of anybody.
    pub(crate) silenced: Option<(usize, u64)>,
}

impl Book {
    /// An empty one, for certificates that live so long.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl_s: ttl.as_secs(), ..Self::default() }
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.lines.push(format!("{:>6} {text}", self.now_ms));
    }

    /// Something that must never happen did.
    pub(crate) fn broke(&mut self, invariant: u8, what: &str) {
        self.line(&format!("INVARIANT {invariant}: {what}"));
        self.broken.push(format!("invariant {invariant} at {} ms: {what}", self.now_ms));
    }

    pub(crate) fn order(&mut self, order: Order) {
        let request = Request { order, began_ms: self.now_ms, ended: None, arrived: 0, is_lost: false };
        self.requests.insert(order.number, request);
        let Call { from, to, path, .. } = order.call;
        let (method, path) = (order.call.method(), PATHS[path]);
        self.line(&format!("#{} {}>{} {method} {path}", order.number, NAMES[from], NAMES[to]));
        self.pods[from].orders.push_back(order);
        self.pods[from].came.notify_one();
    }

    pub(crate) fn ended(&mut self, number: u32, outcome: Outcome) {
        self.line(&format!("#{number} ended {outcome:?}"));
        *self.statuses.entry(format!("{outcome:?}")).or_default() += 1;
        let Some(request) = self.requests.get_mut(&number) else { return };
        let (before, took) = (request.ended.replace(outcome), self.now_ms - request.began_ms);
        if before.is_some() {
            self.broke(4, &format!("#{number} ended twice"));
        }
        if outcome == Outcome::Odd {
            self.broke(4, &format!("#{number} was answered with something else than one answer"));
        }
        if took > DEADLINE_MS {
            self.broke(4, &format!("#{number} took {took} ms"));
        }
    }

    /// How a request ended; `None` while it runs.
    pub(crate) fn outcome(&self, number: u32) -> Option<Outcome> {
        let request = self.requests.get(&number)?;
        if request.is_lost { Some(Outcome::Cut) } else { request.ended }
    }

    /// Whether no caller waits any more.
    pub(crate) fn have_all_ended(&self) -> bool {
        self.requests.values().all(|request| request.ended.is_some() || request.is_lost)
    }

    /// A workload reads the head of a request, or with `bytes` a part of its body.
    pub(crate) fn arrived(
        &mut self,
        at: usize,
        number: u32,
        told: Option<&str>,
        seen: (&str, &str),
        bytes: usize,
    ) {
        let Some(request) = self.requests.get_mut(&number) else {
            return self.broke(1, &format!("{} was given a request that nobody made", NAMES[at]));
        };
        let call = request.order.call;
        if bytes == 0 {
            request.arrived += 1;
            let arrived = request.arrived;
            self.arrived += 1;
            // What may not be sent twice is sent twice at most if the first time is proven never to have arrived.
            if arrived > if call.post { 1 } else { 2 } {
                self.broke(4, &format!("#{number} arrived {arrived} times"));
            }
        }
        self.line(&format!("#{number} at {} {bytes}", NAMES[at]));
        let is_same = seen == (call.method(), PATHS[call.path]) && at == call.to;
        if !is_same || told != Some(&*id(NAMES[call.from])) {
            self.broke(1, &format!("#{number} arrived at {} as {seen:?} of {told:?}", NAMES[at]));
        }
        self.may_arrive(at, number, &call);
    }

    /// Invariants 1 and 6 for one arrival.
    fn may_arrive(&mut self, at: usize, number: u32, call: &Call) {
        let since = self.now_ms.saturating_sub(BEHIND_MS);
        let pod = &self.pods[at];
        // The last one that began before, and all that came since.
        let last = pod.versions.iter().rposition(|(from, _)| *from <= since).unwrap_or(0);
        let lately = pod.versions[last..].iter().filter_map(|(_, version)| *version);
        let allowed = lately.into_iter().any(|version| self.version(version).allows(call));
        let denied = pod.denies.get(&call.from).is_some_and(|from| *from < since);
        if !allowed {
            let versions = format!("{:?}", &pod.versions[last..]);
            self.broke(1, &format!("#{number} {call:?} reached {}, denied by {versions}", NAMES[at]));
        }
        if let Some((pod, from)) = self.silenced
            && (pod == call.from || pod == call.to)
            && self.now_ms > from
        {
            let what = if pod == call.from { "of" } else { "for" };
            self.broke(
                6,
                &format!("#{number} {what} {} was heard, which is denied for too long for that", NAMES[pod]),
            );
        }
        if denied {
            self.broke(
                6,
                &format!("#{number} of {} reached {}, whose bundle denies it", NAMES[call.from], NAMES[at]),
            );
        }
    }

    pub(crate) fn version(&self, number: u32) -> &Version {
        let at = usize::try_from(number).expect("versions are few");
        &self.versions[at]
    }

    /// The version in force at a pod.
    pub(crate) fn in_force(&self, pod: usize) -> Option<u32> {
        self.pods[pod].versions.last().and_then(|(_, version)| *version)
    }

    /// A pod's process is gone, with all its callers.
    pub(crate) fn crashed(&mut self, pod: usize) {
        let (now, name) = (self.now_ms, NAMES[pod]);
        self.line(&format!("{name} crashes"));
        let seen = &mut self.pods[pod];
        *seen = Pod { versions: std::mem::take(&mut seen.versions), ..Pod::default() };
        seen.versions.push((now, None));
        for request in self.requests.values_mut().filter(|request| request.order.call.from == pod) {
            request.is_lost |= request.ended.is_none();
        }
    }

    /// Looks at what is in force at every pod, and for requests that do not end.
    pub(crate) fn look(&mut self) {
        for pod in 0..self.pods.len() {
            if let Some(sidecar) = self.pods[pod].sidecar.upgrade() {
                self.look_at(pod, &sidecar);
            }
        }
        if self.now_ms.is_multiple_of(500) {
            self.look_for_endless();
        }
    }

    fn look_for_endless(&mut self) {
        let latest = self.now_ms.saturating_sub(DEADLINE_MS);
        let is_endless = |one: &&mut Request| one.ended.is_none() && !one.is_lost && one.began_ms < latest;
        let mut endless = Vec::new();
        for request in self.requests.values_mut().filter(is_endless) {
            request.is_lost = true;
            endless.push(request.order.number);
        }
        for number in endless {
            self.broke(4, &format!("#{number} does not end"));
        }
    }

    fn look_at(&mut self, pod: usize, sidecar: &Sidecar) {
        let (snapshot, name, now) = (sidecar.snapshots.load(), NAMES[pod], self.now_ms);
        let generation = snapshot.policy.as_ref().map(|policy| policy.number());
        if generation != self.pods[pod].generation {
            let version = generation.and_then(|number| version_of(sidecar, number));
            self.pods[pod].generation = generation;
            self.pods[pod].versions.push((now, version));
            self.line(&format!("{name} acknowledges version {version:?}"));
        }
        let Some(mesh) = &snapshot.identity else { return };
        let identity = &mesh.identity;
        let trust_domain = identity.svid.id().trust_domain();
        let Some(bundle) = identity.bundles.of_trust_domain(&trust_domain) else {
            return self.broke(3, &format!("{name} has an identity without a bundle"));
        };
        let found = Some((identity.generation, bundle.sequence()));
        if found == self.pods[pod].identity {
            return;
        }
        self.pods[pod].identity = found;
        self.line(&format!("{name} has identity {} and bundle {}", identity.generation, bundle.sequence()));
        self.pods[pod].denies = (0..NAMES.len())
            .filter(|of| {
                let id = id(NAMES[*of]).parse().map(Revoked::Id);
                id.is_ok_and(|id| bundle.revocations().contains(&id))
            })
            .map(|of| (of, self.pods[pod].denies.get(&of).copied().unwrap_or(now)))
            .collect();
        let (serial, not_after) = (identity.svid.serial().to_vec(), identity.svid.not_after());
        let life = not_after.duration_since(identity.svid.not_before()).unwrap_or_default().as_secs();
        self.pods[pod].not_after = Some(not_after);
        // A tenth of its life lies before its making, for clocks that are behind.
        if life > self.ttl_s + self.ttl_s / 10 + 1 {
            self.broke(3, &format!("{name} has a certificate of {life} s"));
        }
        let known = self.serials.entry(serial).or_insert((pod, not_after));
        if *known != (pod, not_after) {
            self.broke(3, &format!("{name} has a serial number that another certificate had"));
        }
    }
}

/// Which version a generation was loaded from.
fn version_of(sidecar: &Sidecar, generation: u64) -> Option<u32> {
    let history = sidecar.history.lock();
    let set = history.set(generation)?;
    let file = set.files.iter().find(|file| file.name.ends_with(FILE))?;
    Version::number_of(&file.text)
}
