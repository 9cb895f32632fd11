//! The roots that are not over yet, and the trust bundle that follows from them and from what is revoked.

use std::collections::BTreeSet;
use std::time::SystemTime;

use postern_svid::{Bundle, Bundles, TrustDomain};

use super::AuthorityError;
use super::ca::Ca;
use super::tiers::Tiers;
use crate::keys::{KeyError, KeyStore};
use crate::store::{Authority as Row, Kind, State, Trust, lists};

/// What every root's label begins with, and so the name of its key.
pub(super) const ROOT: &str = "root-";

/// A root that is prepared, or in the trust bundle.
pub(super) struct Root {
    pub(super) ca: Ca,
    pub(super) state: State,
    pub(super) since: SystemTime,
    pub(super) sequence: u64,
    pub(super) tainted: Option<SystemTime>,
    /// Whether its key is elsewhere.
    pub(super) is_offline: bool,
}

/// An issuing CA as far as rotation asks: whose it is, and whether it is to be trusted.
pub(super) struct Issuer {
    pub(super) label: String,
    pub(super) key_id: Vec<u8>,
    /// Key identifier of what signed it, a root or a tier.
    pub(super) parent: Vec<u8>,
    /// Key identifier of its root.
    pub(super) root: Vec<u8>,
    pub(super) tainted: Option<SystemTime>,
    /// Whether it is on the taint list.
    pub(super) is_listed: bool,
    /// Whether its key is another replica's.
    pub(super) is_elsewhere: bool,
}

/// The roots of one trust domain.
pub(super) struct Roots {
    all: Vec<Root>,
    pub(super) issuers: Vec<Issuer>,
    pub(super) tiers: Tiers,
    pub(super) bundles: Bundles,
    pub(super) sequence: u64,
    pub(super) renew_before: Option<SystemTime>,
    /// Key identifiers of tainted roots, those that are removed among them.
    tainted: BTreeSet<Vec<u8>>,
    /// When the first entry of the deny list ends.
    pub(super) next_end: Option<SystemTime>,
    /// Rows as they were read, to see whether others are there by now.
    seen: Vec<(String, State, bool)>,
}

impl Roots {
    pub(super) fn of(td: &TrustDomain, trust: &Trust) -> Result<Self, AuthorityError> {
        let damaged = AuthorityError::Damaged;
        let mut all = Vec::new();
        for row in
            trust.authorities.iter().filter(|row| row.kind == Kind::Root && row.state != State::Retired)
        {
            let ca = Ca::from_row(row)?;
            let Row { state, since, sequence, tainted, is_offline, .. } = row;
            let (state, since, sequence) = (*state, *since, *sequence);
            all.push(Root { ca, state, since, sequence, tainted: *tainted, is_offline: *is_offline });
        }
        if all.iter().filter(|root| root.state == State::Active).count() != 1 {
            return Err(damaged("it holds CAs but not exactly one active root"));
        }
        let trusted = all.iter().filter(|root| root.state.is_trusted());
        let trusted: Vec<_> = trusted.map(|root| root.ca.certificate.clone()).collect();
        let revocations = lists(&trust.revocations).map_err(|_| damaged("its deny list is too long"))?;
        let tiers = Tiers::of(&trust.authorities, &revocations)?;
        let mut issuers = Vec::new();
        for row in trust.authorities.iter().filter(|row| row.kind == Kind::Issuing) {
            let ca = Ca::from_row(row)?;
            let root = tiers.by_key_id(&ca.issuer).map_or(&ca.issuer, |tier| &tier.ca.issuer).clone();
            issuers.push(Issuer {
                label: ca.label,
                is_listed: revocations.contains(&postern_svid::Revoked::Authority(ca.key_id.clone())),
                key_id: ca.key_id,
                parent: ca.issuer,
                root,
                tainted: row.tainted,
                is_elsewhere: row.replica.is_some(),
            });
        }
        let roots = trust.authorities.iter().filter(|row| row.kind == Kind::Root);
        let tainted = roots.filter(|row| row.tainted.is_some());
        let bundle = Bundle::new(td.clone(), trust.sequence, trusted)?
            .with_revocations(revocations)
            .with_jwt_keys(trust.jwt_keys.clone());
        Ok(Self {
            all,
            issuers,
            tiers,
            bundles: Bundles::of(bundle),
            sequence: trust.sequence,
            renew_before: trust.renew_before,
            tainted: tainted.map(|row| row.key_id.clone()).collect(),
            next_end: trust.revocations.iter().filter_map(|one| one.ends).min(),
            seen: seen(&trust.authorities),
        })
    }

    /// Whether the store says the same.
    pub(super) fn are_those_of(&self, trust: &Trust) -> bool {
        self.sequence == trust.sequence
            && self.renew_before == trust.renew_before
            && self.seen == seen(&trust.authorities)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Root> {
        self.all.iter()
    }

    /// The root that signs issuing CAs.
    pub(super) fn active(&self) -> &Root {
        let active = self.all.iter().find(|root| root.state == State::Active);
        active.expect("checked when they were taken up: exactly one is active")
    }

    /// The newest one that may follow it.
    pub(super) fn next(&self) -> Option<&Root> {
        let next = |root: &&Root| matches!(root.state, State::Prepared | State::Published);
        self.all.iter().rev().find(|root| next(root) && root.tainted.is_none())
    }

    /// How many are in the bundle, or will be.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Key identifiers of the issuing CAs under `root`.
    pub(super) fn issuers_of(&self, root: &Root) -> BTreeSet<&[u8]> {
        let below = self.issuers.iter().filter(|one| one.root == root.ca.key_id);
        below.map(|one| one.key_id.as_slice()).collect()
    }

    /// Whether this issuing CA is another replica's, and to be trusted.
    pub(super) fn is_another_replicas(&self, issuer: &[u8]) -> bool {
        let is_it = |one: &Issuer| one.key_id == issuer && one.is_elsewhere && !one.is_listed;
        self.issuers.iter().any(is_it) && self.stand_by(issuer)
    }

    /// Key identifiers of the issuing CAs under the tier with this one.
    pub(super) fn issuers_of_tier(&self, tier: &[u8]) -> BTreeSet<&[u8]> {
        let below = self.issuers.iter().filter(|one| one.parent == tier);
        below.map(|one| one.key_id.as_slice()).collect()
    }

    /// Whether the issuing CA of this label, or its tier, is tainted.
    pub(super) fn is_tainted(&self, issuing: &str) -> bool {
        let found = self.issuers.iter().find(|one| one.label == issuing);
        found.is_some_and(|one| one.tainted.is_some() || self.has_tainted_tier(one))
    }

    fn has_tainted_tier(&self, issuer: &Issuer) -> bool {
        self.tiers.by_key_id(&issuer.parent).is_some_and(|tier| tier.tainted.is_some())
    }

    /// Whether leaves of this issuing CA are handed out again when they are asked for once more.
    pub(super) fn stand_by(&self, issuer: &[u8]) -> bool {
        self.issuers.iter().any(|one| {
            one.key_id == issuer
                && one.tainted.is_none()
                && !self.has_tainted_tier(one)
                && self.all.iter().any(|root| {
                    root.ca.key_id == one.root && root.state.is_trusted() && root.tainted.is_none()
                })
        })
    }

    /// Key identifiers of the issuing CAs that are tainted, or whose tier or root is.
    pub(super) fn tainted_issuers(&self) -> BTreeSet<Vec<u8>> {
        let is_tainted = |one: &&Issuer| self.is_tainted(&one.label) || self.tainted.contains(&one.root);
        self.issuers.iter().filter(is_tainted).map(|one| one.key_id.clone()).collect()
    }

    /// Removes the keys of roots that sign no more, and of those that were never written down.
    pub(super) fn sweep(&self, keys: &dyn KeyStore) {
        let signs = |root: &Root| root.state != State::Draining && !root.is_offline;
        let is_needed = |name: &str| self.all.iter().any(|root| root.ca.label == name && signs(root));
        let swept: Result<(), KeyError> = keys.names().and_then(|names| {
            let mut unused = names.iter().filter(|name| name.starts_with(ROOT) && !is_needed(name));
            unused.try_for_each(|name| keys.remove(name))
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "an unused key of a root could not be removed");
        }
    }
}

fn seen(rows: &[Row]) -> Vec<(String, State, bool)> {
    rows.iter().map(|row| (row.label.clone(), row.state, row.tainted.is_some())).collect()
}
