//! Ports and ranges of them, as settings name them.

use std::fmt;
use std::str::FromStr;

/// One port or several in a row.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    pub(crate) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Sorted, and none within or next to another: what overlaps would be refused.
    pub(crate) fn joined(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut out: Vec<Self> = Vec::new();
        for range in ranges {
            match out.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => out.push(range),
            }
        }
        out
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no port from 1 to 65535, and no range such as 9000-9099");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first).ok_or_else(wrong)?, port(last).ok_or_else(wrong)?);
        if first > last { Err(wrong()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Digits only, from 1 to 65535.
pub(crate) fn port(text: &str) -> Option<u16> {
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_and_nothing_else() {
        for (text, shown) in [("1", "1"), ("65535", "65535"), ("9000-9099", "9000-9099"), ("80-80", "80")] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "0",
            "65536",
            "080",
            "+80",
            " 80",
            "80 ",
            "-",
            "80-",
            "-80",
            "90-80",
            "1-2-3",
            "http",
            "80;",
            "80 } ; flush ruleset",
            "0x50",
            "８０",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ranges_are_joined() {
        let of = |texts: &[&str]| -> Vec<String> {
            let ranges = texts.iter().map(|text| text.parse().unwrap()).collect();
            PortRange::joined(ranges).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&["90-99", "80", "95-120", "121", "81"]), ["80-81", "90-121"]);
        assert_eq!(of(&["65535", "1-65535"]), ["1-65535"]);
        assert!(of(&[]).is_empty());
    }
}
