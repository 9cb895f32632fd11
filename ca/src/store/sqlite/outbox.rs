//! Where the ledger's records are made and wait for its files, within the transaction that does what they tell.

use std::path::Path;
use std::time::SystemTime;

use postern_svid::{Revoked, TrustDomain};
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, clock, rows, schema, trust};
use crate::ledger::{self, Draft, Field, HeadKey, Identity, Kind, MAX_BODY, SLACK_MS, State};
use crate::store::{self, Basis, Grant, Issued, Revocation};
use crate::token::TokenRecord;

/// Rows that are imported at a time.
const CHUNK: i64 = 256;

/// No record tells of any row.
const FORGET: &str = "
DELETE FROM outbox;
UPDATE authority SET record = NULL; UPDATE lineage SET record = NULL;
UPDATE token SET record = NULL; UPDATE issued SET record = NULL; UPDATE revocation SET record = NULL;
";

/// Adds a record; gives its number. The first one begins the ledger. Its time is never more than [`SLACK_MS`] before that of
/// an earlier one, whatever the clock says.
pub(super) fn append(connection: &Connection, at: SystemTime, draft: Draft) -> Result<u64, StoreError> {
    clock::recorded(connection, at)?;
    begin(connection, at)?;
    append_to(connection, at, draft)
}

fn append_to(connection: &Connection, at: SystemTime, draft: Draft) -> Result<u64, StoreError> {
    let mut statement = connection.prepare_cached("SELECT size, chain, time FROM ledger")?;
    let (size, chain, time): (i64, ledger::Hash, i64) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let time_ms = ledger::ms(at).max(time.unsigned_abs().saturating_sub(SLACK_MS));
    let body = draft.encode(size.unsigned_abs(), time_ms);
    if body.len() > MAX_BODY {
        return Err(StoreError::Ledger(format!(
            "a record of {} bytes is too long for the ledger",
            body.len()
        )));
    }
    let chain = ledger::chain(&chain, &body);
    let time = time.max(i64::try_from(time_ms).unwrap_or(i64::MAX));
    connection.prepare_cached("UPDATE ledger SET size = ?1, chain = ?2, time = ?3")?.execute(params![
        size + 1,
        chain,
        time
    ])?;
    connection
        .prepare_cached("INSERT INTO outbox (sequence, body) VALUES (?1, ?2)")?
        .execute(params![size, body])?;
    Ok(size.unsigned_abs())
}

/// Begins the ledger if there is none.
pub(super) fn begin(connection: &Connection, at: SystemTime) -> Result<(), StoreError> {
    if connection.prepare_cached("SELECT 1 FROM ledger")?.exists([])? {
        return Ok(());
    }
    connection.execute(
        "INSERT INTO ledger (one, id, size, chain, time) VALUES (1, ?1, 0, ?2, 0)",
        params![random()?, ledger::Hash::default()],
    )?;
    first(connection, at, None)
}

/// Begins another ledger, whose first record names the one that was lost.
pub(super) fn begin_again(connection: &Connection, at: SystemTime, lost: &State) -> Result<(), StoreError> {
    connection.execute_batch(FORGET)?;
    connection.execute(
        "UPDATE ledger SET id = ?1, size = 0, chain = ?2, key = NULL, head = NULL",
        params![random()?, ledger::Hash::default()],
    )?;
    first(connection, at, Some(lost))
}

/// Drops a ledger of which nothing was ever written to a file: no control plane has run. What is there is imported into the next.
pub(super) fn drop_unwritten(connection: &Connection) -> Result<(), StoreError> {
    if connection.execute("DELETE FROM ledger WHERE key IS NULL", [])? > 0 {
        connection.execute_batch(FORGET)?;
    }
    Ok(())
}

fn first(connection: &Connection, at: SystemTime, lost: Option<&State>) -> Result<(), StoreError> {
    let id: [u8; 16] = connection.query_row("SELECT id FROM ledger", [], |row| row.get(0))?;
    let mut draft = Draft::new(Kind::Begin)
        .text(Field::TrustDomain, &schema::trust_domain(connection)?.unwrap_or_default())
        .bytes(Field::Ledger, &id);
    if let Some(lost) = lost {
        draft = draft
            .bytes(Field::PreviousLedger, &lost.identity.id)
            .number(Field::PreviousSize, lost.size)
            .bytes(Field::PreviousChain, &lost.chain);
    }
    append_to(connection, at, draft).map(drop)
}

fn random() -> Result<[u8; 16], StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|_| StoreError::Ledger("the system's random source failed".to_owned()))?;
    Ok(id)
}

/// How far the ledger has come; `None` if there is none.
pub(super) fn state(connection: &Connection, td: &TrustDomain) -> Result<Option<State>, StoreError> {
    let found = connection.query_row("SELECT id, size, chain, key, head FROM ledger", [], |row| {
        let size = row.get::<_, i64>(1)?.unsigned_abs();
        Ok(State {
            identity: Identity { trust_domain: td.clone(), id: row.get(0)? },
            size,
            chain: row.get(2)?,
            key: row.get::<_, Option<[u8; 32]>>(3)?.map(HeadKey),
            head: row.get(4)?,
            waiting: size,
        })
    });
    let Some(mut state) = found.optional()? else { return Ok(None) };
    let waiting: Option<i64> =
        connection.query_row("SELECT min(sequence) FROM outbox", [], |row| row.get(0))?;
    state.waiting = waiting.map_or(state.size, i64::unsigned_abs);
    Ok(Some(state))
}

/// Up to so many records from `sequence` on.
pub(super) fn bodies(connection: &Connection, sequence: u64, limit: u32) -> Result<Vec<Vec<u8>>, StoreError> {
    let from = i64::try_from(sequence).unwrap_or(i64::MAX);
    let mut statement = connection
        .prepare_cached("SELECT body FROM outbox WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2")?;
    let rows = statement.query_map(params![from, limit], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets records that are durable in the files.
pub(super) fn trim(connection: &Connection, before: u64) -> Result<(), StoreError> {
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    connection.prepare_cached("DELETE FROM outbox WHERE sequence < ?1")?.execute([before])?;
    Ok(())
}

pub(super) fn set_key(connection: &Connection, key: HeadKey) -> Result<(), StoreError> {
    connection.execute("UPDATE ledger SET key = ?1", [key.0])?;
    Ok(())
}

pub(super) fn set_head(connection: &Connection, head: &str) -> Result<(), StoreError> {
    connection.execute("UPDATE ledger SET head = ?1", [head])?;
    Ok(())
}

/// Records what was done before there was a ledger, or by a program that knew of none. Gives how much that was.
pub(super) fn import(connection: &Connection, path: &Path, at: SystemTime) -> Result<u64, StoreError> {
    let mut imported = 0;
    for row in rows::authorities(connection, path)? {
        let is_new = connection
            .prepare_cached("SELECT 1 FROM authority WHERE label = ?1 AND record IS NULL")?
            .exists([&row.label])?;
        if is_new {
            let draft = authority(&row).time(Field::Imported, row.not_before);
            let record = append(connection, at, draft)?;
            rows::set_record(
                connection,
                "UPDATE authority SET record = ?1 WHERE label = ?2",
                record,
                &row.label,
            )?;
            imported += 1;
        }
    }
    loop {
        let unrecorded = rows::unrecorded_tokens(connection, path, CHUNK)?;
        for row in &unrecorded {
            let mut draft = token(row).time(Field::Imported, row.created);
            if let Some(bound) = row.bound {
                draft = draft.bytes(Field::Lineage, &bound.lineage.0);
            }
            let record = append(connection, at, draft)?;
            rows::set_record(connection, "UPDATE token SET record = ?1 WHERE hash = ?2", record, row.hash.0)?;
        }
        imported += unrecorded.len() as u64;
        if unrecorded.is_empty() {
            break;
        }
    }
    loop {
        let unrecorded = rows::unrecorded_certificates(connection, path, CHUNK)?;
        for row in &unrecorded {
            let draft = certificate(row).time(Field::Imported, row.issued);
            let record = append(connection, at, draft)?;
            rows::set_record(
                connection,
                "UPDATE issued SET record = ?1 WHERE serial = ?2",
                record,
                &row.serial,
            )?;
        }
        imported += unrecorded.len() as u64;
        if unrecorded.is_empty() {
            break;
        }
    }
    for lineage in rows::unrecorded_forks(connection, path)? {
        let draft = fork(&lineage).time(Field::Imported, lineage.forked.unwrap_or(at));
        let record = append(connection, at, draft)?;
        rows::set_record(connection, "UPDATE lineage SET record = ?1 WHERE id = ?2", record, lineage.id.0)?;
        imported += 1;
    }
    for revocation in trust::unrecorded(connection, path)? {
        let draft = self::revocation(&revocation).time(Field::Imported, revocation.at);
        let record = append(connection, at, draft)?;
        trust::set_record(connection, &revocation.entry, record)?;
        imported += 1;
    }
    Ok(imported)
}

/// An entry of the taint or deny list.
pub(super) fn revocation(new: &Revocation) -> Draft {
    let kind = if matches!(new.entry, Revoked::Authority(_)) { Kind::Taint } else { Kind::Deny };
    let draft = naming(Draft::new(kind), &new.entry).text(Field::Reason, new.reason.as_str());
    match new.ends {
        Some(ends) => draft.time(Field::NotAfter, ends),
        None => draft,
    }
}

/// An entry that was taken off the deny list.
pub(super) fn allowed(entry: &Revoked, reason: &str) -> Draft {
    naming(Draft::new(Kind::Allow), entry).text(Field::Reason, reason)
}

fn naming(draft: Draft, entry: &Revoked) -> Draft {
    match entry {
        Revoked::Authority(key_id) => draft.bytes(Field::Key, key_id),
        Revoked::Key(digest) => draft.bytes(Field::Key, digest),
        Revoked::Serial(serial) => draft.bytes(Field::Serial, serial),
        Revoked::Id(id) => draft.text(Field::Id, id.as_str()),
        _ => draft,
    }
}

pub(super) fn authority(row: &store::Authority) -> Draft {
    let kind = match row.kind {
        store::Kind::Root => Kind::Root,
        store::Kind::Tier => Kind::Tier,
        store::Kind::Issuing => Kind::Issuing,
    };
    let draft = Draft::new(kind)
        .text(Field::Label, &row.label)
        .text(Field::State, row.state.name())
        .bytes(Field::Key, &row.key_id);
    if row.state == store::State::Requested {
        return draft;
    }
    draft
        .time(Field::NotBefore, row.not_before)
        .time(Field::NotAfter, row.not_after)
        .bytes(Field::Certificate, &row.certificate)
}

pub(super) fn authority_state(label: &str, state: &str, reason: &str) -> Draft {
    Draft::new(Kind::State).text(Field::Label, label).text(Field::State, state).text(Field::Reason, reason)
}

pub(super) fn token(token: &TokenRecord) -> Draft {
    Draft::new(Kind::Token)
        .text(Field::Id, token.id.as_str())
        .bytes(Field::Token, &token.hash.0)
        .time(Field::NotBefore, token.created)
        .time(Field::NotAfter, token.expires)
}

pub(super) fn issued(issued: &Issued, grant: &Grant) -> Draft {
    let draft = certificate(issued);
    match grant {
        Grant::Token(hash) => draft.text(Field::Proof, "join_token").bytes(Field::Token, &hash.0),
        Grant::New(attestor) => draft.text(Field::Proof, attestor.as_str()),
        Grant::Lineage { predecessor, .. } => {
            draft.text(Field::Proof, "lineage").bytes(Field::Predecessor, predecessor)
        }
        Grant::Adopted { from, basis, .. } => {
            let draft = draft.bytes(Field::Predecessor, &from.serial).bytes(Field::Adopted, &from.issuer);
            match basis {
                None => draft.text(Field::Proof, "lineage"),
                Some(Basis { attestor, registration, facts }) => draft
                    .text(Field::Proof, attestor.as_str())
                    .text(Field::Registration, registration)
                    .text(Field::Facts, facts),
            }
        }
        Grant::Attested { basis: Basis { attestor, registration, facts }, renews } => {
            let draft = draft
                .text(Field::Proof, attestor.as_str())
                .text(Field::Registration, registration)
                .text(Field::Facts, facts);
            match renews {
                Some((predecessor, _)) => draft.bytes(Field::Predecessor, predecessor),
                None => draft,
            }
        }
    }
}

fn certificate(issued: &Issued) -> Draft {
    Draft::new(Kind::Certificate)
        .text(Field::Id, issued.id.as_str())
        .bytes(Field::Serial, &issued.serial)
        .bytes(Field::Lineage, &issued.lineage.0)
        .bytes(Field::Issuer, &issued.issuer)
        .bytes(Field::Key, &issued.key)
        .time(Field::NotBefore, issued.not_before)
        .time(Field::NotAfter, issued.not_after)
        .bytes(Field::Certificate, &issued.certificate)
}

pub(super) fn fork(lineage: &crate::lineage::Lineage) -> Draft {
    Draft::new(Kind::Fork)
        .text(Field::Id, lineage.spiffe_id.as_str())
        .bytes(Field::Lineage, &lineage.id.0)
        .bytes(Field::Serial, &lineage.newest)
}
