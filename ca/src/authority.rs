//! The CAs: one root, and the issuing CA that signs leaves and replaces itself.
//!
//! An issuing CA is *prepared* at half of its predecessor's life, proven by a throwaway leaf, made *active* at two thirds, and
//! the old one is *retired*: its key is deleted at once, its certificate stays in the chains of its last leaves. The roots do
//! not change, so no peer has to learn anything first. The root's key is read only to sign an issuing CA.
//!
//! The store is the truth and memory follows it (`authority/slots.rs`): a turn begins with reading what is there, so that
//! one whose outcome was not learned is neither repeated nor stuck.

mod ca;
mod error;
mod existing;
mod slots;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use postern_svid::{Bundle, Bundles, Clock, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::check;
use crate::keys::KeyStore;
use crate::profile::Validity;
use crate::store::{AuthorityChange, Kind, State, Store};
use ca::{Ca, make_issuing, make_root};
use slots::{Slots, take_up};

pub use ca::Issuing;
pub use error::AuthorityError;
pub use existing::{ExistingRoot, RootError};

/// How long CAs live.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// The root.
    pub root: Duration,
    /// An issuing CA; at least six times the leaves'.
    pub issuing: Duration,
    /// The longest life of a leaf.
    pub leaf: Duration,
}

impl Lives {
    /// Ten years for the root, which nothing replaces by itself yet: a shorter life would only stop whole meshes
    /// (`docs/architecture.md`). A week for the issuing CA, which replaces itself.
    pub fn with_leaf(leaf: Duration) -> Self {
        const DAY: u64 = 86_400;
        let issuing = Duration::from_secs(7 * DAY).max(leaf.saturating_mul(6));
        Self { root: Duration::from_secs(3_650 * DAY), issuing, leaf }
    }
}

/// The root and the issuing CAs of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    keys: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    lives: Lives,
    root: Ca,
    bundles: Bundles,
    slots: RwLock<Slots>,
    /// One rotation at a time.
    turning: Mutex<()>,
}

/// What a round of maintenance did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// A successor is ready.
    Prepared,
    /// The successor signs from now on.
    Activated,
}

impl Authority {
    /// Takes up the CAs in `store`, or makes them if it holds none.
    pub fn open(
        trust_domain: TrustDomain,
        store: Arc<dyn Store>,
        keys: Arc<dyn KeyStore>,
        clock: Arc<dyn Clock>,
        lives: Lives,
    ) -> Result<Self, AuthorityError> {
        let rows = store.authorities()?;
        let roots: Vec<_> = rows.iter().filter(|r| r.kind == Kind::Root).collect();
        let now = clock.wall();
        let root = match roots.as_slice() {
            [] if rows.is_empty() => make_root(&trust_domain, store.as_ref(), keys.as_ref(), lives, now)?,
            [one] => Ca::from_row(one)?,
            _ => return Err(AuthorityError::Damaged("it holds issuing CAs but not exactly one root")),
        };
        if now > root.validity.not_after {
            return Err(AuthorityError::RootExpired);
        }
        // Signed with once here, so that a wrong, missing or readable-by-all key shows at the start and not in half a week.
        root.signer(keys.as_ref())?;
        if store.bundle_sequence()? == 0 {
            store.raise_bundle_sequence(1)?;
        }
        let bundle =
            Bundle::new(trust_domain.clone(), store.bundle_sequence()?, vec![root.certificate.clone()])?;
        let bundles = Bundles::of(bundle);

        let (slots, made) = take_up(&trust_domain, keys.as_ref(), &root, &bundles, lives, &rows, now)?;
        let set = slots.surplus(&rows);
        if made.is_some() || !set.is_empty() {
            let reason =
                if made.is_some() { "no active issuing CA at the start" } else { "surplus at the start" };
            let add = made.into_iter().collect();
            store.change_authorities(AuthorityChange { at: now, reason, add, set })?;
        }
        // A directory whose database is new may hold keys of one that somebody will put back.
        if !rows.is_empty() {
            slots.sweep(keys.as_ref());
        }
        let slots = RwLock::new(slots);
        Ok(Self { trust_domain, store, keys, clock, lives, root, bundles, slots, turning: Mutex::new(()) })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The issuing CA that signs now.
    pub fn active(&self) -> Arc<Issuing> {
        self.slots.read().active.clone()
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root.certificate
    }

    /// End of the root's life.
    pub fn root_not_after(&self) -> SystemTime {
        self.root.validity.not_after
    }

    /// The trust bundle, as the set that verification wants.
    pub fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// The trust bundle of this trust domain.
    pub fn bundle(&self) -> Arc<Bundle> {
        let own = self.bundles.of_trust_domain(&self.trust_domain);
        own.expect("made with this trust domain's bundle").clone()
    }

    /// Whether `fingerprint` is that of a CA's key, which no leaf may have.
    pub fn holds_key(&self, fingerprint: &[u8; 32]) -> bool {
        let slots = self.slots.read();
        let issuing = [Some(&slots.active), slots.prepared.as_ref()];
        self.root.spki == *fingerprint || issuing.iter().flatten().any(|i| i.ca.spki == *fingerprint)
    }

    /// Moves the issuing CA on if its time has come. Cheap when it has not; called often.
    pub fn maintain(&self) -> Result<Option<Turn>, AuthorityError> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        if self.due(now).is_none() {
            return Ok(None);
        }
        if self.follow_store(now)? {
            return Ok(Some(Turn::Activated));
        }
        match self.due(now) {
            None => Ok(None),
            Some(Turn::Prepared) => self.prepare(now).map(Some),
            Some(Turn::Activated) => self.activate(now).map(Some),
        }
    }

    /// What has to happen now.
    fn due(&self, now: SystemTime) -> Option<Turn> {
        let slots = self.slots.read();
        let Validity { not_before, not_after } = slots.active.ca.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let age = now.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        let due = age >= life * 2 / 3 || left < self.lives.leaf * 2;
        match slots.prepared {
            Some(_) if due => Some(Turn::Activated),
            None if due || age >= life / 2 => Some(Turn::Prepared),
            _ => None,
        }
    }

    /// Takes up what the store holds, should it be something else than memory does: a commit whose success never reached us.
    /// Also tells, before a key is made, that the store can be written to. `true` if none of them could sign any more, after
    /// a sleep longer than an issuing CA's life, and a new one has taken their place.
    fn follow_store(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        let rows = self.store.authorities()?;
        {
            let slots = self.slots.read();
            if slots.are_those_of(&rows) && !slots.have_ended(now) {
                // Of a turn that the store refused only the key is left.
                slots.sweep(self.keys.as_ref());
                return Ok(false);
            }
        }
        if now > self.root.validity.not_after {
            return Err(AuthorityError::RootExpired);
        }
        let (slots, made) = take_up(
            &self.trust_domain,
            self.keys.as_ref(),
            &self.root,
            &self.bundles,
            self.lives,
            &rows,
            now,
        )?;
        let set = slots.surplus(&rows);
        let is_new = made.is_some();
        if is_new || !set.is_empty() {
            let reason =
                if is_new { "the active one ended before a turn" } else { "surplus found at a turn" };
            let add = made.into_iter().collect();
            self.store.change_authorities(AuthorityChange { at: now, reason, add, set })?;
        }
        let active = &slots.active.ca.label;
        if is_new {
            tracing::warn!(%active, "every issuing CA had ended, has this machine slept? A new one signs");
        } else {
            tracing::warn!(%active, "the issuing CAs were taken up from the store anew");
        }
        slots.sweep(self.keys.as_ref());
        *self.slots.write() = slots;
        Ok(is_new)
    }

    fn prepare(&self, now: SystemTime) -> Result<Turn, AuthorityError> {
        let root = self.root.signer(self.keys.as_ref())?;
        let next = make_issuing(&self.trust_domain, self.keys.as_ref(), &self.root, &root, self.lives, now)?;
        check::issuing(&self.trust_domain, &next, &self.bundles, now)?;
        let add = vec![next.ca.row(Kind::Issuing, State::Prepared)];
        let reason = "half of the active one's life is over";
        self.store.change_authorities(AuthorityChange { at: now, reason, add, set: Vec::new() })?;
        self.slots.write().prepared = Some(Arc::new(next));
        self.slots.read().sweep(self.keys.as_ref());
        Ok(Turn::Prepared)
    }

    fn activate(&self, now: SystemTime) -> Result<Turn, AuthorityError> {
        let (active, Some(next)) = ({
            let slots = self.slots.read();
            (slots.active.clone(), slots.prepared.clone())
        }) else {
            return self.prepare(now);
        };
        check::issuing(&self.trust_domain, &next, &self.bundles, now)?;
        let set = vec![(active.ca.label.clone(), State::Retired), (next.ca.label.clone(), State::Active)];
        let reason = "two thirds of the active one's life are over";
        self.store.change_authorities(AuthorityChange { at: now, reason, add: Vec::new(), set })?;
        let slots = Slots { active: next, prepared: None };
        slots.sweep(self.keys.as_ref());
        *self.slots.write() = slots;
        Ok(Turn::Activated)
    }
}

#[cfg(test)]
mod tests;
