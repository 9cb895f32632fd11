//! The shared store of replicas in one process: for tests, which stop and cut off one replica or another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use postern_svid::Clock;

use super::{Change, Entry, Fence, Listing, MAX_ALL, Shared, SharedError, Swap, Write, check};

/// A shared store in memory. Leases end by its clock; [`Shared::wait`] waits by the machine's.
pub struct Memory {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (u64, Vec<u8>)>,
    /// When entries were taken out.
    gone: BTreeMap<String, u64>,
    leases: BTreeMap<String, Lease>,
    /// Why nobody is answered.
    away: Option<String>,
}

#[derive(Clone)]
struct Lease {
    fence: Fence,
    ends: Instant,
}

/// What a store held at one moment.
pub struct Snapshot(State);

impl Memory {
    /// An empty one.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default(), changed: Condvar::new() }
    }

    /// From now on every call fails as if the store could not be reached, or no longer does.
    pub fn set_away(&self, away: bool) {
        self.state.lock().away = away.then(|| "taken away".to_owned());
        self.changed.notify_all();
    }

    /// What it holds, to [`put back`](Self::put_back) later.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state.lock().clone())
    }

    /// Holds what it held then; leases end with it.
    pub fn put_back(&self, snapshot: &Snapshot) {
        let mut state = self.state.lock();
        *state = snapshot.0.clone();
        state.leases.clear();
        self.changed.notify_all();
    }

    fn open(&self) -> Result<parking_lot::MutexGuard<'_, State>, SharedError> {
        let state = self.state.lock();
        match &state.away {
            Some(why) => Err(SharedError::Unavailable(why.clone())),
            None => Ok(state),
        }
    }
}

impl State {
    fn revision_of(&self, prefix: &str) -> u64 {
        let there = self.entries.iter().map(|(key, (version, _))| (key, *version));
        let below = there.chain(self.gone.iter().map(|(key, version)| (key, *version)));
        below.filter(|(key, _)| key.starts_with(prefix)).map(|(_, version)| version).max().unwrap_or(0)
    }

    fn lease(&self, name: &str, now: Instant) -> Option<&Lease> {
        self.leases.get(name).filter(|lease| lease.ends > now)
    }
}

impl Shared for Memory {
    fn read(&self, prefix: &str) -> Result<Listing, SharedError> {
        let state = self.open()?;
        let below = state.entries.iter().filter(|(key, _)| key.starts_with(prefix));
        let entries = below.map(|(key, (version, value))| Entry {
            key: key.clone(),
            version: *version,
            value: value.clone(),
        });
        Ok(Listing { revision: state.revision, entries: entries.collect() })
    }

    fn swap(&self, changes: &[Change], fence: Option<&Fence>) -> Result<Swap, SharedError> {
        check(changes)?;
        let mut state = self.open()?;
        if let Some(fence) = fence {
            let lease = state.lease(&fence.name, self.clock.monotonic());
            if lease.is_none_or(|lease| lease.fence.token != fence.token) {
                return Ok(Swap::Fenced);
            }
        }
        let version = |key: &String| state.entries.get(key).map_or(0, |(version, _)| *version);
        if changes.iter().any(|change| version(&change.key) != change.expected) {
            return Ok(Swap::Conflict);
        }
        if changes.iter().all(|change| change.write == Write::Keep) {
            return Ok(Swap::Done(state.revision));
        }
        let mut next = state.entries.clone();
        let revision = state.revision + 1;
        for change in changes {
            match &change.write {
                Write::Put(value) => drop(next.insert(change.key.clone(), (revision, value.clone()))),
                Write::Delete => drop(next.remove(&change.key)),
                Write::Keep => {}
            }
        }
        let found = next.values().map(|(_, value)| value.len()).sum();
        if found > MAX_ALL {
            let key = changes[0].key.clone();
            return Err(SharedError::TooLarge { key, what: "in all values", found, most: MAX_ALL });
        }
        let gone: Vec<_> = changes.iter().filter(|one| one.write == Write::Delete).collect();
        state.gone.extend(gone.into_iter().map(|one| (one.key.clone(), revision)));
        state.entries = next;
        state.revision = revision;
        self.changed.notify_all();
        Ok(Swap::Done(revision))
    }

    fn wait(&self, prefix: &str, since: u64, timeout: Duration) -> Result<u64, SharedError> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut state = self.open()?;
            if state.revision < since || state.revision_of(prefix) > since {
                return Ok(state.revision);
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Ok(state.revision);
            }
        }
    }

    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<Fence>, SharedError> {
        let now = self.clock.monotonic();
        let mut state = self.open()?;
        if state.lease(name, now).is_some() {
            return Ok(None);
        }
        state.revision += 1;
        let token = state.revision;
        let fence = Fence { name: name.to_owned(), holder: holder.to_owned(), token, lease: 0, ttl };
        state.leases.insert(name.to_owned(), Lease { fence: fence.clone(), ends: now + ttl });
        Ok(Some(fence))
    }

    fn renew(&self, fence: &Fence) -> Result<bool, SharedError> {
        let now = self.clock.monotonic();
        let mut state = self.open()?;
        let held = state.lease(&fence.name, now).is_some_and(|lease| lease.fence.token == fence.token);
        if let Some(lease) = state.leases.get_mut(&fence.name).filter(|_| held) {
            lease.ends = now + fence.ttl;
        }
        Ok(held)
    }

    fn release(&self, fence: &Fence) -> Result<(), SharedError> {
        let mut state = self.open()?;
        if state.leases.get(&fence.name).is_some_and(|lease| lease.fence.token == fence.token) {
            state.leases.remove(&fence.name);
        }
        Ok(())
    }

    fn holder(&self, name: &str) -> Result<Option<String>, SharedError> {
        let state = self.open()?;
        Ok(state.lease(name, self.clock.monotonic()).map(|lease| lease.fence.holder.clone()))
    }
}
