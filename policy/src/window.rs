//! When a rule holds: hours of the week in a time zone, and dates.
//!
//! The zones are part of the program. What a rule means must not depend on which files a machine has.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Days by the names that documents use, Monday first.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY: u16 = 24 * 60;

/// Times at which a rule holds. Seconds count, fractions do not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    /// Alternatives. Empty: any hour.
    pub(crate) weekly: Vec<Weekly>,
    pub(crate) zone: TimeZone,
    pub(crate) not_before: Option<Timestamp>,
    /// The first second at which it holds no more.
    pub(crate) not_after: Option<Timestamp>,
}

/// Hours of some days of the week.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Weekly {
    /// Bit n: the n-th day from Monday.
    days: u8,
    /// Minutes of the day. If the end is not after the start, it is in the next day.
    start: u16,
    end: u16,
}

impl Window {
    /// Whether the rule holds `at` that many seconds after 1970.
    pub(crate) fn is_open(&self, at: i64) -> bool {
        let Ok(now) = Timestamp::from_second(at) else { return false };
        if self.not_before.is_some_and(|start| now < start) || self.not_after.is_some_and(|end| now >= end) {
            return false;
        }
        if self.weekly.is_empty() {
            return true;
        }
        let local = now.to_zoned_datetime(self.zone.clone());
        let day = u16::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
        let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(0);
        self.weekly.iter().any(|hours| hours.contain(day, minute))
    }
}

/// Seconds since 1970; before it, 0.
pub(crate) fn seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Weekly {
    /// Parses `Mon-Fri 06:00-22:00`, `Sat 08:00-12:00` or `Mon,Wed 22:00-06:00`.
    pub(crate) fn parse(text: &str) -> Result<Self, WindowError> {
        let (days, hours) = text.split_once(' ').ok_or(WindowError::Shape)?;
        let (start, end) = hours.split_once('-').ok_or(WindowError::Shape)?;
        let (start, end) = (minute(start)?, minute(end)?);
        if start == DAY || start == end {
            return Err(WindowError::Empty);
        }
        let mut mask = 0;
        for part in days.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // `Sat-Mon` goes around the week's end.
            let count = (last + 7 - first) % 7 + 1;
            for n in 0..count {
                mask |= 1 << ((first + n) % 7);
            }
        }
        Ok(Self { days: mask, start, end })
    }

    /// A night belongs to the day on which it begins.
    fn contain(self, day: u16, minute: u16) -> bool {
        let on = |day: u16| self.days >> day & 1 == 1;
        if self.start < self.end {
            return on(day) && (self.start..self.end).contains(&minute);
        }
        (on(day) && minute >= self.start) || (on((day + 6) % 7) && minute < self.end)
    }
}

fn day(text: &str) -> Result<u8, WindowError> {
    let found = (0..).zip(DAYS).find(|(_, name)| *name == text);
    found.map(|(n, _)| n).ok_or(WindowError::Day)
}

fn minute(text: &str) -> Result<u16, WindowError> {
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (hour, minute) =
        text.split_once(':').filter(|(h, m)| digits(h) && digits(m)).ok_or(WindowError::Hour)?;
    let (hour, minute): (u16, u16) =
        (hour.parse().map_err(|_| WindowError::Hour)?, minute.parse().map_err(|_| WindowError::Hour)?);
    let total = hour * 60 + minute;
    if minute > 59 || total > DAY { Err(WindowError::Hour) } else { Ok(total) }
}

/// Why hours are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WindowError {
    Shape,
    Day,
    Hour,
    Empty,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "not hours of the week: write `Mon-Fri 06:00-22:00`",
            Self::Day => "days are Mon, Tue, Wed, Thu, Fri, Sat and Sun, in ranges or joined by commas",
            Self::Hour => "hours are written from 00:00 to 24:00",
            Self::Empty => "the hours end where they begin: write 00:00-24:00 for the whole day",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(weekly: &[&str], zone: &str) -> Window {
        Window {
            weekly: weekly.iter().map(|text| Weekly::parse(text).unwrap()).collect(),
            zone: TimeZone::get(zone).unwrap(),
            not_before: None,
            not_after: None,
        }
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn hours_of_the_week() {
        // 2026-11-27 is a Friday; Oslo is an hour ahead of UTC then, and two in July.
        for (weekly, zone, now, expected) in [
            ("Mon-Fri 06:00-22:00", "UTC", "2026-11-27T06:00:00Z", true),
            ("Mon-Fri 06:00-22:00", "UTC", "2026-11-27T05:59:59Z", false),
            ("Mon-Fri 06:00-22:00", "UTC", "2026-11-27T21:59:59Z", true),
            ("Mon-Fri 06:00-22:00", "UTC", "2026-11-27T22:00:00Z", false),
            ("Mon-Fri 06:00-22:00", "UTC", "2026-11-28T12:00:00Z", false),
            ("Mon-Fri 06:00-22:00", "Europe/Oslo", "2026-11-27T05:00:00Z", true),
            ("Mon-Fri 06:00-22:00", "Europe/Oslo", "2026-07-03T04:00:00Z", true),
            ("Mon-Fri 06:00-22:00", "Europe/Oslo", "2026-07-03T20:00:00Z", false),
            // The night from Friday is Friday's, into Saturday morning.
            ("Fri 22:00-06:00", "UTC", "2026-11-27T23:00:00Z", true),
            ("Fri 22:00-06:00", "UTC", "2026-11-28T05:59:00Z", true),
            ("Fri 22:00-06:00", "UTC", "2026-11-28T06:00:00Z", false),
            ("Fri 22:00-06:00", "UTC", "2026-11-27T05:00:00Z", false),
            ("Sun 22:00-06:00", "UTC", "2026-11-30T01:00:00Z", true),
            ("Sat-Mon 00:00-24:00", "UTC", "2026-11-29T23:59:59Z", true),
            ("Sat-Mon 00:00-24:00", "UTC", "2026-11-27T23:59:59Z", false),
            ("Mon,Wed,Fri 00:00-24:00", "UTC", "2026-11-26T00:00:00Z", false),
            ("Mon,Wed,Fri 00:00-24:00", "UTC", "2026-11-25T00:00:00Z", true),
        ] {
            assert_eq!(window(&[weekly], zone).is_open(at(now)), expected, "{weekly} {zone} {now}");
        }
        let two = window(&["Mon 00:00-01:00", "Fri 12:00-13:00"], "UTC");
        assert!(two.is_open(at("2026-11-27T12:30:00Z")) && !two.is_open(at("2026-11-27T13:30:00Z")));
    }

    #[test]
    fn dates() {
        let dated = Window {
            not_before: Some("2026-11-27T10:00:00Z".parse().unwrap()),
            not_after: Some("2026-11-27T12:00:00+01:00".parse().unwrap()),
            ..window(&[], "UTC")
        };
        for (now, expected) in [
            ("2026-11-27T09:59:59Z", false),
            ("2026-11-27T10:00:00Z", true),
            ("2026-11-27T10:59:59Z", true),
            ("2026-11-27T11:00:00Z", false),
        ] {
            assert_eq!(dated.is_open(at(now)), expected, "{now}");
        }
        assert!(!dated.is_open(i64::MAX) && !dated.is_open(i64::MIN));
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", WindowError::Shape),
            ("06:00-22:00", WindowError::Shape),
            ("Mon 06:00", WindowError::Shape),
            ("Monday 06:00-22:00", WindowError::Day),
            ("mon 06:00-22:00", WindowError::Day),
            ("Mon- 06:00-22:00", WindowError::Day),
            ("Mon 6:00-22:00", WindowError::Hour),
            ("Mon 06:00-24:01", WindowError::Hour),
            ("Mon 06:60-22:00", WindowError::Hour),
            ("Mon +6:00-22:00", WindowError::Hour),
            ("Mon 06:00-06:00", WindowError::Empty),
            ("Mon 24:00-06:00", WindowError::Empty),
        ] {
            assert_eq!(Weekly::parse(text), Err(error), "{text:?}");
        }
    }
}
