//! What the replicas of a control plane share: a few dozen small values under names, changed by compare-and-swap, and leases whose
//! fences keep a holder that was stopped past its lease from writing.
//!
//! It is asked for little on purpose. It is never on the way of a certificate, holds no row per certificate, and may be away for
//! days: each replica has a copy of what it read last. Calls block, each for a few seconds at most (but for
//! [`Shared::wait`]); whoever serves requests calls from a blocking thread.
//!
//! # What it is made of elsewhere
//!
//! **etcd.** A version is the key's `mod_revision`, a swap one transaction. A lease is a key attached to an etcd lease, its
//! fence that key's `create_revision`, which a fenced transaction compares: the key goes with the lease, so a holder that is late is
//! refused even while nobody has followed it.
//!
//! **Kubernetes.** One Secret holds all values, so that a swap is one update with the Secret's `resourceVersion` as its
//! precondition. A version is a number in the Secret that each update raises and writes beside the values that it changes
//! (a `resourceVersion` is opaque and cannot be compared with an older one). A lease is a `Lease` object; its fence is
//! `leaseTransitions`, with the holder. A Lease and a Secret cannot be changed together, so whoever acquires the Lease writes
//! its fence into the Secret before anything else, and a fenced update compares with what stands there: what was read
//! and what is written have one `resourceVersion`, so of an old holder and a new one only one gets through.

mod memory;

use std::fmt;
use std::time::Duration;

pub use memory::Memory;

/// The longest value.
pub const MAX_VALUE: usize = 512 * 1_024;
/// All values together: what a Kubernetes Secret holds.
pub const MAX_ALL: usize = 1_024 * 1_024;
/// The longest name.
pub const MAX_KEY: usize = 200;
/// Changes in one swap: etcd takes 128 operations in a transaction, comparisons apart.
pub const MAX_CHANGES: usize = 64;

/// What replicas share.
pub trait Shared: Send + Sync + 'static {
    /// All entries whose names begin with `prefix`, by name, as of one moment.
    fn read(&self, prefix: &str) -> Result<Listing, SharedError>;

    /// Makes all changes or none: each only if its entry still has the version that is expected, and with a fence only while that
    /// is in force.
    ///
    /// After [`SharedError::Unavailable`] the changes may have been made or not: read again before going on.
    fn swap(&self, changes: &[Change], fence: Option<&Fence>) -> Result<Swap, SharedError>;

    /// Waits until an entry whose name begins with `prefix` is changed after revision `since`, at most for `timeout`; gives the
    /// store's revision then. It may wake for nothing. One lower than `since` says that the store was put back to an older state.
    fn wait(&self, prefix: &str, since: u64, timeout: Duration) -> Result<u64, SharedError>;

    /// Takes the lease `name` for `holder`, for `ttl` from now on; `None` while somebody has it, even under the same holder's name.
    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<Fence>, SharedError>;

    /// Makes the lease last its whole `ttl` again from now on; `false` if it has ended, or is somebody else's.
    fn renew(&self, fence: &Fence) -> Result<bool, SharedError>;

    /// Gives the lease back, if it is still held.
    fn release(&self, fence: &Fence) -> Result<(), SharedError>;

    /// Who holds the lease `name`.
    fn holder(&self, name: &str) -> Result<Option<String>, SharedError>;
}

/// Entries as of one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// The store's revision: any change raises it.
    pub revision: u64,
    /// By name.
    pub entries: Vec<Entry>,
}

/// A value under its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its name: of lower-case letters, digits and `-._/`, with no empty part between two `/`.
    pub key: String,
    /// The store's revision when it was written last.
    pub version: u64,
    /// Its content.
    pub value: Vec<u8>,
}

/// One change of a swap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Of which entry; each at most once in a swap.
    pub key: String,
    /// The version that it must have; 0: there must be none.
    pub expected: u64,
    /// What becomes of it.
    pub write: Write,
}

/// What becomes of an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    /// It has this value from now on.
    Put(Vec<u8>),
    /// It is no more.
    Delete,
    /// Nothing: the swap rests on it.
    Keep,
}

/// What became of a swap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Swap {
    /// All changes are made; each entry that was put has this version, which is the store's revision.
    Done(u64),
    /// An entry has another version by now; nothing was changed.
    Conflict,
    /// The fence's lease has ended, or is somebody else's; nothing was changed.
    Fenced,
}

/// A lease that was taken. Its token is higher than that of any earlier holder of the same lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fence {
    /// The lease's name.
    pub name: String,
    /// Who took it.
    pub holder: String,
    /// What a fenced write is compared by.
    pub token: u64,
    /// What the store itself finds the lease by; nobody else's business.
    pub lease: i64,
    /// How long it lasts without being renewed.
    pub ttl: Duration,
}

/// Why the shared store did not do what it was asked for. Each text names the way out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// It cannot be reached, or does not answer in time. Everything goes on with what was read last; the next call may succeed.
    #[error("the shared store does not answer: {0}")]
    Unavailable(String),
    /// It answers, and will not serve us: who we are, what we may, whose it is.
    #[error("the shared store refuses: {0}")]
    Refused(String),
    /// What it holds is not what a control plane writes.
    #[error("the shared store: {key}: {detail}. Put a snapshot of it back, or name another prefix")]
    Damaged {
        /// Under which name.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// More than it takes.
    #[error("the shared store takes no more than {most} bytes {what}, and this is {found}: {key}")]
    TooLarge {
        /// Under which name.
        key: String,
        /// Of what.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// A swap that no store could make.
    #[error("not a swap: {0}")]
    Invalid(String),
}

/// Whether `key` may name an entry.
pub fn is_key(key: &str) -> bool {
    let plain =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_' | b'/');
    !key.is_empty()
        && key.len() <= MAX_KEY
        && key.bytes().all(plain)
        && key.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Refuses a swap that no store may make: what every implementation asks first.
pub fn check(changes: &[Change]) -> Result<(), SharedError> {
    if changes.is_empty() || changes.len() > MAX_CHANGES {
        return Err(SharedError::Invalid(format!("{} changes; from 1 to {MAX_CHANGES}", changes.len())));
    }
    let mut total = 0;
    for (at, change) in changes.iter().enumerate() {
        if !is_key(&change.key) {
            return Err(SharedError::Invalid(format!("{:?} names no entry", change.key)));
        }
        if changes[..at].iter().any(|earlier| earlier.key == change.key) {
            return Err(SharedError::Invalid(format!("{} is changed twice", change.key)));
        }
        let Write::Put(value) = &change.write else { continue };
        total += value.len();
        let too_large =
            |what, found, most| SharedError::TooLarge { key: change.key.clone(), what, found, most };
        if value.len() > MAX_VALUE {
            return Err(too_large("in one value", value.len(), MAX_VALUE));
        }
        if total > MAX_ALL {
            return Err(too_large("in all values", total, MAX_ALL));
        }
    }
    Ok(())
}

impl Listing {
    /// The entry of this name.
    pub fn find(&self, key: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.key.as_str().cmp(key)).ok().map(|at| &self.entries[at])
    }

    /// The version of the entry of this name; 0 if there is none.
    pub fn version(&self, key: &str) -> u64 {
        self.find(key).map_or(0, |entry| entry.version)
    }
}

impl Change {
    /// Puts `value` in the place of the version that is expected.
    pub fn put(key: impl Into<String>, expected: u64, value: Vec<u8>) -> Self {
        Self { key: key.into(), expected, write: Write::Put(value) }
    }

    /// Takes an entry out.
    pub fn delete(key: impl Into<String>, expected: u64) -> Self {
        Self { key: key.into(), expected, write: Write::Delete }
    }

    /// Asks that an entry be as it was read, and leaves it so.
    pub fn keep(key: impl Into<String>, expected: u64) -> Self {
        Self { key: key.into(), expected, write: Write::Keep }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ({})", self.name, self.holder, self.token)
    }
}

#[cfg(test)]
mod tests;
