//! What has to happen from time to time: turning the issuing CA, renewing our own certificate, proving that the CA can issue,
//! forgetting what is long over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postern_ca::authority::{Alarm, Authority, Turn};
use postern_ca::bundle::Acknowledgements;
use postern_ca::issue::{IssueError, Issuer};
use postern_ca::jwt::JwtAuthority;
use postern_ca::metrics::{Metrics, Needed};
use postern_ca::store::{ControlStore, StoreError};
use postern_svid::Clock;
use tokio::time::MissedTickBehavior;

use crate::health::Health;
use crate::own::Own;
use crate::task::{self, Tasks};

/// Wall time is read at least this often.
const LONGEST_ROUND: Duration = Duration::from_secs(30);
/// Rounds cost a signature; more of them are of no use.
const SHORTEST_ROUND: Duration = Duration::from_millis(250);
/// After a round that failed: what was in the way may be gone, and until a round has passed nobody sends us anything.
const RETRY: Duration = Duration::from_secs(5);
/// How often old rows are deleted.
const PRUNE: Duration = Duration::from_secs(600);
/// How long a certificate is remembered after its end: who asks "who was that last night" gets an answer.
const REMEMBER: Duration = Duration::from_secs(24 * 3_600);

/// How often the log says again what is needed.
const DAILY: Duration = Duration::from_secs(24 * 3_600);
/// How often the ledger gets a signed head, if it has grown.
const HEADS: Duration = Duration::from_secs(10);

/// What is kept up.
pub(crate) struct Upkeep {
    pub(crate) authority: Arc<Authority>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) jwt: Option<Arc<JwtAuthority>>,
    pub(crate) own: Arc<Own>,
    pub(crate) store: Arc<dyn ControlStore>,
    pub(crate) holders: Arc<Acknowledgements>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Arc<Health>,
    pub(crate) clock: Arc<dyn Clock>,
    /// What the operator was told last is needed, and when.
    pub(crate) told: Mutex<Option<(Vec<&'static str>, Instant)>>,
}

/// How often: a twentieth of a leaf's life, within bounds.
pub(crate) fn round_of(ttl: Duration) -> Duration {
    (ttl / 20).clamp(SHORTEST_ROUND, LONGEST_ROUND)
}

/// Signs heads of the ledger until everything stops.
pub(crate) async fn sign_heads(
    store: Arc<dyn ControlStore>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
) {
    let stopped = tasks.stopped();
    tokio::pin!(stopped);
    let mut ticks = tokio::time::interval(HEADS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut covered = clock.monotonic();
    loop {
        crate::task::select! {
            () = &mut stopped => return,
            _ = ticks.tick() => {}
        }
        let (store, wall) = (store.clone(), clock.wall());
        let signed = task::blocking(move || store.local().sign_head(wall)).await;
        let now = clock.monotonic();
        if let Ok(Ok(())) = signed {
            covered = now;
        } else {
            // The store tells of a ledger that cannot be written, once.
            tracing::debug!(?signed, "no head of the ledger was signed");
        }
        metrics.ledger_head_age.set(now.saturating_duration_since(covered).as_secs_f64());
    }
}

impl Upkeep {
    /// Goes round until everything stops.
    pub(crate) async fn run(self, every: Duration, tasks: Tasks) {
        let stopped = tasks.stopped();
        tokio::pin!(stopped);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let this = Arc::new(self);
        let mut pruned = this.clock.monotonic();
        loop {
            crate::task::select! {
                () = &mut stopped => return,
                _ = ticks.tick() => {}
            }
            let round = this.clone();
            let last = pruned;
            match task::blocking(move || round.round(last)).await {
                Ok(at) => pruned = at,
                Err(error) => {
                    tracing::error!(%error, "a round of upkeep broke off");
                    this.health.tested(Some("upkeep_failed"));
                }
            }
            if this.health.is_failing() {
                ticks.reset_after(every.min(RETRY));
            }
        }
    }

    /// What only an operator can bring: a line in the log once a day, a metric and a code all the time.
    fn tell_what_is_needed(&self) {
        let alarms = match self.authority.alarms() {
            Ok(alarms) => alarms,
            Err(error) => return tracing::error!(%error, "whether a tier is due cannot be told"),
        };
        for what in Alarm::CODES {
            let is_needed = alarms.iter().any(|alarm| alarm.code == what);
            self.metrics.operator_needed.get_or_create(&Needed { what }).set(i64::from(is_needed));
        }
        self.health.needed(alarms.iter().map(|alarm| alarm.code).collect());
        let now = self.clock.monotonic();
        let mut told = self.told.lock();
        let codes: Vec<_> = alarms.iter().map(|alarm| alarm.code).collect();
        let is_news = told
            .as_ref()
            .is_none_or(|(before, at)| *before != codes || now.saturating_duration_since(*at) >= DAILY);
        if is_news {
            for Alarm { code, text } in &alarms {
                tracing::warn!(code, "{text}");
            }
            *told = Some((codes, now));
        }
    }

    /// One round; a step that fails does not keep the others from happening. Gives when rows were last deleted.
    fn round(&self, pruned: Instant) -> Instant {
        let looked = self.issuer.look_at_clock();
        if let Err(error @ IssueError::Store(StoreError::Leapt { .. })) = &looked {
            // Everything else would go by that time.
            tracing::error!(%error, "the clock has leapt ahead");
            self.health.tested(Some(error.reason()));
            return pruned;
        }
        // At once: where the store hangs, each of the other steps waits for it as long as this one did.
        if let Err(error) = &looked {
            self.health.tested(Some(error.reason()));
        }
        match self.authority.maintain() {
            Ok(None) => {}
            Ok(Some(turn)) => {
                if matches!(turn, Turn::Activated | Turn::TierActivated) {
                    self.metrics.rotations.inc();
                }
                tracing::info!(?turn, "issuing CA");
            }
            Err(error) => {
                tracing::error!(%error, "the issuing CA could not be turned; leaves can be made until its end");
            }
        }
        match self.jwt.as_ref().map(|jwt| jwt.maintain()).transpose() {
            Ok(turn) => {
                if let Some(turn) = turn.flatten() {
                    tracing::info!(?turn, "JWT key");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the JWT keys could not be turned; the present one goes on signing");
            }
        }
        let renewed = self.own.renew_if_due();
        self.health.own_overdue(renewed.is_err());
        if let Err(error) = renewed {
            tracing::error!(%error, "renewal failed; the present certificate stays until its end");
        }
        match looked.and_then(|()| self.issuer.prove()) {
            Ok(()) => self.health.tested(None),
            Err(error) => {
                tracing::error!(%error, "the CA cannot issue");
                self.health.tested(Some(error.reason()));
            }
        }
        self.tell_what_is_needed();
        self.issuer.publish_metrics();
        let wall = self.clock.wall();
        let sequence = self.authority.bundle().sequence();
        let behind = self.holders.behind(sequence, wall, |holder| self.authority.denies_holder(holder));
        self.metrics.bundle_behind.set(i64::try_from(behind).unwrap_or(i64::MAX));

        let now = self.clock.monotonic();
        if now.saturating_duration_since(pruned) < PRUNE {
            return pruned;
        }
        let Some(before) = wall.checked_sub(REMEMBER) else { return now };
        match self.store.prune(before).and_then(|gone| self.store.local().remember().map(|()| gone)) {
            Ok(gone) => tracing::debug!(gone, "old certificates forgotten"),
            Err(error) => tracing::warn!(%error, "old certificates could not be forgotten"),
        }
        now
    }
}
