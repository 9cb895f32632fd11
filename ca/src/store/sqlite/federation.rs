//! Bundles of other trust domains.

use std::path::Path;

use postern_svid::TrustDomain;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{from_ms, ms};
use super::{Sqlite, StoreError, outbox};
use crate::ledger::{Draft, Field, Kind};
use crate::store::{Federated, FederationStore};

/// What the migration to this table's version adds.
pub(super) const TABLE: &str = "
CREATE TABLE federated (
    trust_domain TEXT PRIMARY KEY,
    sequence     INTEGER NOT NULL,
    document     BLOB NOT NULL,
    digest       BLOB NOT NULL CHECK (length(digest) = 32),
    fetched      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

impl FederationStore for Sqlite {
    fn federated(&self) -> Result<Vec<Federated>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| all(connection, &path))
    }

    fn put_federated(&self, row: Federated) -> Result<(), StoreError> {
        self.recorded(move |connection| put(connection, &row))
    }

    fn forget_federated(
        &self,
        trust_domain: &TrustDomain,
        at: std::time::SystemTime,
    ) -> Result<(), StoreError> {
        let name = trust_domain.clone();
        self.recorded(move |connection| {
            connection.execute("DELETE FROM federated WHERE trust_domain = ?1", [name.as_str()])?;
            let draft = Draft::new(Kind::Federation)
                .text(Field::TrustDomain, name.as_str())
                .text(Field::State, "removed");
            outbox::append(connection, at, draft).map(drop)
        })
    }
}

fn all(connection: &Connection, path: &Path) -> Result<Vec<Federated>, StoreError> {
    let damaged = |detail: String| StoreError::Damaged(path.to_owned(), detail);
    let mut statement = connection.prepare(
        "SELECT trust_domain, sequence, document, digest, fetched FROM federated ORDER BY trust_domain",
    )?;
    let rows = statement.query_map([], |row| {
        let name: String = row.get(0)?;
        let sequence = row.get::<_, i64>(1)?.unsigned_abs();
        Ok((name, sequence, row.get(2)?, row.get(3)?, row.get(4).map(from_ms)?))
    })?;
    rows.map(|row| {
        let (name, sequence, document, digest, fetched) = row.map_err(|error| damaged(error.to_string()))?;
        let trust_domain = TrustDomain::parse(&name).map_err(|error| damaged(error.to_string()))?;
        Ok(Federated { trust_domain, sequence, document, digest, fetched })
    })
    .collect()
}

fn put(connection: &Connection, row: &Federated) -> Result<(), StoreError> {
    let sequence = i64::try_from(row.sequence).map_err(|_| StoreError::Conflict("a number beyond 2^63"))?;
    let held: Option<i64> = connection
        .query_row(
            "SELECT sequence FROM federated WHERE trust_domain = ?1",
            [row.trust_domain.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    if held.is_some_and(|held| held > sequence) {
        return Err(StoreError::Conflict("the version of another trust domain's bundle never goes down"));
    }
    connection.execute(
        "INSERT OR REPLACE INTO federated (trust_domain, sequence, document, digest, fetched) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![row.trust_domain.as_str(), sequence, row.document, row.digest, ms(row.fetched)],
    )?;
    let draft = Draft::new(Kind::Federation)
        .text(Field::TrustDomain, row.trust_domain.as_str())
        .text(Field::State, if held.is_some() { "changed" } else { "added" })
        .bytes(Field::Key, &row.digest)
        .number(Field::Sequence, row.sequence);
    outbox::append(connection, row.fetched, draft).map(drop)
}
