//! Who leads: the lease that guards signing with the root's key, edits of the trust bundle and steps of roots.
//!
//! It is kept for as long as nobody else wants it, so that one replica takes the steps that happen by themselves; and handed over
//! as soon as another says that it has something to do. Whether a write is still the leader's is the store's decision alone,
//! by the fence that goes with it: a leader that was stopped for a while may believe what it likes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use postern_svid::Clock;

use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::shared::{Change, Fence, Shared, Swap};

/// The lease's name.
pub(crate) const LEASE: &str = "leader";
/// Where a replica says that it wants the lease.
const WANTED: &str = "want/leader";
/// How long a leader that died keeps others waiting.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// How often it is renewed: twice in vain, and it still holds.
pub(crate) const TEND: Duration = Duration::from_secs(3);
/// How long work waits for the lease: longer than a dead leader's lasts.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two tries to get it.
const RETRY: Duration = Duration::from_millis(100);

/// The lease, as one replica sees it.
pub(crate) struct Lead {
    shared: Arc<dyn Shared>,
    replica: String,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    held: Mutex<Option<Held>>,
    /// One piece of work at a time. The lease is not handed over in the middle of one.
    working: Mutex<()>,
    /// Waited on, and never told: a pause.
    pause: (Mutex<()>, Condvar),
}

#[derive(Clone)]
struct Held {
    fence: Fence,
    /// Before it was asked for.
    renewed: Instant,
}

impl Lead {
    pub(crate) fn new(
        shared: Arc<dyn Shared>,
        replica: &str,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        Self {
            shared,
            replica: replica.to_owned(),
            clock,
            metrics,
            held: Mutex::default(),
            working: Mutex::default(),
            pause: (Mutex::default(), Condvar::new()),
        }
    }

    /// Whether the lease is ours, as far as this replica's clock can tell.
    pub(crate) fn is_held(&self) -> bool {
        let now = self.clock.monotonic();
        let held = self.held.lock();
        held.as_ref().is_some_and(|held| now.saturating_duration_since(held.renewed) < held.fence.ttl)
    }

    /// Does `work` as the leader; waits for the lease if another has it. What is written must carry the fence.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&Fence) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _working = self.working.lock();
        // Not asked whether it has ended: the store decides that when something is written.
        let held = self.held.lock().as_ref().map(|held| held.fence.clone());
        let fence = match held {
            Some(fence) => fence,
            None => self.acquire()?,
        };
        let done = work(&fence);
        if matches!(done, Err(StoreError::Fenced(_))) {
            self.metrics.fenced.inc();
            self.lost(&fence);
        }
        done
    }

    /// The outcome of a write with `fence`; `None` is a conflict.
    pub(crate) fn judged(swap: Swap, fence: &Fence) -> Result<Option<u64>, StoreError> {
        match swap {
            Swap::Done(revision) => Ok(Some(revision)),
            Swap::Conflict => Ok(None),
            Swap::Fenced => Err(StoreError::Fenced(fence.to_string())),
        }
    }

    fn acquire(&self) -> Result<Fence, StoreError> {
        let began = Instant::now();
        loop {
            if let Some(fence) = self.try_acquire()? {
                return Ok(fence);
            }
            if began.elapsed() >= PATIENCE {
                let holder = self.shared.holder(LEASE)?.unwrap_or_default();
                return Err(StoreError::Busy(holder));
            }
            self.want()?;
            let (lock, never) = &self.pause;
            never.wait_for(&mut lock.lock(), RETRY);
        }
    }

    fn try_acquire(&self) -> Result<Option<Fence>, StoreError> {
        let renewed = self.clock.monotonic();
        let Some(fence) = self.shared.acquire(LEASE, &self.replica, TTL)? else { return Ok(None) };
        tracing::info!(%fence, "this replica leads");
        *self.held.lock() = Some(Held { fence: fence.clone(), renewed });
        self.metrics.leads.set(1);
        self.unwant()?;
        Ok(Some(fence))
    }

    /// Tells whoever has it that we have something to do.
    fn want(&self) -> Result<(), StoreError> {
        let listing = self.shared.read(WANTED)?;
        if listing.find(WANTED).is_none() {
            // If another was faster, it is served first.
            let wish = Change::put(WANTED, 0, self.replica.clone().into_bytes());
            self.shared.swap(&[wish], None)?;
        }
        Ok(())
    }

    fn unwant(&self) -> Result<(), StoreError> {
        let listing = self.shared.read(WANTED)?;
        if let Some(entry) = listing.find(WANTED)
            && entry.value == self.replica.as_bytes()
        {
            self.shared.swap(&[Change::delete(WANTED, entry.version)], None)?;
        }
        Ok(())
    }

    /// Renews the lease, hands it over to who wants it, or takes it if nobody has it. Called every [`TEND`], and when somebody says
    /// that it is wanted.
    pub(crate) fn tend(&self) -> Result<(), StoreError> {
        let fence = self.held.lock().as_ref().map(|held| held.fence.clone());
        let wanted = self.shared.read(WANTED)?.find(WANTED).map(|entry| (entry.version, entry.value.clone()));
        let by_another = wanted
            .as_ref()
            .filter(|(_, who)| who.as_slice() != self.replica.as_bytes())
            .map(|(version, _)| *version);
        let Some(fence) = fence else {
            // Who wants it gets it first; a wish of somebody who died must not keep everybody else from it.
            let Some(working) = self.working.try_lock() else { return Ok(()) };
            let has_holder = self.shared.holder(LEASE)?.is_some();
            match by_another {
                Some(version) if !has_holder => {
                    self.shared.swap(&[Change::delete(WANTED, version)], None)?;
                }
                None if !has_holder => drop(self.try_acquire()?),
                _ => {}
            }
            drop(working);
            return Ok(());
        };
        if by_another.is_some() {
            // In the middle of work it is not given away; the work is short.
            let _working = self.working.lock();
            self.shared.release(&fence)?;
            tracing::info!(%fence, "this replica leads no more: another has something to do");
            self.forget(&fence);
            return Ok(());
        }
        let renewed = self.clock.monotonic();
        if self.shared.renew(&fence)? {
            if let Some(held) = self.held.lock().as_mut().filter(|held| held.fence == fence) {
                held.renewed = renewed;
            }
        } else {
            self.lost(&fence);
        }
        Ok(())
    }

    /// Gives it back when the process ends.
    pub(crate) fn resign(&self) {
        let held = self.held.lock().take();
        if let Some(held) = held
            && let Err(error) = self.shared.release(&held.fence)
        {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }

    fn lost(&self, fence: &Fence) {
        tracing::error!(%fence, "the lease has ended: another replica may lead by now, and writes of this one are refused");
        self.forget(fence);
    }

    fn forget(&self, fence: &Fence) {
        let mut held = self.held.lock();
        if held.as_ref().is_some_and(|held| held.fence == *fence) {
            *held = None;
            self.metrics.leads.set(0);
        }
    }
}
