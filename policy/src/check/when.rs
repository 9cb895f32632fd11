//! `when`: at which times.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Page;
use crate::doc::{Sp, TimeDoc, WhenDoc};
use crate::window::{Weekly, Window};
use crate::yaml;

/// Checks `when`.
pub(super) fn window(page: &mut Page<'_>, entry: &Sp<WhenDoc>) -> Option<Window> {
    let WhenDoc { time, cel } = &entry.value;
    let Some(time) = time else {
        if cel.is_none() {
            page.error_with(entry.referenced, "`when` is empty", "write `time` or `cel`, or leave it out");
        }
        return None;
    };
    let TimeDoc { weekly, zone, not_before, not_after } = &time.value;
    if weekly.is_none() && not_before.is_none() && not_after.is_none() {
        page.error_with(
            time.referenced,
            "`time` says no time",
            "write `weekly: [\"Mon-Fri 06:00-22:00\"]`, `notBefore` or `notAfter`",
        );
    }
    let zone = match (zone, weekly) {
        (Some(name), Some(_)) => check_zone(page, name),
        (Some(name), None) => {
            page.error_with(name.referenced, "dates name their zone themselves", "leave `zone` out");
            TimeZone::UTC
        }
        (None, Some(hours)) => {
            page.error_with(
                hours.referenced,
                "hours of the week need a time zone",
                "write `zone: UTC`, or a name like `zone: Europe/Oslo`",
            );
            TimeZone::UTC
        }
        (None, None) => TimeZone::UTC,
    };
    let mut date = |written: &Option<Sp<String>>| written.as_ref().and_then(|text| check_date(page, text));
    let (start, end) = (date(not_before), date(not_after));
    if let (Some(start), Some(end), Some(written)) = (start, end, not_after)
        && end <= start
    {
        page.error_with(
            written.referenced,
            "`notAfter` is not after `notBefore`: the rule never holds",
            "write a later time, or leave one of them out",
        );
    }
    Some(Window {
        weekly: weekly
            .as_ref()
            .map(|list| {
                page.each(list, "weekly", |text| {
                    Weekly::parse(text)
                        .map_err(|error| (error.to_string(), "write it like `Mon-Fri 06:00-22:00`"))
                })
            })
            .unwrap_or_default(),
        zone,
        not_before: start,
        not_after: end,
    })
}

fn check_zone(page: &mut Page<'_>, name: &Sp<String>) -> TimeZone {
    TimeZone::get(&name.value).unwrap_or_else(|_| {
        let known = jiff::tz::db().available();
        let known: Vec<String> = known.map(|name| name.to_string()).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        page.error_with(
            name.referenced,
            format!("unknown time zone `{}`", yaml::printable(&name.value)),
            yaml::nearest(&name.value, &known)
                .unwrap_or_else(|| "write a name of the IANA database, like `Europe/Oslo`".to_owned()),
        );
        TimeZone::UTC
    })
}

fn check_date(page: &mut Page<'_>, text: &Sp<String>) -> Option<Timestamp> {
    match text.value.parse() {
        Ok(date) => Some(date),
        Err(_) => {
            page.error_with(
                text.referenced,
                "not a point in time",
                "write it like `2026-11-27T10:00:00Z`, or with an offset instead of `Z`",
            );
            None
        }
    }
}
