//! Points in time and lengths of time, as CEL writes them.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::ast::Part;
use super::value::Fail;

/// The years 1 to 9999 (CEL specification, "Timestamps"), of whose last day the library keeps 26 hours for its time zones.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;
/// About 10,000 years (CEL specification, "Durations").
const LONGEST: i64 = 315_576_000_000;

pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    // jiff reads more than RFC 3339: a zone in brackets, a space, a comma.
    let is_strict = text.len() >= 20
        && text.as_bytes().get(10).is_some_and(|byte| matches!(byte, b'T' | b't'))
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"-+:.TtZz".contains(&byte));
    text.parse().ok().filter(|_| is_strict).and_then(in_years)
}

pub(super) fn in_years(at: Timestamp) -> Option<Timestamp> {
    // Fractions before 1970 are below zero, and cut towards it.
    let is_before = at.as_second() == FIRST && at.subsec_nanosecond() < 0;
    ((FIRST..=LAST).contains(&at.as_second()) && !is_before).then_some(at)
}

pub(super) fn in_range(length: SignedDuration) -> Option<SignedDuration> {
    (length.as_secs().abs() <= LONGEST).then_some(length)
}

/// `1h30m`, `-1.5s`, `10ms`.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos = 0_i128;
    let mut is_empty = true;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(rest);
        let (number, after) = rest.split_at(whole);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if (number.is_empty() && fraction.is_empty()) || number.len() > 18 || fraction.len() > 18 {
            return None;
        }
        let letters = after.len() - after.trim_start_matches(|c: char| !c.is_ascii_digit() && c != '.').len();
        let (unit, after) = after.split_at(letters);
        let unit: i128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        let number: i128 = if number.is_empty() { 0 } else { number.parse().ok()? };
        let fraction: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        nanos = nanos.checked_add(number * unit + fraction * unit / scale)?;
        is_empty = false;
        rest = after;
    }
    if is_empty {
        return None;
    }
    let nanos = sign * nanos;
    let seconds = i64::try_from(nanos / 1_000_000_000).ok()?;
    let below = i32::try_from(nanos % 1_000_000_000).ok()?;
    in_range(SignedDuration::new(seconds, below))
}

/// Seconds, with a fraction if there is one.
pub(super) fn written(length: SignedDuration) -> String {
    let sign = if length.is_negative() { "-" } else { "" };
    let (seconds, below) = (length.as_secs().unsigned_abs(), length.subsec_nanos().unsigned_abs());
    let fraction = format!("{below:09}");
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{seconds}{dot}{fraction}s")
}

/// A part of a point in time, in UTC or in a zone that is given.
pub(super) fn part_of(at: Timestamp, part: Part, zone: Option<&str>) -> Result<i64, Fail> {
    let local = match zone {
        None => Offset::UTC.to_datetime(at),
        Some(name) => local(at, name).ok_or(Fail::Range("the time zone"))?,
    };
    Ok(match part {
        Part::FullYear => local.year().into(),
        Part::Month => i64::from(local.month()) - 1,
        Part::DayOfYear => i64::from(local.day_of_year()) - 1,
        Part::DayOfMonth => i64::from(local.day()) - 1,
        Part::Date => local.day().into(),
        Part::DayOfWeek => local.weekday().to_sunday_zero_offset().into(),
        Part::Hours => local.hour().into(),
        Part::Minutes => local.minute().into(),
        Part::Seconds => local.second().into(),
        Part::Milliseconds => local.millisecond().into(),
    })
}

/// Whether a time zone is called so.
pub(super) fn is_zone(name: &str) -> bool {
    local(Timestamp::UNIX_EPOCH, name).is_some()
}

/// A name of the IANA database, or an offset: `+01:00`, `-08:00`, `02:00`.
fn local(at: Timestamp, zone: &str) -> Option<DateTime> {
    let (sign, rest) = match zone.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, zone.strip_prefix('+').unwrap_or(zone)),
    };
    if let Some((hours, minutes)) = rest.split_once(':') {
        let two = |text: &str| (text.len() == 2).then(|| text.parse::<u8>().ok()).flatten();
        let (hours, minutes) = (two(hours)?, two(minutes).filter(|minutes| *minutes < 60)?);
        let seconds = (i32::from(hours) * 60 + i32::from(minutes)) * 60;
        return Offset::from_seconds(sign * seconds).ok().map(|offset| offset.to_datetime(at));
    }
    // Names have at most three parts of at most 20 letters.
    if zone.len() > 64 {
        return None;
    }
    TimeZone::get(zone).ok().map(|zone| zone.to_datetime(at))
}

/// A part of a length of time: all of it, in that unit.
pub(super) fn part_of_length(length: SignedDuration, part: Part) -> Option<i64> {
    Some(match part {
        Part::Hours => length.as_secs() / 3_600,
        Part::Minutes => length.as_secs() / 60,
        Part::Seconds => length.as_secs(),
        Part::Milliseconds => i64::from(length.subsec_millis()),
        _ => return None,
    })
}
