//! Which issuing CAs are in use, taken from the store's rows; the rest, and its keys, is cleared away.

use std::sync::Arc;
use std::time::SystemTime;

use postern_svid::TrustDomain;

use super::ca::{Ca, Issuing, make_issuing};
use super::roots::Roots;
use super::{AuthorityError, Lives};
use crate::check;
use crate::keys::{KeyError, KeyStore};
use crate::store::{Authority as Row, Kind, State};

/// What every issuing CA's label begins with, and so the name of its key.
pub(super) const ISSUING: &str = "issuing-";

/// The issuing CAs in use.
pub(super) struct Slots {
    pub(super) active: Arc<Issuing>,
    pub(super) prepared: Option<Arc<Issuing>>,
}

impl Slots {
    /// Whether the rows say the same.
    pub(super) fn are_those_of(&self, rows: &[Row]) -> bool {
        let mut live: Vec<_> = good(rows).map(|row| (row.label.as_str(), row.state)).collect();
        let active = (self.active.ca.label.as_str(), State::Active);
        let prepared = self.prepared.iter().map(|next| (next.ca.label.as_str(), State::Prepared));
        for ours in prepared.chain([active]) {
            let Some(at) = live.iter().position(|row| *row == ours) else { return false };
            live.swap_remove(at);
        }
        live.is_empty()
    }

    /// Whether none of them can sign now: they have ended, or were made while the clock was ahead.
    pub(super) fn cannot_sign(&self, now: SystemTime) -> bool {
        let mut all = [Some(&self.active), self.prepared.as_ref()].into_iter().flatten();
        all.all(|issuing| issuing.not_after() <= now || issuing.ca.validity.not_before > now)
    }

    /// Rows that are not retired and not in use: a turn broken off has left them, they ended while nobody looked, or they are
    /// tainted.
    pub(super) fn surplus(&self, rows: &[Row]) -> Vec<(String, State)> {
        let surplus = live(rows).filter(|row| !self.hold(&row.label));
        surplus.map(|row| (row.label.clone(), State::Retired)).collect()
    }

    /// Removes the keys of all issuing CAs but those in use: a key that nobody needs can only be stolen. One that stays for now
    /// keeps nothing from working, and the next turn or start tries again.
    pub(super) fn sweep(&self, keys: &dyn KeyStore) {
        let swept: Result<(), KeyError> = keys.names().and_then(|names| {
            let mut unused = names.iter().filter(|name| name.starts_with(ISSUING) && !self.hold(name));
            unused.try_for_each(|name| keys.remove(name))
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "an unused key of an issuing CA could not be removed");
        }
    }

    fn hold(&self, label: &str) -> bool {
        self.active.ca.label == label || self.prepared.as_ref().is_some_and(|next| next.ca.label == label)
    }
}

/// Rows to take CAs from.
struct Found<'a> {
    trust_domain: &'a TrustDomain,
    keys: &'a dyn KeyStore,
    roots: &'a Roots,
    parent: &'a Ca,
    rows: &'a [Row],
    now: SystemTime,
}

impl Found<'_> {
    /// The newest issuing CA in `state` that is valid now, with its key loaded and a throwaway leaf verified. One that a tainted tier
    /// has signed is none, once another one signs.
    fn usable(&self, state: State) -> Result<Option<Arc<Issuing>>, AuthorityError> {
        let mut newest = None;
        let is_valid = |row: &&Row| (row.not_before..row.not_after).contains(&self.now);
        for row in good(self.rows).filter(|row| row.state == state).filter(is_valid) {
            let ca = Ca::from_row(row)?;
            if ca.issuer == self.parent.key_id || !self.roots.is_tainted(&ca.label) {
                newest = Some(ca);
            }
        }
        let Some(ca) = newest else { return Ok(None) };
        let signer = ca.signer(self.keys)?;
        let above = self.roots.above(&ca.issuer);
        let issuing = Issuing { ca, signer, above };
        check::issuing(self.trust_domain, &issuing, &self.roots.bundles, self.now)?;
        Ok(Some(Arc::new(issuing)))
    }
}

/// Ours: another replica's are its own business.
fn live(rows: &[Row]) -> impl Iterator<Item = &Row> {
    let is_ours = |row: &&Row| row.kind == Kind::Issuing && row.replica.is_none();
    rows.iter().filter(is_ours).filter(|row| row.state != State::Retired)
}

/// Those of them that may sign.
fn good(rows: &[Row]) -> impl Iterator<Item = &Row> {
    live(rows).filter(|row| row.tainted.is_none())
}

/// The issuing CAs of `rows` under `parent`, a root or its tier; if none of them can sign any more, a new one, with its row: at the
/// first start, after a sleep longer than an issuing CA's life, when the active one is tainted, and when another tier signs. Its
/// successor was not made to replace a stolen one: its key lay beside it.
pub(super) fn take_up(
    td: &TrustDomain,
    keys: &dyn KeyStore,
    parent: &Ca,
    roots: &Roots,
    lives: Lives,
    rows: &[Row],
    now: SystemTime,
) -> Result<(Slots, Option<Row>), AuthorityError> {
    let found = Found { trust_domain: td, keys, roots, parent, rows, now };
    let taken = live(rows).any(|row| row.tainted.is_some());
    if let Some(active) = found.usable(State::Active)? {
        // Which of two keys in one directory was stolen, the thief knows.
        let prepared = if taken { None } else { found.usable(State::Prepared)? };
        return Ok((Slots { active, prepared }, None));
    }
    let made = make_issuing(td, keys, parent, &parent.signer(keys)?, lives, now)?;
    check::issuing(td, &made, &roots.bundles, now)?;
    let row = made.ca.row(State::Active);
    // A successor of the one that ended would end before the new one does.
    Ok((Slots { active: Arc::new(made), prepared: None }, Some(row)))
}
