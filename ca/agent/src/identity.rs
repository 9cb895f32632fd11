//! What the agent holds and publishes.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_svid::{Bundle, Bundles, Clock, SpiffeId, Svid, VerifyError};
use tokio::sync::watch::{self, Receiver};
use tracing::{info, warn};

use crate::config::{Attestation, Config, Trust};
use crate::error::{AttemptError, StartError};
use crate::files;
use crate::key::Key;
use crate::pace::{self, Pace};
use crate::state::{State, StoredSvid};

/// An SVID and the bundles to verify peers with, published together. It stays published after its SVID has expired:
/// whoever uses it must look at `svid.not_after()`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Counts from 1 within the process; each change of SVID or bundle is a new one.
    pub generation: u64,
    /// Chain and key.
    pub svid: Arc<Svid>,
    /// Roots by trust domain.
    pub bundles: Bundles,
    /// When the agent will renew.
    pub renew_after: SystemTime,
}

/// What the agent is at.
#[derive(Clone, Debug)]
pub struct Status {
    /// The configured id.
    pub identity: SpiffeId,
    /// Serial number of the SVID in use.
    pub serial: Option<Vec<u8>>,
    /// When that SVID ends.
    pub not_after: Option<SystemTime>,
    /// When it will be renewed.
    pub next_renewal: Option<SystemTime>,
    /// Sequence of the bundle in force.
    pub bundle_sequence: Option<u64>,
    /// Whether the stream to the control plane is open.
    pub connected: bool,
    /// When an SVID was last received.
    pub last_success: Option<SystemTime>,
    /// SVIDs received by this process.
    pub issued: u64,
    /// Failed attempts to get an SVID in this process.
    pub failures: u64,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// Why the last attempt failed, until one succeeds.
    pub last_error: Option<String>,
    /// Why the stream last broke or a bundle was refused, until a stream is open again.
    pub last_stream_error: Option<String>,
    /// The control plane's clock minus ours at the last answer, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// Whether SVIDs under five minutes are accepted.
    pub test: bool,
}

/// A view of an agent that runs elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct Observer(Arc<Live>);

impl Observer {
    pub(crate) const fn new(live: Arc<Live>) -> Self {
        Self(live)
    }

    /// The current identity and every later one; `None` until there is a first.
    pub fn identity(&self) -> Receiver<Option<Arc<Identity>>> {
        self.0.subscribe()
    }

    /// What the agent is at.
    pub fn status(&self) -> Status {
        self.0.status()
    }
}

/// An SVID fresh from the control plane.
pub(crate) struct Issued {
    pub(crate) svid: Svid,
    pub(crate) key: Key,
    pub(crate) renew_after: Option<SystemTime>,
}

/// What vouches for the control plane right now.
pub(crate) enum Anchor {
    Bundles(Bundles),
    Pinned([u8; 32]),
}

/// The agent's one state, shared by its loops.
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    state: Arc<State>,
    sender: watch::Sender<Option<Arc<Identity>>>,
    held: Mutex<Held>,
    progress: Mutex<Progress>,
    /// One installation at a time: two must not interleave between check and publication.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Held {
    bundle: Option<Arc<Bundle>>,
    /// Sequence of the bundle in the state directory; behind `bundle` while the disk refuses.
    stored: Option<u64>,
    /// Of a request under way.
    pending: Option<Key>,
    generation: u64,
}

#[derive(Default)]
struct Progress {
    connected: bool,
    last_success: Option<SystemTime>,
    issued: u64,
    failures: u64,
    attempts: u32,
    last_error: Option<String>,
    last_stream_error: Option<String>,
    clock_skew_ms: Option<i64>,
}

impl Live {
    pub(crate) fn new(config: Config, clock: Arc<dyn Clock>, state: State) -> Self {
        Self {
            config,
            clock,
            state: Arc::new(state),
            sender: watch::Sender::new(None),
            held: Mutex::default(),
            progress: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn subscribe(&self) -> Receiver<Option<Arc<Identity>>> {
        self.sender.subscribe()
    }

    pub(crate) fn current(&self) -> Option<Arc<Identity>> {
        self.sender.borrow().clone()
    }

    pub(crate) fn pace(&self) -> Pace {
        Pace::of(self.current().as_ref().map(|identity| &*identity.svid))
    }

    pub(crate) fn status(&self) -> Status {
        let current = self.current();
        let bundle_sequence = self.held.lock().bundle.as_ref().map(|bundle| bundle.sequence());
        let progress = self.progress.lock();
        Status {
            identity: self.config.identity.clone(),
            serial: current.as_ref().map(|identity| identity.svid.serial().to_vec()),
            not_after: current.as_ref().map(|identity| identity.svid.not_after()),
            next_renewal: current.as_ref().map(|identity| identity.renew_after),
            bundle_sequence,
            connected: progress.connected,
            last_success: progress.last_success,
            issued: progress.issued,
            failures: progress.failures,
            attempts: progress.attempts,
            last_error: progress.last_error.clone(),
            last_stream_error: progress.last_stream_error.clone(),
            clock_skew_ms: progress.clock_skew_ms,
            test: self.config.test,
        }
    }

    /// Reads the state directory, sets aside what cannot be used and publishes what can.
    pub(crate) fn load(&self) -> Result<(), StartError> {
        let bundle = self.load_bundle()?.map(Arc::new);
        {
            let mut held = self.held.lock();
            held.bundle.clone_from(&bundle);
            held.stored = bundle.as_ref().map(|bundle| bundle.sequence());
        }
        if bundle.is_none()
            && let Trust::Bundle(path) = &self.config.trust
        {
            // Checked now, though used later: a mistake should show at start-up.
            self.configured_bundle(path)?;
        }
        let now = self.clock.wall();
        let stored = self.load_svid(now)?;
        let pending = self.state.pending_key()?;
        match (&stored, pending) {
            // A crash fell between storing the SVID and forgetting its key.
            (Some(stored), Some(pending)) if stored.key.is(&pending) => {
                let path = self.config.state_dir.as_path();
                self.state.forget_pending_key().map_err(|error| files::io_error(path, error))?;
            }
            (_, pending) => self.held.lock().pending = pending,
        }
        match stored {
            Some(stored) => {
                let renew_after = pace::renew_after(stored.renew_after, now, stored.svid.not_after());
                // One that is due keeps its past date, so that it is renewed at once.
                let renew_after = stored.renew_after.map_or(renew_after, |told| told.min(renew_after));
                info!(id = %stored.svid.id(), "identity restored from the state directory");
                self.publish(Arc::new(stored.svid), renew_after);
                Ok(())
            }
            None => self.join_token().map(drop),
        }
    }

    fn load_bundle(&self) -> Result<Option<Bundle>, StartError> {
        let why = match self.state.bundle()? {
            None => return Ok(None),
            Some(Ok(bundle)) if self.config.identity.is_member_of(bundle.trust_domain()) => {
                return Ok(Some(bundle));
            }
            Some(Ok(bundle)) => format!("it belongs to the trust domain {}", bundle.trust_domain()),
            Some(Err(why)) => why,
        };
        let path = self.state.set_bundle_aside()?;
        warn!(path = %path.display(), "the stored trust bundle is set aside: {why}");
        Ok(None)
    }

    fn load_svid(&self, now: SystemTime) -> Result<Option<StoredSvid>, StartError> {
        let why = match self.state.svid()? {
            None => return Ok(None),
            Some(Err(why)) => why,
            Some(Ok(stored)) => match self.check_stored(&stored, now) {
                Ok(()) => return Ok(Some(stored)),
                Err(why) => why,
            },
        };
        let path = self.state.set_svid_aside()?;
        warn!(path = %path.display(), "the stored SVID is set aside and a new one asked for: {why}");
        Ok(None)
    }

    fn check_stored(&self, stored: &StoredSvid, now: SystemTime) -> Result<(), String> {
        if *stored.svid.id() != self.config.identity {
            return Err(format!("it is of {}, not of {}", stored.svid.id(), self.config.identity));
        }
        let Ok(Anchor::Bundles(bundles)) = self.anchor() else {
            return Err("there is no trust bundle to verify it with".to_owned());
        };
        match stored.svid.verify_against(&bundles, now) {
            // Then our clock is wrong, not the SVID: a machine without a clock battery boots in the past. Its users refuse
            // it until the clock is right; losing it would cost a join token.
            Ok(()) | Err(VerifyError::NotYetValid { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What must vouch for the control plane. The bundle that it gave us replaces the configured trust for good, or else
    /// a root that was rotated out for a reason could come back through an old file.
    pub(crate) fn anchor(&self) -> Result<Anchor, StartError> {
        if let Some(bundle) = self.held.lock().bundle.clone() {
            return Ok(Anchor::Bundles(Bundles::default().with(bundle)));
        }
        match &self.config.trust {
            Trust::Bundle(path) => self.configured_bundle(path).map(Bundles::of).map(Anchor::Bundles),
            Trust::RootSha256(pin) => Ok(Anchor::Pinned(*pin)),
        }
    }

    /// The file whose bundle decides, if it is not the configured one.
    pub(crate) fn stored_bundle(&self) -> Option<std::path::PathBuf> {
        self.held.lock().bundle.as_ref().map(|_| self.state.bundle_path())
    }

    fn configured_bundle(&self, path: &Path) -> Result<Bundle, StartError> {
        let pem = std::fs::read(path).map_err(|error| files::io_error(path, error))?;
        Bundle::from_pem(self.config.control_plane_id.trust_domain(), 0, &pem)
            .map_err(|error| StartError::TrustBundle { path: path.to_owned(), error })
    }

    /// The join token, read anew: people replace the file.
    pub(crate) fn join_token(&self) -> Result<zeroize::Zeroizing<String>, StartError> {
        let Attestation::JoinToken(path) = &self.config.attestation;
        let token = |problem: &str| StartError::Token { path: path.clone(), problem: problem.to_owned() };
        let bytes = files::read_private(path)?.ok_or_else(|| token("there is no join token"))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| token("the join token is not text"))?.trim();
        if text.is_empty()
            || text.len() > 4_096
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(token("the file does not hold one join token"));
        }
        Ok(zeroize::Zeroizing::new(text.to_owned()))
    }

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
            // In force even if it cannot be stored: a root may have been taken out because it was stolen.
            self.store_bundle(bundle.clone()).await;
            self.held.lock().bundle = Some(bundle);
        }
        match issued {
            Some(issued) => self.install_svid(issued).await,
            None if newer.is_none() => return Ok(false),
            None => {
                if let Some(current) = self.current() {
                    self.publish(current.svid.clone(), current.renew_after);
                }
            }
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
            && let Some(current) = self.current()
        {
            self.publish(current.svid.clone(), current.renew_after);
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
        let (state, copy) = (self.state.clone(), svid.clone());
        let stored = blocking(move || {
            state.store_svid(&copy, &key, renew_after)?;
            state.forget_pending_key()
        });
        // A full disk must not cost the workload its identity. The pending key stays on disk, so that after a crash the
        // same request can be made again.
        if let Err(error) = stored.await {
            warn!("the new SVID is in use but not stored: {error}");
        }
        self.held.lock().pending = None;
        self.publish(svid, renew_after);
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

    fn publish(&self, svid: Arc<Svid>, renew_after: SystemTime) {
        let identity = {
            let mut held = self.held.lock();
            let Some(bundle) = held.bundle.clone().or_else(|| self.configured()) else { return };
            held.generation += 1;
            let bundles = Bundles::default().with(bundle);
            Identity { generation: held.generation, svid, bundles, renew_after }
        };
        self.sender.send_replace(Some(Arc::new(identity)));
    }

    /// For a stored SVID whose stored bundle is missing.
    fn configured(&self) -> Option<Arc<Bundle>> {
        match &self.config.trust {
            Trust::Bundle(path) => self.configured_bundle(path).ok().map(Arc::new),
            Trust::RootSha256(_) => None,
        }
    }

    pub(crate) fn succeeded(&self, skew_ms: Option<i64>) {
        let now = self.clock.wall();
        let mut progress = self.progress.lock();
        progress.last_success = Some(now);
        progress.issued += 1;
        progress.attempts = 0;
        progress.last_error = None;
        progress.clock_skew_ms = skew_ms;
    }

    pub(crate) fn failed(&self, error: &AttemptError) {
        let mut progress = self.progress.lock();
        progress.failures += 1;
        progress.attempts = progress.attempts.saturating_add(1);
        progress.last_error = Some(error.to_string());
    }

    pub(crate) fn stream_opened(&self) {
        let mut progress = self.progress.lock();
        progress.connected = true;
        progress.last_stream_error = None;
    }

    pub(crate) fn stream_closed(&self) {
        self.progress.lock().connected = false;
    }

    pub(crate) fn stream_error(&self, error: &AttemptError) {
        self.progress.lock().last_stream_error = Some(error.to_string());
    }
}

/// `offered`, if it goes beyond `held`. Sequences never go down, and one sequence never has two contents.
fn newer(held: Option<&Bundle>, offered: Bundle) -> Result<Option<Bundle>, String> {
    let Some(held) = held else { return Ok(Some(offered)) };
    let (old, new) = (held.sequence(), offered.sequence());
    if new < old {
        return Err(format!(
            "a trust bundle with sequence {new} is refused, {old} is in force (was the control plane restored from a backup without a new epoch?)"
        ));
    }
    if new > old {
        return Ok(Some(offered));
    }
    if held.digest() != offered.digest() {
        return Err(format!(
            "a trust bundle with sequence {new} but other roots than the one in force is refused"
        ));
    }
    Ok(None)
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), AttemptError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(AttemptError::Local(format!("cannot write to the state directory: {error}"))),
        Err(_) => Err(AttemptError::Local("writing to the state directory was cut short".to_owned())),
    }
}
