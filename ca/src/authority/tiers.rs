//! The tiers between a root that is offline and the issuing CAs: which one signs, which may follow it, and what an operator has to
//! bring about, for only an operator reaches the root.
//!
//! A tier is *requested* when its key is made, *prepared* when its certificate is there, and *active* while it signs. One that is
//! prepared takes over when the active one is tainted, has ended, or has lived two thirds of its life and ends first.

use std::time::{Duration, SystemTime};

use postern_svid::{Revocations, Revoked};
use rustls_pki_types::CertificateDer;

use super::AuthorityError;
use super::ca::Ca;
use super::roots::{ROOT, Root, Roots};
use crate::keys::{KeyError, KeyStore};
use crate::profile::Validity;
use crate::store::{Authority as Row, Kind, State};

/// What every tier's label begins with, and so the name of its key.
pub(super) const TIER: &str = "tier-";
/// How an operator gets a tier.
pub(super) const CEREMONY: &str = "postern ca tier csr --out FILE here, postern ca root sign FILE where the root is, postern ca tier import FILE here (docs/offline-root.md)";

/// The CA that signs issuing CAs, and the states that have to be written for that.
pub(super) type Signing<'a> = (&'a Ca, Vec<(String, State)>);

/// A tier whose certificate is there.
pub(super) struct Tier {
    pub(super) ca: Ca,
    pub(super) state: State,
    pub(super) since: SystemTime,
    pub(super) tainted: Option<SystemTime>,
    /// Whether it is on the taint list.
    pub(super) is_listed: bool,
}

impl Tier {
    fn is_good(&self, now: SystemTime) -> bool {
        self.tainted.is_none() && self.ca.validity.not_after > now
    }
}

/// The tiers of one trust domain.
#[derive(Default)]
pub(super) struct Tiers {
    pub(super) all: Vec<Tier>,
    /// Labels of those that wait for their certificate.
    requested: Vec<String>,
}

impl Tiers {
    pub(super) fn of(rows: &[Row], revocations: &Revocations) -> Result<Self, AuthorityError> {
        let mut tiers = Self::default();
        for row in rows.iter().filter(|row| row.kind == Kind::Tier) {
            if row.state == State::Requested {
                tiers.requested.push(row.label.clone());
                continue;
            }
            let is_listed = revocations.contains(&Revoked::Authority(row.key_id.clone()));
            let Row { state, since, tainted, .. } = row;
            let (state, since, tainted) = (*state, *since, *tainted);
            tiers.all.push(Tier { ca: Ca::from_row(row)?, state, since, tainted, is_listed });
        }
        Ok(tiers)
    }

    pub(super) fn by_key_id(&self, key_id: &[u8]) -> Option<&Tier> {
        self.all.iter().find(|tier| tier.ca.key_id == key_id)
    }

    /// Which one signs under `root`, and what has to change for that. One that is tainted goes on until another is there: nobody
    /// refuses what it signs before everybody has something else.
    fn settle(&self, root: &Ca, now: SystemTime) -> Result<Signing<'_>, AuthorityError> {
        let below = |tier: &&Tier| tier.ca.issuer == root.key_id;
        let active = self.all.iter().find(|tier| tier.state == State::Active);
        let lives = active.filter(below).filter(|tier| tier.ca.validity.not_after > now);
        let good = lives.filter(|tier| tier.is_good(now));
        let signs = good.or_else(|| self.next(root, now)).or(lives).ok_or(AuthorityError::NoTier)?;
        let mut set = Vec::new();
        for tier in &self.all {
            let label = || tier.ca.label.clone();
            match tier.state {
                State::Prepared if tier.ca.label == signs.ca.label => set.push((label(), State::Active)),
                State::Active if tier.ca.label == signs.ca.label => {}
                State::Active => set.push((label(), State::Retired)),
                State::Prepared if !tier.is_good(now) => set.push((label(), State::Retired)),
                _ => {}
            }
        }
        Ok((&signs.ca, set))
    }

    /// The one under `root` that is prepared and good; of several, the one that ends last.
    pub(super) fn next(&self, root: &Ca, now: SystemTime) -> Option<&Tier> {
        let prepared = self.all.iter().filter(|tier| tier.state == State::Prepared && tier.is_good(now));
        prepared.filter(|tier| tier.ca.issuer == root.key_id).max_by_key(|tier| tier.ca.validity.not_after)
    }

    /// Active and next, if the next one's time has come.
    pub(super) fn due(&self, root: &Ca, now: SystemTime) -> Option<(&Tier, &Tier)> {
        let active = self.all.iter().find(|tier| tier.state == State::Active)?;
        let next = self.next(root, now)?;
        let is_due = age(active.ca.validity, now) >= life(active.ca.validity) * 2 / 3;
        // A spare that was signed on the same day would be due at once itself.
        (is_due && next.ca.validity.not_after > active.ca.validity.not_after).then_some((active, next))
    }

    /// Removes the keys of tiers that sign no more; at a start (`orphans`) those that were never written down as well. While
    /// others run, one without a row may be about to get it.
    pub(super) fn sweep(&self, keys: &dyn KeyStore, orphans: bool) {
        let is_over = |name: &str| match self.all.iter().find(|tier| tier.ca.label == name) {
            Some(tier) => tier.state == State::Retired,
            None => orphans && !self.requested.iter().any(|label| label == name),
        };
        let swept: Result<(), KeyError> = keys.names().and_then(|names| {
            let mut unused = names.iter().filter(|name| name.starts_with(TIER) && is_over(name));
            unused.try_for_each(|name| keys.remove(name))
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "an unused key of a tier could not be removed");
        }
    }
}

impl Roots {
    /// The CA that signs issuing CAs, the active root or its tier, and what has to change for that.
    pub(super) fn parent(&self, now: SystemTime) -> Result<Signing<'_>, AuthorityError> {
        let root = self.active();
        if root.is_offline {
            return self.tiers.settle(&root.ca, now);
        }
        let mut set = Vec::new();
        for tier in self.tiers.all.iter().filter(|tier| tier.state == State::Active) {
            set.push((tier.ca.label.clone(), State::Retired));
        }
        Ok((&root.ca, set))
    }

    /// Whether the CA that signs issuing CAs now has signed this one; so it is taken to be while there is none.
    pub(super) fn is_under_parent(&self, issuing: &Ca, now: SystemTime) -> bool {
        self.parent(now).map_or(true, |(parent, _)| parent.key_id == issuing.issuer)
    }

    /// The CA that would sign under `root`, should it become active.
    pub(super) fn parent_under<'a>(
        &'a self,
        root: &'a Root,
        now: SystemTime,
    ) -> Result<&'a Ca, AuthorityError> {
        if !root.is_offline {
            return Ok(&root.ca);
        }
        self.tiers.next(&root.ca, now).map(|tier| &tier.ca).ok_or(AuthorityError::NoTier)
    }

    /// What follows an issuing CA with this parent in a chain.
    pub(super) fn above(&self, parent: &[u8]) -> Vec<CertificateDer<'static>> {
        self.tiers.by_key_id(parent).map(|tier| tier.ca.carried()).unwrap_or_default()
    }
}

/// The issuing CA with this key identifier and those between it and its root, retired or not.
pub fn chain(rows: &[Row], issuing: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let row = rows.iter().find(|row| row.kind == Kind::Issuing && row.key_id == issuing)?;
    let issuing = Ca::from_row(row).ok()?;
    let mut chain = vec![issuing.certificate];
    let is_parent = |row: &&Row| row.kind == Kind::Tier && row.state != State::Requested;
    let tier = rows.iter().filter(is_parent).find(|row| row.key_id == issuing.issuer);
    chain.extend(tier.and_then(|row| Ca::from_row(row).ok()).iter().flat_map(Ca::carried));
    Some(chain)
}

fn life(of: Validity) -> Duration {
    of.not_after.duration_since(of.not_before).unwrap_or_default()
}

fn age(of: Validity, now: SystemTime) -> Duration {
    now.duration_since(of.not_before).unwrap_or_default()
}

/// What only an operator can bring about, because a root is offline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alarm {
    /// A constant word, one of [`CODES`](Self::CODES).
    pub code: &'static str,
    /// What is to be done, with the commands.
    pub text: String,
}

impl Alarm {
    /// All codes.
    pub const CODES: [&'static str; 4] =
        ["tier_missing", "tier_tainted", "tier_renewal_due", "root_renewal_due"];

    /// What is needed as of `now`, the most urgent first; nothing while all roots sign by themselves.
    pub fn of(rows: &[Row], now: SystemTime) -> Vec<Self> {
        let Some(root) = rows.iter().find(|row| row.kind == Kind::Root && row.state == State::Active) else {
            return Vec::new();
        };
        if !root.is_offline {
            return Vec::new();
        }
        let validity = |row: &Row| Validity { not_before: row.not_before, not_after: row.not_after };
        let days = |until: SystemTime| until.duration_since(now).unwrap_or_default().as_secs() / 86_400;
        let mut alarms = Vec::new();
        let below = |row: &&Row| {
            row.kind == Kind::Tier
                && row.state != State::Requested
                && Ca::from_row(row).is_ok_and(|ca| ca.issuer == root.key_id)
        };
        let tiers: Vec<&Row> = rows.iter().filter(below).collect();
        let is_good = |row: &&&Row| row.tainted.is_none() && row.not_after > now;
        let spare = |row: &&&Row| row.state == State::Prepared && is_good(row);
        let active = tiers.iter().find(|row| row.state == State::Active && row.not_after > now);
        match active {
            None if tiers.iter().any(|row| spare(&row)) => {}
            None => alarms.push(Self {
                code: "tier_missing",
                text: format!("no tier signs under the offline root {}: {CEREMONY}", root.label),
            }),
            Some(active) if active.tainted.is_some() && !tiers.iter().any(|row| spare(&row)) => {
                alarms.push(Self {
                    code: "tier_tainted",
                    text: format!(
                        "{} is tainted, there is no spare, and what it has signed is refused only when another tier is there: {CEREMONY}",
                        active.label
                    ),
                });
            }
            Some(active) => {
                let follows = |row: &&&Row| spare(row) && row.not_after > active.not_after;
                let is_due = age(validity(active), now) >= life(validity(active)) / 2;
                if is_due && !tiers.iter().any(|row| follows(&row)) {
                    alarms.push(Self {
                        code: "tier_renewal_due",
                        text: format!(
                            "{} ends in {} days, and nothing is issued after that; bring its successor: {CEREMONY}",
                            active.label,
                            days(active.not_after)
                        ),
                    });
                }
            }
        }
        let follows = |row: &&Row| {
            row.kind == Kind::Root
                && row.tainted.is_none()
                && matches!(row.state, State::Prepared | State::Published)
        };
        let is_due = age(validity(root), now) >= life(validity(root)) * 3 / 4;
        if (is_due || root.tainted.is_some()) && !rows.iter().any(|row| follows(&row)) {
            alarms.push(Self {
                code: "root_renewal_due",
                text: format!(
                    "{} {}; bring another root: postern ca root import FILE, and a tier under it (docs/offline-root.md)",
                    root.label,
                    match root.tainted {
                        Some(_) => "is tainted".to_owned(),
                        None => format!("ends in {} days", days(root.not_after)),
                    }
                ),
            });
        }
        alarms
    }
}

/// The label of a root that is known by its certificate alone.
pub(super) fn label_of_root(certificate: &[u8]) -> String {
    let sha256 = crate::hex(&crate::csr::fingerprint(certificate));
    format!("{ROOT}{}", &sha256[..16])
}

#[cfg(test)]
mod tests;
