//! Roots, taints and revocations as they change: by themselves, or because an operator's command has written to the store
//! beside us. What is in the store is taken up within a quarter of a second and goes out to every stream.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_ca::authority::{Authority, AuthorityError, Mode, Outlook};
use postern_ca::bundle::Acknowledgements;
use postern_ca::keys;
use postern_ca::metrics::Metrics;
use postern_ca::store::{Answer, ControlStore, StoreError};
use postern_svid::{Bundle, Clock};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::health::Health;
use crate::own::Own;
use crate::task::{self, Tasks};

/// Between two looks at the store. Without a change it is a look into shared memory.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at the gates while a tainted CA makes them urgent.
const URGENT: Duration = Duration::from_millis(500);
/// Steps at one look; more of them would be an error of ours.
const STEPS: usize = 8;
/// Renewals a second that everybody's hurry is spread to: half of what the CA can do.
const RENEWALS: u64 = 500;
/// The longest spread.
const SPREAD: Duration = Duration::from_secs(60);

/// Who is to renew at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Renewal {
    /// Whoever has a leaf that was issued before.
    pub(crate) before: Option<SystemTime>,
    /// Within this time.
    pub(crate) spread: Duration,
}

/// What is rotated, and where it goes.
pub(crate) struct Rotation {
    pub(crate) authority: Arc<Authority>,
    pub(crate) store: Arc<dyn ControlStore>,
    pub(crate) own: Arc<Own>,
    pub(crate) holders: Arc<Acknowledgements>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Arc<Health>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mode: Mode,
    pub(crate) ttl: Duration,
    pub(crate) bundle_path: PathBuf,
    pub(crate) bundle: watch::Sender<Arc<Bundle>>,
    pub(crate) renewal: watch::Sender<Renewal>,
}

/// What the last look has found.
#[derive(Clone, Copy)]
struct Seen {
    version: Option<i64>,
    gates: Option<Instant>,
    is_urgent: bool,
    failed: bool,
}

impl Rotation {
    /// Looks until everything stops.
    pub(crate) async fn run(self, every: Duration, tasks: Tasks) {
        let stopped = tasks.stopped();
        tokio::pin!(stopped);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let this = Arc::new(self);
        let mut seen = Seen { version: None, gates: None, is_urgent: false, failed: false };
        loop {
            crate::task::select! {
                () = &mut stopped => return,
                _ = ticks.tick() => {}
            }
            let (look, last) = (this.clone(), seen);
            match task::blocking(move || look.look(last, every)).await {
                Ok(now) => seen = now,
                Err(error) => tracing::error!(%error, "a look at the roots broke off"),
            }
        }
    }

    fn look(&self, seen: Seen, every: Duration) -> Seen {
        let mut now = seen;
        if let Err(error) = self.try_look(&mut now, every) {
            // Once: the next look comes soon, and what is in the way stays there for a while.
            if !seen.failed {
                tracing::error!(%error, "roots and revocations stay as they are until this is mended");
            }
            now.failed = true;
            // Whatever was read must be read again.
            now.version = None;
        } else {
            now.failed = false;
        }
        self.health.trust_stuck(now.failed);
        self.metrics.trust_stuck.set(now.failed.into());
        now
    }

    fn try_look(&self, seen: &mut Seen, every: Duration) -> Result<(), RotationError> {
        let version = self.store.changes()?;
        let changed = seen.version != Some(version);
        seen.version = Some(version);
        if changed {
            self.follow()?;
            self.obey()?;
        }
        let now = self.clock.monotonic();
        let pace = if seen.is_urgent { URGENT } else { every };
        if changed || seen.gates.is_none_or(|at| now.saturating_duration_since(at) >= pace) {
            seen.gates = Some(now);
            // Unless there is something to do the store is left alone: whoever issues waits for it.
            let wall = self.clock.wall();
            if self.authority.next_end().is_some_and(|ends| ends <= wall) {
                // Of several replicas the one that leads, and the others hear of it.
                if self.store.leads() {
                    self.store.end_revocations(wall)?;
                    self.follow()?;
                }
            }
            self.steps()?;
            // What waits for an operator alone may do so for days; a change of the store is seen at once in any case.
            let moves = |step: &Outlook| step.latest.is_some() || step.waits.is_empty();
            seen.is_urgent = self.outlook()?.iter().any(|step| step.is_emergency && moves(step));
        }
        self.publish()
    }

    fn follow(&self) -> Result<(), AuthorityError> {
        if self.authority.follow()?.is_some() {
            self.metrics.rotations.inc();
        }
        Ok(())
    }

    /// Steps that are to come.
    fn outlook(&self) -> Result<Vec<Outlook>, AuthorityError> {
        let holders = self.holders.holders(self.clock.wall());
        self.authority.outlook(&holders, self.mode)
    }

    fn steps(&self) -> Result<(), RotationError> {
        for _ in 0..STEPS {
            let holders = self.holders.holders(self.clock.wall());
            let Some(step) = self.authority.step(&holders, self.mode)? else { return Ok(()) };
            tracing::warn!(step = step.name(), ca = step.label(), "a step of a rotation is taken");
            if step.name() == "activate" {
                self.metrics.root_rotations.inc();
            }
            // What was decided is in force, and on its way, before the next step is thought about.
            self.publish()?;
        }
        Ok(())
    }

    /// Carries out what operators have asked for.
    fn obey(&self) -> Result<(), RotationError> {
        if let Some(replicas) = self.store.replicas() {
            self.store.local().carry_out(|edit| replicas.carry_out(edit), self.clock.wall())?;
            self.follow()?;
        }
        for (number, order) in self.store.local().open_orders(self.clock.wall())? {
            let holders = self.holders.holders(self.clock.wall());
            let done = self.authority.obey(order.verb, order.force.as_ref(), &holders);
            let answer = match done {
                Ok(text) => {
                    tracing::warn!(step = order.verb.name(), forced = order.force.is_some(), %text, "by operator");
                    Answer { ok: true, text }
                }
                Err(refused) => Answer { ok: false, text: refused.to_string() },
            };
            self.publish()?;
            self.store.local().answer_order(number, answer, self.clock.wall())?;
        }
        Ok(())
    }

    /// Brings handshakes, the file for new sidecars and all streams up to what the authority holds.
    fn publish(&self) -> Result<(), RotationError> {
        let before = self.authority.renew_before();
        let bundle = self.authority.bundle();
        let told = *self.renewal.borrow();
        let is_new = self.bundle.borrow().sequence() != bundle.sequence();
        if before != told.before {
            self.own.renew()?;
        }
        if is_new {
            self.own.trust()?;
            keys::replace(&self.bundle_path, 0o644, bundle.to_pem().as_bytes())?;
            tracing::warn!(
                sequence = bundle.sequence(),
                roots = bundle.roots().len(),
                revoked = bundle.revocations().len(),
                "a new trust bundle goes out"
            );
            self.metrics.revocations.set(i64::try_from(bundle.revocations().len()).unwrap_or(i64::MAX));
            self.bundle.send_replace(bundle);
        }
        if before != told.before {
            let spread = self.spread();
            tracing::warn!(spread_ms = spread.as_millis(), "every sidecar is told to renew now");
            self.renewal.send_replace(Renewal { before, spread });
        }
        Ok(())
    }

    fn spread(&self) -> Duration {
        let sidecars = self.holders.holders(self.clock.wall()).len() as u64;
        Duration::from_millis(sidecars * 1_000 / RENEWALS).min(SPREAD).min(self.ttl / 8)
    }
}

/// Why a look did not come to its end.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    #[error(transparent)]
    Own(#[from] crate::own::OwnError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
