//! What comes from the control plane is checked, stored and put in force, in this order and one at a time.

use std::sync::Arc;
use std::time::SystemTime;

use postern_svid::{Bundle, Bundles, Svid};
use tracing::warn;

use crate::error::AttemptError;
use crate::identity::Live;
use crate::key::Key;
use crate::pace;

/// An SVID fresh from the control plane.
pub(crate) struct Issued {
    pub(crate) svid: Svid,
    pub(crate) key: Key,
    pub(crate) renew_after: Option<SystemTime>,
}

impl Live {
    /// The key for the next request: the one of the last unanswered request, or a new one, stored before it is used.
    /// `must_store` says whether a key that cannot be stored may be used nevertheless.
    pub(crate) async fn request_key(&self, must_store: bool) -> Result<Key, AttemptError> {
        if let Some(key) = self.held.lock().pending.clone() {
            return Ok(key);
        }
        let key = Key::generate()?;
        let (state, copy) = (self.state.clone(), key.clone());
        match blocking(move || state.store_pending_key(&copy)).await {
            Err(error) if must_store => return Err(error),
            Err(error) => warn!("the key of this request is not stored: {error}"),
            Ok(()) => {}
        }
        self.held.lock().pending = Some(key.clone());
        Ok(key)
    }

    /// The control plane will not certify the pending key.
    pub(crate) async fn discard_request_key(&self) {
        self.held.lock().pending = None;
        let state = self.state.clone();
        if let Err(error) = blocking(move || state.forget_pending_key()).await {
            warn!("the key of the refused request stays in the state directory: {error}");
        }
    }

    /// Checks a new SVID, a new bundle or both, stores them and puts them in force. `Ok(false)` if nothing is new.
    pub(crate) async fn install(
        &self,
        issued: Option<Issued>,
        offered: Option<Bundle>,
    ) -> Result<bool, AttemptError> {
        let _turn = self.turn.lock().await;
        let held = self.held.lock().bundle.clone();
        let newer = match offered {
            Some(offered) => match newer(held.as_deref(), offered) {
                Ok(newer) => newer.map(Arc::new),
                // The SVID may be good all the same: it is verified against the bundle that we hold.
                Err(why) if issued.is_some() => {
                    warn!("{why}");
                    None
                }
                Err(why) => return Err(AttemptError::Answer(why)),
            },
            None => None,
        };
        let bundle =
            newer.clone().or(held).ok_or_else(|| AttemptError::Answer("no trust bundle came".to_owned()))?;
        let bundles = Bundles::default().with(bundle);
        if let Some(issued) = &issued {
            self.check_issued(&issued.svid, &bundles)?;
        }
        if let Some(bundle) = newer.clone() {
            // In force even if it cannot be stored: something may have been taken out because it was stolen.
            self.store_bundle(bundle.clone()).await;
            self.held.lock().bundle = Some(bundle);
        }
        match issued {
            Some(issued) => self.install_svid(issued).await,
            None if newer.is_none() => return Ok(false),
            None => self.republish(),
        }
        Ok(true)
    }

    /// The sequence that may be acknowledged: the control plane takes it as a promise that a restart keeps the bundle.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.held.lock().stored.unwrap_or(0)
    }

    /// Stores the bundle in force if that has failed so far, and publishes to have it acknowledged.
    pub(crate) async fn store_overdue(&self) {
        let _turn = self.turn.lock().await;
        let overdue = {
            let held = self.held.lock();
            held.bundle.clone().filter(|bundle| held.stored != Some(bundle.sequence()))
        };
        if let Some(bundle) = overdue
            && self.store_bundle(bundle).await
        {
            self.republish();
        }
    }

    async fn store_bundle(&self, bundle: Arc<Bundle>) -> bool {
        let (state, sequence) = (self.state.clone(), bundle.sequence());
        match blocking(move || state.store_bundle(&bundle)).await {
            Ok(()) => {
                self.held.lock().stored = Some(sequence);
                true
            }
            Err(error) => {
                warn!(sequence, "the trust bundle is not stored and so not acknowledged: {error}");
                self.stream_error(&error);
                false
            }
        }
    }

    async fn install_svid(&self, issued: Issued) {
        let Issued { svid, key, renew_after } = issued;
        let svid = Arc::new(svid);
        let renew_after = pace::renew_after(renew_after, self.clock.wall(), svid.not_after());
        let (state, copy, stored_key) = (self.state.clone(), svid.clone(), key.clone());
        let stored = blocking(move || {
            state.store_svid(&copy, &stored_key, renew_after)?;
            state.forget_pending_key()
        });
        // A full disk must not cost the workload its identity. The pending key stays on disk, so that after a crash the
        // same request can be made again.
        if let Err(error) = stored.await {
            warn!("the new SVID is in use but not stored: {error}");
        }
        self.held.lock().pending = None;
        self.publish(svid, key, renew_after);
    }

    /// A bad answer must not replace a good identity: what peers would refuse is refused here first.
    fn check_issued(&self, svid: &Svid, bundles: &Bundles) -> Result<(), AttemptError> {
        let unusable = |why: String| Err(AttemptError::Answer(why));
        if *svid.id() != self.config.identity {
            return unusable(format!("an SVID of {} instead of {}", svid.id(), self.config.identity));
        }
        if pace::life(svid) < pace::SHORTEST_LIFE && !self.config.test {
            let seconds = pace::life(svid).as_secs();
            return unusable(format!(
                "an SVID that lives {seconds} s, less than 5 min (allowed only with test: true)"
            ));
        }
        match svid.verify_against(bundles, self.clock.wall()) {
            Ok(()) => Ok(()),
            Err(error) => unusable(format!("an SVID that does not verify: {error}")),
        }
    }
}

/// `offered`, if it goes beyond `held`. Sequences never go down, and one sequence never has two contents.
fn newer(held: Option<&Bundle>, offered: Bundle) -> Result<Option<Bundle>, String> {
    let Some(held) = held else { return Ok(Some(offered)) };
    let (old, new) = (held.sequence(), offered.sequence());
    if new < old {
        return Err(format!(
            "a trust bundle with sequence {new} is refused, {old} is in force (the control plane is in an older state than this sidecar has seen: put its newest backup back with postern ca restore --new-epoch)"
        ));
    }
    if new > old {
        return Ok(Some(offered));
    }
    if held.digest() != offered.digest() || held.jwt_keys() != offered.jwt_keys() {
        return Err(format!(
            "a trust bundle with sequence {new} but other roots, revocations or JWT keys than the one in force is refused"
        ));
    }
    Ok(None)
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), AttemptError> {
    match crate::runtime::blocking(work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(AttemptError::Local(format!("cannot write to the state directory: {error}"))),
        Err(_) => Err(AttemptError::Local("writing to the state directory was cut short".to_owned())),
    }
}
