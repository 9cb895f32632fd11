//! Issuers' keys: fetched in the background, kept, and given up when they are too old.
//!
//! A key server that is gone opens nothing: its keys serve until `maxStale`, and then the claims of its tokens are unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use postern_policy::KeySource;
use postern_svid::spread;
use serde::Serialize;
use tokio::sync::Notify;

use super::fetch;
use super::jwk::KeySet;
use crate::runtime::Owned;
use crate::sidecar::Sidecar;

/// How often it is looked which keys the generation in force wants.
const TICK: Duration = Duration::from_secs(1);
/// How often a file of keys is read.
const FILE: Duration = Duration::from_secs(5);
/// A server's word on how long its set may be kept is taken within these.
const FRESH: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(3_600);
/// How long a set is kept whose server says nothing.
const DEFAULT_FRESH: Duration = Duration::from_secs(300);
/// After a failure, doubled each time.
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Tokens name keys; strangers must not be able to make a sidecar ask more often than this.
const UNKNOWN_KEY: Duration = Duration::from_secs(30);

/// Keys and when they came.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keys: KeySet,
    at: SystemTime,
    since: Instant,
}

/// The keys of one source.
#[derive(Debug)]
pub(super) struct Keyring {
    source: KeySource,
    kept: ArcSwapOption<Kept>,
    state: Mutex<State>,
    asked: AtomicBool,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    error: Option<String>,
    failures: u32,
    tried: Option<Instant>,
}

impl Keyring {
    fn new(source: KeySource) -> Self {
        Self {
            source,
            kept: ArcSwapOption::empty(),
            state: Mutex::default(),
            asked: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// The keys, unless they are too old by either clock: monotonic time stops in suspend, wall time jumps.
    pub(super) fn usable(&self, now: SystemTime) -> Option<Arc<Kept>> {
        let kept = self.kept.load_full()?;
        let age = now.duration_since(kept.at).unwrap_or(Duration::ZERO).max(kept.since.elapsed());
        match &self.source {
            KeySource::Inline(_) => Some(kept),
            KeySource::File { max_stale, .. } | KeySource::Url { max_stale, .. } => {
                (age <= *max_stale).then_some(kept)
            }
        }
    }

    /// Asks for another look at the source; there will be one if the last is long enough ago.
    pub(super) fn refresh(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    fn came(&self, sidecar: &Sidecar, found: Result<KeySet, String>) {
        let mut state = self.state.lock();
        state.tried = Some(Instant::now());
        sidecar.metrics.jwks.fetched(found.is_ok());
        match found {
            Ok(keys) => {
                if state.error.take().is_some() || self.kept.load().is_none() {
                    tracing::info!(
                        source = place(&self.source),
                        keys = keys.len(),
                        "an issuer's keys are here"
                    );
                }
                state.failures = 0;
                let kept = Kept { keys, at: sidecar.clock.wall(), since: Instant::now() };
                self.kept.store(Some(Arc::new(kept)));
            }
            Err(error) => {
                // Once, not at each try.
                if state.error.as_ref() != Some(&error) {
                    tracing::warn!(source = place(&self.source), error, "an issuer's keys cannot be had");
                }
                state.failures = state.failures.saturating_add(1);
                state.error = Some(error);
            }
        }
    }

    /// Waits until the next look is due, or until a token names a key that is not here.
    async fn pause(&self, length: Duration) {
        let due = tokio::time::sleep(length);
        let early = async {
            self.wake.notified().await;
            let tried = self.state.lock().tried;
            let since = tried.map_or(Duration::MAX, |tried| tried.elapsed());
            tokio::time::sleep(UNKNOWN_KEY.saturating_sub(since)).await;
        };
        crate::runtime::select! {
            () = due => {}
            () = early => {}
        }
        self.asked.store(false, Ordering::Relaxed);
    }

    async fn follow(self: Arc<Self>, sidecar: Arc<Sidecar>) {
        match &self.source {
            KeySource::Inline(text) => self.came(&sidecar, KeySet::parse(text.as_bytes())),
            KeySource::File { path, .. } => loop {
                let found = fetch::file(path).await.and_then(|text| KeySet::parse(&text));
                self.came(&sidecar, found);
                tokio::time::sleep(FILE).await;
            },
            KeySource::Url { url, ca_file, max_stale } => loop {
                let (found, fresh) = match fetch::url(url, ca_file.as_deref()).await {
                    Ok(fetched) => (KeySet::parse(&fetched.body), fetched.max_age),
                    Err(error) => (Err(error), None),
                };
                let is_good = found.is_ok();
                self.came(&sidecar, found);
                let length = match is_good {
                    // Keys must not grow too old between two looks.
                    true => fresh
                        .unwrap_or(DEFAULT_FRESH)
                        .clamp(*FRESH.start(), *FRESH.end())
                        .min(*max_stale / 2)
                        .max(BACKOFF),
                    false => {
                        let doublings = self.state.lock().failures.saturating_sub(1).min(6);
                        (BACKOFF * (1 << doublings)).min(MAX_BACKOFF)
                    }
                };
                self.pause(jittered(length)).await;
            },
        }
    }
}

/// A tenth less or more, so that sidecars that started together do not ask together.
fn jittered(length: Duration) -> Duration {
    length.mul_f64(spread::fraction().mul_add(0.2, 0.9))
}

/// Where keys come from, for people.
fn place(source: &KeySource) -> &str {
    match source {
        KeySource::File { path, .. } => path,
        KeySource::Url { url, .. } => url,
        KeySource::Inline(_) => "MeshDefaults",
    }
}

/// The keys of all sources that the generation in force wants.
#[derive(Debug, Default)]
pub struct Keyrings {
    rings: ArcSwap<Vec<Arc<Keyring>>>,
    wanted: Notify,
}

impl Keyrings {
    pub(super) fn of(&self, source: &KeySource) -> Option<Arc<Keyring>> {
        self.rings.load().iter().find(|ring| ring.source == *source).cloned()
    }

    /// The keyrings of a generation as if `keys` had just come from every inline source.
    #[cfg(test)]
    pub(super) fn with(generation: &postern_policy::Generation, text: &serde_json::Value) -> Self {
        let rings = generation.defaults().jwt.issuers.iter().map(|issuer| {
            let ring = Keyring::new(issuer.keys.clone());
            if let KeySource::Inline(_) = issuer.keys {
                let keys = KeySet::parse(text.to_string().as_bytes()).unwrap();
                let kept = Kept { keys, at: SystemTime::UNIX_EPOCH, since: Instant::now() };
                ring.kept.store(Some(Arc::new(kept)));
            }
            Arc::new(ring)
        });
        Self { rings: ArcSwap::from_pointee(rings.collect()), wanted: Notify::new() }
    }

    /// A request wants keys that nobody has asked for yet.
    pub(super) fn wake(&self) {
        self.wanted.notify_one();
    }

    /// What is known of a source's keys; `None` if nobody has asked it.
    pub fn state(&self, source: &KeySource, now: SystemTime) -> Option<KeyringState> {
        let ring = self.of(source)?;
        let kept = ring.kept.load();
        let age =
            |kept: &Kept| now.duration_since(kept.at).unwrap_or(Duration::ZERO).max(kept.since.elapsed());
        Some(KeyringState {
            source: place(&ring.source).to_owned(),
            keys: kept.as_ref().map_or(0, |kept| kept.keys.len()),
            age_seconds: kept.as_ref().map(|kept| age(kept).as_secs()),
            usable: ring.usable(now).is_some(),
            last_error: ring.state.lock().error.clone(),
        })
    }
}

/// What is known of one source's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyringState {
    /// URL or path.
    pub source: String,
    /// Keys that signatures can be checked with.
    pub keys: usize,
    /// How long ago they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Whether tokens are verified with them.
    pub usable: bool,
    /// Why the last look at the source failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Keeps the keys that the generation in force wants, for ever.
pub async fn keep(sidecar: Arc<Sidecar>) {
    let mut tasks: Vec<(Arc<Keyring>, Owned)> = Vec::new();
    loop {
        let policy = sidecar.snapshots.load().policy.clone();
        let mut wanted: Vec<KeySource> = Vec::new();
        if let Some(generation) = policy.filter(|generation| generation.asks_tokens()) {
            for issuer in generation.defaults().jwt.issuers.iter() {
                if !wanted.contains(&issuer.keys) {
                    wanted.push(issuer.keys.clone());
                }
            }
        }
        let before = tasks.len();
        tasks.retain(|(ring, _)| wanted.contains(&ring.source));
        let mut is_changed = tasks.len() != before;
        for source in wanted {
            if tasks.iter().all(|(ring, _)| ring.source != source) {
                let ring = Arc::new(Keyring::new(source));
                let task = Owned::spawn(Arc::clone(&ring).follow(Arc::clone(&sidecar)));
                tasks.push((ring, task));
                is_changed = true;
            }
        }
        if is_changed {
            let rings = tasks.iter().map(|(ring, _)| Arc::clone(ring)).collect();
            sidecar.keyrings.rings.store(Arc::new(rings));
        }
        let now = sidecar.clock.wall();
        let usable = tasks.iter().filter(|(ring, _)| ring.usable(now).is_some()).count();
        sidecar.metrics.jwks.state(tasks.len(), usable);
        crate::runtime::select! {
            () = tokio::time::sleep(TICK) => {}
            () = sidecar.keyrings.wanted.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::verify::tests::SIGNERS;

    #[test]
    fn keys_serve_until_they_are_too_old_by_either_clock() {
        let source = KeySource::File { path: "/keys".into(), max_stale: Duration::from_secs(10) };
        let ring = Keyring::new(source);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        assert!(ring.usable(at).is_none(), "none came yet");
        let came = |since| ring.kept.store(Some(Arc::new(Kept { keys: SIGNERS.keys(), at, since })));
        came(Instant::now());
        assert!(ring.usable(at + Duration::from_secs(9)).is_some());
        assert!(ring.usable(at + Duration::from_secs(11)).is_none());
        // Set back, the wall clock makes no key younger.
        came(Instant::now().checked_sub(Duration::from_secs(11)).expect("this machine runs for longer"));
        assert!(ring.usable(at - Duration::from_secs(500)).is_none());
    }
}
