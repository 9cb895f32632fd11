//! Keys of the JWT authority, and the ledger's records of them and of tokens.

use std::path::Path;

use postern_svid::jwt;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{from_ms, invalid, ms, state_of};
use super::{Sqlite, StoreError, clock, outbox, trust};
use crate::ledger::{Draft, Field, Kind};
use crate::store::{JwtChange, JwtIssued, JwtKey, JwtStore};

/// What the migration to this table's version adds.
pub(super) const TABLE: &str = "
CREATE TABLE jwt_key (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    label  TEXT NOT NULL UNIQUE,
    key_id TEXT NOT NULL UNIQUE,
    point  BLOB NOT NULL CHECK (length(point) = 65),
    state  TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'retired')),
    made   INTEGER NOT NULL,
    since  INTEGER NOT NULL
) STRICT;
";

impl JwtStore for Sqlite {
    fn jwt_keys(&self) -> Result<Vec<JwtKey>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| keys(connection, &path))
    }

    fn change_jwt_keys(&self, change: JwtChange) -> Result<(), StoreError> {
        self.recorded(move |connection| apply(connection, &change))?;
        self.note_progress();
        Ok(())
    }

    fn record_jwt(&self, issued: JwtIssued) -> Result<(), StoreError> {
        self.recorded(move |connection| {
            clock::check_back(connection, issued.issued)?;
            let draft = Draft::new(Kind::Jwt)
                .text(Field::Id, issued.id.as_str())
                .text(Field::Proof, "svid")
                .bytes(Field::Predecessor, &issued.predecessor)
                .text(Field::Label, &issued.key_id)
                .time(Field::NotAfter, issued.expires)
                .text(Field::Audience, &issued.audience);
            outbox::append(connection, issued.issued, draft).map(drop)
        })
    }
}

/// The keys that are published.
pub(super) fn published(connection: &Connection, path: &Path) -> Result<jwt::JwtKeys, StoreError> {
    let damaged = |error: jwt::JwtKeysError| StoreError::Damaged(path.to_owned(), error.to_string());
    let keys = keys(connection, path)?;
    let public = keys.iter().map(|key| key.public()).collect::<Result<_, _>>().map_err(damaged)?;
    jwt::JwtKeys::new(public).map_err(damaged)
}

pub(super) fn keys(connection: &Connection, path: &Path) -> Result<Vec<JwtKey>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT label, key_id, point, state, made, since FROM jwt_key ORDER BY number")?;
    let rows = statement.query_map([], |row| {
        Ok(JwtKey {
            label: row.get(0)?,
            key_id: row.get(1)?,
            point: row.get(2)?,
            state: state_of(&row.get::<_, String>(3)?).ok_or_else(|| invalid(3, "an unknown state"))?,
            made: row.get(4).map(from_ms)?,
            since: row.get(5).map(from_ms)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn apply(connection: &Connection, change: &JwtChange) -> Result<(), StoreError> {
    let at = change.at;
    if let Some(new) = &change.add {
        connection.execute(
            "INSERT INTO jwt_key (label, key_id, point, state, made, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![new.label, new.key_id, new.point, new.state.name(), ms(new.made), ms(new.since)],
        )?;
        let draft = Draft::new(Kind::JwtKey)
            .text(Field::Label, &new.key_id)
            .text(Field::State, new.state.name())
            .bytes(Field::Key, &new.point);
        outbox::append(connection, at, draft)?;
    }
    for (label, new) in &change.set {
        let changed = connection.execute(
            "UPDATE jwt_key SET state = ?2, since = ?3 WHERE label = ?1 AND state <> ?2",
            params![label, new.name(), ms(at)],
        )?;
        if changed != 1 {
            return Err(StoreError::Conflict("a JWT key is no longer in the state it was read in"));
        }
        tell(connection, change, label, new.name())?;
    }
    for label in &change.remove {
        tell(connection, change, label, "removed")?;
        connection.execute("DELETE FROM jwt_key WHERE label = ?1", [label])?;
    }
    if change.add.is_some() || !change.remove.is_empty() {
        trust::raise_sequence(connection)?;
    }
    Ok(())
}

/// A record of a key's new state.
fn tell(connection: &Connection, change: &JwtChange, label: &str, state: &str) -> Result<(), StoreError> {
    let sql = "SELECT key_id FROM jwt_key WHERE label = ?1";
    let key_id: Option<String> = connection.query_row(sql, [label], |row| row.get(0)).optional()?;
    let key_id = key_id.ok_or(StoreError::Conflict("a JWT key has gone meanwhile"))?;
    let draft = Draft::new(Kind::JwtKey).text(Field::Label, &key_id).text(Field::State, state);
    outbox::append(connection, change.at, draft).map(drop)
}
