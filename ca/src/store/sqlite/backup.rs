//! What backups need of the database: a snapshot while others write, a look at one, and a new epoch.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use postern_svid::TrustDomain;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{BUSY, DATABASE, Sqlite, mark, outbox, prepared, replica, rows, schema};
use crate::keys::{self, KeyError};
use crate::ledger::State;
use crate::store::{Authority, StoreError};

/// What a database knows, at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The trust bundle's version.
    pub bundle_sequence: u64,
    /// Certificates ever issued.
    pub issued: u64,
    /// Entries of the CAs' journal.
    pub journal: u64,
    /// The ledger's state, if it has begun.
    pub ledger: Option<State>,
    /// All CAs.
    pub authorities: Vec<Authority>,
}

/// More than a key takes, sealed or not.
const MAX_KEY: u64 = 64 * 1024;

/// Epochs are the upper part of the trust bundle's version: nothing counts so far by single steps.
const EPOCH: u32 = 24;
/// Epochs are counted like time, in steps of this many seconds: whoever puts the same backup back again comes to a higher one. The
/// whole stays below 2^53 for more than a hundred years, so that any reader of JSON reads it right.
const STEP: u64 = 10;

impl Sqlite {
    /// Writes a consistent copy of the database of `td` in `directory` to the new file `to`, while others read and write.
    pub(crate) fn snapshot(directory: &Path, td: &TrustDomain, to: &Path) -> Result<(), StoreError> {
        let (_, connection) = prepared(directory, td)?;
        // As text: SQLite takes no bytes there.
        let name =
            to.to_str().ok_or_else(|| StoreError::File(format!("{}: not a UTF-8 path", to.display())))?;
        connection.execute("VACUUM INTO ?1", [name])?;
        Ok(())
    }

    /// Copies the database of `td` in `from` and the keys beside it into the new directory `to`, which only its owner may enter.
    /// The ledger's files stay where they are.
    pub fn copy(from: &Path, td: &TrustDomain, to: &Path) -> Result<(), StoreError> {
        let file = |error: KeyError| StoreError::File(error.to_string());
        keys::private_dir(to).map_err(file)?;
        let database = to.join(DATABASE);
        Self::snapshot(from, td, &database)?;
        let io = |path: &Path, error: io::Error| StoreError::File(format!("{}: {error}", path.display()));
        fs::set_permissions(&database, PermissionsExt::from_mode(0o600)).map_err(|e| io(&database, e))?;
        for entry in fs::read_dir(from).map_err(|error| io(from, error))? {
            let path = entry.map_err(|error| io(from, error))?.path();
            let is_key =
                path.extension().is_some_and(|extension| extension == "key" || extension == "sealed");
            if let Some(name) = path.file_name().filter(|_| is_key) {
                let key = keys::read_private(&path, MAX_KEY).map_err(file)?;
                keys::write_private(&to.join(name), &key).map_err(file)?;
            }
        }
        // What is tried on a copy concerns nobody else.
        replica::leave(&self::copy(&database, td)?)
    }

    /// What the database at `path`, a copy that nobody else uses, knows.
    pub(crate) fn look(path: &Path, td: &TrustDomain) -> Result<Seen, StoreError> {
        let connection = copy(path, td)?;
        let seen = mark::read(&connection)?;
        Ok(Seen {
            bundle_sequence: seen.bundle_sequence,
            issued: seen.issued,
            journal: seen.journal,
            ledger: outbox::state(&connection, td)?,
            authorities: rows::authorities(&connection, path)?,
        })
    }

    /// Lets the numbers of a copy go on above all that was ever seen (`marked` is what a mark beside it remembers), and voids the join tokens that were not spent when it was
    /// made: they may have been since. What operators had asked for and was not done is not done now. Gives the trust bundle's version and the number of tokens.
    pub(crate) fn begin_epoch(
        path: &Path,
        td: &TrustDomain,
        marked: Option<u64>,
        now: SystemTime,
    ) -> Result<(u64, u64), StoreError> {
        let mut connection = copy(path, td)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sequence = schema::number(&transaction, "bundle_sequence")?.max(marked.unwrap_or(0));
        let sequence = next_epoch(sequence, now);
        schema::set_number(&transaction, "bundle_sequence", sequence)?;
        let voided = transaction.execute("DELETE FROM token WHERE bound_key IS NULL", [])?;
        transaction.execute("DELETE FROM request WHERE answered IS NULL", [])?;
        // What waits to be written tells of the tokens that are void.
        outbox::drop_unwritten(&transaction)?;
        transaction.commit()?;
        Ok((sequence, voided as u64))
    }

    /// Writes the mark of the database at `path` anew.
    pub(crate) fn write_mark(path: &Path, td: &TrustDomain) -> Result<(), StoreError> {
        mark::write(path, &mark::read(&copy(path, td)?)?)
    }

    /// What the mark beside the database at `path` remembers of `name`.
    pub(crate) fn marked(path: &Path, name: &str) -> Result<Option<u64>, StoreError> {
        mark::value(path, name)
    }
}

fn next_epoch(sequence: u64, now: SystemTime) -> u64 {
    let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / STEP;
    // With a clock that is behind, and numbers that an older version made, the next one will do.
    ((sequence >> EPOCH) + 1).max(time) << EPOCH
}

/// Opens a database that is not in its place, or not yet in use.
fn copy(path: &Path, td: &TrustDomain) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    schema::prepare(&connection, path, td)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn epochs_only_rise() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (before, now, after) in [
            (0, 0, 1),
            (1, 19, 1),
            (1, 1_795_000_000, 179_500_000),
            ((179_500_000 << 24) + 7, 1_795_000_009, 179_500_001),
            (179_500_000 << 24, 1_795_000_010, 179_500_001),
            (179_500_000 << 24, 1_600_000_000, 179_500_001),
            // What an older version made of its first epoch.
            (1 << 32, 0, 257),
        ] {
            assert_eq!(next_epoch(before, at(now)), after << 24, "{before} at {now}");
        }
        assert!(next_epoch(0, at(5_000_000_000)) < 1 << 53, "in the year 2128");
    }
}
