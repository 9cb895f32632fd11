//! The database held against the ledger: what the records say is replayed and compared with the rows, both ways. It reads only, as
//! of one moment, and keeps nobody from writing: a record and what it tells are in one commit, so that what is not yet in the
//! ledger's files waits in the outbox beside its row.
//!
//! Memory is a few MB whatever the ledger's length: what the records say goes into temporary tables, which are in a file
//! (in `SQLITE_TMPDIR`, `TMPDIR`, `/var/tmp` or `/tmp`) of some 300 bytes for each row that lives and each lineage and spent token of the ledger.

mod compare;
mod said;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_svid::{Bundle, Document, TrustDomain};
use rusqlite::Connection;

use super::{DATABASE, StoreError, mark, outbox, readers, replica, schema, whole};
use crate::keys;
use crate::ledger::{self, DIRECTORY, LedgerError, Record, Report, State, Walk};
use said::Said;

/// Records of the outbox that are read at a time.
const CHUNK: u32 = 256;

/// A CA's ledger and database, to be read and not changed.
pub struct Audit {
    directory: PathBuf,
    database: PathBuf,
    trust_domain: TrustDomain,
    connection: Connection,
}

/// Where the database does not hold what the ledger says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// The record that says it last; `None` if none does.
    pub record: Option<u64>,
    /// The database's table.
    pub table: &'static str,
    /// Which row: a serial number, the begin of a token's hash, a lineage, a CA's label, an entry of the deny list, a key's id, a
    /// trust domain.
    pub key: String,
    /// Which column; `None` if it is about the whole row.
    pub column: Option<&'static str>,
    /// What the records say; `None` if they know no such row.
    pub ledger: Option<String>,
    /// What the database holds; `None` if there is no such row.
    pub database: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.record {
            Some(record) => write!(f, "record {record}: ")?,
            None => f.write_str("no record: ")?,
        }
        write!(f, "{} {}: ", self.table, self.key)?;
        match (self.column, &self.ledger, &self.database) {
            (Some(column), Some(ledger), Some(database)) => {
                write!(f, "{column}: the ledger says {ledger}, the database {database}")
            }
            (_, Some(_), _) => f.write_str("it is not in the database"),
            _ => f.write_str("it is in the database alone"),
        }
    }
}

/// Why the two could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The ledger is damaged.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for AuditError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Within what bounds the two are compared.
struct Scope {
    /// Rows that ended before this time may be forgotten.
    pruned: i64,
    /// The first record that is here.
    first: u64,
    /// What was there before this time is not all in the ledger.
    begun: u64,
    /// Whether the database is that of a replica.
    shared: bool,
}

impl Scope {
    /// Numbers alone are filled in.
    fn filled(&self, sql: &str) -> String {
        sql.replace("$pruned", &self.pruned.to_string())
            .replace("$first", &self.first.to_string())
            .replace("$begun", &self.begun.to_string())
            .replace("$shared", if self.shared { "1" } else { "0" })
    }
}

impl Audit {
    /// Opens the database of `td` in the state directory `state` to read it. One that is older than this program, or than its
    /// mark, is refused.
    pub fn open(state: &Path, td: &TrustDomain) -> Result<Self, StoreError> {
        crate::backup::check_finished(state)?;
        let database = state.join(DATABASE);
        let io = |error| StoreError::File(format!("{}: {error}", database.display()));
        let found = fs::symlink_metadata(&database).map_err(io)?;
        if !found.is_file() {
            return Err(StoreError::File(format!("{}: not a regular file", database.display())));
        }
        keys::check_owner_and_mode(&database, &found, "600")
            .map_err(|error| StoreError::File(error.to_string()))?;
        if let Err(detail) = whole::check(&database).map_err(io)? {
            return Err(StoreError::Damaged(database, detail));
        }
        let connection = readers::open(&database)?;
        schema::check(&connection, &database, td)?;
        mark::check(&connection, &database)?;
        Ok(Self { directory: state.join(DIRECTORY), database, trust_domain: td.clone(), connection })
    }

    fn state(&self, connection: &Connection) -> Result<State, AuditError> {
        let state = outbox::state(connection, &self.trust_domain)?;
        Ok(state.ok_or_else(|| LedgerError::None(self.directory.clone()))?)
    }

    /// Verifies the ledger, and gives each difference between its records and the database. `now` bounds what may have been
    /// forgotten for its age.
    pub fn verify(&self, now: SystemTime, found: &mut dyn FnMut(Difference)) -> Result<Report, AuditError> {
        let pruned = schema::number(&self.connection, "pruned_ms")?.min(ledger::ms(now));
        let replayed = readers::open(&self.database)?;
        let mut said = Said::new(&replayed, signed(pruned))?;
        // The database is first read after the files: its snapshot begins there, and all before is temporary tables.
        let transaction = replayed.unchecked_transaction()?;
        let take = |record: &Record| Ok(said.take(record)?);
        let report = ledger::verify_each(&self.directory, || self.state(&self.connection), take)?;
        self.rest(&transaction, &report, &mut said)?;
        // Who can write there can write this number too: nothing is forgotten before its time.
        let latest = ledger::ms(now).max(said.newest_ms);
        let scope = Scope {
            pruned: signed(schema::number(&transaction, "pruned_ms")?.min(latest)),
            first: report.first,
            begun: said.begun_again.unwrap_or(0),
            shared: replica::is_shared(&transaction)?,
        };
        compare::all(&transaction, &scope, found)?;
        Ok(report)
    }

    /// The records since the files were read, from them and from the outbox, up to the database's last.
    fn rest(&self, connection: &Connection, report: &Report, said: &mut Said<'_>) -> Result<(), AuditError> {
        let state = self.state(connection)?;
        if state.identity != report.identity {
            return Err(StoreError::Conflict("another ledger began meanwhile; run it again").into());
        }
        let (mut next, mut chain) = (report.size, report.chain);
        if next < state.waiting {
            let mut walk = Walk::from(&self.directory, next)?;
            while walk.position() < state.waiting {
                let Some(entry) = walk.read()? else {
                    let file = walk.place().0.to_owned();
                    return Err(
                        LedgerError::Missing { file, found: walk.position(), known: state.waiting }.into()
                    );
                };
                said.take(&entry.record)?;
            }
            (next, chain) = (walk.position(), walk.chain());
        }
        let damaged =
            |sequence, what| LedgerError::Damaged { sequence, file: self.database.clone(), offset: 0, what };
        while next < state.size {
            let bodies = outbox::bodies(connection, next, CHUNK)?;
            if bodies.is_empty() {
                return Err(damaged(next, "it is neither in the files nor waiting in the database").into());
            }
            for body in bodies {
                let record = Record::decode(&body).map_err(|what| damaged(next, what))?;
                if record.sequence != next {
                    return Err(damaged(next, "another record waits in its place").into());
                }
                chain = ledger::chain(&chain, &body);
                said.take(&record)?;
                next += 1;
            }
        }
        if next != state.size || chain != state.chain {
            let what = "what waits in the database does not end in the last record that it knows";
            return Err(damaged(next.saturating_sub(1), what).into());
        }
        Ok(())
    }
}

/// Whether a bundle of this trust domain has these roots.
fn holds_roots(name: &str, document: &[u8], digest: &[u8]) -> bool {
    let Ok(name) = TrustDomain::parse(name) else { return false };
    let json = Document::parse(name.clone(), document).ok().map(|read| read.bundle);
    let bundle = json.or_else(|| Bundle::from_pem(name, 0, document).ok());
    bundle.is_some_and(|bundle| bundle.digest()[..] == *digest)
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
