//! `matches`: regular expressions that are known when a rule is read, in bounded time.
//!
//! RE2's `\d`, `\w`, `\s` and `(?i)` are about ASCII, as these are.

use regex_lite::{Regex, RegexBuilder};

/// Longest pattern.
const MAX_PATTERN: usize = 512;
/// Levels of groups.
const MAX_NESTING: u32 = 16;
/// Sizes of compiled patterns in bytes, the last the largest allowed. Time grows with the size times the text's length.
const SIZES: [usize; 5] = [1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10];

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Steps for each byte of the text.
    weight: u32,
}

impl Pattern {
    /// Compiles a pattern; the error says what is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!("a pattern has at most {MAX_PATTERN} bytes"));
        }
        let mut error = String::new();
        for (weight, size) in (0_u32..).zip(SIZES) {
            match RegexBuilder::new(text).size_limit(size).nest_limit(MAX_NESTING).build() {
                Ok(regex) => return Ok(Self { regex, weight: 1 << weight }),
                Err(found) => error = found.to_string(),
            }
        }
        Err(error)
    }

    pub(super) fn steps(&self, text: &str) -> usize {
        text.len().saturating_mul(self.weight as usize)
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}
