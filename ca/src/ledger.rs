//! The issuance ledger: an append-only, hash-chained record of everything that the CA issues and of what changes its trust,
//! with Merkle tree heads that the CA signs. `docs/ledger.md` is its format for people and for other programs.
//!
//! One commit point. A record is made in the transaction of the store that it stands for and waits there, in the *outbox*;
//! after the commit it is appended to a segment file and synced, and only then the caller is answered. So the files never
//! hold what the store does not know, and what a crash kept out of them is written from the outbox at the next start.
//!
//! Readers take no lock. The one writer is the control plane, which holds its state directory.

mod head;
mod merkle;
mod proof;
mod record;
mod segment;
mod verify;
mod walk;
mod writer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use postern_svid::TrustDomain;

use crate::keys::KeyError;

pub use head::{Head, HeadKey, Signer};
pub use merkle::Tree;
pub use proof::{consistency, inclusion};
pub(crate) use record::ms;
pub use record::{Draft, Field, Kind, MAX_BODY, Record, Value};
pub use segment::{Fault, Header, Segment};
pub use verify::{Report, verify};
pub(crate) use verify::{SLACK_MS, verify_each};
pub use walk::{Entry, Walk};
pub use writer::{SEGMENT, Writer};

/// SHA-256.
pub type Hash = [u8; 32];

/// The ledger's directory within the state directory.
pub const DIRECTORY: &str = "ledger";
/// The name of the key that signs its heads.
pub const KEY: &str = "ledger";
/// The newest head's file within the ledger's directory.
pub(crate) const LATEST: &str = "latest.head";
/// What stands for a file where the store's head is at fault.
const STORED: &str = "the database's head";
/// The page that tells what to do.
const PAGE: &str = "docs/ledger.md";

/// Whose ledger it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The CA's trust domain.
    pub trust_domain: TrustDomain,
    /// Random, made with the ledger.
    pub id: [u8; 16],
}

impl Identity {
    /// The name of the ledger and of its key in every head.
    pub fn origin(&self) -> String {
        format!("postern.dev/ledger/{}/{}", self.trust_domain, crate::hex(&self.id))
    }
}

/// How far the store has come: what the files are held against.
#[derive(Clone, Debug)]
pub struct State {
    /// Whose it is.
    pub identity: Identity,
    /// The public key of its heads, once the control plane has made one.
    pub key: Option<HeadKey>,
    /// Records in all.
    pub size: u64,
    /// The chain's hash after the last one.
    pub chain: Hash,
    /// The first record of which the outbox has a copy; all before it are in the files.
    pub waiting: u64,
    /// The newest head that was signed.
    pub head: Option<String>,
}

/// SHA-256 over parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The chain's hash after a record. The prefix tells it from a leaf (0) and a node (1) of the tree.
pub fn chain(previous: &Hash, body: &[u8]) -> Hash {
    sha256(&[&[2], previous, body])
}

pub(crate) fn segment_path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.segment"))
}

/// The head of the first `size` records, at which a segment ended.
pub(crate) fn head_path(directory: &Path, size: u64) -> PathBuf {
    directory.join(format!("{size:020}.head"))
}

/// The numbers of all files that end in `suffix`, in order.
fn numbers(directory: &Path, suffix: &str) -> Result<Vec<u64>, LedgerError> {
    let io = |error| LedgerError::Io(directory.to_owned(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(suffix));
        found.extend(number.filter(|n| n.len() == 20).and_then(|n| n.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// The sizes of all heads with which segments ended, in order.
pub(crate) fn heads(directory: &Path) -> Result<Vec<u64>, LedgerError> {
    numbers(directory, ".head")
}

/// The first sequence numbers of all segments there are, in order.
pub fn segments(directory: &Path) -> Result<Vec<u64>, LedgerError> {
    let found = match numbers(directory, ".segment") {
        Err(LedgerError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    if found.is_empty() { Err(LedgerError::None(directory.to_owned())) } else { Ok(found) }
}

/// What is wrong with the ledger. Each text names the place and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// It is not the store's, or not its newest state.
    #[error(
        "{}: holds record {sequence}, but the database knows only {size}: it is older than the ledger. Put the newer database back ({PAGE}, \"After a rollback\")",
        .file.display()
    )]
    Ahead {
        /// The segment.
        file: PathBuf,
        /// The record.
        sequence: u64,
        /// Records in the store.
        size: u64,
    },
    /// A record is not what was written.
    #[error(
        "record {sequence}: {}, offset {offset}: {what}. Restore this file from a copy ({PAGE}, \"When it is damaged\")",
        .file.display()
    )]
    Damaged {
        /// The record.
        sequence: u64,
        /// The segment.
        file: PathBuf,
        /// Where in it the record begins.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A head is not what was signed, or not of these records.
    #[error("{}: {what}. Restore this file from a copy ({PAGE}, \"When it is damaged\")", .file.display())]
    Head {
        /// The head's file.
        file: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// The system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is not the one that the ledger began with.
    #[error(
        "ledger.key: not the key that this ledger's heads are signed with; restore the state directory, keys and database together, from a backup"
    )]
    KeyMismatch,
    /// Records that were there are not.
    #[error(
        "{}: ends before record {found}, {known} are known: records are missing, or a file was cut or put back. Restore the newest files from a copy ({PAGE}, \"When it is damaged\")",
        .file.display()
    )]
    Missing {
        /// Where the next record should be.
        file: PathBuf,
        /// Records found.
        found: u64,
        /// Records known.
        known: u64,
    },
    /// Nothing is there.
    #[error("{}: no ledger is here; the control plane makes it at its start ({PAGE})", .0.display())]
    None(PathBuf),
    /// There is none of this number.
    #[error("there is no record {sequence}: the ledger has {size}, counted from 0")]
    NoRecord {
        /// The number.
        sequence: u64,
        /// Records in all.
        size: u64,
    },
    /// Not covered by a head yet.
    #[error("record {0} is not covered by a signed head yet; the control plane signs one every 10 s")]
    NotCovered(u64),
    /// The segments that hold it are not here.
    #[error("what comes before record {0} was moved away; put those segments back to prove it")]
    MovedAway(u64),
    /// Signing failed.
    #[error("a head of the ledger could not be signed")]
    Sign,
}

#[cfg(test)]
mod tests;
