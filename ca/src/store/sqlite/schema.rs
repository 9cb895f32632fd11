//! Tables, settings of the connection, and the few single values.

use std::path::Path;

use postern_svid::TrustDomain;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, federation, jwt};

/// "Post" in ASCII, so that `file` and we tell this database from others.
const APPLICATION: i64 = 0x506f_7374;
const VERSION: i64 = 7;

/// Times are milliseconds since 1970.
const SCHEMA: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE authority (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'issuing')),
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'retired')),
    label       TEXT NOT NULL UNIQUE,
    key_id      BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL
) STRICT;
CREATE TABLE journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    label  TEXT NOT NULL,
    state  TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE lineage (
    id        BLOB PRIMARY KEY CHECK (length(id) = 16),
    spiffe_id TEXT NOT NULL,
    attestor  TEXT NOT NULL,
    attested  INTEGER NOT NULL,
    newest    BLOB NOT NULL,
    parent    BLOB,
    forked    INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE token (
    hash      BLOB PRIMARY KEY CHECK (length(hash) = 32),
    spiffe_id TEXT NOT NULL,
    created   INTEGER NOT NULL,
    expires   INTEGER NOT NULL,
    bound_key BLOB CHECK (length(bound_key) = 32),
    lineage   BLOB CHECK ((lineage IS NULL) = (bound_key IS NULL))
) STRICT, WITHOUT ROWID;
CREATE TABLE issued (
    serial      BLOB PRIMARY KEY,
    spiffe_id   TEXT NOT NULL,
    lineage     BLOB NOT NULL,
    issuer      BLOB NOT NULL,
    key         BLOB NOT NULL CHECK (length(key) = 32),
    issued      INTEGER NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    renew_after INTEGER NOT NULL,
    certificate BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX issued_key ON issued (key);
CREATE INDEX issued_end ON issued (not_after);
CREATE INDEX issued_lineage ON issued (lineage);
";

/// What version 2 added: the ledger's state, its records that wait for their file, and of each row the record that tells of it.
const LEDGER: &str = "
ALTER TABLE authority ADD COLUMN record INTEGER;
ALTER TABLE lineage ADD COLUMN record INTEGER;
ALTER TABLE token ADD COLUMN record INTEGER;
ALTER TABLE issued ADD COLUMN record INTEGER;
CREATE INDEX issued_unrecorded ON issued (serial) WHERE record IS NULL;
CREATE TABLE ledger (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    id    BLOB NOT NULL CHECK (length(id) = 16),
    size  INTEGER NOT NULL,
    chain BLOB NOT NULL CHECK (length(chain) = 32),
    time  INTEGER NOT NULL,
    key   BLOB CHECK (length(key) = 32),
    head  TEXT
) STRICT;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY,
    body     BLOB NOT NULL
) STRICT;
";

/// What version 3 added: more states of roots, when each began and by which version of the bundle; taint and deny lists; what an
/// operator asks of the control plane. SQLite cannot widen a CHECK, so the table is made anew.
const ROTATION: &str = "
CREATE TABLE authority_of_3 (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'issuing')),
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'published', 'active', 'draining', 'retired')),
    label       TEXT NOT NULL UNIQUE,
    key_id      BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    record      INTEGER,
    since       INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    tainted     INTEGER
) STRICT;
INSERT INTO authority_of_3
    SELECT number, kind, state, label, key_id, certificate, not_before, not_after, record, not_before, kind = 'root', NULL
    FROM authority;
DROP TABLE authority;
ALTER TABLE authority_of_3 RENAME TO authority;
CREATE TABLE revocation (
    kind   TEXT NOT NULL CHECK (kind IN ('authority', 'key', 'serial', 'id')),
    value  BLOB NOT NULL,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL,
    ends   INTEGER,
    record INTEGER,
    PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
CREATE TABLE request (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    verb     TEXT NOT NULL,
    forced   INTEGER NOT NULL,
    reason   TEXT,
    answered INTEGER,
    ok       INTEGER,
    answer   TEXT
) STRICT;
CREATE INDEX request_open ON request (number) WHERE answered IS NULL;
";

/// What version 6 added: of each issuing CA the replica that has it, unless that is this one; and what an operator's request is
/// about, where one replica cannot carry it out alone.
const REPLICAS: &str = "
ALTER TABLE authority ADD COLUMN replica TEXT;
ALTER TABLE request ADD COLUMN edit TEXT;
";

/// What version 7 added: tiers between a root that is offline and the issuing CAs.
const TIER: &str = "
CREATE TABLE authority_of_7 (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'tier', 'issuing')),
    state       TEXT NOT NULL
                CHECK (state IN ('requested', 'prepared', 'published', 'active', 'draining', 'retired')),
    label       TEXT NOT NULL UNIQUE,
    key_id      BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    record      INTEGER,
    since       INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    tainted     INTEGER,
    replica     TEXT,
    offline     INTEGER NOT NULL DEFAULT 0 CHECK (offline IN (0, 1))
) STRICT;
INSERT INTO authority_of_7
    SELECT number, kind, state, label, key_id, certificate, not_before, not_after, record, since, sequence, tainted, replica, 0
    FROM authority;
DROP TABLE authority;
ALTER TABLE authority_of_7 RENAME TO authority;
";

/// Keeps a statement's plan whatever is bound to it. Otherwise one that compares a column of a partial index's condition with a
/// parameter is compiled anew for each value.
pub(super) fn keep_plans(connection: &Connection) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Sets the connection up, makes the tables in a new file, and refuses a file that is not ours to write.
pub(super) fn prepare(connection: &Connection, path: &Path, td: &TrustDomain) -> Result<(), StoreError> {
    let damaged = |detail: String| StoreError::Damaged(path.to_owned(), detail);
    let application: i64 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is gone: spent tokens and old rows leave no remains in free pages.
    connection.pragma_update(None, "secure_delete", true)?;
    // Functions and views hidden in a prepared file do not run.
    connection.pragma_update(None, "trusted_schema", false)?;
    if application == 0 && version == 0 || application == APPLICATION && (1..VERSION).contains(&version) {
        create(connection, td)?;
    }
    check(connection, path, td)
}

/// Refuses a file that is not one of this version, or not of this trust domain, or damaged. Writes nothing.
pub(super) fn check(connection: &Connection, path: &Path, td: &TrustDomain) -> Result<(), StoreError> {
    let damaged = |detail: String| StoreError::Damaged(path.to_owned(), detail);
    let application: i64 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    if application != APPLICATION {
        return Err(StoreError::File(format!(
            "{}: not a database of this program; move it away or name another state directory",
            path.display()
        )));
    }
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found < VERSION {
        return Err(StoreError::File(format!(
            "{}: schema version {found}; the control plane's next start brings it to {VERSION}. Start it first",
            path.display()
        )));
    }
    if found != VERSION {
        return Err(StoreError::Schema { path: path.to_owned(), found, known: VERSION });
    }
    let check: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    if check != "ok" {
        return Err(damaged(check));
    }
    match trust_domain(connection)? {
        Some(owner) if owner == td.as_str() => Ok(()),
        Some(found) => {
            Err(StoreError::TrustDomain { path: path.to_owned(), found, wanted: td.as_str().to_owned() })
        }
        None => Err(damaged("it names no trust domain".to_owned())),
    }
}

/// Whose it is.
pub(super) fn trust_domain(connection: &Connection) -> Result<Option<String>, StoreError> {
    let found =
        connection.query_row("SELECT value FROM meta WHERE name = 'trust_domain'", [], |row| row.get(0));
    Ok(found.optional()?)
}

/// A single number; 0 if it was never written.
pub(super) fn number(connection: &Connection, name: &str) -> Result<u64, StoreError> {
    let value: Option<i64> = connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0))
}

/// A single text; `None` if it was never written.
pub(super) fn text(connection: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    let value = connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0));
    Ok(value.optional()?)
}

/// Writes a single text.
pub(super) fn set_text(connection: &Connection, name: &str, value: &str) -> Result<(), StoreError> {
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])?;
    Ok(())
}

/// Writes a single number.
pub(super) fn set_number(connection: &Connection, name: &str, value: u64) -> Result<(), StoreError> {
    let value = i64::try_from(value).map_err(|_| StoreError::Conflict("a number beyond 2^63"))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}

/// Makes the tables, or those that a database of an earlier version lacks. Two processes may meet it at once: the second finds
/// it made.
fn create(connection: &Connection, td: &TrustDomain) -> Result<(), StoreError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        connection.execute_batch(SCHEMA)?;
        connection.execute("INSERT INTO meta (name, value) VALUES ('trust_domain', ?1)", [td.as_str()])?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
    }
    if version < 2 {
        connection.execute_batch(LEDGER)?;
    }
    if version < 3 {
        connection.execute_batch(ROTATION)?;
    }
    if version < 4 {
        connection.execute_batch(jwt::TABLE)?;
    }
    if version < 5 {
        connection.execute_batch(federation::TABLE)?;
    }
    if version < 6 {
        connection.execute_batch(REPLICAS)?;
    }
    if version < VERSION {
        connection.execute_batch(TIER)?;
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    connection.execute_batch("COMMIT")?;
    Ok(())
}
