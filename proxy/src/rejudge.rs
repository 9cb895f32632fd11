//! Judges again what lives, when what it may has changed: by new documents, or by the hour.

use std::sync::{Arc, Weak};
use std::time::Duration;

use postern_policy::{Changes, Generation};

use crate::documents;
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

/// A request that ends within this is no stream. Changes are in force for all streams within a second, the time to read
/// the documents included.
const YOUNG: Duration = Duration::from_millis(500);
/// How often rules that hold at some times are told the time. Wall time jumps, so nobody waits for the next boundary.
const TICK: Duration = Duration::from_secs(1);

/// Tells the generation in force the time, and looks for tokens that have ended, for ever.
pub async fn by_the_hour(sidecar: Arc<Sidecar>) {
    let mut before = sidecar.clock.wall();
    loop {
        tokio::time::sleep(TICK).await;
        let now = sidecar.clock.wall();
        let since = std::mem::replace(&mut before, now);
        let Some(generation) = sidecar.snapshots.load().policy.clone() else { continue };
        generation.tidy_limits(sidecar.age());
        documents::glass::tell(&sidecar);
        if generation.depends_on_time() && generation.tell_time(sidecar.clock.wall()) {
            tracing::info!(
                generation = generation.number(),
                "by the hour, rules hold that did not, or no longer"
            );
            all(&sidecar, &generation);
        } else if generation.asks_tokens() && sidecar.registry.has_token_ended(since, now) {
            all(&sidecar, &generation);
        }
    }
}

/// Resets what lost permission: at once, or after the grace that the documents give. A request that is just being
/// answered was allowed when it was judged; cutting it would protect nothing and break an answer in the middle. So it is
/// asked about once more when it has run so long that it is a stream.
pub fn all(sidecar: &Arc<Sidecar>, generation: &Arc<Generation>) {
    since(sidecar, None, generation);
}

/// The same when `generation` follows `before`: asks only about streams that the difference may concern. Each stream that
/// lives was allowed by the generation that was in force when it was judged, and every step from there to here is asked
/// about in its turn.
pub fn changed(sidecar: &Arc<Sidecar>, before: &Arc<Generation>, generation: &Arc<Generation>) {
    since(sidecar, Some(before), generation);
}

fn since(sidecar: &Arc<Sidecar>, before: Option<&Arc<Generation>>, generation: &Arc<Generation>) {
    let grace = generation.defaults().on_change.grace;
    if grace.is_zero() {
        revoke(sidecar, before.map(|before| &**before), generation);
    }
    let sidecar = Arc::clone(sidecar);
    // A grace may be long, and a generation is large: one that nobody else keeps by then is not compared with.
    let before = before.map_or_else(Weak::new, Arc::downgrade);
    spawn(async move {
        tokio::time::sleep(grace.max(YOUNG)).await;
        // Whatever is in force by then decides: a change that was taken back resets nothing.
        match sidecar.snapshots.load().policy.clone() {
            Some(current) => revoke(&sidecar, before.upgrade().as_deref(), &current),
            None => revoke_all(&sidecar, YOUNG),
        }
    });
}

/// Resets everything, after the grace that the last documents gave: no policy is in force any more.
pub fn nothing(sidecar: &Arc<Sidecar>, grace: Duration) {
    if grace.is_zero() {
        revoke_all(sidecar, YOUNG);
    }
    let sidecar = Arc::clone(sidecar);
    spawn(async move {
        tokio::time::sleep(grace.max(YOUNG)).await;
        match sidecar.snapshots.load().policy.clone() {
            Some(current) => revoke(&sidecar, None, &current),
            None => revoke_all(&sidecar, YOUNG),
        }
    });
}

fn revoke_all(sidecar: &Sidecar, young: Duration) {
    let revoked = sidecar.registry.revoke_all(young);
    if revoked > 0 {
        sidecar.metrics.policy_revoked.inc_by(revoked as u64);
        tracing::info!(revoked, "no policy is in force: streams lost permission and are reset");
    }
}

fn revoke(sidecar: &Sidecar, before: Option<&Generation>, generation: &Generation) {
    let changes = before.map_or_else(Changes::everything, |before| Changes::between(before, generation));
    let (config, now) = (&sidecar.config, sidecar.clock.wall());
    let revoked = sidecar.registry.rejudge_concerned(&changes, generation, config, YOUNG, now);
    if revoked > 0 {
        sidecar.metrics.policy_revoked.inc_by(revoked as u64);
        tracing::info!(revoked, generation = generation.number(), "streams lost permission and are reset");
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
