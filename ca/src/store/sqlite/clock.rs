//! Which times the store believes. A clock that leaps far ahead would have everything look over: certificates would be forgotten, CAs
//! and roots replaced, and none of it could be undone when the clock comes back. So the store remembers the latest time that it has
//! seen, and takes no time that is more than a week after it until an operator says that it is right.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{StoreError, schema};
use crate::ledger::{self, SLACK_MS};
use crate::store::Reason;
use crate::store::revocation::check_leap;

/// The latest time seen.
const SEEN: &str = "clock_ms";
/// The time of the newest record; less than the ledger's if an operator has said that those were ahead.
const NEWEST: &str = "newest_ms";
/// How far the forgetting has come.
const PRUNED: &str = "pruned_ms";
/// Times are noted once in so many milliseconds.
const GRAIN_MS: u64 = 1_000;
/// The first call begins this long before the first end.
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// What a call may forget beyond the one before, which was ten minutes earlier: twice that, so that it catches up after a pause and a
/// clock that is wrong by less than a leap has to stay so for long before anything is forgotten that is needed.
const PRUNE_MS: u64 = 20 * 60 * 1_000;

/// The latest time seen; `None` in a store that has seen none.
pub(super) fn seen(connection: &Connection) -> Result<Option<SystemTime>, StoreError> {
    let mut seen = schema::number(connection, SEEN)?;
    if seen == 0 {
        // Written by a program that did not note it.
        let probed = schema::number(connection, "probed_ms")?;
        seen = probed.max(schema::number(connection, "last_issued_ms")?).max(of_ledger(connection)?);
    }
    Ok((seen > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(seen)))
}

/// Refuses a time that has leapt ahead, and notes any other.
pub(super) fn believe(connection: &Connection, at: SystemTime) -> Result<(), StoreError> {
    let seen = seen(connection)?;
    if let Some(seen) = seen {
        check_leap(seen, at)?;
    }
    let (at, seen) = (ledger::ms(at), seen.map_or(0, ledger::ms));
    if at >= seen + GRAIN_MS { schema::set_number(connection, SEEN, at) } else { Ok(()) }
}

/// Refuses a time too long before that of the newest record: a certificate must not seem older than it is.
pub(super) fn check_back(connection: &Connection, at: SystemTime) -> Result<(), StoreError> {
    let behind = newest(connection)?.saturating_sub(ledger::ms(at));
    if behind > SLACK_MS { Err(StoreError::Clock { behind: Duration::from_millis(behind) }) } else { Ok(()) }
}

/// A record of this time is written.
pub(super) fn recorded(connection: &Connection, at: SystemTime) -> Result<(), StoreError> {
    believe(connection, at)?;
    let (at, newest) = (ledger::ms(at), newest(connection)?);
    if at >= newest + GRAIN_MS { schema::set_number(connection, NEWEST, at) } else { Ok(()) }
}

/// An operator says that this is the time, whatever was seen before. Gives what that was.
pub(super) fn confirm(
    connection: &Connection,
    now: SystemTime,
    reason: &Reason,
) -> Result<Option<SystemTime>, StoreError> {
    let before = seen(connection)?;
    let ms = ledger::ms(now);
    for name in [SEEN, NEWEST, "last_issued_ms"] {
        schema::set_number(connection, name, ms)?;
    }
    connection.execute(
        "INSERT INTO journal (at, label, state, reason) VALUES (?1, '', 'clock confirmed', ?2)",
        params![i64::try_from(ms).unwrap_or(i64::MAX), reason.as_str()],
    )?;
    Ok(before)
}

/// Up to when rows may be forgotten, if `before` is wished.
pub(super) fn prune_to(connection: &Connection, before: SystemTime) -> Result<SystemTime, StoreError> {
    let (wished, mut pruned) = (ledger::ms(before), schema::number(connection, PRUNED)?);
    if pruned == 0 {
        let oldest: Option<i64> =
            connection.query_row("SELECT min(not_after) FROM issued", [], |row| row.get(0))?;
        pruned = oldest.map_or(wished, |oldest| oldest.unsigned_abs().saturating_sub(DAY_MS));
    }
    let to = wished.min(pruned.saturating_add(PRUNE_MS));
    if to > pruned {
        schema::set_number(connection, PRUNED, to)?;
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(to))
}

fn newest(connection: &Connection) -> Result<u64, StoreError> {
    match schema::number(connection, NEWEST)? {
        0 => of_ledger(connection),
        newest => Ok(newest),
    }
}

fn of_ledger(connection: &Connection) -> Result<u64, StoreError> {
    let time: Option<i64> =
        connection.prepare_cached("SELECT time FROM ledger")?.query_row([], |row| row.get(0)).optional()?;
    Ok(time.unwrap_or(0).unsigned_abs())
}
