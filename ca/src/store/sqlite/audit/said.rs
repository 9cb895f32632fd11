//! What the records say that the database should hold: replayed into temporary tables, of which SQLite keeps a few MB in memory
//! and the rest in a file that is gone with the connection.

use rusqlite::{Connection, ToSql, params};

use super::super::StoreError;
use crate::ledger::{Field, Kind, Record, sha256};

/// Columns have the names of the database's own. NULL is what no record says; what is known to be absent is an empty blob or 0.
const TABLES: &str = "
PRAGMA temp_store = FILE;
PRAGMA temp.cache_size = -4096;
CREATE TEMP TABLE said_issued (
    serial BLOB PRIMARY KEY, spiffe_id TEXT, lineage BLOB, issuer BLOB, key BLOB, issued INTEGER, not_before INTEGER,
    not_after INTEGER, certificate BLOB, record INTEGER, said INTEGER
) WITHOUT ROWID;
CREATE INDEX temp.said_issued_lineage ON said_issued (lineage);
CREATE TEMP TABLE said_lineage (
    id BLOB PRIMARY KEY, spiffe_id TEXT, attestor TEXT, attested INTEGER, newest BLOB, parent BLOB, forked INTEGER,
    record INTEGER, said INTEGER
) WITHOUT ROWID;
CREATE TEMP TABLE said_token (
    hash BLOB PRIMARY KEY, spiffe_id TEXT, created INTEGER, expires INTEGER, bound_key BLOB, lineage BLOB, record INTEGER,
    said INTEGER
) WITHOUT ROWID;
CREATE TEMP TABLE said_authority (
    label TEXT PRIMARY KEY, kind TEXT, state TEXT, key_id BLOB, certificate BLOB, not_before INTEGER, not_after INTEGER,
    tainted INTEGER, record INTEGER, said INTEGER
) WITHOUT ROWID;
CREATE TEMP TABLE said_revocation (
    kind TEXT, value BLOB, reason TEXT, ends INTEGER, record INTEGER, said INTEGER, PRIMARY KEY (kind, value)
) WITHOUT ROWID;
CREATE TEMP TABLE said_jwt_key (key_id TEXT PRIMARY KEY, point BLOB, state TEXT, said INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE said_federated (
    trust_domain TEXT PRIMARY KEY, sequence INTEGER, digest BLOB, said INTEGER
) WITHOUT ROWID;
";

const NONE: &[u8] = &[];

/// Goes from record to record.
pub(super) struct Said<'a> {
    connection: &'a Connection,
    /// Rows that ended before this time have been forgotten by the database: nothing is kept of them.
    pruned: i64,
    /// The time of the newest record.
    pub(super) newest_ms: u64,
    /// Of a ledger that follows a lost one, when it began: what was there before is not all imported.
    pub(super) begun_again: Option<u64>,
}

impl<'a> Said<'a> {
    pub(super) fn new(connection: &'a Connection, pruned: i64) -> Result<Self, StoreError> {
        connection.execute_batch(TABLES)?;
        Ok(Self { connection, pruned, newest_ms: 0, begun_again: None })
    }

    /// What this record changes.
    pub(super) fn take(&mut self, record: &Record) -> Result<(), StoreError> {
        self.newest_ms = self.newest_ms.max(record.time_ms);
        let of = Of(record);
        match record.kind {
            Kind::Begin => {
                self.begun_again = record.bytes(Field::PreviousLedger).map(|_| record.time_ms);
                Ok(())
            }
            Kind::Root | Kind::Tier | Kind::Issuing => self.authority(&of),
            Kind::State => self.state(&of),
            Kind::Certificate => self.certificate(&of),
            Kind::Token => self.token(&of),
            Kind::Fork => self.run(
                "INSERT INTO temp.said_lineage (id, spiffe_id, newest, forked, record, said) VALUES (?1, ?2, ?3, 1, ?4, ?4)
                 ON CONFLICT (id) DO UPDATE SET newest = ?3, forked = 1, record = ?4, said = ?4",
                params![of.bytes(Field::Lineage), of.text(Field::Id), of.bytes(Field::Serial), of.number()],
            ),
            Kind::Taint | Kind::Deny => {
                let Some((kind, value)) = of.entry() else { return Ok(()) };
                self.run(
                    "INSERT OR REPLACE INTO temp.said_revocation (kind, value, reason, ends, record, said)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                    params![
                        kind,
                        value,
                        of.text(Field::Reason),
                        of.time(Field::NotAfter).unwrap_or(0),
                        of.number()
                    ],
                )
            }
            Kind::Allow => {
                let Some((kind, value)) = of.entry() else { return Ok(()) };
                self.run(
                    "DELETE FROM temp.said_revocation WHERE kind = ?1 AND value = ?2",
                    params![kind, value],
                )
            }
            Kind::JwtKey => self.jwt_key(&of),
            Kind::Federation => self.federation(&of),
            // A token is in no table.
            Kind::Jwt => Ok(()),
        }
    }

    fn authority(&self, of: &Of<'_>) -> Result<(), StoreError> {
        // Of one that was there before the ledger no record says whether it was tainted.
        let tainted = of.time(Field::Imported).is_none().then_some(0);
        self.run(
            "INSERT INTO temp.said_authority
             (label, kind, state, key_id, certificate, not_before, not_after, tainted, record, said)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)
             ON CONFLICT (label) DO UPDATE SET kind = ?2, state = ?3, key_id = ?4, certificate = ?5, not_before = ?6,
                 not_after = ?7, record = ?9, said = ?9",
            params![
                of.text(Field::Label),
                of.0.kind.name(),
                of.text(Field::State),
                of.bytes(Field::Key),
                of.digest(),
                of.time(Field::NotBefore),
                of.time(Field::NotAfter),
                tainted,
                of.number(),
            ],
        )
    }

    fn state(&self, of: &Of<'_>) -> Result<(), StoreError> {
        let (label, state) = (of.text(Field::Label), of.text(Field::State));
        if state == Some("tainted") {
            return self.run(
                "INSERT INTO temp.said_authority (label, tainted, said) VALUES (?1, 1, ?2)
                 ON CONFLICT (label) DO UPDATE SET tainted = 1, said = ?2",
                params![label, of.number()],
            );
        }
        self.run(
            "INSERT INTO temp.said_authority (label, state, said) VALUES (?1, ?2, ?3)
             ON CONFLICT (label) DO UPDATE SET state = ?2, said = ?3",
            params![label, state, of.number()],
        )
    }

    fn certificate(&self, of: &Of<'_>) -> Result<(), StoreError> {
        let (id, serial) = (of.text(Field::Id), of.bytes(Field::Serial));
        let (lineage, predecessor) = (of.bytes(Field::Lineage), of.bytes(Field::Predecessor));
        let (imported, adopted) = (of.time(Field::Imported), of.bytes(Field::Adopted));
        if imported.is_some() {
            // In order of serial numbers: which is the newest is not said.
            self.run(
                "INSERT OR IGNORE INTO temp.said_lineage (id, spiffe_id, forked, said) VALUES (?1, ?2, 0, ?3)",
                params![lineage, id, of.number()],
            )?;
        } else if predecessor.is_some() && adopted.is_none() {
            self.run(
                "INSERT INTO temp.said_lineage (id, spiffe_id, newest, parent, forked, said)
                 VALUES (?1, ?2, ?3, ?4, 0, ?5)
                 ON CONFLICT (id) DO UPDATE SET newest = ?3, parent = ?4, said = ?5",
                params![lineage, id, serial, predecessor, of.number()],
            )?;
        } else {
            let (mut attestor, mut attested) = (of.text(Field::Proof), Some(of.at()));
            if let Some(issuer) = adopted {
                // How and when it began the other replica's ledger says.
                (attestor, attested) = (None, None);
                self.run(
                    "INSERT OR IGNORE INTO temp.said_issued (serial, spiffe_id, lineage, issuer, record, said)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                    params![predecessor, id, lineage, issuer, of.number()],
                )?;
            }
            self.run(
                "INSERT OR REPLACE INTO temp.said_lineage
                 (id, spiffe_id, attestor, attested, newest, parent, forked, said) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7)",
                params![lineage, id, attestor, attested, serial, predecessor.unwrap_or(NONE), of.number()],
            )?;
        }
        if let Some(hash) = of.bytes(Field::Token) {
            self.run(
                "INSERT INTO temp.said_token (hash, bound_key, lineage, said) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (hash) DO UPDATE SET bound_key = ?2, lineage = ?3, said = ?4",
                params![hash, of.bytes(Field::Key), lineage, of.number()],
            )?;
        }
        if of.time(Field::NotAfter).is_some_and(|end| end < self.pruned) {
            return Ok(());
        }
        self.run(
            "INSERT OR REPLACE INTO temp.said_issued
             (serial, spiffe_id, lineage, issuer, key, issued, not_before, not_after, certificate, record, said)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10)",
            params![
                serial,
                id,
                lineage,
                of.bytes(Field::Issuer),
                of.bytes(Field::Key),
                imported.unwrap_or_else(|| of.at()),
                of.time(Field::NotBefore),
                of.time(Field::NotAfter),
                of.digest(),
                of.number(),
            ],
        )
    }

    fn token(&self, of: &Of<'_>) -> Result<(), StoreError> {
        if of.time(Field::NotAfter).is_some_and(|end| end < self.pruned) {
            return Ok(());
        }
        // One that was imported after it was spent names its lineage, and not the key.
        let lineage = of.bytes(Field::Lineage);
        let key = lineage.is_none().then_some(NONE);
        self.run(
            "INSERT OR REPLACE INTO temp.said_token (hash, spiffe_id, created, expires, bound_key, lineage, record, said)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
            params![
                of.bytes(Field::Token),
                of.text(Field::Id),
                of.time(Field::NotBefore),
                of.time(Field::NotAfter),
                key,
                lineage.unwrap_or(NONE),
                of.number(),
            ],
        )
    }

    fn jwt_key(&self, of: &Of<'_>) -> Result<(), StoreError> {
        let (key_id, state) = (of.text(Field::Label), of.text(Field::State));
        if state == Some("removed") {
            return self.run("DELETE FROM temp.said_jwt_key WHERE key_id = ?1", params![key_id]);
        }
        self.run(
            "INSERT INTO temp.said_jwt_key (key_id, point, state, said) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key_id) DO UPDATE SET point = coalesce(?2, point), state = ?3, said = ?4",
            params![key_id, of.bytes(Field::Key), state, of.number()],
        )
    }

    fn federation(&self, of: &Of<'_>) -> Result<(), StoreError> {
        let name = of.text(Field::TrustDomain);
        if of.text(Field::State) == Some("removed") {
            return self.run("DELETE FROM temp.said_federated WHERE trust_domain = ?1", params![name]);
        }
        self.run(
            "INSERT OR REPLACE INTO temp.said_federated (trust_domain, sequence, digest, said)
             VALUES (?1, ?2, ?3, ?4)",
            params![name, of.count(Field::Sequence), of.bytes(Field::Key), of.number()],
        )
    }

    fn run(&self, sql: &str, values: &[&dyn ToSql]) -> Result<(), StoreError> {
        self.connection.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }
}

/// A record's fields as SQLite takes them.
struct Of<'a>(&'a Record);

impl Of<'_> {
    fn number(&self) -> i64 {
        signed(self.0.sequence)
    }

    fn at(&self) -> i64 {
        signed(self.0.time_ms)
    }

    fn text(&self, field: Field) -> Option<&str> {
        self.0.text(field)
    }

    fn bytes(&self, field: Field) -> Option<&[u8]> {
        self.0.bytes(field)
    }

    fn time(&self, field: Field) -> Option<i64> {
        self.0.number(field).map(signed)
    }

    fn count(&self, field: Field) -> Option<i64> {
        self.0.number(field).map(signed)
    }

    /// Certificates are compared by their digests, which take less room.
    fn digest(&self) -> Option<[u8; 32]> {
        self.bytes(Field::Certificate).map(|der| sha256(&[der]))
    }

    /// Which entry of the taint or deny list.
    fn entry(&self) -> Option<(&'static str, &[u8])> {
        if self.0.kind == Kind::Taint {
            return Some(("authority", self.bytes(Field::Key)?));
        }
        let id = self.text(Field::Id).map(|id| ("id", id.as_bytes()));
        let serial = || self.bytes(Field::Serial).map(|serial| ("serial", serial));
        id.or_else(serial).or_else(|| self.bytes(Field::Key).map(|key| ("key", key)))
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
