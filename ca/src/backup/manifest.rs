//! What a backup says of itself: lines of a word and a value, first in the file.

use std::path::Path;
use std::time::SystemTime;

use postern_svid::TrustDomain;

use super::BackupError;
use crate::ledger;
use crate::store::{Kind, Sqlite, State};

/// What is in a backup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Whose CA.
    pub trust_domain: String,
    /// When it was taken, in ms since 1970.
    pub taken_ms: u64,
    /// Whether a control plane may have been at work.
    pub is_running: bool,
    /// The trust bundle's version.
    pub bundle_sequence: u64,
    /// Certificates ever issued.
    pub issued: u64,
    /// Entries of the CAs' journal.
    pub journal: u64,
    /// Records of the ledger.
    pub ledger_size: u64,
    /// The first of them that waits in the database.
    pub ledger_waiting: u64,
}

impl Manifest {
    pub(super) fn text(&self) -> String {
        let Self {
            trust_domain,
            taken_ms,
            is_running,
            bundle_sequence,
            issued,
            journal,
            ledger_size,
            ledger_waiting,
        } = self;
        format!(
            "postern-backup 1\ntrust_domain {trust_domain}\ntaken_ms {taken_ms}\nrunning {}\n\
             bundle_sequence {bundle_sequence}\nissued {issued}\njournal {journal}\n\
             ledger_size {ledger_size}\nledger_waiting {ledger_waiting}\n",
            u8::from(*is_running)
        )
    }

    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, BackupError> {
        let content = |what| BackupError::Content { path: path.to_owned(), what };
        let text = std::str::from_utf8(text).map_err(|_| content("its manifest is no text"))?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        if value("postern-backup") != Some("1") {
            return Err(content("it has a form that this version does not know"));
        }
        let number = |name| {
            value(name)
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| content("its manifest lacks a number"))
        };
        Ok(Self {
            trust_domain: value("trust_domain").unwrap_or_default().to_owned(),
            taken_ms: number("taken_ms")?,
            is_running: number("running")? != 0,
            bundle_sequence: number("bundle_sequence")?,
            issued: number("issued")?,
            journal: number("journal")?,
            ledger_size: number("ledger_size")?,
            ledger_waiting: number("ledger_waiting")?,
        })
    }
}

/// What a snapshot says of what belongs with it.
pub(super) struct Snapshot {
    pub(super) manifest: Manifest,
    /// The CAs whose keys it needs.
    pub(super) needed: Vec<(Kind, String)>,
    /// The ledger's newest head.
    pub(super) head: Option<String>,
}

/// Looks at a snapshot.
pub(super) fn of(
    snapshot: &Path,
    td: &TrustDomain,
    is_running: bool,
    now: SystemTime,
) -> Result<Snapshot, BackupError> {
    let seen = Sqlite::look(snapshot, td)?;
    let ledger = seen.ledger;
    // What signs, or will: the key of a root that drains is gone.
    let signs =
        |state| matches!(state, State::Requested | State::Prepared | State::Published | State::Active);
    let needed = seen.authorities.iter().filter(|row| signs(row.state) && !row.is_offline);
    let needed = needed.map(|row| (row.kind, row.label.clone())).collect();
    let manifest = Manifest {
        trust_domain: td.as_str().to_owned(),
        taken_ms: ledger::ms(now),
        is_running,
        bundle_sequence: seen.bundle_sequence,
        issued: seen.issued,
        journal: seen.journal,
        ledger_size: ledger.as_ref().map_or(0, |state| state.size),
        ledger_waiting: ledger.as_ref().map_or(0, |state| state.waiting),
    };
    Ok(Snapshot { manifest, needed, head: ledger.and_then(|state| state.head) })
}
