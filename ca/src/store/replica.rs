//! The store of one replica of several: its own database, and what all of them share.
//!
//! | where | what |
//! |---|---|
//! | in this replica's database alone | certificates, lineages, its ledger; the keys of its own issuing CAs lie beside it |
//! | in the shared store, and a copy here | roots, the certificates of all issuing CAs, taint and deny lists, the bundle's version, keys of JWT-SVIDs |
//! | in the shared store alone | join tokens that are not spent, and what each replica says of its sidecars |
//!
//! Whoever issues reads this database and nothing else, but for a join token, which is spent by compare-and-swap. What is shared is
//! edited by the replica that leads (`replica/lead.rs`): read, changed as a whole (`replica/document.rs`), written with the
//! version that was read and the lease's fence, and then taken up here like any other replica's edit.

mod document;
mod edit;
mod keys;
mod lead;
mod store;
mod summary;
mod tokens;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_svid::{Clock, TrustDomain};

use self::lead::Lead;
use super::shared::{Change, Listing, Shared, SharedError, Swap};
use super::{Authority, AuthorityChange, Kind, Sqlite, Store, StoreError};
use crate::keys::KeyStore;
use crate::metrics::Metrics;

pub(crate) use document::{Document, Held};
pub use edit::{Edit, Edited};
pub use keys::ReplicaKeys;
pub use store::ControlStore;
pub use summary::{Behind, STALE, Standing, Summary};

/// Where the shared trust stands; followers wait for what is below its first part.
const STATE: &str = "trust/state";
/// What followers wait for.
const FOLLOWED: &str = "trust/";
/// What the names of summaries begin with.
const REPLICAS: &str = "replica/";
/// Before the lease is looked after again, unless somebody wants it.
const WANTED: &str = "want/";
/// Edits that are begun anew because another was faster.
const TRIES: usize = 5;
/// A replica that has said nothing for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(7 * 86_400);

/// The store of one replica.
pub struct Replicated {
    local: Arc<Sqlite>,
    shared: Arc<dyn Shared>,
    keys: Arc<dyn KeyStore>,
    lead: Lead,
    trust_domain: TrustDomain,
    replica: String,
    instance: String,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// Counts what was taken up.
    taken: AtomicI64,
    /// The shared store's revision when it was last read.
    revision: Mutex<u64>,
    others: Mutex<Vec<Summary>>,
    trouble: Mutex<Option<String>>,
}

/// What is shared, as it was read.
struct Fetched {
    document: Document,
    version: u64,
    value: Vec<u8>,
    keys: Listing,
}

/// Whether `name` may name a replica: 1 to 63 lower-case letters, digits and `-`.
pub fn is_replica_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(plain)
}

impl Replicated {
    /// Joins the replicas that share `shared` under the name `replica`, with `local` for what is its own. If they have no CA yet
    /// and this database has, it becomes theirs. While the shared store is away, the copy of an earlier time will do.
    ///
    /// `keys` must rest sealed, or be in a token: copies of them go into the shared store.
    pub fn open(
        replica: &str,
        local: Arc<Sqlite>,
        shared: Arc<dyn Shared>,
        keys: Arc<dyn KeyStore>,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        if local.authorities()?.iter().any(|row| row.is_offline) {
            return Err(StoreError::Refused(
                "this CA has an offline root, which replicas cannot share yet: run one control plane (docs/offline-root.md)"
                    .to_owned(),
            ));
        }
        let instance = local.join_replicas(replica)?;
        let lead = Lead::new(shared.clone(), replica, clock.clone(), metrics.clone());
        let this = Self {
            local,
            shared,
            keys,
            lead,
            trust_domain,
            replica: replica.to_owned(),
            instance,
            clock,
            metrics,
            taken: AtomicI64::new(0),
            revision: Mutex::new(0),
            others: Mutex::default(),
            trouble: Mutex::default(),
        };
        let has_copy = !this.local.authorities()?.is_empty();
        match this.start(has_copy) {
            Ok(()) => this.well(),
            Err(
                error @ (StoreError::Shared(SharedError::Unavailable(_) | SharedError::Refused(_))
                | StoreError::SharedRolledBack { .. }
                | StoreError::Busy(_)),
            ) if has_copy => {
                tracing::error!(%error, "this replica starts from its copy of what is shared; the trust bundle is frozen");
                this.unwell(&error);
            }
            Err(error) => return Err(error),
        }
        Ok(this)
    }

    fn start(&self, has_copy: bool) -> Result<(), StoreError> {
        if self.local.authorities()?.iter().any(|row| row.is_offline || row.kind == Kind::Tier) {
            return Err(StoreError::Refused(
                "replica: a CA with an offline root cannot be shared by replicas yet: run one control plane (docs/offline-root.md)"
                    .to_owned(),
            ));
        }
        self.check_name()?;
        if self.fetch()?.is_none() {
            // Of several that start at once one makes the CA; the others wait for the lease and find it.
            self.lead.with(|fence| {
                if has_copy && self.fetch()?.is_none() {
                    let mut document = self.local.to_share(&self.replica)?;
                    let own = self.local.authorities()?;
                    document.tell_own(&own, &self.replica);
                    self.write(fence, document, 0, &Listing::default(), None)?;
                    tracing::warn!("this CA is shared from now on: other replicas may join");
                }
                Ok(())
            })?;
        }
        self.catch_up().map(drop)
    }

    /// Refuses to be two at a time.
    fn check_name(&self) -> Result<(), StoreError> {
        let now = self.clock.wall();
        let listing = self.shared.read(&self.own_key())?;
        let Some(entry) = listing.find(&self.own_key()) else { return Ok(()) };
        let Ok(said) = serde_json::from_slice::<Summary>(&entry.value) else { return Ok(()) };
        if said.instance != self.instance && said.is_fresh(now) {
            return Err(StoreError::SameName(self.replica.clone(), STALE.as_secs()));
        }
        Ok(())
    }

    fn own_key(&self) -> String {
        format!("{REPLICAS}{}", self.replica)
    }

    /// What is shared now; `None` if there is nothing yet.
    fn fetch(&self) -> Result<Option<Fetched>, StoreError> {
        let seen = self.local.taken_up()?;
        let listing = self.shared.read(FOLLOWED)?;
        *self.revision.lock() = listing.revision;
        let rolled_back = |shared| StoreError::SharedRolledBack { shared, held: seen.sequence };
        let Some(entry) = listing.find(STATE) else {
            // Emptied: that is for an operator to judge, not for whoever comes by first.
            return if seen.version == 0 { Ok(None) } else { Err(rolled_back(0)) };
        };
        let document = Document::decode(&entry.value, self.trust_domain.as_str())
            .map_err(|detail| SharedError::Damaged { key: STATE.to_owned(), detail })?;
        if document.sequence < seen.sequence || entry.version < seen.version {
            return Err(rolled_back(document.sequence));
        }
        let keys = self.shared.read(keys::PREFIX)?;
        Ok(Some(Fetched { document, version: entry.version, value: entry.value.clone(), keys }))
    }

    /// Takes up what others have changed, and tells them what this replica has changed of its own; whether there was something.
    fn catch_up(&self) -> Result<bool, StoreError> {
        let Some(Fetched { mut document, mut version, keys, .. }) = self.fetch()? else { return Ok(false) };
        self.check_same_ca(&document)?;
        keys::bring(&document, &keys, self.keys.as_ref())
            .map_err(|error| StoreError::File(error.to_string()))?;
        let mut own = self.local.authorities()?;
        own.retain(|row| row.replica.is_none());
        let before = document.clone();
        if document.tell_own(&own, &self.replica) {
            let value = document.encode(self.trust_domain.as_str());
            match self.shared.swap(&[Change::put(STATE, version, value)], None)? {
                Swap::Done(now) => version = now,
                // Another was faster, and tells us of it.
                Swap::Conflict | Swap::Fenced => document = before,
            }
        }
        if version == self.local.taken_up()?.version {
            return Ok(false);
        }
        self.take_up(document, version, None)?;
        Ok(true)
    }

    /// A database of another CA must not be mixed with this one's.
    fn check_same_ca(&self, document: &Document) -> Result<(), StoreError> {
        let rows = self.local.authorities()?;
        let mut roots = rows.iter().filter(|row| row.kind == Kind::Root).peekable();
        let Some(first) = roots.peek().map(|row| row.label.clone()) else { return Ok(()) };
        let is_shared = |row: &Authority| document.authorities.iter().any(|held| held.row.label == row.label);
        if document.is_empty() || roots.any(is_shared) { Ok(()) } else { Err(StoreError::OtherCa(first)) }
    }

    fn take_up(
        &self,
        document: Document,
        version: u64,
        change: Option<AuthorityChange>,
    ) -> Result<(), StoreError> {
        self.local.take_up(document, version, &self.replica, change, self.clock.wall())?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes what is shared anew, as the leader; `false` if another was faster.
    fn write(
        &self,
        fence: &super::shared::Fence,
        document: Document,
        version: u64,
        keys: &Listing,
        change: Option<AuthorityChange>,
    ) -> Result<bool, StoreError> {
        let value = document.encode(self.trust_domain.as_str());
        let mut changes = vec![Change::put(STATE, version, value)];
        changes.extend(keys::changes(&document, keys, self.keys.as_ref())?);
        let swapped = self.shared.swap(&changes, Some(fence))?;
        let Some(version) = Lead::judged(swapped, fence)? else { return Ok(false) };
        self.take_up(document, version, change)?;
        Ok(true)
    }

    /// Changes what is shared, as the leader.
    fn edit<T>(
        &self,
        change: Option<AuthorityChange>,
        work: impl Fn(&mut Document) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.lead.with(|fence| {
            for _ in 0..TRIES {
                let fetched = self.fetch()?;
                let (mut document, version, value, keys) = match fetched {
                    Some(Fetched { document, version, value, keys }) => (document, version, value, keys),
                    None => (Document::default(), 0, Vec::new(), Listing::default()),
                };
                self.check_same_ca(&document)?;
                let done = work(&mut document)?;
                if document.is_empty() {
                    // There is no CA to edit anything of.
                    return Ok(done);
                }
                if document.encode(self.trust_domain.as_str()) == value {
                    return Ok(done);
                }
                if self.write(fence, document, version, &keys, change.clone())? {
                    return Ok(done);
                }
            }
            Err(StoreError::Conflict("what is shared changes faster than it can be edited"))
        })
    }

    /// Whether a step concerns nothing but this replica's own issuing CAs, and needs nobody: so it goes on while the shared store is away,
    /// and is told later.
    fn is_local(&self, change: &AuthorityChange) -> Result<bool, StoreError> {
        if !change.add.is_empty() || change.publishes || change.renews || !change.taints.is_empty() {
            return Ok(false);
        }
        let rows = self.local.authorities()?;
        let is_own = |label: &String| {
            rows.iter().any(|row| row.label == *label && row.kind == Kind::Issuing && row.replica.is_none())
        };
        Ok(change.set.iter().all(|(label, _)| is_own(label)))
    }

    /// Waits for what others change, at most for `timeout`, and takes it up; whether there was something. Called again and
    /// again.
    pub fn follow(&self, timeout: Duration) -> Result<bool, StoreError> {
        let since = *self.revision.lock();
        let followed = self
            .shared
            .wait(FOLLOWED, since, timeout)
            .map_err(StoreError::from)
            .and_then(|_| self.catch_up());
        match &followed {
            Ok(_) => self.well(),
            Err(error) => self.unwell(error),
        }
        followed
    }

    /// Looks after the lease, and waits until that is due again or somebody wants it. Called again and again.
    pub fn tend(&self, timeout: Duration) -> Result<(), StoreError> {
        let since = self.shared.read(WANTED)?.revision;
        self.lead.tend()?;
        self.shared.wait(WANTED, since, timeout.min(lead::TEND))?;
        Ok(())
    }

    /// Tells the others of this replica's sidecars, and asks what they say of theirs.
    pub fn report(&self, standing: &Standing<'_>) -> Result<(), StoreError> {
        let now = self.clock.wall();
        let mut summary = Summary::of(&self.replica, &self.instance, standing, now);
        summary.ledger_head = self.local.ledger()?.and_then(|state| state.head);
        let listing = self.shared.read(REPLICAS)?;
        let (key, mut others) = (self.own_key(), Vec::new());
        for entry in &listing.entries {
            match serde_json::from_slice::<Summary>(&entry.value) {
                Ok(said) if entry.key == key => {
                    if said.instance != self.instance && said.is_fresh(now) {
                        return Err(StoreError::SameName(self.replica.clone(), STALE.as_secs()));
                    }
                }
                Ok(said) if entry.key == format!("{REPLICAS}{}", said.replica) => others.push(said),
                _ => tracing::warn!(key = entry.key, "what a replica says of itself cannot be read"),
            }
        }
        *self.others.lock() = others;
        let value = serde_json::to_vec(&summary).map_err(|error| StoreError::File(error.to_string()))?;
        self.shared.swap(&[Change::put(key.clone(), listing.version(&key), value)], None)?;
        Ok(())
    }

    /// Gives the lease back, for another to have it at once.
    pub fn resign(&self) {
        self.lead.resign();
    }

    /// How often [`report`](Self::report) is to be called.
    pub const REPORT: Duration = summary::EVERY;

    /// What the other replicas said last.
    pub fn heard(&self) -> Vec<Summary> {
        self.others.lock().clone()
    }

    /// This replica's name.
    pub fn name(&self) -> &str {
        &self.replica
    }

    /// Who leads, if the shared store says.
    pub fn leader(&self) -> Option<String> {
        self.shared.holder(lead::LEASE).ok().flatten()
    }

    /// Why what is shared is not followed now.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn well(&self) {
        self.metrics.shared_store.set(1);
        if self.trouble.lock().take().is_some() {
            tracing::info!("the shared store answers again");
        }
    }

    fn unwell(&self, error: &StoreError) {
        self.metrics.shared_store.set(0);
        // Once, and not at every look.
        if self.trouble.lock().replace(error.to_string()).is_none() {
            tracing::error!(%error, "what the replicas share cannot be followed: issuing goes on, the trust bundle is frozen");
        }
    }

    /// Carries out what an operator asked this replica for.
    pub fn carry_out(&self, edit: Edit) -> Result<Edited, StoreError> {
        Ok(match edit {
            Edit::Revoke(entry) => Edited { sequence: Some(self.revoke(entry)?), is_new: true },
            Edit::AllowAgain { entry, reason } => {
                Edited { sequence: self.allow_again(entry, reason, self.clock.wall())?, is_new: true }
            }
            Edit::Taint { label, reason } => {
                Edited { sequence: None, is_new: self.taint(label, reason, self.clock.wall())? }
            }
            Edit::Token(token) => {
                self.add_token(token)?;
                Edited { sequence: None, is_new: true }
            }
            Edit::PutBack => Edited { sequence: Some(self.put_back()?), is_new: true },
        })
    }

    /// After the shared store was put back to an older state: writes what this replica has, as a newer version than all.
    fn put_back(&self) -> Result<u64, StoreError> {
        self.lead.with(|fence| {
            let listing = self.shared.read(STATE)?;
            let keys = self.shared.read(keys::PREFIX)?;
            let mut document = self.local.to_share(&self.replica)?;
            if let Some(entry) = listing.find(STATE) {
                let there = Document::decode(&entry.value, self.trust_domain.as_str())
                    .map_err(|detail| SharedError::Damaged { key: STATE.to_owned(), detail })?;
                self.check_same_ca(&there)?;
                document.sequence = document.sequence.max(there.sequence);
            }
            // Nobody may mistake it for either of the two.
            document.sequence = document.sequence.saturating_add(1);
            let sequence = document.sequence;
            // Versions begin again with the store.
            self.local.forget_shared_version()?;
            if self.write(fence, document, listing.version(STATE), &keys, None)? {
                return Ok(sequence);
            }
            Err(StoreError::Conflict("another replica has just written what is shared"))
        })
    }

    /// What only the leader clears away.
    fn prune_shared(&self, before: SystemTime) -> Result<(), StoreError> {
        if !self.lead.is_held() {
            return Ok(());
        }
        self.edit(None, |document| Ok(document.prune(before)))?;
        let now = self.clock.wall();
        self.prune_tokens(now)?;
        for entry in self.shared.read(REPLICAS)?.entries {
            let said = serde_json::from_slice::<Summary>(&entry.value);
            let is_forgotten = |said: Summary| now.duration_since(said.at()).is_ok_and(|age| age > FORGOTTEN);
            if said.is_ok_and(is_forgotten) {
                self.shared.swap(&[Change::delete(entry.key, entry.version)], None)?;
            }
        }
        Ok(())
    }
}

impl Drop for Replicated {
    fn drop(&mut self) {
        self.lead.resign();
    }
}

#[cfg(test)]
mod tests;
