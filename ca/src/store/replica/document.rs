//! The trust that replicas share, as one value: the CAs, the taint and deny lists, the keys of JWT-SVIDs, and the trust bundle's
//! version. One value is one version, so that an edit rests on all of what it was decided from.
//!
//! An edit does to it what the same call of [`Store`](crate::store::Store) does to a database (`store/sqlite`).

use std::time::SystemTime;

use postern_svid::Revoked;

use super::wire;
use crate::store::{
    Authority, AuthorityChange, JwtChange, JwtKey, Kind, Reason, Revocation, State, StoreError, lists,
};

/// What is shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document {
    /// Version of the trust bundle.
    pub(crate) sequence: u64,
    /// Leaves issued before are to be renewed at once.
    pub(crate) renew_before: Option<SystemTime>,
    /// All CAs, oldest first.
    pub(crate) authorities: Vec<Held>,
    /// Entries of both lists.
    pub(crate) revocations: Vec<Revocation>,
    /// Keys of JWT-SVIDs.
    pub(crate) jwt_keys: Vec<JwtKey>,
}

/// A CA, and why it is as it is. Of an issuing CA the replica is always named.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) row: Authority,
    /// Why it is in its state.
    pub(crate) reason: String,
    /// Why it is tainted.
    pub(crate) tainted_for: Option<Reason>,
}

impl Document {
    /// Reads the value; refuses another trust domain's.
    pub(crate) fn decode(value: &[u8], trust_domain: &str) -> Result<Self, String> {
        wire::decode(value, trust_domain)
    }

    /// The value.
    pub(crate) fn encode(&self, trust_domain: &str) -> Vec<u8> {
        wire::encode(self, trust_domain)
    }

    fn raise(&mut self) -> u64 {
        self.sequence = self.sequence.saturating_add(1);
        self.sequence
    }

    /// Whether there is a root.
    pub(crate) fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    pub(crate) fn change(&mut self, change: &AuthorityChange, replica: &str) -> Result<(), StoreError> {
        let sequence = if change.publishes { self.raise() } else { 0 };
        for new in &change.add {
            let is_known = |held: &Held| held.row.label == new.label || held.row.key_id == new.key_id;
            if self.authorities.iter().any(is_known) {
                return Err(StoreError::Conflict("a CA of this name or key is there already"));
            }
            let mut row = new.clone();
            row.since = change.at;
            row.sequence = if row.state.is_trusted() { sequence } else { 0 };
            row.replica = (row.kind == Kind::Issuing).then(|| replica.to_owned());
            self.authorities.push(Held { row, reason: change.reason.clone(), tainted_for: None });
        }
        for (label, state) in &change.set {
            let held = self.authorities.iter_mut().find(|held| held.row.label == *label);
            let is_own = held.as_ref().is_some_and(|held| held.row.replica.as_deref() == Some(replica));
            match held {
                Some(held) if held.row.state != *state => {
                    held.row.state = *state;
                    held.row.since = change.at;
                    held.reason.clone_from(&change.reason);
                    if *state == State::Published {
                        held.row.sequence = held.row.sequence.max(sequence);
                    }
                }
                // Of its own issuing CAs a replica knows better than what it last wrote here.
                _ if is_own => {}
                _ => return Err(StoreError::Conflict("a CA is no longer in the state it was read in")),
            }
        }
        let active = |held: &&Held| held.row.kind == Kind::Root && held.row.state == State::Active;
        if self.authorities.iter().filter(active).count() > 1 {
            return Err(StoreError::Conflict("another replica has made the root"));
        }
        for taint in &change.taints {
            let told = match &taint.entry {
                Revoked::Authority(key_id) => {
                    let of = self.authorities.iter().find(|held| held.row.key_id == *key_id);
                    of.and_then(|held| held.tainted_for.clone())
                }
                _ => None,
            };
            let reason = told.unwrap_or_else(|| taint.reason.clone());
            self.enter(Revocation { reason, ..taint.clone() });
        }
        lists(&self.revocations).map_err(StoreError::Lists)?;
        if change.renews {
            // What was issued within this very millisecond is meant as well.
            self.renew_before = Some(wire::whole_ms(change.at) + std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    /// Takes over what the replica itself says of its issuing CAs; whether that changed anything.
    pub(crate) fn tell_own(&mut self, own: &[Authority], replica: &str) -> bool {
        let mut changed = false;
        for held in self.authorities.iter_mut().filter(|held| held.row.replica.as_deref() == Some(replica)) {
            let now = own.iter().find(|row| row.label == held.row.label);
            let (state, since) = match now {
                Some(row) => (row.state, row.since),
                // Its database was lost, or has long forgotten it.
                None => (State::Retired, held.row.since),
            };
            if held.row.state != state {
                (held.row.state, held.row.since) = (state, since);
                changed = true;
            }
        }
        changed
    }

    pub(crate) fn revoke(&mut self, new: Revocation) -> Result<u64, StoreError> {
        if let Some(old) = self.revocations.iter().find(|one| one.entry == new.entry) {
            new.may_replace(old)?;
        }
        if self.enter(new) {
            return Ok(self.sequence);
        }
        lists(&self.revocations).map_err(StoreError::Lists)?;
        Ok(self.raise())
    }

    /// Puts an entry into the place of one that names the same; whether there was one.
    fn enter(&mut self, new: Revocation) -> bool {
        match self.revocations.iter_mut().find(|one| one.entry == new.entry) {
            Some(old) => {
                *old = new;
                true
            }
            None => {
                self.revocations.push(new);
                false
            }
        }
    }

    pub(crate) fn allow_again(&mut self, entry: &Revoked) -> Option<u64> {
        let before = self.revocations.len();
        // A taint is for ever: what a stolen key has signed stays untrustworthy.
        if !matches!(entry, Revoked::Authority(_)) {
            self.revocations.retain(|one| one.entry != *entry);
        }
        (self.revocations.len() != before).then(|| self.raise())
    }

    pub(crate) fn end_revocations(&mut self, now: SystemTime) -> Option<u64> {
        let before = self.revocations.len();
        self.revocations.retain(|one| {
            matches!(one.entry, Revoked::Authority(_)) || one.ends.is_none_or(|ends| ends > now)
        });
        (self.revocations.len() != before).then(|| self.raise())
    }

    pub(crate) fn taint(&mut self, label: &str, reason: Reason, at: SystemTime) -> bool {
        let held = self.authorities.iter_mut().find(|held| held.row.label == label);
        let Some(held) = held.filter(|held| held.row.tainted.is_none()) else { return false };
        held.row.tainted = Some(at);
        held.tainted_for = Some(reason);
        true
    }

    pub(crate) fn change_jwt_keys(&mut self, change: &JwtChange) -> Result<(), StoreError> {
        if let Some(new) = &change.add {
            if self.jwt_keys.iter().any(|key| key.label == new.label || key.key_id == new.key_id) {
                return Err(StoreError::Conflict("a JWT key of this name is there already"));
            }
            self.jwt_keys.push(new.clone());
        }
        for (label, state) in &change.set {
            let key = self.jwt_keys.iter_mut().find(|key| key.label == *label && key.state != *state);
            let key =
                key.ok_or(StoreError::Conflict("a JWT key is no longer in the state it was read in"))?;
            (key.state, key.since) = (*state, change.at);
        }
        for label in &change.remove {
            let before = self.jwt_keys.len();
            self.jwt_keys.retain(|key| key.label != *label);
            if self.jwt_keys.len() == before {
                return Err(StoreError::Conflict("a JWT key has gone meanwhile"));
            }
        }
        if change.add.is_some() || !change.remove.is_empty() {
            self.raise();
        }
        Ok(())
    }

    /// Forgets CAs that sign no more, because they are retired or their replica has gone, and whose last leaf ended before `before`;
    /// whether there were any.
    pub(crate) fn prune(&mut self, before: SystemTime) -> bool {
        let all = self.authorities.len();
        self.authorities.retain(|held| {
            let signs_no_more = held.row.state == State::Retired || held.row.kind == Kind::Issuing;
            !signs_no_more || held.row.not_after >= before
        });
        self.authorities.len() != all
    }
}
