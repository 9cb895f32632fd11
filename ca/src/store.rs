//! What the CA must not forget. Every write is durable when its call returns.
//!
//! Calls block; whoever serves requests calls from a blocking thread. Conditions that a decision rests on (a token not
//! yet spent, a predecessor still the newest) are checked again inside the transaction that writes.

mod federation;
mod jwt;
mod replica;
mod revocation;
pub mod shared;
mod sqlite;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_svid::{Revoked, SpiffeId};

use crate::lineage::{Attestor, Lineage, LineageId};
use crate::token::{TokenHash, TokenRecord};

pub use federation::{Federated, FederationStore};
pub use jwt::{JwtChange, JwtIssued, JwtKey, JwtState, JwtStore};
pub use replica::{
    Behind, ControlStore, Edit, Edited, ReplicaKeys, Replicated, STALE, Standing, Summary, is_replica_name,
};
pub use revocation::{Live, MAX_LISTS, Reason, ReasonError, Revocation, Trust};
pub(crate) use revocation::{check_leap, lists};
pub use sqlite::{
    Answer, Audit, AuditError, DATABASE, Difference, JournalEntry, MARK, Order, OrderVerb, Seen, Sqlite,
    UNFINISHED,
};

/// How far ahead of the latest time seen a clock may be. Longer than a long weekend without the machine, and the life of an issuing CA:
/// whatever was handed out before is over by then.
pub const LEAP: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The CA's memory.
pub trait Store: Send + Sync + 'static {
    /// All CAs, oldest first.
    fn authorities(&self) -> Result<Vec<Authority>, StoreError>;
    /// Adds CAs, retires others and writes both to the journal, as one step.
    fn change_authorities(&self, change: AuthorityChange) -> Result<(), StoreError>;
    /// Version of the trust bundle; 0 before the first.
    fn bundle_sequence(&self) -> Result<u64, StoreError>;
    /// What the trust bundle is made of, all as of one moment.
    fn trust(&self) -> Result<Trust, StoreError>;
    /// Puts an entry on the deny list and raises the bundle's version; gives that. An entry that is there already takes the new
    /// reason and end.
    fn revoke(&self, entry: Revocation) -> Result<u64, StoreError>;
    /// Takes an entry off the deny list and raises the bundle's version; `None` if it is not there. A taint stays.
    fn allow_again(&self, entry: Revoked, reason: Reason, at: SystemTime) -> Result<Option<u64>, StoreError>;
    /// Takes off the deny list what has ended by `now`; gives the bundle's new version if that changed it.
    fn end_revocations(&self, now: SystemTime) -> Result<Option<u64>, StoreError>;
    /// Notes that the CA with this label is not to be trusted any more. What follows from it is the authority's work; `false` if
    /// it was noted before.
    fn taint(&self, label: String, reason: Reason, at: SystemTime) -> Result<bool, StoreError>;
    /// All leaves that are valid at `now`.
    fn live(&self, now: SystemTime) -> Result<Vec<Live>, StoreError>;
    /// Raises the version of the trust bundle; a lower or equal one is refused.
    fn raise_bundle_sequence(&self, to: u64) -> Result<(), StoreError>;
    /// Adds a token.
    fn add_token(&self, token: TokenRecord) -> Result<(), StoreError>;
    /// Finds a token.
    fn token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError>;
    /// Finds a certificate and its lineage by serial number.
    fn certificate(&self, serial: &[u8]) -> Result<Option<(Issued, Lineage)>, StoreError>;
    /// Finds a lineage.
    fn lineage(&self, id: LineageId) -> Result<Option<Lineage>, StoreError>;
    /// The newest certificate made for a key.
    fn key_owner(&self, key: [u8; 32]) -> Result<Option<Issued>, StoreError>;
    /// Writes an issued certificate together with what it changes. It must not leave before this has returned.
    fn record(&self, issued: Issued, grant: Grant) -> Result<(), StoreError>;
    /// Marks a lineage as forked.
    fn mark_forked(&self, lineage: LineageId, at: SystemTime) -> Result<(), StoreError>;
    /// Fails while what is written lacks its durable record: then nothing that was read may be handed out either.
    fn is_settled(&self) -> Result<(), StoreError>;
    /// Certificates still valid at `now` with a serial above `after`, in order of serials.
    fn valid_certificates(
        &self,
        now: SystemTime,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Issued>, StoreError>;
    /// When the latest certificate was made.
    fn last_issued(&self) -> Result<Option<SystemTime>, StoreError>;
    /// Numbers for people.
    fn counts(&self, now: SystemTime) -> Result<Counts, StoreError>;
    /// Forgets certificates that ended before `before` and what hangs on them alone; keeps CAs. After a pause, or a clock that went
    /// ahead, not all of it at once.
    fn prune(&self, before: SystemTime) -> Result<u64, StoreError>;
    /// Proves that something can be written durably now, or fails within seconds.
    fn probe(&self, now: SystemTime) -> Result<(), StoreError>;
    /// This replica's name, if others may share its trust.
    fn replica(&self) -> Option<&str> {
        None
    }
    /// Whether steps that happen by themselves are taken here. Among replicas one leads.
    fn leads(&self) -> bool {
        true
    }
    /// What the other replicas said last of their sidecars.
    fn others(&self) -> Vec<Summary> {
        Vec::new()
    }
}

/// A root, tier or issuing CA.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Root, tier or issuing.
    pub kind: Kind,
    /// Where it stands in its life.
    pub state: State,
    /// Unique part of its name, and the name of its key.
    pub label: String,
    /// Subject key identifier.
    pub key_id: Vec<u8>,
    /// The certificate, DER; of a tier also those between it and its root, one after the other; of one that is requested, the
    /// request.
    pub certificate: Vec<u8>,
    /// Begin of its life.
    pub not_before: SystemTime,
    /// End of its life.
    pub not_after: SystemTime,
    /// Since when it is in this state.
    pub since: SystemTime,
    /// Of a root: version of the trust bundle that published it; 0 before.
    pub sequence: u64,
    /// When somebody said that it is not to be trusted any more.
    pub tainted: Option<SystemTime>,
    /// Of an issuing CA: the replica that has its key, if that is another one.
    pub replica: Option<String>,
    /// Of a root: whether its key is elsewhere, so that it signs tiers by file.
    pub is_offline: bool,
}

impl Authority {
    /// SHA-256 over the certificate's DER, in hexadecimal: of a root, what a sidecar is told as `rootSha256`.
    pub fn sha256(&self) -> String {
        crate::hex(&crate::csr::fingerprint(&self.certificate))
    }
}

/// Kinds of CA.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Signs issuing CAs; one that is offline signs tiers.
    Root,
    /// Signs issuing CAs in the place of a root that is offline.
    Tier,
    /// Signs leaves.
    Issuing,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Root, Self::Tier, Self::Issuing];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Tier => "tier",
            Self::Issuing => "issuing",
        }
    }
}

/// The life of a CA.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// A tier: its key is made, its certificate not yet signed.
    Requested,
    /// Made, not yet signing; of a root, nobody has been told of it.
    Prepared,
    /// A root: in the trust bundle, and not yet signing.
    Published,
    /// Signing.
    Active,
    /// A root: signs no more, and is in the trust bundle for its last leaves.
    Draining,
    /// Signs no more; its key is gone. The last leaf of an issuing CA may still live; a root is out of the trust bundle.
    Retired,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Requested, Self::Prepared, Self::Published, Self::Active, Self::Draining, Self::Retired];

    /// Its word, in the store and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
        }
    }

    /// Whether a root in this state is in the trust bundle.
    pub fn is_trusted(self) -> bool {
        matches!(self, Self::Published | Self::Active | Self::Draining)
    }
}

/// One step of the CAs' life.
#[derive(Clone, Debug)]
pub struct AuthorityChange {
    /// When.
    pub at: SystemTime,
    /// Why, for the journal.
    pub reason: String,
    /// New CAs. One that was requested gets its certificate.
    pub add: Vec<Authority>,
    /// New states by label.
    pub set: Vec<(String, State)>,
    /// Whether it changes the trust bundle, whose version is raised then.
    pub publishes: bool,
    /// Taints that are in force from now on.
    pub taints: Vec<Revocation>,
    /// Whether every leaf that was issued before is to be renewed at once.
    pub renews: bool,
}

impl AuthorityChange {
    /// One that changes nothing yet.
    pub fn new(at: SystemTime, reason: impl Into<String>) -> Self {
        Self {
            at,
            reason: reason.into(),
            add: Vec::new(),
            set: Vec::new(),
            publishes: false,
            taints: Vec::new(),
            renews: false,
        }
    }
}

/// An issued leaf.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Serial number.
    pub serial: Vec<u8>,
    /// Whose it is.
    pub id: SpiffeId,
    /// Its lineage.
    pub lineage: LineageId,
    /// Key identifier of the CA that signed it.
    pub issuer: Vec<u8>,
    /// Fingerprint of its key.
    pub key: [u8; 32],
    /// When it was made.
    pub issued: SystemTime,
    /// Begin of its life.
    pub not_before: SystemTime,
    /// End of its life.
    pub not_after: SystemTime,
    /// When its holder is to renew it.
    pub renew_after: SystemTime,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

/// What an issued certificate rests on, checked again when it is written.
#[derive(Clone, Debug)]
pub enum Grant {
    /// A token, unspent until now: it is bound to the certificate's key, and a lineage begins.
    Token(TokenHash),
    /// The lineage goes on from `predecessor`, whose `newest` must not have changed since it was read.
    Lineage {
        /// The certificate that renews.
        predecessor: Vec<u8>,
        /// The newest one at the time of the decision.
        newest: Vec<u8>,
    },
    /// A new lineage that began in this way, not with a token.
    New(Attestor),
    /// A lineage goes on that another replica began, or took over from a third.
    Adopted {
        /// The certificate that renews.
        from: Box<Issued>,
        /// How the lineage began.
        attestor: Attestor,
        /// When.
        attested: SystemTime,
        /// What was attested again, if something was.
        basis: Option<Basis>,
    },
    /// Attested facts that a registration grants the id.
    Attested {
        /// For the ledger.
        basis: Basis,
        /// Of a lineage that goes on: the certificate that renews, and the newest one at the time of the decision. Otherwise one
        /// begins.
        renews: Option<(Vec<u8>, Vec<u8>)>,
    },
}

/// What a certificate by attestation rests on, in words; each bounded, in printable ASCII.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Basis {
    /// Who attested.
    pub attestor: Attestor,
    /// The registration that grants the id.
    pub registration: String,
    /// The facts, as selectors.
    pub facts: String,
}

/// Numbers for people.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Valid certificates.
    pub valid: u64,
    /// Tokens neither spent nor expired.
    pub open_tokens: u64,
    /// Lineages with a fork.
    pub forked: u64,
}

/// Why the store refused.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The clock is behind the newest record.
    #[error(
        "the clock is {} s behind the ledger's newest record. Correct it; if it is right and was ahead earlier, say so: postern ca clock confirm --reason TEXT",
        .behind.as_secs()
    )]
    Clock {
        /// By how much.
        behind: Duration,
    },
    /// What a decision rested on has changed meanwhile: somebody else was faster.
    #[error("{0}; another request was faster")]
    Conflict(&'static str),
    /// The clock is far ahead of anything the store has seen.
    #[error(
        "the clock says {}, {} days after the latest time that this CA has seen ({}): nothing is issued, replaced or forgotten meanwhile. \
         Correct the clock, and it goes on by itself; or, if the clock is right, say so: postern ca clock confirm --reason TEXT",
        moment(*.at), .at.duration_since(*.seen).unwrap_or_default().as_secs() / 86_400, moment(*.seen)
    )]
    Leapt {
        /// What the clock says.
        at: SystemTime,
        /// The latest time seen.
        seen: SystemTime,
    },
    /// The content contradicts itself.
    #[error("{path}: damaged: {detail}. Move the state directory away and put a backup back: postern ca restore (docs/backup.md)", path = .0.display(), detail = .1)]
    Damaged(PathBuf, String),
    /// The database refused.
    #[error("the database refused: {0}")]
    Database(String),
    /// The file or its directory is not fit.
    #[error("{0}")]
    File(String),
    /// Another replica leads, and has not handed over in time.
    #[error("{} leads, and has not handed over in time; is it stopped? Nothing was changed: ask again", name_of(.0))]
    Busy(String),
    /// The lease has ended: another replica may have gone on.
    #[error(
        "the lease {0} had ended when this was to be written: another replica may lead by now. Nothing was changed: ask again"
    )]
    Fenced(String),
    /// The replicas have another CA than this database.
    #[error(
        "the replicas share another CA than this state directory has ({0}). Use an empty state directory for this replica, or another prefix in the shared store for this CA"
    )]
    OtherCa(String),
    /// It is another replica's.
    #[error(
        "this state directory is the replica {found}'s, not {wanted}'s: each replica has its own. Name the right one (replica, stateDir)"
    )]
    OtherReplica {
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// The control plane did not do what it was asked for.
    #[error("{0}")]
    Refused(String),
    /// Another process runs under this replica's name.
    #[error(
        "another control plane runs as the replica {0}, with another state directory. Each has a name of its own (replica); if the other's state was lost, wait {1} s"
    )]
    SameName(String, u64),
    /// What replicas share.
    #[error(transparent)]
    Shared(#[from] shared::SharedError),
    /// What is shared is older than what this replica has seen.
    #[error(
        "the shared store was put back to an older state: it has the trust bundle of version {shared}, and this replica has seen {held}. Nothing is taken from it, and the bundle is frozen. Put a newer snapshot of it back, or let this replica write what it has: postern ca replicas put-back (docs/replicas.md)"
    )]
    SharedRolledBack {
        /// What it has.
        shared: u64,
        /// What was seen.
        held: u64,
    },
    /// The ledger cannot be written, or is not what was written.
    #[error("the ledger: {0}")]
    Ledger(String),
    /// More is denied than the lists hold.
    #[error(
        "the taint and deny lists are full ({0}). Whoever has more to deny has lost a CA: postern ca taint takes all of its certificates at once"
    )]
    Lists(String),
    /// Somebody else holds the write lock.
    #[error(
        "another process holds the database for more than 5 s; find it (fuser -v ca.db ca.db-wal in the state directory) and let it finish"
    )]
    Locked,
    /// An older state of the database than was seen before.
    #[error(
        "{}: older than the state that {} remembers ({detail}). Spent tokens and abandoned certificates would come back to life. \
         Put the newer database back, or a backup: postern ca restore --new-epoch (docs/backup.md). If this old state is wanted as it is, \
         delete {} and make new join tokens for every workload",
        .database.display(), .mark.display(), .mark.display()
    )]
    RolledBack {
        /// The database.
        database: PathBuf,
        /// The file that remembers.
        mark: PathBuf,
        /// What differs.
        detail: String,
    },
    /// Written by a newer version of this program.
    #[error("{}: schema version {found}; this program knows {known}. Run the version that wrote it, or a newer one", .path.display())]
    Schema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The disk, or a queue before it, hangs.
    #[error("the database has not answered in time; is its disk full, failing or on a network?")]
    Slow,
    /// It belongs to another trust domain.
    #[error("{}: belongs to the trust domain {found}, not {wanted}; name that one or use another state directory", .path.display())]
    TrustDomain {
        /// The database.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// Only the running control plane of a replica may change what is shared, and it did not answer.
    #[error(
        "this is one replica of several, and what they share is changed by its running control plane, which has not answered; is postern control running? Nothing was changed, or its log says so"
    )]
    Unanswered,
    /// The store is shutting down, or its writer has died.
    #[error("the store is closed")]
    Closed,
}

fn name_of(replica: &str) -> String {
    if replica.is_empty() { "another replica".to_owned() } else { format!("the replica {replica}") }
}

/// A time for people.
fn moment(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "a time beyond the calendar".to_owned())
}
