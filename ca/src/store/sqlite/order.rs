//! What an operator asks of the control plane: written by a verb, carried out and answered by the process that runs.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;
use super::rows::{ms, number};
use crate::store::{Edit, Edited, Reason};

/// Requests that wait at most: nobody has more to ask of roots.
const MAX_OPEN: i64 = 32;
/// An order counts as long as the verb that gave it waits, which says so again and again: one that was broken off, or whose
/// terminal is gone, is not carried out hours later by the next control plane.
const WAITS: Duration = Duration::from_secs(5);
/// Answered ones that are kept.
const KEPT: i64 = 256;

/// A step that an operator wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OrderVerb {
    /// Make a root and publish it.
    Prepare,
    /// Let the new root sign.
    Activate,
    /// Take the old root out of the bundle.
    Remove,
}

impl OrderVerb {
    const ALL: [Self; 3] = [Self::Prepare, Self::Activate, Self::Remove];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Remove => "remove",
        }
    }
}

/// A step that an operator wants, in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Order {
    /// What.
    pub verb: OrderVerb,
    /// Why its gate is passed over, if it is.
    pub force: Option<Reason>,
}

/// What became of an order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or what stands in the way, for people.
    pub text: String,
}

fn room(connection: &Connection) -> Result<(), StoreError> {
    let open: i64 =
        connection.query_row("SELECT count(*) FROM request WHERE answered IS NULL", [], |row| row.get(0))?;
    if open >= MAX_OPEN {
        return Err(StoreError::Conflict("many requests wait for the control plane already; is it running?"));
    }
    Ok(())
}

/// From when until when a verb has said last that it waits, if it does.
fn waits(now: SystemTime) -> [i64; 2] {
    [now.checked_sub(WAITS).map_or(0, ms), ms(now + WAITS)]
}

pub(super) fn add(connection: &Connection, order: &Order, at: SystemTime) -> Result<u64, StoreError> {
    connection.execute(
        "DELETE FROM request WHERE answered IS NULL AND edit IS NULL AND NOT at BETWEEN ?1 AND ?2",
        waits(at),
    )?;
    room(connection)?;
    let reason = order.force.as_ref().map(Reason::as_str);
    connection.execute(
        "INSERT INTO request (at, verb, forced, reason) VALUES (?1, ?2, ?3, ?4)",
        params![ms(at), order.verb.name(), order.force.is_some(), reason],
    )?;
    Ok(connection.last_insert_rowid().unsigned_abs())
}

/// Writes down an edit of what replicas share.
pub(super) fn add_edit(connection: &Connection, edit: &Edit) -> Result<u64, StoreError> {
    room(connection)?;
    connection.execute(
        "INSERT INTO request (at, verb, forced, edit) VALUES (0, 'edit', 0, ?1)",
        params![edit.encode()],
    )?;
    Ok(connection.last_insert_rowid().unsigned_abs())
}

/// The number of an edit, and the edit or why it cannot be read.
pub(super) type OpenEdit = (u64, Result<Edit, String>);

/// Edits that wait, oldest first.
pub(super) fn open_edits(connection: &Connection) -> Result<Vec<OpenEdit>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, edit FROM request WHERE answered IS NULL AND edit IS NOT NULL ORDER BY number LIMIT 32",
    )?;
    let rows = statement.query_map([], |row| {
        let (number, text): (i64, String) = (row.get(0)?, row.get(1)?);
        Ok((number.unsigned_abs(), Edit::decode(&text)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The answer to an edit.
pub(super) fn of_edit(done: &Result<Edited, StoreError>) -> Answer {
    match done {
        Ok(edited) => Answer { ok: true, text: serde_json::to_string(edited).unwrap_or_default() },
        Err(error) => Answer { ok: false, text: error.to_string() },
    }
}

pub(super) fn read_edit(answer: &Answer) -> Result<Edited, StoreError> {
    if !answer.ok {
        return Err(StoreError::Refused(answer.text.clone()));
    }
    serde_json::from_str(&answer.text).map_err(|error| StoreError::Refused(error.to_string()))
}

/// The verb still waits for the answer; `false` if it is there.
pub(super) fn waiting(connection: &Connection, order: u64, at: SystemTime) -> Result<bool, StoreError> {
    let changed = connection.execute(
        "UPDATE request SET at = ?2 WHERE number = ?1 AND answered IS NULL",
        params![number(order), ms(at)],
    )?;
    Ok(changed == 1)
}

/// Orders that somebody waits for, oldest first.
pub(super) fn open(connection: &Connection, now: SystemTime) -> Result<Vec<(u64, Order)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, verb, reason FROM request
         WHERE answered IS NULL AND edit IS NULL AND at BETWEEN ?1 AND ?2 ORDER BY number LIMIT 32",
    )?;
    let rows = statement.query_map(waits(now), |row| {
        let (verb, reason): (String, Option<String>) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, i64>(0)?.unsigned_abs(), verb, reason))
    })?;
    let mut orders = Vec::new();
    for row in rows {
        let (number, verb, reason) = row?;
        let Some(verb) = OrderVerb::ALL.into_iter().find(|one| one.name() == verb) else { continue };
        orders.push((number, Order { verb, force: reason.and_then(|text| Reason::parse(&text).ok()) }));
    }
    Ok(orders)
}

pub(super) fn answer(
    connection: &Connection,
    order: u64,
    answer: &Answer,
    at: SystemTime,
) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE request SET answered = ?2, ok = ?3, answer = ?4 WHERE number = ?1",
        params![number(order), ms(at), answer.ok, answer.text],
    )?;
    connection.execute(
        "DELETE FROM request WHERE answered IS NOT NULL AND number <= ?1",
        [number(order).saturating_sub(KEPT)],
    )?;
    Ok(())
}

/// Takes back one that nobody has answered; `false` if somebody has.
pub(super) fn withdraw(connection: &Connection, order: u64) -> Result<bool, StoreError> {
    let gone =
        connection.execute("DELETE FROM request WHERE number = ?1 AND answered IS NULL", [number(order)])?;
    Ok(gone == 1)
}

pub(super) fn answer_to(connection: &Connection, order: u64) -> Result<Option<Answer>, StoreError> {
    let found = connection.query_row(
        "SELECT ok, answer FROM request WHERE number = ?1 AND answered IS NOT NULL",
        [number(order)],
        |row| Ok(Answer { ok: row.get(0)?, text: row.get(1)? }),
    );
    Ok(found.optional()?)
}
