//! Rows in and out. Each function runs within a transaction of its caller's.

use std::path::Path;
use std::time::{Duration, SystemTime};

use postern_svid::{Revoked, SpiffeId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Authority, AuthorityChange, Counts, Grant, Issued, StoreError, clock, outbox, schema, trust};
use crate::lineage::{Attestor, Lineage, LineageId};
use crate::store::revocation::check_leap;
use crate::store::{Kind, State};
use crate::token::{Bound, TokenHash, TokenRecord};

pub(super) fn authorities(connection: &Connection, path: &Path) -> Result<Vec<Authority>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT kind, state, label, key_id, certificate, not_before, not_after, since, sequence, tainted, replica, offline
         FROM authority ORDER BY number",
    )?;
    let rows = statement.query_map([], |row| {
        let (kind, state): (String, String) = (row.get(0)?, row.get(1)?);
        let kind = Kind::ALL.into_iter().find(|one| one.name() == kind);
        Ok(Authority {
            kind: kind.ok_or_else(|| invalid(0, "an unknown kind"))?,
            state: state_of(&state).ok_or_else(|| invalid(1, "an unknown state"))?,
            label: row.get(2)?,
            key_id: row.get(3)?,
            certificate: row.get(4)?,
            not_before: time(row, 5)?,
            not_after: time(row, 6)?,
            since: time(row, 7)?,
            sequence: row.get::<_, i64>(8)?.unsigned_abs(),
            tainted: row.get::<_, Option<i64>>(9)?.map(from_ms),
            replica: row.get(10)?,
            is_offline: row.get(11)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn change_authorities(
    connection: &Connection,
    change: &AuthorityChange,
) -> Result<(), StoreError> {
    clock::believe(connection, change.at)?;
    let sequence = if change.publishes { trust::raise_sequence(connection)? } else { 0 };
    for new in &change.add {
        let record = outbox::append(connection, change.at, outbox::authority(new))?;
        // A tier's certificate comes days after its key was made.
        let added = connection.execute(
            "INSERT INTO authority
             (kind, state, label, key_id, certificate, not_before, not_after, record, since, sequence, offline)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT DO UPDATE SET state = ?2, key_id = ?4, certificate = ?5, not_before = ?6, not_after = ?7,
                 record = ?8, since = ?9
             WHERE label = ?3 AND kind = ?1 AND state = 'requested'",
            params![
                new.kind.name(),
                new.state.name(),
                new.label,
                new.key_id,
                new.certificate,
                ms(new.not_before),
                ms(new.not_after),
                number(record),
                ms(change.at),
                number(if new.state.is_trusted() { sequence } else { 0 }),
                new.is_offline,
            ],
        )?;
        if added != 1 {
            return Err(StoreError::Conflict("a CA of this name or key is there already"));
        }
        journal(connection, change, &new.label, new.state)?;
    }
    for (label, state) in &change.set {
        let published = if *state == State::Published { sequence } else { 0 };
        let changed = connection.execute(
            "UPDATE authority SET state = ?2, since = ?3, sequence = max(sequence, ?4)
             WHERE label = ?1 AND state <> ?2",
            params![label, state.name(), ms(change.at), number(published)],
        )?;
        if changed != 1 {
            return Err(StoreError::Conflict("a CA is no longer in the state it was read in"));
        }
        outbox::append(connection, change.at, outbox::authority_state(label, state.name(), &change.reason))?;
        journal(connection, change, label, *state)?;
    }
    for taint in &change.taints {
        trust::enter(connection, &trust::with_reason(connection, taint)?)?;
        if let Revoked::Authority(key_id) = &taint.entry {
            connection.execute(
                "INSERT INTO journal (at, label, state, reason)
                 SELECT ?1, label, 'on the taint list', ?3 FROM authority WHERE key_id = ?2",
                params![ms(change.at), key_id, change.reason],
            )?;
        }
    }
    if change.renews {
        connection.execute(
            "INSERT INTO journal (at, label, state, reason) VALUES (?1, '', 'told to renew now', ?2)",
            params![ms(change.at), change.reason],
        )?;
        // What was issued within this very millisecond is meant as well.
        schema::set_number(connection, "renew_before_ms", ms(change.at).unsigned_abs() + 1)?;
    }
    Ok(())
}

pub(super) fn add_token(connection: &Connection, token: &TokenRecord) -> Result<(), StoreError> {
    let record = outbox::append(connection, token.created, outbox::token(token))?;
    connection.execute(
        "INSERT INTO token (hash, spiffe_id, created, expires, record) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![token.hash.0, token.id.as_str(), ms(token.created), ms(token.expires), number(record)],
    )?;
    Ok(())
}

pub(super) fn token(
    connection: &Connection,
    path: &Path,
    hash: TokenHash,
) -> Result<Option<TokenRecord>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{TOKEN} WHERE hash = ?1"))?;
    let found = statement.query_row([hash.0], token_record);
    found.optional().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn certificate(
    connection: &Connection,
    path: &Path,
    serial: &[u8],
) -> Result<Option<Issued>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{ISSUED} WHERE serial = ?1"))?;
    let found = statement.query_row([serial], issued).optional();
    found.map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn key_owner(
    connection: &Connection,
    path: &Path,
    key: [u8; 32],
) -> Result<Option<Issued>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("{ISSUED} WHERE key = ?1 ORDER BY issued DESC LIMIT 1"))?;
    let found = statement.query_row([key], issued).optional();
    found.map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn valid_certificates(
    connection: &Connection,
    path: &Path,
    now: SystemTime,
    after: &[u8],
    limit: usize,
) -> Result<Vec<Issued>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "{ISSUED} WHERE serial > ?1 AND not_after >= ?2 ORDER BY serial LIMIT ?3"
    ))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![after, ms(now), limit], issued)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn lineage(
    connection: &Connection,
    path: &Path,
    wanted: LineageId,
) -> Result<Option<Lineage>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{LINEAGE} WHERE id = ?1"))?;
    let found = statement.query_row([wanted.0], lineage_of);
    found.optional().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

pub(super) fn record(connection: &Connection, issued: &Issued, grant: &Grant) -> Result<(), StoreError> {
    clock::check_back(connection, issued.issued)?;
    match grant {
        Grant::Token(hash) => {
            let mut spend = connection.prepare_cached(
                "UPDATE token SET bound_key = ?2, lineage = ?3
                 WHERE hash = ?1 AND bound_key IS NULL AND expires > ?4",
            )?;
            let spent = spend.execute(params![hash.0, issued.key, issued.lineage.0, ms(issued.issued)])?;
            if spent != 1 {
                return Err(StoreError::Conflict("the token was spent meanwhile"));
            }
            begin_lineage(connection, issued, Attestor::JoinToken)?;
        }
        Grant::Adopted { from, attestor, attested, .. } => {
            adopt(connection, issued, from, *attestor, *attested)?
        }
        Grant::New(attestor) => begin_lineage(connection, issued, *attestor)?,
        Grant::Attested { basis, renews: None } => begin_lineage(connection, issued, basis.attestor)?,
        Grant::Lineage { predecessor, newest }
        | Grant::Attested { renews: Some((predecessor, newest)), .. } => {
            let mut step = connection.prepare_cached(
                "UPDATE lineage SET newest = ?2, parent = ?3 WHERE id = ?1 AND newest = ?4 AND forked IS NULL",
            )?;
            let moved = step.execute(params![issued.lineage.0, issued.serial, predecessor, newest])?;
            if moved != 1 {
                return Err(StoreError::Conflict("the lineage moved on meanwhile"));
            }
        }
    }
    let record = outbox::append(connection, issued.issued, outbox::issued(issued, grant))?;
    insert(connection, issued, record)?;
    if let Grant::Adopted { from, .. } = grant {
        // For who presents it once more. The record above names it.
        insert(connection, from, record)?;
    }
    let last = schema::number(connection, "last_issued_ms")?;
    schema::set_number(connection, "last_issued_ms", last.max(ms(issued.issued).unsigned_abs()))?;
    schema::set_number(connection, "issued", schema::number(connection, "issued")?.saturating_add(1))
}

fn insert(connection: &Connection, issued: &Issued, record: u64) -> Result<(), StoreError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO issued (serial, spiffe_id, lineage, issuer, key, issued, not_before, not_after, renew_after, certificate, record)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    insert.execute(params![
        issued.serial,
        issued.id.as_str(),
        issued.lineage.0,
        issued.issuer,
        issued.key,
        ms(issued.issued),
        ms(issued.not_before),
        ms(issued.not_after),
        ms(issued.renew_after),
        issued.certificate,
        number(record)
    ])?;
    Ok(())
}

/// A lineage whose certificate `from` another replica has issued goes on here.
fn adopt(
    connection: &Connection,
    issued: &Issued,
    from: &Issued,
    attestor: Attestor,
    attested: SystemTime,
) -> Result<(), StoreError> {
    let begun = connection.execute(
        "INSERT INTO lineage (id, spiffe_id, attestor, attested, newest, parent) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (id) DO NOTHING",
        params![
            issued.lineage.0,
            issued.id.as_str(),
            attestor.as_str(),
            ms(attested),
            issued.serial,
            from.serial
        ],
    )?;
    if begun == 1 { Ok(()) } else { Err(StoreError::Conflict("the lineage was taken over meanwhile")) }
}

pub(super) fn mark_forked(
    connection: &Connection,
    path: &Path,
    wanted: LineageId,
    at: SystemTime,
) -> Result<(), StoreError> {
    let Some(found) = lineage(connection, path, wanted)?.filter(|found| found.forked.is_none()) else {
        return Ok(());
    };
    let record = outbox::append(connection, at, outbox::fork(&found))?;
    connection.execute(
        "UPDATE lineage SET forked = ?2, record = ?3 WHERE id = ?1",
        params![wanted.0, ms(at), number(record)],
    )?;
    Ok(())
}

/// Tokens of which the ledger knows nothing yet.
pub(super) fn unrecorded_tokens(
    connection: &Connection,
    path: &Path,
    limit: i64,
) -> Result<Vec<TokenRecord>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{TOKEN} WHERE record IS NULL LIMIT ?1"))?;
    let rows = statement.query_map([limit], token_record)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

/// Certificates of which the ledger knows nothing yet.
pub(super) fn unrecorded_certificates(
    connection: &Connection,
    path: &Path,
    limit: i64,
) -> Result<Vec<Issued>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("{ISSUED} WHERE record IS NULL ORDER BY serial LIMIT ?1"))?;
    let rows = statement.query_map([limit], issued)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

/// Forked lineages of which the ledger knows nothing yet.
pub(super) fn unrecorded_forks(connection: &Connection, path: &Path) -> Result<Vec<Lineage>, StoreError> {
    let mut statement =
        connection.prepare(&format!("{LINEAGE} WHERE forked IS NOT NULL AND record IS NULL"))?;
    let rows = statement.query_map([], lineage_of)?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::Damaged(path.to_owned(), error.to_string()))
}

/// Notes the ledger's record of a row.
pub(super) fn set_record(
    connection: &Connection,
    sql: &str,
    record: u64,
    row: impl rusqlite::ToSql,
) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute(params![number(record), row])?;
    Ok(())
}

pub(super) fn counts(connection: &Connection, now: SystemTime) -> Result<Counts, StoreError> {
    let one = |sql: &str| -> Result<u64, StoreError> {
        let count: i64 = connection.query_row(sql, [ms(now)], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    };
    Ok(Counts {
        valid: one("SELECT count(*) FROM issued WHERE not_after >= ?1")?,
        open_tokens: one("SELECT count(*) FROM token WHERE expires > ?1 AND bound_key IS NULL")?,
        forked: one("SELECT count(*) FROM lineage WHERE forked <= ?1")?,
    })
}

pub(super) fn prune(connection: &Connection, before: SystemTime) -> Result<u64, StoreError> {
    if let Some(seen) = clock::seen(connection)? {
        check_leap(seen, before)?;
    }
    let before = ms(clock::prune_to(connection, before)?);
    // A forked lineage stays as long as its certificates: dropping it earlier would forget the alarm.
    let gone = connection.execute("DELETE FROM issued WHERE not_after < ?1", [before])?;
    connection.execute(
        "DELETE FROM lineage WHERE NOT EXISTS (SELECT 1 FROM issued WHERE issued.lineage = lineage.id)",
        [],
    )?;
    connection.execute("DELETE FROM token WHERE expires < ?1", [before])?;
    // Another replica's too, if that has gone and told nobody.
    connection.execute(
        "DELETE FROM authority WHERE (state = 'retired' OR replica IS NOT NULL) AND not_after < ?1",
        [before],
    )?;
    Ok(gone as u64)
}

const TOKEN: &str = "SELECT hash, spiffe_id, created, expires, bound_key, lineage FROM token";
const LINEAGE: &str = "SELECT id, spiffe_id, attestor, attested, newest, parent, forked FROM lineage";
const ISSUED: &str = "SELECT serial, spiffe_id, lineage, issuer, key, issued, not_before, not_after, renew_after, certificate FROM issued";

fn token_record(row: &Row<'_>) -> rusqlite::Result<TokenRecord> {
    let key: Option<[u8; 32]> = row.get(4)?;
    let lineage: Option<[u8; 16]> = row.get(5)?;
    Ok(TokenRecord {
        hash: TokenHash(row.get(0)?),
        id: id(row, 1)?,
        created: time(row, 2)?,
        expires: time(row, 3)?,
        bound: key.zip(lineage).map(|(key, lineage)| Bound { key, lineage: LineageId(lineage) }),
    })
}

fn lineage_of(row: &Row<'_>) -> rusqlite::Result<Lineage> {
    let attestor = Attestor::parse(&row.get::<_, String>(2)?);
    Ok(Lineage {
        id: LineageId(row.get(0)?),
        spiffe_id: id(row, 1)?,
        attestor: attestor.ok_or_else(|| invalid(2, "an unknown attestor"))?,
        attested: time(row, 3)?,
        newest: row.get(4)?,
        parent: row.get(5)?,
        forked: row.get::<_, Option<i64>>(6)?.map(from_ms),
    })
}

fn issued(row: &Row<'_>) -> rusqlite::Result<Issued> {
    Ok(Issued {
        serial: row.get(0)?,
        id: id(row, 1)?,
        lineage: LineageId(row.get(2)?),
        issuer: row.get(3)?,
        key: row.get(4)?,
        issued: time(row, 5)?,
        not_before: time(row, 6)?,
        not_after: time(row, 7)?,
        renew_after: time(row, 8)?,
        certificate: row.get(9)?,
    })
}

fn begin_lineage(connection: &Connection, issued: &Issued, attestor: Attestor) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO lineage (id, spiffe_id, attestor, attested, newest) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            issued.lineage.0,
            issued.id.as_str(),
            attestor.as_str(),
            ms(issued.issued),
            issued.serial
        ])?;
    Ok(())
}

fn journal(
    connection: &Connection,
    change: &AuthorityChange,
    label: &str,
    state: State,
) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO journal (at, label, state, reason) VALUES (?1, ?2, ?3, ?4)",
        params![ms(change.at), label, state.name(), change.reason],
    )?;
    Ok(())
}

/// The state of this word.
pub(super) fn state_of(text: &str) -> Option<State> {
    State::ALL.into_iter().find(|one| one.name() == text)
}

pub(super) fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<SpiffeId> {
    SpiffeId::parse(&row.get::<_, String>(column)?).map_err(|_| invalid(column, "not a SPIFFE id"))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<SystemTime> {
    row.get(column).map(from_ms)
}

pub(super) fn invalid(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, what.into())
}

pub(super) fn number(record: u64) -> i64 {
    i64::try_from(record).unwrap_or(i64::MAX)
}

pub(super) fn ms(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0).unsigned_abs())
}
