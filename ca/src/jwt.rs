//! The JWT authority: keys that sign JWT-SVIDs and replace themselves.
//!
//! A key is *prepared* at half of its predecessor's life and published in the bundle at once; made *active* when everybody has
//! had time to learn it; and the old one is *retired*: its private half is deleted, its public half stays in the bundle until
//! the last token that it signed has ended. Every change of what is published raises the bundle's sequence.
//!
//! The store is the truth and memory follows it, as with the CAs ([`crate::authority`]).

mod error;
mod issue;
mod key;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use postern_svid::{Clock, PeerSvid};

use crate::authority::Authority;
use crate::bundle::REFRESH_HINT;
use crate::issue::{Full, Permit, Replicas};
use crate::keys::KeyStore;
use crate::metrics::Metrics;
use crate::profile::ISSUING_KEY;
use crate::store::{JwtChange, JwtKey, JwtState, JwtStore};
use key::Signer;

pub use error::{JwtAuthorityError, JwtIssueError};
pub use issue::{JwtReply, JwtRequest};

/// What every key's label begins with, and so the name of its private half.
const LABEL: &str = "jwt-";
/// The life of a key. A stolen one signs for anybody until it is taken out of the bundle.
const KEY_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// How long a retired key is published beyond its last token: clocks differ, and verifiers allow for it.
const SLACK: Duration = Duration::from_secs(60);

/// Token lives outside tests: below the first every call would fetch one, and nothing takes a token back before its end.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// The longest life.
pub const MAX_TTL: Duration = Duration::from_secs(3_600);
/// The shortest life at all.
pub const MIN_TEST_TTL: Duration = Duration::from_secs(2);
/// Unless told otherwise.
pub const TTL: Duration = Duration::from_secs(300);

/// Per certificate: an agent keeps tokens by audience, and a workload has few of those.
const REPLICA: (u32, u32) = (10, 50);
/// Requests being worked on; certificates have their own places.
const IN_FLIGHT: usize = 64;

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub struct JwtLives {
    /// A token; also the longest that a caller may ask for.
    pub token: Duration,
    /// A key, from its making on.
    key: Duration,
    /// From a key's publication to its use, at least: five times what the bundle's readers are told to wait between two
    /// looks (SPIFFE Federation, 4.1, recommends three to five).
    propagation: Duration,
    slack: Duration,
    least: Duration,
}

impl JwtLives {
    /// For tokens that live so long. In a test everything else is a fraction or a few times of that.
    pub fn with_token(token: Duration, test: bool) -> Self {
        let (key, propagation) = (KEY_LIFE.max(token * 24), REFRESH_HINT * 5);
        let (slack, least) = (SLACK, MIN_TTL);
        if test && token < MIN_TTL {
            return Self {
                token,
                key: token * 4,
                propagation: token / 2,
                slack: token / 2,
                least: MIN_TEST_TTL,
            };
        }
        Self { token, key, propagation, slack, least }
    }
}

/// The keys of one trust domain and what signs with them.
pub struct JwtAuthority {
    authority: Arc<Authority>,
    store: Arc<dyn JwtStore>,
    keys: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    lives: JwtLives,
    /// The claim `iss`, which SPIFFE does not need and other readers of tokens do.
    issuer: Option<String>,
    metrics: Metrics,
    slots: RwLock<Slots>,
    replicas: Replicas,
    in_flight: Arc<AtomicUsize>,
    turning: Mutex<()>,
}

struct Slots {
    active: Arc<Signer>,
    rows: Vec<JwtKey>,
}

/// What a round of maintenance did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JwtTurn {
    /// A successor is published.
    Prepared,
    /// The successor signs from now on.
    Activated,
    /// A retired key has left the bundle.
    Removed,
}

impl JwtAuthority {
    /// Takes up the keys in `store`, or makes the first. The bundle of `authority` has it when this returns.
    pub fn open(
        authority: Arc<Authority>,
        store: Arc<dyn JwtStore>,
        keys: Arc<dyn KeyStore>,
        clock: Arc<dyn Clock>,
        lives: JwtLives,
        issuer: Option<String>,
        metrics: Metrics,
    ) -> Result<Self, JwtAuthorityError> {
        let now = clock.wall();
        let mut rows = store.jwt_keys()?;
        if !rows.iter().any(|row| row.state == JwtState::Active) {
            // The first, or its successor is not known to anybody yet either: there is nothing to wait for.
            let row = key::make(keys.as_ref(), JwtState::Active, now)?;
            store.change_jwt_keys(JwtChange { add: Some(row), ..JwtChange::at(now) })?;
            rows = store.jwt_keys()?;
        }
        let slots = Slots::of(rows, keys.as_ref())?;
        slots.sweep(keys.as_ref());
        authority.follow()?;
        let (slots, turning) = (RwLock::new(slots), Mutex::new(()));
        let (replicas, in_flight) = (Replicas::new(REPLICA), Arc::default());
        Ok(Self {
            authority,
            store,
            keys,
            clock,
            lives,
            issuer,
            metrics,
            slots,
            replicas,
            in_flight,
            turning,
        })
    }

    /// Asks for a place, before anything costs anything.
    pub fn admit(&self, peer: &PeerSvid) -> Result<Permit, JwtIssueError> {
        let taken = self
            .replicas
            .take(peer, self.clock.monotonic())
            .and_then(|()| Permit::take(&self.in_flight, IN_FLIGHT).ok_or_else(Full::in_flight));
        taken.map_err(|full| self.refused(JwtIssueError::Busy(full.counted(&self.metrics))))
    }

    /// Moves the keys on if their time has come. Cheap when it has not; called often.
    pub fn maintain(&self) -> Result<Option<JwtTurn>, JwtAuthorityError> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        if !self.store.leads() {
            // The replica that leads turns them; this one signs with what it finds.
            self.follow_store()?;
            return Ok(None);
        }
        if self.due(now).is_none() {
            return Ok(None);
        }
        // A commit whose success never reached us is neither repeated nor stuck.
        self.follow_store()?;
        let Some((turn, label)) = self.due(now) else {
            self.authority.follow()?;
            return Ok(None);
        };
        let mut change = JwtChange::at(now);
        match turn {
            JwtTurn::Prepared => {
                change.add = Some(key::make(self.keys.as_ref(), JwtState::Prepared, now)?);
            }
            JwtTurn::Activated => {
                let old = self.slots.read().active.label.clone();
                change.set = vec![(old, JwtState::Retired), (label, JwtState::Active)];
            }
            JwtTurn::Removed => change.remove.push(label),
        }
        self.store.change_jwt_keys(change)?;
        self.follow_store()?;
        self.authority.follow()?;
        Ok(Some(turn))
    }

    /// What has to happen now, and to which key.
    fn due(&self, now: SystemTime) -> Option<(JwtTurn, String)> {
        let slots = self.slots.read();
        let of = |state| slots.rows.iter().find(move |row| row.state == state);
        let passed = |since: SystemTime| now.duration_since(since).unwrap_or_default();
        let left = of(JwtState::Retired)
            .filter(|row| passed(row.since) >= self.lives.token.saturating_add(self.lives.slack));
        if let Some(row) = left {
            return Some((JwtTurn::Removed, row.label.clone()));
        }
        let age = of(JwtState::Active).map(|row| passed(row.made))?;
        match of(JwtState::Prepared) {
            None if age >= self.lives.key / 2 => Some((JwtTurn::Prepared, String::new())),
            Some(next) if age >= self.lives.key * 2 / 3 && passed(next.made) >= self.lives.propagation => {
                Some((JwtTurn::Activated, next.label.clone()))
            }
            _ => None,
        }
    }

    fn follow_store(&self) -> Result<(), JwtAuthorityError> {
        let rows = self.store.jwt_keys()?;
        if self.slots.read().rows == rows {
            return Ok(());
        }
        let slots = Slots::of(rows, self.keys.as_ref())?;
        slots.sweep(self.keys.as_ref());
        *self.slots.write() = slots;
        Ok(())
    }

    fn active(&self) -> Arc<Signer> {
        self.slots.read().active.clone()
    }
}

impl Slots {
    fn of(rows: Vec<JwtKey>, keys: &dyn KeyStore) -> Result<Self, JwtAuthorityError> {
        let active = rows.iter().rev().find(|row| row.state == JwtState::Active);
        let active = active.ok_or(JwtAuthorityError::Damaged("there are JWT keys but none that signs"))?;
        let signer = Signer::new(active, keys.load(&active.label, ISSUING_KEY)?)?;
        Ok(Self { active: Arc::new(signer), rows })
    }

    /// Removes the private halves of all keys but those in use: one that nobody needs can only be stolen. One that stays for now
    /// keeps nothing from working, and the next turn or start tries again.
    fn sweep(&self, keys: &dyn KeyStore) {
        let is_used =
            |name: &String| self.rows.iter().any(|row| row.label == *name && row.state != JwtState::Retired);
        let swept = keys.names().and_then(|names| {
            let mut unused = names.iter().filter(|name| name.starts_with(LABEL) && !is_used(name));
            unused.try_for_each(|name| keys.remove(name))
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "an unused JWT key could not be removed");
        }
    }
}

/// Takes all keys out of the bundle, where the JWT authority is switched off: from then on nobody takes any token that they
/// signed.
pub fn withdraw(
    authority: &Authority,
    store: &dyn JwtStore,
    keys: &dyn KeyStore,
    now: SystemTime,
) -> Result<usize, JwtAuthorityError> {
    let labels: Vec<String> = store.jwt_keys()?.into_iter().map(|row| row.label).collect();
    if labels.is_empty() {
        return Ok(0);
    }
    let count = labels.len();
    store.change_jwt_keys(JwtChange { remove: labels.clone(), ..JwtChange::at(now) })?;
    authority.follow()?;
    for label in labels {
        keys.remove(&label)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
