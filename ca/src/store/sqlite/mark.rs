//! A small file beside the database that remembers how far it had come. An old database copied into place is noticed:
//! its numbers are lower.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::{StoreError, schema};
use crate::keys;

/// The mark's name within the state directory.
pub const MARK: &str = "ca.mark";

/// How far a database has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) bundle_sequence: u64,
    /// Entries of the journal of CAs.
    pub(super) journal: u64,
    /// Certificates ever issued.
    pub(super) issued: u64,
}

pub(super) fn read(connection: &Connection) -> Result<Seen, StoreError> {
    let journal: Option<i64> =
        connection.query_row("SELECT max(number) FROM journal", [], |row| row.get(0)).optional()?.flatten();
    Ok(Seen {
        bundle_sequence: schema::number(connection, "bundle_sequence")?,
        journal: journal.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        issued: schema::number(connection, "issued")?,
    })
}

pub(super) fn write(database: &Path, seen: &Seen) -> Result<(), StoreError> {
    let Seen { bundle_sequence, journal, issued } = seen;
    let text = format!("bundle_sequence {bundle_sequence}\njournal {journal}\nissued {issued}\n");
    keys::replace(&path(database), 0o600, text.as_bytes())
        .map_err(|error| StoreError::File(error.to_string()))
}

/// What the mark beside `database` remembers of `name`; `None` without a mark.
pub(super) fn value(database: &Path, name: &str) -> Result<Option<u64>, StoreError> {
    let mark = path(database);
    let text = match fs::read_to_string(&mark) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::File(format!("{}: {error}", mark.display()))),
    };
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let unreadable = |_| StoreError::File(format!("{}: cannot be read: {text:?}", mark.display()));
    found.map(|number| number.parse().map_err(unreadable)).transpose()
}

/// Refuses a database that is behind its mark.
pub(super) fn check(connection: &Connection, database: &Path) -> Result<(), StoreError> {
    let mark = path(database);
    let text = match fs::read_to_string(&mark) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(StoreError::File(format!("{}: {error}", mark.display()))),
    };
    let seen = read(connection)?;
    if text.trim().is_empty() && seen.journal > 0 {
        tracing::warn!(
            mark = %mark.display(),
            "this file is missing or empty, so that an older database in place of this one would not be noticed; the next commit writes it. If nobody removed it, compare with a backup, and the ledger with a head that you kept: postern ca ledger verify"
        );
    }
    for line in text.lines() {
        let (now, marked) = match line.split_once(' ') {
            Some(("bundle_sequence", n)) => (seen.bundle_sequence, n),
            Some(("journal", n)) => (seen.journal, n),
            Some(("issued", n)) => (seen.issued, n),
            _ => continue,
        };
        let marked: u64 = marked
            .parse()
            .map_err(|_| StoreError::File(format!("{}: cannot be read: {line:?}", mark.display())))?;
        if now < marked {
            let name = line.split(' ').next().unwrap_or_default();
            return Err(StoreError::RolledBack {
                database: database.to_owned(),
                mark,
                detail: format!("{name} {now}, was {marked}"),
            });
        }
    }
    Ok(())
}

pub(super) fn path(database: &Path) -> PathBuf {
    database.with_file_name(MARK)
}
