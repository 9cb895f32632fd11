//! Which step of a rotation comes next, and what it waits for. Nothing here acts: a step is decided from rows, from the leaves
//! that are valid and from what sidecars have said, at a time that is given.
//!
//! A step that comes too early breaks the mesh: a leaf under a root that somebody does not know is refused, and so is one
//! whose root has gone. So publishing waits for nobody, activating waits until everybody knows the new root, and removing
//! until nobody needs the old one. Who holds no valid leaf is out of the mesh anyway and is not waited for.
//!
//! In an emergency time has an end: after it a step goes on without those who are behind. A leaf that is renewed while the
//! peers of its connections still have old ones leaves connections behind that rest on those; therefore everybody renews
//! twice before what is tainted is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use postern_svid::SpiffeId;

use super::Lives;
use super::roots::{Root, Roots};
use super::rotation::Mode;
use super::tiers::CEREMONY;
use crate::bundle::{Holder, REFRESH_HINT};
use crate::lineage::LineageId;
use crate::store::{Live, State, Summary};

/// Between publishing a root and letting it sign, at most: three to five times the refresh hint, for who polls
/// (SPIFFE Trust Domain and Bundle, 4.1), and not less than a quarter of an hour.
const SETTLE: Duration = Duration::from_secs(REFRESH_HINT.as_secs() * 5);
/// What an emergency waits for those who are behind, at most, at each of its two steps.
const PATIENCE: Duration = Duration::from_secs(60);
/// After the last renewal of an emergency, for requests in flight on what went before, at most.
const BREATH: Duration = Duration::from_secs(5);
/// Clocks differ, and connections outlive the leaf that opened them by their grace.
const MARGIN: Duration = Duration::from_secs(300);
/// Roots that a bundle holds.
const MOST_ROOTS: usize = 8;

/// A step of a rotation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make a root.
    Prepare,
    /// Put this one into the trust bundle.
    Publish(String),
    /// Let this one sign.
    Activate(String),
    /// Take this one out of the trust bundle.
    Remove(String),
    /// Have everybody renew at once.
    Renew,
    /// Put this CA on the taint list.
    Taint(String),
}

impl Step {
    /// Its word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Publish(_) => "publish",
            Self::Activate(_) => "activate",
            Self::Remove(_) => "remove",
            Self::Renew => "renew",
            Self::Taint(_) => "taint",
        }
    }

    /// The CA that it is about.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Publish(label) | Self::Activate(label) | Self::Remove(label) | Self::Taint(label) => {
                Some(label)
            }
            Self::Prepare | Self::Renew => None,
        }
    }
}

/// Who is waited for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Laggard {
    /// Whose leaf it is.
    pub id: SpiffeId,
    /// Its lineage, which tells replicas apart; `None` for the control plane itself.
    pub lineage: Option<LineageId>,
    /// What is missing.
    pub why: &'static str,
}

/// A step that is to come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outlook {
    /// Which.
    pub step: Step,
    /// Whether a tainted CA makes it urgent.
    pub is_emergency: bool,
    /// What it waits for; empty: it is taken now.
    pub waits: Vec<String>,
    /// Who it waits for.
    pub laggards: Vec<Laggard>,
    /// When it is taken at the latest, whoever is behind.
    pub latest: Option<SystemTime>,
    /// Whether it waits for the operator's word, all else being ready or not.
    pub by_operator: bool,
}

impl Outlook {
    fn of(step: Step, is_emergency: bool) -> Self {
        Self { step, is_emergency, waits: Vec::new(), laggards: Vec::new(), latest: None, by_operator: false }
    }

    /// Whether its gate is open. What an operator has to say is not part of it.
    pub fn is_open(&self) -> bool {
        self.waits.is_empty() && self.laggards.is_empty()
    }

    fn wait_until(&mut self, at: SystemTime, now: SystemTime, why: &str) {
        if let Ok(left) = at.duration_since(now)
            && !left.is_zero()
        {
            self.waits.push(format!("{why}, {} s more", left.as_secs().max(1)));
        }
    }

    /// After `at` nobody is waited for.
    fn no_later_than(&mut self, at: SystemTime, now: SystemTime) {
        if now >= at {
            self.waits.clear();
            self.laggards.clear();
        }
        self.latest = Some(at);
    }
}

/// What is decided from.
pub(super) struct Gates<'a> {
    roots: &'a Roots,
    sidecars: Vec<Sidecar<'a>>,
    own: Option<&'a Live>,
    others: &'a [Summary],
    lives: Lives,
    now: SystemTime,
}

/// A sidecar whose leaf is valid.
struct Sidecar<'a> {
    newest: &'a Live,
    leaves: Vec<&'a Live>,
    holder: Option<&'a Holder>,
}

impl Sidecar<'_> {
    fn behind(&self, why: &'static str) -> Laggard {
        Laggard { id: self.newest.id.clone(), lineage: Some(self.newest.lineage), why }
    }

    /// Whether it is connected and says that it uses its newest leaf.
    fn has_loaded(&self) -> bool {
        self.holder.is_some_and(|holder| holder.streams > 0 && holder.serial == self.newest.serial)
    }
}

impl<'a> Gates<'a> {
    pub(super) fn new(
        roots: &'a Roots,
        live: &'a [Live],
        holders: &'a [Holder],
        others: &'a [Summary],
        lives: Lives,
        now: SystemTime,
    ) -> Self {
        let mut by_lineage: BTreeMap<LineageId, Vec<&Live>> = BTreeMap::new();
        let (own, sidecars): (Vec<&Live>, Vec<&Live>) = live.iter().partition(|leaf| leaf.is_own);
        for leaf in sidecars {
            by_lineage.entry(leaf.lineage).or_default().push(leaf);
        }
        let holders: BTreeMap<_, _> = holders.iter().map(|holder| (holder.lineage, holder)).collect();
        let sidecars = by_lineage.into_iter().filter_map(|(lineage, leaves)| {
            let newest = leaves.iter().max_by_key(|leaf| (leaf.is_newest, leaf.issued)).copied()?;
            Some(Sidecar { newest, leaves, holder: holders.get(&lineage).copied() })
        });
        let sidecars = sidecars.collect();
        let own = own.into_iter().max_by_key(|leaf| leaf.issued);
        Self { roots, sidecars, own, others, lives, now }
    }

    /// All steps that are to come, the most urgent first.
    pub(super) fn outlook(&self, mode: Mode) -> Vec<Outlook> {
        let roots = self.roots;
        let mut steps = Vec::new();
        for root in roots.iter().filter(|root| root.tainted.is_some()) {
            if matches!(root.state, State::Prepared | State::Published) {
                steps.push(Outlook::of(Step::Remove(root.ca.label.clone()), true));
            }
        }
        steps.extend(roots.issuers.iter().filter(|one| one.tainted.is_some() && !one.is_listed).map(|one| {
            let below = BTreeSet::from([one.key_id.as_slice()]);
            let since = one.tainted.unwrap_or(self.now);
            self.distrust(Step::Taint(one.label.clone()), &below, since)
        }));
        steps.extend(self.roots.tiers.all.iter().filter(|one| one.tainted.is_some() && !one.is_listed).map(
            |one| {
                let step = Step::Taint(one.ca.label.clone());
                if one.state == State::Active {
                    // Refused now, nobody had anything to take its place.
                    let mut step = Outlook::of(step, true);
                    step.waits.push(format!("a tier to take its place: {CEREMONY}"));
                    return step;
                }
                let below = self.roots.issuers_of_tier(&one.ca.key_id);
                self.distrust(step, &below, one.since.max(one.tainted.unwrap_or(self.now)))
            },
        ));
        steps.extend(self.next_root(mode));
        for root in roots.iter().filter(|root| root.state == State::Draining) {
            let mut step = self.removal(root);
            step.by_operator = mode == Mode::ByOperator && !step.is_emergency;
            steps.push(step);
        }
        // A second renewal that several wait for is one.
        if let Some(at) = steps.iter().position(|step| step.step == Step::Renew && step.is_open()) {
            let renew = steps.remove(at);
            steps.insert(0, renew);
        }
        steps
    }

    fn next_root(&self, mode: Mode) -> Option<Outlook> {
        let active = self.roots.active();
        let is_emergency = active.tainted.is_some();
        let Some(next) = self.roots.next() else {
            let life = active.ca.validity.not_after.duration_since(active.ca.validity.not_before);
            let left = active.ca.validity.not_after.duration_since(self.now).unwrap_or_default();
            if !is_emergency && left > life.unwrap_or_default() / 4 {
                return None;
            }
            let mut step = Outlook::of(Step::Prepare, is_emergency);
            step.by_operator = mode == Mode::ByOperator && !is_emergency;
            if self.is_full() {
                step.waits.push(full());
            }
            if active.is_offline {
                step.waits.push("a root that is made offline: postern ca root import FILE".to_owned());
            }
            return Some(step);
        };
        if next.state == State::Prepared {
            return Some(Outlook::of(Step::Publish(next.ca.label.clone()), is_emergency));
        }
        let mut step = self.activation(next);
        step.by_operator = mode == Mode::ByOperator && !is_emergency;
        Some(step)
    }

    pub(super) fn is_full(&self) -> bool {
        self.roots.count() >= MOST_ROOTS
    }

    /// The gate before `next` signs: everybody knows it.
    pub(super) fn activation(&self, next: &Root) -> Outlook {
        let is_emergency = self.roots.active().tainted.is_some();
        let mut step = Outlook::of(Step::Activate(next.ca.label.clone()), is_emergency);
        step.laggards = self
            .sidecars
            .iter()
            .filter_map(|sidecar| match sidecar.holder {
                None => Some(sidecar.behind("has not been heard of since the control plane started")),
                Some(holder) if holder.bundle_sequence < next.sequence => {
                    Some(sidecar.behind("has not acknowledged the bundle with the new root"))
                }
                Some(_) => None,
            })
            .collect();
        self.others_know(&mut step, next.sequence);
        if is_emergency {
            step.no_later_than(next.since + self.patience(), self.now);
        } else {
            step.wait_until(next.since + self.settle(), self.now, "time to learn of it for those who poll");
        }
        // However urgent: without one nothing can be signed under it.
        if self.roots.parent_under(next, self.now).is_err() {
            step.waits.push(format!("a tier that it has signed: {CEREMONY}"));
        }
        step
    }

    /// The gate before `root` leaves the bundle: nobody needs it.
    pub(super) fn removal(&self, root: &Root) -> Outlook {
        let below = self.roots.issuers_of(root);
        let remove = Step::Remove(root.ca.label.clone());
        if let Some(tainted) = root.tainted {
            return self.distrust(remove, &below, root.since.max(tainted));
        }
        let mut step = Outlook::of(remove, false);
        let needs =
            |sidecar: &&Sidecar<'_>| sidecar.leaves.iter().any(|leaf| below.contains(leaf.issuer.as_slice()));
        let behind = |sidecar: &Sidecar<'_>| {
            sidecar.behind(if below.contains(sidecar.newest.issuer.as_slice()) {
                "has a certificate under the old root and no other"
            } else {
                "has renewed, and its certificate under the old root has not ended"
            })
        };
        step.laggards = self.sidecars.iter().filter(needs).map(behind).collect();
        step.laggards.extend(self.own_under(&below));
        self.others_hold_none(&mut step, &below);
        // Whoever renewed just before its peer did opens its next connection, to the peer's new leaf, at its next renewal.
        let leaf = self.lives.leaf;
        let drained = root.since + leaf + leaf / 4 + MARGIN.min(leaf / 4);
        step.wait_until(drained, self.now, "connections under the old root drain");
        step
    }

    /// The gate before what `below` has issued is refused: everybody has renewed, and once more after all had.
    fn distrust(&self, step: Step, below: &BTreeSet<&[u8]>, since: SystemTime) -> Outlook {
        let mut step = Outlook::of(step, true);
        let (mut turned, mut last) = (None, None);
        for sidecar in &self.sidecars {
            let is_below = |leaf: &&&Live| below.contains(leaf.issuer.as_slice());
            if below.contains(sidecar.newest.issuer.as_slice()) {
                step.laggards.push(sidecar.behind("has not renewed"));
            } else if sidecar.leaves.iter().any(|leaf| is_below(&leaf)) {
                if !sidecar.has_loaded() {
                    step.laggards
                        .push(sidecar.behind("has renewed and not said that it uses the new certificate"));
                }
                let good = sidecar.leaves.iter().filter(|leaf| !is_below(leaf));
                turned = turned.max(good.map(|leaf| leaf.issued).min());
            }
            last = last.max(Some(sidecar.newest.issued));
        }
        step.laggards.extend(self.own_under(below));
        self.others_hold_none(&mut step, below);
        if step.is_open()
            && let Some(turned) = turned
        {
            // Told since all use what they renewed to?
            let Some(again) = self.roots.renew_before.filter(|before| *before > turned) else {
                return Outlook::of(Step::Renew, true);
            };
            let unturned =
                self.sidecars.iter().filter(|sidecar| sidecar.newest.issued < again || !sidecar.has_loaded());
            step.laggards = unturned.map(|sidecar| sidecar.behind("has not renewed a second time")).collect();
            let breath = last.unwrap_or(self.now) + BREATH.min(self.lives.leaf / 8);
            step.wait_until(breath, self.now, "requests on earlier connections end");
        }
        step.no_later_than(since + self.patience(), self.now);
        step
    }

    fn own_under(&self, below: &BTreeSet<&[u8]>) -> Option<Laggard> {
        let own = self.own.filter(|own| below.contains(own.issuer.as_slice()))?;
        Some(Laggard {
            id: own.id.clone(),
            lineage: None,
            why: "the control plane's own has not been renewed",
        })
    }

    /// Waits for the sidecars of the other replicas to know version `sequence` of the bundle.
    fn others_know(&self, step: &mut Outlook, sequence: u64) {
        for said in self.heard_of(step) {
            if said.bundle_sequence < sequence {
                step.waits
                    .push(format!("the replica {} sends out version {}", said.replica, said.bundle_sequence));
            }
            let named = step.laggards.len();
            step.laggards.extend(said.laggards(sequence).map(|(id, lineage)| Laggard {
                id,
                lineage,
                why: "at another replica, has not acknowledged the bundle with the new root",
            }));
            let more = said.behind(sequence).saturating_sub((step.laggards.len() - named) as u64);
            if more > 0 {
                step.waits.push(format!("{more} more sidecars of the replica {}", said.replica));
            }
        }
    }

    /// Waits for the other replicas to know of no valid certificate of these issuing CAs.
    fn others_hold_none(&self, step: &mut Outlook, below: &BTreeSet<&[u8]>) {
        for said in self.heard_of(step) {
            let count = said.leaves_of(below.iter().copied());
            if count > 0 {
                step.waits.push(format!("{count} certificates at the replica {}", said.replica));
            }
        }
    }

    /// Replicas that tell how things are with them. One that has gone silent is waited for until all that it may have issued has
    /// ended.
    fn heard_of(&self, step: &mut Outlook) -> Vec<&'a Summary> {
        let (fresh, silent): (Vec<_>, Vec<_>) = self
            .others
            .iter()
            .filter(|said| !said.is_over(self.now))
            .partition(|said| said.is_fresh(self.now));
        for said in silent {
            let age = self.now.duration_since(said.at()).unwrap_or_default().as_secs();
            step.waits.push(format!(
                "the replica {}, not heard of for {age} s: its sidecars' certificates, at most {} s more",
                said.replica,
                said.leaf_seconds.saturating_sub(age).max(1)
            ));
        }
        fresh
    }

    fn settle(&self) -> Duration {
        SETTLE.min(self.lives.leaf / 2)
    }

    fn patience(&self) -> Duration {
        PATIENCE.min(self.lives.leaf * 4)
    }
}

pub(super) fn full() -> String {
    format!("the trust bundle holds {MOST_ROOTS} roots; remove one first (postern ca root remove --force)")
}
