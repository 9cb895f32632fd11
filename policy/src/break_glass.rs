//! Documents that open for a while what is closed otherwise, and say who wanted that and why.
//!
//! Such a document is an ordinary AccessPolicy, decided and explained like any other. The annotation marks it, so that
//! the checker can insist that it ends, and so that a sidecar can tell everybody while it holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// The annotation that marks a document; its value is `"true"`.
pub const BREAK_GLASS: &str = "postern.dev/break-glass";
/// The annotation that says why.
pub const REASON: &str = "postern.dev/reason";
/// The annotation that says who opened.
pub const OPENED_BY: &str = "postern.dev/opened-by";
/// Longest reason, in bytes: it stands in logs, each time.
pub const MAX_REASON: usize = 256;
/// Longest time that glass stays broken: what is wanted for longer is a policy.
pub const MAX_OPEN: Duration = Duration::from_secs(4 * 3_600);

/// What a marked document says of itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakGlass {
    /// Why.
    pub reason: Box<str>,
    /// Who, as they said themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Box<str>>,
    /// The first second at which it holds, since 1970.
    #[serde(serialize_with = "point")]
    pub from: i64,
    /// The first second at which it holds no more.
    #[serde(serialize_with = "point")]
    pub until: i64,
}

impl BreakGlass {
    /// Whether it holds at this time.
    pub fn is_open(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.from <= now && now < self.until
    }
}

fn point<S: Serializer>(seconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    match Timestamp::from_second(*seconds) {
        Ok(point) => serializer.collect_str(&point),
        Err(_) => serializer.serialize_i64(*seconds),
    }
}
