//! The CAs: the roots, and the issuing CA that signs leaves and replaces itself.
//!
//! An issuing CA is *prepared* at half of its predecessor's life, proven by a throwaway leaf, made *active* at two thirds, and
//! the old one is *retired*: its key is deleted at once, its certificate stays in the chains of its last leaves. The roots do
//! not change, so no peer has to learn anything first. The root's key is read only to sign an issuing CA. Roots follow each other
//! in steps that wait for the mesh (`authority/rotation.rs`).
//!
//! The store is the truth and memory follows it (`authority/slots.rs`): a turn begins with reading what is there, so that
//! one whose outcome was not learned is neither repeated nor stuck.

mod ca;
mod error;
mod existing;
mod gates;
mod import;
mod roots;
mod rotation;
mod slots;
mod tiers;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use postern_svid::{Bundle, Bundles, Clock, Revoked, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::check;
use crate::keys::KeyStore;
use crate::profile::Validity;
use crate::store::{AuthorityChange, State, Store, Trust};
use ca::{make_issuing, make_root};
use roots::Roots;
use slots::{Slots, take_up};

pub use ca::Issuing;
pub use error::AuthorityError;
pub(crate) use existing::try_out;
pub use existing::{ExistingRoot, RootError};
pub use gates::{Laggard, Outlook, Step};
pub use import::{
    ImportError, ImportedTier, TierRequest, check_root, import_root, import_tier, request_tier,
};
pub use rotation::{Mode, Refused};
pub use tiers::{Alarm, chain};

/// When what the store holds is taken up because we have just written it.
const OWN_STEP: &str = "found after a step";

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
    /// Ten years for the root, whose successor everybody has to learn of. A week for the issuing CA, which replaces itself
    /// unseen.
    pub fn with_leaf(leaf: Duration) -> Self {
        const DAY: u64 = 86_400;
        let issuing = Duration::from_secs(7 * DAY).max(leaf.saturating_mul(6));
        Self { root: Duration::from_secs(3_650 * DAY), issuing, leaf }
    }
}

/// The roots and the issuing CAs of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    keys: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    lives: Lives,
    view: RwLock<View>,
    /// One rotation at a time.
    turning: Mutex<()>,
}

/// What the store held when it was last read.
struct View {
    roots: Roots,
    slots: Slots,
}

/// What a round of maintenance did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// A successor is ready.
    Prepared,
    /// The successor signs from now on.
    Activated,
    /// Another tier signs from now on, and an issuing CA under it.
    TierActivated,
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
        let now = clock.wall();
        let mut trust = store.trust()?;
        trust.check_clock(now)?;
        let is_new = trust.authorities.is_empty();
        if is_new {
            let root = make_root(&trust_domain, keys.as_ref(), lives, now)?;
            let add = vec![root.row(State::Active)];
            let change = AuthorityChange::new(now, "first start");
            store.change_authorities(AuthorityChange { add, publishes: true, ..change })?;
            trust = store.trust()?;
        } else if trust.sequence == 0 {
            store.raise_bundle_sequence(1)?;
            trust = store.trust()?;
        }
        let view =
            View::of(&trust_domain, store.as_ref(), keys.as_ref(), lives, &trust, now, "at the start")?;
        let (parent, _) = view.roots.parent(now)?;
        // Signed with once here, so that a wrong, missing or readable-by-all key shows at the start and not in half a week.
        parent.signer(keys.as_ref())?;
        // A directory whose database is new may hold keys of one that somebody will put back.
        if !is_new {
            view.sweep(keys.as_ref());
            view.roots.tiers.sweep(keys.as_ref(), true);
        }
        let view = RwLock::new(view);
        Ok(Self { trust_domain, store, keys, clock, lives, view, turning: Mutex::new(()) })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The issuing CA that signs now.
    pub fn active(&self) -> Arc<Issuing> {
        self.view.read().slots.active.clone()
    }

    /// The CAs that are in the trust bundle or sign, and those to come: kind, state, name, end.
    pub(crate) fn ends(&self) -> Vec<(&'static str, &'static str, String, SystemTime)> {
        let view = self.view.read();
        let issuing =
            [(State::Active, Some(&view.slots.active)), (State::Prepared, view.slots.prepared.as_ref())];
        let issuing = issuing.into_iter().filter_map(|(state, one)| Some((state, &one?.ca)));
        let roots = view.roots.iter().map(|root| ("root", root.state.name(), &root.ca));
        let tiers = view.roots.tiers.all.iter().filter(|tier| tier.state != State::Retired);
        let tiers = tiers.map(|tier| ("tier", tier.state.name(), &tier.ca));
        let all = roots.chain(tiers).chain(issuing.map(|(state, ca)| ("issuing", state.name(), ca)));
        all.map(|(kind, state, ca)| (kind, state, ca.label.clone(), ca.validity.not_after)).collect()
    }

    /// Valid leaves of a CA that is tainted, or whose root is. The store is asked only if there is such a one.
    pub fn tainted_leaves(&self, now: SystemTime) -> Result<usize, AuthorityError> {
        let tainted = self.view.read().roots.tainted_issuers();
        if tainted.is_empty() {
            return Ok(0);
        }
        Ok(self.store.live(now)?.iter().filter(|leaf| tainted.contains(&leaf.issuer)).count())
    }

    /// The certificate of the root that signs issuing CAs now.
    pub fn root(&self) -> CertificateDer<'static> {
        self.view.read().roots.active().ca.certificate.clone()
    }

    /// End of that root's life.
    pub fn root_not_after(&self) -> SystemTime {
        self.view.read().roots.active().ca.validity.not_after
    }

    /// End of the life of the tier that signs issuing CAs, if the root is offline.
    pub fn tier_not_after(&self) -> Option<SystemTime> {
        let view = self.view.read();
        let active = view.roots.tiers.all.iter().find(|tier| tier.state == State::Active);
        active.filter(|_| view.roots.active().is_offline).map(|tier| tier.ca.validity.not_after)
    }

    /// Whether the key of the active root is elsewhere.
    pub fn is_root_offline(&self) -> bool {
        self.view.read().roots.active().is_offline
    }

    /// What only an operator can bring about.
    pub fn alarms(&self) -> Result<Vec<Alarm>, AuthorityError> {
        if !self.is_root_offline() {
            return Ok(Vec::new());
        }
        Ok(Alarm::of(&self.store.authorities()?, self.clock.wall()))
    }

    /// The trust bundle, as the set that verification wants.
    pub fn bundles(&self) -> Bundles {
        self.view.read().roots.bundles.clone()
    }

    /// The trust bundle of this trust domain.
    pub fn bundle(&self) -> Arc<Bundle> {
        let bundles = self.bundles();
        let own = bundles.of_trust_domain(&self.trust_domain);
        own.expect("made with this trust domain's bundle").clone()
    }

    /// Leaves issued before this are to be renewed at once.
    pub fn renew_before(&self) -> Option<SystemTime> {
        self.view.read().roots.renew_before
    }

    /// Whether the issuing CA with this key identifier is another replica's, and trusted: then so is what it has issued.
    pub fn is_another_replicas(&self, issuer: &[u8]) -> bool {
        self.view.read().roots.is_another_replicas(issuer)
    }

    /// Whether a leaf of the issuing CA with this key identifier may be handed out once more.
    pub fn stands_by(&self, issuer: &[u8]) -> bool {
        self.view.read().roots.stand_by(issuer)
    }

    /// The first of these that is on the deny list.
    pub fn denies(&self, candidates: impl IntoIterator<Item = Revoked>) -> Option<Revoked> {
        let bundle = self.bundle();
        candidates.into_iter().find(|one| bundle.revocations().contains(one))
    }

    /// Whether `fingerprint` is that of a CA's key, which no leaf may have.
    pub fn holds_key(&self, fingerprint: &[u8; 32]) -> bool {
        let view = self.view.read();
        let issuing = [Some(&view.slots.active), view.slots.prepared.as_ref()];
        view.roots.iter().any(|root| root.ca.spki == *fingerprint)
            || view.roots.tiers.all.iter().any(|tier| tier.ca.spki == *fingerprint)
            || issuing.iter().flatten().any(|i| i.ca.spki == *fingerprint)
    }

    /// Takes up what the store holds, should it be something else than memory does: an operator's work, or a commit whose success
    /// never reached us. Tells if a new issuing CA had to be made.
    pub fn follow(&self) -> Result<Option<Turn>, AuthorityError> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        let (_, made) = self.take_up("found by the control plane", now)?;
        Ok(self.come_home(now).or_else(|| made.then_some(Turn::Activated)))
    }

    /// Another replica has let a new root sign, or an operator has brought another tier: this one's issuing CA is still under the
    /// old one. First a new one, then its turn.
    fn come_home(&self, now: SystemTime) -> Option<Turn> {
        let mut turned = None;
        for _ in 0..2 {
            if !self.view.read().is_astray(now) {
                break;
            }
            match self.turn(now) {
                Ok(turn) => turned = turn.or(turned),
                Err(error) => {
                    // What else was found is in force all the same, and the next round of maintenance tries again.
                    tracing::error!(%error, "there is no issuing CA under the new root or tier yet");
                    break;
                }
            }
        }
        turned
    }

    fn reason(&self, now: SystemTime, planned: &'static str) -> &'static str {
        let view = self.view.read();
        match (view.is_astray(now), view.roots.active().is_offline) {
            (true, true) => "another tier signs",
            (true, false) => "another root signs",
            _ => planned,
        }
    }

    /// When the first entry of the deny list ends.
    pub fn next_end(&self) -> Option<SystemTime> {
        self.view.read().roots.next_end
    }

    /// Moves the issuing CA on if its time has come, and the tier if one is there to follow. Cheap when it has not; called often.
    pub fn maintain(&self) -> Result<Option<Turn>, AuthorityError> {
        let _one = self.turning.lock();
        self.turn(self.clock.wall())
    }

    fn turn(&self, now: SystemTime) -> Result<Option<Turn>, AuthorityError> {
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
            Some(Turn::TierActivated) => self.activate_tier(now),
        }
    }

    /// What has to happen now.
    fn due(&self, now: SystemTime) -> Option<Turn> {
        let view = self.view.read();
        let root = view.roots.active();
        if root.is_offline && view.roots.tiers.due(&root.ca, now).is_some() {
            return Some(Turn::TierActivated);
        }
        let Validity { not_before, not_after } = view.slots.active.ca.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let age = now.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        let due = age >= life * 2 / 3 || left < self.lives.leaf * 2 || view.is_astray(now);
        match &view.slots.prepared {
            Some(next) if !view.roots.is_under_parent(&next.ca, now) => Some(Turn::Prepared),
            Some(_) if due => Some(Turn::Activated),
            None if due || age >= life / 2 => Some(Turn::Prepared),
            _ => None,
        }
    }

    /// As [`follow`](Self::follow) before a turn. Also tells, before a key is made, that the store can be written to. `true` if
    /// none of the issuing CAs could sign any more, after a sleep longer than their life, and a new one has taken their place.
    fn follow_store(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        self.take_up("found at a turn", now).map(|(_, made)| made)
    }

    /// Whether something else was there, and whether a new issuing CA had to be made.
    fn take_up(&self, when: &'static str, now: SystemTime) -> Result<(bool, bool), AuthorityError> {
        let trust = self.store.trust()?;
        // Before anything is decided by this time, and before any key is made.
        trust.check_clock(now)?;
        let before = {
            let view = self.view.read();
            if view.is_that_of(&trust) && !view.slots.cannot_sign(now) {
                // Of a turn that the store refused only the key is left.
                view.sweep(self.keys.as_ref());
                return Ok((false, false));
            }
            view.slots.active.ca.label.clone()
        };
        let (td, store, keys) = (&self.trust_domain, self.store.as_ref(), self.keys.as_ref());
        let view = View::of(td, store, keys, self.lives, &trust, now, when)?;
        let active = &view.slots.active.ca.label;
        let made = !trust.authorities.iter().any(|row| row.label == *active);
        if made {
            tracing::warn!(%active, "no issuing CA could sign any more, has this machine slept, is one tainted, or does another tier sign? A new one signs");
        } else if *active != before && when != OWN_STEP {
            tracing::warn!(%active, "the issuing CAs were taken up from the store anew");
        }
        view.sweep(keys);
        *self.view.write() = view;
        Ok((true, made))
    }

    fn prepare(&self, now: SystemTime) -> Result<Turn, AuthorityError> {
        let (next, set) = {
            let view = self.view.read();
            // One under a CA that signs no more was made for nothing.
            let before = view.slots.prepared.as_ref();
            let set: Vec<_> = before.map(|one| (one.ca.label.clone(), State::Retired)).into_iter().collect();
            let (parent, _) = view.roots.parent(now)?;
            let signer = parent.signer(self.keys.as_ref())?;
            let made =
                make_issuing(&self.trust_domain, self.keys.as_ref(), parent, &signer, self.lives, now)?;
            (made, set)
        };
        check::issuing(&self.trust_domain, &next, &self.bundles(), now)?;
        let add = vec![next.ca.row(State::Prepared)];
        let reason = self.reason(now, "half of the active one's life is over");
        self.change(AuthorityChange { add, set, ..AuthorityChange::new(now, reason) })?;
        Ok(Turn::Prepared)
    }

    fn activate(&self, now: SystemTime) -> Result<Turn, AuthorityError> {
        let (active, Some(next)) = ({
            let view = self.view.read();
            (view.slots.active.clone(), view.slots.prepared.clone())
        }) else {
            return self.prepare(now);
        };
        check::issuing(&self.trust_domain, &next, &self.bundles(), now)?;
        let set = vec![(active.ca.label.clone(), State::Retired), (next.ca.label.clone(), State::Active)];
        let reason = self.reason(now, "two thirds of the active one's life are over");
        let change = AuthorityChange::new(now, reason);
        self.change(AuthorityChange { set, ..change })?;
        Ok(Turn::Activated)
    }

    /// The next tier signs from now on. What is written is that; an issuing CA under it follows from it.
    fn activate_tier(&self, now: SystemTime) -> Result<Option<Turn>, AuthorityError> {
        let set = {
            let view = self.view.read();
            let Some((active, next)) = view.roots.tiers.due(&view.roots.active().ca, now) else {
                return Ok(None);
            };
            vec![(active.ca.label.clone(), State::Retired), (next.ca.label.clone(), State::Active)]
        };
        let change = AuthorityChange::new(now, "two thirds of the active tier's life are over");
        self.change(AuthorityChange { set, ..change })?;
        self.come_home(now);
        Ok(Some(Turn::TierActivated))
    }

    /// Writes a step and takes up what the store holds then. A step that was written and could not be taken up is taken up by
    /// the next round.
    fn change(&self, change: AuthorityChange) -> Result<(), AuthorityError> {
        let now = change.at;
        self.store.change_authorities(change)?;
        self.take_up(OWN_STEP, now).map(drop)
    }
}

/// Key identifier of the CA that signed this one; a root's own; of a tier that of its root. `None` if its certificate cannot be read.
pub fn parent(row: &crate::store::Authority) -> Option<Vec<u8>> {
    ca::Ca::from_row(row).ok().map(|ca| ca.issuer)
}

impl View {
    /// Takes up the rows of `trust`. Makes an issuing CA if none can sign, and writes it, in a step that begins `when`.
    fn of(
        td: &TrustDomain,
        store: &dyn Store,
        keys: &dyn KeyStore,
        lives: Lives,
        trust: &Trust,
        now: SystemTime,
        when: &'static str,
    ) -> Result<Self, AuthorityError> {
        let roots = Roots::of(td, trust)?;
        let root = &roots.active().ca;
        if now > root.validity.not_after {
            return Err(AuthorityError::RootExpired);
        }
        let rows = &trust.authorities;
        let (parent, tiers) = roots.parent(now)?;
        let (slots, made) = take_up(td, keys, parent, &roots, lives, rows, now)?;
        let mut set = slots.surplus(rows);
        set.extend(tiers);
        let signed = |label: &str| rows.iter().any(|row| row.label == label && row.state == State::Active);
        let moved = roots.issuers.iter().any(|one| signed(&one.label) && one.parent != parent.key_id);
        if made.is_none() && set.is_empty() {
            return Ok(Self { roots, slots });
        }
        let is_tainted = |label: &str| {
            roots.is_tainted(label) || rows.iter().any(|row| row.label == label && row.tainted.is_some())
        };
        let reason = match made {
            Some(_) if set.iter().any(|(label, _)| is_tainted(label)) => "the active one is tainted",
            Some(_) if moved => "another tier signs",
            Some(_) => "no active issuing CA",
            None => "surplus",
        };
        let mut change = AuthorityChange::new(now, format!("{reason}, {when}"));
        change.renews = set.iter().any(|(label, state)| {
            // What a successor that never signed has left needs nobody to renew.
            *state == State::Retired && signed(label) && is_tainted(label)
        });
        change.add = made.into_iter().collect();
        change.set = set;
        store.change_authorities(change)?;
        let roots = Roots::of(td, &store.trust()?)?;
        Ok(Self { roots, slots })
    }

    fn is_that_of(&self, trust: &Trust) -> bool {
        self.roots.are_those_of(trust) && self.slots.are_those_of(&trust.authorities)
    }

    /// Whether what signs leaves is not under the root or tier that signs issuing CAs.
    fn is_astray(&self, now: SystemTime) -> bool {
        !self.roots.is_under_parent(&self.slots.active.ca, now)
    }

    fn sweep(&self, keys: &dyn KeyStore) {
        self.slots.sweep(keys);
        self.roots.sweep(keys);
        self.roots.tiers.sweep(keys, false);
    }
}

#[cfg(test)]
mod tests;
