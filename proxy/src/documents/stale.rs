//! A set that nobody could confirm for as long as `staleAfter` says decides no more: everything is denied.
//!
//! Confirmed is a set by each look at the directory that finds it, or another good one. A directory that cannot be read,
//! that hangs, or whose set is refused, confirms nothing: what was withdrawn there since is not known here.

use std::sync::Arc;
use std::time::Duration;

use postern_policy::Generation;

use super::History;
use crate::rejudge;
use crate::sidecar::Sidecar;

/// How often it is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Looks, for ever. Beside the loader, which a directory that hangs holds up.
pub async fn watch(sidecar: Arc<Sidecar>) {
    loop {
        tokio::time::sleep(TICK).await;
        check(&sidecar);
    }
}

/// Denies everything if the set in force went unconfirmed for too long.
pub fn check(sidecar: &Arc<Sidecar>) {
    let Some(generation) = sidecar.snapshots.load().policy.clone() else { return };
    if !is_due(sidecar, &sidecar.history.lock(), &generation) {
        return;
    }
    let mut is_now = false;
    sidecar.snapshots.publish(|snapshot| {
        // Another set may have come meanwhile.
        if snapshot.policy.as_ref().is_some_and(|policy| Arc::ptr_eq(policy, &generation)) {
            snapshot.policy = None;
            snapshot.is_stale = true;
            is_now = true;
        }
    });
    if is_now {
        told(sidecar, &generation);
    }
}

/// Says that everything is denied from now on, and takes permission from what lives.
pub(super) fn told(sidecar: &Arc<Sidecar>, generation: &Generation) {
    sidecar.metrics.policy_failed_closed.set(1);
    tracing::error!(
        generation = generation.number(),
        "no good documents could be read for {:?} (staleAfter): everything is denied until there are some, or until \
         `postern policy open --sidecar`",
        generation.defaults().stale_after.unwrap_or_default()
    );
    super::glass::tell(sidecar);
    rejudge::nothing(sidecar, generation.defaults().on_change.grace);
}

/// Whether a generation went unconfirmed for too long. Not while an operator has opened here: that ends by itself.
pub(super) fn is_due(sidecar: &Sidecar, history: &History, generation: &Generation) -> bool {
    let (Some(limit), Some(confirmed)) = (generation.defaults().stale_after, history.confirmed) else {
        return false;
    };
    history.opened.is_empty() && confirmed.age(&*sidecar.clock) > limit
}
