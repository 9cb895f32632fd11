//! The steps by which roots follow each other: Prepared, Published, Active, Draining, Retired, which of a root means removed.
//!
//! Each step is one transaction, made after what it needs (a key) and before what follows from it (the bundle on its way), so
//! a process that dies between two of them finds at its next start where it was and goes on.

use postern_svid::SpiffeId;

use super::gates::{Gates, Laggard, Outlook, Step, full};
use super::*;
use crate::bundle::Holder;
use crate::store::{Live, OrderVerb, Reason, Revocation};

/// Who says when a planned step is taken. In an emergency nobody is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// A step is taken when its gate opens.
    #[default]
    Automatic,
    /// A root is made, activated and removed when an operator says so, and its gate is open.
    ByOperator,
}

/// Why an operator's step is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The step failed.
    #[error(transparent)]
    Failed(#[from] AuthorityError),
    /// Its gate is shut.
    #[error("{}", shut(.0))]
    Shut(Outlook),
    /// There is nothing to do it to.
    #[error("{0}")]
    Nothing(String),
}

/// Laggards that are named one by one.
const NAMED: usize = 20;

const OFFLINE: &str = "the root is offline, and so is the next one: make it there (postern ca init --offline-root), bring its root.pem here (postern ca root import root.pem), and a tier under it (postern ca tier csr, postern ca root sign, postern ca tier import)";

fn shut(outlook: &Outlook) -> String {
    let mut text = format!("not yet: {} waits for", outlook.step.name());
    for wait in &outlook.waits {
        text.push_str(&format!("\n  {wait}"));
    }
    text.push_str(&named(&outlook.laggards));
    text
}

/// Laggards, one a line.
pub(super) fn named(laggards: &[Laggard]) -> String {
    let mut text = String::new();
    for one in laggards.iter().take(NAMED) {
        let lineage = one.lineage.map(|lineage| format!(" ({lineage})")).unwrap_or_default();
        text.push_str(&format!("\n  {}{lineage}: {}", one.id, one.why));
    }
    if laggards.len() > NAMED {
        text.push_str(&format!("\n  and {} more", laggards.len() - NAMED));
    }
    text
}

impl Authority {
    /// Steps that are to come, the most urgent first. Cheap while nothing is in progress.
    pub fn outlook(&self, holders: &[Holder], mode: Mode) -> Result<Vec<Outlook>, AuthorityError> {
        let now = self.clock.wall();
        if self.is_idle(mode, now) {
            return Ok(Vec::new());
        }
        let live = self.admitted(now)?;
        let others = self.store.others();
        let view = self.view.read();
        Ok(Gates::new(&view.roots, &live, holders, &others, self.lives, now).outlook(mode))
    }

    /// Whether no step is to come, as far as memory knows: the store is not asked.
    fn is_idle(&self, mode: Mode, now: SystemTime) -> bool {
        Gates::new(&self.view.read().roots, &[], &[], &[], self.lives, now).outlook(mode).is_empty()
    }

    /// Takes the next step whose gate is open, if there is one.
    pub fn step(&self, holders: &[Holder], mode: Mode) -> Result<Option<Step>, AuthorityError> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        if self.is_idle(mode, now) || !self.store.leads() {
            return Ok(None);
        }
        self.take_up("found before a step", now)?;
        let steps = self.outlook(holders, mode)?;
        let Some(next) = steps.into_iter().find(|one| one.is_open() && !one.by_operator) else {
            return Ok(None);
        };
        let reason = match (next.is_emergency, next.latest.is_some_and(|latest| now >= latest)) {
            (true, true) => "emergency, time is over",
            (true, false) => "emergency",
            (false, _) => "its gate is open",
        };
        self.take(&next.step, reason.to_owned(), now)?;
        Ok(Some(next.step))
    }

    /// Takes the step that an operator wants, if its gate is open or passed over with a reason. Says what was done.
    pub fn obey(
        &self,
        verb: OrderVerb,
        force: Option<&Reason>,
        holders: &[Holder],
    ) -> Result<String, Refused> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        self.take_up("found before a step", now)?;
        let live = self.admitted(now)?;
        let others = self.store.others();
        let gated = {
            let view = self.view.read();
            let gates = Gates::new(&view.roots, &live, holders, &others, self.lives, now);
            match verb {
                OrderVerb::Prepare => {
                    if view.roots.active().is_offline {
                        return Err(Refused::Nothing(OFFLINE.to_owned()));
                    }
                    if let Some(next) = view.roots.next() {
                        let text = format!("{} is prepared already; activate or remove it", next.ca.label);
                        return Err(Refused::Nothing(text));
                    }
                    if gates.is_full() {
                        return Err(Refused::Nothing(full()));
                    }
                    None
                }
                OrderVerb::Activate => {
                    let next = view.roots.next().filter(|next| next.state == State::Published);
                    let Some(next) = next else {
                        let text = "no root is published; postern ca root prepare makes one".to_owned();
                        return Err(Refused::Nothing(text));
                    };
                    Some(gates.activation(next))
                }
                OrderVerb::Remove => {
                    let Some(old) = view.roots.iter().find(|root| root.state == State::Draining) else {
                        let text = "no root drains; one does after another was activated".to_owned();
                        return Err(Refused::Nothing(text));
                    };
                    Some(gates.removal(old))
                }
            }
        };
        let Some(gated) = gated else {
            self.take(&Step::Prepare, "by operator".to_owned(), now)?;
            return Ok(self.tell_of_next());
        };
        let reason = match (gated.is_open(), force) {
            (true, _) => "by operator".to_owned(),
            (false, Some(reason)) => format!("by operator, forced: {}", reason.as_str()),
            (false, None) => return Err(Refused::Shut(gated)),
        };
        self.take(&gated.step, reason, now)?;
        let label = gated.step.label().unwrap_or_default();
        let mut text = match verb {
            OrderVerb::Activate => format!("{label} signs; the one before drains"),
            _ => format!("{label} is out of the trust bundle"),
        };
        if !gated.is_open() {
            text.push_str("\nforced; these will be refused until they have caught up:");
            text.push_str(&named(&gated.laggards));
        }
        Ok(text)
    }

    /// The valid leaves of who is in the mesh: whoever is denied can neither acknowledge nor renew, and is refused whatever comes.
    fn admitted(&self, now: SystemTime) -> Result<Vec<Live>, AuthorityError> {
        let mut live = self.store.live(now)?;
        live.retain(|leaf| leaf.is_own || !self.is_denied(&leaf.id, &leaf.serial, Some(leaf.key)));
        Ok(live)
    }

    /// Whether this sidecar is on the deny list, by its id, its certificate or that one's key.
    pub fn denies_holder(&self, holder: &Holder) -> bool {
        if self.bundle().revocations().is_empty() {
            return false;
        }
        let issued = self.store.certificate(&holder.serial).ok().flatten();
        self.is_denied(&holder.id, &holder.serial, issued.map(|(issued, _)| issued.key))
    }

    fn is_denied(&self, id: &SpiffeId, serial: &[u8], key: Option<[u8; 32]>) -> bool {
        let bundle = self.bundle();
        let list = bundle.revocations();
        !list.is_empty()
            && (list.contains(&Revoked::Id(id.clone()))
                || list.contains(&Revoked::Serial(serial.to_vec()))
                || key.is_some_and(|key| list.contains(&Revoked::Key(key))))
    }

    fn tell_of_next(&self) -> String {
        let view = self.view.read();
        let next = view.roots.next().map(|next| next.ca.label.as_str()).unwrap_or_default();
        format!("{next} is prepared, and is published at once")
    }

    fn take(&self, step: &Step, reason: String, now: SystemTime) -> Result<(), AuthorityError> {
        let change = AuthorityChange::new(now, reason);
        match step {
            Step::Prepare => {
                let root = make_root(&self.trust_domain, self.keys.as_ref(), self.lives, now)?;
                self.change(AuthorityChange { add: vec![root.row(State::Prepared)], ..change })
            }
            Step::Publish(label) => {
                let set = vec![(label.clone(), State::Published)];
                self.change(AuthorityChange { set, publishes: true, ..change })
            }
            Step::Activate(label) => self.activate_root(label, change),
            Step::Remove(label) => {
                let (taints, publishes) = {
                    let view = self.view.read();
                    let root = view.roots.iter().find(|root| root.ca.label == *label);
                    let root =
                        root.ok_or(AuthorityError::Damaged("a root is gone in the middle of a step"))?;
                    let taint = root.tainted.map(|_| taint(root.ca.key_id.clone(), now));
                    (taint.into_iter().collect(), root.state.is_trusted())
                };
                let set = vec![(label.clone(), State::Retired)];
                self.change(AuthorityChange { set, taints, publishes, ..change })
            }
            Step::Renew => self.change(AuthorityChange { renews: true, ..change }),
            Step::Taint(label) => {
                let key_id = {
                    let view = self.view.read();
                    let issuer = view.roots.issuers.iter().find(|one| one.label == *label);
                    let tier = || view.roots.tiers.all.iter().find(|one| one.ca.label == *label);
                    let issuer = issuer.map(|issuer| &issuer.key_id);
                    issuer.or_else(|| tier().map(|tier| &tier.ca.key_id)).cloned()
                };
                let key_id = key_id.ok_or(AuthorityError::Damaged("a CA is gone in the middle of a step"))?;
                self.change(AuthorityChange { taints: vec![taint(key_id, now)], publishes: true, ..change })
            }
        }
    }

    /// The new root signs an issuing CA, which signs leaves at once; the old root and its issuing CAs sign no more.
    fn activate_root(&self, label: &str, mut change: AuthorityChange) -> Result<(), AuthorityError> {
        let now = change.at;
        {
            let view = self.view.read();
            let root = view.roots.iter().find(|root| root.ca.label == label);
            let root = root.ok_or(AuthorityError::Damaged("a root is gone in the middle of a step"))?;
            let old = view.roots.active();
            let parent = view.roots.parent_under(root, now)?;
            let signer = parent.signer(self.keys.as_ref())?;
            let issuing =
                make_issuing(&self.trust_domain, self.keys.as_ref(), parent, &signer, self.lives, now)?;
            check::issuing(&self.trust_domain, &issuing, &view.roots.bundles, now)?;
            change.add = vec![issuing.ca.row(State::Active)];
            change.set = vec![
                (old.ca.label.clone(), State::Draining),
                (label.to_owned(), State::Active),
                (view.slots.active.ca.label.clone(), State::Retired),
            ];
            if root.is_offline {
                change.set.push((parent.label.clone(), State::Active));
            }
            let tiers = view.roots.tiers.all.iter().filter(|tier| tier.state == State::Active);
            change.set.extend(tiers.map(|tier| (tier.ca.label.clone(), State::Retired)));
            let prepared = view.slots.prepared.as_ref();
            change.set.extend(prepared.map(|one| (one.ca.label.clone(), State::Retired)));
            change.renews = old.tainted.is_some();
        }
        self.change(change)
    }
}

fn taint(key_id: Vec<u8>, at: SystemTime) -> Revocation {
    let reason = Reason::parse("tainted by operator").expect("a constant that is printable");
    Revocation { entry: Revoked::Authority(key_id), reason, at, ends: None }
}

#[cfg(test)]
mod tests;
