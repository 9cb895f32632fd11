//! What the trust bundle is made of: rows of revocations, the taint of a CA, the bundle's version, and which leaves live.

use std::path::Path;
use std::time::SystemTime;

use postern_svid::{Revoked, SpiffeId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{from_ms, id, invalid, ms, number, time};
use super::{StoreError, clock, jwt, outbox, rows, schema};
use crate::lineage::{Attestor, LineageId};
use crate::store::revocation::lists;
use crate::store::{Live, Reason, Revocation, Trust};

const REVOCATION: &str = "SELECT kind, value, reason, at, ends FROM revocation";

pub(super) fn trust(connection: &Connection, path: &Path) -> Result<Trust, StoreError> {
    let renew = schema::number(connection, "renew_before_ms")?;
    Ok(Trust {
        sequence: schema::number(connection, "bundle_sequence")?,
        authorities: rows::authorities(connection, path)?,
        revocations: revocations(connection, path)?,
        jwt_keys: jwt::published(connection, path)?,
        seen: clock::seen(connection)?,
        renew_before: (renew > 0).then(|| from_ms(i64::try_from(renew).unwrap_or(i64::MAX))),
    })
}

pub(super) fn revocations(connection: &Connection, path: &Path) -> Result<Vec<Revocation>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{REVOCATION} ORDER BY at"))?;
    let rows = statement.query_map([], revocation)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

/// The next version of the bundle.
pub(super) fn raise_sequence(connection: &Connection) -> Result<u64, StoreError> {
    let next = schema::number(connection, "bundle_sequence")?.saturating_add(1);
    schema::set_number(connection, "bundle_sequence", next)?;
    Ok(next)
}

pub(super) fn revoke(connection: &Connection, path: &Path, new: &Revocation) -> Result<u64, StoreError> {
    let old = revocations(connection, path)?.into_iter().find(|one| one.entry == new.entry);
    if let Some(old) = &old {
        new.may_replace(old)?;
    }
    enter(connection, new)?;
    if old.is_some() {
        return schema::number(connection, "bundle_sequence");
    }
    lists(&revocations(connection, path)?).map_err(StoreError::Lists)?;
    raise_sequence(connection)
}

/// Writes an entry and its record.
pub(super) fn enter(connection: &Connection, new: &Revocation) -> Result<(), StoreError> {
    let record = outbox::append(connection, new.at, outbox::revocation(new))?;
    let (kind, value) = key(&new.entry);
    connection.execute(
        "INSERT OR REPLACE INTO revocation (kind, value, reason, at, ends, record)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![kind, value, new.reason.as_str(), ms(new.at), new.ends.map(ms), number(record)],
    )?;
    Ok(())
}

pub(super) fn allow_again(
    connection: &Connection,
    entry: &Revoked,
    reason: &str,
    at: SystemTime,
) -> Result<Option<u64>, StoreError> {
    // A taint is for ever: what a stolen key has signed stays untrustworthy.
    if matches!(entry, Revoked::Authority(_)) || !is_there(connection, entry)? {
        return Ok(None);
    }
    forget(connection, entry, reason, at)?;
    raise_sequence(connection).map(Some)
}

/// Deletes an entry, and writes the record of that.
pub(super) fn forget(
    connection: &Connection,
    entry: &Revoked,
    reason: &str,
    at: SystemTime,
) -> Result<(), StoreError> {
    let (kind, value) = key(entry);
    outbox::append(connection, at, outbox::allowed(entry, reason))?;
    connection.execute("DELETE FROM revocation WHERE kind = ?1 AND value = ?2", params![kind, value])?;
    Ok(())
}

pub(super) fn end_revocations(
    connection: &Connection,
    path: &Path,
    now: SystemTime,
) -> Result<Option<u64>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{REVOCATION} WHERE ends <= ?1"))?;
    let ended = statement.query_map([ms(now)], revocation)?.collect::<Result<Vec<_>, _>>();
    let ended = ended.map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))?;
    let mut sequence = None;
    for one in ended {
        sequence = allow_again(connection, &one.entry, "its time is over", now)?.or(sequence);
    }
    Ok(sequence)
}

/// Whether it was not noted before.
pub(super) fn taint(
    connection: &Connection,
    label: &str,
    reason: &str,
    at: SystemTime,
) -> Result<bool, StoreError> {
    let changed = connection.execute(
        "UPDATE authority SET tainted = ?2 WHERE label = ?1 AND tainted IS NULL",
        params![label, ms(at)],
    )?;
    if changed == 1 {
        outbox::append(connection, at, outbox::authority_state(label, "tainted", reason))?;
        connection.execute(
            "INSERT INTO journal (at, label, state, reason) VALUES (?1, ?2, 'tainted', ?3)",
            params![ms(at), label, reason],
        )?;
    }
    Ok(changed == 1)
}

/// The taint of a CA with the reason that its operator gave.
pub(super) fn with_reason(connection: &Connection, taint: &Revocation) -> Result<Revocation, StoreError> {
    let Revoked::Authority(key_id) = &taint.entry else { return Ok(taint.clone()) };
    let told = connection.query_row(
        "SELECT j.reason FROM journal j JOIN authority a ON a.label = j.label
         WHERE a.key_id = ?1 AND j.state = 'tainted' ORDER BY j.number DESC LIMIT 1",
        [key_id],
        |row| row.get::<_, String>(0),
    );
    let told = told.optional()?.and_then(|text| Reason::parse(&text).ok());
    Ok(Revocation { reason: told.unwrap_or_else(|| taint.reason.clone()), ..taint.clone() })
}

pub(super) fn live(connection: &Connection, path: &Path, now: SystemTime) -> Result<Vec<Live>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT i.spiffe_id, i.lineage, i.issuer, i.serial, i.issued, i.not_after, l.newest = i.serial, l.attestor, i.key
         FROM issued i JOIN lineage l ON l.id = i.lineage WHERE i.not_after >= ?1",
    )?;
    let rows = statement.query_map([ms(now)], |row| {
        Ok(Live {
            id: id(row, 0)?,
            lineage: LineageId(row.get(1)?),
            issuer: row.get(2)?,
            serial: row.get(3)?,
            key: row.get(8)?,
            issued: time(row, 4)?,
            not_after: time(row, 5)?,
            is_newest: row.get(6)?,
            is_own: row.get::<_, String>(7)? == Attestor::Own.as_str(),
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

/// A step of the CAs' life as the journal has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JournalEntry {
    /// Counts up.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// Which CA; empty if the step is about all leaves.
    pub label: String,
    /// What it is from then on.
    pub state: String,
    /// Why.
    pub reason: String,
}

/// Steps after the one with this number, at most 256; the last one alone for the highest number there is.
pub(super) fn journal(connection: &Connection, after: u64) -> Result<Vec<JournalEntry>, StoreError> {
    let last: Option<i64> = connection.query_row("SELECT max(number) FROM journal", [], |row| row.get(0))?;
    let after = if after == u64::MAX { last.unwrap_or(0).saturating_sub(1) } else { number(after) };
    let mut statement = connection.prepare_cached(
        "SELECT number, at, label, state, reason FROM journal WHERE number > ?1 ORDER BY number LIMIT 256",
    )?;
    let rows = statement.query_map([after], |row| {
        Ok(JournalEntry {
            number: row.get::<_, i64>(0)?.unsigned_abs(),
            at: time(row, 1)?,
            label: row.get(2)?,
            state: row.get(3)?,
            reason: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Entries of which the ledger knows nothing: those of one that was lost.
pub(super) fn unrecorded(connection: &Connection, path: &Path) -> Result<Vec<Revocation>, StoreError> {
    let mut statement = connection.prepare(&format!("{REVOCATION} WHERE record IS NULL"))?;
    let rows = statement.query_map([], revocation)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn set_record(connection: &Connection, entry: &Revoked, record: u64) -> Result<(), StoreError> {
    let (kind, value) = key(entry);
    connection.execute(
        "UPDATE revocation SET record = ?3 WHERE kind = ?1 AND value = ?2",
        params![kind, value, number(record)],
    )?;
    Ok(())
}

fn is_there(connection: &Connection, entry: &Revoked) -> Result<bool, StoreError> {
    let (kind, value) = key(entry);
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM revocation WHERE kind = ?1 AND value = ?2")?;
    Ok(statement.query_row(params![kind, value], |_| Ok(())).optional()?.is_some())
}

fn key(entry: &Revoked) -> (&'static str, Vec<u8>) {
    match entry {
        Revoked::Authority(key_id) => ("authority", key_id.clone()),
        Revoked::Key(digest) => ("key", digest.to_vec()),
        Revoked::Serial(serial) => ("serial", serial.clone()),
        Revoked::Id(id) => ("id", id.as_str().as_bytes().to_vec()),
        // The table's CHECK refuses it: an entry that is not understood is not dropped in silence.
        _ => ("unknown", Vec::new()),
    }
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    let value: Vec<u8> = row.get(1)?;
    let entry = match row.get::<_, String>(0)?.as_str() {
        "authority" => Some(Revoked::Authority(value)),
        "key" => value.try_into().ok().map(Revoked::Key),
        "serial" => Some(Revoked::Serial(value)),
        _ => std::str::from_utf8(&value).ok().and_then(|text| SpiffeId::parse(text).ok()).map(Revoked::Id),
    };
    let reason = Reason::parse(&row.get::<_, String>(2)?).map_err(|_| invalid(2, "not a reason"))?;
    Ok(Revocation {
        entry: entry.ok_or_else(|| invalid(1, "not what its kind says"))?,
        reason,
        at: time(row, 3)?,
        ends: row.get::<_, Option<i64>>(4)?.map(from_ms),
    })
}
