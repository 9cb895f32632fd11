//! One replica among several: what the others change is followed, the lease looked after, and the others are told of the sidecars
//! here. Each of the three may be held up by the shared store for seconds, on a blocking thread of its own; nobody who issues waits
//! for any of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_ca::bundle::Acknowledgements;
use postern_ca::store::{ControlStore, Replicated, Standing, StoreError};
use postern_svid::{Bundle, Clock};
use tokio::sync::watch;

use crate::health::Health;
use crate::task::{self, Tasks};

/// One wait for changes, at most: whoever stops waits for its end.
const WAIT: Duration = Duration::from_secs(1);
/// Counting a hundred thousand certificates keeps the database for a moment: no more than this part of the time.
const SHARE: u32 = 20;
/// Between two reports, at most: the others must not take this one for dead.
const LONGEST: Duration = Duration::from_secs(8);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is told to other replicas, and followed of theirs.
pub(crate) struct Replicas {
    pub(crate) store: Arc<dyn ControlStore>,
    pub(crate) holders: Arc<Acknowledgements>,
    pub(crate) bundle: watch::Receiver<Arc<Bundle>>,
    pub(crate) health: Arc<Health>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ttl: Duration,
}

impl Replicas {
    /// Starts what has to go on all the time; nothing if there are no replicas.
    pub(crate) fn start(self, tasks: &Tasks) {
        if self.store.replicas().is_none() {
            return;
        }
        let follow = |replicas: &Replicated| replicas.follow(WAIT).map(drop);
        tasks.spawn(again_and_again(self.store.clone(), "following", follow, tasks.clone()));
        let tend = |replicas: &Replicated| replicas.tend(WAIT);
        tasks.spawn(again_and_again(self.store.clone(), "leading", tend, tasks.clone()));
        tasks.spawn(self.report(tasks.clone()));
    }

    async fn report(self, tasks: Tasks) {
        let stopped = tasks.stopped();
        tokio::pin!(stopped);
        let this = Arc::new(self);
        let mut failing = false;
        let mut pause = Duration::ZERO;
        loop {
            crate::task::select! {
                () = &mut stopped => return,
                () = tokio::time::sleep(pause) => {}
            }
            let (told, began) = (this.clone(), this.clock.monotonic());
            let reported = task::blocking(move || told.tell(told.clock.wall())).await;
            let took = this.clock.monotonic().saturating_duration_since(began);
            pause = (took * SHARE).clamp(Replicated::REPORT, LONGEST);
            match reported {
                Ok(Ok(())) => failing = false,
                Ok(Err(error)) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "the other replicas are not told of the sidecars here");
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "telling the other replicas broke off"),
            }
        }
    }

    fn tell(&self, now: SystemTime) -> Result<(), StoreError> {
        let Some(replicas) = self.store.replicas() else { return Ok(()) };
        self.health.frozen(replicas.trouble().is_some());
        let bundle = self.bundle.borrow().clone();
        replicas.report(&Standing {
            bundle_sequence: bundle.sequence(),
            bundle_digest: postern_ca::hex(bundle.digest()),
            leaf: self.ttl,
            holders: &self.holders.holders(now),
            live: &self.store.live(now)?,
        })
    }
}

/// Calls `work`, which waits by itself, until everything stops.
async fn again_and_again(
    store: Arc<dyn ControlStore>,
    what: &'static str,
    work: fn(&Replicated) -> Result<(), StoreError>,
    tasks: Tasks,
) {
    let stopped = tasks.stopped();
    tokio::pin!(stopped);
    let mut failing = false;
    loop {
        let at = store.clone();
        let working = task::blocking(move || at.replicas().map_or(Ok(()), work));
        let worked = crate::task::select! {
            () = &mut stopped => return,
            worked = working => worked,
        };
        match worked {
            Ok(Ok(())) => {
                failing = false;
                continue;
            }
            // Following tells of it itself, where it matters.
            Ok(Err(error)) if !std::mem::replace(&mut failing, true) => {
                tracing::debug!(%error, what, "failed, and is tried again");
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, what, "broke off"),
        }
        crate::task::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
